"""Decoding on a GPU: one more token of every row is one CUDA graph, and the host is a step behind.

A graph replays the same kernels on the same tensors, so ids, lengths and settings of the rows stay
on the device, the token is drawn there, and each replay leaves what the next one reads. There is a
graph for each number of rows, rounded up, and each capacity of the cache; rows beyond those that
speak write where nothing is kept. What is captured is plain code: where nothing captures,
`again` runs it once more on the same tensors, to the same result.
Legend: B rows of a graph, V vocabulary, K likeliest tokens that are looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chatbench import console
from chatbench.engine.cache import KVCache
from chatbench.engine.rows import Row
from chatbench.model.attention import LayerCache, Reach
from chatbench.model.transformer import GPT
from chatbench.settings import SamplingSettings

__all__ = ["Ahead", "Graphs", "Step", "again", "captured", "draw", "plain"]

# Tokens a row may be drawn from on the device; top_k beyond that, or none, is for the host.
MOST_KEPT = 256
_WARM_UP = 3
_NO_TOP_K = 0.0
_LIKELIEST = (1.0, _NO_TOP_K, 1.0, 0.0)

Replay = Callable[[], object]
Capture = Callable[[Callable[[], None], torch.device, Any], Replay]


def plain(sampling: SamplingSettings) -> bool:
    """Whether the device can draw a row's tokens: greedy ones, or from few of the likeliest, when
    nobody asks for their figures."""
    few = sampling.temperature == 0 or 0 < sampling.top_k <= MOST_KEPT
    return few and sampling.logprobs is None


def draw(scores: Tensor, limits: Tensor, uniforms: Tensor) -> Tensor:
    """Ids (B, 1) from scores (B, V) float32, as `choose_rows` draws them from the K likeliest.

    `limits` (4, B, 1) float64: temperature, top_k (0: the likeliest token), top_p, min_p of each
    row; `uniforms` (B, 1) float64 in [0, 1). Nothing is asked of the device.
    """
    heat, most, top_p, min_p = limits
    kept, ids = scores.topk(min(MOST_KEPT, scores.shape[1]))
    rank = torch.arange(kept.shape[1], device=scores.device)
    mass = ((kept.double() - kept[:, :1].double()) / heat).exp() * (rank < most)
    reached = mass.cumsum(-1)
    before = F.pad(reached[:, :-1], (1, 0))
    inside = (before < top_p * reached[:, -1:]) | (top_p == 1.0)
    mass = mass * (inside & (mass >= min_p))
    reached = mass.cumsum(-1)
    place = (reached <= uniforms * reached[:, -1:]).sum(-1, keepdim=True)
    # Rounding may lift the product to the total, which no place exceeds.
    place = torch.minimum(place, (mass > 0).sum(-1, keepdim=True) - 1).clamp(min=0)
    likeliest = scores.argmax(-1, keepdim=True)
    return torch.where(most == _NO_TOP_K, likeliest, ids.gather(1, place))


class _OnDevice(Reach):
    """Lengths that change between replays, so that nothing but their bound may be built upon."""

    @property
    def even(self) -> bool:
        return False


class Step:
    """One more token of the rows 0 … B - 1 of a cache, on tensors that stay where they are.

    `ids` (B, 1) are read and replaced by those that follow; `lengths` (B,) tokens that each row
    holds, more by `advance` afterwards; `limits`, `uniforms` as in `draw`, unused when greedy.
    """

    def __init__(self, model: GPT, cache: KVCache, rows: int, size: int, *, greedy: bool) -> None:
        """`size`: V, without rows of the table that stand for no token."""
        device = model.model.embed_tokens.weight.device
        self.rows, self.capacity = rows, cache.capacity
        self.ids = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.lengths = torch.tensor(cache.lengths[:rows], device=device)
        self.advance = torch.zeros_like(self.lengths)
        self.limits = torch.ones(4, rows, 1, dtype=torch.float64, device=device)
        self.uniforms = torch.zeros(rows, 1, dtype=torch.float64, device=device)
        self._model, self._size, self._greedy = model, size, greedy
        self._stores = cache.stores(rows)
        # A graph reads the table at its address, whatever becomes of the model's.
        whole = model.config.context
        self._table = None if model.rope is None else model.rope.cover(whole, device)

    def compute(self) -> None:
        """What a graph holds: the row's next ids and lengths in place of these."""
        reach = _OnDevice(self.lengths, self.capacity - 1)
        layers = [LayerCache(k, v, self.lengths, reach.longest, reach) for k, v in self._stores]
        hidden = self._model(self.ids, cache=layers)[:, -1]
        scores = self._model.logits(hidden)[:, : self._size].float()
        if self._greedy:
            chosen = scores.argmax(-1, keepdim=True)
        else:
            chosen = draw(scores, self.limits, self.uniforms)
        self.ids.copy_(chosen)
        self.lengths.add_(self.advance)

    def load(self, rows: Sequence[Row], lengths: Sequence[int]) -> None:
        """Begin with these rows; the rest stand still, at what `lengths` says they hold."""
        rest = self.rows - len(rows)
        self.ids.copy_(torch.tensor([row.ids[-1] for row in rows] + [0] * rest)[:, None])
        self.lengths.copy_(torch.tensor(lengths[: self.rows]))
        self.advance.copy_(torch.tensor([1] * len(rows) + [0] * rest))
        limits = [_limits(row.request.sampling) for row in rows] + [_LIKELIEST] * rest
        self.limits.copy_(torch.tensor(limits, dtype=torch.float64).T[:, :, None])


def _limits(sampling: SamplingSettings) -> tuple[float, float, float, float]:
    if sampling.temperature == 0:
        return _LIKELIEST
    return sampling.temperature, float(sampling.top_k), sampling.top_p, sampling.min_p


def captured(step: Callable[[], None], device: torch.device, pool: Any) -> Replay:
    """A graph of `step`, which runs a few times first: kernels are chosen, tried and compiled then.
    Raises whatever a step does that no graph can hold."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the GPU meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            step()
    return graph.replay


def again(step: Callable[[], None], device: torch.device, pool: Any) -> Replay:
    """In place of a graph: `step` itself."""
    return step


class Graphs:
    """The steps of one cache, each captured when first needed."""

    def __init__(self, model: GPT, cache: KVCache, size: int, capture: Capture = captured) -> None:
        """`size` as in `Step`."""
        self._model, self._cache, self._size = model, cache, size
        self._capture = capture
        self._most = len(cache.lengths)
        self._device = model.model.embed_tokens.weight.device
        self._pool = torch.cuda.graph_pool_handle() if capture is captured else None
        self._steps: dict[tuple[int, bool], tuple[Step, Replay]] = {}
        self._capacity = cache.capacity
        self.usable = True

    def forget(self) -> None:
        """Drop all graphs, as is due when weights or cache lie elsewhere."""
        self._steps.clear()

    def bucket(self, rows: int) -> int:
        """The rows of the graph that serves so many: a power of two, or all there are."""
        return min(self._most, 1 << (rows - 1).bit_length())

    def begin(self, rows: Sequence[Row]) -> Ahead | None:
        """The first rows of the cache, ready to go on; None, and a notice, when no graph can be
        made: `usable` is false from then on."""
        count = self.bucket(len(rows))
        lengths = self._cache.lengths
        self._cache.reserve(max(lengths[:count]) + 1)
        if self._capacity != self._cache.capacity:
            self._capacity = self._cache.capacity
            self.forget()
        greedy = all(row.request.sampling.temperature == 0 for row in rows)
        if (count, greedy) not in self._steps:
            made = Step(self._model, self._cache, count, self._size, greedy=greedy)
            try:
                replay = self._capture(made.compute, self._device, self._pool)
            except Exception as error:  # drivers, kernels and modules fail in many ways
                why = f"{type(error).__name__}: {error}".splitlines()[0][:120]
                console.notice(f"CUDA graphs are not used, replies come a little slower ({why})")
                self.usable = False
                return None
            self._steps[count, greedy] = made, replay
        step, replay = self._steps[count, greedy]
        step.load(rows, lengths)
        return Ahead(step, replay, rows, max(lengths[: len(rows)]), draws=not greedy)


class Ahead:
    """Rows that are on the device, and tokens of theirs that nobody has read yet."""

    def __init__(
        self, step: Step, replay: Replay, rows: Sequence[Row], longest: int, *, draws: bool
    ) -> None:
        self.rows = list(rows)
        self._step, self._replay, self._longest, self._draws = step, replay, longest, draws
        self._device = step.ids.device
        self._on_gpu = self._device.type == "cuda"
        self._launched = 0
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        # Two of each: while one is read or sent, the next step fills the other.
        self._slots = [self._pinned(torch.long) for _ in range(2)]
        self._drawn = [self._pinned(torch.float64) for _ in range(2)]

    def _pinned(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros(self._step.rows, 1, dtype=dtype, pin_memory=self._on_gpu)

    @property
    def pending(self) -> int:
        """Steps that were begun and not read, two at most."""
        return len(self._pending)

    @property
    def has_room(self) -> bool:
        """Whether the cache can take one more token of every row."""
        return self._longest < self._step.capacity

    def launch(self) -> None:
        """Queue one more step; nobody waits for it."""
        assert self.has_room
        assert self.pending < 2
        slot = self._launched % 2
        if self._draws:
            drawn = self._drawn[slot]
            for place, row in enumerate(self.rows):
                if row.request.sampling.temperature != 0:
                    drawn[place].uniform_(generator=row.generator)
            self._step.uniforms.copy_(drawn, non_blocking=True)
        self._replay()
        said, event = self._slots[slot], None
        said.copy_(self._step.ids, non_blocking=True)
        if self._on_gpu:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
        self._pending.append((said, event))
        self._launched += 1
        self._longest += 1

    def read(self) -> list[int]:
        """Wait for the oldest step: the next id of each row."""
        said, event = self._pending.popleft()
        if event is not None:
            event.synchronize()
        return said[: len(self.rows), 0].tolist()
