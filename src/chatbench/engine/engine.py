"""Requests in, token events out: rows join and leave at every step, each with its own length,
sampling, seed and stop strings."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from chatbench.engine.cache import KVCache
from chatbench.engine.sampling import choose
from chatbench.errors import UsageError
from chatbench.model.transformer import GPT
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]
_PREFILL_TOKENS = 4096


class Request(NamedTuple):
    """`ids` to continue; `key` is handed back with every event. `goes_on`: the new text is the
    middle of a text, not the beginning of a reply, so its first space belongs to it."""

    ids: list[int]
    sampling: SamplingSettings
    key: int = 0
    goes_on: bool = False


class Piece(NamedTuple):
    """New text of one row, certain and free of half characters and half stop strings."""

    key: int
    text: str


class Completion(NamedTuple):
    """The end of one row."""

    key: int
    ids: list[int]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int


class _Row:
    """One request while it is being answered."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self.request = request
        self.ids: list[int] = []
        self.text = ""
        self.cached = 0
        self.finish: FinishReason | None = None
        self._stops = request.sampling.stop
        self._held = ""
        self._decoder = tokenizer.stream(begun=request.goes_on)
        self._ends = tokenizer.stops
        self.generator = torch.Generator()
        seed = request.sampling.seed
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def seen(self) -> Tensor | None:
        if self.request.sampling.repetition_penalty == 1.0:
            return None
        return torch.tensor(sorted({*self.request.ids, *self.ids}))

    def push(self, number: int, room: int) -> str:
        """Take the next id; returns the text that may be shown now."""
        if number in self._ends:
            self.finish = "stop"
            return self._release("")
        self.ids.append(number)
        fresh = self._decoder.push(number)
        if len(self.ids) >= min(self.request.sampling.max_tokens, room):
            self.finish = "length"
        return self._release(fresh)

    def _release(self, fresh: str) -> str:
        pending = self._held + fresh
        found = [at for at in (pending.find(stop) for stop in self._stops if stop) if at >= 0]
        if found:
            self.finish = "stop"
            pending, self._held = pending[: min(found)], ""
        else:
            held = 0 if self.finish else self._possible_stop(pending)
            pending, self._held = pending[: len(pending) - held], pending[len(pending) - held :]
        self.text += pending
        return pending

    def _possible_stop(self, pending: str) -> int:
        """Length of the longest end of `pending` that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(pending)), 0, -1):
            if any(stop.startswith(pending[-size:]) for stop in self._stops):
                return size
        return 0

    def completion(self) -> Completion:
        reason = self.finish or "cancelled"
        prompt = len(self.request.ids)
        return Completion(self.request.key, self.ids, self.text, reason, prompt, self.cached)


class Engine:
    """A model ready to answer. One thread at a time."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, max_rows: int = 16) -> None:
        weight = model.model.embed_tokens.weight
        self.model = model
        self.tokenizer = tokenizer
        self.context = model.config.context
        self._device = weight.device
        self._max_rows = max_rows
        self._cache = KVCache(model.config, max_rows, weight.device, weight.dtype)
        self._resident: list[int] = []

    def check(self, ids: list[int]) -> None:
        """Raise UsageError when a prompt leaves no room for a reply."""
        if len(ids) >= self.context:
            raise UsageError(
                f"the prompt has {len(ids)} tokens and the model's context is {self.context}",
                hint="shorten it",
            )
        if not ids:
            raise UsageError("the prompt is empty", hint="give some text")

    @torch.inference_mode()
    def run(
        self, requests: Iterable[Request], cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Piece | Completion]:
        """Answer all requests, at most `max_rows` at once; events come as they happen.

        A single request reuses what the cache holds of its beginning. When `cancelled()` turns
        true, every unfinished row ends with finish_reason "cancelled".
        """
        waiting = deque(requests)
        for request in waiting:
            self.check(request.ids)
        reuse = len(waiting) == 1
        live: list[_Row] = []
        while waiting or live:
            joined = [
                _Row(waiting.popleft(), self.tokenizer)
                for _ in range(min(len(waiting), self._max_rows - len(live)))
            ]
            logits = self._prefill(live, joined, reuse) if joined else self._decode(live)
            live += joined
            # All rows at once: each copy makes the host wait for a GPU.
            for row, scores in zip(joined or live, logits.cpu(), strict=True):
                yield from self._advance(row, scores)
            if cancelled():
                for row in live:
                    row.finish = row.finish or "cancelled"
            yield from self._retire(live)

    def complete(self, requests: Iterable[Request]) -> list[Completion]:
        """`run` to the end; completions in the order of the requests."""
        requests = list(requests)
        numbered = [r._replace(key=number) for number, r in enumerate(requests)]
        done = {e.key: e for e in self.run(numbered) if isinstance(e, Completion)}
        return [done[number]._replace(key=r.key) for number, r in enumerate(requests)]

    def _advance(self, row: _Row, scores: Tensor) -> Iterator[Piece]:
        room = self.context - len(row.request.ids)
        # A table padded for speed has rows that stand for no token.
        scores = scores[: self.tokenizer.vocab_size]
        number = choose(scores, row.request.sampling, row.generator, row.seen())
        text = row.push(number, room)
        if text:
            yield Piece(row.request.key, text)

    def _retire(self, live: list[_Row]) -> Iterator[Completion]:
        """Report finished rows and close the gaps they leave in the cache."""
        for place in reversed(range(len(live))):
            if live[place].finish is None:
                continue
            row = live[place]
            last = len(live) - 1
            if place == 0 and last == 0:
                self._resident = [*row.request.ids, *row.ids][: self._cache.lengths[0]]
            if place != last:
                self._cache.move(last, place)
                live[place] = live[last]
            live.pop()
            yield row.completion()

    def _prefill(self, live: list[_Row], joined: list[_Row], reuse: bool) -> Tensor:
        """Read the prompts of new rows (right-padded); logits of each prompt's last token."""
        first, cache = len(live), self._cache
        for place, row in enumerate(joined, first):
            row.cached = self._common_prefix(row.request.ids) if reuse else 0
            cache.lengths[place] = row.cached
        if not live:
            self._resident = []
        prompts = [row.request.ids[row.cached :] for row in joined]
        longest = max(map(len, prompts))
        cache.reserve(max(row.cached for row in joined) + longest)
        scores = []
        step = max(1, _PREFILL_TOKENS // longest)
        for begin in range(0, len(prompts), step):
            part = prompts[begin : begin + step]
            width = max(map(len, part))
            ids = torch.tensor([p + [0] * (width - len(p)) for p in part], device=self._device)
            hidden = self.model(ids, cache=cache.layers(first + begin, len(part)))
            last = torch.tensor([len(p) - 1 for p in part], device=self._device)
            scores.append(self.model.logits(hidden[torch.arange(len(part)), last]))
        for place, prompt in enumerate(prompts, first):
            cache.lengths[place] += len(prompt)
        return torch.cat(scores)

    def _common_prefix(self, ids: list[int]) -> int:
        """How many leading ids row 0 already holds; the last one is always computed."""
        count = 0
        for ours, theirs in zip(self._resident, ids[:-1], strict=False):
            if ours != theirs:
                break
            count += 1
        return count

    def _decode(self, live: list[_Row]) -> Tensor:
        """One more token for every live row; logits (rows, V)."""
        cache = self._cache
        cache.reserve(max(cache.lengths[: len(live)]) + 1)
        ids = torch.tensor([[row.ids[-1]] for row in live], device=self._device)
        hidden = self.model(ids, cache=cache.layers(0, len(live)))
        for place in range(len(live)):
            cache.lengths[place] += 1
        scores: Tensor = self.model.logits(hidden[:, -1])
        return scores
