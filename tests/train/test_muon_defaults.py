"""What Muon's companions do by default: momentum that grows, faster tables, fewer iterations."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.settings import OptimSettings
from chatbench.train.optimizer import Muon, Optimizers, momentum_at, orthogonalise

CONFIG = ModelConfig(50, 1, 16, 2, 2, 8, 24, 16)


def trained(rng: random.Random, settings: OptimSettings, **more: int) -> tuple[GPT, Optimizers]:
    model = GPT(CONFIG)
    initialise(model, rng.randrange(1000))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.normal_()
    return model, Optimizers(model, settings, 1e-2, torch.float32, **more)


def fill(model: GPT, rng: random.Random) -> None:
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_momentum_grows_to_its_value_and_stays() -> None:
    values = [momentum_at(number, 0.95) for number in (0, 150, 300, 10_000)]
    assert values == pytest.approx([0.85, 0.9, 0.95, 0.95])
    assert momentum_at(None, 0.95) == 0.95
    assert [momentum_at(number, 0.5) for number in (0, 100, 400)] == [0.5] * 3


def test_the_momentum_of_a_step_is_that_of_its_number(rng: random.Random) -> None:
    model, optimizers = trained(rng, OptimSettings())
    name = "model.layers.0.self_attn.q_proj.weight"
    fill(model, rng)
    gradient = dict(model.named_parameters())[name].grad
    assert gradient is not None
    told = gradient.clone()
    optimizers.step(1.0, number=60)
    buffer = optimizers.state()[f"{name}/momentum_buffer"]
    torch.testing.assert_close(buffer, told * (1 - momentum_at(60, 0.95)))


@pytest.mark.parametrize(("optimizer", "share"), [("muon", 3.0), ("adamw", 1.0)])
def test_tables_move_at_their_own_rate_beside_muon_alone(
    rng: random.Random, optimizer: str, share: float
) -> None:
    settings = OptimSettings(optimizer=optimizer, embedding_rate=3.0, weight_decay=0.0)  # type: ignore[arg-type]
    model, optimizers = trained(rng, settings)
    before = model.model.embed_tokens.weight.detach().clone()
    fill(model, rng)
    table = model.model.embed_tokens.weight
    assert table.grad is not None
    size = table.grad.abs()
    optimizers.step(0.5)
    moved = (table.detach() - before).abs()
    # AdamW's first step is the rate where the gradient is far from its epsilon; as float32 adds
    # it to the weight.
    wanted = 0.5e-2 * share * size / (size + 1e-8)
    torch.testing.assert_close(moved, wanted, rtol=1e-3, atol=2.0**-24)


def test_small_batches_take_three_iterations(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(matrices: Tensor, steps: int = 0) -> Tensor:
        seen.append(steps)
        return orthogonalise(matrices, steps)

    monkeypatch.setattr("chatbench.train.optimizer.orthogonalise", counted)
    for tokens, steps in ((8192, 3), (8193, 5), (None, 5)):
        more = {} if tokens is None else {"batch_tokens": tokens}
        model, optimizers = trained(rng, OptimSettings(), **more)
        fill(model, rng)
        seen.clear()
        optimizers.step(1.0)
        assert set(seen) == {steps}


def test_iterations_are_those_asked_for(rng: random.Random) -> None:
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    matrix = torch.randn(1, 6, 9, generator=generator)
    values = torch.linalg.svdvals(matrix[0].double()) / matrix.double().norm()
    for steps in (1, 3, 5):
        wanted = values
        for _ in range(steps):
            wanted = 3.4445 * wanted - 4.7750 * wanted**3 + 2.0315 * wanted**5
        found = torch.linalg.svdvals(orthogonalise(matrix, steps)[0].double())
        # Each iteration multiplies the roundings of before by up to 3.4445.
        bound = 3.4445**steps * 100 * 2.0**-24
        assert float((found - wanted.abs().sort(descending=True).values).abs().max()) <= bound


def test_muon_stands_alone_with_five_iterations() -> None:
    muon = Muon([torch.nn.Parameter(torch.eye(2))], 1.0, 0.9, 0.0, torch.float32)
    assert muon._steps == 5
