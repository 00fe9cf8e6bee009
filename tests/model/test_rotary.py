"""Rotary positions: frequencies as transformers has them, tables made when needed."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chatbench.model.architectures import llama
from chatbench.model.attention import Packing
from chatbench.model.rotary import RotaryTable, frequencies
from chatbench.model.transformer import GPT, ModelConfig, RopeScaling

transformers = pytest.importorskip("transformers")

Family = Callable[..., ModelConfig]
Build = Callable[[ModelConfig], GPT]
Rope = Callable[[str | None], RopeScaling | None]
SCALED = ("linear", "dynamic", "yarn", "llama3")
CPU = torch.device("cpu")


def plain_table(config: ModelConfig, positions: int, seen: int = 1) -> Tensor:
    """(2, positions, D), one number after the other in float64."""
    frequency, factor = frequencies(config, seen)
    table = torch.zeros(2, positions, config.head_dim, dtype=torch.float64)
    for place in range(positions):
        for pair, turn in enumerate(frequency.tolist()):
            angle = torch.tensor(place * turn, dtype=torch.float64)
            for at in (pair, pair + config.head_dim // 2):
                table[0, place, at] = angle.cos() * factor
                table[1, place, at] = angle.sin() * factor
    return table


@pytest.mark.parametrize("kind", SCALED)
def test_frequencies_equal_transformers_over_what_a_scaling_can_say(
    random_family: Family, random_rope: Rope, rng: random.Random, kind: str
) -> None:
    oracle = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind]
    for _ in range(40):
        context = rng.choice((64, 4096, 131_072))
        head_dim = rng.choice((4, 10, 64, 128))
        config = random_family("llama", rope=random_rope(kind), context=context, head_dim=head_dim)
        seen = rng.randrange(1, 4 * context)
        theirs, factor = oracle(transformers.LlamaConfig(**llama.write(config)), CPU, seen)
        ours, ours_factor = frequencies(config, seen)
        torch.testing.assert_close(ours.float(), theirs, rtol=3e-6, atol=0)
        assert ours_factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("changes", [{}, {"mscale": 0.7}, {"mscale": 0.7, "mscale_all_dim": 1.1}])
def test_the_attention_factor_of_yarn_scales_cos_and_sin(
    random_family: Family, changes: dict[str, float]
) -> None:
    rope = RopeScaling("yarn", 4.0, 128, **changes)
    table = RotaryTable(random_family("llama", rope=rope)).first(50, CPU, torch.float32)
    length = table.square().sum(0).sqrt()
    expected = {0: 1.138629436, 1: 1.138629436, 2: 1.097040605 / 1.152492380}[len(changes)]
    torch.testing.assert_close(length, torch.full_like(length, expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [None, *SCALED])
def test_tables_equal_the_slow_twin_however_they_grew(
    random_family: Family, random_rope: Rope, rng: random.Random, kind: str | None
) -> None:
    config = random_family("llama", rope=random_rope(kind))
    table = RotaryTable(config)
    wanted = plain_table(config, 700)
    for _ in range(4):
        reach = rng.randrange(1, 700)
        torch.testing.assert_close(
            table.first(reach, CPU, torch.float64)[:, 0, :, 0], wanted[:, :reach],
            atol=1e-7, rtol=0,
        )  # fmt: skip
        position = torch.randint(0, reach, (3, 5))
        found = table.at(position, reach, torch.float64)
        assert found.shape == (2, 3, 5, 1, config.head_dim)
        torch.testing.assert_close(found[:, :, :, 0], wanted[:, position], atol=1e-7, rtol=0)


def test_far_angles_keep_their_precision(random_family: Family) -> None:
    config = random_family("qwen3", context=1_000_000, head_dim=16)
    table = RotaryTable(config)
    far = table.at(torch.tensor([[131_071]]), 131_072, torch.float64)[0, 0, 0, 0, :8]
    frequency, _ = frequencies(config, 1)
    torch.testing.assert_close(far, (131_071 * frequency).cos(), atol=1e-7, rtol=0)


@torch.no_grad()
def test_a_long_context_costs_nothing_until_it_is_used(random_family: Family) -> None:
    config = random_family("llama", context=1 << 40)
    model = GPT(config)
    ids = torch.zeros(1, 10, dtype=torch.long)
    model(ids)
    model(ids, Packing(torch.zeros_like(ids), torch.arange(10)[None]))
    assert model.rope is not None
    assert model.rope._table.numel() <= 2 * 256 * config.head_dim
    assert not list(model.buffers())
    assert not any("rot" in name or "rope" in name for name in model.state_dict())


def test_a_table_made_while_generating_serves_training(
    random_family: Family, random_model: Build, rng: random.Random
) -> None:
    model = random_model(random_family("qwen2"))
    ids = torch.randint(0, model.config.vocab_size, (1, 12))
    with torch.inference_mode():
        before = model(ids).clone()
    after = model(ids)
    after.sum().backward()
    # Without gradients another kernel multiplies, in another order.
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)
    assert model.rope is not None
    assert not model.rope._table.is_inference()


def test_a_table_copied_to_a_device_while_generating_serves_training_too(
    random_family: Family,
) -> None:
    table = RotaryTable(random_family("qwen2"))
    with torch.inference_mode():
        table.cover(12, torch.device("meta"))
    assert table._table.is_meta
    assert not table._table.is_inference()


@torch.no_grad()
def test_number_formats_of_the_weights_leave_the_table_alone(
    random_family: Family, random_model: Build
) -> None:
    model = random_model(random_family("llama"))
    ids = torch.randint(0, model.config.vocab_size, (1, 12))
    model(ids)
    assert model.rope is not None
    table = model.rope._table.clone()
    assert model.bfloat16()(ids).dtype == torch.bfloat16
    assert torch.equal(model.rope._table, table)
    assert model.double()(ids).dtype == torch.float64
    assert model.rope._table.dtype == torch.float32
