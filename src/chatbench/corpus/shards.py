"""Token shards: safetensors files that training maps into memory.

`ids` u16 or u32 [N] · `starts` i64 [D+1] · `weights` u8 [N], absent when all are one. Where there
are preference pairs the endings that are not wanted lie beside them, document by document and empty
for the others: `rejected_ids`, `rejected_starts`, `rejected_weights`. Where documents have tags,
what they are without them lies in `untagged_...` (see untagging.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from chatbench.corpus.untagging import Splice, SpliceColumn, Splices, StoredSplices
from chatbench.errors import IntegrityError, UsageError
from chatbench.storage import MANIFEST, Manifest, hash_file, verify
from chatbench.text.rendering import RenderedArrays
from chatbench.text.tags import Known, merged, read_known, said, write_known
from chatbench.text.tokenizer import Tokenizer, open_tokenizer

KIND = "corpus"
# How counts of a tag's values are called among other counts of a corpus.
TAG_ASPECT = "tag "
Ids = npt.NDArray[np.unsignedinteger[Any]]
Weights = npt.NDArray[np.uint8]


class ShardWriter:
    """Collects rendered documents of one split and writes them as one shard file."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self._path = path
        self._type: type[np.unsignedinteger[Any]] = (
            np.uint16 if vocab_size <= 1 << 16 else np.uint32
        )
        self._wanted = _Column()
        self._rejected = _Column()
        self._untagged = SpliceColumn()

    @property
    def documents(self) -> int:
        return self._wanted.documents

    @property
    def tokens(self) -> int:
        return self._wanted.tokens

    @property
    def supervised(self) -> int:
        return self._wanted.supervised

    def add(
        self, rendered: RenderedArrays, rejected: RenderedArrays | None = None,
        untagged: Splices | None = None,
    ) -> None:  # fmt: skip
        """Append documents; `rejected` holds as many, empty where a document has none, `untagged`
        what they are with fewer tags."""
        before = self.documents
        self._wanted.add(rendered, self._type)
        if rejected is not None:
            # Documents that came before the first preference have no other ending.
            self._rejected.pad(before - self._rejected.documents)
            self._rejected.add(rejected, self._type)
        if untagged is not None:
            self._untagged.add(untagged, before)

    def close(self) -> str | None:
        """Write the file; returns its SHA-256, or None when there was nothing to write."""
        if not self.documents:
            return None
        arrays = self._wanted.arrays(self._type)
        if arrays["weights"].all():
            del arrays["weights"]
        if self._rejected.tokens:
            self._rejected.pad(self.documents - self._rejected.documents)
            other = self._rejected.arrays(self._type)
            arrays |= {f"rejected_{name}": array for name, array in other.items()}
        arrays |= self._untagged.arrays(self.documents, self._type)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, self._path)
        return hash_file(self._path)


class _Column:
    """ids, starts and weights of one side of the documents."""

    def __init__(self) -> None:
        self._ids: list[Ids] = []
        self._weights: list[Weights] = []
        self._starts: list[npt.NDArray[np.int64]] = [np.zeros(1, np.int64)]
        self.documents = 0
        self.tokens = 0
        self.supervised = 0

    def add(self, rendered: RenderedArrays, number_type: type[np.unsignedinteger[Any]]) -> None:
        self._ids.append(rendered.ids.astype(number_type))
        self._weights.append(rendered.weights)
        self._starts.append(rendered.starts[1:] + self.tokens)
        self.documents += len(rendered.starts) - 1
        self.tokens += len(rendered.ids)
        self.supervised += int(rendered.weights.sum(dtype=np.int64))

    def pad(self, count: int) -> None:
        """Append `count` empty documents."""
        self._starts.append(np.full(count, self.tokens, np.int64))
        self.documents += count

    def arrays(self, number_type: type[np.unsignedinteger[Any]]) -> dict[str, npt.NDArray[Any]]:
        return {
            "ids": np.concatenate([np.zeros(0, number_type), *self._ids]),
            "starts": np.concatenate(self._starts),
            "weights": np.concatenate([np.zeros(0, np.uint8), *self._weights]),
        }


class Shard(msgspec.Struct):
    ids: Ids
    starts: npt.NDArray[np.int64]
    weights: Weights | None
    rejected_ids: Ids | None = None
    rejected_starts: npt.NDArray[np.int64] | None = None
    rejected_weights: Weights | None = None
    untagged: StoredSplices = StoredSplices({})


def map_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a safetensors file, mapped, not read. Raises IntegrityError."""
    types = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I64": np.int64}
    try:
        data = np.memmap(path, mode="r")
        header_size = int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8 : 8 + header_size].tobytes())
        body = data[8 + header_size :]
        return {
            name: body[slice(*entry["data_offsets"])].view(types[entry["dtype"]])
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} is not a readable shard: {error}") from error


class TokenSplit:
    """All documents of one split, by number, in the order of the corpus."""

    def __init__(self, folder: Path) -> None:
        arrays = [map_arrays(path) for path in sorted(folder.glob("*.safetensors"))]
        self._shards = [
            Shard(
                a["ids"], a["starts"], a.get("weights"), a.get("rejected_ids"),
                a.get("rejected_starts"), a.get("rejected_weights"), StoredSplices(a),
            )
            for a in arrays
        ]  # fmt: skip
        counts = [len(shard.starts) - 1 for shard in self._shards]
        self._first = np.cumsum([0, *counts])
        lengths = [np.diff(shard.starts) for shard in self._shards]
        self.lengths: npt.NDArray[np.int64] = (
            np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        )
        # Asked for with every row, and a large corpus has millions of documents.
        self._tokens = int(self.lengths.sum())

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def tokens(self) -> int:
        return self._tokens

    def ids(self, number: int) -> Ids:
        """Token ids of one document, [length]."""
        shard, local = self._locate(number)
        start, end = shard.starts[local : local + 2].tolist()
        return shard.ids[start:end]

    def weights(self, number: int) -> Weights:
        """What of it is to be learned, [length], 0 or 1."""
        shard, local = self._locate(number)
        start, end = shard.starts[local : local + 2].tolist()
        return np.ones(end - start, np.uint8) if shard.weights is None else shard.weights[start:end]

    def rejected(self, number: int) -> tuple[Ids, Weights] | None:
        """Ids and weights of the ending a preference pair rejects; None where there is none."""
        shard, local = self._locate(number)
        if shard.rejected_ids is None:
            return None
        assert shard.rejected_starts is not None
        assert shard.rejected_weights is not None
        start, end = shard.rejected_starts[local : local + 2].tolist()
        if start == end:
            return None
        return shard.rejected_ids[start:end], shard.rejected_weights[start:end]

    @property
    def has_tags(self) -> bool:
        """Whether any document says what it is with fewer tags."""
        return any(shard.untagged.there for shard in self._shards)

    def untagged(self, number: int) -> tuple[Splice, ...]:
        """The document without its tags, then without each one of several; none without tags."""
        shard, local = self._locate(number)
        return shard.untagged.of(local)

    def largest(self) -> int:
        """The highest token id; -1 where there is none."""
        sides = [side for s in self._shards for side in (s.ids, s.rejected_ids) if side is not None]
        return max((int(side.max()) for side in sides if len(side)), default=-1)

    def is_replayed(self, number: int) -> bool:
        """Whether the document is here only to be remembered, as a share of a mixture."""
        return False

    def _locate(self, number: int) -> tuple[Shard, int]:
        which = int(np.searchsorted(self._first, number, side="right")) - 1
        return self._shards[which], number - int(self._first[which])


class Corpus:
    """A verified corpus folder."""

    # Those of which a mixture holds a share.
    replayed: tuple[Corpus, ...] = ()

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tokenizer: Tokenizer = open_tokenizer(folder / "tokenizer")
        self.fingerprint = str(manifest.info["fingerprint"])

    @property
    def folders(self) -> tuple[Path, ...]:
        """All that it is made of."""
        return (self.folder,)

    def split(self, name: str) -> TokenSplit:
        """The tokens of train, val or test."""
        return TokenSplit(self.folder / name)

    def tags(self) -> Known:
        """Columns and values of its tags, with how many documents have them."""
        return read_known(self.folder)

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """The documents of val or test as they were read: `messages`, or `text`."""
        with open(self.folder / f"{name}.jsonl", "rb") as handle:
            yield from map(msgspec.json.decode, handle)


def write_tags(folder: Path, counts: Sequence[Mapping[str, Mapping[str, int]]]) -> None:
    """Keep what `Corpus.tags` reads; `counts`: aspect → value → documents, of parts of a corpus."""
    found = [
        {said(aspect.removeprefix(TAG_ASPECT)) or "": values}
        for aspects in counts
        for aspect, values in aspects.items()
        if aspect.startswith(TAG_ASPECT)
    ]
    known = merged(found)
    write_known(folder, {column: values for column, values in known.items() if column and values})


def open_corpus(folder: Path) -> Corpus:
    """Verify and open. Raises UsageError (no such folder), IntegrityError (damaged)."""
    if not folder.is_dir():
        what = "is a file, not a corpus folder" if folder.exists() else "does not exist"
        raise UsageError(
            f"{folder} {what}", hint=f"make one: chatbench preprocess INPUT... -o {folder}"
        )
    manifest = verify(folder, KIND)
    if "fingerprint" not in manifest.info:
        raise IntegrityError(f"{folder / MANIFEST} has no fingerprint", hint="make it again")
    return Corpus(folder, manifest)
