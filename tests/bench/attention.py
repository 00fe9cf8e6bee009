"""Attention forward and backward on this CPU: batched products beside PyTorch's SDPA, and packed
documents one by one beside a mask. Decoding of one row and of ragged rows: each way beside SDPA.

python tests/bench/attention.py [float32|bfloat16] [PAIRS]
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import torch
from pairs import compare
from torch import Tensor

from chatbench.model.attention import Packing, Reach
from chatbench.model.kernels.documents import by_document
from chatbench.model.kernels.fused import row_by_row, sdpa_attention
from chatbench.model.kernels.kinds import NARROW_FROM
from chatbench.model.kernels.products import products_attention, products_decode
from chatbench.model.kernels.task import Task

TOKENS = 2048
HEADS = ((32, 8, 8), (64, 8, 8), (64, 8, 2), (128, 4, 4), (128, 8, 2))
Kernel = Callable[[Task], Tensor]


def drawn(rows: int, tokens: int, heads: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    width, queries, kv = heads
    return [
        torch.randn(rows, tokens, n, width).to(dtype).requires_grad_() for n in (queries, kv, kv)
    ]


def step(kernel: Kernel, task: Task) -> Callable[[], object]:
    upstream = torch.randn_like(task.q)
    leaves = [task.q, task.k, task.v]
    return lambda: torch.autograd.grad(kernel(task), leaves, upstream)


def show(label: str, ours: Callable[[], object], sdpa: Callable[[], object], pairs: int) -> None:
    a, b, ratio = compare(ours, sdpa, pairs)
    print(f"{label:<48} {1000 * a:9.2f} ms  SDPA {1000 * b:9.2f} ms  {ratio:5.2f}×", flush=True)


def inner(task: Task) -> Tensor:
    """What the choice takes for the small batches of documents."""
    long = task.q.shape[1] >= NARROW_FROM
    return products_attention(task) if long else sdpa_attention(task)


def packed(rows: int, tokens: int, mean: int) -> Packing:
    rng, lengths = random.Random(7), []
    for _ in range(rows):
        row = [min(tokens, max(1, int(rng.gauss(mean, mean / 3)))) for _ in range(tokens)]
        lengths.append([number for number, n in enumerate(row) for _ in range(n)][:tokens])
    document = torch.tensor(lengths)
    return Packing(document, torch.zeros_like(document))


def training(dtype: torch.dtype, pairs: int) -> None:
    print(f"forward and backward, {TOKENS} tokens, {str(dtype)[6:]}")
    for heads in HEADS:
        for tokens in (64, 128, 256, 512, 1024):
            q, k, v = drawn(TOKENS // tokens, tokens, heads, dtype)
            task = Task(q, k, v, None, heads[0] ** -0.5)
            label = f"products, T {tokens}, {heads[1]}/{heads[2]} heads of {heads[0]}"
            show(label, step(products_attention, task), step(sdpa_attention, task), pairs)
    for heads in HEADS[1:4:2]:
        for tokens in (256, 512, 1024):
            for mean in (30, 120, tokens // 2):
                q, k, v = drawn(TOKENS // tokens, tokens, heads, dtype)
                packing = packed(TOKENS // tokens, tokens, mean)
                task = Task(q, k, v, None, heads[0] ** -0.5, packing)
                label = f"documents of {mean}, T {tokens}, {heads[1]} heads of {heads[0]}"
                ours = step(lambda task: by_document(task, inner), task)
                show(label, ours, step(sdpa_attention, task), pairs)


@torch.inference_mode()
def decoding(dtype: torch.dtype, pairs: int) -> None:
    print(f"one new token, {str(dtype)[6:]}")
    generator = random.Random(3)
    for width, queries, kv in HEADS:
        for reach in (128, 512, 2048):
            lengths = [reach - 1, *(generator.randrange(reach) for _ in range(15))]
            q = torch.randn(16, 1, queries, width).to(dtype)
            k, v = (torch.randn(16, reach, kv, width).to(dtype) for _ in range(2))
            scale, heads = width**-0.5, f"{queries}/{kv} heads of {width}"
            held = Reach(torch.tensor(lengths), reach - 1, lengths)
            ragged = Task(q, k, v, None, scale, None, held)
            alone = Reach(held.lengths[:1], reach - 1)
            one = Task(q[:1], k[:1], v[:1], None, scale, None, alone)
            for label, ours, task in (
                (f"products, one row, reach {reach}, {heads}", products_decode, one),
                (f"16 rows each by itself, reach {reach}, {heads}", _rows, ragged),
            ):
                show(
                    label, lambda f=ours, t=task: f(t), lambda t=task: sdpa_attention(t), 4 * pairs
                )  # type: ignore[misc]


def _rows(task: Task) -> Tensor:
    return row_by_row(task, sdpa_attention)


def main() -> None:
    dtype = getattr(torch, sys.argv[1] if len(sys.argv) > 1 else "float32")
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    training(dtype, pairs)
    decoding(dtype, pairs)


if __name__ == "__main__":
    main()
