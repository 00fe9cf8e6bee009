"""Objectives that go wrong on purpose, and trainers built by hand around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from chatbench.corpus.shards import open_corpus
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.settings import OptimSettings, TrainSettings
from chatbench.train.batches import Batches, StreamRows, held_out
from chatbench.train.likelihood import Likelihood
from chatbench.train.loop import Trainer
from chatbench.train.objective import Batch, GlobalBatch, Loss
from chatbench.train.plan import make_plan
from chatbench.train.readings import Readings

Trouble = Callable[[int, Batch], float]


class Troubled(Likelihood):
    """Multiplies the loss of each micro-batch in training by `training(step, batch)`, and in
    validation by `validating(step, batch)`, where step counts from zero and is the newest one."""

    training: Trouble = staticmethod(lambda step, batch: 1.0)
    validating: Trouble = staticmethod(lambda step, batch: 1.0)
    step = -1

    def batch(self, step: int) -> GlobalBatch:
        self.step = step
        return super().batch(step)

    def loss(self, model: GPT, batch: Batch) -> Loss:
        trouble = self.training if torch.is_grad_enabled() else self.validating
        factor = trouble(self.step, batch)
        loss = super().loss(model, batch)
        # Not even multiplied by one: an undisturbed run takes the same path.
        return loss if factor == 1.0 else loss._replace(total=loss.total * factor)


def trainer_of(
    run: Path, corpus_folder: Path, *, optim: OptimSettings | None = None,
    training: Trouble | None = None, validating: Trouble | None = None, late: bool = False,
    patience: int = 0, rows: int = 2, **train: Any,
) -> Trainer:  # fmt: skip
    """A trainer of a model of 1 layer × 16 on rows of 32 tokens, `rows` a step, ten steps.

    `late`: the host learns of a step when the next one is under way, as on CUDA.
    """
    run.mkdir(exist_ok=True)
    optim = optim or OptimSettings()
    corpus = open_corpus(corpus_folder)
    model = GPT(ModelConfig(corpus.tokenizer.vocab_size, 1, 16, 1, 1, 16, 32, 32))
    initialise(model, 0)
    stream = StreamRows(corpus.split("train"), 32, corpus.tokenizer.end_of_text, 0)
    settings = TrainSettings(batch_tokens=32 * rows, tensorboard=False, **{"steps": 10} | train)
    plan = make_plan(
        settings, optim, seq_len=32, batch_tokens=32 * rows, rows_per_epoch=stream.count()
    )
    objective = Troubled(
        Batches(stream, plan.rows_per_step, plan.micro_batch),
        held_out(stream, plan.micro_batch, 100), corpus.tokenizer,
    )  # fmt: skip
    if training is not None:
        objective.training = training
    if validating is not None:
        objective.validating = validating
    trainer = Trainer(
        run, plan, settings, optim, model, corpus.tokenizer, objective, [], {}, "", torch.float32,
        patience=patience,
    )  # fmt: skip
    if late:
        trainer._readings = Readings(torch.device("cpu"), late=True)
    return trainer
