"""Ticks are few, round and inside; thinning keeps extremes; numbers are written as they are."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chatbench.report.curves import apart
from chatbench.report.scales import (
    Scale,
    scale_for,
    thinned,
    unit_of_time,
    wants_log,
    written,
)

NUMBERS = st.floats(-1e12, 1e12, allow_nan=False)
POSITIVE = st.floats(1e-9, 1e12)


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.integers(2, 12))
def test_even_ticks_are_few_round_and_inside(values: list[float], most: int) -> None:
    scale = scale_for(values)
    ticks = scale.ticks(most)
    assert len(ticks) <= most
    assert all(scale.low <= tick <= scale.high for tick in ticks)
    assert ticks == sorted(set(ticks))
    if len(ticks) > 1:
        step = min(b - a for a, b in pairwise(ticks))
        digits = step / 10 ** math.floor(math.log10(step) + 1e-9)
        # Twelve digits are kept, of ticks up to as many steps from zero as the largest one is.
        slack = max(map(abs, ticks)) * 2e-11 / step
        assert min(abs(digits - d) for d in (1, 2, 2.5, 5, 10)) <= 10 * slack + 1e-9
        assert all(abs((b - a) / step - 1) <= 4 * slack + 1e-9 for a, b in pairwise(ticks))


@given(st.lists(NUMBERS, min_size=2, max_size=20, unique=True), st.integers(3, 12))
def test_an_axis_is_not_left_bare(values: list[float], most: int) -> None:
    """A step that is not the finest leaves at least a tenth of the marks asked for, and one."""
    scale = scale_for(values)
    wide = scale.high - scale.low
    if wide > 1e-6 * max(abs(scale.low), abs(scale.high)):
        assert scale.ticks(most)


@given(st.lists(POSITIVE, min_size=2, max_size=20), st.integers(2, 12))
def test_logarithmic_ticks_are_few_and_inside(values: list[float], most: int) -> None:
    scale = scale_for(values, log=True)
    ticks = scale.ticks(most)
    assert len(ticks) <= most
    assert ticks == sorted(set(ticks))
    assert all(scale.low <= tick <= scale.high for tick in ticks)


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.floats(0, 0.2), st.booleans())
@example([1.0, 5e-324], 0.125, True)
@example([1e200, 1.0], 0.1, True)
def test_a_scale_holds_every_value_in_order(values: list[float], room: float, log: bool) -> None:
    scale = scale_for(values, log=log, room=room)
    assert scale.low < scale.high
    places = [scale.place(value) for value in sorted(values)]
    assert all(0 <= place <= 1 for place in places)
    # A logarithm may be wrong in its last digit.
    assert all(b - a >= -1e-12 for a, b in pairwise(places))
    if min(values) >= 0 and max(values) > 1e-290:
        assert scale.low >= 0


def test_known_ticks() -> None:
    assert Scale(0, 1).ticks(6) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert Scale(0, 250).ticks(8) == [0, 50, 100, 150, 200, 250]
    assert Scale(0, 7).ticks(4) == [0, 2, 4, 6]
    assert Scale(0, 7).ticks(3) == [0, 2.5, 5]
    assert Scale(1, 1000, log=True).ticks(6) == [1, 10, 100, 1000]
    assert Scale(1, 9, log=True).ticks(6) == [1, 2, 5]
    assert Scale(1, 1e9, log=True).ticks(4) == [1, 1e3, 1e6, 1e9]


@pytest.mark.parametrize("values", [[], [math.nan], [math.inf, -math.inf], [0.0], [5.0, 5.0]])
def test_nothing_and_one_value_have_a_scale(values: list[float]) -> None:
    for log in (False, True):
        scale = scale_for(values, log=log)
        assert scale.low < scale.high
        assert math.isfinite(scale.low)
        assert math.isfinite(scale.high)


def test_numbers_are_written_short() -> None:
    told = {
        0.0: "0", 1.0: "1", 0.25: "0.25", 1500.0: "1500", 40_000.0: "40k", 1_500_000.0: "1.5M",
        2e9: "2G", 0.006: "0.006", 6e-4: "6e-4", 1.25e-5: "1.25e-5", -12_500.0: "-12.5k",
        -3e-4: "-3e-4", math.nan: "–", math.inf: "–",
    }  # fmt: skip
    for value, shown in told.items():
        assert written(value) == shown
    assert written(0.123456, 3) == "0.123"
    assert written(999_999.9, 3) == "1M"


@given(NUMBERS)
def test_what_is_written_can_be_read(value: float) -> None:
    """Nine significant digits: half a unit of the last is 5e-9 of the value."""
    shown = written(value)
    factor = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}.get(shown[-1], 1.0)
    number = float(shown[:-1] if factor > 1 else shown)
    assert abs(number * factor - value) <= 6e-9 * abs(value)


def test_spans_of_time_have_their_unit() -> None:
    assert [unit_of_time(s).name for s in (5, 600, 30_000, 1e6)] == [
        "seconds", "minutes", "hours", "days",
    ]  # fmt: skip


def test_positive_values_of_a_wide_range_want_a_logarithm() -> None:
    assert wants_log([1, 9], 8)
    assert not wants_log([1, 8], 8)
    assert not wants_log([0, 9], 8)
    assert not wants_log([], 8)


def test_thinning_keeps_order_ends_and_extremes(rng: random.Random) -> None:
    for _ in range(200):
        number, most = rng.randrange(0, 3000), rng.randrange(4, 300)
        points = [(float(n), rng.uniform(-1, 1) ** 9) for n in range(number)]
        kept = thinned(points, most)
        assert len(kept) <= max(most, 4)
        assert kept == sorted(set(kept))
        assert set(kept) <= set(points)
        if number <= most:
            assert kept == points
        if points:
            assert (kept[0], kept[-1]) == (points[0], points[-1])
            for pick in (min, max):
                assert pick(y for _, y in kept) == pick(y for _, y in points)


@given(st.lists(st.floats(0, 400), max_size=12), st.floats(1, 30))
def test_labels_keep_apart(wanted: list[float], gap: float) -> None:
    wanted = sorted(wanted)
    places = apart(wanted, gap, 0, 400)
    assert len(places) == len(wanted)
    # Sums of at most twelve terms below 1,000: errors far below a thousandth of a pixel.
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(places))
    if wanted:
        assert places[0] >= -1e-9
        assert places[-1] <= max(400, gap * (len(wanted) - 1)) + 1e-9
    if all(b - a >= gap for a, b in pairwise(wanted)):
        assert all(abs(a - b) <= 1e-9 for a, b in zip(places, wanted, strict=True))
