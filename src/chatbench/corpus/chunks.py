"""Documents on disk between the steps of a build: unsorted input, sorted output, flat memory.

Each part of the input leaves chunks of documents sorted by digest, with an index of fixed-size
entries. All indices together (ENTRY.itemsize bytes a document) are sorted in memory; the documents
themselves are read back range by range, as in the merge of an external sort.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from chatbench.corpus.document import Document

# One document: its digest as two big-endian numbers, where it lies, and where it came from. `tie`
# orders what has one digest by all the rest of it (tags, other columns, outer white space).
ENTRY = np.dtype(
    [
        ("high", "<u8"),
        ("low", "<u8"),
        ("offset", "<u8"),
        ("length", "<u4"),
        ("chunk", "<u4"),
        ("source", "<u4"),
        ("sequence", "<u4"),
        ("tie", "<u4"),
        ("fate", "u1"),
    ]
)
Entries = npt.NDArray[Any]
CHUNK_BYTES = 1 << 24
_SOURCE = b'{"source":'


class ChunkWriter:
    """Collects documents of one part and writes a sorted chunk whenever enough are there."""

    def __init__(self, stem: Path) -> None:
        self._stem = stem
        self.files: list[str] = []
        self._clear()

    def _clear(self) -> None:
        self._rows: list[tuple[bytes, int, int, int, bytes]] = []
        self._signatures: list[npt.NDArray[np.uint32]] = []
        self._size = 0

    def add(
        self,
        documents: Sequence[Document],
        digests: Sequence[bytes],
        sources: Sequence[int],
        sequences: Sequence[int],
        signatures: npt.NDArray[np.uint32] | None = None,
    ) -> None:
        """Append documents with the number of their source and of the record within the part."""
        encode = msgspec.json.Encoder().encode
        for document, digest, source, sequence in zip(
            documents, digests, sources, sequences, strict=True
        ):
            packed = encode(document)
            # Where it came from stands first and decides nothing.
            tie = zlib.crc32(memoryview(packed)[len(_SOURCE) + len(encode(document.source)) :])
            self._rows.append((digest, tie, source, sequence, packed))
            self._size += len(packed)
        if signatures is not None:
            self._signatures.append(signatures)
        if self._size >= CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is there; nothing when there is nothing."""
        if not self._rows:
            return
        name = f"{self._stem.name}-{len(self.files):04d}"
        order = sorted(range(len(self._rows)), key=lambda n: (*self._rows[n][:2], n))
        entries = np.zeros(len(order), ENTRY)
        offset = 0
        with open(self._stem.with_name(f"{name}.docs"), "wb") as handle:
            for place, number in enumerate(order):
                digest, tie, source, sequence, packed = self._rows[number]
                handle.write(packed)
                entries[place] = (
                    int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big"),
                    offset, len(packed), 0, source, sequence, tie, 0,
                )  # fmt: skip
                offset += len(packed)
        np.save(self._stem.with_name(f"{name}.index.npy"), entries, allow_pickle=False)
        if self._signatures:
            signatures = np.concatenate(self._signatures)[order]
            signatures.tofile(self._stem.with_name(f"{name}.signatures"))
        self.files.append(name)
        self._clear()


def read_entries(folder: Path, chunks: Sequence[str]) -> Entries:
    """The indices of all chunks, one after the other, each entry knowing its chunk's number."""
    indices = [
        np.load(folder / f"{name}.index.npy", mmap_mode="r", allow_pickle=False) for name in chunks
    ]
    entries = np.zeros(sum(map(len, indices)), ENTRY)
    begin = 0
    for number, index in enumerate(indices):
        end = begin + len(index)
        entries[begin:end] = index
        entries["chunk"][begin:end] = number
        begin = end
    return entries


def in_order(entries: Entries) -> npt.NDArray[np.intp]:
    """Positions sorted by digest, then by what the digest leaves out; documents that are equal in
    that as well in the order they were read."""
    return np.lexsort(
        tuple(entries[field] for field in ("sequence", "chunk", "tie", "low", "high"))
    )


def repeats(entries: Entries) -> npt.NDArray[np.bool_]:
    """Which of the sorted entries have the digest of the one before."""
    same = np.zeros(len(entries), bool)
    same[1:] = (entries["high"][1:] == entries["high"][:-1]) & (
        entries["low"][1:] == entries["low"][:-1]
    )
    return same


def digests_of(entries: Entries) -> bytes:
    """The 16-byte digests, joined."""
    return np.stack([entries["high"], entries["low"]], axis=1).astype(">u8").tobytes()


def read_documents(folder: Path, chunks: Sequence[str], entries: Entries) -> Iterator[Document]:
    """The documents of a run of sorted entries, in their order.

    What lies between the first and the last of them in a chunk is read in one piece, which for
    sorted entries is little more than the documents asked for.
    """
    decode = msgspec.json.Decoder(Document).decode
    pieces: dict[int, tuple[int, bytes]] = {}
    for number in np.unique(entries["chunk"]).tolist():
        mine = entries[entries["chunk"] == number]
        begin = int(mine["offset"].min())
        end = int((mine["offset"] + mine["length"]).max())
        with open(folder / f"{chunks[number]}.docs", "rb") as handle:
            handle.seek(begin)
            pieces[number] = (begin, handle.read(end - begin))
    for number, offset, length in zip(
        entries["chunk"].tolist(), entries["offset"].tolist(), entries["length"].tolist(),
        strict=True,
    ):  # fmt: skip
        begin, data = pieces[number]
        yield decode(memoryview(data)[offset - begin : offset - begin + length])


class StoredRows:
    """The signatures of one chunk, (documents, width), mapped only while rows are taken out: what
    stays mapped counts as memory of the process."""

    def __init__(self, path: Path, width: int) -> None:
        self._path = path
        self._width = width
        self._length = path.stat().st_size // (4 * width)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rows: Any) -> npt.NDArray[np.uint32]:
        """The rows asked for, copied."""
        shape = (self._length, self._width)
        return np.array(np.memmap(self._path, np.uint32, "r", shape=shape)[rows])


def map_signatures(folder: Path, chunks: Sequence[str], width: int) -> list[StoredRows]:
    """The signatures of each chunk; row i of all belongs to the unsorted entry i."""
    return [StoredRows(folder / f"{name}.signatures", width) for name in chunks]


def content_sizes(folder: Path, chunks: Sequence[str]) -> list[int]:
    """Bytes of a part's chunk files, to know whether they are still all there."""
    return [
        (path.stat().st_size if (path := folder / f"{name}{suffix}").is_file() else -1)
        for name in chunks
        for suffix in (".docs", ".index.npy", ".signatures")
    ]
