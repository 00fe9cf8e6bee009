"""How much of a file a finetune holds out can be said; of a corpus folder it is settled."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbench.corpus.shards import Corpus
from chatbench.errors import UsageError
from chatbench.model.folder import open_model
from chatbench.settings import FinetuneSettings
from chatbench.train.dialogues import open_dialogues
from chatbench.train.recipes import finetune
from conftest import sample_chats, write_jsonl

COUNT = 60


def opened(base: Path, data: list[Path], place: Path, **given: Any) -> Corpus:
    settings = FinetuneSettings(
        model=str(base), data=list(map(str, data)), out=str(place), device="cpu", dtype="float32",
        **given,
    )  # fmt: skip
    model = open_model(settings.model, torch.device("cpu"))
    return open_dialogues(settings, model.tokenizer, model.folder, place)


def sizes(corpus: Corpus) -> tuple[int, ...]:
    return tuple(len(corpus.split(name)) for name in ("train", "val", "test"))


def test_what_is_held_out_of_a_file_can_be_said(
    base_run: Path, tmp_path: Path, rng: random.Random
) -> None:
    rows = sample_chats(COUNT)
    rng.shuffle(rows)
    data = [write_jsonl(tmp_path / "茶.jsonl", rows)]
    usual = opened(base_run, data, tmp_path / "usual")
    noted = usual.manifest.info["settings"]
    assert (noted["val_fraction"], noted["test_fraction"]) == (0.15, 0.15)  # the base model's
    assert sizes(usual)[2] > 0
    train, val, test = sizes(opened(base_run, data, tmp_path / "own", test_fraction=0.0))
    assert val > test == 0
    assert train + val == sum(sizes(usual))
    both = opened(base_run, data, tmp_path / "all", val_fraction=0.0, test_fraction=0.0)
    assert sizes(both) == (sum(sizes(usual)), 0, 0)
    again = opened(base_run, data, tmp_path / "again")
    assert (sizes(again), again.fingerprint) == (sizes(usual), usual.fingerprint)


def test_nothing_left_to_learn_is_refused(base_run: Path, tmp_path: Path) -> None:
    data = [write_jsonl(tmp_path / "a.jsonl", sample_chats(12))]
    with pytest.raises(UsageError, match="leave nothing to train on"):
        opened(base_run, data, tmp_path / "o", val_fraction=0.5, test_fraction=0.5)


def test_a_corpus_folder_is_split_already(
    base_run: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    more = write_jsonl(tmp_path / "a.jsonl", sample_chats(12))
    mixed = [corpus_folder, more]
    assert opened(base_run, mixed, tmp_path / "mixed", val_fraction=0.0).split("train")
    for name in ("val_fraction", "test_fraction"):
        out = tmp_path / name
        settings = FinetuneSettings(
            model=str(base_run), data=[str(corpus_folder)], out=str(out), device="cpu",
            **{name: 0.1},
        )  # fmt: skip
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} says nothing of a corp"):
            finetune(settings)
        assert not out.exists()
