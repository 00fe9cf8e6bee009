"""Ctrl-C: in a pipe what is finished is written before the program ends; what only loads ends at
once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """While this is open, the first SIGINT only sets `asked`, which those look at who compute;
    the second one, or one during `waiting`, raises KeyboardInterrupt.

    A handler that is not Python's own (a SIGINT that is ignored, as under nohup) is left alone.
    """

    def __init__(self) -> None:
        self.asked = False
        self._waiting = False
        self._ours = False

    def __enter__(self) -> Interrupt:
        self._ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._ours:
            signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if again or self._waiting:
            raise KeyboardInterrupt

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Nothing is under way: an interrupt ends the wait at once."""
        self._waiting = True
        try:
            self.raise_if_asked()
            yield
        finally:
            self._waiting = False

    def raise_if_asked(self) -> None:
        if self.asked:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt in here, once, whatever it does outside. For what leaves
    nothing behind when it is broken off. A SIGINT that is ignored, and other threads, are left
    alone."""
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or before is None or before == signal.SIG_IGN:
        yield
        return
    inside = True

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal inside
        if inside:
            inside = False
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        inside = False
        signal.signal(signal.SIGINT, before)
