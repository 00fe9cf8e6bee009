"""attention(q, k, v, ...): the only place that knows about fused kernels, masks and caches.

Legend: B rows, T new tokens, S tokens in reach, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Packing(NamedTuple):
    """Several documents in one row that cannot see each other.

    `document` (B, T): equal numbers belong together. `position` (B, T): place in the document.
    """

    document: Tensor
    position: Tensor


class LayerCache(NamedTuple):
    """One layer's keys and values of B rows, (B, S, K, D), written in place.

    `lengths` (B,): tokens each row already holds. `longest`: the largest of them, on the host.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    longest: int


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing | None = None,
    cache: LayerCache | None = None,
) -> Tensor:
    """Causal softmax(q·kᵀ/√D)·v; q (B, T, H, D), k and v (B, T, K, D) → (B, T, H, D).

    With a cache, k and v are appended to it and q attends to all that is there (rows may differ in
    length). Fused by PyTorch's scaled_dot_product_attention on every device.
    """
    if cache is not None:
        k, v, mask = _append(k, v, cache)
    elif packing is not None:
        mask = _document_mask(packing)
    else:
        mask = None
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None and q.shape[1] > 1,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def _append(k: Tensor, v: Tensor, cache: LayerCache) -> tuple[Tensor, Tensor, Tensor | None]:
    rows, new = k.shape[:2]
    reach = cache.longest + new
    offsets = torch.arange(new, device=k.device)
    at = cache.lengths[:, None] + offsets  # (B, T)
    row = torch.arange(rows, device=k.device)[:, None]
    cache.keys[row, at] = k.to(cache.keys.dtype)
    cache.values[row, at] = v.to(cache.values.dtype)
    keys, values = cache.keys[:, :reach], cache.values[:, :reach]
    if cache.longest == 0 or (new == 1 and rows == 1):
        return keys, values, None  # plain causal, or everything is in reach
    mask = torch.arange(reach, device=k.device) <= at[:, :, None]
    return keys, values, mask[:, None]


def _document_mask(packing: Packing) -> Tensor:
    document = packing.document
    same = document[:, :, None] == document[:, None, :]
    return torch.tril(same)[:, None]


def rotary_table(
    positions: int, width: int, theta: float, device: torch.device | None = None
) -> Tensor:
    """cos and sin of every position (Su et al. 2021, half-split as in Llama): (2, positions, D)."""
    frequency = theta ** -(torch.arange(0, width, 2, device=device, dtype=torch.float64) / width)
    angle = torch.arange(positions, device=device, dtype=torch.float64)[:, None] * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return torch.stack((angle.cos(), angle.sin())).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to x (B, T, H, D); cos and sin (B or 1, T, 1, D)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
