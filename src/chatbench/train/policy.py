"""Policy gradients from drawn tokens: their log-probabilities, the clipped ratio, the estimate of
the distance from the model at the start, and what a reply is worth beside others.

Legend: M drawn tokens, P prompts, G replies to each.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbench.model.adapter import adapted
from chatbench.model.head import token_logprobs
from chatbench.model.kernels.compiled import Linear
from chatbench.model.rows import learning_rows
from chatbench.model.transformer import GPT
from chatbench.train.objective import Batch

# exp of more would leave float32; no ratio that training can reach comes near.
_LARGEST_LOG_RATIO = 30.0


def drawn_logprobs(model: GPT, batch: Batch, temperature: float) -> Tensor:
    """log p (M,) of the targets that count, row by row, by the distribution they were drawn from:
    that of the logits divided by `temperature`. Differentiable."""
    batch = batch.counted()
    assert batch.places is not None
    hidden = model(batch.ids, packing=batch.packing).flatten(0, 1)[batch.places]
    targets = batch.targets.flatten()[batch.places]
    head = model.lm_head
    if type(head) in (nn.Linear, Linear):
        bias: Tensor | None = head.bias
        bias = None if bias is None else bias / temperature
        return token_logprobs(hidden / temperature, head.weight, targets, bias=bias)
    logits = model.logits(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return -F.cross_entropy(logits, targets, reduction="none")


def surrogate(
    logprobs: Tensor, before: Tensor, advantages: Tensor, low: float, high: float
) -> Tensor:
    """What is to become larger, (M,): min(ratio · A, clip(ratio, 1 - low, 1 + high) · A), where the
    ratio is that of a token's probability now to that by the weights that drew it (PPO, Schulman et
    al. 2017)."""
    ratio = _exp(logprobs - before)
    return torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def is_clipped(
    logprobs: Tensor, before: Tensor, advantages: Tensor, low: float, high: float
) -> Tensor:
    """Tokens (M,) bool that have moved so far that they learn nothing more."""
    ratio = _exp(logprobs - before)
    over, under = ratio > 1 + high, ratio < 1 - low
    return (over & (advantages > 0)) | (under & (advantages < 0))


def distance(logprobs: Tensor, reference: Tensor) -> Tensor:
    """An estimate (M,) of the Kullback-Leibler divergence from the reference, never negative (k3,
    Schulman 2020): exp(δ) - δ - 1 with δ = log reference - log p."""
    delta = reference - logprobs
    return _exp(delta) - delta - 1


def _exp(exponent: Tensor) -> Tensor:
    return exponent.clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).exp()


def advantages(rewards: Sequence[float], group: int, *, scaled: bool = False) -> list[float]:
    """How much more each reply is worth than the mean of its group of `group` replies (P·G,), in
    units of the group's deviation where `scaled`. Of equal ones exactly nothing: an optimiser
    that measures gradients by their own size would take rounding for news."""
    found: list[float] = []
    for begin in range(0, len(rewards), group):
        own = rewards[begin : begin + group]
        if min(own) == max(own):
            found += [0.0] * len(own)
            continue
        mean = math.fsum(own) / len(own)
        unit = deviation(own) if scaled else 1.0
        found += [(reward - mean) / unit for reward in own]
    return found


def beside_others(rewards: Sequence[float]) -> list[float]:
    """The same of one reply to each prompt (REINFORCE, Williams 1992): how much more it is worth
    than the mean of all others; what is alone has nothing to be held against."""
    if len(rewards) == 1:
        return list(rewards)
    if min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    whole, others = math.fsum(rewards), len(rewards) - 1
    return [reward - (whole - reward) / others for reward in rewards]


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 for one value."""
    if len(values) < 2 or min(values) == max(values):
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


class Start:
    """The model as a finetune began: what lies under its adapter, or a copy."""

    def __init__(self, model: GPT) -> None:
        self._model = model
        self._layers = [layer for _, layer in adapted(model)]
        self._rows = [table for _, table in learning_rows(model)]
        self._copy = None if self._layers else copy.deepcopy(model).requires_grad_(False)

    @contextmanager
    def model(self) -> Iterator[GPT]:
        """The model of then, in the number format of now, while the context lasts."""
        if self._copy is not None:
            yield self._copy.to(self._model.model.embed_tokens.weight.dtype)
            return
        scales = [layer.scale for layer in self._layers]
        try:
            for layer in self._layers:
                layer.scale = 0.0
            for table in self._rows:
                table.bypassed = True
            yield self._model
        finally:
            for table in self._rows:
                table.bypassed = False
            for layer, scale in zip(self._layers, scales, strict=True):
                layer.scale = scale
