"""Random calls of attention, and the definition of what they should give, written out once more."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from chatbench.model.attention import LayerCache, Packing


def noise_from(rng: random.Random) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
    return lambda *shape: torch.randn(shape, generator=generator)


def loop_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, seen: Callable[..., bool]) -> Any:
    """Token by token, head by head, key by key; `seen(row, query, key)`."""
    rows, tokens, heads, width = q.shape
    out = torch.zeros(rows, tokens, heads, width, dtype=torch.float64)
    for b in range(rows):
        for t in range(tokens):
            keys = [s for s in range(k.shape[1]) if seen(b, t, s)]
            for h in range(heads if keys else 0):
                kv = h * k.shape[2] // heads
                scores = torch.stack([(q[b, t, h] * k[b, s, kv]).sum() for s in keys]).double()
                chances = (scores * scale).softmax(0)
                out[b, t, h] = sum(c * v[b, s, kv] for c, s in zip(chances, keys, strict=True))
    return out


def cut(rng: random.Random, tokens: int, sizes: Sequence[int] = (1, 2, 5, 60)) -> list[int]:
    """Lengths of documents that fill a row; the first has one token."""
    lengths = [1]
    while sum(lengths) < tokens:
        lengths.append(min(rng.choice(sizes), tokens - sum(lengths)))
    return lengths


def pack(rows: list[list[int]]) -> Packing:
    document = [[n for n, length in enumerate(row) for _ in range(length)] for row in rows]
    position = [[at for length in row for at in range(length)] for row in rows]
    return Packing(torch.tensor(document), torch.tensor(position))


def filled_cache(
    noise: Callable[..., Tensor], lengths: list[int], capacity: int, kv: int, width: int
) -> LayerCache:
    """Rows of these lengths; what lies beyond them would be noticed if it were seen."""
    keys, values = noise(2, len(lengths), capacity, kv, width)
    for row, length in enumerate(lengths):
        keys[row, length:] = 40.0
        values[row, length:] = 1e4
    return LayerCache(keys, values, torch.tensor(lengths), max(lengths))


def with_gradients(
    call: Callable[..., Tensor], leaves: Sequence[Tensor], upstream: Tensor
) -> list[Tensor]:
    """The output and the gradients of q, k and v, in float64 on the CPU."""
    own = [x.detach().clone().requires_grad_() for x in leaves]
    out = call(*own)
    gradients = torch.autograd.grad(out, own, upstream.to(out.dtype))
    return [x.detach().double().cpu() for x in (out, *gradients)]


def assert_close_to(found: Tensor, exact: Tensor) -> None:
    """Equal up to what float32 loses in sums of numbers as large as the largest here."""
    largest = max(1.0, float(exact.abs().max())) if exact.numel() else 1.0
    torch.testing.assert_close(found, exact, atol=3e-5 * largest, rtol=1e-4)
