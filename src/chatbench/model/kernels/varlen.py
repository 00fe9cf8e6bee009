"""FlashAttention over rows laid end to end: documents and windows on CUDA without a mask.

Two doors to it: torch.nn.attention.varlen (FlashAttention-2 inside PyTorch), and the package
flash_attn_interface (FlashAttention-3, Hopper).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from chatbench.model.kernels.task import Task

# Filled by `prepare_varlen` before the first call, so that no tracing meets inspect.
_varlen: dict[str, Any] = {}


def prepare_varlen() -> str:
    """Look once at what this PyTorch offers; "" or why it cannot be used."""
    if "call" in _varlen:
        return ""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return "this PyTorch has no torch.nn.attention.varlen"
    known = inspect.signature(varlen_attn).parameters
    if not {"window_size", "scale"} <= set(known):
        return "its varlen_attn knows no window_size yet"
    # Older ones take grouped heads without being told.
    _varlen["grouped"] = {"enable_gqa": True} if "enable_gqa" in known else {}
    _varlen["call"] = varlen_attn
    return ""


def varlen_attention(task: Task) -> Tensor:
    """Packed or windowed rows without a cache, bfloat16 or float16, on CUDA."""
    q, k, v = (x.flatten(0, 1) for x in (task.q, task.k, task.v))
    starts, tokens = _starts(task), task.q.shape[1]
    grouped = _varlen["grouped"] if q.shape[1] != k.shape[1] else {}
    out: Tensor = _varlen["call"](
        q, k, v, starts, starts, tokens, tokens,
        scale=task.scale, window_size=_window(task), **grouped,
    )  # fmt: skip
    return out.view(task.q.shape)


def flash3_attention(task: Task) -> Tensor:
    """Causal, packed or windowed rows without a cache, on Hopper GPUs."""
    from flash_attn_interface import flash_attn_func, flash_attn_varlen_func

    options = {"softmax_scale": task.scale, "causal": True, "window_size": _window(task, (-1, -1))}
    if task.packing is None:
        out = flash_attn_func(task.q, task.k, task.v, **options)
    else:
        q, k, v = (x.flatten(0, 1) for x in (task.q, task.k, task.v))
        starts, tokens = _starts(task), task.q.shape[1]
        out = flash_attn_varlen_func(q, k, v, starts, starts, tokens, tokens, **options)
    # Early versions return (output, log-sum-exp).
    output: Tensor = out[0] if isinstance(out, tuple) else out
    return output.view(task.q.shape)


def _starts(task: Task) -> Tensor:
    """Where documents begin, (N + 1,) int32: the packing's, or one document in each row."""
    if task.packing is not None:
        return task.packing.starts()
    rows, tokens = task.q.shape[:2]
    return torch.arange(rows + 1, device=task.q.device, dtype=torch.int32) * tokens


def _window(task: Task, whole: tuple[int, int] = (-1, 0)) -> tuple[int, int]:
    """Tokens seen to the left and to the right of each token, as these kernels count."""
    return whole if task.window is None else (task.window - 1, 0)
