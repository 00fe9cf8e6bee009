"""Tags left out in training: by chance as asked, anew in each epoch, and nothing else changes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from train.test_batches import END, TURN, VOCAB, pieces_of

from chatbench.corpus.shards import ShardWriter, TokenSplit
from chatbench.corpus.untagging import splices
from chatbench.text.rendering import RenderedArrays
from chatbench.train.batches import Batches, PackedRows, StreamRows
from chatbench.train.tagging import Tagging

SYSTEM, USER = 52, 53
Tokens = tuple[list[int], list[int]]


class Made:
    """A document: its variants, with all tags first, then with none, then without each."""

    def __init__(self, variants: list[Tokens]) -> None:
        self.variants = variants


def rendered(rows: list[Tokens]) -> RenderedArrays:
    starts = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    ids, weights = (np.array([n for row in rows for n in row[side]], int) for side in (0, 1))
    return RenderedArrays(ids.astype(np.uint32), starts, weights.astype(np.uint8))


def split_of(folder: Path, documents: list[Made], step: int = 7) -> TokenSplit:
    """On disk, in several pieces of a shard."""
    writer = ShardWriter(folder / "00000.safetensors", VOCAB)
    for begin in range(0, len(documents), step):
        some = documents[begin : begin + step]
        whole = rendered([d.variants[0] for d in some])
        others = rendered([v for d in some for v in d.variants[1:]])
        counts = [len(d.variants) - 1 for d in some]
        writer.add(whole, None, splices(whole, counts, others) if any(counts) else None)
    writer.close()
    return TokenSplit(folder)


def words(rng: random.Random, most: int) -> list[int]:
    return [rng.randrange(END) for _ in range(rng.randint(1, most))]


def chat(rng: random.Random, tags: int, default: list[int]) -> Made:
    """A conversation; without tags `default` is its system turn, as some templates have it."""
    turns: list[int] = []
    weights: list[int] = []
    for _ in range(rng.randint(1, 2)):
        asked, told = words(rng, 5), words(rng, 5)
        turns += [TURN, USER, *asked, TURN, *told, END]
        weights += [0] * (len(asked) + 3) + [1] * (len(told) + 1)
    lines = [words(rng, 4) for _ in range(tags)]

    def with_lines(kept: list[list[int]]) -> Tokens:
        opening = [TURN, SYSTEM, *(n for line in kept for n in line)] if kept else default
        return opening + turns, [0] * len(opening) + weights

    fewer = [with_lines(lines[:n] + lines[n + 1 :]) for n in range(tags)] if tags > 1 else []
    return Made([with_lines(lines), *([with_lines([])] if tags else []), *fewer])


def chats(rng: random.Random, count: int, default: list[int]) -> list[Made]:
    return [
        chat(rng, rng.randint(0, 3), default if rng.random() < 0.5 else []) for _ in range(count)
    ]


def test_tags_go_in_the_share_asked_for(tmp_path: Path, rng: random.Random) -> None:
    """Each bound is 7 standard deviations: by chance one test in 10^11 fails."""
    split = split_of(tmp_path, [chat(rng, n % 3, []) for n in range(600)])
    dropout = rng.choice([0.1, 0.3, 0.7])
    tagging = Tagging(split, dropout, seed=rng.randrange(1000))
    none, one, trials, several = 0, 0, 0, 0
    for epoch in range(8):
        for number in range(len(split)):
            variants = split.untagged(number)
            splice = tagging.splice(epoch, number, 0, 10_000)
            assert splice is None or variants
            if not variants:
                continue
            which = next(
                (n for n, v in enumerate(variants)
                 if splice is not None and v[:2] == splice[:2] and v.growth == splice.growth), -1
            )  # fmt: skip
            trials += 1
            several += len(variants) > 1
            none += which == 0
            one += which > 0
    for found, count, share in (
        (none, trials, dropout), (one, several, dropout * (1 - dropout)),
    ):  # fmt: skip
        assert abs(found - count * share) <= 7 * (count * share * (1 - share)) ** 0.5 + 1


def test_what_goes_is_a_function_of_seed_epoch_and_document(
    tmp_path: Path, rng: random.Random
) -> None:
    split = split_of(tmp_path, [chat(rng, 1 + n % 3, []) for n in range(120)])
    places = [(epoch, number) for epoch in range(6) for number in range(len(split))]

    def drawn(seed: int, order: list[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        tagging = Tagging(split, 0.5, seed)
        return {place: tagging.ids(*place).tobytes() for place in order}

    first = drawn(3, places)
    rng.shuffle(places)
    assert drawn(3, places) == first
    # Equal by chance with probability (at least a quarter differ each time) below 0.75 ** 120.
    assert drawn(4, places) != first
    by_epoch = [[first[epoch, n] for n in range(len(split))] for epoch in range(6)]
    assert by_epoch[0] != by_epoch[1]


@pytest.mark.parametrize("dropout", [0.0, 0.4, 1.0])
def test_every_token_of_an_epoch_is_a_target_once_and_no_row_overflows(
    tmp_path: Path, rng: random.Random, dropout: float
) -> None:
    documents = chats(rng, 50, [TURN, SYSTEM, *range(rng.randint(3, 9))])
    split = split_of(tmp_path, documents)
    width, seed, epoch = rng.randint(8, 40), rng.randrange(99), rng.randrange(4)
    rows = StreamRows(split, width, END, seed, tag_dropout=dropout)
    tagging = Tagging(split, dropout, seed)
    stream: list[int] = []
    for number in range(rows.count()):
        row = rows.row(epoch, number)
        counted = row.weights > 0
        assert len(row.ids) == len(row.targets) == width
        assert rows.weight(epoch, number) == counted.sum() == row.weights.sum()
        inputs = [END if not stream else stream[-1], *row.targets[counted].tolist()[:-1]]
        assert row.ids[counted].tolist() == inputs[: counted.sum()]
        stream += row.targets[counted].tolist()
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(split))
    wanted = [n for number in order for n in tagging.ids(epoch, int(number)).tolist()]
    assert stream == wanted


@pytest.mark.parametrize("train_on", ["assistant", "all"])
@pytest.mark.parametrize("dropout", [0.0, 0.4, 1.0])
def test_packed_rows_hold_whole_conversations_with_the_tags_of_the_epoch(
    tmp_path: Path, rng: random.Random, dropout: float, train_on: str
) -> None:
    documents = chats(rng, 40, [TURN, SYSTEM, *range(rng.randint(3, 9))])
    split = split_of(tmp_path, documents)
    longest = max(len(ids) for d in documents for ids, _ in d.variants)
    rows = PackedRows(
        split, longest + rng.randint(0, 40), TURN, 5, train_on=train_on, tag_dropout=dropout
    )
    tagging = Tagging(split, dropout, 5)
    for epoch in range(3):
        wanted = []
        for number, document in enumerate(documents):
            ids = tagging.ids(epoch, number).tolist()
            assert ids in [v for v, _ in document.variants]
            weights = next(w for v, w in document.variants if v == ids)
            learned = [1.0] * (len(ids) - 1) if train_on == "all" else list(map(float, weights[1:]))
            wanted.append((ids[:-1], ids[1:], learned, list(range(len(ids) - 1))))
        found = []
        for number in range(rows.count()):
            row = rows.row(epoch, number)
            found += pieces_of(row)
            assert rows.weight(epoch, number) == row.weights.sum()
        assert sorted(found) == sorted(wanted)
        if dropout == 1.0:
            bare = [d.variants[1] if len(d.variants) > 1 else d.variants[0] for d in documents]
            assert sorted(f[0] for f in found) == sorted(ids[:-1] for ids, _ in bare)


def test_long_conversations_are_cut_and_lose_tags_in_their_first_piece_alone(
    tmp_path: Path, rng: random.Random
) -> None:
    documents = [chat(rng, rng.randint(0, 2), [TURN, *range(20)]) for _ in range(40)]
    split = split_of(tmp_path, documents)
    width = rng.randint(8, 14)
    full = PackedRows(split, width, TURN, 1)
    rows = PackedRows(split, width, TURN, 1, tag_dropout=1.0)
    assert rows.tally == full.tally
    for epoch in range(2):
        learned = [
            sum(r.row(epoch, n).weights.sum() for n in range(r.count())) for r in (full, rows)
        ]
        assert learned[0] == learned[1], "what is learned of replies does not hang on tags"
        for number in range(rows.count()):
            row = rows.row(epoch, number)
            assert rows.weight(epoch, number) == row.weights.sum()
            for ids, targets, _, position in pieces_of(row):
                assert ids[1:] == targets[:-1]
                assert position == list(range(len(ids)))


def test_without_tags_or_dropout_rows_are_what_they_were(
    tmp_path: Path, rng: random.Random
) -> None:
    tagged = split_of(tmp_path / "a", [chat(rng, 2, []) for _ in range(30)])
    plain = split_of(tmp_path / "b", [chat(rng, 0, []) for _ in range(30)])
    for split, dropout in ((tagged, 0.0), (plain, 0.5)):
        assert not Tagging(split, dropout, 0).drops
        for one, other in (
            (StreamRows(split, 16, END, 1), StreamRows(split, 16, END, 1, tag_dropout=dropout)),
            (PackedRows(split, 40, TURN, 1), PackedRows(split, 40, TURN, 1, tag_dropout=dropout)),
        ):
            assert one.count() == other.count()
            for number in range(one.count()):
                for a, b in zip(one.row(1, number), other.row(1, number), strict=True):
                    assert np.array_equal(a, b)


def test_batches_are_a_function_of_the_step(tmp_path: Path, rng: random.Random) -> None:
    """A resume needs the step only."""
    split = split_of(tmp_path, chats(rng, 40, []))
    for make in (
        lambda: PackedRows(split, 60, TURN, 2, tag_dropout=0.5),
        lambda: StreamRows(split, 32, END, 2, tag_dropout=0.5),
    ):
        steps = [rng.randrange(60) for _ in range(6)]
        known = Batches(make(), 3, 2)
        for step in steps:
            known.batch(step)
        for step in steps:
            before, now = known.batch(step), Batches(make(), 3, 2).batch(step)
            assert before.weight == now.weight
            for a, b in zip(before.parts, now.parts, strict=True):
                assert a.ids.equal(b.ids)
                assert a.targets.equal(b.targets)
                assert a.weights.equal(b.weights)
        ranks = [Batches(make(), 3, 2, rank=rank, ranks=2).batch(steps[0]) for rank in range(2)]
        assert ranks[0].weight == ranks[1].weight == Batches(make(), 3, 2).batch(steps[0]).weight
