"""Attention in which a token sees the whole of its document, as a classifier reads texts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from chatbench.model.kernels.documents import by_document
from chatbench.model.kernels.task import Task


def both_ways(task: Task) -> Tensor:
    """A task without window and cache."""
    packing = task.packing
    if packing is None:
        return _sdpa(task)
    if task.q.device.type == "cpu" and not torch.compiler.is_compiling():
        return by_document(task, _sdpa, like=1.0)
    return _sdpa(task, packing.together())


def _sdpa(task: Task, mask: Tensor | None = None) -> Tensor:
    group = task.q.shape[2] // task.k.shape[2]
    k, v = (x if group == 1 else x.repeat_interleave(group, dim=2) for x in (task.k, task.v))
    q, k, v = (x.transpose(1, 2) for x in (task.q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=task.scale)
    return out.transpose(1, 2)
