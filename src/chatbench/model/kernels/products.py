"""Attention as plain batched products, for CPUs: probabilities are kept for the backward pass.

Queries go in blocks, and a block multiplies only the keys that it can see, so that half of the
square is never computed. All query heads that share a key-value head are rows of one product.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from chatbench.model.kernels import passes
from chatbench.model.kernels.task import Task, causal_mask


class _Plan(NamedTuple):
    """Blocks of queries and how the heads lie."""

    rows: int
    tokens: int
    kv_heads: int
    group: int
    width: int
    scale: float
    window: int | None
    block: int

    @property
    def back(self) -> int:
        """How far before its own block a query sees some keys and not others."""
        return 0 if self.window is None else self.window - 1

    def tiles(self) -> list[tuple[int, int, int]]:
        """(first query, end of queries and keys, first key) of each block."""
        begins = range(0, self.tokens, self.block)
        back = self.tokens if self.window is None else self.back
        return [(b, min(b + self.block, self.tokens), max(0, b - back)) for b in begins]

    def fold(self, x: Tensor) -> Tensor:
        """(B, T, heads, D) → (B·K, T·heads/K, D), contiguous."""
        x = x.reshape(self.rows, self.tokens, self.kv_heads, -1).transpose(1, 2)
        return x.reshape(self.rows * self.kv_heads, -1, self.width)

    def unfold(self, x: Tensor) -> Tensor:
        """Undo `fold`."""
        x = x.view(self.rows, self.kv_heads, self.tokens, -1).transpose(1, 2)
        return x.reshape(self.rows, self.tokens, -1, self.width)


def products_attention(task: Task, block: int | None = None) -> Tensor:
    """Causal attention without cache and documents; gradients for q, k and v.

    `block` queries are computed at a time, by default as many as are fast.
    """
    q, k, v = task.q, task.k, task.v
    rows, tokens, heads, width = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    # Smaller blocks waste less of the square; 64 rows of a product are enough to be fast.
    block = block or (32 if group > 1 or tokens <= 256 else 64)
    plan = _Plan(rows, tokens, kv_heads, group, width, task.scale, task.window, block)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        out: Tensor = _Products.apply(q, k, v, plan)  # type: ignore[no-untyped-call]
        return out
    return plan.unfold(_forward(plan.fold(q), plan.fold(k), plan.fold(v), plan)[0])


def _forward(
    q: Tensor, k: Tensor, v: Tensor, plan: _Plan, keep: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Output and, when kept, the probabilities of each block; all folded."""
    exact = torch.promote_types(q.dtype, torch.float32)
    out = torch.empty_like(q)
    kept = []
    # The extension hides nothing behind a window.
    compiled = keep and plan.window is None and q.dtype == torch.float32 and passes.softens(q)
    edge = _edge(plan, q.device)
    for begin, end, first in plan.tiles():
        queries = slice(begin * plan.group, end * plan.group)
        # alpha takes the scale into the product; beta 0 leaves the first argument unread.
        scores = torch.baddbmm(
            q.new_empty(()), q[:, queries], k[:, first:end].transpose(1, 2),
            beta=0, alpha=plan.scale,
        )  # fmt: skip
        if compiled:
            passes.attend_(scores, end - begin, plan.group, begin - first)
            torch.bmm(scores, v[:, first:end], out=out[:, queries])
            kept.append(scores)
            continue
        by_head = scores.view(-1, end - begin, plan.group, end - first)
        partly = min(begin - first, plan.back)
        hidden = edge[: end - begin, plan.back - partly : plan.back + end - begin]
        by_head[..., begin - partly - first :].masked_fill_(hidden[:, None], -torch.inf)
        chances = torch.softmax(scores, -1, dtype=exact).to(q.dtype)
        torch.bmm(chances, v[:, first:end], out=out[:, queries])
        if keep:
            kept.append(chances)
    return out, kept


def _edge(plan: _Plan, device: torch.device) -> Tensor:
    """(block, back + block) bool: keys from `back` before a block on that its queries miss."""
    keys = torch.arange(-plan.back, plan.block, device=device)
    queries = torch.arange(plan.block, device=device)[:, None]
    hidden = keys > queries
    return hidden if plan.window is None else hidden | (keys <= queries - plan.window)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: _Plan) -> Tensor:
        q, k, v = plan.fold(q), plan.fold(k), plan.fold(v)
        out, chances = _forward(q, k, v, plan, keep=True)
        ctx.save_for_backward(q, k, v, *chances)
        ctx.plan = plan
        return plan.unfold(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        plan: _Plan = ctx.plan
        q, k, v, *kept = ctx.saved_tensors
        g = plan.fold(upstream)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for chances, (begin, end, first) in zip(kept, plan.tiles(), strict=True):
            queries = slice(begin * plan.group, end * plan.group)
            dv[:, first:end].baddbmm_(chances.transpose(1, 2), g[:, queries])
            dchances = torch.bmm(g[:, queries], v[:, first:end].transpose(1, 2))
            dscores = torch._softmax_backward_data(dchances, chances, -1, chances.dtype)
            torch.bmm(dscores, k[:, first:end], out=dq[:, queries])
            dk[:, first:end].baddbmm_(dscores.transpose(1, 2), q[:, queries])
        return plan.unfold(dq * plan.scale), plan.unfold(dk * plan.scale), plan.unfold(dv), None


def products_decode(task: Task) -> Tensor:
    """A few new tokens of one row after a cache: each key and value is read once for a group."""
    q, k, v = task.q, task.k[0], task.v[0]
    _, new, heads, width = q.shape
    kv_heads, group = k.shape[1], heads // k.shape[1]
    folded = q[0].view(new, kv_heads, group * width).transpose(0, 1)
    folded = folded.reshape(kv_heads, new * group, width)
    scores = torch.baddbmm(
        q.new_empty(()), folded, k.permute(1, 2, 0), beta=0, alpha=task.scale
    )  # fmt: skip
    if new > 1 or task.window is not None:
        seen = causal_mask(new, k.shape[0], task.window, q.device)
        scores.view(kv_heads, new, group, -1).masked_fill_(~seen[:, None], -torch.inf)
    exact = torch.promote_types(q.dtype, torch.float32)
    out = torch.bmm(torch.softmax(scores, -1, dtype=exact).to(q.dtype), v.transpose(0, 1))
    return out.view(kv_heads, new, group * width).transpose(0, 1).reshape(q.shape)
