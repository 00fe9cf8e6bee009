"""One more token of every row in one call of the C extension, by a plan of where numbers lie.

What a token of a small model costs beside reading its weights is being told what to do next, some
hundred times. So the whole of it, from ids to logits, is one task for all threads, in the order of
`_decode_step.h`. Activations stay float32 between the products, whatever the model's number format.
Rows are computed each by itself and sums have one order: a row's logits have the same bits alone,
in company and with any number of threads.
Legend: M rows, V vocabulary, D head width, N outputs, K inputs.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import torch
from torch import Tensor, nn

from chatbench.engine.cache import KVCache
from chatbench.model.adapter import LoraLinear
from chatbench.model.config import ModelConfig
from chatbench.model.kernels import compiled
from chatbench.model.layers import Attention, Block, RMSNorm
from chatbench.model.quantize import QuantizedLinear
from chatbench.model.transformer import GPT

__all__ = ["Stepper"]

_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "tanh")
_NARROW = {torch.float32: 0, torch.bfloat16: 1}
_BLOCKS = (32, 64)
# Inputs whose activations share a step; groups of int4 are multiples of it.
_RUN = 32
# How the fields of `_decode_model.h` are written: numbers, layers and norms are runs of integers.
_BLOCK = "<12q63qdq"
_MODEL = "<10qd17q"


class _Unfit(Exception):
    """Why a model is not for the extension."""


class Stepper:
    """The step of one model on one cache; `fault` says why there is none, or "".

    Weights may change in place. Where a layer is put in another's place, or other storage under a
    weight, a new one is due.
    """

    def __init__(self, model: GPT, cache: KVCache, threads: int | None = None) -> None:
        self.fault = compiled.why_not()
        self._model = model
        self._cache = cache
        self._threads = threads
        self._held: list[Tensor] = []
        self._capacity = -1
        self._scratch = torch.empty(0, dtype=torch.uint8)
        if not self.fault:
            try:
                self._plan()
            except _Unfit as unfit:
                self.fault = str(unfit)

    def next(self, ids: list[int], fast: bool = True) -> Tensor | None:
        """Logits (M, V) in float32 after one more token of cache rows 0 to M - 1, whose keys and
        values are appended; their lengths are the caller's to raise. None where it cannot serve.
        `fast`: vector instructions where the processor has them.
        """
        rows, cache = len(ids), self._cache
        if self.fault or not 0 < rows <= compiled.FEW_ROWS:
            return None
        lengths = cache.lengths[:rows]
        cache.reserve(max(lengths) + 1)
        reach = max(lengths) + 1
        angles = 0
        if self._model.rope is not None:
            if self._model.rope.depends_on_length() and reach > self._model.config.context:
                return None
            table = self._model.rope.cover(reach, torch.device("cpu"))
            angles, reach = table.data_ptr(), table.shape[1]
        if self._capacity != cache.capacity:
            self._find_cache()
        threads = self._threads or torch.get_num_threads()
        plan, blocks, caches = map(ctypes.addressof, (self._plan_of, self._blocks, self._caches))
        extension = compiled.extension()
        needed = extension.step_size(plan, rows, threads)
        if needed > self._scratch.numel():
            self._scratch = torch.empty(needed, dtype=torch.uint8)
        logits = torch.empty(rows, self._model.lm_head.out_features)
        packed = (struct.pack(f"{rows}q", *numbers) for numbers in (ids, lengths))
        extension.step(
            plan, blocks, caches, *packed, angles, reach, self._scratch.data_ptr(),
            self._scratch.numel(), logits.data_ptr(), threads, fast,
        )  # fmt: skip
        return logits

    def _find_cache(self) -> None:
        entries = []
        for keys, values in self._cache.stores(compiled.FEW_ROWS):
            entries += [*_pair(keys, values), self._narrow(keys), self._cache.capacity]
        self._caches = _laid(struct.pack(f"<{len(entries)}q", *entries))
        self._capacity = self._cache.capacity

    def _plan(self) -> None:
        config, model = self._model.config, self._model
        trunk = model.model
        layers = [_unwrapped(layer, Block) for layer in trunk.layers]
        self._blocks = _laid(b"".join(self._block(block, config) for block in layers))
        self._find_cache()
        learned = config.positions == "learned"
        width, vocabulary = config.hidden_size, config.vocab_size
        shapes = (width, config.n_heads, config.n_kv_heads, config.head_dim, config.ffn_size)
        self._plan_of = _laid(
            struct.pack(
                _MODEL, config.n_layers, *shapes, vocabulary, config.context,
                _ACTIVATIONS.index(config.activation), config.norm == "layer", config.norm_eps,
                *self._numbers(trunk.embed_tokens.weight, (vocabulary, width)),
                *self._numbers(
                    trunk.embed_positions.weight if learned else None, (config.context, width)
                ),
                *self._norm(trunk.norm, config), *self._layer(model.lm_head, vocabulary, width),
            )
        )  # fmt: skip

    def _block(self, block: Block, config: ModelConfig) -> bytes:
        attention, mlp = block.self_attn, block.mlp
        width, inner, head = config.hidden_size, config.ffn_size, config.head_dim
        heads, kv_heads = config.n_heads * head, config.n_kv_heads * head
        normed = attention.qk_norm
        gate = self._layer(mlp.gate_proj, inner, width) if mlp.gated else [0] * 9
        return struct.pack(
            _BLOCK, *self._norm(block.input_layernorm, config),
            *self._norm(block.post_attention_layernorm, config),
            *self._numbers(attention.q_norm.weight if normed else None, (head,)),
            *self._numbers(attention.k_norm.weight if normed else None, (head,)),
            *self._layer(attention.q_proj, heads, width),
            *self._layer(attention.k_proj, kv_heads, width),
            *self._layer(attention.v_proj, kv_heads, width),
            *self._layer(attention.o_proj, width, heads), *gate,
            *self._layer(mlp.up_proj, inner, width), *self._layer(mlp.down_proj, width, inner),
            _scale(attention), attention.spec.window or 0,
        )  # fmt: skip

    def _narrow(self, tensor: Tensor) -> int:
        if tensor.dtype not in _NARROW:
            raise _Unfit(f"numbers are {str(tensor.dtype).removeprefix('torch.')}")
        return _NARROW[tensor.dtype]

    def _numbers(self, tensor: Tensor | None, shape: tuple[int, ...]) -> list[int]:
        """Address and format, which are zero for None."""
        if tensor is None:
            return [0, 0]
        if type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_cpu:
            raise _Unfit("weights are not on the CPU")
        if tensor.shape != shape or not tensor.is_contiguous():
            raise _Unfit("weights lie otherwise than the extension reads them")
        narrow = self._narrow(tensor)
        # A view of its own: a weight may be given other storage, and these addresses must last.
        self._held.append(tensor.detach())
        return [tensor.data_ptr(), narrow]

    def _norm(self, norm: nn.Module, config: ModelConfig) -> list[int]:
        if not isinstance(norm, RMSNorm | nn.LayerNorm) or norm.eps != config.norm_eps:
            raise _Unfit("norms are not those of the model's config")
        bias = norm.bias if isinstance(norm, nn.LayerNorm) else None
        shape = (config.hidden_size,)
        return [*self._numbers(norm.weight, shape), *self._numbers(bias, shape)]

    def _layer(self, layer: nn.Module, outputs: int, inputs: int) -> list[int]:
        """Kind, N, K, block, group, addresses of weights and scales, and the bias."""
        if isinstance(layer, LoraLinear):
            if not layer.merged:
                raise _Unfit("an adapter is beside the weights")
            layer = layer.base
        if type(layer) in (nn.Linear, compiled.Linear):
            assert isinstance(layer, nn.Linear)
            address, narrow = self._numbers(layer.weight, (outputs, inputs))
            bias = self._numbers(layer.bias, (outputs,))
            return [narrow, outputs, inputs, 1, 0, address, 0, *bias]
        if type(layer) is not QuantizedLinear:
            raise _Unfit(f"it has a layer of its own kind, {type(layer).__name__}")
        group = layer.group if layer.kind == "int4" else 0
        block = layer.block if group else 1
        fits = compiled.serves_codes(layer.codes, layer.scales, block)
        if not fits or (group and (block not in _BLOCKS or group % _RUN)):
            raise _Unfit(f"{layer.kind} weights lie otherwise than the extension reads them")
        compiled.check_codes(layer.codes, layer.scales, outputs, inputs, group)
        self._held += [layer.codes.detach(), layer.scales.detach()]
        kind = compiled.KINDS[layer.kind]
        where = _pair(layer.codes, layer.scales)
        return [kind, outputs, inputs, block, group, *where, *self._numbers(layer.bias, (outputs,))]


def _pair(first: Tensor, second: Tensor) -> list[int]:
    return [first.data_ptr(), second.data_ptr()]


def _scale(attention: Attention) -> float:
    scale = attention.spec.scale
    return attention.head_dim**-0.5 if scale is None else scale


def _unwrapped(layer: nn.Module, wanted: type[Block]) -> Block:
    if type(layer) is not wanted:
        raise _Unfit(f"it has a block of its own kind, {type(layer).__name__}")
    assert isinstance(layer, Block)
    return layer


def _laid(packed: bytes) -> Any:
    """Bytes at an address that stays, aligned for any of the fields."""
    return ctypes.create_string_buffer(packed, len(packed))
