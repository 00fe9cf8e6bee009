"""A bad step never touches the weights: which steps are refused, and that a refusal leaves no
trace, whether the host knows at once or one step late."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from train.troubled import Trouble, trainer_of

from chatbench.errors import DivergedError
from chatbench.settings import OptimSettings
from chatbench.train.checkpoint import checkpoint_of, checkpoints_of
from chatbench.train.readings import Reading
from chatbench.train.skipping import Skips

LATE = pytest.mark.parametrize("late", [False, True])


def at(steps: set[int], factor: float) -> Trouble:
    return lambda step, batch: factor if step in steps else 1.0


def refused(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "skipped" in row]


def saved_at(run: Path, step: int) -> dict[str, Any]:
    """Weights and everything the optimisers remember."""
    folder = checkpoint_of(run, step)
    weights = load_file(folder / "model" / "model.safetensors")
    return weights | load_file(folder / "optimizer.safetensors")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


# -- a loss that is no number ------------------------------------------------------------------


@LATE
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize(("factor", "word"), [(math.nan, "nan"), (math.inf, "inf")])
def test_a_step_without_a_finite_loss_moves_nothing_and_the_next_one_does(
    corpus_folder: Path, tmp_path: Path, factor: float, word: str, optimizer: Any, late: bool
) -> None:
    trainer = trainer_of(
        tmp_path, corpus_folder, training=at({7}, factor), late=late, save_every=1, keep=9,
        log_every=1, optim=OptimSettings(optimizer=optimizer),
    )  # fmt: skip
    trainer.fit()
    before, after, next_one = (saved_at(tmp_path, step) for step in (7, 8, 9))
    assert same(before, after)
    assert not any(after[key].equal(next_one[key]) for key in after if key.endswith("_proj.weight"))
    assert refused(tmp_path) == [{"step": 8, "skipped": f"loss is {word}", "rows": [14, 16]}]


@LATE
def test_a_skipped_step_counts_in_no_mean(corpus_folder: Path, tmp_path: Path, late: bool) -> None:
    def losses(name: str, **options: Any) -> dict[int, float]:
        trainer_of(tmp_path / name, corpus_folder, late=late, **options).fit()
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}

    trouble = {"training": at({1}, math.nan)}
    each = losses("each", log_every=1, **trouble)
    assert sorted(each) == [1, *range(3, 11)]
    joined = losses("joined", log_every=5, **trouble)
    kept = [each[step] for step in (1, 3, 4, 5)]
    # Rows of this corpus are full, so all steps weigh the same.
    assert joined[5] == pytest.approx(sum(kept) / 4, abs=1e-9)


@LATE
def test_several_bad_steps_in_a_row_end_the_run_and_name_the_last_good_checkpoint(
    corpus_folder: Path, tmp_path: Path, late: bool
) -> None:
    trainer = trainer_of(
        tmp_path, corpus_folder, training=lambda step, batch: 1.0 if step < 4 else math.nan,
        late=late, save_every=4, steps=40, eval_every=100,
    )  # fmt: skip
    with pytest.raises(DivergedError) as caught:
        trainer.fit()
    assert caught.value.exit_code == 7
    assert "5 steps in a row, up to step 9" in str(caught.value)
    last = checkpoints_of(tmp_path)[-1]
    assert str(last) in str(caught.value)
    # Saved in the middle of the bad ones, it holds what was there before them.
    assert last.name == "step-00000008"
    assert same(saved_at(tmp_path, 4), saved_at(tmp_path, 8))
    weights = load_file(last / "model" / "model.safetensors")
    assert all(weights[name].equal(p) for name, p in trainer._model.named_parameters())
    assert not (tmp_path / "model").exists()


def test_a_run_that_diverges_before_any_checkpoint_says_so(
    corpus_folder: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, corpus_folder, training=lambda step, batch: math.nan,
                         eval_every=100)  # fmt: skip
    with pytest.raises(DivergedError, match="no checkpoint was saved"):
        trainer.fit()


@LATE
def test_fewer_bad_steps_in_a_row_do_not_end_the_run(
    corpus_folder: Path, tmp_path: Path, late: bool
) -> None:
    trouble = at({1, 2, 3, 4, 6, 7}, math.inf)
    trainer_of(tmp_path, corpus_folder, training=trouble, late=late).fit()
    assert [row["step"] for row in refused(tmp_path)] == [2, 3, 4, 5, 7, 8]


def test_how_many_end_a_run_is_a_setting(corpus_folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, corpus_folder, training=at({3}, math.nan), optim=OptimSettings(most_skips=1)
    )
    with pytest.raises(DivergedError, match="step 4"):
        trainer.fit()


# -- gradients that stand out ------------------------------------------------------------------


def test_a_spike_is_refused_alike_at_once_and_late(corpus_folder: Path, tmp_path: Path) -> None:
    found = []
    for late in (False, True):
        run = tmp_path / f"{late}"
        trainer_of(
            run, corpus_folder, training=at({10, 35}, 1e4), late=late, steps=40, save_every=1,
            keep=10,
        ).fit()  # fmt: skip
        found.append([row["step"] for row in refused(run)])
        assert refused(run)[0]["skipped"].startswith("gradient norm ")
        assert same(saved_at(run, 35), saved_at(run, 36))
        assert not same(saved_at(run, 36), saved_at(run, 37))
        state = json.loads((checkpoint_of(run, 40) / "state.json").read_text())
        assert state["skips"]["count"] == 1
    # At step 10 too little is known to refuse anything.
    assert found == [[36], [36]]


def test_spikes_are_taken_when_nobody_is_to_look(corpus_folder: Path, tmp_path: Path) -> None:
    trainer_of(
        tmp_path, corpus_folder, training=at({35}, 1e4), steps=40, optim=OptimSettings(spike=0)
    ).fit()
    assert refused(tmp_path) == []


def test_gradients_of_the_warm_up_are_neither_judged_nor_remembered(
    corpus_folder: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(
        tmp_path, corpus_folder, training=at({35}, 1e4), steps=40, optim=OptimSettings(warmup=1.0)
    )
    trainer.fit()
    assert refused(tmp_path) == []
    # With a warm-up of one the very last step is the first after it.
    assert [step for step, _, _ in trainer._state.skips.recent] == [39]


class Played(list[Reading]):
    """Readings of a made-up run: norms as given, each refused when above its limit."""

    def __init__(self, norms: list[float], *, late: int, spike: float = 10.0) -> None:
        skips, waiting = Skips(), list[Reading]()
        for step, norm in enumerate(norms):
            limit = skips.limit(step, spike)
            bad = not math.isfinite(norm) or norm > limit
            waiting.append(Reading(step, 1.0, 1.0, norm, bad, limit, True))
            self.append(waiting[-1])
            while len(waiting) > late:
                skips.note(waiting.pop(0))


def wild(rng: random.Random) -> list[float]:
    """Norms with spikes, lasting jumps, and some that are no numbers."""
    level, norms = 1.0, []
    for _ in range(400):
        if rng.random() < 0.01:
            level *= rng.choice([0.01, 50, 100])
        norm = level * rng.lognormvariate(0, 0.3)
        norms.append(rng.choice([math.nan, math.inf, 30 * norm]) if rng.random() < 0.1 else norm)
    return norms


def test_the_limit_is_that_of_its_definition(rng: random.Random) -> None:
    played = Played(wild(rng), late=0)
    for reading in played:
        known = played[: max(0, reading.step - 1)]
        recent = [r for r in known if math.isfinite(r.norm)][-100:]
        begin = max(
            (i + 1 for i in range(4, len(recent)) if all(r.refused for r in recent[i - 4 : i + 1])),
            default=0,
        )
        taken = np.array([r.norm for r in recent[begin:] if not r.refused])
        if len(taken) < 20:
            assert reading.limit == math.inf
        else:
            middle = np.median(taken)
            spread = np.median(np.abs(taken - middle))
            assert reading.limit == middle + 10 * max(middle, spread)


def test_who_learns_late_refuses_the_same(rng: random.Random) -> None:
    norms = wild(rng)
    at_once, late = Played(norms, late=0), Played(norms, late=1)
    for one, other in zip(at_once, late, strict=True):
        assert (one.refused, one.limit) == (other.refused, other.limit)


def test_what_is_remembered_survives_a_checkpoint(rng: random.Random) -> None:
    import msgspec

    skips = Skips()
    for reading in Played(wild(rng)[: rng.randrange(400)], late=0):
        skips.note(reading)
    assert msgspec.json.decode(msgspec.json.encode(skips), type=Skips) == skips


def test_a_lasting_jump_is_refused_for_a_few_steps_and_then_learnt() -> None:
    played = Played([1.0] * 60 + [100.0] * 60, late=0)
    steps = [reading.step for reading in played if reading.refused]
    assert steps == [60, 61, 62, 63, 64, 65]


def test_a_gradient_of_zero_sets_no_limit() -> None:
    assert not any(reading.refused for reading in Played([0.0] * 40 + [1.0], late=0))
