"""The end of a run in a few lines, from its logs alone."""

from __future__ import annotations

import json
from pathlib import Path

from chatbench.train.checkpoint import TrainState
from chatbench.train.summary import summary
from conftest import write_jsonl


def test_it_says_what_was_reached_what_it_cost_and_what_is_next(tmp_path: Path) -> None:
    run = tmp_path / "my runs"
    run.mkdir()
    write_jsonl(run / "metrics.jsonl", [
        {"step": 10, "loss": 3.0, "tokens": 2_000_000},
        {"step": 10, "val_loss": 2.5, "val_bits_per_byte": 1.75},
        {"step": 15, "skipped": "loss is nan", "rows": [4, 8]},
        {"step": 2000, "loss": 2.0, "tokens": 5_120_000},
        {"step": 2000, "val_loss": 2.75, "val_bits_per_byte": 1.9},
    ])  # fmt: skip
    write_jsonl(run / "timings.jsonl", [{"step": 10, "seconds": 5.0}, {"step": 20, "seconds": 95}])
    (run / "references.json").write_text(
        json.dumps({"ngram_bits_per_byte": 2.31, "ngram_order": 5, "uniform_bits_per_byte": 4.5,
                    "ngram_tokens": 900_000, "train_tokens": 900_000})
    )  # fmt: skip
    assert summary(run, finetuned=True) == [
        "reached: train loss 2.000 · val 2.500 at step 10, best of 2",
        "bits per byte: 1.750; a 5-gram model of the same text: 2.310; chance: 4.500",
        "trained: 2,000 steps · 5.12M tokens · 1m35s · 1 skipped",
        f"next: chatbench chat -m '{run}'",
    ]
    (pretrained,) = summary(run, finetuned=False)[3:]
    assert f"chatbench finetune -m '{run}' -d" in pretrained
    assert f"chatbench chat --raw -m '{run}'" in pretrained


def test_it_says_when_the_n_grams_are_of_a_part_of_the_text(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "metrics.jsonl", [{"step": 1, "val_loss": 2.0, "val_bits_per_byte": 1.5}]
    )
    (tmp_path / "references.json").write_text(
        json.dumps({"ngram_bits_per_byte": 2.0, "ngram_order": 5, "ngram_tokens": 1_000_000,
                    "train_tokens": 52_000_000})
    )  # fmt: skip
    assert "bits per byte: 1.500; a 5-gram model of 1M of its 52M tokens: 2.000" in summary(
        tmp_path, finetuned=True
    )


def test_steps_after_the_last_line_of_the_logs_count(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 10, "loss": 3.0, "tokens": 40_000}])
    ended = TrainState(step=18, tokens=72_000, seconds=61.0)
    found = summary(tmp_path, finetuned=True, ended=ended)
    assert "trained: 18 steps · 72k tokens · 1m01s" in found


def test_a_validation_that_was_no_number_is_not_the_best(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", [
        {"step": 1, "val_loss": None, "val_bits_per_byte": None}, {"step": 2, "val_loss": 2.0},
    ])  # fmt: skip
    assert summary(tmp_path, finetuned=True)[0] == "reached: val 2.000 at step 2, best of 1"


def test_a_run_without_validation_or_logs_has_less_to_say(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 3, "loss": 3.25, "tokens": 99}])
    with open(tmp_path / "metrics.jsonl", "ab") as log:
        log.write(b'{"torn\n[]\n')
    assert summary(tmp_path, finetuned=True)[:2] == [
        "reached: train loss 3.250", "trained: 3 steps · 99 tokens",
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").unlink()
    assert summary(tmp_path, finetuned=True)[0] == "trained: 0 steps · 0 tokens"


def test_a_run_by_rewards_ends_with_rewards(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", [
        {"step": 4, "loss": 0.01, "reward": 0.25},
        {"step": 4, "val_loss": -0.5, "val_reward": 0.5, "val_reply_tokens": 3.25},
        {"step": 8, "loss": -0.02, "reward": 0.375},
        {"step": 8, "val_loss": -0.5, "val_reward": 0.5, "val_reply_tokens": 9.0},
    ])  # fmt: skip
    assert summary(tmp_path, finetuned=True)[0] == (
        "reached: train reward 0.375 · val reward 0.500 at step 4, best of 2 · length 3.2"
    )
