"""Where next: each case of numbers and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from chatbench.evaluate.advice import Curve, Numbers, advise
from chatbench.evaluate.advising import read_curve

FINE = Curve(
    train=2.0, halfway=2.1, last=2.08, best=2.08, best_at=1.0, tokens=10_000_000,
    corpus_tokens=8_000_000, steps=1000, run="runs/a", corpus="corpus",
)  # fmt: skip
HEALTHY = Numbers(
    "runs/a", "test.jsonl",
    {"bits_per_byte": 1.0, "length_ratio": 1.0, "repetition": 0.5, "verbatim_overlap": 40.0,
     "verbatim_overlap_references": 38.0},
    parameters=1_000_000, curve=FINE, ngram_bits_per_byte=1.4,
    chrf_by_script={"han": 30, "latin": 35}, lacking={"bm25": 3.0},
)  # fmt: skip


def findings(numbers: Numbers) -> list[str]:
    return [advice.finding for advice in advise(numbers)]


def test_of_healthy_and_of_unknown_numbers_nothing_is_said() -> None:
    assert findings(HEALTHY) == []
    assert findings(Numbers("m", "d")) == []


@pytest.mark.parametrize(
    ("changes", "finding", "command"),
    [
        ({"curve": replace(FINE, last=2.4, best=2.1, best_at=0.3)}, "overfitting", "--steps 300"),
        ({"curve": replace(FINE, train=1.0, corpus_tokens=1_000_000)}, "limited by data",
         "MORE_TEXTS"),
        ({"curve": replace(FINE, halfway=2.6)}, "undertrained", "--steps 2000"),
        ({"curve": replace(FINE, tokens=30_000_000, corpus_tokens=30_000_000, train=2.05)},
         "limited by size", "--size small"),
        ({"parameters": 100_000_000}, "few tokens for its size", "--steps 4000"),
        ({"ngram_bits_per_byte": 0.9}, "no better than n-grams", "--steps 2000"),
        ({"lacking": {"bm25": -2.5}}, "behind bm25", "finetune -m runs/a"),
        ({"scores": {"verbatim_overlap": 90.0, "verbatim_overlap_references": 40.0}},
         "copies its training text", "--dedup near"),
        ({"scores": {"length_ratio": 0.3}}, "replies are too short", "finetune"),
        ({"scores": {"length_ratio": 2.5}}, "replies are too long", "finetune"),
        ({"at_limit": 0.5}, "replies do not end", "--max-tokens"),
        ({"scores": {"repetition": 30.0}}, "repeats itself", "--repetition-penalty"),
        ({"chrf_by_script": {"han": 10, "latin": 40}}, "han lags behind", "MORE_TEXTS_IN_HAN"),
    ],
)  # fmt: skip
def test_each_case_has_its_advice(changes: dict[str, Any], finding: str, command: str) -> None:
    (advice,) = advise(replace(HEALTHY, **changes))
    assert advice.finding == finding
    assert command in advice.command
    assert advice.command.startswith("chatbench ")
    assert advice.why


def test_a_finetune_is_gone_on_with_as_a_finetune() -> None:
    curve = replace(FINE, halfway=2.6, finetuned=True)
    (advice,) = advise(replace(HEALTHY, curve=curve))
    assert advice.command.startswith("chatbench finetune -c runs/a/config.toml")


def test_there_are_at_most_five() -> None:
    everything = replace(
        HEALTHY, scores={"length_ratio": 0.1, "repetition": 50.0, "bits_per_byte": 2.0},
        chrf_by_script={"han": 1, "latin": 40}, lacking={"bm25": -1.0, "copy": -1.0, "eliza": -1.0},
        curve=replace(FINE, last=2.4, best=2.1, best_at=0.3, train=1.0, corpus_tokens=1_000_000),
    )  # fmt: skip
    assert len(advise(everything)) == 5


def test_a_curve_is_read_from_the_logs_of_a_run(tmp_path: Path) -> None:
    rows = [
        {"step": 10, "tokens": 100, "loss": 3.0},
        {"step": 50, "val_loss": 2.5},
        {"step": 60, "val_loss": 2.4},
        {"step": 100, "tokens": 1000, "loss": 2.0},
        {"step": 100, "val_loss": 2.45},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + "{torn"
    (tmp_path / "metrics.jsonl").write_text(text)
    (tmp_path / "config.toml").write_text('model = "base"\n')
    found = read_curve(tmp_path / "model", None)
    assert found is not None
    assert found.train == pytest.approx(2.5)
    assert (found.halfway, found.last, found.best, found.best_at) == (2.5, 2.45, 2.4, 0.6)
    assert (found.tokens, found.steps, found.finetuned) == (1000, 100, True)
    assert read_curve(tmp_path / "elsewhere" / "model", None) is None
