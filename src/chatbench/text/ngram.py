"""An n-gram language model of token ids: what a network has to beat to have learned anything.

Interpolated Kneser-Ney with three discounts (Chen & Goodman 1999). Every distinct k-gram of the
text has a number; a k-gram is found by the number of its first k-1 tokens and its last token, so
each order is one sorted array of integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

ORDER = 5
# A second or so on one slow core, and about 200 MB while it is made.
LARGEST_SAMPLE = 1_000_000

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]


class _Level(NamedTuple):
    """The k-grams of one k, sorted. `own` is the discounted share of each within its context;
    `rest` is what each context leaves to the shorter one."""

    keys: npt.NDArray[np.int64]
    own: Floats
    rest: Floats


class NGram:
    """Probabilities of a token after up to `order` - 1 others."""

    def __init__(self, stream: Ints, vocab_size: int, order: int = ORDER) -> None:
        """Count `stream`, ids (N,) below `vocab_size`."""
        self._vocab = vocab_size
        self._levels = _levels(stream.astype(np.int64), vocab_size, order)

    def probabilities(self, pieces: Sequence[Ints]) -> Floats:
        """Of every token of every piece, end to end, given what is before it in its own piece."""
        lengths = [len(piece) for piece in pieces]
        ids = np.concatenate([*pieces, np.zeros(0, np.int64)]).astype(np.int64)
        begins = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths) if lengths else ids
        inside = np.arange(len(ids)) - begins
        chances = np.full(len(ids), 1.0 / self._vocab)
        context = np.zeros(len(ids), np.int64)
        for level in self._levels:
            if not len(level.keys):
                break
            known = context >= 0
            keys = context * self._vocab + ids
            place = np.minimum(np.searchsorted(level.keys, keys), len(level.keys) - 1)
            found = known & (level.keys[place] == keys)
            rest = np.where(known, level.rest[np.maximum(context, 0)], 1.0)
            chances = rest * chances + np.where(found, level.own[place], 0.0)
            gram = np.where(found, place, -1)
            context = np.concatenate([[-1], gram[:-1]])
            context[inside == 0] = -1
        return chances


def _levels(stream: npt.NDArray[np.int64], vocab: int, order: int) -> list[_Level]:
    levels: list[_Level] = []
    shorter = np.zeros(len(stream) + 1, np.int64)  # numbers of the (k-1)-grams, by their last token
    contexts = 1
    waiting: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int] | None = None
    for k in range(1, order + 1):
        if len(stream) < k:
            break
        keys, number, counts = np.unique(
            shorter[:-1] * vocab + stream[k - 1 :], return_inverse=True, return_counts=True
        )
        if waiting is not None:
            # How many different tokens stand before a k-gram says more about it as a shorter
            # context than how often it is there.
            suffix = np.empty(len(keys), np.int64)
            suffix[number] = shorter[1:]
            before = np.bincount(suffix, minlength=len(waiting[0]))
            levels.append(_level(waiting[0], before, waiting[2], vocab))
        waiting = (keys, counts, contexts)
        shorter, contexts = number, len(keys)
    if waiting is not None:
        levels.append(_level(*waiting, vocab))
    return levels


def _level(
    keys: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], contexts: int, vocab: int
) -> _Level:
    """Shares from counts (G,); a context that was never counted leaves everything."""
    context = keys // vocab
    discount = _discounts(counts)[np.minimum(counts, 3)]
    totals = np.bincount(context, weights=counts, minlength=contexts)
    taken = np.bincount(context, weights=discount, minlength=contexts)
    seen = np.maximum(totals, 1.0)
    return _Level(
        keys, (counts - discount) / seen[context], np.where(totals > 0, taken / seen, 1.0)
    )


def _discounts(counts: npt.NDArray[np.int64]) -> Floats:
    """What is taken from counts of 0, 1, 2 and more: between nothing and the whole count."""
    n = np.bincount(np.minimum(counts, 5), minlength=5).astype(float)
    if not n[1]:
        return np.array([0.0, 0.5, 0.5, 0.5])
    share = n[1] / (n[1] + 2 * n[2])
    return np.array(
        [0.0]
        + [
            min(max(c - (c + 1) * share * n[c + 1] / n[c], 0.1), float(c)) if n[c] else share
            for c in (1, 2, 3)
        ]
    )


class Scored(NamedTuple):
    """A piece of text: ids (T,), and which of them count (T,)."""

    ids: Ints
    weights: npt.NDArray[Any]


def sample(documents: Iterable[Ints], most: int = LARGEST_SAMPLE) -> Ints:
    """The first `most` tokens, end to end."""
    taken: list[Ints] = []
    room = most
    for ids in documents:
        taken.append(np.asarray(ids[:room]))
        room -= len(taken[-1])
        if room <= 0:
            break
    return np.concatenate([*taken, np.zeros(0, np.uint32)])


def ngram_bits_per_byte(
    train: Iterable[Ints],
    held: Sequence[Scored],
    token_bytes: npt.NDArray[np.int64],
    order: int = ORDER,
    most: int = LARGEST_SAMPLE,
) -> float:
    """Bits per byte of held-out text under an n-gram model of the first `most` tokens of `train`.

    `token_bytes` (V,) is how many bytes each token spells; control tokens spell none and are not
    scored. NaN when nothing counts.
    """
    model = NGram(sample(train, most), len(token_bytes), order)
    chances = model.probabilities([piece.ids for piece in held])
    counts = _counting(held, token_bytes)
    size = float(counts.sum())
    return float(-np.log2(chances[counts > 0]).sum() / size) if size else math.nan


def uniform_bits_per_byte(held: Sequence[Scored], token_bytes: npt.NDArray[np.int64]) -> float:
    """The same, where every token of the vocabulary is equally likely."""
    counts = _counting(held, token_bytes)
    size = float(counts.sum())
    return float((counts > 0).sum() * math.log2(len(token_bytes)) / size) if size else math.nan


def _counting(held: Sequence[Scored], token_bytes: npt.NDArray[np.int64]) -> Ints:
    """Bytes of each token of all pieces, zero where it does not count."""
    nothing = np.zeros(0, np.int64)
    spelled = [token_bytes[piece.ids] * (np.asarray(piece.weights) > 0) for piece in held]
    return np.concatenate([*spelled, nothing])
