"""Axes: where values lie, which round numbers mark them, and how those are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_LARGEST, _SMALLEST = 1e300, 1e-290
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_LOG_CHOICES = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
_FEWEST = 3
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Scale(NamedTuple):
    """`low` < `high`, both finite; of a logarithmic one both are above 0."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where `value` lies: 0 at `low`, 1 at `high`, and not beyond."""
        value = min(max(value, self.low), self.high)
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, most: int) -> list[float]:
        """At most `most` round numbers (one at least is asked for) within the scale, ascending."""
        if self.log:
            for choice in _LOG_CHOICES:
                found = self._decades(choice, most)
                if _FEWEST <= len(found) <= most:
                    return found
        return self._even(most)

    def _decades(self, digits: Sequence[float], most: int) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, math.ceil((last - first) / max(most, 1))) if len(digits) == 1 else 1
        marks = (_rounded(d * 10.0**n) for n in range(first, last + 1, every) for d in digits)
        return [mark for mark in marks if self.low <= mark <= self.high]

    def _even(self, most: int) -> list[float]:
        """Multiples of 1, 2, 2.5 or 5 times a power of ten."""
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / max(most, 1)))
        for step in (_rounded(s * p) for p in (power, 10 * power) for s in _STEPS):
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            if last - first + 1 <= most:
                found = (_rounded(n * step) for n in range(first, last + 1))
                return [mark for mark in found if self.low <= mark <= self.high]
        return []


def _rounded(value: float) -> float:
    """`0.30000000000000004` → `0.3`."""
    return float(f"{value:.12g}")


def scale_for(values: Iterable[float], *, log: bool = False, room: float = 0.0) -> Scale:
    """A scale that holds all finite `values`, with a share `room` of it free at both ends.

    Values that a logarithm has no place for make it linear.
    """
    kept = [value for value in values if math.isfinite(value) and abs(value) < _LARGEST]
    if not kept:
        return Scale(0.0, 1.0)
    low, high = min(kept), max(kept)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), _SMALLEST):
        # One value only: it gets the middle.
        half = abs(low) / 10 or 1.0
        return Scale(low - half, high + half)
    if log and _has_logarithms(low, high):
        factor = (high / low) ** room
        return Scale(low / factor, high * factor, True)
    free = (high - low) * room
    # A quantity that is never negative gets no axis that is.
    return Scale(max(low - free, 0.0) if low >= 0 else low - free, high + free)


def wants_log(values: Iterable[float], ratio: float) -> bool:
    """Whether positive values span more than `ratio`."""
    kept = [value for value in values if math.isfinite(value)]
    return bool(kept) and _has_logarithms(min(kept), max(kept)) and max(kept) / min(kept) > ratio


def _has_logarithms(low: float, high: float) -> bool:
    """Whether quotients and roots of these stay far from where floats end."""
    return low > 1e-100 and high < 1e100


def written(value: float, digits: int = 9) -> str:
    """A number as short as it can be told: `1.5M`, `40k`, `0.002`, `3e-5`."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 1e15:
        return f"{value:.{min(digits, 4)}g}"
    if size >= 10_000:
        # By what will be written: 999,999.9999 is a million.
        for unit, letter in _UNITS:
            if float(f"{size:.{digits}g}") >= unit:
                return f"{float(f'{value / unit:.{digits}g}'):.{digits}g}{letter}"
    if 0 < size < 1e-3:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        shown = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{shown}e{int(power)}"
    return f"{value:.{digits}g}"


class Unit(NamedTuple):
    """Seconds in one of it, and what it is called."""

    seconds: float
    name: str


def unit_of_time(seconds: float) -> Unit:
    """The unit in which a span is read best."""
    if seconds < 120:
        return Unit(1.0, "seconds")
    if seconds < 2 * 3600:
        return Unit(60.0, "minutes")
    return Unit(3600.0, "hours") if seconds < 3 * 86_400 else Unit(86_400.0, "days")


def thinned(points: Sequence[tuple[float, float]], most: int = 1000) -> list[tuple[float, float]]:
    """At most `most` (>= 4) of the points, in their order: the first, the last, and of every
    stretch between the lowest and the highest, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    inner = len(points) - 2
    stretches = (most - 2) // 2
    kept = [0]
    for number in range(stretches):
        begin = 1 + inner * number // stretches
        end = 1 + inner * (number + 1) // stretches
        lowest = min(range(begin, end), key=lambda at: points[at][1])
        highest = max(range(begin, end), key=lambda at: points[at][1])
        kept += sorted({lowest, highest})
    kept.append(len(points) - 1)
    return [points[at] for at in kept]
