"""Files on disk → blobs: decompressed, unpacked, and told apart from what is no text at all.

A plain file is one blob; gzip, zstd, bzip2 and xz are known by their first bytes, whatever the file
is called; zip and tar give a blob for each member, in the order of the members' names. Nothing is
extracted to disk under a name, nothing is held in memory whole, and nothing is unpickled.
"""

from __future__ import annotations

import io
import lzma
import os
import re
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from chatbench.corpus.document import Failure
from chatbench.corpus.sources.blob import Blob, ReadOptions
from chatbench.corpus.sources.compression import (
    BUFFER_BYTES,
    Budget,
    DamagedInput,
    Decompressed,
    Guarded,
    Stream,
    kind_of,
)
from chatbench.corpus.sources.encodings import detect
from chatbench.corpus.sources.inputs import Input, find_inputs, written

__all__ = ["DamagedInput", "Input", "find_inputs", "open_blobs", "written"]

_DEEPEST = 3
_HEAD_BYTES = 4096
_HELD_BYTES = 16 << 20
_SMALL_STEP = 256
# One bomb in an archive leaves the others readable; many together end it.
_FREE_IN_ARCHIVE = 1 << 30
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError,
    ValueError, IndexError, KeyError, struct.error,
)  # fmt: skip
_TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, IndexError, KeyError, OverflowError)
_NOT_TEXT = (
    (rb"%PDF-", "a PDF document: save it as text first"),
    (rb"\{\\rtf", "an RTF document: save it as plain text first"),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document: save it as text or CSV first"),
    (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*|RIFF....WEBP|8BPS\0\x01", "an image"),
    (rb"RIFF....(?:WAVE|AVI )|OggS\0|fLaC\0|ID3[\x02-\x04]\0|\0\0..ftyp|\x1a\x45\xdf\xa3",
     "sound or video"),
    (rb"\x7fELF|\xcf\xfa\xed\xfe|\xfe\xed\xfa[\xce\xcf]|\xca\xfe\xba\xbe|\0asm\x01|MZ.{58}..\0\0",
     "a program"),
    (rb"SQLite format 3\0", "an SQLite database: export its tables as CSV first"),
    (rb"GGUF[\x01-\x09]\0\0\0|.{5}\0\0\0\{[ \t\n]*\"", "the weights of a model"),
    (rb"\x89HDF\r\n|\x93NUMPY", "an array of numbers"),
    (rb"Obj\x01", "an Avro file: convert it to Parquet or JSON Lines first"),
    (rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|\x04\x22\x4d\x18|LZIP[\0\x01]|\x1f\x9d[\x80-\x90]",
     "an archive of a kind that is not read: unpack it first"),
    # Protocol 2 and later begin with their number, then an instruction that starts an object.
    (rb"\x80[\x02-\x05][\x8a\x95}\](c\x8c)XNKJG]", "a pickle, which is never opened"),
    (rb"wOF[F2][\0OT]", "a font"),
)  # fmt: skip
_MAGIC = [(re.compile(pattern, re.DOTALL), what) for pattern, what in _NOT_TEXT]
# Files that only a package of this kind has in its root.
_PACKAGES = (
    ("[Content_Types].xml", "an Office document: save it as text or CSV first"),
    ("META-INF/MANIFEST.MF", "a Java program"),
    ("AndroidManifest.xml", "an Android program"),
)


class _Place(NamedTuple):
    """Where a stream was met: what it is called, in how many containers, on whose account."""

    name: str
    depth: int
    root: Budget | None


class _File(io.FileIO):
    """A regular file whose read errors are DamagedInput "unreadable"."""

    def readinto(self, buffer: Any) -> int:
        try:
            return super().readinto(buffer) or 0
        except OSError as error:
            raise _unreadable(error) from error

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as error:
            raise _unreadable(error) from error


def _unreadable(error: OSError) -> DamagedInput:
    return DamagedInput("unreadable", error.strerror or str(error))


def open_blobs(path: Path, name: str, options: ReadOptions) -> Iterator[Blob | Failure]:
    """The logical files in the file at `path`, which people know as `name`.

    A blob's handle is open until the next one is asked for. Reading from it raises DamagedInput
    where a stream is cut off, corrupt, unreadable or a bomb (grown beyond 64 MiB and beyond
    `options.max_expansion` times its compressed size); what came before stays read. A file that
    cannot be opened, is no text, is encrypted or nested deeper than 3 is a Failure. Raises
    UsageError for zstd without its package.
    """
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(_opened(path))
            handle = stack.enter_context(_buffered(raw))
            yield from _Opener(options).open(handle, _Place(name, 0, None), path)
    except OSError as error:
        yield Failure(name, "unreadable", error.strerror or str(error))
    except DamagedInput as damage:
        yield Failure(name, damage.reason, damage.detail)


def _opened(path: Path) -> _File:
    # What was a file a moment ago may be a pipe now, and opening that would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is not a regular file")
    return _File(descriptor, "rb")


def _buffered(raw: io.RawIOBase) -> io.BufferedReader:
    return cast(io.BufferedReader, io.BufferedReader(raw, BUFFER_BYTES))


class _Opener:
    """Goes through containers inside containers."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options

    def open(
        self, handle: io.BufferedReader, place: _Place, path: Path | None = None
    ) -> Iterator[Blob | Failure]:
        """What is in a stream. Raises DamagedInput when its first bytes cannot be read."""
        head = handle.peek(_HEAD_BYTES)[:_HEAD_BYTES]
        kind = kind_of(head, place.name)
        is_zip = head.startswith((b"PK\x03\x04", b"PK\x05\x06"))
        read = self._zip if is_zip else self._tar if _is_tar(head) else None
        if (kind or read) and place.depth >= _DEEPEST:
            yield Failure(place.name, "nested too deep", f"more than {_DEEPEST} containers")
        elif kind is not None:
            budget = Budget(self._options.max_expansion, root=place.root)
            raw = Decompressed(handle, kind, budget)
            with raw, _buffered(raw) as inner:
                # A tar and its compression are one container to people.
                deeper = 0 if _is_tar(inner.peek(_HEAD_BYTES)) else 1
                yield from self.open(inner, _Place(place.name, place.depth + deeper, budget.root))
        elif read is not None and path is not None:
            yield from read(handle, place)
        elif read is not None:
            with tempfile.SpooledTemporaryFile(_HELD_BYTES) as spool:
                damage = _copy(handle, spool)
                yield from read(cast(IO[bytes], spool), place)
            if damage is not None:
                yield Failure(place.name, damage.reason, damage.detail)
        else:
            what = _no_text(head, place.name)
            if what is None:
                yield Blob(place.name, handle, path)
            else:
                yield Failure(place.name, "not text", f"it looks like {what}")

    def _zip(self, file: IO[bytes], place: _Place) -> Iterator[Blob | Failure]:
        size = file.seek(0, os.SEEK_END)
        try:
            archive = zipfile.ZipFile(file)
        except (*_ZIP_ERRORS, OSError) as error:  # OSError: a spoiled offset before the start
            yield Failure(place.name, "damaged zip", str(error))
            return
        with archive:
            what = _package(archive.namelist())
            if what is not None:
                yield Failure(place.name, "not text", f"it looks like {what}")
                return
            whole = Budget(self._options.max_expansion, size, place.root, free=_FREE_IN_ARCHIVE)
            named = [(_zip_name(info), info) for info in archive.infolist()]
            for raw, info in sorted(named, key=lambda entry: (entry[0], entry[1].header_offset)):
                name = f"{place.name}/{_name_text(raw)}"
                if info.is_dir() or _is_hidden(raw):
                    continue
                problem = _zip_problem(info)
                if problem is not None:
                    yield Failure(name, *problem)
                    continue
                consumed = min(info.compress_size, size)
                budget = Budget(self._options.max_expansion, consumed, place.root, whole)
                try:
                    member = archive.open(info)
                except (*_ZIP_ERRORS, OSError) as error:
                    yield Failure(name, "damaged zip", str(error))
                    continue
                # What other methods make of one step is not bounded by what is asked for.
                simple = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                step = BUFFER_BYTES if simple else _SMALL_STEP
                stream = Guarded(member, "damaged zip", _ZIP_ERRORS, budget, step)
                yield from self._member(stream, _Place(name, place.depth + 1, budget.root))

    def _tar(self, file: IO[bytes], place: _Place) -> Iterator[Blob | Failure]:
        members: list[tuple[bytes, int, int, str]] = []
        damage = _list_tar(file, members)
        for raw, start, size, problem in sorted(members):
            name = f"{place.name}/{_name_text(raw)}"
            if problem:
                yield Failure(name, "not a regular file", problem)
            else:
                stream = _Section(file, start, size)
                yield from self._member(stream, _Place(name, place.depth + 1, place.root))
        if damage:
            yield Failure(place.name, "damaged tar", damage)

    def _member(self, stream: Stream, place: _Place) -> Iterator[Blob | Failure]:
        with stream, _buffered(stream) as handle:
            try:
                yield from self.open(handle, place)
            except DamagedInput as damage:
                yield Failure(place.name, damage.reason, damage.detail)


class _Section(Stream):
    """Bytes start .. start + size of a tar file."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._at, self._end = file, start, start + size

    def _next(self, limit: int) -> bytes:
        if self._at >= self._end:
            return b""
        self._file.seek(self._at)
        piece = self._file.read(min(limit, self._end - self._at))
        if not piece:
            raise DamagedInput("damaged tar", "it is cut off")
        self._at += len(piece)
        return piece


def _copy(handle: io.BufferedReader, spool: Any) -> DamagedInput | None:
    """Copies up to the damage, if there is any, and returns that."""
    try:
        while block := handle.read1(BUFFER_BYTES):
            spool.write(block)
    except DamagedInput as damage:
        return damage
    return None


def _no_text(head: bytes, name: str) -> str | None:
    """What `head` looks like if it is neither text nor a form of data that is read."""
    if name.endswith((".pkl", ".pickle")):
        return "a pickle, which is never opened"
    return next((what for pattern, what in _MAGIC if pattern.match(head)), None)


def _package(names: list[str]) -> str | None:
    """What a zip is if its entries make up one document or program."""
    if names[:1] == ["mimetype"]:
        return "an OpenDocument or e-book file: save it as text or CSV first"
    for mark, what in _PACKAGES:
        if mark in names:
            return what
    pickled = any(name.endswith("/data.pkl") for name in names)
    return "the weights of a model as a pickle, which is never opened" if pickled else None


def _zip_problem(info: zipfile.ZipInfo) -> tuple[str, str] | None:
    """The reason and detail of a member that is not read."""
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "not a regular file", "a link or device"
    if info.flag_bits & 1:
        return "encrypted", "unpack it with its password first"
    return None


def _zip_name(info: zipfile.ZipInfo) -> bytes:
    """The name as the archive has it."""
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace")


def _name_text(raw: bytes) -> str:
    """A member's name as people read it; older programs wrote names in the encoding of the day."""
    while raw.startswith(b"./"):
        raw = raw[2:]
    codec = detect(raw).codec
    return raw.decode(codec or "utf-8", errors="backslashreplace")


def _is_hidden(raw: bytes) -> bool:
    parts = [part for part in raw.split(b"/") if part not in (b"", b".", b"..")]
    return any(part.startswith(b".") or part == b"__MACOSX" for part in parts)


def _is_tar(head: bytes) -> bool:
    if len(head) < tarfile.BLOCKSIZE or not head[148:156].strip(b" \0").isdigit():
        return False
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return head[257:262] == b"ustar"
    return True


def _list_tar(file: IO[bytes], members: list[tuple[bytes, int, int, str]]) -> str:
    """Adds name, start, size and problem of each member that is not hidden; returns the damage."""
    file.seek(0)
    try:
        with tarfile.open(
            fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]
                raw = info.name.encode("utf-8", "surrogateescape")
                if not info.isdir() and not _is_hidden(raw):
                    problem = "" if info.isreg() else "a link or device"
                    problem = "a sparse file" if info.issparse() else problem
                    members.append((raw, info.offset_data, info.size, problem))
            end = archive.offset
    except _TAR_ERRORS as error:
        return str(error)
    except DamagedInput as error:
        return error.detail
    # The library takes a spoiled header for the end.
    file.seek(end)
    mark = file.read(tarfile.BLOCKSIZE)
    if not mark:
        return "it ends without an end mark, perhaps cut off"
    return f"bad header at byte {end}" if mark.strip(b"\0") else ""
