"""Our weights under GGUF's names and in llama.cpp's layout, converted one at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from chatbench.errors import IntegrityError
from chatbench.export.gguf_numbers import Floats
from chatbench.model.transformer import ModelConfig

# Ours → GGUF's (`gguf-py/gguf/constants.py`), outside the blocks and inside of one.
_OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.embed_positions": "position_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_FUSED = tuple(f"self_attn.{part}_proj" for part in "qkv")


class Source(NamedTuple):
    """A tensor of the file; `load` computes its numbers, float32 of `shape`."""

    name: str
    shape: tuple[int, ...]
    load: Callable[[], Floats]


def sources(config: ModelConfig, weights: dict[str, Tensor], architecture: str) -> list[Source]:
    """The tensors of a file, in order. Raises IntegrityError for one that GGUF has no name for."""
    modules = {module: (name, 0) for module, name in _OUTSIDE.items()}
    turned = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}
    for layer in range(config.n_layers):
        for module, name in _INSIDE.items():
            # llama.cpp turns neighbours in its architecture llama, the hub's weights turn halves.
            heads = turned.get(name, 0) if architecture == "llama" else 0
            modules[f"model.layers.{layer}.{module}"] = f"blk.{layer}.{name}", heads
    found: list[Source] = []
    left = dict(weights)
    for module, (name, heads) in modules.items():
        for kind in ("weight", "bias"):
            if architecture == "gpt2" and module.endswith(_FUSED):
                if module.endswith(_FUSED[0]):
                    parts = [left.pop(f"{module[:-6]}{part}_proj.{kind}") for part in "qkv"]
                    fused = name.replace("attn_q", "attn_qkv")
                    found.append(_source(f"{fused}.{kind}", parts, 0))
            elif (weight := left.pop(f"{module}.{kind}", None)) is not None:
                found.append(_source(f"{name}.{kind}", [weight], heads))
    if left:
        raise IntegrityError(f"GGUF has no name for {min(left)}", hint="export with --to hf")
    return found


def _source(name: str, parts: list[Tensor], heads: int) -> Source:
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Source(name, shape, partial(_numbers, parts, heads))


def _numbers(parts: list[Tensor], heads: int) -> Floats:
    whole = torch.cat(parts) if len(parts) > 1 else parts[0]
    whole = interleave(whole, heads) if heads else whole
    numbers: Floats = whole.detach().to("cpu", torch.float32).contiguous().numpy()
    return numbers


def interleave(weight: Tensor, heads: int) -> Tensor:
    """Rows (heads · D, ...) of a query or key projection, reordered within each head from
    "first halves, second halves" of the rotated pairs to "pair after pair"."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)
