"""Decode attention: few new tokens against a long cache of rows that differ in length.

One new token gives a GPU too little to do when each head of each row is one piece of work. So the
places of the cache are cut into splits (Dao et al. 2023, "Flash-Decoding"): every split gives a
softmax average and its log-sum-exp, and a second kernel averages the averages. All query heads of
one key-value head, and all new tokens, are lines of one small matrix, so each key is read once.
The grid depends on shapes alone and lengths stay on the device, so a CUDA graph can hold it.
Legend: B rows, T new tokens, S places of the cache, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOST_TOKENS = 16
_BLOCK = 64
_SMALLEST_SPLIT = 128
_MOST_SPLITS = 64
# Lines of queries whose sums fit a GPU's shared memory, at two bytes a number.
_MOST_LINES = 128
# Programs that fill a large GPU about four times over; more splits only cost merging.
_PROGRAMS = 512


def split_length(rows: int, kv_heads: int, places: int) -> int:
    """Places of a split, a multiple of 64; a function of shapes alone."""
    wanted = max(1, min(_MOST_SPLITS, _PROGRAMS // max(1, rows * kv_heads)))
    length = -(-places // wanted)
    return max(_SMALLEST_SPLIT, -(-length // _BLOCK) * _BLOCK)


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    split: int | None = None,
) -> Tensor:
    """Attention of T new tokens to a cache that holds them already, by Triton.

    q (B, T, H, D) with T ≤ 16; keys, values (B, S, K, D), any strides but 1 over D; lengths (B,)
    int32 or int64 on the device: tokens of each row, the new ones included. New token t of row b
    sees the places below lengths[b] - T + t + 1, with `window` the last `window` of them; one that
    sees nothing gives zeros. Returns (B, T, H, D) in q's number format, summed in float32.
    `split`: places a program reads, by default by shape. Raises ImportError without Triton.
    """
    from chatbench.model.kernels.triton_programs import attend_split, merge_splits

    rows, tokens, heads, width = q.shape
    places, kv_heads = keys.shape[1:3]
    assert tokens <= MOST_TOKENS
    assert values.stride(3) == keys.stride(3) == q.stride(3) == 1
    group = heads // kv_heads
    most = max(1, _most_lines(q) // group)
    if tokens > most:
        ends = [min(at + most, tokens) for at in range(0, tokens, most)]
        return torch.cat(
            [
                decode_attention(
                    part, keys, values, lengths - (tokens - end),
                    scale=scale, window=window, split=split,
                )
                for part, end in zip(torch.split(q, most, dim=1), ends, strict=True)
            ],
            dim=1,
        )  # fmt: skip
    split = split or split_length(rows, kv_heads, places)
    splits = -(-places // split)
    block_m = max(16, _power_of_two(tokens * group))
    block_d = max(16, _power_of_two(width))
    part = q.new_empty((rows * kv_heads, splits, block_m, width), dtype=torch.float32)
    lse = q.new_empty((rows * kv_heads, splits, block_m), dtype=torch.float32)
    out = torch.empty((rows, tokens, heads, width), dtype=q.dtype, device=q.device)
    factor = (width**-0.5 if scale is None else scale) * math.log2(math.e)
    shape = {"HEADS": kv_heads, "TOKENS": tokens, "GROUP": group, "WIDTH": width,
             "SPLITS": splits, "SPLIT": split, "BLOCK_M": block_m, "BLOCK_D": block_d}  # fmt: skip
    attend_split[(rows * kv_heads, splits)](
        q, keys, values, lengths, part, lse,
        *q.stride()[:3], *keys.stride()[:3], *values.stride()[:3], places, factor,
        **shape, WINDOW=window or 0, BLOCK_N=_BLOCK if block_d <= 128 else _BLOCK // 2,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32", num_warps=4, num_stages=2,
    )  # fmt: skip
    merge_splits[(rows * kv_heads, tokens * group)](
        part, lse, lengths, out, *out.stride()[:3], places,
        **shape, BLOCK_S=min(16, _power_of_two(splits)), num_warps=1,
    )  # fmt: skip
    return out


def decode_attention_torch(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    split: int | None = None,
) -> Tensor:
    """The same splits and the same merge in plain PyTorch, in float32 (float64 for float64)."""
    rows, tokens, heads, width = q.shape
    places, kv_heads = keys.shape[1:3]
    wide = torch.promote_types(q.dtype, torch.float32)
    split = split or split_length(rows, kv_heads, places)
    lengths = lengths.clamp(max=places)
    at = lengths[:, None] - tokens + torch.arange(tokens, device=q.device)  # (B, T)
    asked = q.to(wide).reshape(rows, tokens, kv_heads, heads // kv_heads, width)
    factor = width**-0.5 if scale is None else scale
    averages, levels = [], []
    for begin in range(0, places, split):
        place = torch.arange(begin, min(begin + split, places), device=q.device)
        seen = place <= at[:, :, None]
        if window is not None:
            seen &= place > at[:, :, None] - window
        key, value = (x[:, begin : begin + split].to(wide) for x in (keys, values))
        score = torch.einsum("btkgd,bskd->btkgs", asked, key) * factor
        score = score.masked_fill(~seen[:, :, None, None], -math.inf)
        levels.append(torch.logsumexp(score, -1))
        # A cache beyond its length holds anything at all, even what is no number.
        there = (place < lengths[:, None])[:, :, None, None]
        chance = (score - levels[-1].clamp(min=torch.finfo(wide).min)[..., None]).exp()
        averages.append(torch.einsum("btkgs,bskd->btkgd", chance, value.masked_fill(~there, 0.0)))
    level = torch.stack(levels, -1)  # (B, T, K, group, splits)
    peak = level.amax(-1, keepdim=True).clamp(min=torch.finfo(wide).min)
    share = (level - peak).exp()
    share = share / share.sum(-1, keepdim=True).clamp(min=torch.finfo(wide).tiny)
    merged = (torch.stack(averages, -1) * share[..., None, :]).sum(-1)
    return merged.flatten(2, 3).to(q.dtype)


def _most_lines(q: Tensor) -> int:
    """Lines of queries whose sums fit a GPU's shared memory of 99 KiB."""
    if q.dtype != torch.float32:
        return _MOST_LINES
    return _MOST_LINES // (4 if q.shape[3] <= 128 else 8)


def _power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
