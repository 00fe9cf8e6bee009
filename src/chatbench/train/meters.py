"""What a step costs: operations, their share of the machine's peak, memory, where the time goes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch

from chatbench.model.config import ModelConfig
from chatbench.model.transformer import GPT

_PEAK_SECONDS = 0.25
_ROOM_FOR_PEAK = 1 << 30
_PEAK_SIZES = {"cuda": 8192, "mps": 2048, "cpu": 1024}


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Floating-point operations of one token forward and backward, as PaLM counts them.

    6 for each weight of a product, the output head included and the embedding not, and
    12 · layers · heads · head width · `seq_len` for attention, the masked half included
    (Chowdhery et al. 2022, appendix B). Norms and activations are not counted.
    """
    inner = config.n_heads * config.head_dim
    attention = config.hidden_size * (2 * inner + 2 * config.n_kv_heads * config.head_dim)
    feed_forward = (3 if config.gated else 2) * config.hidden_size * config.ffn_size
    head = config.hidden_size * config.vocab_size
    weights = config.n_layers * (attention + feed_forward) + head
    return 6.0 * weights + 12.0 * config.n_layers * inner * seq_len


def peak_flops(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the fastest of the large matrix products that fit into a quarter of a second.

    Measured once for each number format, device and number of threads.
    """
    return _peak_flops(dtype, device, torch.get_num_threads())


@lru_cache
def _peak_flops(dtype: torch.dtype, device: torch.device, threads: int) -> float:
    size = _PEAK_SIZES.get(device.type, 1024)
    if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < _ROOM_FOR_PEAK:
        size //= 4
    a = torch.ones(size, size, dtype=dtype, device=device)
    out = torch.empty_like(a)
    _seconds(device, lambda: torch.mm(a[:256], a, out=out[:256]))
    best = float("inf")
    until = time.perf_counter() + _PEAK_SECONDS
    while True:
        best = min(best, _seconds(device, lambda: torch.mm(a, a, out=out)))
        if time.perf_counter() > until:
            return 2.0 * size**3 / best


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    _wait(device)
    begin = time.perf_counter()
    with torch.no_grad():
        work()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> int:
    """Bytes: on CUDA the most that tensors held so far, elsewhere the process's largest
    resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss also knows what this process was before it was this program
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 1024 * int(fields["VmHWM"].split()[0])
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


class Meter:
    """A model on a device, as the clock sees it."""

    def __init__(self, model: GPT, seq_len: int, devices: int = 1) -> None:
        """Measures the peak for the device and the number format of the model's weights; `devices`
        such devices share the work."""
        weight = model.model.embed_tokens.weight
        self._device = weight.device
        peak = peak_flops(weight.dtype, weight.device)
        self._share = flops_per_token(model.config, seq_len) / (devices * peak)

    def readings(self, tokens_per_second: float) -> dict[str, float]:
        """`mfu`, the share of the measured peak (every token counted as if it reached the head,
        so where only replies do, this is more than the truth), and `memory` in bytes."""
        return {
            "mfu": tokens_per_second * self._share,
            "memory": float(peak_memory(self._device)),
        }


class Stopwatch:
    """Seconds by name, added up until taken."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - begin)

    def add(self, name: str, seconds: float) -> None:
        """So many more."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """`seconds_<name>` of each since the last time."""
        taken = {f"seconds_{name}": value for name, value in self._seconds.items()}
        self._seconds.clear()
        return taken
