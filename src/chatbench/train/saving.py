"""Checkpoints written by a thread while training goes on: copying is the only pause."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from torch import Tensor

from chatbench.errors import UserError

# How long a run that is left at once waits for a write: a thread inside a library, cut off by the
# end of the interpreter, may bring the process down with a signal.
_LAST_WAIT = 2.0


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host that later steps do not touch."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


class Saver:
    """One write at a time, in the order given; what went wrong is raised where training is.

    Leaving the context waits for the write, but not for long after a KeyboardInterrupt. After an
    error of the program, such as losing the other ranks, `give_up` tells it to wait for nobody.
    """

    def __init__(self, give_up: Callable[[], None] | None = None) -> None:
        self._give_up = give_up
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.seconds: float | None = None
        """What the newest write took, start to end; None before the first."""

    def start(self, write: Callable[[], object]) -> None:
        """Call `write` in the thread, once the write before has ended; raises what that raised."""
        self.wait()
        self._thread = threading.Thread(
            target=self._run, args=(write,), name="checkpoint", daemon=True
        )
        self._thread.start()

    def _run(self, write: Callable[[], object]) -> None:
        begun = time.monotonic()
        try:
            write()
        except BaseException as error:
            self._error = error
        self.seconds = time.monotonic() - begun

    def check(self) -> None:
        """Raise what a write raised, if it has ended."""
        if self._thread is None or self._thread.is_alive():
            return
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Until nothing is being written; raises what the write raised."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._give_up is not None and not isinstance(error, UserError | None):
            self._give_up()
        if self._thread is not None:
            self._thread.join(_LAST_WAIT if isinstance(error, KeyboardInterrupt) else None)
        if error is None:
            self.check()
