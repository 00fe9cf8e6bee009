"""PyTorch's scaled_dot_product_attention: every device, every case, through masks where needed."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from chatbench.model.kernels.task import Task, causal_mask


def sdpa_attention(task: Task) -> Tensor:
    """Any task; masks are those that packing and cache keep for all layers."""
    q, k, v = task.q, task.k, task.v
    new, reach, mask = q.shape[1], k.shape[1], None
    if task.packing is not None:
        mask = task.packing.mask(task.window)
    elif task.reach is None or reach == new:
        if task.window is not None and task.window < new:
            mask = causal_mask(new, reach, task.window, q.device)
    elif new > 1 or not task.reach.even:
        mask = task.reach.mask(new, task.window)
    elif task.window is not None:
        # Even rows, one token each: what it does not see any more is not read at all.
        k, v = k[:, -task.window :], v[:, -task.window :]
    if q.is_cuda and q.shape[2] != k.shape[2] and (mask is not None or q.dtype == torch.float32):
        # The kernel that takes these on CUDA knows no grouped heads; the other one is far slower.
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None and new > 1,
        scale=task.scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2)


def row_by_row(task: Task, inner: Callable[[Task], Tensor]) -> Tensor:
    """Rows of a cache that differ in length, each over its own tokens only."""
    reach = task.reach
    assert reach is not None
    new, outs = task.q.shape[1], []
    for row, held in enumerate(reach.held):
        mine, seen = slice(row, row + 1), slice(0, held + new)
        alone = Task(
            task.q[mine], task.k[mine, seen], task.v[mine, seen], task.window, task.scale,
            reach=type(reach)(reach.lengths[mine], held),
        )  # fmt: skip
        outs.append(inner(alone))
    return torch.cat(outs)
