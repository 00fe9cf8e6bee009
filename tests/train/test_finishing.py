"""The finished model is the best by validation, and a run ends when it no longer gets better."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from train.troubled import Trouble, trainer_of

from chatbench.settings import FinetuneSettings, PretrainSettings, TrainSettings
from chatbench.storage import read_manifest
from chatbench.train.checkpoint import checkpoint_of, checkpoints_of
from chatbench.train.run import patience_of


def worse_after(best: int) -> Trouble:
    """Validations of `best` steps and of each later one: worse and worse."""
    return lambda step, batch: 1.0 if step + 1 <= best else 2.0 + step


def step_of(run: Path) -> dict[str, Any]:
    manifest = read_manifest(run / "model")
    assert manifest is not None
    return {name: manifest.info[name] for name in ("step", "trained")}


def test_the_finished_model_is_the_best_by_validation_and_says_so(
    corpus_folder: Path, tmp_path: Path, rng: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    best, keep = rng.randint(1, 6), rng.randint(1, 3)
    trainer_of(
        tmp_path, corpus_folder, validating=worse_after(best), eval_every=1, save_every=1, keep=keep
    ).fit()
    names = [path.name for path in checkpoints_of(tmp_path)]
    newest = [f"step-{step:08d}" for step in range(11 - keep, 11)]
    assert names == [f"step-{best:08d}", *newest]
    final = (tmp_path / "model" / "model.safetensors").read_bytes()
    kept = checkpoint_of(tmp_path, best) / "model" / "model.safetensors"
    assert final == kept.read_bytes()
    assert step_of(tmp_path) == {"step": best, "trained": 10}
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"model is step {best}, the best by validation" in last


def test_the_last_validation_counts(
    corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It falls on no step that is validated anyway."""
    trainer = trainer_of(
        tmp_path, corpus_folder, steps=10, eval_every=4,
        validating=lambda step, batch: {4: 1.0, 8: 0.9, 10: 0.8}[step + 1],
    )  # fmt: skip
    trainer.fit()
    assert step_of(tmp_path) == {"step": 10, "trained": 10}
    final = load_file(tmp_path / "model" / "model.safetensors")
    assert all(final[name].equal(p) for name, p in trainer._model.named_parameters())
    assert "model is step 10, the last one, with" in capsys.readouterr().err.splitlines()[-1]


def test_without_validation_the_last_step_is_the_model(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path, corpus_folder)
    monkeypatch.setattr(trainer._objective, "validation", lambda: iter(()))
    trainer.fit()
    assert step_of(tmp_path) == {"step": 10, "trained": 10}


def test_a_best_checkpoint_that_was_damaged_is_not_passed_off_as_the_model(
    corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def validating(step: int, batch: Any) -> float:
        if step == 9:
            trainer._saver.wait()
            path = checkpoint_of(tmp_path, 3) / "model" / "model.safetensors"
            path.write_bytes(path.read_bytes()[:-1])
        return 1.0 if step < 3 else 2.0

    trainer = trainer_of(tmp_path, corpus_folder, validating=validating, eval_every=1)
    trainer.fit()
    assert step_of(tmp_path) == {"step": 10, "trained": 10}
    said = capsys.readouterr().err
    assert "so the last step takes the place of the best" in said
    assert str(checkpoint_of(tmp_path, 3)) in said


@pytest.mark.parametrize("patience", [1, 3])
def test_a_run_that_no_longer_gets_better_stops(
    corpus_folder: Path, tmp_path: Path, patience: int, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer_of(
        tmp_path, corpus_folder, validating=worse_after(4), eval_every=2, steps=30,
        patience=patience,
    ).fit()  # fmt: skip
    assert step_of(tmp_path) == {"step": 4, "trained": 4 + 2 * patience}
    said = "1 validation was" if patience == 1 else f"{patience} validations were"
    assert f"the last {said} not better than that of step 4" in capsys.readouterr().err


def test_a_better_validation_in_between_starts_the_count_anew(
    corpus_folder: Path, tmp_path: Path
) -> None:
    wanted = {1: 1.0, 2: 2.0, 3: 0.5, 4: 2.0, 5: 2.0}
    trainer_of(
        tmp_path, corpus_folder, eval_every=1, steps=30, patience=2,
        validating=lambda step, batch: wanted[step + 1],
    ).fit()  # fmt: skip
    assert step_of(tmp_path) == {"step": 3, "trained": 5}


def test_a_validation_that_is_no_number_is_never_the_best(
    corpus_folder: Path, tmp_path: Path
) -> None:
    trainer_of(
        tmp_path, corpus_folder, eval_every=1,
        validating=lambda step, batch: 1.0 if step == 5 else float("nan"),
    ).fit()  # fmt: skip
    assert step_of(tmp_path) == {"step": 6, "trained": 10}


def test_finetunes_stop_early_by_default_and_pretraining_does_not() -> None:
    train = TrainSettings(patience=5)
    assert patience_of(PretrainSettings(data="d", out="o")) == 0
    assert patience_of(FinetuneSettings(model="m", data="d", out="o")) == 3
    assert patience_of(PretrainSettings(data="d", out="o", train=train)) == 5
    assert patience_of(FinetuneSettings(model="m", data="d", out="o", train=train)) == 5


def test_a_resume_remembers_the_best_and_how_long_ago_it_was(
    corpus_folder: Path, tmp_path: Path
) -> None:
    from chatbench.train.checkpoint import load_newest

    options: dict[str, Any] = {"validating": worse_after(3), "eval_every": 1, "patience": 5}
    trainer_of(tmp_path / "whole", corpus_folder, steps=30, **options).fit()
    run = tmp_path / "parts"
    trainer_of(run, corpus_folder, steps=6, **options).fit()
    restored = load_newest(run)
    assert restored is not None
    assert (restored.state.best_step, restored.state.stale) == (3, 3)
    again = trainer_of(run, corpus_folder, steps=30, **options)
    again.restore(restored)
    again.fit()
    assert step_of(run) == step_of(tmp_path / "whole") == {"step": 3, "trained": 8}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val_loss" in row] == list(range(1, 9))
