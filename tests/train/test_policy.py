"""The formulas of learning from rewards, against slow twins written from the papers."""

from __future__ import annotations

import math
import random
import statistics

import pytest
import torch
from torch import Tensor

from chatbench.model.adapter import add_adapter
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.train.objective import Batch
from chatbench.train.policy import (
    Start,
    advantages,
    beside_others,
    deviation,
    distance,
    drawn_logprobs,
    is_clipped,
    surrogate,
)


def numbers(rng: random.Random, count: int, low: float = -3.0, high: float = 3.0) -> Tensor:
    return torch.tensor([rng.uniform(low, high) for _ in range(count)], dtype=torch.float64)


def model_of(rng: random.Random, *, tied: bool = True) -> GPT:
    """A model of 2 layers × 16 in float64 whose blocks do something."""
    model = GPT(ModelConfig(50, 2, 16, 2, 1, 8, 32, 64, tie_embeddings=tied)).double()
    generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


def test_the_surrogate_is_the_papers_token_by_token(rng: random.Random) -> None:
    now, before, gains = (numbers(rng, 200, -2.0, 0.0) for _ in range(3))
    gains = gains + 1.0
    low, high = rng.uniform(0.05, 0.5), rng.uniform(0.05, 0.5)
    found = surrogate(now, before, gains, low, high).tolist()
    clipped = is_clipped(now, before, gains, low, high).tolist()
    for n, (a, b, gain) in enumerate(zip(*(t.tolist() for t in (now, before, gains)), strict=True)):
        ratio = math.exp(a - b)
        plain, cut = ratio * gain, min(max(ratio, 1 - low), 1 + high) * gain
        assert found[n] == pytest.approx(min(plain, cut), rel=1e-12, abs=1e-300)
        assert clipped[n] == (cut < plain)


def test_the_first_gradient_is_that_of_reinforce(rng: random.Random) -> None:
    """At ratio one the gradient of a token's term is its advantage times that of log p."""
    now = numbers(rng, 50, -4.0, 0.0).requires_grad_()
    gains = numbers(rng, 50)
    value = surrogate(now, now.detach(), gains, 0.2, 0.2)
    assert torch.equal(value, gains)
    value.sum().backward()
    assert torch.equal(now.grad, gains)  # type: ignore[arg-type]


def test_what_is_clipped_learns_nothing_more(rng: random.Random) -> None:
    before = numbers(rng, 4, -2.0, -1.0)
    now = (before + torch.tensor([0.5, -0.5, 0.5, -0.5], dtype=torch.float64)).requires_grad_()
    gains = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    surrogate(now, before, gains, 0.2, 0.2).sum().backward()
    assert now.grad is not None
    assert (now.grad == 0).tolist() == [True, True, False, False]


def test_the_distance_is_schulmans_third_estimate(rng: random.Random) -> None:
    now, reference = numbers(rng, 300, -6.0, 0.0), numbers(rng, 300, -6.0, 0.0)
    found = distance(now, reference)
    for value, a, b in zip(found.tolist(), now.tolist(), reference.tolist(), strict=True):
        assert value == pytest.approx(math.exp(b - a) - (b - a) - 1, rel=1e-9, abs=1e-12)
    assert bool((found >= 0).all())
    assert bool((distance(now, now) == 0).all())


def test_its_mean_over_draws_is_the_divergence(rng: random.Random) -> None:
    """Summed over all tokens by their probability, not drawn: exactly KL(p ‖ reference)."""
    p, q = (numbers(rng, 30).softmax(0) for _ in range(2))
    mean = (p * distance(p.log(), q.log())).sum()
    assert float(mean) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-9, abs=1e-12)


def test_no_log_ratio_is_too_large_for_numbers() -> None:
    for dtype in (torch.float32, torch.float64):
        now = torch.tensor([-1.0, -1e4, -1e4, 0.0], dtype=dtype, requires_grad=True)
        then = torch.tensor([-1e4, -1.0, 0.0, -1e30], dtype=dtype)
        value = surrogate(now, then, torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=dtype), 0.2, 0.2)
        (value.sum() + distance(now, then.clamp(-1e4)).sum()).backward()
        assert bool(value.isfinite().all())
        assert now.grad is not None
        assert bool(now.grad.isfinite().all())


@pytest.mark.parametrize("scaled", [False, True])
def test_advantages_are_what_a_reply_is_worth_more_than_its_group(
    rng: random.Random, scaled: bool
) -> None:
    group, groups = rng.randint(2, 6), rng.randint(1, 5)
    rewards = [rng.choice([0.0, 1.0, rng.random()]) for _ in range(group * groups)]
    found = advantages(rewards, group, scaled=scaled)
    for begin in range(0, len(rewards), group):
        own = rewards[begin : begin + group]
        spread = statistics.stdev(own)
        for value, reward in zip(found[begin : begin + group], own, strict=True):
            wanted = reward - statistics.fmean(own)
            if scaled:
                wanted = wanted / spread if spread else 0.0
            assert value == pytest.approx(wanted, rel=1e-9, abs=1e-9)
        assert deviation(own) == pytest.approx(spread, rel=1e-9, abs=1e-12)


def test_of_equal_rewards_nothing_is_left_not_even_rounding(rng: random.Random) -> None:
    for _ in range(200):
        size = rng.randint(1, 9)
        same = [rng.uniform(-5, 5)] * size
        assert advantages(same, size) == advantages(same, size, scaled=True) == [0.0] * size
        assert size == 1 or beside_others(same) == [0.0] * size


def test_single_replies_are_held_against_all_others(rng: random.Random) -> None:
    rewards = [rng.random() for _ in range(rng.randint(2, 9))]
    for n, value in enumerate(beside_others(rewards)):
        others = rewards[:n] + rewards[n + 1 :]
        assert value == pytest.approx(rewards[n] - statistics.fmean(others), abs=1e-12)
    assert beside_others([0.75]) == [0.75]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("adapted", [True, False])
def test_log_probabilities_are_those_of_the_distribution_drawn_from(
    rng: random.Random, tied: bool, adapted: bool
) -> None:
    model = model_of(rng, tied=tied)
    temperature = rng.uniform(0.3, 2.0)
    ids, targets = (
        torch.tensor([[rng.randrange(50) for _ in range(9)] for _ in range(3)]) for _ in "ab"
    )
    weights = torch.tensor([[float(rng.random() < 0.5) for _ in range(9)] for _ in range(3)])
    weights[0, 0] = 1.0
    if adapted and not tied:
        adapt(model)
    found = drawn_logprobs(model, Batch(ids, targets, weights, None), temperature)
    with torch.no_grad():
        slow = [
            float((model.logits(model(row[None]))[0, at] / temperature).log_softmax(-1)[aim[at]])
            for row, aim, counts in zip(ids, targets, weights, strict=True)
            for at in range(9) if counts[at]
        ]  # fmt: skip
    # A few hundred sums of terms of size one, each rounded to 2^-53.
    assert found.tolist() == pytest.approx(slow, rel=0, abs=1e-11)


def adapt(model: GPT) -> None:
    from chatbench.model.adapter import LoraConfig

    add_adapter(model, LoraConfig(rank=2), seed=0)


def test_the_start_stays_what_it_was_with_and_without_an_adapter(rng: random.Random) -> None:
    for adapted in (False, True):
        model = model_of(rng)
        if adapted:
            adapt(model)
        ids = torch.tensor([[rng.randrange(50) for _ in range(12)]])
        begun = model.logits(model(ids)).detach()
        start = Start(model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
        moved = model.logits(model(ids)).detach()
        assert not torch.equal(moved, begun)
        with start.model() as then:
            assert torch.equal(then.logits(then(ids)).detach(), begun)
        assert torch.equal(model.logits(model(ids)).detach(), moved)


def test_a_fresh_model_is_its_own_start() -> None:
    model = GPT(ModelConfig(50, 1, 16, 1, 1, 16, 32, 32))
    initialise(model, 0)
    with Start(model).model() as then:
        assert not any(parameter.requires_grad for parameter in then.parameters())
        assert all(parameter.requires_grad for parameter in model.parameters())
