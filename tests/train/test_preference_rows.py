"""Pairs in rows: whole, apart from each other, and nothing counts but the replies."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from train.preference_cases import (
    END,
    LINE,
    START,
    USER,
    USER_TURN,
    Case,
    Split,
    drawn,
    learned,
    rows_of,
    split_of,
    turn,
)

from chatbench.corpus.build import preprocess
from chatbench.corpus.shards import open_corpus
from chatbench.settings import PreprocessSettings
from chatbench.train.compiling import to_shape
from chatbench.train.preference_rows import (
    PairBatches,
    PairRows,
    find_pairs,
    parted,
    with_reference,
)
from conftest import SHARED_DATA


def texts_of(rows: PairRows, number: int) -> list[tuple[list[int], list[int]]]:
    """Of every document in a row what is read of it, and what of it counts."""
    made = rows.row(rows.bins[number]).row
    found = []
    for name in range(1, int(made.document.max()) + 1):
        at = np.flatnonzero(made.document == name)
        assert (np.diff(at) == 1).all()
        assert made.position[at].tolist() == list(range(len(at)))
        assert made.ids[at][1:].tolist() == made.targets[at][:-1].tolist()
        whole = [*made.ids[at].tolist(), int(made.targets[at[-1]])]
        counted = made.targets[at][made.weights[at] > 0].tolist()
        assert set(made.weights[at].tolist()) <= {0.0, 1.0}
        found.append((whole, counted))
    return found


def test_every_pair_is_once_in_an_epoch_and_both_sides_lie_in_one_row(rng: random.Random) -> None:
    cases = [drawn(rng) for _ in range(40)]
    rows = rows_of(cases, row_len=160)
    seen = []
    for number, pairs in enumerate(rows.bins):
        texts = texts_of(rows, number)
        assert len(texts) == 2 * len(pairs)
        for place, pair in enumerate(pairs):
            case = cases[rows.pairs[pair].chosen.document]
            seen.append(rows.pairs[pair].chosen.document)
            for (whole, counted), reply in zip(
                texts[2 * place : 2 * place + 2], case[1:], strict=True
            ):
                assert whole == [*case.prompt, *reply]
                assert counted == reply
    assert sorted(seen) == list(range(40))
    assert sorted(p for n in range(rows.count()) for p in rows.pairs_of(3, n)) == list(range(40))


def test_what_is_too_long_loses_its_oldest_turns_or_is_left_out(rng: random.Random) -> None:
    limit = rng.randint(12, 30)
    cases = [drawn(rng, turns=4) for _ in range(60)]
    split = split_of(cases)
    found = find_pairs(split, limit, USER_TURN)
    rows = PairRows(split, found.pairs, 2 * limit, 0)
    kept = {
        rows.pairs[pair].chosen.document: (number, place)
        for number, pairs in enumerate(rows.bins)
        for place, pair in enumerate(pairs)
    }
    cut = 0
    for number, case in enumerate(cases):
        asked = [n for n in range(len(case.prompt)) if case.prompt[n : n + 2] == [START, USER]]
        ways = [case.prompt] + [case.prompt[: asked[0]] + case.prompt[n:] for n in asked[1:]]
        longest = max(map(len, case[1:]))
        fitting = [way for way in ways if len(way) + longest - 1 <= limit]
        assert (number in kept) == bool(fitting)
        if fitting:
            cut += fitting[0] != case.prompt
            row, place = kept[number]
            texts = texts_of(rows, row)[2 * place : 2 * place + 2]
            assert texts == [([*fitting[0], *reply], reply) for reply in case[1:]]
    assert (found.cut, found.long) == (cut, len(cases) - len(kept))
    assert (found.same, found.alone, found.plain) == (0, 0, 0)


def test_without_markup_for_a_persons_turn_nothing_is_cut(rng: random.Random) -> None:
    cases = [drawn(rng, turns=4) for _ in range(20)]
    found = find_pairs(split_of(cases), 15, ())
    fits = [max(map(len, case[1:])) + len(case.prompt) <= 16 for case in cases]
    assert (len(found.pairs), found.long, found.cut) == (sum(fits), 20 - sum(fits), 0)


def test_replies_judged_one_by_one_are_paired_by_their_prompt(rng: random.Random) -> None:
    prompts = [[*turn(USER, [6 + n]), *drawn(rng).prompt] for n in range(12)]
    documents = []
    for number, prompt in enumerate(prompts):
        good, bad = ((0, 2), (3, 0), (2, 3), (1, 1))[number % 4]
        for which in range(good + bad):
            # Each reply is another one, and so is each prompt.
            text = [*prompt, number + 6, which + 6, END, LINE]
            documents.append((text, text if which >= good else None))
    rng.shuffle(documents)
    found = find_pairs(Split(documents), 200, USER_TURN)  # type: ignore[arg-type]
    paired = [[documents[side.document][0][side.first :] for side in pair] for pair in found.pairs]
    for number in range(12):
        mine = [pair for pair in paired if pair[0][0] == number + 6]
        assert all(bad[0] == number + 6 for _, bad in mine)
        good, bad = ({pair[side][1] for pair in mine} for side in (0, 1))
        wanted = {2: ({6, 7}, {8, 9, 10}), 3: ({6}, {7})}.get(number % 4, (set(), set()))
        assert (good, bad) == wanted
    # Of the first kind two bad ones for each prompt, of the second three good ones.
    assert (found.alone, found.plain) == (2 * 3, 3 * 3)


def test_pairs_in_which_nothing_differs_that_is_learned_are_counted(rng: random.Random) -> None:
    case = drawn(rng)
    good = [*case.prompt, *case.chosen, LINE]
    longer = [*good, START, USER, 7, END, LINE]  # the same reply, and another question after it
    found = find_pairs(Split([(good, longer)]), 200, USER_TURN)  # type: ignore[arg-type]
    assert (found.pairs, found.same) == ([], 1)


def test_batches_are_rows_of_an_epoch_weighed_by_pairs(rng: random.Random) -> None:
    cases = [drawn(rng) for _ in range(30)]
    rows = rows_of(cases, row_len=128)
    reference = np.array([[rng.random(), rng.random()] for _ in cases])
    per_step, micro = rng.randint(1, rows.count()), rng.randint(1, 4)
    batches = PairBatches(rows, reference, per_step, micro)
    for step in range(3):
        places = [divmod(step * per_step + n, rows.count()) for n in range(per_step)]
        every = [rows.pairs_of(*place) for place in places]
        whole = batches.batch(step)
        assert whole.weight == sum(map(len, every))
        assert whole.tokens == per_step * 128
        told = []
        for part in (piece for each in whole.parts for piece in each.cut(1)):
            assert part.more is not None
            assert part.packing is not None
            sides = part.packing.document[part.weights > 0].unique().tolist()
            told.append(part.more["reference"].flatten(0, 1)[: len(sides) // 2].tolist())
        assert told == [reference[pairs].tolist() for pairs in every]


def test_ranks_share_the_rows_and_agree_on_the_weight(rng: random.Random) -> None:
    cases = [drawn(rng) for _ in range(30)]
    rows = rows_of(cases, row_len=128)
    reference = np.zeros((30, 2))
    per_step, ranks = rng.randint(1, 7), rng.randint(2, 3)
    alone = PairBatches(rows, reference, per_step, 2).batch(1)
    shares = [
        PairBatches(rows, reference, per_step, 2, rank=rank, ranks=ranks).batch(1)
        for rank in range(ranks)
    ]
    assert {share.weight for share in shares} == {alone.weight}
    assert len({len(share.parts) for share in shares}) == 1
    counted = [sum(float(p.weights.sum()) for p in each.parts) for each in (alone, *shares)]
    assert counted[0] == sum(counted[1:])


def test_a_compiled_model_gets_rows_of_one_shape(rng: random.Random) -> None:
    rows = rows_of([drawn(rng) for _ in range(6)], row_len=128)
    reference = np.array([[rng.random(), rng.random()] for _ in rows.pairs])
    batch = with_reference([rows.row(pairs) for pairs in rows.bins[:2]], reference)
    padded = to_shape(batch, 4, 128)
    assert padded.ids.shape == (4, 128)
    assert padded.more is not None
    assert batch.more is not None
    lines, pairs = batch.more["reference"].shape[:2]
    assert torch.equal(padded.more["reference"][:lines, :pairs], batch.more["reference"])
    assert not padded.more["reference"][lines:].any()


@pytest.mark.parametrize(("prompts", "held"), [(1, 0), (3, 0), (4, 1), (20, 1), (21, 2), (60, 3)])
def test_a_twentieth_of_the_prompts_is_held_out_with_all_their_pairs(
    rng: random.Random, prompts: int, held: int
) -> None:
    cases = []
    for number in range(prompts):
        prompt = [*drawn(rng).prompt[:-2], 6 + number // 30, 6 + number % 30, START, 3]
        cases += [
            Case(prompt, [rng.randrange(6, 20), END], [rng.randrange(20, 37), END])
            for _ in range(rng.randint(1, 3))
        ]
    split = split_of(cases)
    pairs = find_pairs(split, 200, USER_TURN).pairs
    kept, out = parted(split, pairs, rng.randrange(100))

    def prompts_of(some: list) -> set:  # type: ignore[type-arg]
        return {tuple(cases[pair.chosen.document].prompt) for pair in some}

    assert len(prompts_of(out)) == held
    assert not prompts_of(out) & prompts_of(kept)
    assert sorted([*kept, *out]) == sorted(pairs)


@pytest.mark.parametrize("name", ["dpo_en_demo.json.gz", "dpo_zh_demo.json.gz"])
def test_what_counts_of_real_pairs_is_what_was_said(tmp_path: Path, name: str) -> None:
    data = SHARED_DATA / "llamafactory-demo" / name
    if not data.is_file():
        pytest.skip("no real pairs here")
    folder = preprocess(
        PreprocessSettings(inputs=[str(data)], out=str(tmp_path / "corpus"), vocab_size=1000,
                           val_fraction=0.2, repair=False, profile=False)
    )  # fmt: skip
    corpus = open_corpus(folder)
    split, tokenizer = corpus.split("val"), corpus.tokenizer
    found = find_pairs(split, 1 << 16, tokenizer.template.user_turn)
    assert len(found.pairs) == len(split) - found.same > 20
    rows = PairRows(split, found.pairs, 1 << 17, 0)
    written = list(corpus.rows("val"))
    for number, pair in enumerate(found.pairs):
        said = written[pair.chosen.document]
        made = rows.row([number]).row
        for side, key in ((1, "messages"), (2, "rejected")):
            at = (made.document == side) & (made.weights > 0)
            reply = tokenizer.decode(made.targets[at][:-1].tolist())
            assert reply == said[key][-1]["content"].strip()
            assert made.targets[at][-1] in tokenizer.stops


def test_the_markup_of_the_cases_is_that_of_a_template() -> None:
    ids = [START, USER, 6, END, LINE, START, 3, 7, 8, END, LINE]
    assert learned(ids) == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0]
