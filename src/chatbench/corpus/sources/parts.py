"""Input files → parts of even size that workers can read on their own.

A part is many small files or a piece of a big one. Parts depend on the files alone, never on the
number of workers, so neither does the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import msgspec

from chatbench.corpus.formats import sniff
from chatbench.corpus.sources.blob import Blob, ReadOptions
from chatbench.corpus.sources.compression import DamagedInput
from chatbench.corpus.sources.encodings import sample
from chatbench.corpus.sources.inputs import Input

PART_BYTES = 1 << 23
PART_FILES = 2000
_HEAD = 1 << 16
_BLOCK = 1 << 20
_SHARED_FORMATS = {"jsonl": b"\n", "text": b"\n\n"}


class Slice(msgspec.Struct, frozen=True):
    """Bytes start .. end of a file (to its end when `end` is 0); `source` is the file's number.
    `form` and `codec` are those of the whole file, so that a piece is not judged by itself."""

    path: bytes
    name: str
    source: int
    size: int
    mtime_ns: int
    start: int = 0
    end: int = 0
    first_line: int = 1
    form: str = ""
    codec: str = ""

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.end == 0


def plan_parts(inputs: Sequence[Input], options: ReadOptions) -> Iterator[list[Slice]]:
    """The parts, in the order of the inputs."""
    part: list[Slice] = []
    size = 0
    for number, found in enumerate(inputs):
        slices = _slices(found, number, options)
        if len(slices) > 1:
            if part:
                yield part
                part, size = [], 0
            yield from ([piece] for piece in slices)
            continue
        part += slices
        size += found.bytes
        if size >= PART_BYTES or len(part) >= PART_FILES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _slices(found: Input, number: int, options: ReadOptions) -> list[Slice]:
    whole = Slice(bytes(found.path), found.name, number, found.bytes, found.mtime_ns)
    if found.bytes < 2 * PART_BYTES:
        return [whole]
    try:
        with open(found.path, "rb") as handle:
            head = sample(Blob(found.name, handle, found.path), _HEAD)
    except (OSError, DamagedInput):
        return [whole]  # reading it will say why
    form, codec = sniff(head, found.name, options)
    if form not in _SHARED_FORMATS or codec not in ("utf-8", "ascii"):
        return [whole]
    cuts = [0, *_cuts(found.path, found.bytes, _SHARED_FORMATS[form]), found.bytes]
    slices = []
    line = 1
    with open(found.path, "rb") as handle:
        for start, end in pairwise(cuts):
            slices.append(
                msgspec.structs.replace(
                    whole, start=start, end=end, first_line=line, form=form, codec=codec
                )
            )
            line += _count_lines(handle, end - start, cr_ends=form != "jsonl")
    return slices


def _cuts(path: Path, size: int, separator: bytes) -> Iterator[int]:
    """About every PART_BYTES, just after a separator; none where there is none for long."""
    with open(path, "rb") as handle:
        target = PART_BYTES
        while target < size - PART_BYTES // 2:
            handle.seek(target)
            place = handle.read(_BLOCK).find(separator)
            if place >= 0:
                yield target + place + len(separator)
            target += PART_BYTES


def _count_lines(handle: BinaryIO, length: int, *, cr_ends: bool) -> int:
    """Line ends, as the readers count them: LF, CRLF and, where `cr_ends`, CR alone."""
    lines = 0
    before = b""
    while length > 0:
        block = handle.read(min(_BLOCK, length))
        if not block:
            break
        lines += block.count(b"\n")
        if cr_ends:
            lines += block.count(b"\r") - (before + block).count(b"\r\n")
        before = block[-1:].replace(b"\n", b"")
        length -= len(block)
    return lines
