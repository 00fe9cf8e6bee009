"""Parts of a checkpoint: every rank writes the rows it holds, anybody reads whole tensors.

The files are those of torch.distributed.checkpoint's HuggingFaceStorageWriter: safetensors that
say in their headers where each part begins. Its own `.metadata` would be a pickle.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from chatbench.errors import EnvironmentFault, IntegrityError, LostError
from chatbench.model.reading import shown
from chatbench.model.weights import READABLE, Deferred, Entry, read_entry, read_file, write_file
from chatbench.storage import FileEntry, disk_errors, durable, fsync_folder

_NOTE, _OFFSETS = "DCP_SHARDING_INFO", "saved_offsets"
_LOOK = 0.02
# What another machine wrote may be seen some seconds later.
_NETWORK = 30.0


class Part(NamedTuple):
    """What one of `size` ranks holds: rows of tensors by name, and the row each begins with. What
    is no table of rows is the same on all ranks."""

    rank: int
    size: int
    tensors: dict[str, Tensor]
    begins: dict[str, int]


def write_part(folder: Path, part: Part) -> dict[str, FileEntry]:
    """Write one rank's file, durably; its name and what a manifest says of it.

    Raises EnvironmentFault.
    """
    held = {
        name: tensor
        for name, tensor in part.tensors.items()
        if (len(tensor) if tensor.ndim else part.rank == 0)
    }
    offsets = {
        name: {_OFFSETS: [part.begins[name], *[0] * (tensor.ndim - 1)] if tensor.ndim else []}
        for name, tensor in held.items()
    }
    path = folder / f"shard-{part.rank + 1:05d}-model-00001-of-00001.safetensors"
    write_file(path, held, notes={_NOTE: json.dumps(offsets)})
    with disk_errors(path):
        entry = durable(path)
        fsync_folder(folder)
    return {path.name: entry}


class Parts(Mapping[str, Tensor]):
    """Whole tensors from the files of all ranks, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises IntegrityError where the parts do not fit together."""
        pieces: dict[str, list[tuple[int, Entry]]] = defaultdict(list)
        for path in sorted(folder.glob("*.safetensors")):
            stored = read_file(path)
            offsets = _offsets(path, stored.notes)
            for name, entry in stored.items():
                pieces[name].append((_begin(entry, name, offsets.get(name)), entry))
        self._pieces = {
            name: _fitting(folder, name, sorted(found, key=lambda piece: piece[0]))
            for name, found in sorted(pieces.items())
        }

    def __getitem__(self, name: str) -> Tensor:
        found = [read_entry(entry) for entry in self._pieces[name]]
        return torch.cat(found) if len(found) > 1 else found[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def chosen(self, *, memory: bool) -> Parts:
        """What optimisers remember (`parameter/quantity`), or the parameters themselves."""
        some = object.__new__(Parts)
        some._pieces = {n: p for n, p in self._pieces.items() if ("/" in n) == memory}
        return some

    def deferred(self) -> dict[str, Deferred]:
        """The same, to be written elsewhere one by one."""
        return {
            name: Deferred(
                torch.Size((sum(e.shape[0] for e in entries), *entries[0].shape[1:]))
                if entries[0].shape else torch.Size(()),
                READABLE[entries[0].dtype],
                partial(self.__getitem__, name),
            )
            for name, entries in self._pieces.items()
        }  # fmt: skip


def _offsets(path: Path, notes: Mapping[str, str]) -> dict[str, Any]:
    try:
        return msgspec.json.decode(notes.get(_NOTE, ""), type=dict[str, dict[str, list[int]]])
    except (msgspec.DecodeError, RecursionError) as error:
        raise IntegrityError(f"{path} does not say where its parts belong: {error}") from error


def _begin(entry: Entry, name: str, said: dict[str, list[int]] | None) -> int:
    """The row that a part begins with."""
    offsets = (said or {}).get(_OFFSETS)
    if offsets is None or len(offsets) != len(entry.shape) or any(offsets[1:]):
        raise IntegrityError(f"{entry.path} does not say which rows of {shown(name)} it holds")
    return offsets[0] if offsets else 0


def _fitting(folder: Path, name: str, pieces: list[tuple[int, Entry]]) -> list[Entry]:
    """Pieces in their order, if they are a tensor without gaps. Of equals one is enough."""
    first = pieces[0][1]
    entries: list[Entry] = []
    rows = 0
    for begin, entry in pieces:
        alike = (entry.dtype, entry.shape[1:]) == (first.dtype, first.shape[1:])
        if not alike or entry.dtype not in READABLE or begin != rows:
            raise IntegrityError(f"{folder} does not hold {shown(name)} whole")
        entries.append(entry)
        rows += entry.shape[0] if entry.shape else 0
        if not entry.shape:
            break
    return entries


class Written(msgspec.Struct, frozen=True):
    """What a rank tells the first of its file."""

    files: dict[str, FileEntry]


class Meeting:
    """How the ranks write one checkpoint after the other, while they train: words go through the
    store alone, which threads may use. Who waits for a rank that died is ended by the watch."""

    def __init__(self, store: Any) -> None:
        """`store` is this object's own connection."""
        self._store = store
        self._over = threading.Event()

    def give_up(self) -> None:
        """Whoever waits here waits no longer, and fails."""
        self._over.set()

    def lead(self, number: int, folder: Path, part: Part) -> dict[str, FileEntry]:
        """By rank 0, in checkpoint `number`: write its part and wait for the others', durable all.

        Raises IntegrityError where another's file is not what it says.
        """
        folder.mkdir(exist_ok=True)
        self._store.set(f"{number}/place", str(folder.absolute()))
        files = write_part(folder, part)
        for rank in range(1, part.size):
            files |= msgspec.json.decode(self._word(f"{number}/{rank}"), type=Written).files
        for name, entry in files.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != entry.bytes:
                raise IntegrityError(f"{path} is not what the rank that wrote it says")
        return files

    def follow(self, number: int, part: Part) -> None:
        """By the others: write this rank's part to where rank 0 says. Raises EnvironmentFault."""
        folder = Path(self._word(f"{number}/place").decode())
        until = time.monotonic() + _NETWORK
        while not folder.is_dir():
            if time.monotonic() > until:
                raise not_shared(part.rank, folder)
            time.sleep(_LOOK)
        written = Written(write_part(folder, part))
        self._store.set(f"{number}/{part.rank}", msgspec.json.encode(written).decode())

    def _word(self, key: str) -> bytes:
        while not self._store.check([key]):
            if self._over.wait(_LOOK):
                raise LostError("the other ranks are lost, and so is the checkpoint begun")
        said: bytes = self._store.get(key)
        return said


def not_shared(rank: int, folder: Path) -> EnvironmentFault:
    """What to say when a rank cannot write where rank 0 does."""
    return EnvironmentFault(
        f"rank {rank} does not see {folder}, where every rank writes its part of a checkpoint",
        hint="give all machines a file system that they share, or use --parallel ddp",
    )
