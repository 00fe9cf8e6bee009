"""A file of replies that only grows, and that knows after any end which ids it holds."""

from __future__ import annotations

import fcntl
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from chatbench.chat.asking import identity
from chatbench.errors import DataError, InUseError, UsageError
from chatbench.storage import disk_errors

# A crash of the machine, not of the program, loses at most the replies of this time.
_SYNC_SECONDS = 1.0
_BEGINNING = b'{"id":'


class _Reply(msgspec.Struct):
    """What is looked at in a line; several samples of one prompt are lines `index` of `n`."""

    id: Any
    error: str | None = None
    index: int = 0
    n: int = 1


class ReplyFile:
    """Replies as JSON Lines in `path`.

    `held` counts the replies to each id (by `identity`) that were there, `faults` are the ids with
    an error among them. With `resume` a torn end is cut off: a line without its end, or samples of
    one prompt that are not complete. Raises UsageError when there is something and `resume` is not
    given, DataError when it is no file of replies, InUseError, EnvironmentFault.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.held: Counter[bytes] = Counter()
        self.faults: set[bytes] = set()
        self._path = path
        self._synced = time.monotonic()
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a file", hint="name one, or leave --out out")
        with disk_errors(path):
            self._handle = open(path, "a+b", buffering=0)  # noqa: SIM115  (closed by close())
        try:
            self._lock()
            if os.fstat(self._handle.fileno()).st_size and not resume:
                raise UsageError(
                    f"{path} is there already", hint="go on with it by --resume, or name another"
                )
            with disk_errors(path):
                self._handle.truncate(self._read())
        except BaseException:
            self._handle.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InUseError(
                f"{self._path} is being written by another process", hint="wait for its end"
            ) from None

    def _read(self) -> int:
        """Take note of all whole replies; the number of bytes they fill."""
        good = end = 0
        with open(self._path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    if line[: len(_BEGINNING)] != _BEGINNING[: len(line)]:
                        raise self._strange(number, "no reply")
                    break
                end += len(line)
                try:
                    reply = msgspec.json.decode(line, type=_Reply)
                except (ValueError, RecursionError) as error:
                    raise self._strange(number, str(error)) from error
                if reply.index + 1 >= reply.n:
                    self.held[identity(reply.id)] += 1
                    good = end
                if reply.error is not None:
                    self.faults.add(identity(reply.id))
        return good

    def _strange(self, number: int, why: str) -> DataError:
        return DataError(
            f"line {number} of {self._path} is not one of our replies ({why})",
            hint="nothing was changed; name another file",
        )

    def write(self, lines: str) -> None:
        """Append whole lines."""
        data = memoryview(lines.encode())
        with disk_errors(self._path):
            while data:
                data = data[self._handle.write(data) :]
            if time.monotonic() - self._synced >= _SYNC_SECONDS:
                os.fsync(self._handle.fileno())
                self._synced = time.monotonic()

    def close(self) -> None:
        """Make everything durable."""
        with disk_errors(self._path):
            os.fsync(self._handle.fileno())
        self._handle.close()
