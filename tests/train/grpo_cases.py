"""Sums as prompts, small models that reply to them, and runs that learn from rewards."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chatbench.corpus.shards import Corpus
from chatbench.model.transformer import GPT, ModelConfig
from chatbench.settings import (
    FinetuneSettings,
    GrpoSettings,
    OptimSettings,
    TrainSettings,
)
from chatbench.train.grpo import Grpo
from chatbench.train.objective import GlobalBatch
from chatbench.train.parallel import SOLO, World
from chatbench.train.rewards import parse_rewards
from chatbench.train.rollouts import Shelf, Speaker, Tasks

ROOM = 40


def model_of(rng: random.Random, corpus: Corpus) -> GPT:
    """A model in float64 whose blocks do something, and which ends its replies now and then."""
    model = GPT(ModelConfig(corpus.tokenizer.vocab_size, 2, 16, 2, 1, 8, 32, 64)).double()
    generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


def move(model: GPT, rng: random.Random, far: float) -> None:
    """Other weights, in place."""
    generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(0.0, far, generator=generator)
            parameter.add_(noise)


def grpo_of(
    model: GPT, corpus: Corpus, rewards: Sequence[str] = ("chrf", "length:2-4*0.5"), rows: int = 3,
    seed: int = 0, shelf: Shelf | None = None, ranks: World = SOLO, **settings: Any,
) -> Grpo:  # fmt: skip
    tasks, held = (Tasks(corpus.split(name), corpus.tokenizer, ROOM) for name in ("train", "val"))
    chosen = {"group_size": 3, "prompts_per_step": 4, "max_new_tokens": 6} | settings
    return Grpo(
        model, Speaker(model, corpus.tokenizer), tasks, held,
        parse_rewards(list(rewards), lambda column: lambda exchange: 0.0),
        GrpoSettings(reward=list(rewards), **chosen), rows=rows, seed=seed, shelf=shelf,
        ranks=ranks,
    )  # fmt: skip


def gradients(objective: Grpo, model: GPT, batch: GlobalBatch) -> dict[str, Tensor]:
    """Of one step, as the loop sums them."""
    model.zero_grad()
    for part in batch.parts:
        (objective.loss(model, part).total / batch.weight).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def settings_of(
    base: Path, sums: Path, out: Path, steps: int = 6, *, resume: bool = False,
    train: dict[str, Any] | None = None, **grpo: Any,
) -> FinetuneSettings:  # fmt: skip
    chosen = {
        "reward": ["exact_match", "length:1-2*0.5"], "group_size": 3, "prompts_per_step": 4,
        "max_new_tokens": 6, "eval_prompts": 8,
    }  # fmt: skip
    return FinetuneSettings(
        model=str(base), data=[str(sums)], out=str(out), objective="grpo", dtype="float32",
        device="cpu", resume=resume, grpo=GrpoSettings(**chosen | grpo),
        optim=OptimSettings(learning_rate=0.002),
        train=TrainSettings(
            **{"steps": steps, "tensorboard": False, "log_every": 1, "eval_every": 2,
               "save_every": 1, "micro_batch": 5} | (train or {})
        ),
    )  # fmt: skip


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
