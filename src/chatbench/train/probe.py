"""This machine, measured: real training steps of a few shapes, before anything is planned."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from statistics import median
from typing import NamedTuple

import torch

from chatbench.model.head import linear_cross_entropy
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.settings import OptimSettings
from chatbench.train.adapting import WHOLE, Adaptation
from chatbench.train.meters import flops_per_token
from chatbench.train.optimizer import Optimizers, is_few, newton_schulz_steps

# Widths that are measured, ascending; between them rates are interpolated.
_WIDTHS = {"cpu": (64, 128, 256, 384), "cuda": (256, 512, 1024, 1536), "mps": (128, 256, 512)}
_TOKENS = {"cpu": 1024, "cuda": 32_768, "mps": 4096}
_MICRO_TOKENS = (1024, 2048, 4096)
# A larger shape is measured with fewer blocks.
_LARGEST = 30_000_000
_SLOWER = 0.97
_CUBE = 3.0


class Timing(NamedTuple):
    """Seconds of one forward and backward pass a token, and of one step of the optimiser; `few`:
    the share of that which it takes where a step sees few tokens, less than 1 with Muon."""

    token: float
    update: float
    few: float = 1.0

    def step(self, tokens: int) -> float:
        return tokens * self.token + self.update * (self.few if is_few(tokens) else 1.0)


Clock = Callable[[ModelConfig, int, float], Timing]


class Probe:
    """Times training steps on a device, in a number format, with an optimiser, of what learns."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, optim: OptimSettings,
        adaptation: Adaptation = WHOLE,
    ) -> None:  # fmt: skip
        self._device = device
        self._dtype = dtype
        self._optim = optim
        self._adaptation = adaptation

    def timing(self, config: ModelConfig, rows: int, seconds: float = 0.5) -> Timing:
        """Of `config` on micro-batches of `rows` rows as long as its context, for about `seconds`
        after one step that nobody times; at least two steps. Medians."""
        small = _shallow(config)
        passes, updates = self._measure(small, rows, seconds, steps=3)
        deeper = flops_per_token(config, config.context) / flops_per_token(small, small.context)
        blocks = config.n_layers / small.n_layers
        tokens = rows * small.context
        update = median(updates[1:]) * blocks
        return Timing(median(passes[1:]) / tokens * deeper, update, few_share(self._optim))

    def _measure(
        self, small: ModelConfig, rows: int, seconds: float, steps: int
    ) -> tuple[list[float], list[float]]:
        """Seconds of the passes and of the updates, of `steps` steps and more."""
        with torch.random.fork_rng(devices=[]):
            model = GPT(small).to(self._device).train()
        initialise(model, 0)
        self._adaptation.shallow(small.n_layers).apply(model)
        optimizers = Optimizers(model, self._optim, 1e-4, self._dtype)
        drawn = torch.Generator().manual_seed(0)
        ids = torch.randint(0, small.vocab_size, (rows, small.context), generator=drawn)
        ids = ids.to(self._device)
        passes: list[float] = []
        updates: list[float] = []
        until = math.inf
        while len(passes) < steps or time.perf_counter() < until:
            marks = [self._now()]
            hidden = model(ids).flatten(0, 1)
            loss = linear_cross_entropy(hidden, model.lm_head.weight, ids.flatten())
            (loss.total / ids.numel()).backward()  # type: ignore[no-untyped-call]
            optimizers.collect_gradients()
            marks.append(self._now())
            optimizers.clip(1.0)
            optimizers.step(1.0)
            marks.append(self._now())
            passes.append(marks[1] - marks[0])
            updates.append(marks[2] - marks[1])
            until = min(until, marks[2] + seconds)
        return passes, updates

    def peak(self, config: ModelConfig, rows: int) -> int:
        """Bytes on a GPU at the peak of one step of the whole model."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        self._measure(config, rows, 0.0, steps=1)
        return int(torch.cuda.max_memory_allocated(self._device)) - before

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


def _shallow(config: ModelConfig) -> ModelConfig:
    """With as many blocks as stay below `_LARGEST` weights, one at least."""
    block = flops_per_token(config._replace(vocab_size=1), 0) / 6 / config.n_layers
    table = config.hidden_size * config.vocab_size
    blocks = max(1, int((_LARGEST - table) / block))
    return config._replace(n_layers=min(config.n_layers, blocks))


def few_share(optim: OptimSettings) -> float:
    """Of an update's time, where a step sees few tokens: Muon is hardly more than iterations."""
    return newton_schulz_steps(0) / newton_schulz_steps(None) if optim.optimizer == "muon" else 1.0


def update_flops(config: ModelConfig) -> float:
    """Operations of one step of Muon on a large batch: iterations of three products for each
    matrix."""
    width, inner = config.hidden_size, config.n_heads * config.head_dim
    inner_kv, ffn = config.n_kv_heads * config.head_dim, config.ffn_size
    sides = [(inner, 2), (inner_kv, 2), (ffn, 3 if config.gated else 2)]
    one = [count * (4 * min(s, width) ** 2 * max(s, width) + 2 * min(s, width) ** 3)
           for s, count in sides]  # fmt: skip
    return float(newton_schulz_steps(None) * config.n_layers * sum(one))


class Machine:
    """How long a step of any shape will take, from a few that were measured."""

    def __init__(self, measured: Sequence[tuple[ModelConfig, Timing]]) -> None:
        """At least one; others are interpolated between them on logarithmic scales, by width."""
        assert measured
        known = sorted(measured, key=lambda pair: pair[0].hidden_size)
        self._few = known[0][1].few
        self._widths = [math.log(config.hidden_size) for config, _ in known]
        rates = [
            math.log(flops_per_token(config, config.context) / timing.token)
            for config, timing in known
        ]
        updates = [math.log(timing.update / config.n_layers) for config, timing in known]
        # Wider products are no slower an operation, and those of Muon grow by the cube: what says
        # otherwise was measured while other programs had the machine.
        self._rates = list(accumulate(rates, max))
        grown = [
            update - _CUBE * width for update, width in zip(updates, self._widths, strict=True)
        ]
        least = accumulate(grown, min)
        self._updates = [g + _CUBE * width for g, width in zip(least, self._widths, strict=True)]

    def timing(self, config: ModelConfig) -> Timing:
        """Beyond the widths measured: the rate of the nearest, and of the optimiser's seconds the
        cube, which is how the products of Muon grow."""
        width = math.log(config.hidden_size)
        rate = math.exp(_interpolated(width, self._widths, self._rates, 0.0))
        update = config.n_layers * math.exp(
            _interpolated(width, self._widths, self._updates, _CUBE)
        )
        return Timing(flops_per_token(config, config.context) / rate, update, self._few)


def _interpolated(at: float, places: list[float], values: list[float], slope: float) -> float:
    """Linear between places; past the last one onwards with `slope`, before the first constant."""
    if at <= places[0]:
        return values[0]
    for left in range(len(places) - 1):
        if at <= places[left + 1]:
            share = (at - places[left]) / (places[left + 1] - places[left])
            return values[left] + share * (values[left + 1] - values[left])
    return values[-1] + slope * (at - places[-1])


def look(clock: Clock, kind: str, shape: Callable[[int], ModelConfig], seconds: float) -> Machine:
    """Measure the widths of this kind of device, smallest first, until `seconds` are over.

    `shape` makes a small model of a width; `clock` is a Probe's `timing`.
    """
    found: list[tuple[ModelConfig, Timing]] = []
    widths = _WIDTHS.get(kind, _WIDTHS["cpu"])
    tokens = _TOKENS.get(kind, _TOKENS["cpu"])
    # What a process does once, at its first step, must not count as the time of a width.
    clock(shape(widths[0]), 1, 0.0)
    begun = time.monotonic()
    for width in widths:
        config = shape(width)
        before = time.monotonic()
        found.append((config, clock(config, max(1, tokens // config.context), seconds / 16)))
        took = time.monotonic() - before
        # Twice as wide takes about four times as long.
        if time.monotonic() - begun + 3 * took > seconds:
            break
    return Machine(found)


def best_micro_batch(clock: Clock, config: ModelConfig, rows: int, seconds: float) -> int:
    """Rows at once on a CPU: those with the most tokens a second, fewer where it makes no
    difference, since their activations stay in its caches. `rows`: of a whole step."""
    sizes = sorted({min(rows, max(1, tokens // config.context)) for tokens in _MICRO_TOKENS})
    best, rate = sizes[0], 0.0
    for size in sizes if len(sizes) > 1 else ():
        measured = 1 / clock(config, size, seconds / len(sizes) / 2).token
        if measured * _SLOWER > rate:
            best, rate = size, measured
    return best


def fitting_rows(peak: Callable[[int], int], rows: int, memory: int) -> int:
    """The most rows, a power of two or all of them, whose step peaks below `memory` bytes.

    `peak` measures or predicts it, rising with the rows; it may raise MemoryError or
    torch.OutOfMemoryError, which counts as too much. At least one: less cannot be tried.
    """
    best, size = 1, 1
    while True:
        try:
            if peak(size) > memory:
                return best
        except (MemoryError, torch.OutOfMemoryError):
            return best
        best = size
        if size >= rows:
            return best
        size = min(2 * size, rows)
