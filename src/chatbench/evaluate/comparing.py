"""A model beside another, or beside a baseline: differences that resampling can tell, and the
items that became right or wrong."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from chatbench.errors import DataError
from chatbench.evaluate.baselines import question_text
from chatbench.evaluate.tasks import Question
from chatbench.text.facts import fact_hit, known_facts
from chatbench.text.intervals import Difference, compare
from chatbench.text.measuring import Judged, Measured, Score
from chatbench.text.overlap import is_exact


class Flip(msgspec.Struct, frozen=True):
    """An item that one side has right and the other wrong."""

    question: str
    reference: str
    reply: str
    baseline: str


class Flips(msgspec.Struct, frozen=True):
    """Items that are right by `metric` only here (gained) and only in the baseline (lost)."""

    metric: str
    gained: list[Flip]
    lost: list[Flip]


class Beside(msgspec.Struct, frozen=True):
    """A baseline: its own scores, and how ours differ from them."""

    name: str
    scores: list[Score]
    differences: list[Difference]
    flipped: Flips | None = None


def verdicts(pairs: Sequence[Judged], right: Sequence[bool] | None) -> tuple[str, list[bool]]:
    """Which replies are right, and by what: the task's own answers, the facts, or equality."""
    if right is not None:
        return "accuracy", list(right)
    known = known_facts(pairs)
    if known:
        return "exact_fact_match", [fact_hit(p, known) if p.facts else is_exact(p) for p in pairs]
    return "exact_match", [is_exact(pair) for pair in pairs]


def flips(
    questions: Sequence[Question], ours: Sequence[Judged], theirs: Sequence[Judged],
    right: Sequence[bool] | None = None, their_right: Sequence[bool] | None = None,
) -> Flips:  # fmt: skip
    """What changed sides between two sets of replies to the same questions."""
    metric, here = verdicts(ours, right)
    _, there = verdicts(theirs, their_right)
    gained: list[Flip] = []
    lost: list[Flip] = []
    for question, mine, other, is_mine, is_theirs in zip(
        questions, ours, theirs, here, there, strict=True
    ):
        if is_mine != is_theirs:
            flip = Flip(question_text(question), mine.reference, mine.reply, other.reply)
            (gained if is_mine else lost).append(flip)
    return Flips(metric, gained, lost)


def matched(
    questions: Sequence[Question], theirs: Sequence[Question], replies: Sequence[str], name: str
) -> list[str]:
    """Replies of another evaluation in the order of our questions. Raises DataError when it lacks
    one: a part of the items would be another test."""
    keys = [(q.messages, q.reference) for q in questions]
    if keys == [(q.messages, q.reference) for q in theirs]:
        return list(replies)
    by_question: dict[object, str] = {}
    for question, reply in zip(theirs, replies, strict=True):
        by_question.setdefault((question.messages, question.reference), reply)
    found = [by_question.get(key) for key in keys]
    absent = sum(reply is None for reply in found)
    if absent:
        raise DataError(
            f"{name} lacks replies to {absent} of {len(questions)} questions",
            hint="evaluate both on the same data, with the same --max-examples",
        )
    return [reply for reply in found if reply is not None]


def beside(
    name: str, ours: Sequence[Measured], theirs: Sequence[Measured], seed: int,
    flipped: Flips | None = None,
) -> Beside:  # fmt: skip
    """The comparison with one baseline."""
    scores = [measured.score() for measured in theirs]
    return Beside(name, scores, compare(ours, theirs, seed), flipped)
