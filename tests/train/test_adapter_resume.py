"""A finetune of an adapter that was killed ends with the bytes of an undisturbed one."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import sample_chats, write_jsonl

Forks = Callable[..., dict[str, Any]]
CLOCKED = {"timings.jsonl", "environment.json", "state.json", "manifest.json", "config.toml",
           "plan.json", "report.html"}  # fmt: skip
KINDS = {
    "adapter": ["--lora-rank", "3", "--lora-dropout", "0.3"],
    "tokens": ["--lora-rank", "3", "--lora-dropout", "0.3", "--template", "llama3"],
    "quantised": ["--lora-rank", "3", "--lora-dropout", "0.3", "--quantize", "int8"],
    "blocks": ["--train-layers", "1"],
}


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("chats") / "chats.jsonl", sample_chats())


def words(base: Path, chats: Path, out: Path, *more: str) -> list[str]:
    """Sixty steps that meet every trouble of forks.py, memory that holds one row among them."""
    changes = ("train.batch_tokens=96", "train.eval_tokens=200", "train.log_every=3",
               "train.eval_every=25", "train.sample_every=29", "train.save_every=7",
               "train.steps=60", "train.patience=0", "train.tensorboard=false", "dtype=float32",
               "device=cpu")  # fmt: skip
    sets = [word for change in changes for word in ("--set", change)]
    return ["finetune", "-m", str(base), "-d", str(chats), "-o", str(out), *sets, *more]


def contents(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in CLOCKED and ".tmp-" not in path.name
        and path.name != ".lock" and "corpus" not in path.relative_to(run).parts
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=() if k == "adapter" else pytest.mark.slow) for k in KINDS],
)
def test_a_killed_run_ends_as_an_undisturbed_one(
    forks: Forks, base_run: Path, chats: Path, tmp_path: Path, rng: random.Random, kind: str
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    done = forks(words(base_run, chats, whole, *KINDS[kind]))
    assert done["code"] == 0, done["err"]
    assert "1 row is computed at once" in done["err"]
    for _ in range(6):
        lines = rng.randint(1, 15)
        killed = forks(
            words(base_run, chats, run, *KINDS[kind]),
            signal="KILL", watch=str(run / "metrics.jsonl"), lines=lines,
        )  # fmt: skip
        if killed["code"] == -9:
            break
        shutil.rmtree(run)  # over before it could be killed, on a busy machine
    assert killed["code"] == -9
    gone_on = forks(words(base_run, chats, run, *KINDS[kind], "--resume"))
    assert gone_on["code"] == 0, gone_on["err"]
    ours, theirs = contents(run), contents(whole)
    assert ours.keys() == theirs.keys()
    assert "metrics.jsonl" in ours
    wanted = "model.safetensors" if kind == "blocks" else "adapter_model.safetensors"
    assert f"model/{wanted}" in ours
    assert [name for name in ours if ours[name] != theirs[name]] == []
