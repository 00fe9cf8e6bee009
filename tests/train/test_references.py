"""References are counted over exactly what the validation counts, and made beside the training."""

from __future__ import annotations

import json
import math
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chatbench.corpus.shards import open_corpus
from chatbench.model.config import ModelConfig
from chatbench.model.transformer import GPT, initialise
from chatbench.train import references as module
from chatbench.train.batches import Batches, PackedRows, Rows, StreamRows, held_out
from chatbench.train.likelihood import Likelihood
from chatbench.train.references import (
    References,
    read_references,
    reference_values,
    scored_pieces,
)


@pytest.mark.parametrize("kind", ["texts", "dialogues", "replies"])
def test_they_count_the_tokens_and_bytes_of_the_validation(
    kind: str, corpus_folder: Path, rng: random.Random
) -> None:
    corpus = open_corpus(corpus_folder)
    tokenizer, length = corpus.tokenizer, rng.randint(8, 70)

    def rows_of(split: str) -> Rows:
        if kind == "texts":
            return StreamRows(corpus.split(split), length, tokenizer.end_of_text, 1)
        template = tokenizer.template
        return PackedRows(
            corpus.split(split), length, template.turn_start, 1, user_turn=template.user_turn,
            train_on="all" if kind == "dialogues" else "assistant",
        )  # fmt: skip

    batches = held_out(rows_of("val"), 3, 1_000_000)
    pieces = list(scored_pieces(batches))
    model = GPT(ModelConfig(tokenizer.vocab_size, 1, 8, 1, 1, 8, 16, length))
    initialise(model, 0)
    objective = Likelihood(Batches(rows_of("train"), 2, 2), batches, tokenizer)
    with torch.no_grad():
        losses = [objective.loss(model, batch) for batch in batches]
    sizes = np.array([len(spelt) for spelt in tokenizer.token_bytes])
    counted = [piece.ids[np.asarray(piece.weights) > 0] for piece in pieces]
    assert sum(map(len, counted)) == sum(loss.weight for loss in losses)
    size = sum(loss.metrics["text_bytes"] for loss in losses)
    assert sum(int(sizes[ids].sum()) for ids in counted) == size
    values = reference_values(corpus.split("train"), batches, tokenizer)
    spelling = sum(int((sizes[ids] > 0).sum()) for ids in counted)
    assert values["uniform_loss"] == math.log(tokenizer.vocab_size)
    assert values["uniform_bits_per_byte"] == pytest.approx(
        spelling * math.log2(tokenizer.vocab_size) / size, rel=1e-12
    )
    assert 0 < values["ngram_bits_per_byte"] < values["uniform_bits_per_byte"]


def test_pieces_end_where_documents_do(corpus_folder: Path) -> None:
    """No piece holds tokens of two conversations."""
    corpus = open_corpus(corpus_folder)
    template = corpus.tokenizer.template
    rows = PackedRows(corpus.split("val"), 200, template.turn_start, 0, train_on="all")
    split = corpus.split("val")
    whole = {tuple(split.ids(number).tolist()) for number in range(len(split))}
    pieces = [tuple(piece.ids.tolist()) for piece in scored_pieces(held_out(rows, 4, 10**6))]
    assert len(pieces) > 1
    assert whole >= set(pieces)


def test_they_are_kept_in_the_run_and_not_made_again(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = open_corpus(corpus_folder)
    rows = StreamRows(corpus.split("val"), 32, corpus.tokenizer.end_of_text, 0)
    batches = held_out(rows, 4, 4096)
    made = References(tmp_path, corpus.split("train"), batches, corpus.tokenizer)
    made.start()
    values = made.ready(None)
    assert values == reference_values(corpus.split("train"), batches, corpus.tokenizer)
    assert json.loads((tmp_path / "references.json").read_bytes()) == values
    assert read_references(tmp_path) == values
    monkeypatch.setattr(module, "reference_values", pytest.fail)
    again = References(tmp_path, corpus.split("train"), batches, corpus.tokenizer)
    again.start()
    assert again.ready() == values


def test_training_does_not_wait_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    go_on = threading.Event()

    def slow(*_: object) -> dict[str, float]:
        go_on.wait()
        return {"ngram_bits_per_byte": 2.0}

    monkeypatch.setattr(module, "reference_values", slow)
    made = References(tmp_path, [], [], tokenizer)  # type: ignore[arg-type]
    made.start()
    assert made.ready() == {}
    assert not (tmp_path / "references.json").exists()
    go_on.set()
    assert made.ready(None) == {"ngram_bits_per_byte": 2.0}
    assert (tmp_path / "references.json").is_file()


def test_a_failure_is_told_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: object) -> dict[str, float]:
        raise MemoryError("no room")

    monkeypatch.setattr(module, "reference_values", fail)
    made = References(tmp_path, [], [], tokenizer)  # type: ignore[arg-type]
    made.start()
    assert made.ready(None) == {}
    assert made.ready(None) == {}
    assert capsys.readouterr().err.count("no n-gram reference: no room") == 1


def test_without_validation_there_is_nothing_to_hold_against(
    tmp_path: Path, corpus_folder: Path
) -> None:
    corpus = open_corpus(corpus_folder)
    made = References(tmp_path, corpus.split("train"), [], corpus.tokenizer)
    made.start()
    assert made.ready(None) == {}
    assert read_references(tmp_path) == {}


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"a": "b"}'])
def test_a_broken_file_counts_as_none(broken: str, tmp_path: Path) -> None:
    (tmp_path / "references.json").write_text(broken)
    assert read_references(tmp_path) == {}
