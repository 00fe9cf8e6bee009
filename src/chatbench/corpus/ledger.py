"""Every record accounted for, per source and in total: read = kept + dropped + failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from chatbench import console
from chatbench.corpus.chunks import Entries
from chatbench.corpus.document import Failure
from chatbench.corpus.plan import REASONS
from chatbench.corpus.sources.inputs import Input
from chatbench.corpus.sources.reading import SHOWN_PER_REASON, PartResult


class Account(msgspec.Struct):
    """One source, or all of them."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = msgspec.field(default_factory=Counter)
    failed: Counter[str] = msgspec.field(default_factory=Counter)

    def balances(self) -> bool:
        return self.read == self.kept + self.dropped.total() + self.failed.total()

    def add(self, other: Account) -> None:
        self.read += other.read
        self.kept += other.kept
        self.dropped.update(other.dropped)
        self.failed.update(other.failed)

    def as_info(self) -> dict[str, Any]:
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": _sorted(self.dropped),
            "failed": _sorted(self.failed),
        }


def _sorted(counter: Counter[str]) -> dict[str, int]:
    return {reason: count for reason, count in sorted(counter.items()) if count}


class SourceAccount(msgspec.Struct):
    """A file of the input, in the order they are read."""

    path: str
    bytes: int = 0
    sha256: str = ""
    verdict: str = ""
    account: Account = msgspec.field(default_factory=Account)

    def as_row(self) -> dict[str, Any]:
        return {
            "path": self.path, "bytes": self.bytes, "sha256": self.sha256,
            "verdict": self.verdict, **self.account.as_info(),
        }  # fmt: skip


class Ledger:
    """What became of every record so far."""

    def __init__(self, inputs: Sequence[Input], unreadable: Iterable[Failure]) -> None:
        self.sources = [SourceAccount(found.name, found.bytes) for found in inputs]
        self.counts: dict[str, Counter[str]] = {}
        self.examples: dict[str, list[str]] = {}
        self.columns: Counter[str] = Counter()
        self._strangers: list[SourceAccount] = []
        for failure in unreadable:
            account = Account(1, failed=Counter({failure.reason: 1}))
            self._strangers.append(SourceAccount(failure.source, account=account))
            self._note({failure.reason: [f"{failure.source}: {failure.detail}"]})

    def add_part(self, result: PartResult) -> None:
        """What reading one part came to."""
        for tally in result.sources:
            source = self.sources[tally.source]
            source.account.add(
                Account(tally.read, tally.kept, Counter(tally.dropped), Counter(tally.failed))
            )
            source.sha256 = source.sha256 or tally.sha256
            if not source.verdict:
                source.verdict = "; ".join(tally.verdicts)
        for stage, counter in result.counts.items():
            self.counts.setdefault(stage, Counter()).update(counter)
        self.columns.update(result.columns)
        self._note(result.examples)

    def add_fates(self, entries: Entries) -> None:
        """What comparing documents with each other came to."""
        for fate, reason in REASONS.items():
            lost = np.bincount(entries["source"][entries["fate"] == fate])
            for number in np.flatnonzero(lost).tolist():
                account = self.sources[number].account
                account.kept -= int(lost[number])
                account.dropped[reason] += int(lost[number])

    def add_examples(self, examples: dict[str, list[str]]) -> None:
        self._note(examples)

    def _note(self, examples: dict[str, list[str]]) -> None:
        for reason, lines in examples.items():
            known = self.examples.setdefault(reason, [])
            known += lines[: SHOWN_PER_REASON - len(known)]

    def total(self) -> Account:
        total = Account()
        for source in (*self.sources, *self._strangers):
            total.add(source.account)
        return total

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a source, as sources.jsonl holds them."""
        for source in (*self.sources, *self._strangers):
            yield source.as_row()

    def verdicts(self) -> list[tuple[str, list[str]]]:
        """What was decided about the files: each verdict with the files it was said of."""
        said: dict[str, list[str]] = {}
        for source in self.sources:
            if source.verdict:
                said.setdefault(source.verdict, []).append(source.path)
        return sorted(said.items(), key=lambda item: (-len(item[1]), item[0]))


def show(ledger: Ledger) -> None:
    """The sum in one line, and the first examples of every reason."""
    total = ledger.total()
    parts = [f"read {total.read:,}", f"kept {total.kept:,}"]
    for label, counter in (("dropped", total.dropped), ("failed", total.failed)):
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in _sorted(counter).items())
        parts.append(f"{label} {counter.total():,}" + (f" ({reasons})" if reasons else ""))
    for reason in (*_sorted(total.failed), *_sorted(total.dropped)):
        label = "failed" if reason in total.failed else "dropped"
        for line in _examples(ledger.examples.get(reason, []), label, reason):
            console.say(line, style="yellow" if label == "failed" else "dim")
    for stage, counter in ledger.counts.items():
        if counter:
            what = ", ".join(
                f"{kind.removeprefix(f'{stage}: ')} {count:,}"
                for kind, count in sorted(counter.items())
            )
            console.say(f"{stage}: {what}")
    console.say("records: " + " · ".join(parts))


def _examples(examples: Sequence[str], label: str, reason: str) -> Iterator[str]:
    """`label: file:line: reason: detail`; a detail that was just given is not said again."""
    width = max(60, console.width())
    said = ""
    for example in examples:
        source, _, detail = example.partition(": ")
        line = f"{label}: {source}: {reason}"
        if detail and detail != said:
            line += f": {detail}"
        said = detail
        yield line if len(line) <= width else line[: width - 1] + "…"


def show_verdicts(ledger: Ledger, limit: int = 12) -> None:
    """What each kind of file was taken for."""
    verdicts = ledger.verdicts()
    for verdict, names in verdicts[:limit]:
        others = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        console.say(f"{names[0]}{others}: {verdict}")
    if len(verdicts) > limit:
        console.say(f"{len(verdicts) - limit} other kinds of files: see sources.jsonl")
