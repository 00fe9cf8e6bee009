"""The update is the published one, and nothing of its memory is lost between runs."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.settings import OptimSettings
from chatbench.train.optimizer import (
    Muon,
    Optimizers,
    _newton_schulz,
    orthogonalise,
    schedule,
)

SHAPES = [(16, 48), (48, 16), (24, 24), (16, 48)]


def seeded(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(1 << 30))


def tiny_model(rng: random.Random) -> GPT:
    model = GPT(ModelConfig(40, 2, 16, 2, 1, 8, 24, 32))
    initialise(model, rng.randrange(1 << 20))
    return model


def feed(optimizers: Optimizers, generator: torch.Generator) -> None:
    """Random gradients where the optimisers look for them."""
    for master in optimizers.masters.values():
        master.grad = torch.randn(master.shape, generator=generator)


# -- Muon ----------------------------------------------------------------------------------------


def test_muon_is_torchs_muon(rng: random.Random) -> None:
    generator = seeded(rng)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    mine = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1, work_dtype=torch.bfloat16)
    reference = torch.optim.Muon(
        theirs, lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=True,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    begun = [p.detach().clone() for p in ours]
    for _ in range(5):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        mine.step()
        reference.step()
    for one, other, start in zip(ours, theirs, begun, strict=True):
        moved = float((other - start).norm().detach())
        assert float((one - other).norm().detach()) < 0.04 * moved


def test_muon_in_float32_equals_a_slow_reference(rng: random.Random) -> None:
    """Momentum, Nesterov, five Newton-Schulz steps, decay: one matrix at a time in float64."""
    generator = seeded(rng)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    slow = [p.detach().double() for p in ours]
    buffers = [torch.zeros_like(p) for p in slow]
    muon = Muon(ours, lr=0.01, momentum=0.95, weight_decay=0.1, work_dtype=torch.float32)
    for _ in range(4):
        for place, parameter in enumerate(ours):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient
            buffers[place] = 0.95 * buffers[place] + 0.05 * gradient.double()
            update = 0.05 * gradient.double() + 0.95 * buffers[place]
            x = update / update.norm()
            x = x.mT if x.shape[0] > x.shape[1] else x
            for _ in range(5):
                gram = x @ x.mT
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            x = x.mT if x.shape != update.shape else x
            rate = 0.01 * 0.2 * max(update.shape) ** 0.5
            slow[place] = slow[place] * (1 - 0.01 * 0.1) - rate * x
        muon.step()
    for parameter, wanted in zip(ours, slow, strict=True):
        assert torch.allclose(parameter.detach().double(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (20, 20)])
def test_orthogonalised_matrices_have_singular_values_near_one(
    rng: random.Random, shape: tuple[int, int]
) -> None:
    # A floor under the smallest singular value: five steps lift a tiny one only so far.
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=seeded(rng)))
    values = torch.tensor([rng.uniform(0.1, 1.0) for _ in range(min(shape))])
    matrix = left[:, : min(shape)] @ torch.diag(values) @ right[: min(shape)]
    pushed = torch.linalg.svdvals(orthogonalise(matrix[None])[0])
    assert 0.6 <= float(pushed.min()) <= float(pushed.max()) <= 1.3


def test_a_matrix_is_orthogonalised_alike_alone_and_in_company(rng: random.Random) -> None:
    matrices = torch.randn(3, 10, 14, generator=seeded(rng))
    together = orthogonalise(matrices)
    for number in range(3):
        assert torch.allclose(together[number], orthogonalise(matrices[number : number + 1])[0],
                              atol=1e-5)  # fmt: skip


def test_a_zero_gradient_moves_nothing_but_the_decay() -> None:
    parameter = nn.Parameter(torch.ones(4, 6))
    parameter.grad = torch.zeros(4, 6)
    Muon([parameter], 0.1, 0.9, 0.5, torch.float32).step()
    assert torch.allclose(parameter.detach(), torch.full((4, 6), 0.95))


def test_an_iteration_is_the_published_quintic(rng: random.Random) -> None:
    x = torch.randn(3, 10, 14, generator=seeded(rng), dtype=torch.float64) / 12
    gram = x @ x.mT
    wanted = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    assert torch.allclose(_newton_schulz(x), wanted, rtol=1e-12, atol=1e-12)


# -- groups --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_norms_and_embeddings_are_not_decayed(rng: random.Random, name: str) -> None:
    """With zero gradients only the decay moves a weight."""
    model = tiny_model(rng)
    optimizers = Optimizers(
        model, OptimSettings(optimizer=name, weight_decay=0.5), 0.1, torch.float32
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        with torch.no_grad():
            parameter.fill_(1.0)
    optimizers.step(1.0)
    for key, parameter in model.named_parameters():
        kept = parameter.ndim < 2 or "embed_tokens" in key
        wanted = 1.0 if kept else 0.95
        assert torch.allclose(parameter.detach(), torch.full_like(parameter, wanted)), key


def test_every_parameter_has_exactly_one_optimiser(rng: random.Random) -> None:
    model = tiny_model(rng)
    optimizers = Optimizers(model, OptimSettings(), 0.1, torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    feed(optimizers, seeded(rng))
    optimizers.step(1.0)
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())
    quantities = {key.rsplit("/", 1)[0] for key in optimizers.state()}
    assert quantities == set(before)
    matrices = {k for k in optimizers.state() if k.endswith("momentum_buffer")}
    assert len(matrices) == 2 * 7


def test_the_step_is_scaled_by_the_schedule(rng: random.Random) -> None:
    model = tiny_model(rng)
    optimizers = Optimizers(model, OptimSettings(), 0.1, torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    feed(optimizers, seeded(rng))
    optimizers.step(0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_gradients_are_gone_after_a_step_and_after_being_discarded(rng: random.Random) -> None:
    optimizers = Optimizers(tiny_model(rng), OptimSettings(), 0.1, torch.float32)
    feed(optimizers, seeded(rng))
    optimizers.discard_gradients()
    assert optimizers.gradients() == []
    feed(optimizers, seeded(rng))
    optimizers.step(1.0)
    assert optimizers.gradients() == []


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_is_skipped_on_the_device_leaves_no_trace(
    rng: random.Random, name: str, dtype: torch.dtype
) -> None:
    """Also not in what the optimisers remember, though gradients are no numbers."""
    model = tiny_model(rng)
    optimizers = Optimizers(model, OptimSettings(optimizer=name), 1e-2, dtype)
    feed(optimizers, seeded(rng))
    optimizers.step(1.0, skip=torch.tensor(False))
    everything = (*optimizers.masters.items(), *optimizers.state().items())
    before = {key: value.detach().clone() for key, value in everything}
    working = [p.detach().clone() for p in model.parameters()]
    feed(optimizers, seeded(rng))
    for gradient in optimizers.gradients():
        gradient.view(-1)[0] = torch.nan
    optimizers.step(1.0, skip=torch.tensor(True))
    after = dict((*optimizers.masters.items(), *optimizers.state().items()))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(torch.equal(a, b) for a, b in zip(working, model.parameters(), strict=True))
    assert optimizers.gradients() == []


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_step_that_might_have_been_skipped_is_the_same_step(
    rng: random.Random, name: str
) -> None:
    seed, start = rng.randrange(1 << 30), rng.randrange(1 << 20)
    moved = []
    for skip in (None, torch.tensor(False)):
        model = GPT(ModelConfig(40, 2, 16, 2, 1, 8, 24, 32))
        initialise(model, start)
        optimizers = Optimizers(model, OptimSettings(optimizer=name), 1e-2, torch.float32)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(3):
            feed(optimizers, generator)
            optimizers.step(1.0, skip=skip)
        moved.append([p.detach() for p in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(*moved, strict=True))


@pytest.mark.parametrize("limit", [0.0, 0.1, 1e6])
def test_gradients_are_scaled_to_the_limit(rng: random.Random, limit: float) -> None:
    optimizers = Optimizers(tiny_model(rng), OptimSettings(), 1e-2, torch.float32)
    feed(optimizers, seeded(rng))
    before = torch.cat([g.flatten() for g in optimizers.gradients()]).double()
    norm = optimizers.clip(limit)
    after = torch.cat([g.flatten() for g in optimizers.gradients()]).double()
    assert float(norm) == pytest.approx(float(before.norm()), rel=1e-5)
    share = min(1.0, limit / float(norm)) if limit else 1.0
    assert torch.allclose(after, before * share, rtol=1e-5, atol=0)


# -- float32 masters -------------------------------------------------------------------------------


def test_weights_are_the_rounding_of_float32_masters(rng: random.Random) -> None:
    model = tiny_model(rng)
    begun = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers = Optimizers(model, OptimSettings(), 1e-4, torch.bfloat16)
    assert all(torch.equal(begun[name], m) for name, m in optimizers.masters.items())
    for _ in range(3):
        feed(optimizers, seeded(rng))
        optimizers.step(1.0)
    moved = 0
    for name, working in model.named_parameters():
        master = optimizers.masters[name]
        assert (master.dtype, working.dtype) == (torch.float32, torch.bfloat16)
        assert torch.equal(working, master.to(torch.bfloat16))
        moved += int((master != begun[name]).sum())
    assert moved > 0.9 * model.parameter_count(), "steps far below bfloat16's grain still count"


def test_micro_batch_gradients_are_summed_in_float32(rng: random.Random) -> None:
    model = tiny_model(rng)
    optimizers = Optimizers(model, OptimSettings(), 1e-3, torch.bfloat16)
    parts = [1.0, *([2.0**-9] * 8)]  # each of the small ones is lost when added in bfloat16
    for part in parts:
        for working in model.parameters():
            working.grad = torch.full_like(working, part)
        optimizers.collect_gradients()
    assert all(working.grad is None for working in model.parameters())
    for gradient in optimizers.gradients():
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, torch.full_like(gradient, sum(parts)))


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_state_put_back_continues_bit_for_bit(
    rng: random.Random, dtype: torch.dtype, name: str
) -> None:
    chosen = OptimSettings(optimizer=name)
    model = tiny_model(rng)
    optimizers = Optimizers(model, chosen, 1e-2, dtype)
    for _ in range(3):
        feed(optimizers, seeded(rng))
        optimizers.step(0.7)
    weights = {key: m.detach().clone() for key, m in optimizers.masters.items()}
    state = {key: value.clone() for key, value in optimizers.state().items()}

    other_model = tiny_model(rng)
    other = Optimizers(other_model, chosen, 1e-2, dtype)
    other.load(weights, state)
    assert same(other.state(), state)
    seed = rng.randrange(1 << 30)
    for each in (optimizers, other):
        feed(each, torch.Generator().manual_seed(seed))
        each.step(0.3)
    assert same(dict(optimizers.masters), dict(other.masters))
    assert same(optimizers.state(), other.state())
    assert same(dict(model.named_parameters()), dict(other_model.named_parameters()))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    def equal(a: Tensor, b: Tensor) -> bool:
        return a.dtype == b.dtype and torch.equal(a, b)

    return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)


# -- schedule --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("progress", "share"),
    [(0.0, 0.01), (0.05, 0.5), (0.1, 1.0), (0.3, 1.0), (0.5, 1.0), (0.75, 0.6), (1.0, 0.2),
     (1.5, 0.2)],
)  # fmt: skip
def test_the_rate_warms_up_holds_and_decays(progress: float, share: float) -> None:
    chosen = OptimSettings(warmup=0.1, decay=0.5, min_lr=0.2)
    assert schedule(progress, chosen) == pytest.approx(share)


def test_a_schedule_without_warm_up_or_decay_is_flat() -> None:
    chosen = OptimSettings(warmup=0.0, decay=0.0)
    assert [schedule(p, chosen) for p in (0.0, 0.4, 1.0)] == [1.0, 1.0, 1.0]
