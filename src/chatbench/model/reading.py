"""Files from strangers are opened with care: regular ones only, of bounded size, JSON checked."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from chatbench.errors import EnvironmentFault, IntegrityError

_NOT_A_PATH = (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, unbuffered; never waits, as opening a FIFO would.

    Raises FileNotFoundError, IntegrityError (a FIFO, device, folder or loop of links),
    EnvironmentFault (not ours to read).
    """
    try:
        # Asked before as well: to open a device can already do something.
        _require_regular(path, os.stat(path))
        number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _NOT_A_PATH:
            raise IntegrityError(f"{path} is not a file: {os.strerror(error.errno)}") from error
        raise EnvironmentFault(
            f"cannot read {path}: {os.strerror(error.errno or 0)}", hint="check its permissions"
        ) from error
    try:
        _require_regular(path, os.fstat(number))
        return os.fdopen(number, "rb", buffering=0)
    except BaseException:
        os.close(number)
        raise


def _require_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise IntegrityError(f"{path} is not a regular file, so it is not opened")


def file_size(handle: BinaryIO) -> int:
    return os.fstat(handle.fileno()).st_size


def read_bounded(path: Path, limit: int) -> bytes:
    """All bytes of a regular file of at most `limit` bytes.

    Raises what `open_regular` raises, and IntegrityError for a larger file.
    """
    with open_regular(path) as handle:
        size = file_size(handle)
        if size > limit:
            raise IntegrityError(
                f"{path} has {size:,} bytes, {limit:,} is the most such a file can hold"
            )
        pieces = []
        while piece := handle.read(limit):  # one read may give less than there is
            pieces.append(piece)
            if sum(map(len, pieces)) > limit:
                raise IntegrityError(f"{path} grew while it was read")
        return b"".join(pieces)


def read_object(path: Path, limit: int) -> dict[str, Any]:
    """A JSON object of at most `limit` bytes, without NaN, infinities and doubled keys.

    Raises what `read_bounded` raises, and IntegrityError for anything else.
    """
    data = read_bounded(path, limit)
    try:
        return parse_object(data)
    except ValueError as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error


def parse_object(data: bytes) -> dict[str, Any]:
    """One JSON object. Raises ValueError, for too deep nesting too."""
    try:
        found = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_doubles,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds {_JSON_NAMES.get(type(found), 'a number')}, not an object")
    return found


_JSON_NAMES = {list: "an array", str: "a text", bool: "a truth value", type(None): "null"}


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shown(key)} stands there twice")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds the number {name}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("it holds a number beyond all bounds")
    return number


def shown(name: object, most: int = 80) -> str:
    """A name out of a file as a message may show it: quoted, escaped, cut."""
    text = repr(name[: most + 1] if isinstance(name, str) else name)
    return text if len(text) <= most + 2 else f"{text[:most]}…"
