"""What a training step consumes and what it returns: sums, never means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from chatbench.model.attention import Packing
from chatbench.model.transformer import GPT


class Batch(NamedTuple):
    """Rows of one micro-batch. `ids`, `targets` (B, T) int64; `weights` (B, T) float32.

    `places` (M,) int64: where `weights`, laid flat, are not zero; `weight`: their sum. Both are
    counted on the host, since asking a GPU would make the host wait for it. `more`: what an
    objective needs besides, tensors (B, ...) of a line for each row.
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor
    packing: Packing | None
    places: Tensor | None = None
    weight: float = 0.0
    more: Mapping[str, Tensor] | None = None

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
            part = slice(begin, begin + rows)
            ids, targets, weights = (t[part] for t in self[:3])
            packing = self.packing
            if packing is not None:
                packing = Packing(packing.document[part], packing.position[part])
            more = self.more and {name: t[part] for name, t in self.more.items()}
            here.append(Batch(ids, targets, weights, packing, more=more))
        return here

    def pinned(self) -> Batch:
        """Counted, and in pinned memory, from where a GPU copies without the host."""
        here = self.counted()
        assert here.places is not None
        if here.packing is not None:
            here.packing.starts()  # to be counted on the host as well
        return here._mapped(Tensor.pin_memory, here.packing and here.packing.map(Tensor.pin_memory))

    def to(self, device: torch.device) -> Batch:
        """On the device, counted."""
        here = self.counted()
        assert here.places is not None
        return here._mapped(
            lambda t: t.to(device, non_blocking=True), here.packing and here.packing.to(device)
        )

    def _mapped(self, move: Callable[[Tensor], Tensor], packing: Packing | None) -> Batch:
        assert self.places is not None
        ids, targets, weights, places = map(move, (*self[:3], self.places))
        more = self.more and {name: move(t) for name, t in self.more.items()}
        return Batch(ids, targets, weights, packing, places, self.weight, more)


class Loss(NamedTuple):
    """Summed over what counts; `total / weight` is the mean, over any grouping of rows.

    `metrics`: further sums, some of those that the objective names in `summed`.
    """

    total: Tensor
    weight: float
    metrics: Mapping[str, float | Tensor]


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

    @property
    def summed(self) -> Sequence[str]:
        """Names of the sums that losses may come with, the same on all ranks."""

    @property
    def of_text(self) -> bool:
        """Whether the loss is that of text, to which an n-gram model is a measure."""

    @property
    def on_policy(self) -> bool:
        """Whether batches hang on the weights, so that none can be made before its step."""

    def batch(self, step: int) -> GlobalBatch:
        """The batch of a step, a function of the step alone, or of step and weights."""

    def loss(self, model: GPT, batch: Batch) -> Loss:
        """The summed loss of one micro-batch."""

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What to log of sums over many micro-batches, of training or of validation."""

    def validation(self) -> Iterator[Batch]:
        """The same held-out batches at every call; none when nothing is held out."""
