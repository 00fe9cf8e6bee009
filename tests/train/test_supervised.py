"""What of conversations is learned: replies, last replies, replayed texts; what is cut is told."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train.test_batches import (
    END,
    TURN,
    batch_of,
    conversation,
    conversations,
    likelihood,
    pieces_of,
    split_of,
    tiny_model,
)

from chatbench.conversation import Message
from chatbench.corpus.mixture import MixedSplit, Part
from chatbench.settings import FinetuneSettings, TrainSettings
from chatbench.text.rendering import Item, render_arrays
from chatbench.train.batches import PackedRows, Tally, borders_of, collate
from chatbench.train.recipes import finetune
from chatbench.train.supervised import told, too_long
from conftest import sample_chats, write_jsonl

Documents = list[tuple[list[int], list[int]]]


def learned_of(rows: PackedRows, epoch: int = 0) -> list[list[int]]:
    """The targets that weigh something, by piece, in any order."""
    found = []
    for number in range(rows.count()):
        for _, targets, weights, _ in pieces_of(rows.row(epoch, number)):
            found.append([t for t, w in zip(targets, weights, strict=True) if w])
    return sorted(found)


def last_run(weights: list[int]) -> list[int]:
    """Slow: the places of the last stretch of ones."""
    places: list[int] = []
    for place in reversed(range(len(weights))):
        if weights[place]:
            places.insert(0, place)
        elif places:
            break
    return places


def test_stretches_are_found(rng: random.Random) -> None:
    for _ in range(200):
        weights = [rng.choice([0, 0, 1, 0.5]) for _ in range(rng.randint(0, 12))]
        slow, begin = [], None
        for place, weight in enumerate([*weights, 0]):
            if weight and begin is None:
                begin = place
            elif not weight and begin is not None:
                slow.append([begin, place])
                begin = None
        assert borders_of(np.array(weights)).tolist() == slow


def test_only_the_last_reply_is_learned(tmp_path: Path, rng: random.Random) -> None:
    documents = conversations(rng, 30)
    rows = PackedRows(split_of(tmp_path, documents), 64, TURN, 0, train_on="last")
    wanted = [[ids[place] for place in last_run(weights)] for ids, weights in documents]
    assert learned_of(rows) == sorted(wanted)
    assert rows.tally.replies == len(documents)
    total = sum(rows.weight(0, number) for number in range(rows.count()))
    assert rows.tally.learned == total == sum(map(len, wanted))


def test_of_a_long_conversation_the_piece_with_the_last_reply_is_learned(
    tmp_path: Path, rng: random.Random
) -> None:
    ids, weights = conversation(rng, 30)
    rows = PackedRows(split_of(tmp_path, [(ids, weights)]), 20, TURN, 0, train_on="last")
    assert learned_of(rows) == [[ids[place] for place in last_run(weights)]]
    assert rows.tally.skipped == rows.tally.pieces - 1


def test_a_reply_that_weighs_nothing_is_read_and_not_learned(
    tokenizer: Any, tmp_path: Path
) -> None:
    """OpenAI's weight 0: the reply before it is then the last one that counts."""
    turns = [Message("user", "茶?"), Message("assistant", "Yes 有。"), Message("user", "Tea?"),
             Message("assistant", "bad 坏", 0)]  # fmt: skip
    ids, _, weights = render_arrays(tokenizer, [Item(turns)])
    split = split_of_ids(tmp_path, tokenizer, ids.tolist(), weights.tolist())
    template = tokenizer.template
    for train_on in ("assistant", "last"):
        rows = PackedRows(
            split, 64, template.turn_start, 0, user_turn=template.user_turn, train_on=train_on
        )
        ((learned),) = learned_of(rows)
        assert tokenizer.decode(learned).strip().startswith("Yes 有。")
        assert "bad" not in tokenizer.decode(learned)


def split_of_ids(folder: Path, tokenizer: Any, ids: list[int], weights: list[int]) -> Any:
    from chatbench.corpus.shards import ShardWriter, TokenSplit
    from chatbench.text.rendering import RenderedArrays

    writer = ShardWriter(folder / "00000.safetensors", tokenizer.vocab_size)
    starts = np.array([0, len(ids)])
    writer.add(RenderedArrays(np.array(ids, np.uint32), starts, np.array(weights, np.uint8)))
    writer.close()
    return TokenSplit(folder)


def test_replayed_texts_are_learned_like_replies(tmp_path: Path, rng: random.Random) -> None:
    text = ([*(rng.randrange(END) for _ in range(9)), END], [1] * 10)
    chats = conversations(rng, 6)
    new, old = (split_of(tmp_path / name, d) for name, d in (("new", chats), ("old", [text])))
    for replayed in (True, False):
        parts = [Part(new, np.arange(len(chats))), Part(old, np.arange(1), replayed)]
        rows = PackedRows(MixedSplit(parts), 64, TURN, 0)
        assert rows.tally.skipped == (0 if replayed else 1)
        assert (text[0][1:] in learned_of(rows)) == replayed
        assert rows.tally.replies == sum(len(borders_of(np.array(w))) for _, w in chats)


# -- what is cut -----------------------------------------------------------------------------------


def test_what_is_cut_is_counted(tmp_path: Path, rng: random.Random) -> None:
    """A person's turn is TURN, 1; a reply is TURN, 2 and what is learned."""
    documents: Documents = []
    for _ in range(12):
        ids: list[int] = []
        weights: list[int] = []
        for turn in range(2 * rng.randint(1, 8)):
            length = rng.randint(1, 14)
            ids += [TURN, 1 + turn % 2, *(rng.randrange(3, END) for _ in range(length))]
            weights += [0, 0, *([turn % 2] * length)]
        documents.append((ids, weights))
    seq_len = 20
    rows = PackedRows(split_of(tmp_path, documents), seq_len, TURN, 0, user_turn=[TURN, 1])
    cut = pieces = orphans = 0
    for number, (ids, weights) in enumerate(documents):
        spans = rows._spans(number)
        if len(spans) == 1:
            continue
        cut, pieces = cut + 1, pieces + len(spans)
        for span in spans[1:]:
            begins = [p for p in range(span.start, span.end - 1) if ids[p : p + 2] == [TURN, 1]]
            asked = begins[0] if begins else span.end
            here = [0, *weights[span.start + 1 : asked]]
            orphans += sum(1 for a, b in pairwise(here) if b and not a)
    assert (rows.tally.cut, rows.tally.pieces, rows.tally.orphans) == (cut, pieces, orphans)
    # Nothing that is learned gets lost by cutting.
    assert rows.tally.learned == sum(sum(weights) for _, weights in documents)
    lines = told(rows.tally, seq_len)
    one = "conversation is" if cut == 1 else "conversations are"
    said = f"{cut:,} {one} longer than a row of 20 tokens"
    assert sum(said in line for line in lines) == (cut > 0)


def test_one_is_told_as_one() -> None:
    assert told(Tally(cut=1, pieces=2, skipped=1), 1000) == [
        "1 conversation is longer than a row of 1,000 tokens: cut into 2 pieces",
        "1 text or piece holds no reply to learn from and stays out",
    ]
    assert told(Tally(cut=2, pieces=1234, orphans=1, skipped=2), 9) == [
        "2 conversations are longer than a row of 9 tokens: cut into 1,234 pieces, in which 1 reply"
        " stands without its question",
        "2 texts and pieces hold no reply to learn from and stay out",
    ]


def test_cutting_is_told(
    base_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from train.test_dialogues import tuned

    long = [
        {"messages": [m for n in range(8) for m in (
            {"role": "user", "content": f"{who} {n} 什么?"},
            {"role": "assistant", "content": f"It is {n}. 是{n}。"})]}
        for who in range(8)
    ]  # fmt: skip
    data = write_jsonl(tmp_path / "long.jsonl", [*long, *sample_chats(6)])
    finetune(tuned(base_run, [str(data)], tmp_path / "run"))
    said = " ".join(capsys.readouterr().err.split())
    assert "conversations are longer than a row of 48 tokens: cut into" in said
    assert "learned: " in said


# -- the loss --------------------------------------------------------------------------------------


def test_no_row_gives_a_loss_that_is_no_number(rng: random.Random) -> None:
    """Rows where nothing or everything is learned, alone and together, forward and backward."""
    model = tiny_model(rng)
    sound = conversation(rng, 4)
    silent = (sound[0], [0] * len(sound[0]))
    for documents in ([silent], [sound, silent], [silent, silent], [(sound[0][:2], [0, 1])]):
        batch = batch_of(documents, 60)
        model.zero_grad()
        loss = likelihood().loss(model, batch)
        assert torch.isfinite(loss.total)
        loss.total.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(bool(torch.isfinite(g).all()) for g in gradients)
        if not loss.weight:
            assert all(float(g.abs().max()) == 0 for g in gradients)


def test_rows_of_real_conversations_give_the_same_gradient_in_any_cut(
    tmp_path: Path, rng: random.Random
) -> None:
    """Packed rows of very different weights as 1x8, 2x4 and 8x1, in float64."""
    model = tiny_model(rng)
    documents = [conversation(rng, 2 * rng.randint(1, 4), longest=9) for _ in range(40)]
    rows = PackedRows(split_of(tmp_path, documents), 40, TURN, 0, train_on="last")
    assert rows.count() >= 8
    chosen = [rows.row(0, number) for number in range(8)]
    weight = sum(float(row.weights.sum()) for row in chosen)

    def gradients(micro: int) -> list[torch.Tensor]:
        model.zero_grad()
        for begin in range(0, 8, micro):
            loss = likelihood().loss(model, collate(chosen[begin : begin + micro], isolated=True))
            (loss.total / weight).backward()  # type: ignore[no-untyped-call]
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole = gradients(8)
    for micro in (1, 4):
        for ours, theirs in zip(gradients(micro), whole, strict=True):
            # Sums of a few hundred float64 terms of order one.
            assert float((ours - theirs).abs().max()) < 1e-9


def slow_share(places: list[int], seq_len: int) -> float:
    """Of what is empty, filling row after row: each piece where it leaves the least room."""
    rooms: list[int] = []
    for length in places:
        fitting = [room for room in rooms if room >= length]
        best = min(fitting, default=seq_len)
        if fitting:
            rooms.remove(best)
        rooms.append(best - length)
    assert sum(rooms) + sum(places) == len(rooms) * seq_len
    return 1 - sum(places) / (len(rooms) * seq_len)


def test_rows_that_are_too_long_are_told_with_the_share(rng: random.Random) -> None:
    for _ in range(100):
        places = [rng.randint(1, 60) for _ in range(rng.randint(1, 12))]
        seq_len = rng.randint(max(places), 1000)
        share, better = slow_share(places, seq_len), slow_share(places, max(places))
        lines = too_long(places, seq_len)
        assert len(lines) == (share >= 0.25 and better <= share - 0.1)
        for line in lines:
            assert line.startswith(f"{share:.0%} of the places in rows of {seq_len:,} tokens")
            assert line.endswith(f"--seq-len {max(places)} leaves {better:.0%} empty")
    assert too_long([], 100) == []
    assert too_long([60] * 9, 100)[0].startswith("40% of the places")
    assert too_long([5] * 1000, 100) == []


def test_too_long_a_row_is_told_where_somebody_asked_for_it(
    base_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", sample_chats(6)[1:3])
    for number, seq_len in enumerate((48, None)):
        finetune(
            FinetuneSettings(
                model=str(base_run), data=[str(data)], out=str(tmp_path / f"run{number}"),
                dtype="float32", device="cpu", dry_run=True,
                train=TrainSettings(seq_len=seq_len, tensorboard=False),
            )
        )  # fmt: skip
        told = " ".join(capsys.readouterr().err.split())
        assert ("of the places in rows of 48 tokens hold nothing" in told) == (seq_len is not None)
