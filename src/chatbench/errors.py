"""A user's mistake is one sentence and one exit code; anything else is a bug with its trace."""

from __future__ import annotations

import re
from enum import IntEnum


class ExitCode(IntEnum):
    DONE = 0
    BUG = 1
    USAGE = 2
    DATA = 3
    INTEGRITY = 4
    ENVIRONMENT = 5
    IN_USE = 6
    DIVERGED = 7
    LOST = 8
    MISSED = 9
    STOPPED = 75
    INTERRUPTED = 130
    BROKEN_PIPE = 141


class UserError(Exception):
    """What went wrong, where and why, and in `hint` what to do next: shown as one line."""

    exit_code: ExitCode = ExitCode.USAGE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        line = self.message if self.hint is None else f"{self.message}; {self.hint}"
        return " ".join(line.split())


class UsageError(UserError):
    """A flag, a setting or a path that cannot be meant."""


class DataError(UserError):
    """Input that holds nothing to work with."""

    exit_code = ExitCode.DATA


class IntegrityError(UserError):
    """A file that is not what its folder says it is, or folders that do not belong together."""

    exit_code = ExitCode.INTEGRITY


class EnvironmentFault(UserError):
    """Disk, memory, permission or device."""

    exit_code = ExitCode.ENVIRONMENT


class InUseError(UserError):
    """Another process is writing to the same folder."""

    exit_code = ExitCode.IN_USE


class DivergedError(UserError):
    """Training left the finite numbers."""

    exit_code = ExitCode.DIVERGED


class LostError(UserError):
    """Another process of the same run is gone."""

    exit_code = ExitCode.LOST


class MissedError(UserError):
    """A result that is not what was required of it."""

    exit_code = ExitCode.MISSED


class Stopped(UserError):
    """Work ended early on request, saved and resumable."""

    def __init__(self, message: str, exit_code: ExitCode, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had, on the CPU or on a GPU: torch says so in words."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


_OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory", re.IGNORECASE)


def did_you_mean(name: str, known: list[str]) -> str:
    """A hint naming the closest known word, or the known words when there are few."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        leaves = {word.rsplit(".", 1)[-1]: word for word in known}
        close = [leaves[leaf] for leaf in get_close_matches(name.rsplit(".", 1)[-1], leaves, n=1)]
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(known)}" if len(known) <= 12 else "see --help"
