"""The one GPT: a family of hub models is a ModelConfig, not a class of its own.

Module names equal the hub's for Llama and Qwen, so for those a state dict is a hub checkpoint and
the other way round. Legend: B rows, T tokens, C width, V vocabulary, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from chatbench.model.attention import LayerCache, Packing, Reach
from chatbench.model.config import ModelConfig, Pooling, RopeScaling
from chatbench.model.kernels.compiled import Linear
from chatbench.model.layers import Attention, Block, FeedForward, RMSNorm, make_norm
from chatbench.model.rotary import RotaryTable

__all__ = [
    "GPT",
    "Attention",
    "Block",
    "FeedForward",
    "ModelConfig",
    "RMSNorm",
    "RopeScaling",
    "Trunk",
    "initialise",
]

# What a classifier's head is called. transformers knows heads on the last token: one on anything
# else has a name that it does not know, so that it says so instead of computing something else.
HEADS: dict[Pooling, str] = {"last": "score", "mean": "score_of_mean"}


class Trunk(nn.Module):
    """Everything below the output head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = _table(config.vocab_size, config.hidden_size)
        if config.positions == "learned":
            self.embed_positions = _table(config.context, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = make_norm(config)


def _table(entries: int, width: int) -> nn.Embedding:
    """An embedding (entries, width). On the meta device it draws no numbers: nobody would see
    them, and torch would load its whole compiler for it, a second at every start."""
    if torch.get_default_device().type == "meta":
        return nn.Embedding(entries, width, _weight=torch.empty(entries, width))
    return nn.Embedding(entries, width)


def _classes(config: ModelConfig) -> Linear:
    return Linear(config.hidden_size, len(config.labels), bias=False)


def _run(block: nn.Module, *arguments: object) -> Tensor:
    x: Tensor = block(*arguments)
    return x


class GPT(nn.Module):
    """ids → hidden states → logits, of tokens or of the config's labels."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.check()
        self.model = Trunk(config)
        if config.labels:
            setattr(self, HEADS[config.pooling], _classes(config))
        else:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
            self.tie()
        self.rope = RotaryTable(config) if config.positions == "rotary" else None
        # Calls a block; training may put one here that keeps less for the backward pass.
        self.block_runner: Callable[..., Tensor] = _run

    def tie(self) -> None:
        """Make the head the embedding, where the config says so."""
        if self.config.tie_embeddings and not self.config.labels:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def head(self) -> nn.Module:
        """What turns hidden states into scores, of tokens or of classes."""
        found: nn.Module = getattr(self, self.head_name)
        return found

    @property
    def head_name(self) -> str:
        return HEADS[self.config.pooling] if self.config.labels else "lm_head"

    def become_classifier(
        self, labels: tuple[str, ...], pooling: Pooling = "last", *, causal: bool = True
    ) -> None:
        """Tell these classes apart from now on, and name no tokens any more. The new head knows
        nothing: all classes are equally likely."""
        self.config = self.config._replace(labels=labels, pooling=pooling, causal=causal).check()
        for part in self.modules():
            if isinstance(part, Attention):
                part.spec = part.spec._replace(causal=causal)
        weight = self.model.embed_tokens.weight
        del self.lm_head
        head = _classes(self.config).to(device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(head.weight)
        setattr(self, self.head_name, head)

    def forward(
        self,
        ids: Tensor,
        packing: Packing | None = None,
        cache: list[LayerCache] | None = None,
    ) -> Tensor:
        """Hidden states (B, T, C) of ids (B, T); `logits` turns them into scores.

        Positions start at 0, or follow the packing's, or continue each cache row. Rotary positions
        may go beyond the context; learned ones raise IndexError there. With dynamic rope scaling,
        texts beyond the context turn by the length of the longest row of this very call, and what
        a cache holds stays as it was turned.
        """
        x = self.model.embed_tokens(ids)
        rotary = None
        if self.rope is None:
            x = x + self.model.embed_positions(_positions(ids, packing, cache))
        elif packing is None and cache is None:
            rotary = self.rope.first(ids.shape[1], ids.device, x.dtype)
        else:
            reach = self._reach(ids.shape[1], packing, cache)
            rotary = self.rope.at(_positions(ids, packing, cache), reach, x.dtype)
        for number, layer in enumerate(self.model.layers):
            held = None if cache is None else cache[number]
            x = self.block_runner(layer, x, rotary, packing, held)
        hidden: Tensor = self.model.norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) → (..., V), or (..., labels) of `pooled` states."""
        scores: Tensor = self.head(hidden)
        return scores

    def _reach(self, new: int, packing: Packing | None, cache: list[LayerCache] | None) -> int:
        """A bound on the positions of this call, on the host."""
        if cache is not None:
            return cache[0].longest + new
        assert packing is not None
        assert self.rope is not None
        # Asking an accelerator would wait for it and a compiler cannot, so the table is made whole.
        on_host = packing.position.device.type == "cpu" and not torch.compiler.is_compiling()
        stretched = new > self.config.context and self.rope.depends_on_length()
        if on_host or stretched:
            return int(packing.position.max()) + 1
        return self.config.context

    def parameter_count(self) -> int:
        """Parameters, tied ones once."""
        return sum(p.numel() for p in self.parameters())


def _positions(ids: Tensor, packing: Packing | None, cache: list[LayerCache] | None) -> Tensor:
    """(B or 1, T)."""
    new = ids.shape[1]
    if cache is not None:
        return (cache[0].reach or Reach(cache[0].lengths, cache[0].longest)).at(new)
    if packing is not None:
        return packing.position
    return torch.arange(new, device=ids.device)[None]


def initialise(model: GPT, seed: int) -> None:
    """Normal weights of width^-1/2, embeddings 0.02, and zeroed projections into the residual
    stream, so that a fresh block is the identity (Zhang et al. 2019, "Fixup"; muP practice).
    Norms begin at one, biases at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(model.named_parameters()):
        if name.endswith(("bias", "o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(weight)
        elif weight.ndim < 2:
            nn.init.ones_(weight)
        elif "embed_" in name or "lm_head" in name:
            nn.init.normal_(weight, std=0.02, generator=generator)
        else:
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]), generator=generator)
