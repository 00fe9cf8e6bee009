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
from torch import nn

from chatbench.model.config import ModelConfig
from chatbench.model.quantize import QuantizedLinear
from chatbench.model.transformer import GPT
from chatbench.train.objective import GlobalBatch

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


def computed_share(model: GPT) -> float:
    """Of the operations of products that `flops_per_token` counts, those that are computed: weights
    that do not learn need no gradient, and what lies below the first that learns no backward
    pass. An adapter's own small products are not counted."""
    computed = whole = 0.0
    passed = any(p.requires_grad for p in model.model.embed_tokens.parameters())
    for part in (*model.model.layers, model.head):
        passed |= any(p.requires_grad for p in part.parameters())
        for module in part.modules():
            if isinstance(module, nn.Linear | QuantizedLinear):
                learns = any(p.requires_grad for p in module.parameters())
                size = module.in_features * module.out_features
                whole += 6.0 * size
                computed += (2.0 + 2.0 * passed + 2.0 * learns) * size
    return computed / whole


def step_flops(config: ModelConfig, batch: GlobalBatch, share: float = 1.0) -> float:
    """Operations of the micro-batches that this process computes, as `flops_per_token` counts them:
    the head for the rows that count alone, attention within documents alone, and of all products
    a `share`."""
    head = 6.0 * config.hidden_size * config.vocab_size
    body = flops_per_token(config, 0) - head
    score = 12.0 * config.n_layers * config.n_heads * config.head_dim
    total = 0.0
    for part in (part.counted() for part in batch.parts):
        assert part.places is not None
        rows, columns = part.ids.shape
        pairs = rows * columns * columns
        if part.packing is not None:
            inside = part.packing.document >= 0
            # Position p sees p + 1 tokens; with the masked half that is 2p + 1.
            pairs = int((2 * part.packing.position + 1)[inside].sum())
        products = body * part.ids.numel() + head * part.places.numel()
        total += share * products + score * pairs
    return total


class Meter:
    """The work of this process on its device, against what the device can do."""

    def __init__(self, model: GPT) -> None:
        """Measures the peak for the device and the number format of the model's weights."""
        weight = model.model.embed_tokens.weight
        self._config = model.config
        self._share = computed_share(model)
        self._device = weight.device
        self._peak = peak_flops(weight.dtype, weight.device)
        self._work = self._seconds = 0.0

    def count(self, batch: GlobalBatch, seconds: float) -> None:
        """A step over `batch` took so long."""
        self._work += step_flops(self._config, batch, self._share)
        self._seconds += seconds

    def readings(self) -> dict[str, float]:
        """Since the last time: `mfu`, the share of the measured peak, and `memory` in bytes."""
        found = {"memory": float(peak_memory(self._device))}
        if self._seconds:
            rate = self._work / self._seconds
            # What other processes took while the peak was measured shows now.
            self._peak = max(self._peak, rate)
            found["mfu"] = rate / self._peak
        self._work = self._seconds = 0.0
        return found


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
