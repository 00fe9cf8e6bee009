"""Signatures against exact Jaccard similarity, clusters against a plain greedy twin."""

from __future__ import annotations

import gzip
import math
import random
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from chatbench.corpus.cleaning import neardup
from chatbench.corpus.cleaning.grams import shingles, spell, words
from chatbench.corpus.cleaning.neardup import (
    PERMUTATIONS,
    RECALL,
    bands_for,
    find_clusters,
    find_roots,
    signatures,
    similarity,
    unite,
)
from conftest import CHINESE, ENGLISH, SHARED_DATA

EN = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("ain", "ell", "ock", "umb", "ire", "ast")]
ZH = [chr(code) for code in range(0x4E10, 0x4F80)]


def shingle_set(text: str) -> set[tuple[str, ...]]:
    words = spell(text)
    if len(words) < 5:
        return {tuple(words)} if words else set()
    return {tuple(words[n : n + 5]) for n in range(len(words) - 4)}


def jaccard(first: str, second: str) -> float:
    a, b = shingle_set(first), shingle_set(second)
    return len(a & b) / len(a | b) if a | b else 0.0


def prose(rng: random.Random, chinese: bool, length: int) -> list[str]:
    return rng.choices(ZH if chinese else EN, k=length)


def written(words: list[str], chinese: bool) -> str:
    return ("" if chinese else " ").join(words)


def edited(rng: random.Random, words: list[str], edits: int, chinese: bool) -> list[str]:
    """Replace, delete or insert `edits` words."""
    changed = list(words)
    for _ in range(edits):
        place = rng.randrange(len(changed) + 1)
        new = rng.choice(ZH if chinese else EN)
        changed[place : place + rng.choice((0, 1, 1))] = rng.choice(([], [new], [new]))
    return changed


# ---- signatures


def test_a_signature_is_its_own_text_alone(rng: random.Random) -> None:
    texts = [written(prose(rng, n % 2 == 0, rng.randrange(300)), n % 2 == 0) for n in range(60)]
    texts += ["", "...", "one", "茶", "two words", ENGLISH, CHINESE]
    whole = signatures(texts)
    assert whole.shape == (len(texts), PERMUTATIONS)
    assert whole.dtype == np.uint32
    cut = rng.randrange(len(texts))
    assert np.array_equal(np.concatenate([signatures(texts[:cut]), signatures(texts[cut:])]), whole)
    order = rng.sample(range(len(texts)), len(texts))
    assert np.array_equal(signatures([texts[n] for n in order]), whole[order])
    assert signatures([]).shape == (0, PERMUTATIONS)


def twin_signature(text: str) -> list[int]:
    """Every value as a minimum over all grams of the text."""
    grams = shingles(words([text]), 5).hashes.tolist()
    ranks = neardup._preferences()[0].astype(int) // neardup._FEW_BINS
    cut = [(gram >> 53, gram >> 21 & 0xFFFFFFFF) for gram in grams]
    if not cut:
        return [0xFFFFFFFF] * PERMUTATIONS
    return [min((ranks[b, place], value) for b, value in cut)[1] for place in range(PERMUTATIONS)]


def test_a_signature_is_what_the_slow_twin_says(rng: random.Random) -> None:
    for length in (0, 1, 4, 5, 9, 60, 131, 132, 133, 300, 900):
        text = written(prose(rng, bool(length % 2), length), bool(length % 2))
        assert signatures([text])[0].tolist() == twin_signature(text)


def test_every_value_has_its_own_order_of_all_bins() -> None:
    scaled, order = neardup._preferences()
    ranks = scaled // neardup._FEW_BINS
    everything = np.arange(len(ranks))
    for place in range(PERMUTATIONS):
        assert np.array_equal(np.sort(order[:, place]), everything)
        assert np.array_equal(ranks[order[:, place], place], everything)
    firsts = [set(order[:18, place].tolist()) for place in range(PERMUTATIONS)]
    assert len(set.union(*firsts)) == 18 * PERMUTATIONS, "no two begin with the same bins"


@pytest.mark.parametrize("length", [6, 12, 25, 60, 120, 250, 1000])
def test_estimates_are_as_good_as_minhash_theory(length: int, rng: random.Random) -> None:
    errors, bias, theory = [], [], []
    firsts, seconds, truth = [], [], []
    for n in range(400):
        chinese = n % 2 == 0
        words = prose(rng, chinese, length)
        other = edited(rng, words, rng.randrange(1, max(3, length // 12)), chinese)
        # Shared beginnings of any length give every similarity.
        if n % 3 == 0:
            other = words[: rng.randrange(length)] + prose(rng, chinese, length // 2)
        firsts.append(written(words, chinese))
        seconds.append(written(other, chinese))
        truth.append(jaccard(firsts[-1], seconds[-1]))
    for estimate, exact in zip(
        similarity(signatures(firsts), signatures(seconds)), truth, strict=True
    ):
        errors.append(abs(estimate - exact))
        bias.append(estimate - exact)
        # Mean absolute deviation of a binomial share, by its normal approximation.
        theory.append(math.sqrt(2 / math.pi * exact * (1 - exact) / PERMUTATIONS))
    spread = sum(t * t * math.pi / 2 for t in theory) ** 0.5
    # An absolute error deviates by 0.6 standard errors from its mean; five times that for luck.
    assert sum(errors) <= 1.05 * sum(theory) + 5 * 0.6 * spread
    assert abs(sum(bias)) <= 5 * spread + 1e-9


def test_what_people_would_call_the_same_has_similarity_one() -> None:
    pairs = [
        ("Tea, books & paper!", "tea books paper"),
        ("小店早上九点开门。", "小店，早上九点开门"),
        ("ONE", "one."),
        ("cafe\u0301 au lait", "café au lait"),
    ]
    found = similarity(signatures([a for a, _ in pairs]), signatures([b for _, b in pairs]))
    assert found.tolist() == [1.0] * len(pairs)


def test_texts_without_words_are_like_nothing() -> None:
    table = signatures(["", "...", "！？", "tea"])
    assert similarity(table[[0, 1, 0]], table[[1, 2, 3]]).tolist() == [0.0] * 3
    assert find_clusters(table, 0.5).cluster.tolist() == [0, 1, 2, 3]


# ---- bands


def test_bands_reach_the_recall_they_promise_and_no_more_rows_would() -> None:
    for threshold in (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0):
        bands, rows = bands_for(threshold)
        assert bands * rows <= PERMUTATIONS
        assert 1 - (1 - threshold**rows) ** bands >= RECALL
        if rows < PERMUTATIONS:
            more = rows + 1
            assert 1 - (1 - threshold**more) ** (PERMUTATIONS // more) < RECALL
    assert bands_for(0.8) == (16, 7)
    assert bands_for(0.5) == (37, 3)
    assert bands_for(1) == (1, PERMUTATIONS)


# ---- clusters


def groups_of(labels: Any) -> set[frozenset[int]]:
    found: dict[int, set[int]] = {}
    for number, label in enumerate(labels):
        found.setdefault(int(label), set()).add(number)
    return {frozenset(group) for group in found.values()}


def twin_clusters(table: Any, threshold: float) -> tuple[list[int], list[bool]]:
    """All pairs, flood fill, greedy: in plain Python."""
    count = len(table)
    alike = [
        [m for m in range(count) if m != n and (table[n] == table[m]).mean() >= threshold - 1e-12]
        for n in range(count)
    ]
    cluster = list(range(count))
    for n in range(count):
        todo = [n] if cluster[n] == n else []
        while todo:
            for m in alike[todo.pop()]:
                if cluster[m] > n:
                    cluster[m] = n
                    todo.append(m)
    kept: list[int] = []
    dropped = [False] * count
    for n in range(count):
        dropped[n] = any(m in kept for m in alike[n])
        if not dropped[n]:
            kept.append(n)
    return cluster, dropped


def families(rng: random.Random, count: int) -> list[str]:
    """Texts in groups of near-copies, each with its own number of edits."""
    texts = []
    while len(texts) < count:
        chinese = rng.random() < 0.5
        words = prose(rng, chinese, rng.choice((3, 8, 60, 200)))
        for _ in range(rng.choice((1, 1, 2, 3, 8))):
            texts.append(written(words, chinese))
            words = edited(rng, words, rng.randrange(3), chinese)
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
def test_clusters_are_those_of_the_slow_twin(threshold: float, rng: random.Random) -> None:
    table = signatures(families(rng, 250))
    found = find_clusters(table, threshold)
    cluster, dropped = twin_clusters(table, threshold)
    # A pair that shares no band is no candidate, so a component may break, rarely; none may grow.
    expected, got = groups_of(cluster), groups_of(found.cluster)
    assert all(any(group <= whole for whole in expected) for group in got)
    joined = sum(len(group) - 1 for group in expected)
    assert sum(len(group) - 1 for group in got) >= 0.9 * joined - 1
    if got == expected:
        assert found.dropped.tolist() == dropped
    assert [min(group) for group in sorted(got, key=min)] == sorted(set(found.cluster.tolist()))


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_the_order_of_reading_changes_nothing(threshold: float, rng: random.Random) -> None:
    import hashlib

    texts = sorted(set(families(rng, 300)), key=lambda t: hashlib.sha256(t.encode()).digest())
    table = signatures(texts)
    found = find_clusters(table, threshold)

    # The rows lie in another order, in chunks, between those of documents that are left out.
    place = np.array(rng.sample(range(len(texts) + 50), len(texts)))
    stored = np.zeros((len(texts) + 50, PERMUTATIONS), np.uint32)
    stored[place] = table
    cuts = sorted(rng.choices(range(len(stored)), k=4))
    again = find_clusters(np.split(stored, cuts), threshold, place)
    assert np.array_equal(again.cluster, found.cluster)
    assert np.array_equal(again.dropped, found.dropped)


def test_small_pieces_of_work_give_the_same(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = signatures(families(rng, 400) + ["the same five words again"] * 40)
    whole = find_clusters(table, 0.6)
    for name, value in (
        ("_SORTED_AT_ONCE", 30), ("_BAND_BYTES", 9000), ("_PAIRS_AT_ONCE", 7),
        ("_ROWS_AT_ONCE", 11),
    ):  # fmt: skip
        monkeypatch.setattr(neardup, name, value)
    again = find_clusters(table, 0.6)
    assert np.array_equal(again.cluster, whole.cluster)
    assert np.array_equal(again.dropped, whole.dropped)


def test_a_chain_is_one_cluster_but_its_far_end_is_kept() -> None:
    words = [f"w{n}" for n in range(200)]
    a, b, c = (" ".join(words[start : start + 180]) for start in (0, 10, 20))
    assert jaccard(a, b) > 0.85 > 0.8 > jaccard(a, c)
    for order in ((a, b, c), (b, a, c)):
        table = signatures(order)
        assert similarity(table[[0, 1, 0]], table[[1, 2, 2]]).min() > 0.7
    table = signatures([a, b, c])
    bound = float(similarity(table[[0]], table[[2]])[0]) + 0.005
    chain = find_clusters(table, bound)
    assert chain.cluster.tolist() == [0, 0, 0]
    assert chain.dropped.tolist() == [False, True, False]
    middle_first = find_clusters(table[[1, 0, 2]], bound)
    assert middle_first.dropped.tolist() == [False, True, True]


def test_a_hundred_thousand_copies_are_one_bucket_without_quadratic_work() -> None:
    table = np.repeat(signatures(["the shop sells tea and paper", ENGLISH]), [100_000, 1], axis=0)
    compared = 0
    agreeing = neardup._agreeing

    def counting(first: Any, second: Any) -> Any:
        nonlocal compared
        compared += len(first)
        return agreeing(first, second)

    tracemalloc.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neardup, "_agreeing", counting)
        found = find_clusters(table, 0.8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.cluster.tolist() == [0] * 100_000 + [100_000]
    assert found.dropped.sum() == 99_999
    assert compared < 3 * len(table)
    assert peak < 120 << 20


def test_a_crowded_bucket_of_strangers_costs_a_bounded_number_of_comparisons(
    rng: random.Random,
) -> None:
    chance = np.random.default_rng(rng.getrandbits(32))
    table = chance.integers(0, 1 << 31, (3000, PERMUTATIONS)).astype(np.uint32)
    bands, rows = bands_for(0.8)
    table[:, :rows] = 7  # one band in common, nothing else
    table[2999] = table[1234]
    compared = 0
    agreeing = neardup._agreeing

    def counting(first: Any, second: Any) -> Any:
        nonlocal compared
        compared += len(first)
        return agreeing(first, second)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neardup, "_agreeing", counting)
        found = find_clusters(table, 0.8)
    assert compared <= 18 * len(table)
    assert np.flatnonzero(found.dropped).tolist() == [2999]
    assert found.cluster[2999] == 1234
    assert bands > 1


def planted(rng: random.Random, chinese: bool) -> tuple[list[str], list[tuple[int, int]]]:
    texts: list[str] = []
    pairs = []
    for _ in range(150):
        words = prose(rng, chinese, 200)
        texts.append(written(words, chinese))
        texts.append(written(edited(rng, words, rng.randrange(1, 4), chinese), chinese))
        pairs.append((len(texts) - 2, len(texts) - 1))
    return texts, pairs


@pytest.mark.parametrize("chinese", [False, True])
def test_planted_near_duplicates_are_found_and_nothing_else(
    chinese: bool, rng: random.Random
) -> None:
    texts, pairs = planted(rng, chinese)
    found = find_clusters(signatures(texts), 0.8).cluster
    together = [(a, b) for a, b in pairs if found[a] == found[b]]
    alike = [(a, b) for a, b in pairs if jaccard(texts[a], texts[b]) >= 0.87]
    assert len(alike) > 60
    assert len(set(alike) & set(together)) >= 0.97 * len(alike)
    assert len(set(found.tolist())) == len(texts) - len(together), "no two strangers meet"
    # Three standard errors below the threshold.
    assert all(jaccard(texts[a], texts[b]) > 0.8 - 3 * 0.038 - 0.02 for a, b in together)


def editions(*names: str) -> Iterator[str]:
    folder = SHARED_DATA / "messy-encodings" / "gutenberg"
    if not folder.is_dir():
        pytest.skip("needs the real data")
    for name in names:
        yield (folder / name).read_bytes().decode("utf-8" if "-0" in name else "latin-1")


def test_editions_of_one_book_are_near_duplicates() -> None:
    carols = list(editions("46-0.txt", "46-8.txt", "46.txt"))
    alices = list(editions("11.txt", "alice30.txt"))
    texts = [*carols, *alices]
    table = signatures(texts)
    for a in range(5):
        for b in range(a):
            exact = jaccard(texts[a], texts[b])
            estimate = float(similarity(table[[a]], table[[b]])[0])
            assert abs(estimate - exact) <= 4 * math.sqrt(0.25 / PERMUTATIONS)
    assert find_clusters(table, 0.8).cluster.tolist()[:3] == [0, 0, 0]
    lower = find_clusters(table, 0.5)
    assert lower.cluster.tolist() == [0, 0, 0, 3, 3]
    assert lower.dropped.tolist() == [False, True, True, False, True]


def test_real_passages_are_estimated_as_well_as_theory_says() -> None:
    file = SHARED_DATA / "gutenberg-zh"
    books = sorted(file.glob("*.gz"))
    if not books:
        pytest.skip("needs the real data")
    text = gzip.decompress(books[0].read_bytes()).decode()[20_000:60_000]
    shifts = range(0, 300, 3)
    window = [text[1000 : 1000 + 300]] * len(shifts)
    moved = [text[1000 + shift : 1300 + shift] for shift in shifts]
    found = similarity(signatures(window), signatures(moved))
    exact = np.array([jaccard(a, b) for a, b in zip(window, moved, strict=True)])
    assert np.abs(found - exact).mean() < 0.05
    assert np.abs(found - exact).max() < 0.2


# ---- union-find


@pytest.mark.parametrize("shape", ["chain", "star", "random", "tree", "back"])
def test_components_are_those_of_a_flood_fill(shape: str, rng: random.Random) -> None:
    count = 3000
    edges: dict[str, Callable[[], list[tuple[int, int]]]] = {
        "chain": lambda: [(n, n + 1) for n in range(count - 1)],
        "star": lambda: [(count - 1, n) for n in range(0, count - 1, 2)],
        "random": lambda: [(rng.randrange(count), rng.randrange(count)) for _ in range(1500)],
        "tree": lambda: [(n, (n * 7919 + 1) % count) for n in range(count)],
        "back": lambda: [(n + 1, n) for n in range(count - 1)][::-1],
    }
    pairs = edges[shape]()
    parent = np.arange(count)
    for start in range(0, len(pairs), 500):
        part = np.array(pairs[start : start + 500])
        unite(parent, part[:, 0], part[:, 1])
    neighbours: dict[int, list[int]] = {n: [] for n in range(count)}
    for a, b in pairs:
        neighbours[a].append(b)
        neighbours[b].append(a)
    expected = [-1] * count
    for n in range(count):
        todo = [n] if expected[n] < 0 else []
        while todo:
            here = todo.pop()
            if expected[here] < 0:
                expected[here] = n
                todo += neighbours[here]
    assert find_roots(parent, np.arange(count)).tolist() == expected
