"""DPO and its relatives: the numbers of the papers, whatever rows, micro-batches and ranks."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from train.parallel_runs import Ranks, codes, heard
from train.preference_cases import (
    Case,
    drawn,
    gradients,
    judged,
    model_of,
    preference,
    rows_of,
    slow_logprob,
    slow_reference,
)

from chatbench.errors import IntegrityError
from chatbench.model.transformer import GPT
from chatbench.settings import PreferenceSettings
from chatbench.train.board import Board
from chatbench.train.parallel import SOLO
from chatbench.train.preference import Preference, pair_losses, reply_logprobs
from chatbench.train.preference_reference import Reference
from chatbench.train.preference_rows import PairRows
from chatbench.train.summary import summary

VARIANTS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "dpo, another beta": {"beta": 0.7},
    "smoothed": {"label_smoothing": 0.2},
    "ipo": {"loss_type": "ipo"},
    "hinge": {"loss_type": "hinge", "beta": 0.4},
    "with sft": {"sft_weight": 0.5},
    "smoothed with sft": {"label_smoothing": 0.1, "sft_weight": 1.5, "beta": 0.3},
}
# Float64 rounds at 1e-16; some ten thousand operations, and weights that cancel.
CLOSE = 1e-9


@pytest.fixture
def cases(rng: random.Random) -> list[Case]:
    return [drawn(rng) for _ in range(rng.randint(9, 14))]


@pytest.fixture
def rows(cases: list[Case]) -> PairRows:
    return rows_of(cases, row_len=160)


@pytest.fixture
def model(rng: random.Random) -> GPT:
    return model_of(rng.randrange(1 << 30))


@pytest.fixture
def reference(rng: random.Random, rows: PairRows, cases: list[Case]) -> Any:
    return slow_reference(model_of(rng.randrange(1 << 30)), rows, cases)


def slow_loss(model: GPT, case: Case, told: Any, settings: PreferenceSettings) -> Tensor:
    """One pair, as the papers write it; trl's loss_type of the same name."""
    policy = [slow_logprob(model, case.prompt, reply) for reply in case[1:]]
    beta, wrong = settings.beta, settings.label_smoothing
    if settings.loss_type == "ipo":
        chosen, rejected = (
            (p - t) / len(r) for p, t, r in zip(policy, told, case[1:], strict=True)
        )
        loss = (chosen - rejected - 1 / (2 * beta)) ** 2
    else:
        h = beta * ((policy[0] - policy[1]) - (told[0] - told[1]))
        if settings.loss_type == "hinge":
            loss = torch.relu(1 - h)
        else:
            right, turned = torch.log(1 / (1 + torch.exp(-h))), torch.log(1 / (1 + torch.exp(h)))
            loss = -(1 - wrong) * right - wrong * turned
    return loss - settings.sft_weight * policy[0] / len(case.chosen)


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_are_those_of_a_slow_twin(
    model: GPT, cases: list[Case], rows: PairRows, reference: Any, variant: str
) -> None:
    settings = PreferenceSettings(**VARIANTS[variant])
    objective = preference(settings, rows, reference, rows_per_step=rows.count(), micro_batch=2)
    ours = gradients(model, objective)
    with torch.no_grad():
        total = sum(float(objective.loss(model, p).total) for p in objective.batch(0).parts)
    model.zero_grad()
    slow = torch.stack([
        slow_loss(model, cases[pair.chosen.document], told, settings)
        for pair, told in zip(rows.pairs, reference, strict=True)
    ])  # fmt: skip
    slow.mean().backward()  # type: ignore[no-untyped-call]
    assert math.isclose(total, float(slow.detach().sum()), rel_tol=CLOSE, abs_tol=CLOSE)
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        scale = float(weight.grad.norm()) + float(weight.detach().norm())
        assert float((ours[name] - weight.grad).norm()) <= CLOSE * scale, name


def test_what_a_loss_is_of_margins_by_hand() -> None:
    margins = torch.tensor([-3.0, 0.0, 2.0, 40.0, -900.0], dtype=torch.float64)

    def of(**given: Any) -> list[float]:
        found: list[float] = pair_losses(margins, PreferenceSettings(**given)).tolist()
        return found

    plain = [math.log1p(math.exp(-0.5 * float(m))) for m in margins]
    assert of(beta=0.5) == pytest.approx(plain, rel=1e-12)
    turned = [loss + 0.5 * float(m) for loss, m in zip(plain, margins, strict=True)]
    smoothed = [0.9 * one + 0.1 * other for one, other in zip(plain, turned, strict=True)]
    assert of(beta=0.5, label_smoothing=0.1) == pytest.approx(smoothed, rel=1e-12)
    assert of(loss_type="ipo", beta=0.25) == [25.0, 4.0, 0.0, 38.0**2, 902.0**2]
    assert of(loss_type="hinge", beta=0.5) == [2.5, 1.0, 0.0, 0.0, 451.0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_micro_batch_changes_no_gradient(rng: random.Random, model: GPT, variant: str) -> None:
    """Eight rows of one to some pairs, the same as 1×8, 2×4 and 8×1."""
    cases = [drawn(rng) for _ in range(60)]
    rows = rows_of(cases, row_len=160)
    reference = np.array([[rng.uniform(-60, -20) for _ in range(2)] for _ in cases])
    settings = PreferenceSettings(**VARIANTS[variant])
    found = [
        gradients(model, preference(settings, rows, reference, micro_batch=micro))
        for micro in (8, 4, 1)
    ]
    for name, whole in found[0].items():
        for other in found[1:]:
            assert float((other[name] - whole).norm()) <= CLOSE * (float(whole.norm()) + 1), name


def test_ranks_sum_up_to_the_gradient_of_one_process(ranks: Ranks, rng: random.Random) -> None:
    data = {"seed": rng.randrange(1 << 30), "bound": 1e-9}
    replies = ranks(2, call="same_preferences_as_one", data=data)
    assert codes(replies) == [0, 0], heard(replies)


def test_rows_in_which_nothing_counts_add_nothing(
    model: GPT, rows: PairRows, reference: Any
) -> None:
    objective = preference(PreferenceSettings(), rows, reference)
    part = objective.batch(0).parts[0]
    nothing = part._replace(weights=torch.zeros_like(part.weights), places=None)
    loss = objective.loss(model, nothing)
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert float(loss.total.detach()) == 0.0
    assert all(float(v) == 0.0 for v in loss.metrics.values())
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert not any(g.any() for g in grads)
    with torch.no_grad():
        assert objective.loss(model, nothing).weight == 0.0


def test_a_prompt_counts_as_what_is_read_and_not_as_what_is_learned(
    model: GPT, rows: PairRows, reference: Any, rng: random.Random
) -> None:
    """Other targets where no reply is: nothing changes."""
    objective = preference(PreferenceSettings(sft_weight=1.0), rows, reference)
    part = objective.batch(0).parts[0]
    other = torch.randint_like(part.targets, 37)
    changed = part._replace(targets=torch.where(part.weights > 0, part.targets, other))
    one, two = (objective.loss(model, each).total for each in (part, changed))
    assert torch.equal(one, two)


def test_rewards_and_accuracy_are_means_over_pairs(
    model: GPT, cases: list[Case], rows: PairRows, reference: Any
) -> None:
    objective = preference(PreferenceSettings(beta=0.3), rows, reference)
    sums = dict.fromkeys(objective.summed, 0.0)
    weight = 0.0
    with torch.no_grad():
        for batch in (piece for each in objective.validation() for piece in each.cut(2)):
            loss = objective.loss(model, batch)
            weight += loss.weight
            assert set(loss.metrics) == set(objective.summed)
            for name, value in loss.metrics.items():
                sums[name] += float(value)
    gains = 0.3 * (slow_reference(model, rows, cases) - reference)
    expected = {
        "accuracy": float((gains[:, 0] > gains[:, 1]).mean()),
        "reward_margin": float((gains[:, 0] - gains[:, 1]).mean()),
        "reward_chosen": float(gains[:, 0].mean()),
        "reward_rejected": float(gains[:, 1].mean()),
    }
    assert weight == len(cases)
    assert objective.report(sums) == pytest.approx(expected, abs=1e-9)
    assert objective.report({}) == objective.report(dict.fromkeys(objective.summed, 0.0)) == {}


# -- the reference ---------------------------------------------------------------------------------


def facts(**more: Any) -> dict[str, Any]:
    return {"corpus": "abc", "seq_len": 80, "seed": 0} | more


def never(model: GPT, batch: Any) -> Any:
    raise AssertionError("computed again")


def table(model: GPT, rows: PairRows, place: Path, judge: Any = reply_logprobs, **more: Any) -> Any:
    reference = Reference(model, torch.float64, place, facts(**more))
    return reference.of({"train": rows, "val": rows}, judge, 2, SOLO)


def test_the_reference_is_the_starting_model_and_computed_once(
    model: GPT, cases: list[Case], rows: PairRows, tmp_path: Path
) -> None:
    told = table(model, rows, tmp_path)
    assert np.allclose(told["train"], slow_reference(model, rows, cases), rtol=0, atol=1e-9)
    assert np.array_equal(told["train"], told["val"])
    again = table(model, rows, tmp_path, judge=never)
    assert all(np.array_equal(again[name], told[name]) for name in told)


def test_another_model_is_computed_anew_before_a_run_begins_and_refused_after(
    model: GPT, rows: PairRows, tmp_path: Path
) -> None:
    before = table(model, rows, tmp_path)
    with torch.no_grad():
        model.model.norm.weight += 0.1
    after = table(model, rows, tmp_path)
    assert not np.allclose(before["train"], after["train"])
    (tmp_path / "config.toml").touch()
    with torch.no_grad():
        model.model.norm.weight += 0.1
    with pytest.raises(IntegrityError, match="computed with another model than this resume"):
        table(model, rows, tmp_path, judge=never)
    with pytest.raises(IntegrityError, match="another corpus, model than"):
        table(model, rows, tmp_path, judge=never, corpus="abd")


def test_a_damaged_reference_is_computed_again(
    model: GPT, rows: PairRows, tmp_path: Path, rng: random.Random,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    told = table(model, rows, tmp_path)
    (tmp_path / "config.toml").touch()
    path = tmp_path / "reference" / "logprobs.safetensors"
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    again = table(model, rows, tmp_path)
    assert all(np.array_equal(again[name], told[name]) for name in told)
    assert "it is computed again" in capsys.readouterr().err


@pytest.mark.parametrize("variant", VARIANTS)
def test_at_the_start_every_margin_is_zero(
    model: GPT, cases: list[Case], rows: PairRows, variant: str
) -> None:
    settings = PreferenceSettings(**VARIANTS[variant])
    objective = preference(settings, rows, judged(model, rows))
    objective.check_start(model)
    settings.sft_weight = 0.0
    with torch.no_grad():
        loss = objective.loss(model, objective.batch(0).parts[0])
    beta = settings.beta
    expected = {"ipo": 1 / (4 * beta**2), "hinge": 1.0}.get(settings.loss_type, math.log(2))
    assert math.isclose(float(loss.total) / loss.weight, expected, rel_tol=1e-9)


@pytest.mark.parametrize("wrong", [0.5, math.nan])
def test_a_reference_of_another_model_is_refused_with_the_difference(
    model: GPT, rows: PairRows, wrong: float
) -> None:
    told = judged(model, rows)
    told[:, 0] += wrong * 100
    objective = preference(PreferenceSettings(), rows, told)
    with pytest.raises(IntegrityError, match=r"the loss is \S+ and not 0.693147: .* nats a token"):
        objective.check_start(model)


# -- what people see -------------------------------------------------------------------------------


def test_the_board_and_the_summary_speak_of_rewards(tmp_path: Path) -> None:
    board = Board()
    board.take({"step": 10, "loss": 0.6, "accuracy": 0.5, "reward_margin": 0.1})
    assert "accuracy 50.0% · margin +0.100" in [line.plain for line in board.lines(80, 24)]
    row = {"step": 10, "val_loss": 0.5, "val_accuracy": 0.875, "val_reward_margin": 0.4321,
           "val_reward_chosen": 0.25, "val_reward_rejected": -0.1821}  # fmt: skip
    board.take(row)
    wanted = "accuracy 87.5% · margin +0.432 · chosen +0.250 · rejected -0.182"
    assert wanted in [line.plain for line in board.lines(80, 24)]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert wanted in summary(tmp_path, finetuned=True)[0]


def test_an_objective_says_what_it_sums_up() -> None:
    assert Preference.of_text is False
    assert len(set(Preference.summed)) == 4
