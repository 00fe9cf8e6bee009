"""Logistic regression on sparse yes-or-no features, by full-batch L-BFGS, in numpy.

Deterministic: no random numbers, no threads, a fixed order of summation.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
_MEMORY = 8
_CHUNK_ENTRIES = 1 << 22


class Sparse(NamedTuple):
    """Rows of feature numbers: row r holds columns[starts[r] : starts[r + 1]], each with value
    scales[column] × norms[r]. `scales` has one entry for each column there is."""

    starts: Indices
    columns: npt.NDArray[np.int32]
    scales: Floats
    norms: Floats

    def rows(self, chosen: Indices) -> Sparse:
        """The chosen rows, in the given order."""
        sizes = np.diff(self.starts)[chosen]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        taken = np.repeat(self.starts[chosen] - starts[:-1], sizes) + np.arange(starts[-1])
        return Sparse(starts, self.columns[taken], self.scales, self.norms[chosen])

    def times(self, weights: Floats) -> Floats:
        """Matrix times vector: [rows]."""
        scaled = weights * self.scales
        sums = np.zeros(len(self.starts) - 1)
        for first, last in self._chunks():
            entries = slice(self.starts[first], self.starts[last])
            owner = np.repeat(np.arange(last - first), np.diff(self.starts[first : last + 1]))
            sums[first:last] = np.bincount(
                owner, scaled[self.columns[entries]], minlength=last - first
            )
        return sums * self.norms

    def transposed_times(self, values: Floats) -> Floats:
        """Transposed matrix times vector: [columns]."""
        values = values * self.norms
        total = np.zeros(len(self.scales))
        for first, last in self._chunks():
            entries = slice(self.starts[first], self.starts[last])
            spread = np.repeat(values[first:last], np.diff(self.starts[first : last + 1]))
            total += np.bincount(self.columns[entries], spread, minlength=len(total))
        return total * self.scales

    def _chunks(self) -> list[tuple[int, int]]:
        """Ranges of rows whose temporaries stay small."""
        steps = np.arange(_CHUNK_ENTRIES, int(self.starts[-1]), _CHUNK_ENTRIES)
        borders = np.unique(np.searchsorted(self.starts, steps))
        edges = np.unique(np.concatenate([[0], borders, [len(self.starts) - 1]])).tolist()
        return list(pairwise(edges))


def fit(
    matrix: Sparse, targets: npt.NDArray[np.bool_], penalty: float, start: Floats | None = None
) -> Floats:
    """Weights [columns + 1], the last one the bias, that minimise

        balanced log-loss summed over rows + penalty / 2 × |weights without bias|².

    Both classes count the same in total, whatever their sizes. `start` is where to begin. Rows of
    both classes are needed.
    """
    signs = np.where(targets, 1.0, -1.0)
    bad = int(targets.sum())
    shares = np.where(targets, len(targets) / (2 * bad), len(targets) / (2 * (len(targets) - bad)))

    def loss(weights: Floats) -> tuple[float, Floats]:
        margins = signs * (matrix.times(weights[:-1]) + weights[-1])
        value = float(np.sum(shares * np.logaddexp(0, -margins)))
        value += penalty / 2 * _dot(weights[:-1], weights[:-1])
        pull = -signs * shares * np.exp(-np.logaddexp(0, margins))
        gradient = np.append(matrix.transposed_times(pull), pull.sum())
        gradient[:-1] += penalty * weights[:-1]
        return value, gradient

    return minimise(loss, np.zeros(len(matrix.scales) + 1) if start is None else start)


def minimise(
    function: Callable[[Floats], tuple[float, Floats]],
    start: Floats,
    *,
    tolerance: float = 1e-3,
    most_steps: int = 200,
) -> Floats:
    """Where a smooth convex function (value and gradient) is least: limited-memory BFGS with
    backtracking (Liu and Nocedal 1989). Ends when the gradient is `tolerance` of the first one."""
    point = start
    value, gradient = function(point)
    enough = tolerance * _dot(gradient, gradient) ** 0.5
    steps: list[Floats] = []
    turns: list[Floats] = []
    for _ in range(most_steps):
        length = _dot(gradient, gradient) ** 0.5
        if length <= enough:
            break
        direction = -_preconditioned(gradient, steps, turns)
        slope = _dot(gradient, direction)
        rate = 1.0 if steps else 1 / max(length, 1e-12)
        while True:
            moved = point + rate * direction
            new_value, new_gradient = function(moved)
            if new_value <= value + 1e-4 * rate * slope:
                break
            rate /= 2
            if rate < 1e-12:
                return point
        step, turn = moved - point, new_gradient - gradient
        if _dot(step, turn) > 1e-12 * _dot(turn, turn):
            steps, turns = [*steps, step][-_MEMORY:], [*turns, turn][-_MEMORY:]
        point, value, gradient = moved, new_value, new_gradient
    return point


def _preconditioned(gradient: Floats, steps: list[Floats], turns: list[Floats]) -> Floats:
    """The gradient times the approximate inverse Hessian (two-loop recursion)."""
    result = gradient.copy()
    if not steps:
        return result
    amounts = []
    for step, turn in zip(reversed(steps), reversed(turns), strict=True):
        amount = _dot(step, result) / _dot(step, turn)
        amounts.append(amount)
        result -= amount * turn
    result *= _dot(steps[-1], turns[-1]) / _dot(turns[-1], turns[-1])
    for step, turn, amount in zip(steps, turns, reversed(amounts), strict=True):
        result += (amount - _dot(turn, result) / _dot(step, turn)) * step
    return result


def _dot(left: Floats, right: Floats) -> float:
    # Not BLAS, whose threads may sum in another order.
    return float(np.sum(left * right))
