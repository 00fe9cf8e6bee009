"""Token shards: safetensors files that training maps into memory.

`ids` u16 or u32 [N] · `starts` i64 [D+1] · `weights` u8 [N], absent when all are one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from chatbench.errors import IntegrityError, UsageError
from chatbench.storage import MANIFEST, Manifest, verify
from chatbench.text.tokenizer import Tokenizer, open_tokenizer

SHARD_TOKENS = 1 << 24
KIND = "corpus"
Ids = npt.NDArray[np.unsignedinteger[Any]]
Weights = npt.NDArray[np.uint8]


class ShardWriter:
    """Collects documents and writes a shard file whenever enough tokens are there."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._folder = folder
        self._type: type[np.unsignedinteger[Any]] = (
            np.uint16 if vocab_size <= 1 << 16 else np.uint32
        )
        self._number = 0
        self._clear()
        self.documents = 0
        self.tokens = 0
        self.supervised = 0

    def _clear(self) -> None:
        self._ids: list[Ids] = []
        self._weights: list[Weights] = []
        self._starts = [0]

    def add(self, ids: Sequence[int], weights: Sequence[int]) -> None:
        """Append one document."""
        self._ids.append(np.asarray(ids, self._type))
        self._weights.append(np.asarray(weights, np.uint8))
        self._starts.append(self._starts[-1] + len(ids))
        self.documents += 1
        self.tokens += len(ids)
        self.supervised += sum(weights)
        if self._starts[-1] >= SHARD_TOKENS:
            self._write()

    def close(self) -> None:
        """Write what is left; an empty split gets no file."""
        if self._ids:
            self._write()

    def _write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, npt.NDArray[Any]] = {
            "ids": np.concatenate(self._ids),
            "starts": np.asarray(self._starts, np.int64),
        }
        weights = np.concatenate(self._weights)
        if not weights.all():
            arrays["weights"] = weights
        save_file(arrays, self._folder / f"{self._number:05d}.safetensors")
        self._number += 1
        self._clear()


class Shard(msgspec.Struct):
    ids: Ids
    starts: npt.NDArray[np.int64]
    weights: Weights | None


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
        self._shards = [Shard(a["ids"], a["starts"], a.get("weights")) for a in arrays]
        counts = [len(shard.starts) - 1 for shard in self._shards]
        self._first = np.cumsum([0, *counts])
        lengths = [np.diff(shard.starts) for shard in self._shards]
        self.lengths: npt.NDArray[np.int64] = (
            np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        )

    def __len__(self) -> int:
        return int(self._first[-1])

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    def ids(self, number: int) -> Ids:
        """Token ids of one document, [length]."""
        shard, start, end = self._locate(number)
        return shard.ids[start:end]

    def weights(self, number: int) -> Weights:
        """What of it is to be learned, [length], 0 or 1."""
        shard, start, end = self._locate(number)
        return np.ones(end - start, np.uint8) if shard.weights is None else shard.weights[start:end]

    def _locate(self, number: int) -> tuple[Shard, int, int]:
        which = int(np.searchsorted(self._first, number, side="right")) - 1
        shard = self._shards[which]
        local = number - int(self._first[which])
        return shard, int(shard.starts[local]), int(shard.starts[local + 1])


class Corpus:
    """A verified corpus folder."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tokenizer: Tokenizer = open_tokenizer(folder / "tokenizer")
        self.fingerprint = str(manifest.info["fingerprint"])

    def split(self, name: str) -> TokenSplit:
        return TokenSplit(self.folder / name)


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
