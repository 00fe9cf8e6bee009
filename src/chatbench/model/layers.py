"""The parts of a block, each with the variants that a ModelConfig can name.

Legend: B rows, T tokens, C width, D head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbench.model.attention import AttentionSpec, LayerCache, Packing, attention, rotate
from chatbench.model.config import Activation, ModelConfig
from chatbench.model.kernels import passes
from chatbench.model.kernels.compiled import Linear

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "tanh": torch.tanh,
}


class RMSNorm(nn.Module):
    """Zhang & Sennrich 2019."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if passes.serves(x, self.weight):
            return passes.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def make_norm(config: ModelConfig) -> nn.Module:
    """The norm over the width that the config names."""
    if config.norm == "layer":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
    return RMSNorm(config.hidden_size, config.norm_eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        inner = config.n_heads * config.head_dim
        inner_kv = config.n_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, inner, bias=config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, inner_kv, bias=config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, inner_kv, bias=config.qkv_bias)
        self.o_proj = Linear(inner, config.hidden_size, bias=config.out_bias)
        self.spec = AttentionSpec(causal=config.causal)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(
        self, x: Tensor, rotary: Tensor | None, packing: Packing | None, cache: LayerCache | None
    ) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q, k = self.q_proj(x).view(heads), self.k_proj(x).view(heads)
        v = self.v_proj(x).view(heads)
        q, k = self._placed(q, "q_norm", rotary), self._placed(k, "k_norm", rotary)
        out: Tensor = self.o_proj(attention(q, k, v, self.spec, packing, cache).flatten(2))
        return out

    def _placed(self, x: Tensor, name: str, rotary: Tensor | None) -> Tensor:
        """x (B, T, H, D) normed, where the model does that, and turned by its positions."""
        norm: RMSNorm | None = getattr(self, name) if self.qk_norm else None
        weight = None if norm is None else norm.weight
        if rotary is not None and passes.turns(x, weight, *rotary):
            return passes.turn(x, weight, 0.0 if norm is None else norm.eps, *rotary)
        x = x if norm is None else norm(x)
        return x if rotary is None else rotate(x, *rotary)


class FeedForward(nn.Module):
    """down(act(gate(x))·up(x)) (Shazeer 2020), or down(act(up(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = config.gated
        self.activation = ACTIVATIONS[config.activation]
        self.swiglu = config.gated and config.activation == "silu"
        if config.gated:
            self.gate_proj = Linear(config.hidden_size, config.ffn_size, bias=config.ffn_bias)
        self.up_proj = Linear(config.hidden_size, config.ffn_size, bias=config.ffn_bias)
        self.down_proj = Linear(config.ffn_size, config.hidden_size, bias=config.ffn_bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            gate, up = self.gate_proj(x), self.up_proj(x)
            if self.swiglu and passes.serves(gate, up):
                inner = passes.swiglu(gate, up)
            else:
                inner = self.activation(gate) * up
        else:
            inner = self.activation(self.up_proj(x))
        out: Tensor = self.down_proj(inner)
        return out


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = make_norm(config)
        self.post_attention_layernorm = make_norm(config)

    def forward(
        self, x: Tensor, rotary: Tensor | None, packing: Packing | None, cache: LayerCache | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, packing, cache)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x
