"""Whether the other ranks live and get on: heartbeats through the rendezvous store.

A rank that is killed, stopped or cut off beats no more; one that hangs beats, but its count stands
still. Collectives with such a rank would wait for many minutes, so a thread ends this process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from torch.distributed.distributed_c10d import Store

from chatbench.errors import ExitCode

_BEAT = 1.0
_SILENCE = 20.0
# Enough when a collective has failed already.
_SILENCE_AFTER_ERROR = 4.0
_FIRST_STEP = 1800.0
_SHORTEST_HANG = 25.0
_STEPS_OF_A_HANG = 10.0
_LAST_WORDS = 5.0


class Beat(NamedTuple):
    """What a rank says of itself: how often it has said so, how often it got on, and where."""

    number: int = 0
    moves: int = 0
    step: int = 0
    doing: str = "starting"


class Fault(NamedTuple):
    """Why a rank ended: its exit code, and for a user's mistake what to say."""

    rank: int
    step: int
    code: int
    words: str


class Seen(NamedTuple):
    """A beat, and since when its number and its count stand."""

    beat: Beat
    fresh: float
    moved: float


class Verdict(NamedTuple):
    """With what code this process ends; `words` when it is the one to say them."""

    code: int
    words: str | None


def judge(
    now: float, seen: dict[int, Seen], talked: float, *, rank: int, silence: float, longest: float
) -> Verdict | None:
    """What ails the run at `now` (seconds, as all times), if anything.

    `talked`: when the store last answered; `silence`: how long a rank or the store may say nothing;
    `longest`: seconds the longest step took, 0 before the first has ended.
    """
    step = seen[rank].beat.step
    again = "start the same command with --resume to go on from the last checkpoint"
    if now - talked > silence:
        return Verdict(ExitCode.LOST, f"rank 0, or the way to it, is lost at step {step}; {again}")
    dead = [r for r, what in seen.items() if r != rank and now - what.fresh > silence]
    if dead:
        at = max(seen[r].beat.step for r in dead)
        speaks = rank == min(seen.keys() - set(dead))
        words = f"{_ranks(dead)} died or froze at step {at}; {again}"
        return Verdict(ExitCode.LOST, words if speaks else None)
    if any(what.beat.doing != "training" for what in seen.values()):
        limit = _FIRST_STEP
    else:
        limit = max(_SHORTEST_HANG, _STEPS_OF_A_HANG * longest) if longest else _FIRST_STEP
    if all(now - what.moved > limit for what in seen.values()):
        fewest = min(what.beat.moves for what in seen.values())
        stuck = [r for r, what in seen.items() if what.beat.moves == fewest]
        at = seen[stuck[0]].beat.step
        words = f"{_ranks(stuck)} hung at step {at} for {limit:.0f} s; {again}"
        return Verdict(ExitCode.LOST, words if rank == 0 else None)
    return None


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


class Watch:
    """Beats for this rank, listens to the others, and ends this process when one is lost."""

    def __init__(
        self, store: Store, rank: int, size: int, leave: Callable[[Verdict], None]
    ) -> None:
        """`store` is this object's own connection; `leave` says the verdict and does not return."""
        self._store, self._rank, self._size, self._leave = store, rank, size, leave
        now = time.monotonic()
        self._beat = Beat()
        self._seen = {r: Seen(Beat(), now, now) for r in range(size)}
        self._talked = now
        self._marked = now
        self._longest = 0.0
        self._silence = _SILENCE
        self._over = threading.Event()
        for work in (self._talk, self._listen):
            threading.Thread(target=work, name="watch", daemon=True).start()

    def mark(self, step: int, doing: str) -> None:
        """This rank got on; called by the thread that trains."""
        now = time.monotonic()
        if self._beat.doing == doing == "training" and step > 1:
            # The first step compiles and finds its kernels.
            self._longest = max(self._longest, now - self._marked)
        self._marked = now
        self._beat = Beat(self._beat.number, self._beat.moves + 1, step, doing)

    def suspect(self) -> None:
        """A collective failed: wait for the verdict, which comes sooner now."""
        self._silence = _SILENCE_AFTER_ERROR
        time.sleep(_SILENCE_AFTER_ERROR + 2 * _BEAT + _LAST_WORDS)

    def confess(self, code: int, words: str) -> int | None:
        """Tell the others why this rank ends; the code of rank 0, when it ends as well."""
        fault = Fault(self._rank, self._beat.step, code, words)
        self._over.set()
        try:
            self._store.set(f"fault/{self._rank}", _json(fault))
            if self._rank == 0:
                # The store may live in this process, and the others still have to read it.
                self._await([f"gone/{rank}" for rank in range(1, self._size)])
                return code
            ends = self._await(["fault/0"])
            firsts = self._store.get("fault/0") if ends else None
            self._store.set(f"gone/{self._rank}", "")
            return msgspec.json.decode(firsts, type=Fault).code if firsts else None
        except RuntimeError:
            return None

    def _await(self, keys: list[str]) -> bool:
        until = time.monotonic() + _LAST_WORDS
        while not self._store.check(keys):
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def close(self) -> None:
        self._over.set()

    def _talk(self) -> None:
        number = 0
        while not self._over.wait(_BEAT):
            number += 1
            try:
                self._exchange(number)
            except RuntimeError:  # of the store: the other thread counts the seconds
                continue

    def _exchange(self, number: int) -> None:
        self._store.set(f"beat/{self._rank}", _json(self._beat._replace(number=number)))
        for rank in range(self._size):
            key, fault = f"beat/{rank}", f"fault/{rank}"
            if rank != self._rank and self._store.check([fault]):
                self._follow(msgspec.json.decode(self._store.get(fault), type=Fault))
            if not self._store.check([key]):
                continue
            beat = msgspec.json.decode(self._store.get(key), type=Beat)
            now = time.monotonic()
            before = self._seen[rank]
            self._seen[rank] = Seen(
                beat,
                now if beat.number != before.beat.number else before.fresh,
                now if beat.moves != before.beat.moves else before.moved,
            )
        self._talked = time.monotonic()

    def _follow(self, fault: Fault) -> None:
        """End as the rank that failed does; a failure of the program itself is a lost rank."""
        self._store.set(f"gone/{self._rank}", "")
        if self._over.is_set():
            return
        words = f"rank {fault.rank} at step {fault.step}: {fault.words}"
        self._leave(Verdict(fault.code, words if self._rank == 0 else None))

    def _listen(self) -> None:
        while not self._over.wait(_BEAT / 2):
            verdict = judge(
                time.monotonic(), self._seen, self._talked, rank=self._rank,
                silence=self._silence, longest=self._longest,
            )  # fmt: skip
            if verdict is not None and not self._over.is_set():
                self._leave(verdict)


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def end_process(code: int) -> None:
    """At once, from any thread: the one that trains may wait in a collective for ever."""
    os._exit(code)
