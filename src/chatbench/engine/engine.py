"""Requests in, token events out: rows join and leave at every step, each with its own length,
sampling, seed and stop strings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter

import torch
from torch import Tensor

from chatbench.engine.cache import KVCache
from chatbench.engine.graphs import Graphs
from chatbench.engine.prefixes import Places
from chatbench.engine.rows import (
    Completion,
    FinishReason,
    Piece,
    Request,
    TokenLogprob,
    bias_by_id,
    check_limits,
    describe,
)
from chatbench.engine.shift import Shift
from chatbench.engine.speculation import Cost
from chatbench.engine.step import Stepper
from chatbench.engine.turnstile import Turnstile
from chatbench.errors import UsageError
from chatbench.model.quantize import QuantizedLinear
from chatbench.model.transformer import GPT
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import Tokenizer

__all__ = ["Completion", "Engine", "FinishReason", "Piece", "Request", "TokenLogprob"]

# Multiplications of one chunk of a prompt on a CPU, after which others are served and Ctrl-C is
# heard; the number of tokens must not depend on a clock, or the rounding of results would.
_CHUNK_WORK = 1e10
_SMALLEST_CHUNK, _LARGEST_CHUNK = 32, 512
_CHUNK_ON_GPU = 2048
_LOGITS_AT_ONCE = 1 << 24


class Engine:
    """A model ready to answer. Threads take turns: a run holds the engine until it is exhausted or
    closed, and others wait; a thread that begins a run while an older one of its own is half read
    ends the older one, whose rows are then cancelled.

    `chunk`: a prompt is read so many tokens at a time, between which live rows go on.
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, max_rows: int = 16, chunk: int | None = None
    ) -> None:
        weight = model.model.embed_tokens.weight
        self.model = model
        self.tokenizer = tokenizer
        self.context = model.config.context
        self.cost = Cost()
        self._device = weight.device
        self._max_rows = max_rows
        self._chunk = chunk or _chunk_of(model, weight.device)
        self._cache = KVCache(model.config, max_rows, weight.device, weight.dtype)
        self._places = Places(self._cache, self.context, max_rows)
        self._turnstile = Turnstile()
        on_gpu = weight.device.type == "cuda"
        self.graphs = Graphs(model, self._cache, tokenizer.vocab_size) if on_gpu else None
        self._stepper: Stepper | None = None
        # Where several tokens are rounded otherwise than one by one, guesses could change a reply.
        self._rounds_finely = weight.dtype in (torch.float32, torch.float64) and not any(
            isinstance(module, QuantizedLinear) for module in model.modules()
        )

    def forget(self) -> None:
        """Drop all beginnings and graphs, as is due when the weights have changed."""
        with self._turnstile.between():
            self._stepper = None
            self._places = Places(self._cache, self.context, self._max_rows)
            if self.graphs is not None:
                self.graphs.forget()

    def check(self, ids: list[int], sampling: SamplingSettings | None = None) -> None:
        """Raise UsageError when a prompt leaves no room for a reply, or a logit bias names what is
        no token."""
        if len(ids) >= self.context:
            raise UsageError(
                f"the prompt has {len(ids)} tokens and the model's context is {self.context}",
                hint="shorten it",
            )
        if not ids:
            raise UsageError("the prompt is empty", hint="give some text")
        if sampling is not None:
            bias_by_id(self.tokenizer, sampling)

    @torch.inference_mode()
    def run(
        self,
        requests: Iterable[Request],
        cancelled: Callable[[], bool] = lambda: False,
        arriving: Callable[[int], Iterable[Request]] | None = None,
    ) -> Iterator[Piece | Completion]:
        """Answer all requests, at most `max_rows` at once; events come as they happen.

        Beginnings that the cache or another row of the run holds are not computed again. When
        `cancelled()`, asked before every step, turns true, every unfinished row ends with
        finish_reason "cancelled". `arriving` is asked before every step for at most so many more
        requests as rows are free; it must not wait for any.
        """
        waiting = list(requests)
        for request in waiting:
            self.check(request.ids, request.sampling)
            check_limits(self.tokenizer, request, self.context)
        began = perf_counter()
        mine = self._turnstile.enter()
        try:
            # Between two runs a layer may have been put in another's place.
            self._stepper = None
            shift = Shift(self, waiting, began)
            while True:
                if arriving is not None and shift.free > 0:
                    shift.add(arriving(shift.free))
                if not shift.busy:
                    return
                if not self._turnstile.holds(mine) or cancelled():
                    yield from shift.cancel()
                    return
                yield from shift.step()
        finally:
            self._turnstile.leave(mine)

    def complete(self, requests: Iterable[Request]) -> list[Completion]:
        """`run` to the end; completions in the order of the requests."""
        requests = list(requests)
        numbered = [r._replace(key=number) for number, r in enumerate(requests)]
        done = {e.key: e for e in self.run(numbered) if isinstance(e, Completion)}
        return [done[number]._replace(key=r.key) for number, r in enumerate(requests)]

    @torch.inference_mode()
    def explain(self, ids: list[int], begin: int, top: int) -> list[TokenLogprob]:
        """The figures of ids[begin:], each given all before it, from one forward pass; `top`
        alternatives each. Raises UsageError when there is nothing before `begin`, or more tokens
        than the context holds."""
        if len(ids) > self.context:
            raise UsageError(
                f"the text has {len(ids)} tokens and the model's context is {self.context}",
                hint="shorten it",
            )
        if not 0 < begin <= len(ids):
            raise UsageError(f"token {begin} of {len(ids)} follows from nothing")
        found: list[TokenLogprob] = []
        if begin == len(ids):
            return found
        with self._turnstile.between():
            hidden = self.model(torch.tensor([ids[:-1]], device=self._device))[0, begin - 1 :]
            step = max(1, _LOGITS_AT_ONCE // self.tokenizer.vocab_size)
            for at in range(0, len(hidden), step):
                chosen = ids[begin + at : begin + at + step]
                found += describe(self.tokenizer, self._scores(hidden[at : at + step]), chosen, top)
        return found

    def _scores(self, hidden: Tensor) -> Tensor:
        """(N, C) → (N, V) float32 on the host; a table padded for speed has rows that stand for no
        token, which are left out. All at once: each copy makes the host wait for a GPU."""
        logits = self.model.logits(hidden)[:, : self.tokenizer.vocab_size]
        return logits.float().cpu()

    def _next(self, ids: list[int]) -> Tensor:
        """Logits (R, V) as `_scores` gives them after one more id of each of the first R rows."""
        if self._stepper is None:
            self._stepper = Stepper(self.model, self._cache)
        logits = self._stepper.next(ids)
        if logits is not None:
            return logits[:, : self.tokenizer.vocab_size]
        return self._scores(self._forward([[number] for number in ids], 0)[:, -1])

    def _forward(self, ids: list[list[int]], first: int) -> Tensor:
        """Hidden states (R, T, C) of ids that continue cache rows first, first + 1, ..., which are
        padded on the right; what padding leaves in the cache lies beyond the rows' lengths."""
        width = max(map(len, ids))
        self._cache.reserve(max(self._cache.lengths[first : first + len(ids)]) + width)
        padded = [row + [0] * (width - len(row)) for row in ids]
        tokens = torch.tensor(padded, device=self._device)
        hidden: Tensor = self.model(tokens, cache=self._cache.layers(first, len(ids)))
        return hidden


def _chunk_of(model: GPT, device: torch.device) -> int:
    if device.type != "cpu":
        return _CHUNK_ON_GPU
    tokens = int(_CHUNK_WORK / max(1, model.parameter_count()))
    return max(_SMALLEST_CHUNK, min(_LARGEST_CHUNK, 1 << tokens.bit_length() >> 1))
