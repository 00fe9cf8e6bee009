"""Runs of several ranks and of one, and what has to be the same in both."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Ranks = Callable[..., list[dict[str, Any]]]
STEPS = 24


def codes(replies: list[dict[str, Any]]) -> list[int]:
    return [reply["code"] for reply in replies]


def heard(replies: list[dict[str, Any]]) -> str:
    return "\n".join(reply["err"] for reply in replies)


def words(corpus: Path, out: Path, *more: str) -> list[str]:
    """A run of a few steps of five rows, which two ranks cannot share evenly."""
    changes = (
        "model.n_layers=1", "model.hidden_size=16", "model.n_heads=1", "model.ffn_size=32",
        "train.seq_len=32", "train.batch_tokens=160", "train.micro_batch=2",
        "train.eval_tokens=200", "train.log_every=1", "train.eval_every=10",
        "train.sample_every=9", "train.save_every=5",
        f"train.steps={STEPS}", "train.tensorboard=false", "dtype=float32", "device=cpu",
        "optim.learning_rate=0.002",
    )  # fmt: skip
    sets = [word for change in changes for word in ("--set", change)]
    return ["pretrain", "-d", str(corpus), "-o", str(out), *sets, *more]


def lines_of(run: Path, name: str = "metrics") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text("utf-8").splitlines()]


def disturbed(ranks: Ranks, size: int, run: Path, arguments: list[str], **job: Any) -> Any:
    """Replies of a run that was disturbed; one that was over before, on a busy machine, is begun
    anew."""
    for _ in range(6):
        replies = ranks(size, arguments, **job)
        if any(codes(replies)):
            return replies
        shutil.rmtree(run)
    raise AssertionError("every run was over before it could be disturbed")


def assert_same_course(run: Path, alone: Path) -> None:
    """Every logged number, to the float32 sums of a few hundred terms."""
    ours, theirs = lines_of(run), lines_of(alone)
    assert [sorted(line) for line in ours] == [sorted(line) for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for name, value in other.items():
            bound = 1e-4 if name == "grad_norm" else 1e-6
            assert math.isclose(one[name], value, rel_tol=bound), (one, other)
