"""Prompt lookup (Saxena 2023): what followed the last words where they stood before is a guess at
what follows now, and one pass of the model checks all of it.

A guess is one token for certain, so rejection sampling (Leviathan et al. 2023) comes to this: draw
the row's own token from its own filtered distribution; where it is the guess, go on with the next.
Tokens are drawn as without guesses, by the same numbers.
"""

from __future__ import annotations

_LONGEST = 3
_SHORTEST = 2
# With the token before them these make steps of 4 and of 16 tokens.
_FIRST = 3
MOST = 15
# Below this share of right guesses they stop for a while; the while doubles each time.
_POOR = 0.2
_PAUSE = 32
_MEMORY = 0.9
# Guesses that do not pay are tried once in so many steps, for the text may change.
_TRY_AGAIN = 64


class Lookup:
    """Where each run of two or three ids of one row was last followed by something.

    `width` follows success: it doubles when all guesses were right and halves when none was.
    """

    def __init__(self, ids: list[int]) -> None:
        self._ids: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}
        self._width = _FIRST
        self._rate = 0.5
        self._pause = _PAUSE
        self._resting = 0
        self.extend(ids)

    def extend(self, ids: list[int]) -> None:
        """The row goes on with these."""
        for number in ids:
            end = len(self._ids)
            for size in range(_SHORTEST, _LONGEST + 1):
                if end >= size:
                    self._places[tuple(self._ids[end - size :])] = end
            self._ids.append(number)
        self._resting = max(0, self._resting - len(ids))

    def guess(self, most: int, *, steadfast: bool = False) -> list[int]:
        """At most so many ids; none while guesses rest for being wrong, unless `steadfast`."""
        if self._resting and not steadfast:
            return []
        for size in range(_LONGEST, _SHORTEST - 1, -1):
            at = self._places.get(tuple(self._ids[-size:])) if len(self._ids) >= size else None
            if at is not None:
                wanted = max(0, min(self._width, most))
                follows = self._ids[at : at + wanted]
                # What began to repeat itself is taken to go on so.
                return (follows * -(-wanted // len(follows)))[:wanted] if wanted else []
        return []

    def judge(self, guessed: int, right: int) -> None:
        """So many of the guesses were right."""
        if right == guessed:
            self._width = min(MOST, 2 * self._width + 1)
        elif right == 0:
            self._width = max(1, (self._width - 1) // 2)
        self._rate = _MEMORY * self._rate + (1 - _MEMORY) * right / guessed
        if self._rate < _POOR:
            self._resting, self._rate = self._pause, 0.5
            self._pause *= 2


class Cost:
    """Seconds of steps by their width, and tokens a checked guess gives: does guessing pay?"""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._gained = 0.0
        self._checks = 0
        self._refused = 0
        self.guessed = 0
        self.right = 0

    def step(self, width: int, seconds: float) -> None:
        """A step of one row read so many tokens."""
        held = self._seconds.get(_bucket(width), seconds)
        # A slow step may be the machine's; the fastest of late says more.
        self._seconds[_bucket(width)] = min(seconds, 0.9 * held + 0.1 * seconds)

    def judge(self, guessed: int, right: int) -> None:
        """So many of the guesses were right."""
        self.guessed += guessed
        self.right += right
        self._checks += 1
        share = max(0.05, 1 / self._checks)
        self._gained += share * (right - self._gained)

    def pays(self, guesses: int) -> bool:
        """Whether checking so many guesses costs less than the tokens it brings; yes while that
        is unknown."""
        one, several = self._seconds.get(1), self._seconds.get(_bucket(1 + guesses))
        if one is None or several is None or self._checks < 4:
            return True
        if 1 + self._gained > several / one:
            return True
        self._refused += 1
        return self._refused % _TRY_AGAIN == 0


def _bucket(width: int) -> int:
    """Powers of two, rounded up."""
    return 1 << (width - 1).bit_length()
