"""attention against one boolean mask and a plain softmax in float64."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from chatbench.model.attention import LayerCache, Packing, attention, rotate

HEADS = 4
TOKENS = (1, 7, 128, 257)
GROUPS = (1, 2, 4)
WIDTHS = (16, 80)
GRID = list(product(TOKENS, GROUPS, WIDTHS))


@pytest.fixture
def noise(rng: random.Random) -> Any:
    generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
    return lambda *shape: torch.randn(shape, generator=generator)


def reference(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """softmax(q·kᵀ/√D)·v where visible (B, T, S); in the number format of the inputs."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(q.shape[-1])
    chances = scores.masked_fill(~visible[:, None], -math.inf).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", chances, v)


def causal(tokens: int) -> Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool).tril()[None]


def cut(rng: random.Random, tokens: int) -> list[int]:
    """Lengths of documents that fill a row, the first and, where it fits, the last of length 1."""
    lengths = [1]
    while sum(lengths) < tokens:
        lengths.append(min(rng.choice((1, 2, 5, 60)), tokens - sum(lengths)))
    return lengths


def pack(rows: list[list[int]]) -> Packing:
    document = [[n for n, length in enumerate(row) for _ in range(length)] for row in rows]
    position = [[at for length in row for at in range(length)] for row in rows]
    return Packing(torch.tensor(document), torch.tensor(position))


def same_document(rows: list[list[int]]) -> Tensor:
    """Block-diagonal causal mask, built block by block."""
    masks = [
        torch.block_diag(*(torch.ones(length, length).tril() for length in row)) for row in rows
    ]
    return torch.stack(masks).bool()


def with_gradients(call: Any, q: Tensor, k: Tensor, v: Tensor, upstream: Tensor) -> list[Tensor]:
    """The output and the gradients of q, k and v, all in float64."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = call(*leaves)
    gradients = torch.autograd.grad(out, leaves, upstream.to(out.dtype))
    return [x.detach().double().cpu() for x in (out, *gradients)]


def inputs(noise: Any, tokens: int, group: int, width: int) -> list[Tensor]:
    """q, k, v and an upstream gradient of two rows."""
    kv = HEADS // group
    return [noise(2, tokens, heads, width) for heads in (HEADS, kv, kv, HEADS)]


def masks(rng: random.Random, tokens: int) -> Iterator[tuple[Packing | None, Tensor]]:
    """One document a row, and several."""
    yield None, causal(tokens)
    rows = [cut(rng, tokens), cut(rng, tokens)[::-1]]
    yield pack(rows), same_document(rows)


@pytest.mark.parametrize(("tokens", "group", "width"), GRID)
def test_forward_and_gradients_equal_the_reference(
    rng: random.Random, noise: Any, tokens: int, group: int, width: int
) -> None:
    q, k, v, upstream = inputs(noise, tokens, group, width)
    for packing, visible in masks(rng, tokens):
        ours = with_gradients(lambda *x, p=packing: attention(*x, packing=p), q, k, v, upstream)
        exact = with_gradients(
            lambda *x, m=visible: reference(*x, m), q.double(), k.double(), v.double(), upstream
        )
        for found, wanted in zip(ours, exact, strict=True):
            torch.testing.assert_close(found, wanted, atol=3e-5, rtol=1e-4)


def filled_cache(noise: Any, lengths: list[int], capacity: int, kv: int, width: int) -> LayerCache:
    """Rows of these lengths; what lies beyond them would be noticed if it were seen."""
    keys, values = noise(2, len(lengths), capacity, kv, width)
    for row, length in enumerate(lengths):
        keys[row, length:] = 40.0
        values[row, length:] = 1e4
    return LayerCache(keys, values, torch.tensor(lengths), max(lengths))


@pytest.mark.parametrize(("group", "width"), list(product(GROUPS, WIDTHS)))
@pytest.mark.parametrize("tokens", [1, 2, 7, 33])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_cache_of_ragged_rows_equals_the_reference_row_by_row(
    rng: random.Random, noise: Any, rows: int, tokens: int, group: int, width: int
) -> None:
    lengths = [rng.randrange(1, 60), 0, 1, rng.randrange(60)][:rows]
    kv = HEADS // group
    cache = filled_cache(noise, lengths, 100, kv, width)
    q, k, v = (noise(rows, tokens, heads, width) for heads in (HEADS, kv, kv))
    held = [(cache.keys[r, :n].clone(), cache.values[r, :n].clone()) for r, n in enumerate(lengths)]
    ours = attention(q, k, v, cache=cache)
    for row, (old_k, old_v) in enumerate(held):
        keys, values = torch.cat((old_k, k[row])), torch.cat((old_v, v[row]))
        visible = causal(len(keys))[:, -tokens:]
        exact = reference(
            q[row, None].double(), keys[None].double(), values[None].double(), visible
        )
        torch.testing.assert_close(ours[row, None].double(), exact, atol=3e-5, rtol=1e-4)


def test_appending_writes_the_new_tokens_behind_each_row_and_nothing_before(noise: Any) -> None:
    lengths = [3, 0, 7]
    cache = filled_cache(noise, lengths, 12, 2, 16)
    before = cache.keys.clone()
    k = noise(3, 4, 2, 16)
    attention(noise(3, 4, HEADS, 16), k, noise(3, 4, 2, 16), cache=cache)
    for row, length in enumerate(lengths):
        assert torch.equal(cache.keys[row, :length], before[row, :length])
        assert torch.equal(cache.keys[row, length : length + 4], k[row])
        assert torch.equal(cache.keys[row, length + 4 :], before[row, length + 4 :])


@pytest.mark.parametrize("tokens", TOKENS)
def test_chunked_appends_equal_one_pass(rng: random.Random, noise: Any, tokens: int) -> None:
    q, k, v = (noise(1, tokens, heads, 16).double() for heads in (HEADS, 2, 2))
    store = torch.zeros(2, 1, tokens, 2, 16, dtype=torch.float64)
    chunks, at = [], 0
    while at < tokens:
        end = min(tokens, at + rng.choice((1, 1, 2, 9, 50)))
        cache = LayerCache(store[0], store[1], torch.tensor([at]), at)
        chunks.append(attention(q[:, at:end], k[:, at:end], v[:, at:end], cache=cache))
        at = end
    torch.testing.assert_close(torch.cat(chunks, dim=1), attention(q, k, v))


def test_a_document_is_untouched_by_what_stands_before_it(rng: random.Random, noise: Any) -> None:
    first, second = rng.randrange(1, 40), rng.randrange(1, 40)
    packing = pack([[first, second]])
    q, k, v = (noise(1, first + second, heads, 16) for heads in (HEADS, 2, 2))
    before = attention(q, k, v, packing=packing)
    for x in (q, k, v):
        x[:, :first] = noise(*x[:, :first].shape)
    after = attention(q, k, v, packing=packing)
    assert torch.equal(before[:, first:], after[:, first:])
    assert not torch.equal(before[:, :first], after[:, :first])


def test_no_token_sees_a_later_one(rng: random.Random, noise: Any) -> None:
    at = rng.randrange(1, 30)
    q, k, v = (noise(1, 31, heads, 16) for heads in (HEADS, 2, 2))
    before = attention(q, k, v)
    k[:, at:], v[:, at:] = 9.0, -9.0
    assert torch.equal(before[:, :at], attention(q, k, v)[:, :at])


def test_rotation_turns_each_pair_by_its_angle(rng: random.Random, noise: Any) -> None:
    """Pairs are (i, i + D/2) and turn as complex numbers do."""
    width = 10
    x, angles = noise(1, 40, 3, width).double(), noise(40, width // 2).double()
    both = torch.cat((angles, angles), dim=-1)[None, :, None]
    turned = rotate(x, both.cos(), both.sin())
    for i in range(width // 2):
        pair = torch.complex(x[..., i], x[..., i + width // 2])
        wanted = pair * torch.polar(torch.ones(40).double(), angles[:, i])[None, :, None]
        torch.testing.assert_close(turned[..., i], wanted.real)
        torch.testing.assert_close(turned[..., i + width // 2], wanted.imag)
