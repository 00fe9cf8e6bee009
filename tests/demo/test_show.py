"""The demo: a real run at the size of a toy, and (slow) the demo as it ships."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from chatbench.config import resolve
from chatbench.demo import show
from chatbench.demo.corpus import questions
from chatbench.flags import command_line
from chatbench.settings import (
    DemoSettings,
    FinetuneSettings,
    ModelSettings,
    OptimSettings,
    PretrainSettings,
    TrainSettings,
)
from conftest import chatbench

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything real, but small and short."""
    few = [row for row in questions() if row["intent"] in ("address", "delivery_fee", "returns")]
    monkeypatch.setattr(show, "questions", lambda: few)
    monkeypatch.setattr(show, "_DIALOGUES", 150)
    monkeypatch.setattr(show, "_PASSAGES", 20)
    monkeypatch.setattr(show, "_SHAPE", ModelSettings(n_layers=1, hidden_size=32, n_heads=2))
    monkeypatch.setattr(
        show, "_PRETRAIN", TrainSettings(steps=3, seq_len=128, batch_tokens=256, tensorboard=False)
    )
    monkeypatch.setattr(
        show, "_FINETUNE", TrainSettings(steps=3, batch_tokens=256, tensorboard=False)
    )


@pytest.mark.usefixtures("toy")
def test_without_a_terminal_it_answers_three_questions_and_reuses_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = DemoSettings(out=str(tmp_path / "demo"))
    assert show.demo(settings) == 0
    first = capsys.readouterr()
    assert [line for line in first.out.splitlines() if line.startswith("> ")] == [
        f"> {question}" for question in show._asked()
    ]
    verbs = ["preprocess", "pretrain", "finetune", "evaluate", "evaluate", "chat"]
    shown = [line for line in first.err.splitlines() if line.startswith("$ ")]
    assert [line.split()[2] for line in shown] == verbs

    weights = (tmp_path / "demo" / "bot" / "model" / "model.safetensors").stat()
    assert show.demo(settings) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "$ chatbench pretrain" not in again.err
    kept = (tmp_path / "demo" / "bot" / "model" / "model.safetensors").stat()
    assert kept.st_mtime_ns == weights.st_mtime_ns

    report = (tmp_path / "demo" / "report.md").read_text(encoding="utf-8")
    assert "exact_fact_match" in report
    assert "English" in report
    assert "Chinese" in report


@pytest.mark.usefixtures("toy")
def test_fresh_starts_over_and_leaves_other_files_alone(tmp_path: Path) -> None:
    settings = DemoSettings(out=str(tmp_path))
    show.demo(settings)
    (tmp_path / "mine.txt").write_text("keep me")
    before = (tmp_path / "base" / "environment.json").stat().st_ino
    show.demo(DemoSettings(out=str(tmp_path), fresh=True))
    assert (tmp_path / "mine.txt").read_text() == "keep me"
    assert (tmp_path / "base" / "environment.json").stat().st_ino != before


def test_the_commands_it_shows_mean_what_it_does() -> None:
    pretrain = PretrainSettings(
        data="a corpus", out="runs/x", train=show._PRETRAIN, model=show._SHAPE, optim=show._OPTIM
    )
    finetune = FinetuneSettings(
        model="m", data="d.jsonl", out="o", train=show._FINETUNE,
        optim=OptimSettings(optimizer="adamw", momentum=0.9), resume=True,
    )  # fmt: skip
    for verb, settings in (("pretrain", pretrain), ("finetune", finetune)):
        words = shlex.split(command_line(verb, settings))
        done = chatbench(*words[1:], "--print-config")
        assert done.returncode == 0, done.stderr
        assert resolve_text(type(settings), done.stdout) == settings


def resolve_text(settings_type: type, toml: str) -> object:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "config.toml")
        path.write_text(toml, encoding="utf-8")
        return resolve(settings_type, config_file=path, environ={}).settings


@pytest.mark.slow
def test_the_demo_knows_the_facts_in_both_languages(tmp_path: Path, cli: Cli) -> None:
    done = cli("demo", "-o", tmp_path / "demo", timeout=900)
    assert done.returncode == 0, done.stderr
    for language in ("en", "zh"):
        stored = (tmp_path / "demo" / f"evaluation-{language}" / "results.json").read_bytes()
        scores = {score["name"]: score for score in json.loads(stored)["scores"]}
        assert scores["exact_fact_match"]["n"] >= 150
        assert scores["exact_fact_match"]["value"] >= 90
