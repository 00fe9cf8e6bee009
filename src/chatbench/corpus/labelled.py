"""Texts with labels, straight from files of any accepted form: every row accounted for."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from chatbench import console
from chatbench.corpus.document import Document, Failure
from chatbench.corpus.formats import parse_map
from chatbench.corpus.formats.shapes import label_text
from chatbench.corpus.shards import KIND
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.corpus.sources.inputs import find_inputs
from chatbench.corpus.sources.reading import read_path
from chatbench.errors import UsageError
from chatbench.storage import read_manifest

# A text stays one text, for its label is that of the whole.
_WHOLE = 1 << 62


class Labelled(NamedTuple):
    """A text, without outer white space, and its label."""

    text: str
    label: str

    def digest(self) -> bytes:
        """16 bytes that depend on the text alone, in no way in which others sort or part texts."""
        said = self.text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(said, digest_size=16, person=b"labelled text").digest()


class LabelledRows:
    """Rows of files and folders, read once; `left_out` counts by reason what could not be used."""

    def __init__(
        self, places: Sequence[str], mapping: Sequence[str] = (), *, copies: bool = True
    ) -> None:
        """`mapping`: PART=COLUMN entries; without `copies`, a row that was there before is left
        out. Raises UsageError for what cannot be meant."""
        for place in places:
            manifest = read_manifest(Path(place))
            if manifest is not None and manifest.kind == KIND:
                raise UsageError(
                    f"{place} is a corpus folder, which keeps tokens and no labels",
                    hint="give the table or .jsonl itself",
                )
        self.left_out: Counter[str] = Counter()
        self._places, self._copies = places, copies
        self._options = ReadOptions(mapping=parse_map(mapping), passage_chars=_WHOLE)

    def __iter__(self) -> Iterator[Labelled]:
        """The rows in order; at the end people are told what was left out."""
        first: dict[str, str] = {}
        seen: dict[bytes, set[str]] = defaultdict(set)
        for row in self._read():
            if isinstance(row, Failure):
                self.left_out[row.reason] += 1
                where = f"{row.source}: {row.detail}" if row.detail else row.source
                first.setdefault(row.reason, where)
                continue
            labels = seen[row.digest()]
            if row.label in labels and not self._copies:
                self.left_out["copy of another row"] += 1
                continue
            labels.add(row.label)
            yield row
        for reason, count in sorted(self.left_out.items()):
            where = f", first {first[reason]}" if reason in first else ""
            console.notice(f"{count} rows were left out: {reason}{where}")
        several = sum(len(labels) > 1 for labels in seen.values())
        if several:
            console.notice(f"{several} texts have more than one label; each counts")

    def _read(self) -> Iterator[Labelled | Failure]:
        inputs, unreadable = find_inputs(self._places, None)
        yield from unreadable
        for found in inputs:
            for record in read_path(found.path, found.name, self._options):
                yield record if isinstance(record, Failure) else labelled(record)


def labelled(document: Document) -> Labelled | Failure:
    """The text and the label of a document: a label column, else the one reply to it."""
    turns = [turn for turn in document.messages or () if turn.role != "system"]
    label = label_text(document.meta.get("label"))
    text = document.text
    if turns:
        text = turns[0].content
        if label is None and [turn.role for turn in turns] == ["user", "assistant"]:
            label = label_text(turns[1].content)
    if label is None:
        return Failure(document.source, "no label")
    if not text or not text.strip():
        return Failure(document.source, "empty text")
    return Labelled(text.strip(), label)
