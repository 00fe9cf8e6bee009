"""Tensors in safetensors files: headers judged before anything is read, tensors read one by one.

Format: 8 bytes of header length N, little-endian; N bytes of JSON, name → dtype, shape, offsets;
then the numbers, without gaps (github.com/huggingface/safetensors). Large models lie in several
files, with an index of name → file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from chatbench.errors import EnvironmentFault, IntegrityError
from chatbench.model.reading import file_size, open_regular, parse_object, read_object, shown
from chatbench.model.unreadable import FIRST_BYTES, find_unreadable, name_content
from chatbench.storage import disk_errors, write_json

WEIGHTS = "model.safetensors"
INDEX = ".index.json"

# The format allows 100 MB, whose parsing takes many seconds; a large dense model has some thousand
# tensors, of 150 bytes each in the header.
LARGEST_HEADER = 4_000_000
_LARGEST_INDEX = 16_000_000
_MOST_SHARDS = 10_000
_MOST_DIMENSIONS = 8
LARGEST_SHARD = 5_000_000_000
_REPAIR = "restore it from a copy or make it again"
_NO_OTHERS = "other weight files, pickles above all, are not read"

READABLE = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16,
            "BF16": torch.bfloat16}  # fmt: skip
_NAMES = {dtype: name for name, dtype in READABLE.items()}
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64), **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ",
                     "F8_E5M2FNUZ"), 8),
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


class Entry(NamedTuple):
    """Where a tensor lies: `size` bytes from byte `start` of `path`."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class Deferred(NamedTuple):
    """A tensor that is read when it is written elsewhere."""

    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def numel(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


class StoredWeights(Mapping[str, Entry]):
    """Entries by name; `read` reads them. `notes`: what the header of one file says besides."""

    def __init__(self, entries: dict[str, Entry], notes: dict[str, str] | None = None) -> None:
        self._entries = entries
        self.notes = notes or {}

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def elements(self) -> int:
        """Numbers in all tensors together."""
        return sum(math.prod(entry.shape) for entry in self.values())

    def skeleton(self) -> dict[str, Tensor]:
        """Tensors without memory, of the stored shapes and dtypes. What is stored in a form that
        is not read as weights comes as bytes."""
        return {
            name: torch.empty(e.shape, dtype=READABLE.get(e.dtype, torch.uint8), device="meta")
            for name, e in self.items()
        }

    def each(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of floating-point numbers, in `dtype` (default: as stored), on `device`;
        F64, F32, F16 and BF16, no others.

        None is held here once it is given. Raises IntegrityError when a file shrank,
        EnvironmentFault without memory for all.
        """
        wanted = {name: e for name, e in self.items() if e.dtype in READABLE}
        _require_memory(wanted, dtype, torch.device(device))
        for path in sorted({entry.path for entry in wanted.values()}):
            inside = [(entry, name) for name, entry in wanted.items() if entry.path == path]
            with open_regular(path) as handle:
                for entry, name in sorted(inside, key=lambda item: item[0].start):
                    yield name, _read_tensor(handle, entry).to(device, dtype)

    def read(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """All that `each` gives. Beside the result no more than one tensor is held."""
        return dict(self.each(dtype, device))


def _require_memory(
    wanted: Mapping[str, Entry], dtype: torch.dtype | None, device: torch.device
) -> None:
    """Raises EnvironmentFault for more than the machine has: the system would kill us later."""
    if device.type != "cpu":
        return
    needed = sum(
        math.prod(e.shape) * (dtype or READABLE[e.dtype]).itemsize for e in wanted.values()
    )
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise EnvironmentFault(
            f"the weights take {needed / 1e9:.1f} GB, this machine has {there / 1e9:.1f} GB",
            hint="choose a smaller model",
        )


def read_entry(entry: Entry) -> Tensor:
    """One tensor as it is stored, of a dtype in `READABLE`. Raises as `each` does."""
    with open_regular(entry.path) as handle:
        return _read_tensor(handle, entry)


def _read_tensor(handle: BinaryIO, entry: Entry) -> Tensor:
    try:
        raw = torch.empty(entry.size, dtype=torch.uint8)
    except RuntimeError as error:  # torch has no class of its own for this
        raise EnvironmentFault(
            f"no memory for {entry.size:,} bytes of {entry.path}", hint="choose a smaller model"
        ) from error
    handle.seek(entry.start)
    # Read, not mapped: a file that shrinks under a mapping kills the process.
    view, filled = _bytes_of(raw), 0
    while filled < entry.size:
        got = handle.readinto(view[filled:])  # type: ignore[attr-defined]
        if not got:
            raise IntegrityError(f"{entry.path} became shorter while it was read", hint="try again")
        filled += got
    return raw.view(READABLE[entry.dtype]).reshape(entry.shape)


def _bytes_of(raw: Tensor) -> memoryview:
    """The memory of a tensor of bytes."""
    numbers: Any = raw.numpy()
    return memoryview(numbers)


def read_file(path: Path) -> StoredWeights:
    """The entries of one safetensors file.

    Raises FileNotFoundError, EnvironmentFault (not ours to read), IntegrityError (anything but a
    whole, honest file, by its header; the numbers are not looked at).
    """
    with open_regular(path) as handle:
        size = file_size(handle)
        start = handle.read(FIRST_BYTES)
        length = int.from_bytes(start[:8], "little")
        if start[8:9] != b"{" or length > size - 8:
            _refuse_content(path, start)
        if length > LARGEST_HEADER:
            raise _damaged(path, f"a header of {length:,} bytes, {LARGEST_HEADER:,} is the most")
        handle.seek(8)
        header = handle.read(length)
    try:
        if len(header) != length:
            raise ValueError("it became shorter while it was read")
        said = parse_object(header)
        notes = said.pop("__metadata__", {})
        if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
            raise ValueError("its __metadata__ is not a table of texts")
        return StoredWeights(_entries(path, said, 8 + length, size), notes)
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _refuse_content(path: Path, start: bytes) -> None:
    found = name_content(start)
    if found is None:
        raise _damaged(path, "it does not begin with a header of its size")
    what, hint = found
    raise IntegrityError(f"{path} is {what}", hint=hint)


def _damaged(path: Path, why: str) -> IntegrityError:
    return IntegrityError(f"{path} is damaged: {why}", hint=_REPAIR)


def _entries(path: Path, header: dict[str, Any], first: int, size: int) -> dict[str, Entry]:
    """Raises ValueError for anything that the format does not allow."""
    entries = {name: _entry(path, name, value, first) for name, value in header.items()}
    # The numbers lie without gaps, overlaps and rests: nothing can hide between them.
    borders = [first]
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start != borders[-1]:
            raise ValueError(f"{shown(name)} does not begin where the tensor before it ends")
        borders.append(entry.start + entry.size)
    if borders[-1] != size:
        raise ValueError(f"its tensors end at byte {borders[-1]:,} of {size:,}")
    return entries


def _entry(path: Path, name: str, value: object, first: int) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown(name)} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{shown(name)} has the unknown dtype {shown(dtype)}")
    # Zeros must not hide what would overflow elsewhere.
    if not _sizes(shape) or math.prod(n or 1 for n in shape) >= 1 << 62:
        raise ValueError(f"{shown(name)} has the shape {shown(str(shape))}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{shown(name)} has the offsets {shown(str(offsets))}")
    begin, end = offsets
    if math.prod(shape) * _BITS[dtype] != 8 * (end - begin):
        raise ValueError(f"{shown(name)} has {end - begin} bytes for {shown(str(shape))} {dtype}")
    return Entry(path, dtype, tuple(shape), first + begin, end - begin)


def _sizes(value: object) -> bool:
    """Whether these are sizes that a machine can have; True is no size."""
    return (
        isinstance(value, list)
        and len(value) <= _MOST_DIMENSIONS
        and all(type(n) is int and 0 <= n < 1 << 62 for n in value)
    )


def open_weights(folder: Path, name: str = WEIGHTS) -> StoredWeights:
    """The entries of a folder's weights, in one file `name` or in several with an index.

    Raises IntegrityError (none there, damaged, hostile), EnvironmentFault (not ours to read).
    """
    if os.path.lexists(folder / name):
        return read_file(_inside(folder, name))
    index = folder / (name + INDEX)
    if not os.path.lexists(index):
        raise find_unreadable(folder) or IntegrityError(f"{folder} has no {name}", hint=_NO_OTHERS)
    placed = _read_index(index)
    entries: dict[str, Entry] = {}
    for shard in sorted(set(placed.values())):
        try:
            inside = read_file(_inside(folder, shard))
        except FileNotFoundError:
            raise IntegrityError(f"{folder} has no {shard}, which {index.name} names") from None
        for tensor, entry in inside.items():
            if placed.get(tensor) != shard:
                said = placed.get(tensor)
                where = "does not name it" if said is None else f"says it lies in {said}"
                raise IntegrityError(f"{shard} holds {shown(tensor)}, but {index.name} {where}")
            entries[tensor] = entry
    lost = min(placed.keys() - entries.keys(), default=None)
    if lost is not None:
        raise IntegrityError(f"{folder / placed[lost]} does not hold {shown(lost)}", hint=_REPAIR)
    return StoredWeights(entries)


def _read_index(path: Path) -> dict[str, str]:
    """Tensor → shard, every shard a plain file name. Raises IntegrityError."""
    placed = read_object(path, _LARGEST_INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise IntegrityError(f"{path} has no weight_map")
    shards = {str(shard) if isinstance(shard, str) else None for shard in placed.values()}
    for shard in shards:
        if shard is None or not _is_plain(shard):
            raise IntegrityError(
                f"{path} names {shown(shard)}, which is no safetensors file of this folder",
                hint="do not use this model: such an index is not made by accident",
            )
    if len(shards) > _MOST_SHARDS:
        raise IntegrityError(f"{path} names {len(shards):,} files, {_MOST_SHARDS:,} are the most")
    return placed


def _is_plain(name: str) -> bool:
    return (
        name.endswith(".safetensors")
        and name.isprintable()
        and not any(character in name for character in "/\\:")
        and not name.startswith(".")
        and len(os.fsencode(name)) < 256
    )


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder. Raises IntegrityError for a link that leads out of it, unless into
    the blobs of the cache of huggingface_hub, whose snapshots are made of such links."""
    path = folder / name
    try:
        real, home = path.resolve(), folder.resolve()
    except (RuntimeError, OSError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise IntegrityError(f"{path} is not a file: its links lead nowhere") from error
    blobs = home.parent.parent / "blobs"
    cached = home.parent.name == "snapshots" and real.is_relative_to(blobs)
    if path.is_symlink() and real.parent != home and not cached:
        raise IntegrityError(
            f"{path} is a link that leads out of its folder, so it is not followed",
            hint=f"put a copy of {real.name} there",
        )
    return path


def write_weights(
    folder: Path, weights: Mapping[str, Tensor | Deferred], *, dtype: torch.dtype | None = None,
    largest_shard: int = LARGEST_SHARD, name: str = WEIGHTS,
) -> None:  # fmt: skip
    """Write floating-point tensors, in `dtype` (default: each in its own), in files of at most
    `largest_shard` bytes of numbers (one tensor at least), with an index where there are several.

    The same tensors give the same bytes. Beside them no more than one tensor is held.
    Raises EnvironmentFault.
    """
    sizes = {t: w.numel() * (dtype or w.dtype).itemsize for t, w in sorted(weights.items())}
    shards: list[list[str]] = [[]]
    room = largest_shard
    for tensor, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = largest_shard
        shards[-1].append(tensor)
        room -= size
    if len(shards) == 1:
        write_file(folder / name, {t: weights[t] for t in sizes}, dtype)
        return
    stem = name.removesuffix(".safetensors")
    placed: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, {t: weights[t] for t in shard}, dtype)
        placed |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": placed}
    write_json(folder / (name + INDEX), index)


def write_file(
    path: Path, weights: Mapping[str, Tensor | Deferred], dtype: torch.dtype | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """One file of floating-point tensors, with `notes` in its header; as `write_weights`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(notes or {})}}
    end = 0
    for name, weight in weights.items():
        kind = dtype or weight.dtype
        begin, end = end, end + weight.numel() * kind.itemsize
        header[name] = {
            "dtype": _NAMES[kind], "shape": list(weight.shape), "data_offsets": [begin, end],
        }  # fmt: skip
    spelled = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    spelled += b" " * (-len(spelled) % 8)  # numbers begin at a multiple of 8
    with disk_errors(path), open(path, "wb") as handle:
        handle.write(len(spelled).to_bytes(8, "little") + spelled)
        for weight in weights.values():
            there = weight.read() if isinstance(weight, Deferred) else weight
            plain = there.detach().to("cpu", dtype).contiguous()
            handle.write(_bytes_of(plain.reshape(-1).view(torch.uint8)))
