"""The same figures for parts of the questions: by turn, by tag, by script, by any column."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import msgspec
import numpy as np

from chatbench.errors import UsageError, did_you_mean
from chatbench.evaluate.tasks import Question
from chatbench.text.intervals import with_intervals
from chatbench.text.metrics import METRICS, OF_THE_WHOLE, Judged, Measured, Score
from chatbench.text.words import script_of

_MOST_VALUES = 12
_FEWEST_ITEMS = 5
_TURN, _SCRIPT = "turn", "script"


class Slice(msgspec.Struct, frozen=True):
    """Scores of the `n` questions whose column `by` has `value`."""

    by: str
    value: str
    n: int
    scores: list[Score]


def columns_of(questions: Sequence[Question]) -> dict[str, list[str | None]]:
    """Every column that questions can be told apart by, with its value for each question."""
    found: dict[str, list[str | None]] = {
        _TURN: [str(question.turn) for question in questions],
        _SCRIPT: [script_of(question.reference) for question in questions],
    }
    facets = [dict(question.facets) for question in questions]
    for name in sorted({name for each in facets for name in each}):
        found[name] = [each.get(name) for each in facets]
    return found


def chosen_columns(
    asked: Sequence[str], questions: Sequence[Question]
) -> dict[str, list[str | None]]:
    """The columns asked for; or, when none is, those that part the questions into a few parts of
    some size. Raises UsageError for one that no question has."""
    known = columns_of(questions)
    if not asked:
        return {name: values for name, values in known.items() if _parts_well(values)}
    names = []
    for name in asked:
        # A tag may stand in a column of its own, or in an object of tags.
        meant = (name, f"tag.{name}", name.removeprefix("tag."))
        found = next((each for each in meant if each in known), None)
        if found is None:
            raise UsageError(
                f"--by {name}: no question has such a column",
                hint=did_you_mean(name, list(known)),
            )
        names.append(found)
    return {name: known[name] for name in dict.fromkeys(names)}


def _parts_well(values: Sequence[str | None]) -> bool:
    counts = Counter(value for value in values if value is not None)
    several = 1 < len(counts) <= _MOST_VALUES
    return several and min(counts.values()) >= _FEWEST_ITEMS


def sliced(
    columns: dict[str, list[str | None]], pairs: Sequence[Judged],
    measured: Sequence[Measured], seed: int,
) -> list[Slice]:  # fmt: skip
    """Scores of every part. What adds up is taken from the sums of the whole; `measured` holds
    metrics over exactly these pairs."""
    found = []
    for by, values in columns.items():
        parts: dict[str, list[int]] = defaultdict(list)
        for number, value in enumerate(values):
            if value is not None:
                parts[value].append(number)
        for value in sorted(parts, key=_in_order):
            chosen = parts[value]
            scores = with_intervals(_part(measured, pairs, chosen), seed)
            scores = [score for score in scores if not math.isnan(score.value)]
            found.append(Slice(by, value, len(chosen), scores))
    return found


def _in_order(value: str) -> tuple[int, str]:
    return (int(value) if value.isdecimal() and len(value) < 10 else 1 << 31, value)


def _part(
    measured: Sequence[Measured], pairs: Sequence[Judged], chosen: list[int]
) -> list[Measured]:
    taken = [
        each._replace(sums=each.sums[np.array(chosen)], n=_n_of(each, chosen))
        for each in measured
        if each.of_parts
    ]
    inside = [pairs[number] for number in chosen]
    taken += [each for name in OF_THE_WHOLE for each in METRICS[name](inside)]
    order = {each.name: place for place, each in enumerate(measured)}
    return sorted((m for m in taken if m.n), key=lambda m: order.get(m.name, 0))


def _n_of(each: Measured, chosen: list[int]) -> int:
    """Items of the part that count: where fewer counted of the whole, those with a second sum."""
    if each.n == len(each.sums):
        return len(chosen)
    return int(np.count_nonzero(each.sums[np.array(chosen), 1]))
