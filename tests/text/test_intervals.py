"""Intervals: resampling against a slow twin, and what it has to say about known spreads."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from chatbench.text.intervals import compare, resample, with_intervals
from chatbench.text.measuring import Measured, ratio, share, table
from chatbench.text.metrics import Judged, measure_all


def figures(rng: random.Random, count: int, name: str = "m") -> Measured:
    return share(name, [rng.random() for _ in range(count)], "s")


def test_resamples_are_the_values_of_items_drawn_again(rng: random.Random) -> None:
    count, seed = 7, rng.randrange(1 << 20)
    one = figures(rng, count)
    rows = table([[rng.random() for _ in range(3)] for _ in range(count)])
    wide = Measured("w", rows, lambda t: t[..., 0] * t[..., 1] - t[..., 2], count, "s")
    drawn = np.random.default_rng([seed, count]).integers(0, count, (50, count))
    for measured, values in zip((one, wide), resample([one, wide], seed, 50), strict=True):
        for chosen, value in zip(drawn, values, strict=True):
            slow = float(measured.value_of(measured.sums[chosen].sum(axis=0)))
            assert value == pytest.approx(slow, rel=1e-9, abs=1e-9)


def test_the_same_items_are_drawn_however_many_metrics_there_are(rng: random.Random) -> None:
    many = [figures(rng, 9), figures(rng, 5), figures(rng, 9)]
    together = resample(many, 3, 40)
    for measured, values in zip(many, together, strict=True):
        assert resample([measured], 3, 40)[0] == pytest.approx(values, rel=1e-12)


def test_an_interval_is_as_wide_as_chance_makes_it(rng: random.Random) -> None:
    """Of n coin flips the mean has a spread of sqrt(p (1 - p) / n). With 1,000 resamples the two
    quantiles are within a tenth of it or so; half and twice are far outside of that."""
    count = 2000
    hits = [rng.random() < 0.3 for _ in range(count)]
    (score,) = with_intervals([share("m", hits, "s")])
    p = sum(hits) / count
    spread = 100 * math.sqrt(p * (1 - p) / count)
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high
    assert 2 * 1.96 * spread / 2 < score.high - score.low < 2 * 1.96 * spread * 2


def test_two_runs_give_the_same_intervals_and_seeds_others(rng: random.Random) -> None:
    pairs = [Judged(f"tea {rng.random()}", f"tea {rng.random()}") for _ in range(30)]
    first, again = (with_intervals(measure_all(pairs), 1) for _ in range(2))
    assert first == again
    assert with_intervals(measure_all(pairs), 2) != first


def test_one_item_has_no_interval_and_constant_ones_no_width() -> None:
    (alone,) = with_intervals([share("m", [0.5], "s")])
    assert (alone.low, alone.high) == (None, None)
    (same,) = with_intervals([share("m", [0.5] * 9, "s")])
    assert (same.low, same.high) == pytest.approx((50, 50))


def test_resamples_without_a_value_are_left_out() -> None:
    """One row in three counts: some resamples hold none."""
    measured = Measured("m", table([(1, 1), (0, 0), (0, 0)]), ratio(), 1, "s")
    values = resample([measured], 0, 200)[0]
    assert np.isnan(values).any()
    (score,) = with_intervals([measured])
    assert (score.low, score.high) == pytest.approx((1, 1))


def test_a_difference_is_told_pair_by_pair(rng: random.Random) -> None:
    """Items differ widely and the second model is a little better on each: only pairing sees it."""
    base = [rng.random() for _ in range(60)]
    ours, theirs = share("m", [0.9 * b + 0.1 for b in base], "s"), share("m", base, "s")
    (found,) = compare([ours], [theirs])
    assert found.difference == pytest.approx(ours.value - theirs.value)
    assert 0 < found.low <= found.difference <= found.high
    assert found.p == pytest.approx(2 / 1001)
    alone = with_intervals([ours, theirs])
    assert alone[0].low is not None
    assert alone[1].high is not None
    assert found.high - found.low < (alone[1].high - alone[0].low)


def test_the_same_figures_differ_by_nothing(rng: random.Random) -> None:
    measured = figures(rng, 20)
    (found,) = compare([measured], [measured])
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_metrics_over_other_items_are_not_compared(rng: random.Random) -> None:
    ours = [figures(rng, 5, "a"), figures(rng, 6, "b"), figures(rng, 1, "c")]
    theirs = [figures(rng, 4, "a"), figures(rng, 6, "x"), figures(rng, 1, "c")]
    assert compare(ours, theirs) == []
