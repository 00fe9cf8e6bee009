"""Tasks for the crew's tests, found by name in the workers."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

from chatbench.errors import DataError


def slow_square(job: str, number: int) -> tuple[str, int]:
    time.sleep(0.05 if number % 3 == 0 else 0)
    return job, number * number


def process(job: str, number: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def mistaken(job: str, number: int) -> int:
    if number == 1:
        raise DataError("row 1 is bad", hint="mend it")
    return number


def broken(job: str, number: int) -> float:
    return 1 / number


def suicidal(job: str, number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def talkative(job: str, number: int) -> int:
    print("noise on stdout")
    return number


def note_and_sleep(job: str, number: int) -> None:
    Path(job, str(os.getpid())).touch()
    time.sleep(60)


def out_of_room(job: str, number: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some.file")


def name_of(job: str, number: int) -> str:
    return repr(job)
