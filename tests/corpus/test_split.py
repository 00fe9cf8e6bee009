"""A document's split is a function of its content; copies stay together."""

from __future__ import annotations

import random

import pytest

from chatbench.corpus.split import SPLITS, assign, split_of


def digests(rng: random.Random, count: int) -> list[bytes]:
    return sorted(rng.randbytes(16) for _ in range(count))


def number(position: float) -> bytes:
    return int(position * 2**64).to_bytes(8, "big") + bytes(8)


def test_the_lowest_part_is_test_the_next_val_the_rest_train() -> None:
    bounds = [(0, "test"), (0.124, "test"), (0.125, "val"), (0.374, "val"), (0.375, "train"),
              (0.999999, "train")]  # fmt: skip
    for position, expected in bounds:
        assert split_of(number(position), val_fraction=0.25, test_fraction=0.125) == expected


def test_shares_are_about_what_was_asked_for(rng: random.Random) -> None:
    splits = assign(digests(rng, 20_000), 0.2, 0.1)
    for name, share in (("test", 0.1), ("val", 0.2), ("train", 0.7)):
        assert splits.count(name) / 20_000 == pytest.approx(share, abs=0.02)


def test_a_document_stays_when_others_come_and_go(rng: random.Random) -> None:
    many = digests(rng, 500)
    where = dict(zip(many, assign(many, 0.2, 0.2), strict=True))
    fewer = sorted(rng.sample(many, 300))
    assert assign(fewer, 0.2, 0.2) == [where[digest] for digest in fewer]


def test_from_ten_documents_on_no_wanted_split_is_empty(rng: random.Random) -> None:
    for _ in range(300):
        many = digests(rng, rng.randint(10, 14))
        val, test = rng.choice([(0.05, 0.05), (0.01, 0), (0, 0.01), (0.49, 0.49), (0.98, 0.01),
                                (0.01, 0.98), (0.001, 0.98), (0, 0)])  # fmt: skip
        splits = assign(many, val, test)
        assert "train" in splits
        assert ("val" in splits) == (val > 0)
        assert ("test" in splits) == (test > 0)
        assert splits == sorted(splits, key=["test", "val", "train"].index), "still by digest"


def test_there_is_always_something_to_train_on(rng: random.Random) -> None:
    for count in range(1, 10):
        for _ in range(20):
            assert "train" in assign(digests(rng, count), 0.4, 0.5)
    assert assign([], 0.4, 0.5) == []
    assert assign([number(0.01)], 0.05, 0.05) == ["train"]


def test_copies_never_part(rng: random.Random) -> None:
    for _ in range(200):
        heads = [rng.randbytes(8) for _ in range(rng.randint(1, 12))]
        many = sorted(head + rng.randbytes(8) for head in heads for _ in range(rng.randint(1, 15)))
        splits = assign(many, 0.1, 0.1)
        where = {(digest[:8], split) for digest, split in zip(many, splits, strict=True)}
        assert len(where) == len(set(heads))
        assert set(splits) <= set(SPLITS)
        assert "train" in splits
