"""What a training step consumes and what it returns: sums, never means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from chatbench.model.attention import Packing
from chatbench.model.transformer import GPT


class Batch(NamedTuple):
    """Rows of one micro-batch. `ids`, `targets` (B, T) int64; `weights` (B, T) float32."""

    ids: Tensor
    targets: Tensor
    weights: Tensor
    packing: Packing | None

    def to(self, device: torch.device) -> Batch:
        packing = self.packing and Packing(*(t.to(device) for t in self.packing))
        ids, targets, weights = (t.to(device, non_blocking=True) for t in self[:3])
        return Batch(ids, targets, weights, packing)


class Loss(NamedTuple):
    """Summed over what counts; `total / weight` is the mean, over any grouping of rows."""

    total: Tensor
    weight: float
    metrics: dict[str, float]


class GlobalBatch(NamedTuple):
    """One optimiser step: its micro-batches and the weight they add up to."""

    parts: list[Batch]
    weight: float
    tokens: int


class Objective(Protocol):
    """What is minimised, over which batches."""

    def batch(self, step: int) -> GlobalBatch:
        """The batch of a step, a function of the step alone."""

    def loss(self, model: GPT, batch: Batch) -> Loss:
        """The summed loss of one micro-batch; sums for metrics when gradients are off."""

    def validation(self) -> Iterator[Batch]:
        """The same held-out batches at every call; none when nothing is held out."""
