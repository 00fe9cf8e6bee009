"""Preferences really change how a model speaks: courtesy, in English and in Chinese."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import pytest
import torch

from chatbench.conversation import Message
from chatbench.corpus.build import preprocess
from chatbench.engine.engine import Engine, Request
from chatbench.model.folder import open_model
from chatbench.settings import (
    FinetuneSettings,
    ModelSettings,
    PreprocessSettings,
    PretrainSettings,
    SamplingSettings,
    TrainSettings,
)
from chatbench.text.template import reply_prompt
from chatbench.train.recipes import finetune, pretrain
from conftest import ROOT

_spec = importlib.util.spec_from_file_location("courtesy", ROOT / "examples" / "courtesy.py")
assert _spec is not None
assert _spec.loader is not None
courtesy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(courtesy)


def base(folder: Path) -> Path:
    """A model that answers either way, as often as not."""
    corpus = preprocess(
        PreprocessSettings(
            inputs=[str(courtesy.write_chats(folder / "chats.jsonl"))],
            out=str(folder / "corpus"), vocab_size=400, split_by="document",
        )
    )  # fmt: skip
    return pretrain(
        PretrainSettings(
            data=str(corpus), out=str(folder / "base"), dtype="float32", device="cpu",
            model=ModelSettings(n_layers=2, hidden_size=64, n_heads=2, ffn_size=128),
            train=TrainSettings(steps=300, seq_len=64, batch_tokens=1024, tensorboard=False),
        )
    )  # fmt: skip


def shares(model: Path) -> dict[str, dict[str, float]]:
    """How sampled replies are spread over the manners, by language."""
    opened, tokenizer, _ = open_model(model, torch.device("cpu"))
    asked = list(courtesy.questions(range(11, 60, 2)))
    rng = random.Random(1)
    requests = [
        Request(
            reply_prompt(tokenizer, [Message("user", question.asked)]),
            SamplingSettings(temperature=1.0, max_tokens=40, seed=rng.randrange(1 << 30)),
        )
        for question in asked
    ]
    replies = [reply.text for reply in Engine(opened, tokenizer, max_rows=16).complete(requests)]
    found: dict[str, dict[str, float]] = courtesy.shares(asked, replies)
    return found


@pytest.mark.slow
def test_what_is_preferred_is_said_in_both_languages(tmp_path: Path) -> None:
    """Everything has a fixed seed: what is learned has no bound that could be derived."""
    model = base(tmp_path)
    before = shares(model)
    for manner, other in (("courteous", "curt"), ("curt", "courteous")):
        pairs = courtesy.write_pairs(tmp_path / f"{manner}.jsonl", manner)
        run = finetune(
            FinetuneSettings(
                model=str(model), data=[str(pairs)], out=str(tmp_path / manner), objective="dpo",
                device="cpu", dtype="float32", train=TrainSettings(epochs=6, tensorboard=False),
            )
        )  # fmt: skip
        assert run is not None
        after = shares(run)
        print(manner, before, after)
        for language in ("en", "zh"):
            assert before[language][manner] < 0.85
            assert after[language][manner] > max(0.85, before[language][manner] + 0.1)
            assert after[language][other] < 0.2
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert max(line.get("val_accuracy", 0.0) for line in lines) > 0.9
