"""How sure a figure is: resampling the items it was measured on (Efron 1979), always in the same
way, so that two models on the same items are compared pair by pair (Koehn 2004)."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from chatbench.text.measuring import Floats, Measured, Score

RESAMPLES = 1000
_CONFIDENCE = 0.95
_DRAWN_AT_ONCE = 1 << 22


class Difference(msgspec.Struct, frozen=True):
    """`value` - `baseline` of a metric, with the 95 % interval `low` to `high` and `p`, how often
    resampling turns the sign, both ways counted."""

    name: str
    value: float
    baseline: float
    difference: float
    low: float
    high: float
    p: float
    n: int
    signature: str


def resample(measured: Sequence[Measured], seed: int, resamples: int = RESAMPLES) -> list[Floats]:
    """Values (R,) of each metric over items drawn with replacement.

    What has as many items is drawn alike. Cost: R · N draws, and one product for all metrics.
    """
    found: dict[int, Floats] = {}
    for count in {len(m.sums) for m in measured}:
        chosen = [k for k, m in enumerate(measured) if len(m.sums) == count]
        joined = np.concatenate([measured[k].sums for k in chosen], axis=1)
        totals = _totals(joined, np.random.default_rng([seed, count]), resamples)
        column = 0
        for k in chosen:
            width = measured[k].sums.shape[1]
            found[k] = measured[k].value_of(totals[:, column : column + width])
            column += width
    return [found[k] for k in range(len(measured))]


def _totals(sums: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    """Totals (R, K) of sums (N, K) over N items drawn with replacement, R times."""
    count = len(sums)
    parts = []
    for begin in range(0, resamples, max(1, _DRAWN_AT_ONCE // max(1, count))):
        rows = min(resamples - begin, max(1, _DRAWN_AT_ONCE // max(1, count)))
        drawn = rng.integers(0, count, (rows, count)) if count else np.zeros((rows, 0), np.int64)
        flat = (drawn + np.arange(rows)[:, None] * count).ravel()
        times = np.bincount(flat, minlength=rows * count).reshape(rows, count)
        parts.append(times.astype(np.float64) @ sums)
    return np.concatenate(parts)


def with_intervals(
    measured: Sequence[Measured], seed: int = 0, resamples: int = RESAMPLES
) -> list[Score]:
    """Scores with percentile intervals; of fewer than two items there is none."""
    drawn = resample([m for m in measured if len(m.sums) > 1], seed, resamples)
    remaining = iter(drawn)
    scores = []
    for each in measured:
        score = each.score()
        if len(each.sums) > 1:
            low, high = _interval(next(remaining))
            score = Score(score.name, score.value, score.n, score.signature, low, high)
        scores.append(score)
    return scores


def _interval(values: Floats) -> tuple[float | None, float | None]:
    """The middle 95 % of the values that are numbers; None when there are none."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None, None
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def compare(
    ours: Sequence[Measured], theirs: Sequence[Measured], seed: int = 0, resamples: int = RESAMPLES
) -> list[Difference]:
    """Differences of the metrics that both have over the same number of items, two at least."""
    baseline = {m.name: m for m in theirs}
    shared = [
        (m, baseline[m.name])
        for m in ours
        if m.name in baseline and len(m.sums) == len(baseline[m.name].sums) > 1
    ]
    drawn = resample([m for pair in shared for m in pair], seed, resamples)
    found = []
    for (mine, other), ahead, behind in zip(shared, drawn[::2], drawn[1::2], strict=True):
        difference = ahead - behind
        known = difference[np.isfinite(difference)]
        low, high = _interval(difference)
        if low is None or high is None:
            continue
        turned = 1 + min(int((known <= 0).sum()), int((known >= 0).sum()))
        found.append(
            Difference(
                mine.name, mine.value, other.value, mine.value - other.value, low, high,
                min(1.0, 2 * turned / (len(known) + 1)), mine.n,
                f"paired-bootstrap|resamples:{resamples}|seed:{seed}",
            )
        )  # fmt: skip
    return found
