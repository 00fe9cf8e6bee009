"""The reference against three nested loops."""

from __future__ import annotations

import random

import pytest
import torch
from model.kernels.cases import cut, filled_cache, loop_attention, noise_from, pack

from chatbench.model.attention import AttentionSpec, reference_attention
from chatbench.model.kernels.reference import masked_softmax


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("packed", [False, True])
def test_without_a_cache(rng: random.Random, window: int | None, packed: bool) -> None:
    noise, scale = noise_from(rng), rng.uniform(0.2, 2)
    rows = [cut(rng, 9, (1, 2, 5)), cut(rng, 9, (3, 4))[::-1]]
    packing = pack(rows) if packed else None
    q, k, v = (noise(2, 9, heads, 4) for heads in (4, 2, 2))
    number = [[n for n, length in enumerate(row) for _ in range(length)] for row in rows]

    def seen(b: int, t: int, s: int) -> bool:
        together = not packed or number[b][t] == number[b][s]
        return together and s <= t and (window is None or t - s < window)

    found = reference_attention(q, k, v, AttentionSpec(window, scale), packing)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, loop_attention(q, k, v, scale, seen), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("window", [None, 1, 4])
def test_with_a_cache_which_it_leaves_alone(rng: random.Random, window: int | None) -> None:
    noise, lengths = noise_from(rng), [5, 0, 9]
    cache = filled_cache(noise, lengths, 12, 2, 4)
    before = cache.keys.clone()
    q, k, v = (noise(3, 3, heads, 4) for heads in (4, 2, 2))
    keys, values = cache.keys.clone(), cache.values.clone()
    for row, length in enumerate(lengths):
        keys[row, length : length + 3], values[row, length : length + 3] = k[row], v[row]

    def seen(b: int, t: int, s: int) -> bool:
        at = lengths[b] + t
        return s <= at and (window is None or at - s < window)

    found = reference_attention(q, k, v, AttentionSpec(window), cache=cache)
    wanted = loop_attention(q, keys, values, 0.5, seen)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    assert torch.equal(cache.keys, before)


def test_a_token_that_sees_nothing_gives_zeros_and_zero_gradients(rng: random.Random) -> None:
    scores = noise_from(rng)(3, 5).double().requires_grad_()
    seen = torch.tensor([[True, False, True, True, False], [False] * 5, [True] * 5])
    chances = masked_softmax(scores, seen)
    assert torch.equal(chances[1], torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(chances[0, seen[0]], scores[0, seen[0]].softmax(0))
    (gradient,) = torch.autograd.grad(chances.square().sum(), scores)
    assert torch.equal(gradient[1], torch.zeros(5, dtype=torch.float64))
    assert gradient[2].abs().sum() > 0
