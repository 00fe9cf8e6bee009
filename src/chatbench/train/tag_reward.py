"""Whether a reply is what its prompt's control tag asks for, judged by a small classifier that has
learned from the replies of the training data which value of the tag they bear."""

from __future__ import annotations

from collections.abc import Collection

from chatbench.errors import DataError, UsageError, did_you_mean
from chatbench.text.classifier import Classifier, learn
from chatbench.text.tags import Known, tags_in
from chatbench.train.rewards import Exchange, Reward
from chatbench.train.rollouts import Tasks

# More teach it little more; an even choice of them.
_MOST_REPLIES = 4000


class TagRewards:
    """Makes the reward of a tag by its column."""

    def __init__(self, known: Known, tasks: Tasks) -> None:
        """`known`: columns and values of the corpus."""
        self._known = known
        self._tasks = tasks

    def __call__(self, column: str) -> Reward:
        """How sure the classifier is, 0 to 1, that a reply bears the value that stands in its
        prompt; 0 where none does. Raises UsageError for a column that the corpus lacks, DataError
        where it has fewer than two values."""
        check_column(column, self._known)
        known = {column: self._known[column]}
        step = max(1, len(self._tasks) // _MOST_REPLIES)
        chosen = [self._tasks[number] for number in range(0, len(self._tasks), step)]
        pairs = [(tags_in(task.prompt, known).get(column), task.reference) for task in chosen]
        values = [value for value, _ in pairs if value is not None]
        if len(set(values)) < 2:
            raise DataError(f"the training data have fewer than two values of the tag {column}")
        judge = learn([reply for value, reply in pairs if value is not None], values)
        return _obeyed(judge, column, known)


def check_column(column: str, known: Collection[str]) -> None:
    """Raises UsageError for a column that is not among those that became tags."""
    if not column:
        raise UsageError("--reward tag names no tag", hint="such as --reward tag:style")
    if column not in known:
        told = did_you_mean(column, list(known)) if known else f"make it with --tag-column {column}"
        raise UsageError(f"the data have no tag {column!r}", hint=told)


def _obeyed(judge: Classifier, column: str, known: Known) -> Reward:
    def worth(exchange: Exchange) -> float:
        value = tags_in(exchange.prompt, known).get(column)
        if value not in judge.labels or not exchange.reply:
            return 0.0
        return float(judge.probabilities([exchange.reply])[0, judge.labels.index(value)])

    return worth
