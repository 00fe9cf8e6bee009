"""The n-gram model against a slow twin with dictionaries, and what its bits are counted over."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pytest

from chatbench.text.ngram import (
    NGram,
    Scored,
    ngram_bits_per_byte,
    sample,
    uniform_bits_per_byte,
)


class Twin:
    """The same by its definition: continuation counts below the highest order, three discounts."""

    def __init__(self, stream: list[int], vocab: int, order: int) -> None:
        self._vocab = vocab
        self._counts: list[dict[tuple[int, ...], int]] = []
        highest = min(order, len(stream))
        for k in range(1, highest + 1):
            if k == highest:
                counts = Counter(grams(stream, k))
            else:
                before = defaultdict(set)
                for gram in grams(stream, k + 1):
                    before[gram[1:]].add(gram[0])
                counts = Counter({gram: len(found) for gram, found in before.items()})
            self._counts.append(counts)
        self._discounts = [discounts(counts) for counts in self._counts]

    def probability(self, context: tuple[int, ...], token: int) -> float:
        if not self._counts:
            return 1 / self._vocab
        return self._at(context[max(0, len(context) - len(self._counts) + 1) :], token)

    def _at(self, context: tuple[int, ...], token: int) -> float:
        counts, cut = self._counts[len(context)], self._discounts[len(context)]
        shorter = self._at(context[1:], token) if context else 1 / self._vocab
        followers = [n for gram, n in counts.items() if gram[:-1] == context]
        if not followers:
            return shorter
        own = counts.get((*context, token), 0)
        left = sum(cut[min(n, 3)] for n in followers)
        return (own - cut[min(own, 3)] + left * shorter) / sum(followers)


def grams(stream: list[int], k: int) -> Iterator[tuple[int, ...]]:
    return (tuple(stream[at : at + k]) for at in range(len(stream) - k + 1))


def discounts(counts: dict[tuple[int, ...], int]) -> list[float]:
    n = Counter(counts.values())
    if not n[1]:
        return [0.0, 0.5, 0.5, 0.5]
    share = n[1] / (n[1] + 2 * n[2])
    cut = [0.0]
    for c in (1, 2, 3):
        wanted = c - (c + 1) * share * n[c + 1] / n[c] if n[c] else share
        cut.append(min(max(wanted, 0.1), float(c)) if n[c] else share)
    return cut


def random_stream(rng: random.Random, vocab: int, length: int) -> list[int]:
    """With repetitions, so that long contexts are seen again."""
    stream: list[int] = []
    while len(stream) < length:
        if stream and rng.random() < 0.5:
            begin = rng.randrange(len(stream))
            stream += stream[begin : begin + rng.randint(1, 6)]
        else:
            stream.append(rng.randrange(vocab))
    return stream[:length]


def test_probabilities_are_those_of_the_definition(rng: random.Random) -> None:
    for _ in range(20):
        vocab, order = rng.randint(1, 9), rng.randint(1, 5)
        stream = random_stream(rng, vocab, rng.randint(0, 120))
        pieces = [random_stream(rng, vocab, rng.randint(0, 12)) for _ in range(rng.randint(0, 4))]
        pieces += [stream[: rng.randint(0, 20)]]
        model = NGram(np.array(stream, np.uint32), vocab, order)
        twin = Twin(stream, vocab, order)
        found = model.probabilities([np.array(piece, np.uint32) for piece in pieces])
        expected = [
            twin.probability(tuple(piece[:at]), token)
            for piece in pieces
            for at, token in enumerate(piece)
        ]
        # A dozen operations of one rounding each, all on positive numbers, at each of five orders.
        assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_after_every_context_the_probabilities_add_up_to_one(rng: random.Random) -> None:
    vocab = rng.randint(1, 30)
    model = NGram(np.array(random_stream(rng, vocab, 400)), vocab)
    for _ in range(20):
        context = random_stream(rng, vocab, rng.randint(0, 6))
        pieces = [np.array([*context, token]) for token in range(vocab)]
        ends = np.cumsum([len(piece) for piece in pieces]) - 1
        assert model.probabilities(pieces)[ends].sum() == pytest.approx(1, rel=1e-12)


def test_bits_are_counted_over_what_counts_and_spells_something(rng: random.Random) -> None:
    vocab = 8
    token_bytes = np.array([0, 0, *(rng.randint(1, 6) for _ in range(vocab - 2))])
    train = [random_stream(rng, vocab, rng.randint(0, 60)) for _ in range(5)]
    held = [random_stream(rng, vocab, rng.randint(1, 20)) for _ in range(6)]
    weights = [[rng.randint(0, 1) for _ in piece] for piece in held]
    held.append([2])
    weights.append([1])
    twin = Twin([token for document in train for token in document], vocab, 5)
    bits, plain, size = 0.0, 0.0, 0
    for piece, weight in zip(held, weights, strict=True):
        for at, token in enumerate(piece):
            if weight[at] and token_bytes[token]:
                bits -= math.log2(twin.probability(tuple(piece[:at]), token))
                plain += math.log2(vocab)
                size += int(token_bytes[token])
    pieces = [Scored(np.array(p), np.array(w)) for p, w in zip(held, weights, strict=True)]
    found = ngram_bits_per_byte([np.array(document) for document in train], pieces, token_bytes)
    assert found == pytest.approx(bits / size, rel=1e-11)
    assert uniform_bits_per_byte(pieces, token_bytes) == pytest.approx(plain / size, rel=1e-12)


def test_without_anything_that_counts_there_is_no_figure() -> None:
    silent = [Scored(np.array([0, 1]), np.array([1, 0]))]
    assert math.isnan(ngram_bits_per_byte([np.array([1, 1])], silent, np.array([0, 1])))
    assert math.isnan(ngram_bits_per_byte([], [], np.array([1])))
    assert math.isnan(uniform_bits_per_byte([], np.array([1])))


def test_only_so_much_of_a_large_corpus_is_read(rng: random.Random) -> None:
    documents = [np.arange(rng.randint(0, 9)) for _ in range(30)]
    most = rng.randint(1, 60)
    whole = np.concatenate(documents).tolist()
    read = []

    def reading() -> Iterator[np.ndarray]:
        for document in documents:
            read.append(len(document))
            yield document

    assert sample(reading(), most).tolist() == whole[:most]
    assert sum(read[:-1]) < most  # no document more than are needed


@pytest.mark.parametrize(
    "text", ["the shop opens at nine and closes at six. ", "小店早上九点开门，晚上六点关门。"]
)
def test_what_was_seen_often_is_expected(text: str, rng: random.Random) -> None:
    data = np.frombuffer(text.encode() * 50, np.uint8)
    ones = np.ones(256, np.int64)
    same = [Scored(data[:200], np.ones(200))]
    noise = [Scored(np.array([rng.randrange(256) for _ in range(200)]), np.ones(200))]
    assert ngram_bits_per_byte([data], same, ones) < 1
    assert ngram_bits_per_byte([data], noise, ones) > 5
