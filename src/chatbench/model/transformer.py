"""The one GPT: pre-RMSNorm, rotary positions, QK-norm, grouped queries, SwiGLU, no biases.

Module names equal the hub's (Qwen3), so a state dict is a hub checkpoint and the other way round.
Legend: B rows, T tokens, C width, V vocabulary, H heads, D head width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbench.errors import UsageError
from chatbench.model.attention import LayerCache, Packing, attention, rotary_table, rotate


class ModelConfig(NamedTuple):
    """Shape of a model, in our words; `architectures/` translates to and from config.json."""

    vocab_size: int
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_size: int
    context: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    model_type: str = "qwen3"

    def check(self) -> ModelConfig:
        """Itself, or UsageError when the numbers do not fit together."""
        for name, value in self._asdict().items():
            if type(value) is int and value < 1:
                raise UsageError(f"{name} is {value}, it must be at least 1")
        if self.n_heads % self.n_kv_heads:
            raise UsageError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            )
        if self.head_dim % 2:
            raise UsageError(f"head_dim {self.head_dim} is odd, rotary positions need pairs")
        return self


class RMSNorm(nn.Module):
    """Zhang & Sennrich 2019."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        inner = config.n_heads * config.head_dim
        inner_kv = config.n_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, inner_kv, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, inner_kv, bias=False)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(
        self, x: Tensor, rotary: Tensor, packing: Packing | None, cache: LayerCache | None
    ) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q = rotate(self.q_norm(self.q_proj(x).view(heads)), *rotary)
        k = rotate(self.k_norm(self.k_proj(x).view(heads)), *rotary)
        v = self.v_proj(x).view(heads)
        out: Tensor = self.o_proj(attention(q, k, v, packing, cache).flatten(2))
        return out


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.down_proj = nn.Linear(config.ffn_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(
        self, x: Tensor, rotary: Tensor, packing: Packing | None, cache: LayerCache | None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, packing, cache)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Trunk(nn.Module):
    """Everything below the output head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class GPT(nn.Module):
    """ids → hidden states → logits."""

    rotary: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.check()
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie()
        table = rotary_table(config.context, config.head_dim, config.rope_theta)
        self.register_buffer("rotary", table, persistent=False)

    def tie(self) -> None:
        """Make the head the embedding, where the config says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        ids: Tensor,
        packing: Packing | None = None,
        cache: list[LayerCache] | None = None,
    ) -> Tensor:
        """Hidden states (B, T, C) of ids (B, T); `logits` turns them into scores.

        Positions start at 0, or follow the packing's, or continue each cache row.
        """
        x = self.model.embed_tokens(ids)
        rotary = self._rotary_at(ids.shape[1], packing, cache).to(x.dtype)
        for number, layer in enumerate(self.model.layers):
            x = layer(x, rotary, packing, None if cache is None else cache[number])
        hidden: Tensor = self.model.norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) → (..., V)."""
        scores: Tensor = self.lm_head(hidden)
        return scores

    def _rotary_at(
        self, new: int, packing: Packing | None, cache: list[LayerCache] | None
    ) -> Tensor:
        """(2, B or 1, T, 1, D)."""
        if cache is not None:
            offsets = torch.arange(new, device=self.rotary.device)
            at = self.rotary[:, cache[0].lengths[:, None] + offsets]
        elif packing is not None:
            at = self.rotary[:, packing.position]
        else:
            at = self.rotary[:, None, :new]
        return at[:, :, :, None]

    def parameter_count(self) -> int:
        """Parameters, tied ones once."""
        return sum(p.numel() for p in self.parameters())


def initialise(model: GPT, seed: int) -> None:
    """Normal weights of width^-1/2, embeddings 0.02, and zeroed projections into the residual
    stream, so that a fresh block is the identity (Zhang et al. 2019, "Fixup"; muP practice)."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        if weight.ndim < 2:
            continue
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(weight)
        elif "embed_tokens" in name or "lm_head" in name:
            nn.init.normal_(weight, std=0.02, generator=generator)
        else:
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]), generator=generator)
