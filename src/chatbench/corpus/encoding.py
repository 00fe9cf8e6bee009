"""The documents of the plan → shards, held-out rows, dropped rows and what the report counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from io import BufferedWriter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from chatbench.conversation import Message
from chatbench.corpus.cleaning.language import languages
from chatbench.corpus.cleaning.stages import tag_value
from chatbench.corpus.columns import tag_columns
from chatbench.corpus.document import Document, Dropped
from chatbench.corpus.plan import REASONS, Bucket, read_job
from chatbench.corpus.shards import TAG_ASPECT, ShardWriter
from chatbench.corpus.sources.reading import SHOWN_PER_REASON, dropped_row, excerpt
from chatbench.corpus.split import SPLITS
from chatbench.corpus.untagging import Splices, splices, with_fewer_tags
from chatbench.text.rendering import Item, RenderedArrays, render_arrays
from chatbench.text.tokenizer import Tokenizer, open_tokenizer

HELD_OUT = ("val", "test")
_LANGUAGE_CHARACTERS = 500


class SplitTally(msgspec.Struct):
    documents: int = 0
    tokens: int = 0
    supervised: int = 0
    sha256: str | None = None


class BucketResult(msgspec.Struct):
    """What one bucket holds: by split, and counts of kept documents by aspect and value; `seen` has
    a bit for each entry of the vocabulary that occurs in its training documents."""

    splits: dict[str, SplitTally]
    counts: dict[str, dict[str, int]]
    characters: int
    examples: dict[str, list[str]]
    seen: bytes


def item_of(document: Document) -> Item:
    """What of a document is rendered."""
    if document.messages is not None:
        return Item(document.turns() or ())
    control = (Message("system", document.control),) if document.control else ()
    return Item(control, document.text or "")


def encode_bucket(folder: str, number: int) -> BucketResult:
    """Write bucket `number`'s pieces of the corpus into `folder`."""
    place = Path(folder)
    tokenizer = _open(place / "tokenizer")
    job = read_job(place)
    bucket = Bucket(place, job, number)
    writer = _BucketWriter(place, number, tokenizer, tag_columns(job.settings.tag_column))
    with writer:
        for places, documents in bucket.batches(0, 1, 2):
            writer.keep(documents, bucket.entries["fate"][places].tolist())
        for places, documents in bucket.batches(*REASONS):
            writer.reject(documents, bucket.entries["fate"][places].tolist())
    return writer.result()


def _open(folder: Path) -> Tokenizer:
    """Opened once for all buckets of a corpus; the next one may lie in the same place."""
    states = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    return _opened(folder, tuple((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in states))


@lru_cache(maxsize=1)
def _opened(folder: Path, _: tuple[tuple[str, int, int, int], ...]) -> Tokenizer:
    return open_tokenizer(folder)


def shard_path(folder: Path, split: str, number: int) -> Path:
    return folder / split / f"{number:05d}.safetensors"


def rows_path(folder: Path, kind: str, number: int) -> Path:
    return folder / f"{kind}-{number:05d}.rows"


class _BucketWriter:
    def __init__(
        self, folder: Path, number: int, tokenizer: Tokenizer, columns: Sequence[str]
    ) -> None:
        self._tokenizer = tokenizer
        self._columns = columns
        self._shards = {
            split: ShardWriter(shard_path(folder, split, number), tokenizer.vocab_size)
            for split in SPLITS
        }
        self._paths = {kind: rows_path(folder, kind, number) for kind in (*HELD_OUT, "dropped")}
        self._counts: dict[str, Counter[str]] = {}
        self._characters = 0
        self._seen = np.zeros(tokenizer.vocab_size, bool)
        self._examples: dict[str, list[str]] = {}
        self._sums: dict[str, str | None] = {}
        self._stack = ExitStack()
        self._rows: dict[str, BufferedWriter] = {}

    def __enter__(self) -> None:
        for kind, path in self._paths.items():
            self._rows[kind] = self._stack.enter_context(open(path, "wb"))

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._sums = {split: writer.close() for split, writer in self._shards.items()}

    def keep(self, documents: list[Document], fates: list[int]) -> None:
        """Documents that go into a split."""
        self._describe(documents)
        for fate, split in enumerate(SPLITS):
            mine = [d for d, f in zip(documents, fates, strict=True) if f == fate]
            if not mine:
                continue
            wanted = render_arrays(self._tokenizer, [item_of(d) for d in mine])
            self._shards[split].add(wanted, self._other_endings(mine), self._untagged(mine, wanted))
            if split == "train":
                self._seen[wanted.ids] = True
            else:
                for document in mine:
                    self._write(split, document.as_row())

    def _other_endings(self, documents: list[Document]) -> RenderedArrays | None:
        pairs = [n for n, d in enumerate(documents) if d.rejected is not None]
        if not pairs:
            return None
        items = [Item(documents[n].rejected_turns() or ()) for n in pairs]
        rendered = render_arrays(self._tokenizer, items)
        lengths = np.zeros(len(documents), np.int64)
        lengths[pairs] = np.diff(rendered.starts)
        return rendered._replace(starts=np.concatenate([[0], np.cumsum(lengths)]))

    def _untagged(self, documents: list[Document], wanted: RenderedArrays) -> Splices | None:
        variants = [with_fewer_tags(document, self._tokenizer) for document in documents]
        items = [item_of(variant) for some in variants for variant in some]
        if not items:
            return None
        others = render_arrays(self._tokenizer, items)
        return splices(wanted, [len(some) for some in variants], others)

    def reject(self, documents: list[Document], fates: list[int]) -> None:
        """Documents that earlier steps decided to leave out."""
        for document, fate in zip(documents, fates, strict=True):
            reason = REASONS[fate]
            known = self._examples.setdefault(reason, [])
            if len(known) < SHOWN_PER_REASON:
                known.append(f"{document.source}: {excerpt(document)}")
            self._write("dropped", dropped_row(document, Dropped(reason)))

    def _describe(self, documents: list[Document]) -> None:
        texts = [document.joined() for document in documents]
        self._characters += sum(map(len, texts))
        heads = [text[:_LANGUAGE_CHARACTERS] for text in texts]
        self._count("language", languages(heads))
        self._count("shape", [document.shape for document in documents])
        chats = [document.messages for document in documents if document.messages is not None]
        self._count("turns", [str(len(messages)) for messages in chats])
        self._count("role", [message.role for messages in chats for message in messages])
        for column in self._columns:
            values = [tag_value(document, column) for document in documents]
            self._count(f"{TAG_ASPECT}{column}", [value for value in values if value is not None])

    def _count(self, aspect: str, values: list[str]) -> None:
        self._counts.setdefault(aspect, Counter()).update(values)

    def _write(self, kind: str, row: dict[str, Any]) -> None:
        self._rows[kind].write(msgspec.json.encode(row) + b"\n")

    def result(self) -> BucketResult:
        splits = {
            split: SplitTally(w.documents, w.tokens, w.supervised, self._sums[split])
            for split, w in self._shards.items()
        }
        counts = {aspect: dict(counter) for aspect, counter in self._counts.items()}
        seen = np.packbits(self._seen).tobytes()
        return BucketResult(splits, counts, self._characters, self._examples, seen)
