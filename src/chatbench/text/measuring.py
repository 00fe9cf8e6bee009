"""A metric as parts that add up: sums for each item, and how a value comes of their totals.

Everything that is said about a set of items, a slice of it, a resample or a difference between
two models follows from the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# Totals (..., K) → values (...).
ValueOf = Callable[[Floats], Floats]


class Score(msgspec.Struct, frozen=True, omit_defaults=True):
    """`value` over `n` items; `signature` says how it was computed; `low` to `high` is its 95 %
    interval, where there is one."""

    name: str
    value: float
    n: int
    signature: str
    low: float | None = None
    high: float | None = None


class Judged(msgspec.Struct, frozen=True):
    """One reply beside its reference; `facts` are strings a right reply must contain."""

    reply: str
    reference: str
    facts: tuple[str, ...] = ()


class Measured(NamedTuple):
    """One metric over N items: `sums` (N, K), of whose totals `value_of` makes the value.

    `n` is what the value is over (items, tokens, bytes). `of_parts` is false where an item's sums
    depend on the other items, so that a slice must be measured by itself.
    """

    name: str
    sums: Floats
    value_of: ValueOf
    n: int
    signature: str
    of_parts: bool = True

    @property
    def value(self) -> float:
        return float(self.value_of(self.sums.sum(axis=0)))

    def score(self) -> Score:
        """The value without an interval."""
        return Score(self.name, self.value, self.n, self.signature)


def table(rows: Sequence[Sequence[float]]) -> Floats:
    """Rows (N, K) as numbers."""
    return np.array(rows, np.float64)


def ratio(factor: float = 1.0) -> ValueOf:
    """factor · (first total / second total); not a number where the second is zero."""

    def value_of(totals: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = factor * totals[..., 0] / totals[..., 1]
        return np.where(totals[..., 1] == 0, np.nan, found)

    return value_of


def share(name: str, hits: Sequence[float], signature: str) -> Measured:
    """The mean of figures from 0 to 1, in percent."""
    sums = table([(hit, 1) for hit in hits]) if len(hits) else np.zeros((0, 2))
    return Measured(name, sums, ratio(100.0), len(hits), signature)


def influence(value: float, without: Floats) -> Floats:
    """Sums (N, 2) for a value of the whole set, from its values `without` each item (N,).

    Their ratio is `value`; its spread under resampling is the jackknife's (Efron 1982), which
    does not suffer from the repeats that a resample holds.
    """
    count = len(without)
    figures = value + (count - 1) * (without.mean() - without) if count else without
    return np.stack([figures, np.ones(count)], axis=1)
