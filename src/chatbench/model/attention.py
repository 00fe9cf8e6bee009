"""attention(q, k, v, ...): the only place that knows about kernels, masks and caches.

Legend: B rows, T new tokens, S tokens in reach, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chatbench.model.kernels.both_ways import both_ways
from chatbench.model.kernels.choice import Choice, compute, describe_choices
from chatbench.model.kernels.reference import reference_attention
from chatbench.model.kernels.task import AttentionSpec, LayerCache, Packing, Reach, Task

__all__ = [
    "AttentionSpec",
    "Choice",
    "LayerCache",
    "Packing",
    "Reach",
    "attention",
    "describe_choices",
    "reference_attention",
    "rotate",
]

_PLAIN = AttentionSpec()


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: AttentionSpec = _PLAIN,
    packing: Packing | None = None,
    cache: LayerCache | None = None,
) -> Tensor:
    """softmax(scale·q·kᵀ)·v over what is seen; q (B, T, H, D), k and v (B, T, K, D) → (B, T, H, D).

    A token sees itself and what comes before it, or, by `spec.causal`, what comes after it as well:
    in its document when there is a packing, and at most `spec.window` tokens. With a cache, k and v
    are appended to it and q attends to all that is there (rows may differ in length); a packing and
    a cache do not go together. Head h reads key-value head h·K/H. The kernel of causal attention is
    chosen once for each kind of call (`describe_choices`); CHATBENCH_ATTENTION names one to take
    wherever it can serve. Raises UsageError for an unknown name there.
    """
    scale = q.shape[-1] ** -0.5 if spec.scale is None else spec.scale
    if not spec.causal:
        assert cache is None
        assert spec.window is None
        return both_ways(Task(q, k, v, None, scale, packing))
    if cache is None:
        return compute(Task(q, k, v, spec.window, scale, packing))
    assert packing is None
    reach = cache.reach or Reach(cache.lengths, cache.longest)
    _append(k, v, cache, reach)
    seen = reach.longest + k.shape[1]
    keys, values = cache.keys.narrow(1, 0, seen), cache.values.narrow(1, 0, seen)
    whole = (cache.keys, cache.values)
    return compute(Task(q, keys, values, spec.window, scale, None, reach, whole))


def _append(k: Tensor, v: Tensor, cache: LayerCache, reach: Reach) -> None:
    rows, new = k.shape[:2]
    if reach.even:
        cache.keys.narrow(1, reach.longest, new).copy_(k)
        cache.values.narrow(1, reach.longest, new).copy_(v)
        return
    at = reach.at(new)
    row = torch.arange(rows, device=k.device)[:, None]
    cache.keys[row, at] = k.to(cache.keys.dtype)
    cache.values[row, at] = v.to(cache.values.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to x (B, T, H, D); cos and sin (B or 1, T, 1, D)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
