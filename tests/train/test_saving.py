"""A thread writes checkpoints: what was, not what is; errors reach the run; nothing is lost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from train.troubled import trainer_of

from chatbench.errors import EnvironmentFault
from chatbench.train import checkpoint, saving
from chatbench.train.checkpoint import checkpoint_of, checkpoints_of
from chatbench.train.saving import Saver, snapshot


def fail() -> None:
    raise EnvironmentFault("cannot write")


def test_writes_happen_one_after_the_other_in_their_order() -> None:
    done: list[int] = []
    gate = threading.Event()

    def first() -> None:
        gate.wait()
        done.append(1)

    with Saver() as saver:
        saver.start(first)
        assert done == []
        gate.set()
        saver.start(lambda: done.append(2))
        assert done[0] == 1
    assert done == [1, 2]
    assert saver.seconds is not None


@pytest.mark.parametrize("way", ["check", "wait", "start", "leave"])
def test_an_error_is_raised_once_where_training_is(way: str) -> None:
    saver = Saver()
    saver.start(fail)
    with pytest.raises(EnvironmentFault, match="cannot write"):  # noqa: PT012
        if way == "check":
            while True:
                saver.check()
        elif way == "wait":
            saver.wait()
        elif way == "start":
            saver.start(lambda: None)
        else:
            with saver:
                pass
    saver.wait()


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_write() -> None:
    with pytest.raises(ZeroDivisionError), Saver() as saver:  # noqa: PT012
        saver.start(fail)
        raise ZeroDivisionError


def test_who_leaves_at_once_does_not_wait_for_the_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_LAST_WAIT", 0.01)
    gate = threading.Event()
    done: list[int] = []

    def write() -> None:
        gate.wait()
        done.append(1)

    saver = Saver()
    with pytest.raises(KeyboardInterrupt), saver:  # noqa: PT012
        saver.start(write)
        raise KeyboardInterrupt
    assert done == []
    gate.set()
    saver.wait()


def test_a_write_that_waits_for_lost_processes_is_told_so() -> None:
    """But not when a person's mistake ends the run: the others still do their part."""
    for error, told in ((RuntimeError("gloo"), True), (EnvironmentFault("full"), False)):
        lost, gone = threading.Event(), threading.Event()

        def write(lost: threading.Event = lost, gone: threading.Event = gone) -> None:
            while not (lost.is_set() or gone.wait(0.001)):
                pass

        if not told:
            gone.set()
        with pytest.raises(type(error)), Saver(lost.set) as saver:  # noqa: PT012
            saver.start(write)
            raise error
        assert lost.is_set() == told


def test_a_snapshot_stays_what_it_was() -> None:
    tensors = {"a": torch.nn.Parameter(torch.ones(3)), "b": torch.zeros(2)}
    copies = snapshot(tensors)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.add_(1)
    assert copies["a"].equal(torch.ones(3))
    assert copies["b"].equal(torch.zeros(2))
    assert not copies["a"].requires_grad


def contents(folder: Path) -> dict[str, bytes]:
    """But for the clock, which the state tells as well and which the manifest hashes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("state.json", "manifest.json")
    }


def test_a_checkpoint_is_of_its_step_however_far_training_is_when_it_is_written(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"save_every": 4, "eval_every": 100, "log_every": 1}
    trainer_of(tmp_path / "plain", corpus_folder, **options).fit()
    gate = threading.Event()
    save = checkpoint.save

    def slow(*arguments: Any) -> Path:
        gate.wait()
        return save(*arguments)

    def training(step: int, batch: Any) -> float:
        if step == 7:
            # The next save waits for this one.
            assert checkpoints_of(tmp_path / "slow") == []
            gate.set()
        return 1.0

    monkeypatch.setattr(checkpoint, "save", slow)
    trainer_of(tmp_path / "slow", corpus_folder, training=training, keep=3, **options).fit()
    assert [path.name[-2:] for path in checkpoints_of(tmp_path / "slow")] == ["04", "08", "10"]
    for step in (8, 10):
        ours, theirs = (checkpoint_of(tmp_path / name, step) for name in ("slow", "plain"))
        assert contents(ours) == contents(theirs)
    restored = checkpoint._load(checkpoint_of(tmp_path / "slow", 4))
    assert restored.state.step == 4
    lines = (tmp_path / "slow" / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    assert restored.state.log_bytes["metrics"] == len(b"".join(lines[:4]))


def test_an_error_while_writing_ends_the_run_at_the_next_step(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> Path:
        raise EnvironmentFault("cannot write: no space")

    monkeypatch.setattr(checkpoint, "save", full)
    trainer = trainer_of(tmp_path, corpus_folder, save_every=3, steps=100_000, eval_every=100_000)
    with pytest.raises(EnvironmentFault, match="no space"):
        trainer.fit()
    assert trainer._state.step < 100_000
    assert not (tmp_path / "model").exists()


def test_old_checkpoints_stay_until_the_new_one_was_read_back(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chatbench.errors import IntegrityError

    def damaged(path: Path, kind: str) -> None:
        raise IntegrityError(f"{path} does not match its checksum")

    trainer_of(tmp_path, corpus_folder, steps=3, save_every=1, keep=2, eval_every=100).fit()
    before = [path.name for path in checkpoints_of(tmp_path)]
    restored = checkpoint.load_newest(tmp_path)
    assert restored is not None
    monkeypatch.setattr(checkpoint, "verify", damaged)
    again = trainer_of(tmp_path, corpus_folder, steps=9, save_every=1, keep=1, eval_every=100)
    again.restore(restored)
    with pytest.raises(IntegrityError, match="checksum"):
        again.fit()
    assert set(before) <= {path.name for path in checkpoints_of(tmp_path)}
