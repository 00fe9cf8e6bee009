"""Which tokens a step sees: nothing lost, nothing twice, nothing that leaks."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chatbench.corpus.shards import ShardWriter, TokenSplit
from chatbench.errors import DataError
from chatbench.model.attention import Packing
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.text.rendering import RenderedArrays
from chatbench.train.batches import (
    Batches,
    PackedRows,
    Row,
    StreamRows,
    collate,
    held_out,
    pack,
)
from chatbench.train.likelihood import Likelihood
from chatbench.train.objective import Batch, Loss

VOCAB = 60
END, TURN = 50, 51


def split_of(folder: Path, documents: list[tuple[list[int], list[int]]]) -> TokenSplit:
    """Documents of (ids, weights) as a split on disk."""
    writer = ShardWriter(folder / "00000.safetensors", VOCAB)
    for ids, weights in documents:
        starts = np.array([0, len(ids)])
        writer.add(RenderedArrays(np.array(ids, np.uint32), starts, np.array(weights, np.uint8)))
    writer.close()
    return TokenSplit(folder)


def texts(rng: random.Random, count: int) -> list[tuple[list[int], list[int]]]:
    ids = [[rng.randrange(END) for _ in range(rng.randint(1, 30))] + [END] for _ in range(count)]
    return [(document, [1] * len(document)) for document in ids]


def conversation(rng: random.Random, turns: int, longest: int = 6) -> tuple[list[int], list[int]]:
    """Turns that begin with TURN; every second one is learned but for its beginning."""
    ids: list[int] = []
    weights: list[int] = []
    for turn in range(turns):
        length = rng.randint(1, longest)
        ids += [TURN, *(rng.randrange(END) for _ in range(length))]
        weights += [0] + [turn % 2] * length
    return ids, weights


def conversations(rng: random.Random, count: int) -> list[tuple[list[int], list[int]]]:
    return [conversation(rng, 2 * rng.randint(1, 2)) for _ in range(count)]


def pieces_of(row: Row) -> list[tuple[list[int], list[int], list[float], list[int]]]:
    """ids, targets, weights and positions of each document in a packed row."""
    found = []
    for name in range(1, int(row.document.max()) + 1):
        at = row.document == name
        columns = (row.ids, row.targets, row.weights, row.position)
        found.append(tuple(column[at].tolist() for column in columns))
    return found


def tiny_model(rng: random.Random, dtype: torch.dtype = torch.float64) -> GPT:
    model = GPT(ModelConfig(VOCAB, 2, 16, 2, 1, 8, 24, 64))
    initialise(model, rng.randrange(1 << 20))
    generator = torch.Generator().manual_seed(rng.randrange(1 << 20))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.to(dtype)


class ThreeByteTokens:
    """Stands for a tokenizer whose text tokens spell three bytes each, its control tokens none."""

    token_bytes = [b"abc"] * END + [b""] * (VOCAB - END)


def likelihood() -> Likelihood:
    return Likelihood(None, [], ThreeByteTokens())  # type: ignore[arg-type]


def batch_of(documents: list[tuple[list[int], list[int]]], width: int) -> Batch:
    """One row with these documents packed by hand, position by position."""
    columns = np.zeros((4, width), np.int64)
    weights = np.zeros(width, np.float32)
    at = 0
    for name, (ids, learned) in enumerate(documents, 1):
        for place in range(len(ids) - 1):
            columns[:, at] = ids[place], ids[place + 1], name, place
            weights[at] = learned[place + 1]
            at += 1
    ids, targets, document, position = (torch.from_numpy(c)[None] for c in columns)
    return Batch(ids, targets, torch.from_numpy(weights)[None], Packing(document, position))


# -- texts ------------------------------------------------------------------------------------


def test_every_token_of_a_text_is_a_target_once_an_epoch(
    tmp_path: Path, rng: random.Random
) -> None:
    documents = texts(rng, 40)
    rows = StreamRows(split_of(tmp_path, documents), 16, END, seed=3)
    epoch = rng.randrange(5)
    stream: list[int] = []
    for number in range(rows.count()):
        row = rows.row(epoch, number)
        counted = row.weights > 0
        stream += row.targets[counted].tolist()
    inputs = [END, *stream[:-1]]
    seen = [
        token
        for number in range(rows.count())
        for token in rows.row(epoch, number).ids[rows.row(epoch, number).weights > 0].tolist()
    ]
    assert seen == inputs, "the input of a target is the token before it"
    found: list[tuple[int, ...]] = []
    piece: list[int] = []
    for token in stream:
        piece.append(token)
        if token == END:
            found.append(tuple(piece))
            piece = []
    assert sorted(found) == sorted(tuple(ids) for ids, _ in documents)
    assert not piece


def test_only_the_last_row_is_padded_and_padding_weighs_nothing(
    tmp_path: Path, rng: random.Random
) -> None:
    split = split_of(tmp_path, texts(rng, 25))
    rows = StreamRows(split, 16, END, seed=0)
    weights = [float(rows.row(0, number).weights.sum()) for number in range(rows.count())]
    assert weights[:-1] == [16.0] * (rows.count() - 1)
    assert sum(weights) == split.tokens
    assert all(len(column) == 16 for column in rows.row(0, rows.count() - 1))


def test_another_epoch_has_another_order(tmp_path: Path, rng: random.Random) -> None:
    rows = StreamRows(split_of(tmp_path, texts(rng, 40)), 16, END, seed=0)
    first, second = (
        [rows.row(epoch, number).targets.tolist() for number in range(rows.count())]
        for epoch in (0, 1)
    )
    assert first != second


def test_another_seed_has_another_order(tmp_path: Path, rng: random.Random) -> None:
    split = split_of(tmp_path, texts(rng, 40))
    first, second = (StreamRows(split, 16, END, seed).row(0, 0).targets.tolist() for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("kind", ["texts", "conversations"])
def test_a_batch_is_a_function_of_seed_and_step(
    tmp_path: Path, rng: random.Random, kind: str
) -> None:
    documents = texts(rng, 40) if kind == "texts" else conversations(rng, 40)
    split = split_of(tmp_path, documents)

    def rows() -> StreamRows | PackedRows:
        return StreamRows(split, 16, END, 5) if kind == "texts" else PackedRows(split, 32, TURN, 5)

    def flat(step: int, micro: int, used: StreamRows | PackedRows) -> list[list[float]]:
        parts = Batches(used, 5, micro).batch(step).parts
        return [
            [value for value, weight in zip(row.tolist(), weights.tolist(), strict=True) if weight]
            for part in parts
            for column in (part.ids, part.targets)
            for row, weights in zip(column, part.weights, strict=True)
        ]

    used = rows()
    for step in rng.sample(range(30), 6):
        assert flat(step, 5, used) == flat(step, 5, rows()), "whatever came before"
        one_by_one = flat(step, 1, used)
        whole = flat(step, 5, used)
        assert sorted(map(tuple, one_by_one)) == sorted(map(tuple, whole)), "in any micro-batch"
        weights = [Batches(used, 5, micro).batch(step).weight for micro in (1, 2, 5)]
        assert len(set(weights)) == 1


def test_batches_go_through_all_rows_before_one_comes_again(
    tmp_path: Path, rng: random.Random
) -> None:
    rows = PackedRows(split_of(tmp_path, conversations(rng, 40)), 32, TURN, seed=1)
    batches = Batches(rows, 1, 1)
    seen = [
        tuple(batches.batch(step).parts[0].ids.flatten().tolist()) for step in range(rows.count())
    ]
    wanted = [tuple(np.trim_zeros(rows.row(0, n).ids, "b").tolist()) for n in range(rows.count())]
    assert sorted(tuple(np.trim_zeros(np.array(s), "b").tolist()) for s in seen) == sorted(wanted)


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_the_rows_of_the_same_global_batch(
    tmp_path: Path, rng: random.Random, world: int
) -> None:
    """Each row once, in as many micro-batches everywhere; weight and tokens are everybody's."""
    seed = rng.randrange(1000)
    (tmp_path / "texts").mkdir()
    (tmp_path / "chats").mkdir()
    streams = StreamRows(split_of(tmp_path / "texts", texts(rng, 30)), 8, END, seed)
    chats = split_of(tmp_path / "chats", conversations(rng, 40))
    per_step, micro = rng.randint(1, 7), rng.randint(1, 3)
    for rows in (streams, PackedRows(chats, 24, TURN, seed)):
        whole = Batches(rows, per_step, 1)
        shares = [Batches(rows, per_step, micro, rank=r, ranks=world) for r in range(world)]
        for step in rng.sample(range(50), 5):
            wanted = whole.batch(step)
            found = [share.batch(step) for share in shares]
            assert {(b.weight, b.tokens) for b in found} == {(wanted.weight, wanted.tokens)}
            assert len({len(b.parts) for b in found}) == 1
            ours = [row for b in found for part in b.parts for row in counted_rows(part)]
            theirs = [row for part in wanted.parts for row in counted_rows(part)]
            assert sorted(ours) == sorted(theirs)


def counted_rows(batch: Batch) -> list[list[tuple[int, int, float]]]:
    """Ids, targets and weights of rows that count, up to the last place that does."""
    rows = []
    for ids, targets, weights in zip(*(t.tolist() for t in batch[:3]), strict=True):
        if any(weights):
            last = max(place for place, weight in enumerate(weights) if weight)
            rows.append(list(zip(ids, targets, weights, strict=True))[: last + 1])
    return rows


def test_a_training_split_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to learn"):
        Batches(StreamRows(TokenSplit(tmp_path), 16, END, 0), 1, 1)


def test_validation_is_the_beginning_of_the_split_and_always_the_same(
    tmp_path: Path, rng: random.Random
) -> None:
    rows = StreamRows(split_of(tmp_path, texts(rng, 40)), 16, END, seed=0)
    first, again = (held_out(rows, 2, 80) for _ in range(2))
    assert sum(len(batch.ids) for batch in first) == 5
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first, again, strict=True))
    assert held_out(StreamRows(TokenSplit(tmp_path / "none"), 16, END, 0), 2, 80) == []


# -- conversations ----------------------------------------------------------------------------


def test_no_conversation_is_lost_or_cut_when_it_fits(tmp_path: Path, rng: random.Random) -> None:
    documents = conversations(rng, 50)
    rows = PackedRows(split_of(tmp_path, documents), 40, TURN, seed=2)
    for epoch in (0, 3):
        pieces = [p for number in range(rows.count()) for p in pieces_of(rows.row(epoch, number))]
        wanted = [
            (ids[:-1], ids[1:], [float(w) for w in weights[1:]], list(range(len(ids) - 1)))
            for ids, weights in documents
        ]
        assert sorted(pieces) == sorted(wanted)
    assert rows.tally.skipped == 0


def test_rows_of_conversations_come_in_another_order_each_epoch(
    tmp_path: Path, rng: random.Random
) -> None:
    rows = PackedRows(split_of(tmp_path, conversations(rng, 50)), 40, TURN, seed=2)
    first, second = ([rows.row(e, n).ids.tolist() for n in range(rows.count())] for e in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second)


def test_places_that_no_document_fills_weigh_nothing(tmp_path: Path, rng: random.Random) -> None:
    rows = PackedRows(split_of(tmp_path, conversations(rng, 30)), 64, TURN, seed=0)
    for number in range(rows.count()):
        row = rows.row(0, number)
        assert not row.weights[row.document == 0].any()


def test_long_conversations_are_cut_where_turns_begin(tmp_path: Path, rng: random.Random) -> None:
    ids, weights = conversation(rng, 30, longest=5)
    rows = PackedRows(split_of(tmp_path, [(ids, weights)]), 16, TURN, seed=0)
    pieces = [p for number in range(rows.count()) for p in pieces_of(rows.row(0, number))]
    assert rows.count() > 1
    assert all(piece[0][0] == TURN for piece in pieces)
    learned = sum(sum(piece[2]) for piece in pieces)
    assert learned == sum(weights), "no learned token is lost at a cut"


def test_a_turn_longer_than_a_row_keeps_all_its_targets(tmp_path: Path, rng: random.Random) -> None:
    reply = [rng.randrange(END) for _ in range(50)]
    ids, weights = [TURN, 1, TURN, *reply], [0, 0, 0, *([1] * len(reply))]
    rows = PackedRows(split_of(tmp_path, [(ids, weights)]), 16, TURN, seed=0)
    targets = [
        token
        for number in range(rows.count())
        for token, weight in zip(*rows.row(0, number)[1:3], strict=True)
        if weight
    ]
    assert sorted(targets) == sorted(reply)


def test_pieces_without_a_reply_are_left_out_and_counted(
    tmp_path: Path, rng: random.Random
) -> None:
    silent = ([TURN, 1, 2, 3], [0, 0, 0, 0])
    spoken = conversation(rng, 2)
    split = split_of(tmp_path, [silent, spoken, silent])
    rows = PackedRows(split, 32, TURN, seed=0)
    assert (rows.tally.skipped, rows.count()) == (2, 1)
    assert [p[0] for p in pieces_of(rows.row(0, 0))] == [spoken[0][:-1]]


def test_learning_all_weighs_every_token_that_has_one_before_it(
    tmp_path: Path, rng: random.Random
) -> None:
    documents = conversations(rng, 10)
    rows = PackedRows(split_of(tmp_path, documents), 40, TURN, seed=0, train_on="all")
    total = sum(rows.row(0, number).weights.sum() for number in range(rows.count()))
    assert total == sum(len(ids) - 1 for ids, _ in documents)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 64))
def test_packing_overfills_no_bin_and_drops_no_item(lengths: list[int], capacity: int) -> None:
    bins = pack(lengths, capacity)
    assert sorted(item for chosen in bins for item in chosen) == list(range(len(lengths)))
    assert all(0 < sum(lengths[item] for item in chosen) <= capacity for chosen in bins)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_packing_leaves_no_two_bins_that_fit_into_one(lengths: list[int]) -> None:
    loads = sorted(sum(lengths[item] for item in chosen) for chosen in pack(lengths, 40))
    assert len(loads) == 1 or loads[0] + loads[1] > 40


# -- the loss over them -------------------------------------------------------------------------


def test_the_loss_of_packed_documents_is_the_sum_of_their_losses(rng: random.Random) -> None:
    model = tiny_model(rng)
    one, other = conversation(rng, 4), conversation(rng, 2)
    apart = [likelihood().loss(model, batch_of([d], len(d[0]) - 1)) for d in (one, other)]
    together = likelihood().loss(model, batch_of([one, other], 60))
    assert together.weight == sum(loss.weight for loss in apart)
    wanted = sum(float(loss.total.detach()) for loss in apart)
    assert float(together.total.detach()) == pytest.approx(wanted, abs=1e-9)


def test_a_document_is_deaf_to_its_neighbour(rng: random.Random) -> None:
    model = tiny_model(rng)
    one, other, changed = (conversation(rng, 2) for _ in range(3))
    length = len(other[0]) - 1
    hidden = [
        model(batch.ids, packing=batch.packing)[0, len(first[0]) - 1 :][:length]
        for first in (one, changed)
        for batch in [batch_of([first, other], 40)]
    ]
    assert torch.allclose(hidden[0], hidden[1], rtol=0, atol=1e-12)


def test_the_loss_equals_a_slow_reference(rng: random.Random) -> None:
    model = tiny_model(rng)
    documents = [conversation(rng, 4) for _ in range(2)]
    total = 0.0
    for ids, weights in documents:
        scores = model.logits(model(torch.tensor([ids]))[0]).log_softmax(-1)
        total -= sum(
            weight * float(scores[place, token].detach())
            for place, (token, weight) in enumerate(zip(ids[1:], weights[1:], strict=True))
        )
    packed = likelihood().loss(model, batch_of(documents, 60))
    assert float(packed.total.detach()) == pytest.approx(total, abs=1e-9)


def test_labels_of_the_prompt_change_nothing(rng: random.Random) -> None:
    model = tiny_model(rng)
    batch = batch_of([conversation(rng, 4)], 40)
    changed = torch.where(batch.weights > 0, batch.targets, (batch.targets + 7) % VOCAB)
    assert not torch.equal(changed, batch.targets)
    losses = [likelihood().loss(model, b) for b in (batch, batch._replace(targets=changed))]
    assert torch.equal(losses[0].total, losses[1].total)


def test_a_label_of_the_reply_changes_the_loss(rng: random.Random) -> None:
    model = tiny_model(rng)
    batch = batch_of([conversation(rng, 4)], 40)
    changed = torch.where(batch.weights > 0, (batch.targets + 7) % VOCAB, batch.targets)
    losses = [likelihood().loss(model, b) for b in (batch, batch._replace(targets=changed))]
    assert not torch.equal(losses[0].total, losses[1].total)


def test_a_batch_where_nothing_counts_has_loss_and_weight_zero(rng: random.Random) -> None:
    model = tiny_model(rng)
    batch = batch_of([conversation(rng, 2)], 40)
    loss = likelihood().loss(model, batch._replace(weights=torch.zeros_like(batch.weights)))
    assert (float(loss.total.detach()), loss.weight) == (0.0, 0.0)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_gradients_do_not_depend_on_the_micro_batch(
    rng: random.Random, dtype: torch.dtype, bound: float
) -> None:
    """Eight rows of one to forty targets as 1×8, 2×4 and 8×1."""
    model = tiny_model(rng, dtype)
    rows = []
    for targets in (1, 2, 40, 3, 17, 1, 29, 5):
        ids = [rng.randrange(VOCAB) for _ in range(45)]
        weights = np.zeros(44, np.float32)
        weights[:targets] = 1
        filled = np.ones(44, np.int64)
        rows.append(Row(np.array(ids[:-1]), np.array(ids[1:]), weights, filled, np.arange(44)))

    def gradients(micro: int) -> list[Tensor]:
        model.zero_grad()
        weight = float(sum(row.weights.sum() for row in rows))
        for begin in range(0, 8, micro):
            loss = likelihood().loss(model, collate(rows[begin : begin + micro], isolated=True))
            (loss.total / weight).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole = gradients(8)
    for micro in (1, 4):
        for ours, theirs in zip(gradients(micro), whole, strict=True):
            assert float((ours - theirs).abs().max()) < bound


def test_validation_counts_text_bytes_and_leaves_control_tokens_out(rng: random.Random) -> None:
    model = tiny_model(rng)
    ids = [TURN, 5, 6, TURN, 7, END, 8]
    batch = batch_of([(ids, [1] * len(ids))], len(ids) - 1)
    with torch.no_grad():
        loss: Loss = likelihood().loss(model, batch)
    scores = model.logits(model(torch.tensor([ids]))[0]).log_softmax(-1)
    nats = -sum(float(scores[n, t].detach()) for n, t in enumerate(ids[1:]) if t < END)
    assert loss.weight == 6
    assert loss.metrics["text_bytes"] == 3 * 4
    assert loss.metrics["text_nats"] == pytest.approx(nats, abs=1e-9)
    assert loss.metrics["text_nats"] < float(loss.total)


def test_bits_per_byte_of_a_uniform_model_is_known(corpus_folder: Path, tokenizer: Any) -> None:
    """All logits equal: every token costs log V, whatever the batch."""
    from chatbench.corpus.shards import open_corpus

    model = GPT(ModelConfig(tokenizer.vocab_size, 1, 8, 1, 1, 8, 8, 48))
    torch.nn.init.zeros_(model.model.embed_tokens.weight)
    split = open_corpus(corpus_folder).split("val")
    rows = StreamRows(split, 48, tokenizer.end_of_text, 0)
    judge = Likelihood(None, held_out(rows, 4, 1 << 20), tokenizer)  # type: ignore[arg-type]
    with torch.no_grad():
        losses = [judge.loss(model, batch) for batch in judge.validation()]
    documents = [split.ids(number).tolist() for number in range(len(split))]
    text = sum(len(tokenizer.token_bytes[token]) for ids in documents for token in ids)
    spelled = sum(token not in tokenizer.control_ids for ids in documents for token in ids)
    assert sum(loss.metrics["text_bytes"] for loss in losses) == text
    nats = sum(loss.metrics["text_nats"] for loss in losses)
    assert nats == pytest.approx(spelled * math.log(tokenizer.vocab_size), rel=1e-6)


USER, ASSISTANT = 52, 53


def test_a_long_dialogue_is_cut_before_a_question_where_one_fits(
    rng: random.Random, tmp_path: Path
) -> None:
    ids: list[int] = []
    weights: list[int] = []
    for turn in range(12):
        length = rng.randint(1, 6)
        role = ASSISTANT if turn % 2 else USER
        ids += [TURN, role, *(rng.randrange(END) for _ in range(length))]
        weights += [0, 0] + [turn % 2] * length
    split = split_of(tmp_path, [(ids, weights)])
    for seq_len in range(20, len(ids)):  # two turns take at most sixteen
        rows = PackedRows(split, seq_len, TURN, 0, user_turn=[TURN, USER])
        for number in range(rows.count()):
            for piece_ids, *_ in pieces_of(rows.row(0, number)):
                assert piece_ids[:2] == [TURN, USER]


def test_plain_texts_are_not_replies(tmp_path: Path) -> None:
    text, chat = ([1, 2, 3, END], [1, 1, 1, 1]), ([TURN, 4, TURN, 5], [0, 0, 0, 1])
    split = split_of(tmp_path, [text, chat])
    replies = PackedRows(split, 64, TURN, 0)
    every = PackedRows(split, 64, TURN, 0, train_on="all")
    assert (replies.tally.skipped, every.tally.skipped) == (1, 0)
    assert replies.row(0, 0).weights.sum() == 1
    assert every.row(0, 0).weights.sum() == 6


def test_without_a_token_for_turns_dialogues_are_cut_where_a_persons_turn_is_spelled(
    rng: random.Random, tmp_path: Path
) -> None:
    """The ids of such a turn occur inside of others only as a part."""
    opening = [7, 8, 9]
    ids: list[int] = [1]
    weights: list[int] = [0]
    for _ in range(10):
        question = [rng.randrange(10, END) for _ in range(rng.randint(1, 4))]
        reply = [7, 8, *(rng.randrange(10, END) for _ in range(rng.randint(1, 4)))]
        ids += [*opening, *question, *reply]
        weights += [0] * (3 + len(question)) + [1] * len(reply)
    split = split_of(tmp_path, [(ids, weights)])
    for seq_len in range(18, len(ids)):
        rows = PackedRows(split, seq_len, None, 0, user_turn=opening)
        learned = 0
        for number in range(rows.count()):
            for piece_ids, *_ in pieces_of(rows.row(0, number)):
                assert list(piece_ids[:3]) == opening or piece_ids[0] == 1
            learned += int(rows.row(0, number).weights.sum())
        assert learned == sum(weights)
    uncut = PackedRows(split, 12, None, 0)
    assert sum(int(uncut.row(0, n).weights.sum()) for n in range(uncut.count())) == sum(weights)
