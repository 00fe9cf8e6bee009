"""The one loop: it learns, looks without touching, and stops before it spoils anything."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.troubled import trainer_of

from chatbench.settings import OptimSettings, PretrainSettings
from chatbench.train.checkpoint import checkpoints_of
from chatbench.train.recipes import pretrain

Make = Callable[..., PretrainSettings]


def rows_of(run: Path) -> list[dict[str, Any]]:
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(run / "model" / "model.safetensors"))


def test_training_lowers_the_loss(corpus_folder: Path, tiny_settings: Make, tmp_path: Path) -> None:
    rows = rows_of(pretrain(tiny_settings(corpus_folder, tmp_path / "run", steps=40)))
    losses = [row["loss"] for row in rows if "loss" in row]
    held_out_losses = [row["val_loss"] for row in rows if "val_loss" in row]
    assert losses[0] < math.log(400) + 0.2
    assert losses[-1] < losses[0] - 0.8
    assert held_out_losses[-1] < held_out_losses[0] - 0.8


def test_the_logged_loss_is_the_mean_over_the_steps_since_the_line_before(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path
) -> None:
    each, joined = (
        [row["loss"] for row in rows_of(run) if "loss" in row]
        for every in (1, 4)
        for run in [
            pretrain(tiny_settings(corpus_folder, tmp_path / f"{every}", 8, log_every=every))
        ]
    )
    assert joined == pytest.approx([sum(each[:4]) / 4, sum(each[4:]) / 4], abs=1e-9)


@pytest.mark.parametrize("micro", [1, 3])
def test_the_micro_batch_changes_memory_and_not_the_run(
    base_run: Path, corpus_folder: Path, tiny_settings: Make, tmp_path: Path, micro: int
) -> None:
    run = pretrain(tiny_settings(corpus_folder, tmp_path / "run", micro_batch=micro))
    for ours, theirs in zip(rows_of(run), rows_of(base_run), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_validating_sampling_and_saving_leave_no_trace_in_the_weights(
    base_run: Path, corpus_folder: Path, tiny_settings: Make, tmp_path: Path
) -> None:
    run = pretrain(
        tiny_settings(
            corpus_folder, tmp_path / "run", eval_every=3, sample_every=4, save_every=5, log_every=1
        )
    )
    looked, calm = weights_of(run), weights_of(base_run)
    assert all(torch.equal(looked[name], calm[name]) for name in calm)


@pytest.mark.parametrize("steps", [6, 7])
def test_the_last_step_is_validated_once(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path, steps: int
) -> None:
    run = pretrain(tiny_settings(corpus_folder, tmp_path / "run", steps, eval_every=3))
    validated = [row["step"] for row in rows_of(run) if "val_loss" in row]
    assert validated == sorted({3, 6, steps})


def test_a_run_measured_in_minutes_ends(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(corpus_folder, tmp_path / "run", minutes=0.005)
    settings.train.steps = None
    run = pretrain(settings)
    assert (run / "model").is_dir()
    assert len(checkpoints_of(run)) >= 1


def test_a_run_without_time_says_so_and_takes_one_step(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny_settings(corpus_folder, tmp_path / "run", minutes=0.01)
    settings.train.steps = None
    run = pretrain(settings, time.monotonic() - 30.0)
    state = json.loads((checkpoints_of(run)[-1] / "state.json").read_bytes())
    assert state["step"] == 1
    assert "more --minutes would train longer" in " ".join(capsys.readouterr().err.split())


def test_the_last_checkpoint_knows_of_a_validation_that_came_after_it(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path
) -> None:
    # Step 4 is saved by its number, and validated only because it is the last.
    run = pretrain(tiny_settings(corpus_folder, tmp_path / "run", 4, save_every=4, eval_every=3))
    state = json.loads((checkpoints_of(run)[-1] / "state.json").read_bytes())
    validated = {row["step"]: row["val_loss"] for row in rows_of(run) if "val_loss" in row}
    best = min(validated, key=lambda step: validated[step])
    assert (state["best_step"], state["best_loss"]) == (best, validated[best]) == (4, validated[4])


def test_gradients_are_clipped_to_the_limit(corpus_folder: Path, tmp_path: Path) -> None:
    """AdamW divides by |g| + 1e-8, so gradients clipped far below that move nothing."""
    moved = {}
    for limit in (1e-14, 0.0):
        optim = OptimSettings(optimizer="adamw", grad_clip=limit, weight_decay=0.0)
        trainer = trainer_of(tmp_path / f"{limit}", corpus_folder, optim=optim)
        model = trainer._model
        before = [p.detach().clone() for p in model.parameters()]
        trainer.fit()
        moved[limit] = max(
            float((p.detach() - b).abs().max())
            for p, b in zip(model.parameters(), before, strict=True)
        )
    assert moved[1e-14] < 1e-5
    assert moved[0.0] > 1e-3


def test_signal_handlers_are_as_before_after_a_run(corpus_folder: Path, tmp_path: Path) -> None:
    import signal

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    trainer_of(tmp_path, corpus_folder, steps=1).fit()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
