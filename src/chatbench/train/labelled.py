"""Labelled texts in the place of a corpus: which labels there are, and which rows judge."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from chatbench import console
from chatbench.corpus.labelled import Labelled, LabelledRows
from chatbench.corpus.shards import KIND, Corpus, TokenSplit
from chatbench.corpus.split import split_of
from chatbench.engine.classes import class_ids
from chatbench.errors import DataError, UsageError
from chatbench.settings import FinetuneSettings
from chatbench.storage import FORMAT, Manifest
from chatbench.text.tags import Known
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.dialogues import sources_of

# Of all texts this share judges the model; which ones, their contents decide.
HELD_OUT = 0.1
_SHOWN = 3


class Examples(NamedTuple):
    """Texts as ids, and the numbers of their labels (N,); `cut`: how many are not there whole."""

    ids: list[list[int]]
    labels: npt.NDArray[np.int64]
    cut: int


class LabelledTexts(Corpus):
    """Texts with labels, seen as a corpus that has no tokens yet and lies in no folder.

    `labels` are sorted, and each has a row to learn from.
    """

    def __init__(self, rows: Sequence[Labelled], tokenizer: Tokenizer) -> None:
        """Rows of two labels at least, all different; their order does not matter."""
        self.tokenizer = tokenizer
        self.labels = tuple(sorted({row.label for row in rows}))
        ordered = sorted(rows, key=lambda row: (row.digest(), row.label))
        held = _held_out(ordered)
        self._rows = {
            "train": [row for row in ordered if row not in held],
            "val": [row for row in ordered if row in held],
        }
        said = hashlib.sha256(tokenizer.digest.encode())
        for row in ordered:
            said.update(row.digest() + hashlib.sha256(row.label.encode()).digest())
        self.fingerprint = said.hexdigest()
        noted = {
            "val_fraction": HELD_OUT, "test_fraction": 0.0, "split_by": "document",
            "near_threshold": 1.0, "repair": False,
        }  # fmt: skip
        self.manifest = Manifest(FORMAT, KIND, {}, {"settings": noted})

    def examples(self, name: str, room: int) -> Examples:
        """Those of train or val, as at most `room` ids each."""
        number = {label: n for n, label in enumerate(self.labels)}
        rows = self._rows[name]
        read = list(class_ids(self.tokenizer, [row.text for row in rows], room))
        labels = np.array([number[row.label] for row in rows], np.int64)
        return Examples([each.ids for each in read], labels, sum(each.cut for each in read))

    @property
    def folders(self) -> tuple[Path, ...]:
        return ()

    def tags(self) -> Known:
        return {}

    def split(self, name: str) -> TokenSplit:
        raise NotImplementedError("labelled texts are no stream of tokens")

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        for row in self._rows.get(name, ()):
            yield {"text": row.text, "label": row.label}


def open_labelled(settings: FinetuneSettings, tokenizer: Tokenizer) -> LabelledTexts:
    """The rows of the files named. Raises UsageError for what cannot be meant, DataError when
    there is nothing to tell apart."""
    sources = sources_of(settings.data)
    if any(source.share is not None for source in sources):
        raise UsageError(
            "labelled texts are learned whole", hint="name each -d without a share of it"
        )
    rows = list(LabelledRows([source.place for source in sources], settings.map, copies=False))
    counts = Counter(row.label for row in rows)
    if len(counts) < 2:
        only = f"only the label {next(iter(counts))}" if counts else "no text with a label"
        raise DataError(
            f"{', '.join(settings.data)} holds {only}, and a classifier tells two or more apart",
            hint="name the columns, such as --map text=COLUMN --map label=COLUMN",
        )
    once = sorted(label for label, count in counts.items() if count == 1)
    if once:
        more = f" and {len(once) - _SHOWN} more" if len(once) > _SHOWN else ""
        console.notice(
            f"labels with one row only, hardly enough to learn them: {', '.join(once[:_SHOWN])}"
            f"{more}"
        )
    return LabelledTexts(rows, tokenizer)


def _held_out(rows: Sequence[Labelled]) -> set[Labelled]:
    """The rows, given in their order, that judge; of every label one is learned at least."""
    held = {row for row in rows if split_of(row.digest(), HELD_OUT, 0.0) == "val"}
    learned = {row.label for row in rows if row not in held}
    for row in reversed(rows):
        if row.label not in learned:
            held.discard(row)
            learned.add(row.label)
    return held
