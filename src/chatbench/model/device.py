"""Which device, and which number format it computes fast."""

from __future__ import annotations

import time
from typing import Literal

import torch

from chatbench.errors import EnvironmentFault, UsageError


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then Apple's GPU, then the CPU. Raises UsageError, EnvironmentFault."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"{name} is not a device", hint="use auto, cpu, cuda or mps") from None
    count = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if (device.index or 0) >= count.get(device.type, 0):
        raise EnvironmentFault(f"device {name} is not available here", hint="use --device cpu")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where CUDA has it, and on a CPU where a small product measures clearly
    faster than in float32."""
    if name == "auto":
        name = "bfloat16" if _bfloat16_is_fast(device) else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _bfloat16_is_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # CPUs with AMX or AVX512-BF16 gain 3x and more, others lose as much, so a rough look decides.
    return _product_seconds(torch.bfloat16) * 1.5 < _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype) -> float:
    a, b = torch.ones(512, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - begin)
    return sorted(times)[2]


def dtype_name(dtype: torch.dtype) -> Literal["float32", "bfloat16"]:
    return "bfloat16" if dtype == torch.bfloat16 else "float32"
