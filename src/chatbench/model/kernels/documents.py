"""Packed documents one by one: documents of like length become the rows of a few small batches.

A document is padded at its end, where causal attention lets no real token see the padding. The
square of the row length becomes the squares of the documents' lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from chatbench.model.kernels.task import Packing, Task, lasting

# A batch holds documents of at least this share of its longest: less padding, or fewer batches.
_LIKE = 0.75


class Regrouping(NamedTuple):
    """`gather`: token (of B·T) in each place of the small batches; padding repeats a token.

    `scatter` (B·T,): place of each token. `padding`: places that are no token. `shapes`: number of
    documents and length of each batch, their places one after the other.
    """

    gather: Tensor
    scatter: Tensor
    padding: Tensor
    shapes: list[tuple[int, int]]


def by_document(task: Task, inner: Callable[[Task], Tensor], like: float = _LIKE) -> Tensor:
    """Attention of packed rows; `inner` computes plain causal attention of the small batches, or,
    where `like` is 1, any attention: documents are then together with those of their own length,
    and nothing is padded."""
    packing = task.packing
    assert packing is not None
    if all(len(row) == 1 for row in packing.lengths()):
        return inner(task._replace(packing=None))
    if like not in packing.regroupings:
        with lasting():
            packing.regroupings[like] = regroup(packing, like)
    plan: Regrouping = packing.regroupings[like]
    q, k, v = (_gathered(x, plan) for x in (task.q, task.k, task.v))
    outs, begin = [], 0
    for shape in plan.shapes:
        places = slice(begin, begin + shape[0] * shape[1])
        part = (x[places].view(*shape, *x.shape[1:]) for x in (q, k, v))
        alone = Task(next(part), next(part), next(part), task.window, task.scale)
        outs.append(inner(alone).flatten(0, 1))
        begin = places.stop
    out: Tensor = _Scatter.apply(torch.cat(outs), plan)  # type: ignore[no-untyped-call]
    return out.view(task.q.shape)


def _gathered(x: Tensor, plan: Regrouping) -> Tensor:
    """(B, T, ...) → the places of all small batches, one after the other."""
    out: Tensor = _Gather.apply(x.flatten(0, 1), plan)  # type: ignore[no-untyped-call]
    return out


def regroup(packing: Packing, like: float = _LIKE) -> Regrouping:
    """Plan the small batches of these documents, none shorter than `like` times its longest."""
    tokens = packing.document.shape[1]
    documents = []
    for row, lengths in enumerate(packing.lengths()):
        begin = row * tokens
        for length in lengths:
            documents.append((length, begin))
            begin += length
    gathers, shapes = [], []
    for group in _like(sorted(documents, reverse=True), like):
        longest = group[0][0]
        lengths, begins = torch.tensor(group).T[:, :, None]
        places = torch.minimum(torch.arange(longest), lengths - 1)
        gathers.append((begins + places).flatten())
        shapes.append((len(group), longest))
    gather = torch.cat(gathers)
    scatter = torch.empty(packing.document.numel(), dtype=torch.long)
    # Padding repeats the last token of its document, so a place like the one before it is padding.
    real = torch.ones_like(gather, dtype=torch.bool)
    real[1:] = gather[1:] != gather[:-1]
    scatter[gather[real]] = real.nonzero().squeeze(1)
    padding = (~real).nonzero().squeeze(1)
    device = packing.document.device
    return Regrouping(gather.to(device), scatter.to(device), padding.to(device), shapes)


def _like(documents: list[tuple[int, int]], like: float) -> Iterator[list[tuple[int, int]]]:
    """Cut a list of (length, begin), longest first, where documents become much shorter."""
    group: list[tuple[int, int]] = []
    for document in documents:
        if group and document[0] < like * group[0][0]:
            yield group
            group = []
        group.append(document)
    yield group


class _Gather(torch.autograd.Function):
    """x (B·T, ...) → the places of the small batches. Padding gets no gradient to return."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Regrouping) -> Tensor:
        ctx.plan = plan
        return x.index_select(0, plan.gather)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return upstream.index_select(0, ctx.plan.scatter), None


class _Scatter(torch.autograd.Function):
    """The places of the small batches → (B·T, ...)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Regrouping) -> Tensor:
        ctx.plan = plan
        return x.index_select(0, plan.scatter)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        plan: Regrouping = ctx.plan
        places = upstream.index_select(0, plan.gather)
        return places.index_fill_(0, plan.padding, 0), None
