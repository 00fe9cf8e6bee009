"""`model_type` gpt2: learned positions, LayerNorm, biases everywhere, one matrix for q, k and v.

Its weights lie as (inputs, outputs), and under the name `transformer.` or none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from chatbench.errors import IntegrityError
from chatbench.model.architectures.activations import hub_activation, read_activation
from chatbench.model.architectures.llama_like import faithful, without_buffers
from chatbench.model.architectures.refusals import refuse, refuse_unknown
from chatbench.model.config import ModelConfig

# reorder_and_upcast_attn changes rounding below float32 only.
_KEYS = frozenset({
    "vocab_size", "n_positions", "n_ctx", "n_embd", "n_layer", "n_head", "n_inner",
    "activation_function", "layer_norm_epsilon", "tie_word_embeddings", "scale_attn_weights",
    "reorder_and_upcast_attn", "summary_activation", "summary_first_dropout", "summary_type",
    "hidden_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
})  # fmt: skip
_OUTSIDE = {
    "wte.weight": "model.embed_tokens.weight",
    "wpe.weight": "model.embed_positions.weight",
    "ln_f.weight": "model.norm.weight",
    "ln_f.bias": "model.norm.bias",
}
_PARTS = {
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}
_FUSED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_HUB_NAME = re.compile(r"h\.(\d+)\.(.+)\.(weight|bias)")
_OUR_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


def read(raw: dict[str, Any]) -> ModelConfig:
    """From config.json. Raises IntegrityError for what is missing or not computed."""
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        refuse(raw.get(key), key)
    refuse(not raw.get("scale_attn_weights", True), "scale_attn_weights false")
    refuse_unknown(raw, _KEYS)

    def number(name: str, other: str) -> int:
        said = [raw[key] for key in (name, other) if raw.get(key) is not None]
        if not said:
            raise IntegrityError(f"config.json does not say {name}")
        if said[0] != said[-1]:
            raise IntegrityError(f"config.json says {name} {said[0]}, but {other} {said[-1]}")
        value: int = said[0]
        return value

    width, heads = number("n_embd", "hidden_size"), number("n_head", "num_attention_heads")
    inner = raw.get("n_inner")
    if width % max(1, heads):
        raise IntegrityError(f"config.json: n_embd {width} is not a multiple of n_head {heads}")
    return ModelConfig(
        vocab_size=number("vocab_size", "vocab_size"),
        n_layers=number("n_layer", "num_hidden_layers"),
        hidden_size=width,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=width // max(1, heads),
        ffn_size=4 * width if inner is None else inner,
        context=number("n_positions", "max_position_embeddings"),
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        tie_embeddings=raw.get("tie_word_embeddings", True),
        model_type="gpt2",
        positions="learned",
        norm="layer",
        activation=read_activation(raw, "activation_function", "gelu_new"),
        gated=False,
        qk_norm=False,
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """To config.json, readable by transformers 4 and 5."""
    raw = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_embd": config.hidden_size,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.ffn_size,
        "activation_function": hub_activation(config.activation),
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": "float32",
    }
    return faithful(config, raw, read)


def from_hub(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Weights by our names and layouts; the masks that old versions stored are left out.

    Unknown names stay as they are. Raises IntegrityError when a fused matrix has another shape
    than three projections of the width.
    """
    found: dict[str, Tensor] = {}
    for stored, weight in without_buffers(weights, (".attn.bias", ".attn.masked_bias")).items():
        name = stored.removeprefix("transformer.")
        match = _HUB_NAME.fullmatch(name)
        if match is None:
            found[_OUTSIDE.get(name, stored)] = weight
            continue
        layer, part, kind = match.groups()
        turned = weight.t() if weight.ndim == 2 else weight
        if part == "attn.c_attn":
            width = config.hidden_size
            if tuple(weight.shape) not in ((width, 3 * width), (3 * width,)):
                raise IntegrityError(
                    f"{stored} has shape {tuple(weight.shape)}, config.json wants "
                    f"{(width, 3 * width) if kind == 'weight' else (3 * width,)}"
                )
            pieces = zip(_FUSED, turned.chunk(3), strict=True)
        else:
            pieces = zip((_PARTS.get(part, part),), (turned,), strict=True)
        found |= {f"model.layers.{layer}.{ours}.{kind}": p.contiguous() for ours, p in pieces}
    return found


def to_hub(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Weights by hub names and layouts; queries, keys and values must all be there."""
    outside = {ours: f"transformer.{hub}" for hub, ours in _OUTSIDE.items()}
    parts = {ours: hub for hub, ours in _PARTS.items()}
    found: dict[str, Tensor] = {}
    for ours, weight in weights.items():
        match = _OUR_NAME.fullmatch(ours)
        if match is None:
            found[outside.get(ours, ours)] = weight
            continue
        layer, part, kind = match.groups()
        if part in _FUSED:
            if part != _FUSED[0]:
                continue
            names = (f"model.layers.{layer}.{each}.{kind}" for each in _FUSED)
            weight, part = torch.cat([weights[name] for name in names]), "attn.c_attn"
        turned = weight.t().contiguous() if weight.ndim == 2 else weight
        found[f"transformer.h.{layer}.{parts.get(part, part)}.{kind}"] = turned
    return found
