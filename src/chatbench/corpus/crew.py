"""A crew of worker processes that run named tasks on files; results come back in order.

Each worker is this module run by a fresh interpreter. Requests and answers are length-prefixed
MessagePack on its stdin and stdout, so nothing is pickled. A worker ends itself at once when its
stdin closes, that is when the program that hired it has died, however it died.
"""

from __future__ import annotations

import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import IO, Any

import msgspec

from chatbench import console, errors
from chatbench.errors import EnvironmentFault, UserError

_HEADER = 8


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WorkerLost(EnvironmentFault):
    """A worker process ended before its work did."""


class Crew:
    """`size` workers, hired when the first task for more than one comes. A context manager."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.wait()
            for pipe in (worker.stdin, worker.stdout):
                assert pipe is not None
                with suppress(OSError):  # what a dead worker did not take
                    pipe.close()

    def hire(self) -> None:
        """Start the workers before the first task, while there is something else to do."""
        if self.size > 1:
            self._hire(self.size)

    def run(self, task: str, job: str, arguments: Iterable[object]) -> Iterator[Any]:
        """`task` ("module:function") of (job, argument) for each argument; results in order.

        With one worker or one argument it runs here. Arguments and results are what MessagePack
        can hold. Raises the UserError a task raised; EnvironmentFault when a worker is killed.
        """
        todo = list(arguments)
        if self.size == 1 or len(todo) <= 1:
            for argument in todo:
                yield perform(task, os.fsencode(job), _plain(argument))
            return
        self._hire(min(self.size, len(todo)))
        yield from self._in_order(task, job, todo)

    def _hire(self, count: int) -> None:
        while len(self._workers) < count:
            environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", console.WORKER: "1"}
            self._workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "chatbench.corpus.crew"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                )
            )

    def _in_order(self, task: str, job: str, todo: list[object]) -> Iterator[Any]:
        done: dict[int, Any] = {}
        busy: dict[int, int] = {}
        upcoming = iter(enumerate(todo))
        with selectors.DefaultSelector() as waiting:

            def give(place: int) -> None:
                number, argument = next(upcoming, (-1, None))
                if number >= 0:
                    self._send(place, (task, os.fsencode(job), argument))
                    busy[place] = number

            for place, worker in enumerate(self._workers):
                assert worker.stdout is not None
                waiting.register(worker.stdout, selectors.EVENT_READ, place)
                give(place)
            for wanted in range(len(todo)):
                while wanted not in done:
                    for key, _ in waiting.select():
                        done[busy.pop(key.data)] = self._receive(key.data)
                        give(key.data)
                yield done.pop(wanted)

    def _send(self, place: int, request: object) -> None:
        pipe = self._workers[place].stdin
        assert pipe is not None
        try:
            _write(pipe, msgspec.msgpack.encode(request))
        except BrokenPipeError as error:
            raise self._lost(place) from error

    def _receive(self, place: int) -> Any:
        pipe = self._workers[place].stdout
        assert pipe is not None
        answer = _read(pipe)
        if answer is None:
            raise self._lost(place)
        kind, *rest = msgspec.msgpack.decode(answer)
        if kind == "done":
            return rest[0]
        if kind == "user":
            raise _revived(*rest)
        raise RuntimeError(f"a worker failed:\n{rest[0]}")

    def _lost(self, place: int) -> WorkerLost:
        code = self._workers[place].wait()
        why = f"signal {-code}" if code < 0 else f"exit code {code}"
        return WorkerLost(
            f"a worker process ended early ({why}), perhaps for lack of memory",
            hint="run the same command again, with fewer --workers",
        )


def perform(task: str, job: bytes, argument: Any) -> Any:
    """Run a task by name; `job` is a path, which need not be UTF-8."""
    module, _, name = task.partition(":")
    return _plain(getattr(import_module(module), name)(os.fsdecode(job), argument))


def _plain(value: object) -> Any:
    """What the value looks like after a trip through MessagePack, so that runs here and in a
    worker are the same."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value))


def _revived(kind: str, message: str, hint: str | None) -> UserError:
    return getattr(errors, kind)(message, hint=hint)  # type: ignore[no-any-return]


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(_HEADER, "little") + data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes | None:
    header = pipe.read(_HEADER)
    if len(header) < _HEADER:
        return None
    return pipe.read(int.from_bytes(header, "little"))


def _answer(request: bytes) -> bytes:
    task, job, argument = msgspec.msgpack.decode(request)
    try:
        answer: tuple[object, ...] = ("done", perform(task, job, argument))
    except UserError as error:
        answer = ("user", type(error).__name__, error.message, error.hint)
    except MemoryError:
        answer = ("user", "EnvironmentFault", "a worker has no memory left", "try fewer --workers")
    except OSError as error:
        if error.errno is None:
            answer = ("bug", traceback.format_exc())
        else:
            place = error.filename or "the work folder"
            what = f"{error.strerror}: {os.fsencode(place).decode(errors='backslashreplace')}"
            answer = ("user", "EnvironmentFault", what, "make room or choose another place")
    except Exception:
        answer = ("bug", traceback.format_exc())
    return msgspec.msgpack.encode(answer)


def serve() -> None:
    """A worker's life: answer requests until stdin closes."""
    # Ctrl-C reaches the whole process group; the program that hired us decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def listen() -> None:
        while (request := _read(sys.stdin.buffer)) is not None:
            requests.put(request)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        _write(answers, _answer(requests.get()))


if __name__ == "__main__":
    serve()
