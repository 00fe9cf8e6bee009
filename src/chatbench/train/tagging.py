"""Tags left out at random: what a document is in an epoch, a function of (seed, epoch, document).

A model that sees its tags only sometimes also works without them (as in classifier-free guidance,
Ho and Salimans 2022).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from chatbench.corpus.shards import Ids, TokenSplit
from chatbench.corpus.untagging import Splice

Ints = npt.NDArray[np.integer[Any]]
# Tells these draws from those of the order, which are made of seed and epoch alone.
_TAGS = 0x7A65
_EPOCHS = 2


class Tagging:
    """The documents of a split as an epoch has them.

    In each epoch a document with tags goes without all of them with probability `dropout`; one with
    several that keeps them goes without one of them with the same probability.
    """

    def __init__(self, split: TokenSplit, dropout: float, seed: int) -> None:
        self._split = split
        self._dropout = dropout
        self._seed = seed
        self._place: dict[int, int] = {}
        growths: list[list[int]] = []
        if dropout and split.has_tags:
            for number in range(len(split)):
                if variants := split.untagged(number):
                    self._place[number] = len(growths)
                    growths.append([splice.growth for splice in variants])
        self._growths = growths
        self._chosen = lru_cache(maxsize=_EPOCHS)(self._draw)

    @property
    def drops(self) -> bool:
        """Whether any document need not be the same in every epoch."""
        return bool(self._growths)

    def ids(self, epoch: int, number: int) -> Ids:
        """What a document is in an epoch."""
        ids = self._split.ids(number)
        splice = self.splice(epoch, number, 0, len(ids))
        return ids if splice is None else splice.applied(ids, np.zeros(len(ids)))[0]

    def splice(
        self, epoch: int, number: int, start: int, end: int, most: int | None = None
    ) -> Splice | None:
        """What tokens start..end of a document give way to in this epoch; None where they keep
        their tags, hold none, or would be more than `most`."""
        place = self._place.get(number)
        which = -1 if place is None else int(self._chosen(epoch)[place])
        if which < 0:
            return None
        splice = self._split.untagged(number)[which]
        return splice if _fits(splice, start, end, most) else None

    def longest(self, number: int, start: int, end: int, most: int) -> int:
        """The most tokens that this piece has in any epoch."""
        length = end - start
        if number not in self._place:
            return length
        variants = self._split.untagged(number)
        grown = [length + s.growth for s in variants if _fits(s, start, end, most)]
        return max(length, *grown) if grown else length

    def growth(self, epoch: int) -> Ints:
        """How many tokens each document is longer in an epoch than with its tags, (documents,)."""
        found = np.zeros(len(self._split), np.int64)
        if self.drops:
            chosen = self._chosen(epoch).tolist()
            for number, place in self._place.items():
                if chosen[place] >= 0:
                    found[number] = self._growths[place][chosen[place]]
        return found

    @property
    def most_growth(self) -> int:
        """Tokens that no epoch has more of than the split."""
        return sum(max(0, *growths) for growths in self._growths)

    def _draw(self, epoch: int) -> Ints:
        """Which variant each document with tags is, -1: with all of them."""
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch, _TAGS]))
        counts = np.array([len(growths) for growths in self._growths], np.int64)
        none, one, which = generator.random((3, len(counts)))
        several = 1 + (which * (counts - 1)).astype(np.int64)
        kept = np.where((one < self._dropout) & (counts > 1), several, -1)
        return np.where(none < self._dropout, 0, kept)


def _fits(splice: Splice, start: int, end: int, most: int | None) -> bool:
    length = end - start + splice.growth
    inside = start <= splice.begin and splice.end <= end
    return inside and length > 1 and (most is None or length <= most)
