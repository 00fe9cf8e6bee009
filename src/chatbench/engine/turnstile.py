"""One user of the engine at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turnstile:
    """A lock that other threads wait at. A thread that enters again, because it left a stream of
    its own half read, takes over from itself; the older pass then holds no more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._current: object | None = None

    def enter(self) -> object:
        """Wait for a pass."""
        mine = object()
        if self._thread != threading.get_ident():
            self._lock.acquire()
            self._thread = threading.get_ident()
        self._current = mine
        return mine

    def holds(self, mine: object) -> bool:
        """Whether this pass is still the one."""
        return self._current is mine

    def leave(self, mine: object) -> None:
        """Let the next one in; nothing when the pass was taken over."""
        if self.holds(mine):
            self._current = self._thread = None
            self._lock.release()

    @contextmanager
    def between(self) -> Iterator[None]:
        """Hold the lock for a moment, beside a pass of the same thread."""
        if self._thread == threading.get_ident():
            yield
            return
        mine = self.enter()
        try:
            yield
        finally:
            self.leave(mine)
