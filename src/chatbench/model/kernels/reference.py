"""The definition: one boolean mask, a softmax in float64. Every other kernel is held to it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from chatbench.model.kernels.task import AttentionSpec, LayerCache, Packing, Task


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec = AttentionSpec(),  # noqa: B008 (a NamedTuple cannot change)
    packing: Packing | None = None,
    cache: LayerCache | None = None,
) -> Tensor:
    """softmax(scale·q·kᵀ)·v over what each token sees, in float64; shapes as in `attention`.

    A cache is read and not written: the new k and v are put into a copy. Tokens that see nothing
    give zeros.
    """
    at = _at(q, None if cache is None else cache.lengths)
    if cache is not None:
        row = torch.arange(len(q), device=q.device)[:, None]
        k = cache.keys.index_put((row, at), k.to(cache.keys.dtype))
        v = cache.values.index_put((row, at), v.to(cache.values.dtype))
    if spec.causal:
        seen = visible(at, k.shape[1], spec.window, packing)
    else:
        document = torch.zeros_like(at) if packing is None else packing.document
        # Numbers may come again further on, as those of other documents.
        run = torch.diff(document, dim=1, prepend=document[:, :1]).ne(0).cumsum(1)
        seen = run[:, :, None] == run[:, None, :]
    return _attend(q, k, v, seen, q.shape[-1] ** -0.5 if spec.scale is None else spec.scale)


def reference_kernel(task: Task) -> Tensor:
    """The same for a Task, in the number format of its q."""
    lengths = None if task.reach is None else task.reach.lengths
    at = _at(task.q, lengths)
    seen = visible(at, task.k.shape[1], task.window, task.packing)
    return _attend(task.q, task.k, task.v, seen, task.scale).to(task.q.dtype)


def _at(q: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, T): the place of each new token."""
    tokens = torch.arange(q.shape[1], device=q.device).expand(q.shape[:2])
    return tokens if lengths is None else lengths[:, None] + tokens


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) * scale
    return torch.einsum("bhts,bshd->bthd", masked_softmax(scores, seen[:, None]), v)


def visible(at: Tensor, places: int, window: int | None, packing: Packing | None) -> Tensor:
    """(B, T, S) bool: which of S places the tokens at `at` (B, T) see."""
    place = torch.arange(places, device=at.device)
    first = torch.zeros_like(at)
    if packing is not None:
        document = packing.document
        opens = torch.ones_like(document, dtype=torch.bool)
        opens[:, 1:] = document[:, 1:] != document[:, :-1]
        first = torch.where(opens, at, 0).cummax(1).values
    if window is not None:
        first = torch.maximum(first, at - window + 1)
    return (place <= at[:, :, None]) & (place >= first[:, :, None])


def masked_softmax(scores: Tensor, seen: Tensor) -> Tensor:
    """Softmax over the last dimension where `seen`; zeros where nothing is."""
    scores = scores.masked_fill(~seen, -math.inf)
    peak = scores.amax(-1, keepdim=True).detach()
    weight = (scores - peak.clamp(min=torch.finfo(scores.dtype).min)).exp()
    total = weight.sum(-1, keepdim=True)
    return weight / total.masked_fill(total == 0, 1)
