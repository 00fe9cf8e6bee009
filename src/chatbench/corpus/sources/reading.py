"""Files → documents that passed the stages, sorted on disk, every record accounted for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, cast

import msgspec

from chatbench.corpus.chunks import ChunkWriter, content_sizes
from chatbench.corpus.cleaning.refused import make_judge
from chatbench.corpus.cleaning.stages import make_stages, tagged
from chatbench.corpus.columns import columns_of, counted, tag_columns
from chatbench.corpus.document import Document, Dropped, Failure, Record
from chatbench.corpus.formats import parse_map, read_blob, sniff
from chatbench.corpus.sources.blob import Blob, ReadOptions
from chatbench.corpus.sources.containers import DamagedInput, open_blobs
from chatbench.corpus.sources.parts import Slice
from chatbench.errors import IntegrityError
from chatbench.settings import PreprocessSettings
from chatbench.storage import hash_file

SHOWN_PER_REASON = 5
_BATCH_CHARACTERS = 1 << 18
_BATCH_DOCUMENTS = 1024
_EXCERPT = 200


class Tally(msgspec.Struct):
    """What became of the records of one source, before duplicates are looked for."""

    source: int
    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = {}
    failed: dict[str, int] = {}
    verdicts: list[str] = []
    sha256: str = ""


class PartResult(msgspec.Struct):
    """What a read part left behind; `counts` is by stage and kind, `examples` by reason; `columns`:
    in how many documents each says something, counted where tags are asked for."""

    chunks: list[str]
    sizes: list[int]
    rejects: int
    sources: list[Tally]
    counts: dict[str, dict[str, int]]
    examples: dict[str, list[str]]
    columns: dict[str, int] = {}


def read_options(settings: PreprocessSettings) -> ReadOptions:
    """What of the settings decides how bytes become documents. Raises UsageError for an unknown
    format, encoding or part of a row."""
    options = ReadOptions(
        settings.format, settings.encoding, parse_map(settings.map), settings.passage_chars,
        settings.max_record_bytes, settings.max_expansion, settings.bin_tokenizer,
    )  # fmt: skip
    sniff(b"", "", options)
    return options


def dropped_row(document: Document, why: Dropped) -> dict[str, Any]:
    """A line of dropped.jsonl. Columns of the user's that are called as ours give way."""
    fate = {"status": "dropped", "reason": why.reason, "detail": why.detail}
    return {**fate, **document.as_row(), **fate}


def read_path(path: Path, name: str, options: ReadOptions) -> Iterator[Record]:
    """All records of a file; what cannot be read is a Failure among them."""
    for blob in open_blobs(path, name, options):
        if isinstance(blob, Failure):
            yield blob
        else:
            yield from _records(blob, options, [])


def _records(blob: Blob, options: ReadOptions, verdicts: list[str]) -> Iterator[Record]:
    def say(verdict: str) -> None:
        if verdict not in verdicts:
            verdicts.append(verdict)

    try:
        yield from read_blob(blob, options, say)
    except DamagedInput as damage:
        yield Failure(blob.name, damage.reason, damage.detail)


class Piece(RawIOBase):
    """Bytes start .. end of a file as a file of its own."""

    def __init__(self, path: bytes, start: int, end: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  (closed by close())
        self._file.seek(start)
        self._left = end - start

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._left]
        count = self._file.readinto(view) or 0
        self._left -= count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def read_slice(piece: Slice, options: ReadOptions, verdicts: list[str]) -> Iterator[Record]:
    """The records of a whole file or of a piece of one. Raises IntegrityError when the file
    changes meanwhile."""
    path = Path(os.fsdecode(piece.path))
    try:
        if piece.is_whole:
            for blob in open_blobs(path, piece.name, options):
                if isinstance(blob, Failure):
                    yield blob
                else:
                    yield from _records(blob, options, verdicts)
        else:
            options = msgspec.structs.replace(options, format=piece.form, encoding=piece.codec)
            with BufferedReader(Piece(piece.path, piece.start, piece.end), 1 << 18) as handle:
                reader = cast(BufferedReader, handle)
                blob = Blob(piece.name, reader, None, piece.first_line)
                yield from _records(blob, options, verdicts)
        after = path.stat()
    except OSError as error:
        yield Failure(piece.name, "unreadable", error.strerror or str(error))
        return
    if (after.st_size, after.st_mtime_ns) != (piece.size, piece.mtime_ns):
        raise IntegrityError(
            f"{piece.name} changed while it was read", hint="run again when nothing writes to it"
        )


def rejects_path(folder: Path, number: int) -> Path:
    """Where the rows of a part lie that were dropped or could not be read."""
    return folder / f"part-{number:06d}.rejects"


class PartReader:
    """Reads one part: batches through the stages, kept documents to chunks, rejects to a file."""

    def __init__(self, folder: Path, number: int, settings: PreprocessSettings) -> None:
        self._stem = folder / f"part-{number:06d}"
        self._number = number
        self._settings = settings
        self._options = read_options(settings)
        self._stages = make_stages(settings, _unsaid)
        self._tags = tag_columns(settings.tag_column)
        self._refused = make_judge(settings)
        self._chunks = ChunkWriter(self._stem)
        self._counts: dict[str, Counter[str]] = {}
        self._columns: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._rejects = open(rejects_path(folder, number), "wb")  # noqa: SIM115
        self._sequence = 0
        self._batch: list[Document] = []
        self._tallies: list[Tally] = []
        self._size = 0
        # `near` and cluster splits compare documents by their signatures.
        self._signed = settings.dedup == "near" or settings.split_by == "cluster"

    def read(self, slices: Sequence[Slice]) -> PartResult:
        """Everything in the slices, in order."""
        tallies = []
        with self._rejects:
            for piece in slices:
                tally = Tally(piece.source)
                self._read_slice(piece, tally)
                if piece.start == 0:
                    tally.sha256 = _hash_or_none(piece.path)
                tallies.append(tally)
            self._pass()
            self._chunks.flush()
        for tally in tallies:
            tally.verdicts = [self._told(verdict) for verdict in tally.verdicts]
        return PartResult(
            self._chunks.files,
            content_sizes(self._stem.parent, self._chunks.files),
            rejects_path(self._stem.parent, self._number).stat().st_size,
            tallies,
            {stage: dict(counter) for stage, counter in self._counts.items()},
            self._examples,
            counted(self._columns, self._tags),
        )

    def _read_slice(self, piece: Slice, tally: Tally) -> None:
        for record in read_slice(piece, self._options, tally.verdicts):
            tally.read += 1
            if isinstance(record, Failure):
                self._fail(record, tally)
                continue
            self._batch.append(record)
            self._tallies.append(tally)
            self._size += len(record.text) if record.text is not None else len(record.joined())
            if self._size >= _BATCH_CHARACTERS or len(self._batch) >= _BATCH_DOCUMENTS:
                self._pass()

    def _fail(self, failure: Failure, tally: Tally) -> None:
        tally.failed[failure.reason] = tally.failed.get(failure.reason, 0) + 1
        self._note(failure.reason, failure.source, failure.detail)
        self._reject({"status": "failed", **msgspec.to_builtins(failure)})

    def _pass(self) -> None:
        """The batch through all stages; what remains goes to disk."""
        originals, tallies = self._batch, self._tallies
        self._batch, self._tallies, self._size = [], [], 0
        alive = list(range(len(originals)))
        documents = originals
        for name, stage in self._stages:
            results, counts = stage(documents)
            if counts:
                self._counts.setdefault(name, Counter()).update(counts)
            places, alive, documents = alive, [], []
            for place, result in zip(places, results, strict=True):
                if isinstance(result, Dropped):
                    self._drop(originals[place], result, tallies[place])
                else:
                    alive.append(place)
                    documents.append(result)
        documents, digests = self._told_and_tagged(documents)
        taken = []
        for number, document in enumerate(documents):
            why = self._refused(document)
            if why is None:
                taken.append(number)
            else:
                self._drop(originals[alive[number]], why, tallies[alive[number]])
        if taken:
            self._keep(
                [documents[number] for number in taken],
                [digests[number] for number in taken],
                [tallies[alive[number]] for number in taken],
            )

    def _told_and_tagged(self, documents: list[Document]) -> tuple[list[Document], list[bytes]]:
        """The documents as the corpus holds them, and their digests."""
        if self._settings.pii == "mask":
            documents = [
                msgspec.structs.replace(d, meta=self._told(d.meta), source=self._told(d.source))
                for d in documents
            ]
        digests = [document.digest() for document in documents]
        if self._tags:
            self._columns += columns_of(documents)
            documents = [
                tagged(document, self._tags, self._settings.tag_dropout, digest)
                for document, digest in zip(documents, digests, strict=True)
            ]
        return documents, digests

    def _keep(self, documents: list[Document], digests: list[bytes], tallies: list[Tally]) -> None:
        for tally in tallies:
            tally.kept += 1
        signatures = None
        if self._signed:
            from chatbench.corpus.cleaning.neardup import signatures as sign

            signatures = sign([document.joined() for document in documents])
        sequences = range(self._sequence, self._sequence + len(documents))
        self._sequence += len(documents)
        sources = [tally.source for tally in tallies]
        self._chunks.add(documents, digests, sources, sequences, signatures)

    def _drop(self, original: Document, why: Dropped, tally: Tally) -> None:
        tally.dropped[why.reason] = tally.dropped.get(why.reason, 0) + 1
        self._note(why.reason, original.source, why.detail or excerpt(original))
        self._reject(dropped_row(original, why))

    def _note(self, reason: str, source: str, detail: str) -> None:
        known = self._examples.setdefault(reason, [])
        if len(known) < SHOWN_PER_REASON:
            known.append(self._told(f"{source}: {detail}" if detail else source))

    def _reject(self, row: dict[str, Any]) -> None:
        self._rejects.write(msgspec.json.encode(self._told(row)) + b"\n")

    def _told(self, value: Any) -> Any:
        """What may stand in the folder: with --pii mask nothing personal, wherever it stands."""
        if self._settings.pii != "mask":
            return value
        from chatbench.corpus.cleaning.pii.everywhere import masked_value

        return masked_value(value)


def excerpt(document: Document) -> str:
    """The beginning of a document on one line."""
    text = " ".join(document.joined()[: 2 * _EXCERPT].split())
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"


def _unsaid(_: str) -> None:
    """The program itself has said it before it hired workers."""


def _hash_or_none(path: bytes) -> str:
    try:
        return hash_file(Path(os.fsdecode(path)))
    except OSError:
        return ""  # a failure of its own says so
