"""A run measured in minutes is over on time, its last validation and files included."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest
from train.troubled import trainer_of

from chatbench.model.transformer import GPT, ModelConfig
from chatbench.train import checkpoint, ending, finishing, loop, saving
from chatbench.train.ending import Ending, StopFlag
from chatbench.train.plan import Plan


class Objective:
    """Holds out nothing."""

    def validation(self) -> Any:
        return iter(())


def plan_of(minutes: float | None, steps: int | None = None) -> Plan:
    return Plan(
        seq_len=32, rows_per_step=2, micro_batch=2, learning_rate=0.1, steps=steps, minutes=minutes,
        eval_every=10, sample_every=10, save_every=10,
    )  # fmt: skip


def ending_of(plan: Plan) -> Ending:
    return Ending(plan, GPT(ModelConfig(50, 1, 16, 1, 1, 16, 32, 32)), Objective())  # type: ignore[arg-type]


def test_what_the_end_takes_is_kept_of_the_minutes(rng: random.Random) -> None:
    minutes = rng.uniform(1, 100)
    measured = ending_of(plan_of(minutes))
    measured.step_seconds, measured.validation_seconds = rng.uniform(0, 1), rng.uniform(0, 5)
    save = rng.uniform(0, 5)
    reserve = measured.validation_seconds + 1.5 * save + measured.step_seconds / 2
    assert measured.reserve(save) == pytest.approx(reserve)
    last = 60 * minutes - reserve
    assert measured.share(5, last - 1e-6, save) < 1.0 <= measured.share(5, last + 1e-6, save)


def test_a_reserve_never_takes_more_than_half_of_the_run() -> None:
    measured = ending_of(plan_of(1.0))
    measured.validation_seconds = 1000.0
    assert measured.share(5, 15.0, 0.0) == pytest.approx(0.5)


def test_steps_need_no_reserve() -> None:
    measured = ending_of(plan_of(None, steps=10))
    measured.validation_seconds = 1000.0
    assert measured.share(5, 1e6, 1e3) == 0.5


class Clock:
    """Time that passes only where a test says so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(("started", "step_cost"), [(0.0, 0.5), (30.0, 0.5), (10.0, 4.0)])
def test_a_run_ends_within_a_twentieth_of_its_minutes(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: float,
    step_cost: float,
) -> None:  # fmt: skip
    """Counted from the start of the command: two minutes, of which a validation takes four seconds
    and a checkpoint three."""
    clock = Clock()
    for module in (loop, saving):
        monkeypatch.setattr(module, "time", clock)
    save, write = checkpoint.save, finishing.write_model

    def slow_save(*arguments: Any) -> Path:
        clock.now += 3.0
        return save(*arguments)

    def slow_write(*arguments: Any) -> None:
        clock.now += 1.5
        write(*arguments)

    def passing(seconds: float) -> Any:
        def trouble(step: int, batch: Any) -> float:
            clock.now += seconds
            return 1.0

        return trouble

    # Not in a thread: there one clock cannot be both the thread's and the run's.
    monkeypatch.setattr(saving.Saver, "start", saving.Saver._run)
    monkeypatch.setattr(checkpoint, "save", slow_save)
    monkeypatch.setattr(finishing, "write_model", slow_write)
    trainer = trainer_of(
        tmp_path, corpus_folder, steps=None, minutes=2.0, training=passing(step_cost),
        validating=passing(2.0), eval_every=15,
    )  # fmt: skip
    assert len(list(trainer._objective.validation())) in (1, 2)
    begun = clock.now
    clock.now += started
    trainer._plan = trainer._plan._replace(begun=begun, spent=started)
    trainer._ending = Ending(trainer._plan, trainer._model, trainer._objective)
    trainer.fit()
    assert 0.95 * 120 <= clock.now - begun <= 1.05 * 120


def test_the_time_of_an_earlier_part_counts(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    for module in (loop, saving):
        monkeypatch.setattr(module, "time", clock)

    def trouble(step: int, batch: Any) -> float:
        clock.now += 1.0
        if step == 39 and first._state.step == 39:
            signal.raise_signal(signal.SIGTERM)
        return 1.0

    options: dict[str, Any] = {"steps": None, "minutes": 1.5, "training": trouble}
    first = trainer_of(tmp_path, corpus_folder, **options)
    with pytest.raises(ending.Stopped):
        first.fit()
    restored = checkpoint.load_newest(tmp_path)
    assert restored is not None
    assert restored.state.seconds == pytest.approx(40.0)
    clock.now += 1e6
    again = trainer_of(tmp_path, corpus_folder, **options)
    again.restore(restored)
    again.fit()
    # Nothing but steps takes time here; what a save of so few weights is thought to take is less
    # than one.
    assert again._state.step in (89, 90)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_first_signal_is_a_request_and_a_second_an_order(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with StopFlag() as flag:
        assert not flag.asked
        signal.raise_signal(number)
        assert flag.asked
        assert flag.stopped(7, Path("run")).exit_code == code
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert "once more to leave at once" in capsys.readouterr().err
