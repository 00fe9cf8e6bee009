"""What a run tells, and that the clock stays out of the part that must repeat."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from train.screens import Screen, use

from chatbench import console
from chatbench.settings import PretrainSettings
from chatbench.train import monitor as monitor_module
from chatbench.train.monitor import Monitor
from chatbench.train.plan import Plan
from chatbench.train.recipes import pretrain
from chatbench.train.references import read_references

PLAN = Plan(48, 4, 4, 1e-3, 10, None, 2, 2, 5)
Make = Callable[..., PretrainSettings]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_metrics_know_no_clock(base_run: Path) -> None:
    names = {name for row in rows_of(base_run / "metrics.jsonl") for name in row}
    assert names == {"step", "loss", "learning_rate", "grad_norm", "tokens", "val_loss",
                     "val_bits_per_byte"}  # fmt: skip
    timed = {name for row in rows_of(base_run / "timings.jsonl") for name in row}
    assert timed >= {"step", "seconds", "tokens_per_second", "mfu", "memory", "seconds_data",
                     "seconds_compute", "seconds_validation"}  # fmt: skip
    assert not timed & (names - {"step"})


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
    for name, tag in (("loss", "loss/train"), ("val_loss", "loss/val"),
                      ("val_bits_per_byte", "bits_per_byte/val")):  # fmt: skip
        told = {row["step"]: row[name] for row in rows_of(run / "metrics.jsonl") if name in row}
        read = {event.step: event.value for event in events.Scalars(tag)}
        assert read == pytest.approx(told, rel=1e-6)
    timed = {"speed/tokens_per_second", "speed/mfu", "speed/memory", "seconds/compute"}
    assert timed <= set(events.Tags()["scalars"])


def test_without_tensorboard_there_are_no_events(base_run: Path) -> None:
    assert not (base_run / "tensorboard").exists()


def test_a_log_gets_a_line_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(monitor_module.time, "monotonic", lambda: now[0])
    with Monitor(tmp_path, PLAN, {}, 0, tensorboard=False) as monitor:
        for step in range(1, 20_001):  # two a second
            now[0] = step / 2
            monitor.progress(step, step / 2, 2.5, 1000)
    lines = capsys.readouterr().err.splitlines()
    # Every ten seconds up to a thousand, then after each hundredth more: 100 · (1 + ln 10) lines.
    assert 320 <= len(lines) <= 335
    assert lines[0] == "100 %  step 20 · loss 2.500 · 1k tok/s · 0s left"


def test_a_validation_is_told_in_a_log_with_what_it_is_held_against(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Monitor(tmp_path, PLAN, {}, 0, tensorboard=False, references=Known()) as monitor:
        monitor.metrics(2, {"val_loss": 2.0, "val_bits_per_byte": 1.5})
        monitor.metrics(4, {"val_loss": 2.25, "val_bits_per_byte": 1.75})
    assert capsys.readouterr().err.splitlines() == [
        "  step 2 · val 2.000 (best) · bits per byte 1.500 · n-gram 2.310",
        "  step 4 · val 2.250 (best 2.000 at step 2) · bits per byte 1.750 · n-gram 2.310",
    ]


class Known:
    """References that are there at once."""

    def start(self) -> None: ...

    def ready(self, seconds: float | None = 0.0) -> dict[str, float]:
        return {"ngram_bits_per_byte": 2.31}


def test_a_terminal_shows_one_block_and_nothing_of_it_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = use(Screen(60, 24), monkeypatch)
    monkeypatch.setattr(monitor_module, "_REDRAW_SECONDS", 0.0)
    with Monitor(tmp_path, PLAN, {}, 0, tensorboard=False, references=Known()) as monitor:
        monitor.metrics(2, {"loss": 2.5, "learning_rate": 0.01, "grad_norm": 1.0})
        monitor.metrics(2, {"val_loss": 2.0, "val_bits_per_byte": 1.5})
        for step in (2, 4):
            monitor.sample(step, "Tea?\x1b[2J", "five yuan")
            monitor.sample(step, "信纸3号多少钱？", "信纸卖三元，" * 20)
        monitor.skipped(5, "loss is nan", (16, 20))
        console.notice("said in between")
        monitor.progress(5, 10.0, 2.25, 1000)
        assert screen.rows() == [
            "note: said in between",
            f" 50 % {'━' * 18}{'─' * 17} step 5 · 10s left",
            "loss 2.250 ▁",
            "val  2.000 ▁ best",
            "bits per byte 1.500 · n-gram 2.310",
            "1k tok/s · rate 0.01 · norm 1 · 1 skipped",
            "› Tea?␛[2J → five yuan",
            "› 信纸3号多少钱？ → 信纸卖三元，信纸卖三元，信纸卖三元，信…",
        ]
    assert screen.rows() == ["note: said in between"]


def test_a_resumed_block_remembers_the_curve_and_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Monitor(tmp_path, PLAN, {}, 0, tensorboard=False) as monitor:
        for step in range(1, 5):
            monitor.metrics(step, {"loss": 5.0 - step})
        monitor.metrics(4, {"val_loss": 1.25})
        durable = monitor.sync()
        monitor.metrics(5, {"val_loss": 0.5})
    screen = use(Screen(60, 24), monkeypatch)
    with Monitor(tmp_path, PLAN, durable, 4, tensorboard=False) as monitor:
        monitor.metrics(6, {"val_loss": 1.5})
        monitor._drawn = 0.0
        monitor.progress(6, 10.0, 1.0, 1000)
        rows = screen.rows()
    assert rows[1] == "loss 1.000 ██▅▁"
    assert rows[2] == "val  1.500 ▁█ best 1.250 at step 4"


def test_the_speed_is_that_of_all_steps_since_the_last_line(
    tmp_path: Path, rng: random.Random
) -> None:
    seconds = [rng.uniform(0.1, 5) for _ in range(6)]
    with Monitor(tmp_path, PLAN, {}, 0, tensorboard=False) as monitor:
        for step, each in enumerate(seconds, 1):
            monitor.progress(step, sum(seconds[:step]), 2.0, 192 / each)
            if step % 3 == 0:
                monitor.timings(step, {"seconds": 1.0, "tokens_per_second": 192 / each})
    told = [row["tokens_per_second"] for row in rows_of(tmp_path / "timings.jsonl")]
    assert told == pytest.approx([3 * 192 / sum(seconds[:3]), 3 * 192 / sum(seconds[3:])])


def test_a_skipped_step_is_a_row_of_the_truth(tmp_path: Path) -> None:
    with Monitor(tmp_path, PLAN, {}, 0, tensorboard=False) as monitor:
        monitor.skipped(3, "loss is nan", (8, 12))
    assert rows_of(tmp_path / "metrics.jsonl") == [
        {"step": 3, "skipped": "loss is nan", "rows": [8, 12]}
    ]


def test_a_run_leaves_its_references_and_an_end_summary(
    corpus_folder: Path, tiny_settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretrain(tiny_settings(corpus_folder, tmp_path / "run", steps=2))
    known = read_references(run)
    assert 0 < known["ngram_bits_per_byte"] < known["uniform_bits_per_byte"]
    shown = capsys.readouterr().err
    assert f"a 5-gram model of the same text: {known['ngram_bits_per_byte']:.3f}" in shown
    assert f"next: chatbench finetune -m {run}" in shown
    assert not [path for path in run.rglob("*") if ".tmp" in path.name]
