"""Words left out of texts that a classifier learns: how many, which, and never by chance alone."""

from __future__ import annotations

import random

import numpy as np
import pytest

from chatbench.train.classes import TextRows, thinned
from chatbench.train.labelled import Examples

SEQ_LEN = 24


@pytest.fixture
def examples(rng: random.Random) -> Examples:
    ids = [[rng.randrange(60) for _ in range(rng.randint(1, SEQ_LEN))] for _ in range(23)]
    return Examples(ids, np.array([rng.randrange(3) for _ in ids], np.int64), 0)


def test_thinned_texts_are_texts_with_words_left_out(rng: random.Random) -> None:
    draw = np.random.default_rng(rng.randrange(1 << 30))
    share = rng.uniform(0.1, 0.9)
    left = 0
    for _ in range(400):
        ids = rng.sample(range(1000), rng.randint(1, 50))
        assert thinned(ids, 0.0, draw) == ids
        found = thinned(ids, share, draw)
        assert found
        assert list(found) == [each for each in ids if each in set(found)]
        left += len(found) - max(1, round((1 - share) * len(ids)))
    # About 10,000 draws: 700 is more than six deviations, and up to 400 texts kept one too many.
    assert abs(left) < 1100
    assert thinned([7], 0.999999, draw) == [7]


def test_thinned_rows_differ_by_epoch_and_hang_on_nothing_else(
    examples: Examples, rng: random.Random
) -> None:
    seed = rng.randrange(99)
    rows, again = (TextRows(examples, SEQ_LEN, seed, 0.5) for _ in range(2))
    whole = TextRows(examples, SEQ_LEN, seed)
    epochs = []
    for epoch in (0, 1, 0):
        made = [again.row(epoch, number) for number in reversed(range(rows.count()))][::-1]
        for number, row in enumerate(made):
            for found, wanted in zip(row, rows.row(epoch, number), strict=True):
                assert np.array_equal(found, wanted)
            full = whole.row(epoch, number)
            # The same classes in the same order, each at the end of fewer tokens or as many.
            assert row.targets[row.weights > 0].tolist() == full.targets[full.weights > 0].tolist()
            assert row.weights.sum() == rows.weight(epoch, number)
            assert np.count_nonzero(row.document) <= np.count_nonzero(full.document)
        epochs.append(sorted(tuple(row.ids.tolist()) for row in made))
    assert epochs[0] == epochs[2]
    # Some hundred tokens, each left out or not: they agree by a chance of 2^-100.
    assert epochs[0] != epochs[1]
