"""How well labels are told apart: accuracy, F1 by class, who is taken for whom, calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from chatbench import console
from chatbench.conversation import Message
from chatbench.corpus.labelled import Labelled, LabelledRows
from chatbench.engine.classes import Judge, judge_of
from chatbench.errors import DataError, UsageError
from chatbench.evaluate.tasks import Question
from chatbench.model.folder import OpenedModel
from chatbench.settings import EvaluateSettings
from chatbench.text.measuring import Floats, Judged, Measured, share

BINS = 15
# Labels of the data in place of names.
FROM_DATA = "auto"
_AT_ONCE = 256
_SHOWN = 3
_LARGEST_TABLE = 50_000_000

Numbers = npt.NDArray[np.int64]


class ClassFigures(msgspec.Struct, frozen=True):
    """Of one class, in percent: `precision` of the rows that were given this label, those that
    have it; `recall` of the rows that have it, those that were given it. None of nothing: 0.
    `rows` have it, `given` were given it."""

    label: str
    precision: float
    recall: float
    f1: float
    rows: int
    given: int


class Bin(msgspec.Struct, frozen=True):
    """Rows of which the model was about as sure: means of confidence and of being right."""

    rows: int
    confidence: float
    accuracy: float


class Classes(msgspec.Struct, frozen=True):
    """`confusion[i][j]`: rows that have `labels[i]` and were given `labels[j]`. Labels that the
    model does not know stand behind the others. `calibration`: 15 bins of equal width."""

    labels: list[str]
    confusion: list[list[int]]
    by_class: list[ClassFigures]
    calibration: list[Bin]


class Verdicts(NamedTuple):
    """What was found of `rows`: `labels` with the unknown ones behind; by number what rows have
    (N,) and what they were given (N,), and how sure the model was (N,)."""

    rows: list[Labelled]
    labels: list[str]
    wanted: Numbers
    given: Numbers
    confidence: Floats
    left_out: int


def verdicts(opened: OpenedModel, settings: EvaluateSettings) -> Verdicts:
    """Label the rows of `settings.data` by a classifier's head, or by a chat model's choice among
    `settings.choice` (`auto`: the labels of the data).

    Raises UsageError as `judge_of` does, DataError when there are no labelled rows.
    """
    source = LabelledRows([settings.data], settings.map)
    rows = list(source)[: settings.max_examples]
    if not rows:
        raise DataError(
            f"{settings.data} holds no text with a label",
            hint="name the columns, such as --map text=COLUMN --map label=COLUMN",
        )
    choices = settings.choice
    if choices == [FROM_DATA]:
        choices = sorted({row.label for row in rows})
        if len(choices) < 2:
            raise UsageError(f"{settings.data} has one label only", hint="name others by --choice")
    judge = judge_of(opened, choices, settings.batch_size)
    labels = list(judge.labels)
    unknown = Counter(row.label for row in rows if row.label not in set(labels))
    if unknown:
        more = " …" if len(unknown) > _SHOWN else ""
        console.notice(
            f"{unknown.total()} rows have labels that the model does not know, which counts as "
            f"wrong: {', '.join(sorted(unknown)[:_SHOWN])}{more}"
        )
    labels += sorted(unknown)
    given, confidence = _judged(judge, [row.text for row in rows])
    number = {label: n for n, label in enumerate(labels)}
    wanted = np.array([number[row.label] for row in rows], np.int64)
    return Verdicts(rows, labels, wanted, given, confidence, source.left_out.total())


def _judged(judge: Judge, texts: Sequence[str]) -> tuple[Numbers, Floats]:
    given, confidence = [], []
    with console.ProgressLine("texts", len(texts)) as line:
        for begin in range(0, len(texts), _AT_ONCE):
            chances = judge.probabilities(texts[begin : begin + _AT_ONCE]).numpy()
            given.append(chances.argmax(axis=1))
            confidence.append(chances.max(axis=1))
            done = min(len(texts), begin + _AT_ONCE)
            line.update(done, f"{done} of {len(texts)}")
    if judge.cut:
        console.notice(f"{judge.cut} texts were too long to be read whole")
    return np.concatenate(given), np.concatenate(confidence)


def confusion(wanted: Numbers, given: Numbers, classes: int) -> Numbers:
    """(classes, classes): rows by what they have and by what they were given."""
    flat = np.bincount(wanted * classes + given, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def figures(labels: Sequence[str], table: Numbers) -> list[ClassFigures]:
    """Precision, recall and F1 of each class, from the confusion matrix."""
    found = []
    for number, label in enumerate(labels):
        hit = int(table[number, number])
        rows, given = int(table[number].sum()), int(table[:, number].sum())
        found.append(ClassFigures(
            label, 100 * hit / max(1, given), 100 * hit / max(1, rows),
            200 * hit / max(1, rows + given), rows, given,
        ))  # fmt: skip
    return found


def bin_of(confidence: Floats) -> Numbers:
    """Which of the bins (0, 1/15], (1/15, 2/15], … a confidence (N,) is in."""
    edges = np.arange(1, BINS) / BINS
    return np.searchsorted(edges, confidence, side="left").astype(np.int64)


def calibration(right: npt.NDArray[np.bool_], confidence: Floats) -> list[Bin]:
    """The bins, empty ones with zeros."""
    sums = _by_bin(right, confidence).sum(axis=0).reshape(BINS, 3)
    return [Bin(int(n), c / max(1, n), r / max(1, n)) for n, c, r in sums.tolist()]


def classes_of(found: Verdicts) -> Classes:
    """Everything that is drawn of a set of verdicts."""
    table = confusion(found.wanted, found.given, len(found.labels))
    return Classes(
        found.labels, table.tolist(), figures(found.labels, table),
        calibration(found.wanted == found.given, found.confidence),
    )  # fmt: skip


def as_questions(found: Verdicts) -> tuple[list[Question], list[Judged], list[bool]]:
    """Each row as a question whose reference is its label and whose reply the one it was given,
    and whether they are the same."""
    questions = [Question((Message("user", row.text),), row.label) for row in found.rows]
    given = [found.labels[number] for number in found.given.tolist()]
    pairs = [Judged(label, row.label) for label, row in zip(given, found.rows, strict=True)]
    return questions, pairs, (found.wanted == found.given).tolist()


def confused(classes: Classes, most: int = _SHOWN) -> list[tuple[str, str, int]]:
    """(label, what it was taken for, rows), the most frequent first."""
    found = [
        (classes.labels[i], classes.labels[j], count)
        for i, row in enumerate(classes.confusion)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(found, key=lambda each: (-each[2], each[:2]))[:most]


def class_measured(found: Verdicts) -> list[Measured]:
    """Accuracy, macro-F1 and calibration error in percent, as sums over the rows."""
    right = found.wanted == found.given
    count, classes = len(right), len(found.labels)
    by_class = _grouped(
        lambda rows: _by_class(found.wanted[rows], found.given[rows], classes), count, 3 * classes
    )
    by_bin = _by_bin(right, found.confidence)
    calibrated = f"top-label|bins:{BINS}|equal-width"
    return [
        share("accuracy", right.astype(float).tolist(), f"classes:{classes}"),
        Measured(
            "macro_f1", by_class, macro_f1_of, count, f"classes:{classes}|that-occur",
            of_parts=len(by_class) == count,
        ),
        Measured("ece", by_bin, ece_of, count, calibrated),
    ]  # fmt: skip


def _grouped(make: Callable[[slice], Floats], count: int, width: int) -> Floats:
    """The sums of each row, or of runs of rows where those were too many numbers to be held."""
    size = max(1, -(-count * width // _LARGEST_TABLE))
    if size == 1:
        return make(slice(0, count))
    return np.stack([make(slice(at, at + size)).sum(axis=0) for at in range(0, count, size)])


def macro_f1_of(totals: Floats) -> Floats:
    """Percent (...) of totals (..., 3·K), of each class right, given and there: the mean F1 of
    the classes that are there or were given."""
    parts = totals.reshape(*totals.shape[:-1], -1, 3)
    hit, both = parts[..., 0], parts[..., 1] + parts[..., 2]
    occurs = both > 0
    scores = np.where(occurs, 2 * hit / np.where(occurs, both, 1), 0.0)
    found: Floats = 100 * scores.sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1)
    return found


def ece_of(totals: Floats) -> Floats:
    """Expected calibration error (Guo et al. 2017) in percent (...) of totals (..., 3·bins), of
    each bin rows, confidence and right ones: the mean distance of the two, weighted by rows."""
    parts = totals.reshape(*totals.shape[:-1], -1, 3)
    rows = parts[..., 0].sum(axis=-1)
    distance = np.abs(parts[..., 1] - parts[..., 2]).sum(axis=-1)
    found: Floats = 100 * distance / np.maximum(rows, 1)
    return found


def _by_class(wanted: Numbers, given: Numbers, classes: int) -> Floats:
    """(N, 3·classes)."""
    sums = np.zeros((len(wanted), classes, 3))
    row = np.arange(len(wanted))
    sums[row, given, 1] = 1
    sums[row, wanted, 2] = 1
    hits = row[wanted == given]
    sums[hits, wanted[hits], 0] = 1
    return sums.reshape(len(wanted), -1)


def _by_bin(right: npt.NDArray[np.bool_], confidence: Floats) -> Floats:
    """(N, 3·bins)."""
    sums = np.zeros((len(right), BINS, 3))
    row, place = np.arange(len(right)), bin_of(confidence)
    sums[row, place, 0], sums[row, place, 1], sums[row, place, 2] = 1, confidence, right
    return sums.reshape(len(right), -1)
