"""What a run tells, and that the clock stays out of the part that must repeat."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatbench.settings import PretrainSettings
from chatbench.train.monitor import Monitor
from chatbench.train.plan import Plan
from chatbench.train.recipes import pretrain

PLAN = Plan(48, 4, 4, 1e-3, 10, None, 2, 2, 5)
Make = Callable[..., PretrainSettings]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_metrics_know_no_clock(base_run: Path) -> None:
    names = {name for row in rows_of(base_run / "metrics.jsonl") for name in row}
    assert names == {"step", "loss", "learning_rate", "grad_norm", "tokens", "val_loss",
                     "val_bits_per_byte"}  # fmt: skip
    assert {name for row in rows_of(base_run / "timings.jsonl") for name in row} == {
        "step", "seconds", "tokens_per_second",
    }  # fmt: skip


def test_two_runs_of_the_same_settings_say_the_same(
    base_run: Path, corpus_folder: Path, tiny_settings: Make, tmp_path: Path
) -> None:
    again = pretrain(tiny_settings(corpus_folder, tmp_path / "again"))
    for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
        assert (again / name).read_bytes() == (base_run / name).read_bytes()


def test_another_seed_says_something_else(
    base_run: Path, corpus_folder: Path, tiny_settings: Make, tmp_path: Path
) -> None:
    settings = tiny_settings(corpus_folder, tmp_path / "other")
    settings.seed = 1
    other = pretrain(settings)
    assert (other / "metrics.jsonl").read_bytes() != (base_run / "metrics.jsonl").read_bytes()


def test_samples_hold_the_prompt_and_the_words_after_it(base_run: Path) -> None:
    rows = rows_of(base_run / "samples.jsonl")
    assert rows
    assert all(set(row) == {"step", "prompt", "text"} for row in rows)
    assert all(row["prompt"] for row in rows)


def test_a_resume_cuts_the_logs_back_to_what_was_saved(tmp_path: Path, rng: random.Random) -> None:
    kept = rng.randint(0, 3)
    with Monitor(tmp_path, PLAN, {}, 0, tensorboard=False) as monitor:
        for step in range(1, kept + 1):
            monitor.metrics(step, {"loss": 1.0 / step})
        durable = monitor.sync()
        for step in range(kept + 1, 6):
            monitor.metrics(step, {"loss": 0.0})
            monitor.sample(step, "p", "t")
    with Monitor(tmp_path, PLAN, durable, kept, tensorboard=False) as monitor:
        monitor.metrics(99, {"loss": 0.5})
    assert [row["step"] for row in rows_of(tmp_path / "metrics.jsonl")] == [
        *range(1, kept + 1), 99,
    ]  # fmt: skip
    assert rows_of(tmp_path / "samples.jsonl") == []


def test_nothing_of_it_reaches_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Monitor(tmp_path, PLAN, {}, 0, tensorboard=False) as monitor:
        monitor.progress(3, 1.0, 2.5, 1000)
        monitor.sample(3, "a\nquestion", "with \x1b[31m[bold]markup[/x]")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "step 3 › a question → with ␛[31m[bold]markup[/x]" in shown.err


def test_tensorboard_reads_the_events(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path
) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = tiny_settings(corpus_folder, tmp_path / "run", steps=4, log_every=1)
    settings.train.tensorboard = True
    run = pretrain(settings)
    events = accumulators.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for name in ("loss", "val_loss"):
        told = {row["step"]: row[name] for row in rows_of(run / "metrics.jsonl") if name in row}
        read = {event.step: event.value for event in events.Scalars(name)}
        assert read == pytest.approx(told, rel=1e-6)
    assert "tokens_per_second" in events.Tags()["scalars"]


def test_without_tensorboard_there_are_no_events(base_run: Path) -> None:
    assert not (base_run / "tensorboard").exists()
