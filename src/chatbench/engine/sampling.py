"""Logits of one row → the next id. Exact: kept tokens are drawn from their renormalised mass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from chatbench.settings import SamplingSettings


def choose(logits: Tensor, sampling: SamplingSettings, generator: torch.Generator,
           seen: Tensor | None = None) -> int:  # fmt: skip
    """Draw an id from logits (V,). `seen` (N,) holds the ids that the penalty applies to.

    Order of the filters: repetition penalty, temperature, top_k, top_p, min_p.
    """
    scores = logits.float()
    if sampling.repetition_penalty != 1.0 and seen is not None and len(seen):
        scores = _penalise(scores, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(scores.argmax())
    kept, ids = likely_tokens(scores / sampling.temperature, sampling)
    # Inverse CDF with one uniform: half the work of multinomial, and in float64 exact enough.
    mass = kept.double().softmax(0).cumsum(0)
    drawn = torch.rand((), generator=generator, dtype=torch.float64)
    position = torch.searchsorted(mass, drawn * mass[-1], right=True).clamp(max=len(mass) - 1)
    return int(ids[position])


def likely_tokens(scores: Tensor, sampling: SamplingSettings) -> tuple[Tensor, Tensor]:
    """The scores and ids that survive top_k, top_p and min_p, likeliest first."""
    k = min(sampling.top_k or len(scores), len(scores))
    kept, ids = scores.topk(k)
    if sampling.top_p < 1.0:
        # Nucleus (Holtzman et al. 2020): the smallest set that reaches top_p.
        before = kept.double().softmax(0).cumsum(0).roll(1)
        before[0] = 0.0
        count = int((before < sampling.top_p).sum())
        kept, ids = kept[:count], ids[:count]
    if sampling.min_p > 0.0:
        count = int((kept.double() - kept[0] >= math.log(sampling.min_p)).sum())
        kept, ids = kept[:count], ids[:count]
    return kept, ids


def _penalise(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Keskar et al. 2019 (CTRL): positive scores shrink, negative ones grow."""
    scores = scores.clone()
    values = scores[seen]
    scores[seen] = torch.where(values > 0, values / penalty, values * penalty)
    return scores
