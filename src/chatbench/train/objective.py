"""What a training step consumes and what it returns: sums, never means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from chatbench.model.attention import Packing
from chatbench.model.transformer import GPT


class Batch(NamedTuple):
    """Rows of one micro-batch. `ids`, `targets` (B, T) int64; `weights` (B, T) float32.

    `places` (M,) int64: where `weights`, laid flat, are not zero; `weight`: their sum. Both are
    counted on the host, since asking a GPU would make the host wait for it.
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor
    packing: Packing | None
    places: Tensor | None = None
    weight: float = 0.0

    def counted(self) -> Batch:
        """With `places` and `weight`."""
        if self.places is not None:
            return self
        places = self.weights.flatten().nonzero().squeeze(1)
        return self._replace(places=places, weight=float(self.weights.sum()))

    def cut(self, rows: int) -> list[Batch]:
        """The same in batches of at most so many rows."""
        if len(self.ids) <= rows:
            return [self]
        here = []
        for begin in range(0, len(self.ids), rows):
            ids, targets, weights = (t[begin : begin + rows] for t in self[:3])
            packing = self.packing
            if packing is not None:
                document, position = packing.document, packing.position
                packing = Packing(document[begin : begin + rows], position[begin : begin + rows])
            here.append(Batch(ids, targets, weights, packing))
        return here

    def pinned(self) -> Batch:
        """Counted, and in pinned memory, from where a GPU copies without the host."""
        here = self.counted()
        assert here.places is not None
        if here.packing is not None:
            here.packing.starts()  # to be counted on the host as well
        packing = here.packing and here.packing.map(Tensor.pin_memory)
        ids, targets, weights = (t.pin_memory() for t in here[:3])
        return Batch(ids, targets, weights, packing, here.places.pin_memory(), here.weight)

    def to(self, device: torch.device) -> Batch:
        """On the device, counted."""
        here = self.counted()
        assert here.places is not None
        packing = here.packing and here.packing.to(device)
        ids, targets, weights = (t.to(device, non_blocking=True) for t in here[:3])
        places = here.places.to(device, non_blocking=True)
        return Batch(ids, targets, weights, packing, places, here.weight)


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

    def cut(self, rows: int) -> GlobalBatch:
        """The same step with at most so many rows at once."""
        return self._replace(parts=[piece for part in self.parts for piece in part.cut(rows)])


class Objective(Protocol):
    """What is minimised, over which batches."""

    def batch(self, step: int) -> GlobalBatch:
        """The batch of a step, a function of the step alone."""

    def loss(self, model: GPT, batch: Batch) -> Loss:
        """The summed loss of one micro-batch; sums for metrics when gradients are off."""

    def validation(self) -> Iterator[Batch]:
        """The same held-out batches at every call; none when nothing is held out."""
