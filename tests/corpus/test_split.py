"""A document's split is a function of its content; copies and near-duplicates stay together."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from chatbench.corpus.split import SPLITS, assign_units, split_of


def digests(rng: random.Random, count: int) -> list[bytes]:
    return sorted(rng.randbytes(16) for _ in range(count))


def keys_of(many: list[bytes]) -> Any:
    return np.array([int.from_bytes(digest[:8], "big") for digest in many], np.uint64)


def assigned(many: list[bytes], val: float, test: float, cluster: Any = None) -> list[str]:
    labels = None if cluster is None else np.asarray(cluster, np.int64)
    found = assign_units(keys_of(many), labels, val, test)
    assert found.dtype == np.uint8
    return [SPLITS[place] for place in found.tolist()]


def clustered(rng: random.Random, count: int, share: float) -> list[int]:
    """Labels as near-duplicate search gives them: the smallest member's number."""
    labels = list(range(count))
    for n in range(1, count):
        if rng.random() < share:
            labels[n] = labels[rng.randrange(n)]
    return labels


def number(position: float) -> bytes:
    return int(position * 2**64).to_bytes(8, "big") + bytes(8)


def test_the_lowest_part_is_test_the_next_val_the_rest_train() -> None:
    bounds = [(0, "test"), (0.124, "test"), (0.125, "val"), (0.374, "val"), (0.375, "train"),
              (0.999999, "train")]  # fmt: skip
    for position, expected in bounds:
        assert split_of(number(position), val_fraction=0.25, test_fraction=0.125) == expected


def test_a_document_alone_falls_by_its_own_digest(rng: random.Random) -> None:
    many = digests(rng, 400)
    assert assigned(many, 0.2, 0.1) == [split_of(digest, 0.2, 0.1) for digest in many]
    labels = clustered(rng, 400, 0.3)
    for digest, label, found in zip(many, labels, assigned(many, 0.2, 0.1, labels), strict=True):
        if labels.count(label) == 1:
            assert found == split_of(digest, 0.2, 0.1)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_shares_are_about_what_was_asked_for(share: float, rng: random.Random) -> None:
    # Pairs, the commonest cluster: their smaller keys are not evenly spread, their hashes are.
    labels = [n - n % 2 if share and n % 4 < 2 else n for n in range(40_000)]
    splits = assigned(digests(rng, 40_000), 0.2, 0.1, labels)
    for name, wanted in (("test", 0.1), ("val", 0.2), ("train", 0.7)):
        assert splits.count(name) / 40_000 == pytest.approx(wanted, abs=0.015)


def test_pairs_of_far_apart_keys_fall_evenly_as_well(rng: random.Random) -> None:
    labels = list(range(20_000)) * 2
    many = digests(rng, 40_000)
    assert labels[20_000] == 0
    splits = assigned(many, 0.2, 0.1, labels)
    for name, wanted in (("test", 0.1), ("val", 0.2), ("train", 0.7)):
        assert splits.count(name) / 40_000 == pytest.approx(wanted, abs=0.02)


def test_a_document_stays_when_others_come_and_go(rng: random.Random) -> None:
    many = digests(rng, 500)
    where = dict(zip(many, assigned(many, 0.2, 0.2), strict=True))
    fewer = sorted(rng.sample(many, 300))
    assert assigned(fewer, 0.2, 0.2) == [where[digest] for digest in fewer]


def test_a_cluster_stays_when_documents_are_added_elsewhere(rng: random.Random) -> None:
    many = digests(rng, 400)
    labels = clustered(rng, 400, 0.4)
    where = dict(zip(many, assigned(many, 0.2, 0.2, labels), strict=True))
    family = {digest: labels[n] for n, digest in enumerate(many)}
    more = sorted([*many, *digests(rng, 300)])
    firsts: dict[int, int] = {}
    grown = [
        firsts.setdefault(family[digest], n) if digest in family else n
        for n, digest in enumerate(more)
    ]
    splits = dict(zip(more, assigned(more, 0.2, 0.2, grown), strict=True))
    assert [splits[digest] for digest in many] == [where[digest] for digest in many]


@pytest.mark.parametrize("with_clusters", [False, True])
def test_no_cluster_crosses_and_no_copies_part(with_clusters: bool, rng: random.Random) -> None:
    for _ in range(200):
        heads = [rng.randbytes(8) for _ in range(rng.randint(1, 30))]
        many = sorted(head + rng.randbytes(8) for head in heads for _ in range(rng.randint(1, 4)))
        labels = clustered(rng, len(many), 0.4) if with_clusters else None
        splits = assigned(many, 0.3, 0.3, labels)
        where = {(digest[:8], split) for digest, split in zip(many, splits, strict=True)}
        assert len(where) == len(set(heads))
        if labels is not None:
            assert len(set(zip(labels, splits, strict=True))) == len(set(labels))
        assert "train" in splits


def test_labels_are_names_only(rng: random.Random) -> None:
    many = digests(rng, 200)
    labels = clustered(rng, 200, 0.5)
    renamed = rng.sample(range(1000), 200)
    assert assigned(many, 0.2, 0.2, labels) == assigned(
        many, 0.2, 0.2, [renamed[label] for label in labels]
    )


def test_from_ten_units_on_no_wanted_split_is_empty(rng: random.Random) -> None:
    for _ in range(300):
        units = rng.randint(10, 14)
        copies = [rng.choice((1, 1, 1, 2, 3)) for _ in range(units)]
        many = digests(rng, sum(copies))
        labels = [n for n, count in enumerate(copies) for _ in range(count)]
        rng.shuffle(labels)
        val, test = rng.choice([(0.05, 0.05), (0.01, 0), (0, 0.01), (0.49, 0.49), (0.98, 0.01),
                                (0.01, 0.98), (0.001, 0.98), (0, 0)])  # fmt: skip
        splits = assigned(many, val, test, labels)
        assert "train" in splits
        assert ("val" in splits) == (val > 0)
        assert ("test" in splits) == (test > 0)
        alone = assigned(many, val, test)
        assert alone == sorted(alone, key=["test", "val", "train"].index), "still by digest"


def test_there_is_always_something_to_train_on(rng: random.Random) -> None:
    for count in range(1, 10):
        for _ in range(20):
            assert "train" in assigned(digests(rng, count), 0.4, 0.5)
            assert "train" in assigned(digests(rng, count), 0.4, 0.5, clustered(rng, count, 0.5))
    assert assigned([], 0.4, 0.5) == []
    assert assigned([], 0.4, 0.5, []) == []
    assert assigned([number(0.01)], 0.05, 0.05) == ["train"]


def test_a_cluster_of_more_than_half_goes_to_train(rng: random.Random) -> None:
    for _ in range(200):
        count = rng.randint(3, 60)
        many = digests(rng, count)
        huge = set(rng.sample(range(count), count // 2 + 1))
        labels = [min(huge) if n in huge else n for n in range(count)]
        splits = assigned(many, 0.45, 0.45, labels)
        assert {splits[n] for n in huge} == {"train"}
        if count - len(huge) >= 9:
            assert set(splits) == set(SPLITS)
