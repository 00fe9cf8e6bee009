"""What was computed since the last line of metrics.jsonl; a checkpoint holds it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec
from torch import Tensor

from chatbench.train.parallel import World


class Window(msgspec.Struct):
    """Sums over steps: of losses and their weights, and what else the objective sums up."""

    total: float = 0.0
    weight: float = 0.0
    sums: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Loss by weight; NaN when every step was skipped."""
        return self.total / self.weight if self.weight else math.nan

    def add(self, metrics: Iterable[Mapping[str, float | Tensor]]) -> None:
        """Take in what micro-batches came with."""
        for each in metrics:
            for name, value in each.items():
                self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def gathered(self, world: World) -> dict[str, float]:
        """The sums of all processes, from here on the first one's alone."""
        if self.sums:
            whole = dict(zip(self.sums, world.sums(list(self.sums.values())), strict=True))
            self.sums = whole if world.first else {}
        return self.sums

    def clear(self) -> None:
        self.total = self.weight = 0.0
        self.sums.clear()
