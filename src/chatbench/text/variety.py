"""What replies are like among themselves: variety, repetition, length."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from chatbench.text.measuring import Judged, Measured, influence, ratio, share, table
from chatbench.text.overlap import bleu_of
from chatbench.text.words import words

_REPEATED_ORDER = 4
Gram = tuple[str, ...]


def _grams(tokens: Sequence[str], order: int) -> list[Gram]:
    return list(zip(*(tokens[k:] for k in range(order)), strict=False))


def distinct(pairs: Sequence[Judged]) -> list[Measured]:
    """Distinct-1 and -2 (Li et al. 2016): different n-grams among all n-grams of the replies."""
    tokens = [words(pair.reply) for pair in pairs]
    return [_distinct([_grams(reply, order) for reply in tokens], order) for order in (1, 2)]


def _distinct(replies: list[list[Gram]], order: int) -> Measured:
    holders = Counter(gram for grams in replies for gram in set(grams))
    total = sum(map(len, replies))
    own = [sum(holders[gram] == 1 for gram in set(grams)) for grams in replies]
    left = np.maximum([total - len(grams) for grams in replies], 1)
    without = 100 * (len(holders) - np.array(own, np.float64)) / left
    value = 100 * len(holders) / total if total else 0.0
    signature = f"ngrams:{total}|nltk-words|interval:influence"
    sums = influence(value, without)
    return Measured(f"distinct{order}", sums, ratio(), len(replies), signature, of_parts=False)


def self_bleu(pairs: Sequence[Judged]) -> list[Measured]:
    """Mean BLEU of each reply with all others as its references (Zhu et al. 2018): 100 when all
    say the same. Needs two replies."""
    tokens = [words(pair.reply) for pair in pairs]
    if len(tokens) < 2:
        return []
    rows = table(list(_against_others(tokens)))
    found = bleu_of(rows) / 100
    signature = "bleu4|smooth:exp|refs:others|nltk-words"
    return [share("self_bleu", found.tolist(), signature)._replace(of_parts=False)]


def _against_others(replies: list[list[str]]) -> Iterator[list[int]]:
    """BLEU's sums of each reply. An n-gram matches as often as the reply of the others that has
    most of it; the two that have most are enough to know that for each."""
    most: dict[Gram, tuple[int, int, int]] = {}
    counted = [[Counter(_grams(r, order)) for order in range(1, 5)] for r in replies]
    for number, orders in enumerate(counted):
        for grams in orders:
            for gram, count in grams.items():
                first, holder, second = most.get(gram, (0, -1, 0))
                if count > first:
                    most[gram] = (count, number, first)
                elif count > second:
                    most[gram] = (first, holder, count)
    lengths = sorted(map(len, replies))
    for number, orders in enumerate(counted):
        matches = []
        for grams in orders:
            hits = 0
            for gram, count in grams.items():
                first, holder, second = most[gram]
                hits += min(count, second if holder == number else first)
            matches.append(hits)
        size = len(replies[number])
        yield [size, _nearest(lengths, size), *matches, *(g.total() for g in orders)]


def _nearest(lengths: list[int], size: int) -> int:
    """The length nearest to `size` among all but one of that length; of two the shorter."""
    at = bisect_left(lengths, size)
    others = lengths[max(0, at - 1) : at] + lengths[at + 1 : at + 2]
    return min(others, key=lambda length: (abs(length - size), length))


def repetition(pairs: Sequence[Judged]) -> list[Measured]:
    """Share of 4-grams that the same reply has said before (Welleck et al. 2020). Needs a reply of
    four words."""
    rows = []
    for pair in pairs:
        grams = _grams(words(pair.reply), _REPEATED_ORDER)
        rows.append((len(grams) - len(set(grams)), len(grams)))
    sums = table(rows)
    if not sums[:, 1].any():
        return []  # nothing is long enough to repeat itself
    signature = f"within-reply|order:{_REPEATED_ORDER}|nltk-words"
    return [Measured("repetition", sums, ratio(100.0), len(pairs), signature)]


def length_ratio(pairs: Sequence[Judged]) -> list[Measured]:
    """Words of all replies to words of all references."""
    sums = table([(len(words(pair.reply)), len(words(pair.reference))) for pair in pairs])
    if not sums[:, 1].any():
        return []
    return [Measured("length_ratio", sums, ratio(), len(pairs), "sum/sum|nltk-words")]
