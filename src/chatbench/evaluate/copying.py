"""How much of the replies stands in the training text word for word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from chatbench.text.measuring import Judged, Measured, ratio, table
from chatbench.text.words import plain_words

_MOST_CHARACTERS = 1 << 26
_WORDS_AT_ONCE = 1 << 21
Ints = npt.NDArray[np.int64]


def verbatim_overlap(pairs: Sequence[Judged], train: Iterable[str]) -> list[Measured]:
    """Share of the words of replies that lie in their longest run of words found in the training
    text; and the same of the references, which were never copied, for comparison."""
    said = [plain_words(pair.reply) for pair in pairs]
    wanted = [plain_words(pair.reference) for pair in pairs]
    longest, read = longest_runs([*said, *wanted], train)
    signature = f"longest-run|unicode-words+cjk-char|train-characters:{read}"
    found = []
    for name, texts, runs in (
        ("verbatim_overlap", said, longest[: len(said)]),
        ("verbatim_overlap_references", wanted, longest[len(said) :]),
    ):
        sums = table([(run, len(text)) for run, text in zip(runs, texts, strict=True)])
        if sums[:, 1].any():
            found.append(Measured(name, sums, ratio(100.0), len(texts), signature))
    return found


def longest_runs(texts: Sequence[Sequence[str]], train: Iterable[str]) -> tuple[list[int], int]:
    """For each text of words the length of its longest run that stands in one of the `train`
    texts; and how many of their characters were read, at most 64 million."""
    number_of: dict[str, int] = {}
    rows: list[int] = []
    owners: list[int] = []
    for owner, words in enumerate(texts):
        rows += [number_of.setdefault(word, len(number_of)) for word in words]
        rows.append(-1)
        owners += [owner] * (len(words) + 1)
    best = np.zeros(len(texts), np.int64)
    read = [0]
    ours, whose = np.array(rows, np.int64), np.array(owners, np.int64)
    for chunk in _numbered(train, number_of, read):
        _extend(best, ours, whose, chunk, len(number_of))
    return best.tolist(), read[0]


def _numbered(train: Iterable[str], number_of: dict[str, int], read: list[int]) -> Iterator[Ints]:
    """Words of the texts as numbers, -1 for unknown ones and between texts; `read[0]` counts the
    characters."""
    waiting: list[int] = []
    for text in train:
        taken = text[: _MOST_CHARACTERS - read[0]]
        read[0] += len(taken)
        waiting += [number_of.get(word, -1) for word in plain_words(taken)]
        waiting.append(-1)
        if len(waiting) >= _WORDS_AT_ONCE:
            yield np.array(waiting, np.int64)
            waiting = []
        if read[0] >= _MOST_CHARACTERS:
            break
    if waiting:
        yield np.array(waiting, np.int64)


def _extend(best: Ints, ours: Ints, whose: Ints, train: Ints, kinds: int) -> None:
    """Raise `best` to the longest runs found in `train`.

    Every distinct run of one length has a number, and a longer run is the pair of it and one more
    word (Karp, Miller & Rosenberg 1972); only places that both sides still share go on.
    """
    here, there = np.flatnonzero(ours >= 0), np.flatnonzero(train >= 0)
    mine, theirs = ours[here], train[there]
    length = 1
    while len(here):
        seen = np.zeros(max(kinds, len(here)), bool)
        seen[theirs] = True
        kept = seen[mine]
        here, mine = here[kept], mine[kept]
        np.maximum.at(best, whose[here], length)
        # Both arrays end with -1, so no run reaches beyond them.
        ends = ours[here + length] >= 0
        here, mine = here[ends], mine[ends]
        goes_on = train[there + length] >= 0
        there, theirs = there[goes_on], theirs[goes_on]
        pairs, mine = np.unique(mine * kinds + ours[here + length], return_inverse=True)
        keys = theirs * kinds + train[there + length]
        place = np.searchsorted(pairs, keys)
        known = place < len(pairs)
        known[known] = pairs[place[known]] == keys[known]
        there, theirs = there[known], place[known]
        length += 1
