"""An evaluation folder as plain values, read tolerantly: what is absent or of another form is left
out, so that the page never fails on what a newer or older version wrote."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from chatbench.errors import IntegrityError
from chatbench.report.figures import Bin
from chatbench.report.reading import is_number, number
from chatbench.runs import object_in

RESULTS, SAMPLES, SETTINGS = "results.json", "samples.jsonl", "settings.json"
_MOST_SAMPLES = 200_000
_MOST_JUDGED = 5_000
_PERFECT = 99.99


class Number(NamedTuple):
    """A score: `low` to `high` is its interval, where it has one."""

    name: str
    value: float
    n: int | None = None
    low: float | None = None
    high: float | None = None
    signature: str = ""


class Change(NamedTuple):
    """A score beside that of a baseline, with the interval of the difference."""

    name: str
    value: float
    baseline: float
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None


class Case(NamedTuple):
    """A question with what was said and what should have been; `scores`: name → value."""

    question: str
    reply: str
    reference: str
    scores: dict[str, float]
    before: str | None = None


class Slice(NamedTuple):
    """Scores of the items, `n`, whose column `by` has `value`."""

    by: str
    value: str
    n: int
    numbers: list[Number]


class Baseline(NamedTuple):
    """What was held beside the model on the same items, and the items that are right by `metric`
    only here (`gained`) or only there (`lost`)."""

    name: str
    numbers: list[Number]
    changes: list[Change]
    metric: str
    gained: list[Case]
    lost: list[Case]


class EvaluationFacts(NamedTuple):
    """What results.json and samples.jsonl tell. `missed`: requirements that are not met ·
    `matrix`: labels and counts, true down and predicted across · `advice`: what to do next, in
    words, with the command."""

    path: Path
    model: str
    data: str
    numbers: list[Number]
    slices: list[Slice]
    baselines: list[Baseline]
    missed: list[str]
    cases: list[Case]
    matrix: tuple[list[str], list[list[float]]] | None
    bins: list[Bin]
    advice: list[tuple[str, str]]
    counts: dict[str, int]
    settings: dict[str, Any]


def is_evaluation(folder: Path) -> bool:
    """Whether evaluate wrote there."""
    return (folder / RESULTS).is_file()


def read_evaluation(path: Path) -> EvaluationFacts:
    """Raises IntegrityError when results.json is no JSON object."""
    raw = object_in(path / RESULTS)
    if not raw:
        raise IntegrityError(f"{path / RESULTS} cannot be read", hint="evaluate again")
    classes = raw.get("classes")
    known = classes if isinstance(classes, dict) else {}
    missed = raw.get("missed")
    return EvaluationFacts(
        path=path, model=_words(raw.get("model")), data=_words(raw.get("data")),
        numbers=_numbers(raw.get("scores")), slices=list(_slices(raw.get("slices"))),
        baselines=[_baseline(each) for each in _objects(raw.get("baselines"))],
        missed=[str(each) for each in missed] if isinstance(missed, list) else [],
        cases=list(_samples(path / SAMPLES)), matrix=_matrix(known), bins=_bins(known),
        advice=list(_advice(raw.get("advice"))),
        counts={k: v for k, v in raw.items() if type(v) is int},
        settings=object_in(path / SETTINGS),
    )  # fmt: skip


def _words(value: object) -> str:
    return value if isinstance(value, str) else ""


def _objects(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _numbers(value: object) -> list[Number]:
    found = []
    for each in _objects(value):
        amount, n = number(each.get("value")), each.get("n")
        if amount is not None and isinstance(each.get("name"), str):
            low, high = _bounds(each)
            found.append(
                Number(each["name"], amount, n if type(n) is int else None, low, high,
                       _words(each.get("signature")))
            )  # fmt: skip
    return found


def _bounds(each: dict[str, Any]) -> tuple[float | None, float | None]:
    pair = each.get("interval")
    if isinstance(pair, list) and len(pair) == 2:
        return number(pair[0]), number(pair[1])
    return number(each.get("low")), number(each.get("high"))


def _change(each: dict[str, Any]) -> Change | None:
    value, baseline = number(each.get("value")), number(each.get("baseline"))
    if value is None or baseline is None or not isinstance(each.get("name"), str):
        return None
    low, high = _bounds(each)
    difference = number(each.get("difference"))
    return Change(
        each["name"], value, baseline, value - baseline if difference is None else difference,
        low, high, number(each.get("p")),
    )  # fmt: skip


def _slices(value: object) -> Iterator[Slice]:
    for each in _objects(value):
        numbers, n = _numbers(each.get("scores")), each.get("n")
        by, value = _words(each.get("by")), str(each.get("value", ""))
        yield Slice(by, value, n if type(n) is int else 0, numbers)


def _baseline(each: dict[str, Any]) -> Baseline:
    flipped = each.get("flipped")
    flips = flipped if isinstance(flipped, dict) else {}
    changes = (_change(change) for change in _objects(each.get("differences")))
    return Baseline(
        _words(each.get("name")) or "baseline", _numbers(each.get("scores")),
        [change for change in changes if change is not None], _words(flips.get("metric")),
        _cases(flips.get("gained")), _cases(flips.get("lost")),
    )  # fmt: skip


def _matrix(classes: dict[str, Any]) -> tuple[list[str], list[list[float]]] | None:
    """Labels and a square of counts of that many rows."""
    labels, rows = classes.get("labels"), classes.get("confusion")
    if not isinstance(labels, list) or not labels or not isinstance(rows, list):
        return None
    square = len(rows) == len(labels) and all(
        isinstance(row, list) and len(row) == len(labels)
        and all(is_number(each) and each >= 0 for each in row)
        for row in rows
    )  # fmt: skip
    if not square:
        return None
    return [str(label) for label in labels], [[float(each) for each in row] for row in rows]


def _bins(classes: dict[str, Any]) -> list[Bin]:
    found = []
    for each in _objects(classes.get("calibration")):
        n = each.get("rows")
        sure, right = number(each.get("confidence")), number(each.get("accuracy"))
        if type(n) is int and n > 0 and sure is not None and right is not None:
            found.append(Bin(n, min(max(sure, 0.0), 1.0), min(max(right, 0.0), 1.0)))
    return found


def _advice(value: object) -> Iterator[tuple[str, str]]:
    """Words and the command to try."""
    for each in _objects(value):
        says = ": ".join(filter(None, (_words(each.get("finding")), _words(each.get("why")))))
        if says:
            yield says, _words(each.get("command"))


def _samples(path: Path) -> Iterator[Case]:
    try:
        handle = open(path, "rb")  # noqa: SIM115  closed below
    except OSError:
        return
    with handle:
        for number, line in enumerate(handle):
            if number >= _MOST_SAMPLES:
                return
            try:
                yield from _cases([msgspec.json.decode(line)])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue


def _cases(value: object) -> list[Case]:
    return [_case(row) for row in _objects(value)]


def _case(row: dict[str, Any]) -> Case:
    scores = row.get("scores")
    known = {k: float(v) for k, v in scores.items() if is_number(v)} if isinstance(
        scores, dict) else {}  # fmt: skip
    if isinstance(row.get("right"), bool):
        known["right"] = float(row["right"])
    before = row.get("baseline")
    return Case(
        _question(row), _words(row.get("reply")), _words(row.get("reference")), known,
        before if isinstance(before, str) else None,
    )  # fmt: skip


def _question(row: dict[str, Any]) -> str:
    turns = _objects(row.get("messages"))
    if turns:
        return "\n".join(f"{_words(t.get('role'))}: {_words(t.get('content'))}" for t in turns)
    return _words(row.get("prompt")) or _words(row.get("question")) or _words(row.get("text"))


def worst(cases: Sequence[Case], most: int) -> tuple[str, list[Case]]:
    """By which number, and the cases that are lowest in it: those marked wrong first, then by how
    little of the reference a reply holds."""
    from chatbench.text.measuring import Judged
    from chatbench.text.overlap import chrf

    cases = [case for case in cases if case.reference][:_MOST_JUDGED]
    if not cases:
        return "", []
    (measured,) = chrf([Judged(case.reply, case.reference) for case in cases])
    values = measured.value_of(measured.sums).tolist()
    scored = [
        case._replace(scores={**case.scores, measured.name: value})
        for case, value in zip(cases, values, strict=True)
    ]
    scored = [case for case in scored if case.scores[measured.name] < _PERFECT]
    scored.sort(key=lambda case: (case.scores.get("right", 0.0), case.scores[measured.name]))
    return measured.name, scored[:most]
