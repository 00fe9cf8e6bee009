"""Languages of bytes, read one byte at a time: which bytes may follow, what is the shortest end.

A state is a set of stacks of symbols still to be written, the next one last; where alternatives
exist there are several stacks, and () is a text that is whole. States are plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from functools import cache

import numpy as np
import numpy.typing as npt

# bytes: exactly these; frozenset: one of these bytes; anything else is expanded by the rules.
Symbol = Hashable
Stack = tuple[Symbol, ...]
State = frozenset[Stack]
# The ways in which a symbol may be written. No chain of them may come back to its first symbol
# without a byte between; an empty way must come first.
Rules = Callable[[Symbol], tuple[Stack, ...]]

DEAD = -1
WHOLE: State = frozenset([()])
# Bytes of an end that is worth looking for; sequences in sequences grow beyond any memory.
LONGEST = 32_000
_FIRST_ROWS = 64


class Automaton:
    """A grammar as a table that grows with what is asked: state number, byte → state number."""

    def __init__(self, rules: Rules, start: Symbol) -> None:
        self._rules = cache(rules)
        self.start = self._settled([(start,)])
        self._shortest: dict[Symbol, bytes | None] = {}
        self.clear()

    def clear(self) -> None:
        """Forget all numbers."""
        self.states: list[State] = []
        self._numbers: dict[State, int] = {}
        self._known = np.zeros(_FIRST_ROWS, bool)
        self.table: npt.NDArray[np.int32] = np.full((_FIRST_ROWS, 256), DEAD, np.int32)

    def number(self, state: State) -> int:
        """The state's place in `states`."""
        found = self._numbers.get(state)
        if found is None:
            found = self._numbers[state] = len(self.states)
            self.states.append(state)
        return found

    def rows(self, numbers: Iterable[int]) -> npt.NDArray[np.int32]:
        """`table`, in which the rows of these states are made."""
        for number in numbers:
            if number >= len(self._known) or not self._known[number]:
                self._make(number)
        return self.table

    def after(self, state: State, data: bytes) -> State | None:
        """The state behind these bytes; None where they may not follow."""
        for byte in data:
            after = [rest for stack in state if (rest := _taken(stack, byte)) is not None]
            if not after:
                return None
            state = self._settled(after)
        return state

    def closing(self, state: State) -> bytes | None:
        """The shortest bytes that make the text whole, of several the first in byte order; so
        what is left of them is the shortest end wherever one stands in them. None where they are
        more than LONGEST."""
        ends = [self._joined(stack[::-1]) for stack in state]
        return min((end for end in ends if end is not None), key=_shortlex, default=None)

    def _make(self, number: int) -> None:
        stacks = list(self.states[number])
        # Bytes that the same stacks take lead to the same state.
        takers: dict[tuple[int, ...], list[int]] = {}
        open_to = [_next_bytes(stack) for stack in stacks]
        for byte in range(256):
            taking = tuple(n for n, some in enumerate(open_to) if byte in some)
            takers.setdefault(taking, []).append(byte)
        row = np.full(256, DEAD, np.int32)
        for taking, some in takers.items():
            if taking:
                after = [_taken(stacks[n], some[0]) for n in taking]
                row[some] = self.number(self._settled(rest for rest in after if rest is not None))
        size = len(self._known)
        if len(self.states) > size:
            more = max(len(self.states), 2 * size) - size
            self.table = np.vstack([self.table, np.full((more, 256), DEAD, np.int32)])
            self._known = np.append(self._known, np.zeros(more, bool))
        self.table[number] = row
        self._known[number] = True

    def _settled(self, stacks: Iterable[Stack]) -> State:
        """Stacks with what may come next on top."""
        waiting, settled = list(stacks), set()
        while waiting:
            stack = waiting.pop()
            if not stack or isinstance(stack[-1], bytes | frozenset):
                settled.add(stack)
            else:
                waiting += [stack[:-1] + way[::-1] for way in self._rules(stack[-1])]
        return frozenset(settled)

    def _joined(self, way: Stack) -> bytes | None:
        """The first shortest spelling of a sequence, which is that of its parts, one by one."""
        parts = []
        size = 0
        for symbol in way:
            part = self._least(symbol)
            if part is None or (size := size + len(part)) > LONGEST:
                return None
            parts.append(part)
        return b"".join(parts)

    def _least(self, symbol: Symbol) -> bytes | None:
        """The first shortest spelling; None where it is longer than LONGEST."""
        if isinstance(symbol, bytes):
            return symbol
        if isinstance(symbol, frozenset):
            return bytes([min(symbol)])
        # Its own stack: a symbol may stand thousands deep in others.
        waiting = [symbol]
        while waiting:
            last = waiting[-1]
            ways = () if last in self._shortest else self._rules(last)
            missing = [] if () in ways else [
                part for way in ways for part in way
                if not isinstance(part, bytes | frozenset) and part not in self._shortest
            ]  # fmt: skip
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if ways:
                spelled = [b""] if () in ways else [self._joined(way) for way in ways]
                short = (data for data in spelled if data is not None)
                self._shortest[last] = min(short, key=_shortlex, default=None)
        return self._shortest[symbol]


def _shortlex(data: bytes) -> tuple[int, bytes]:
    return len(data), data


def _next_bytes(stack: Stack) -> frozenset[int]:
    if not stack:
        return frozenset()
    top = stack[-1]
    if isinstance(top, bytes):
        return frozenset(top[:1])
    assert isinstance(top, frozenset)
    return top


def _taken(stack: Stack, byte: int) -> Stack | None:
    """The stack behind this byte."""
    if not stack:
        return None
    top = stack[-1]
    if isinstance(top, bytes):
        if top[0] != byte:
            return None
        return (*stack[:-1], top[1:]) if len(top) > 1 else stack[:-1]
    assert isinstance(top, frozenset)
    return stack[:-1] if byte in top else None
