"""What is asked of the engine, what it answers, and a row on its way from one to the other."""

from __future__ import annotations

from time import perf_counter
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from chatbench.engine.constraints import Constraint, require_room
from chatbench.engine.sampling import Adjustment
from chatbench.engine.speculation import Lookup
from chatbench.errors import UsageError
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]


class Request(NamedTuple):
    """`ids` to continue; `key` is handed back with every event. `goes_on`: the new text is the
    middle of a text, not the beginning of a reply, so its first space belongs to it. `allowed`:
    the only ids that may be said; a reply that is to end by itself needs an end token there.
    `constraint`: what the reply as a whole may be; it ends by itself when it is whole."""

    ids: list[int]
    sampling: SamplingSettings
    key: int = 0
    goes_on: bool = False
    allowed: frozenset[int] | None = None
    constraint: Constraint | None = None


class TokenLogprob(NamedTuple):
    """Natural logarithms of the model's own distribution: temperature 1, no filter, penalty, bias.

    `text` spells control tokens by name and bytes that are no whole character as \\xNN; `top` holds
    (id, text, logprob) of the likeliest tokens, likeliest first.
    """

    id: int
    text: str
    bytes: list[int]
    logprob: float
    top: list[tuple[int, str, float]]


class Piece(NamedTuple):
    """New text of one row, certain and free of half characters and half stop strings."""

    key: int
    text: str


class Completion(NamedTuple):
    """The end of one row. `logprobs` has an entry for each of `ids` where the request asked for
    them. `first_seconds` to the first token and `seconds` to the end count from the call of `run`;
    without a token the two are equal. `ended`: the control token that ended it, if one did."""

    key: int
    ids: list[int]
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    logprobs: list[TokenLogprob] | None = None
    first_seconds: float = 0.0
    seconds: float = 0.0
    ended: int | None = None


class Row:
    """One request while it is being answered. `read` tokens of its prompt are in the cache."""

    def __init__(self, request: Request, tokenizer: Tokenizer, began: float) -> None:
        sampling = request.sampling
        self.request = request
        self.ids: list[int] = []
        self.text = ""
        self.read = 0
        self.cached = 0
        self.finish: FinishReason | None = None
        self.ended: int | None = None
        self.logprobs: list[TokenLogprob] | None = None if sampling.logprobs is None else []
        self.adjustment = Adjustment(
            sampling, request.ids, bias_by_id(tokenizer, sampling),
            allowed_ids(tokenizer, request), request.constraint,
        )  # fmt: skip
        self.lookup: Lookup | None = None
        self._began = began
        self._first: float | None = None
        self._stops = [stop for stop in sampling.stop if stop]
        self._held = ""
        self._decoder = tokenizer.stream(begun=request.goes_on)
        self._ends = tokenizer.stops
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)

    def push(self, number: int, room: int) -> str:
        """Take the next id; returns the text that may be shown now."""
        if self._first is None:
            self._first = perf_counter() - self._began
        if number in self._ends:
            self.finish, self.ended = "stop", number
            return self._release("")
        self.ids.append(number)
        self.adjustment.take(number)
        fresh = self._decoder.push(number)
        if len(self.ids) >= min(self.request.sampling.max_tokens, room):
            self.finish = "length"
        if self.adjustment.ended:
            # Closed early for want of tokens, it is whole and yet not what it might have been.
            self.finish = "length" if self.adjustment.pressed else "stop"
        return self._release(fresh)

    def _release(self, fresh: str) -> str:
        pending = self._held + fresh
        found = [at for at in (pending.find(stop) for stop in self._stops) if at >= 0]
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
        seconds = perf_counter() - self._began
        first = seconds if self._first is None else self._first
        return Completion(
            self.request.key, self.ids, self.text, reason, len(self.request.ids), self.cached,
            self.logprobs, first, seconds, self.ended,
        )  # fmt: skip


def check_limits(tokenizer: Tokenizer, request: Request, context: int) -> None:
    """Raise UsageError for limits that no reply can keep to."""
    allowed_ids(tokenizer, request)
    if request.constraint is None:
        return
    if request.allowed is not None:
        raise UsageError("tokens are limited in two ways", hint="leave allowed or constraint out")
    if any(request.sampling.stop):
        raise UsageError(
            "stop would cut off a reply of a fixed form", hint="leave it out; it ends by itself"
        )
    room = min(request.sampling.max_tokens, context - len(request.ids))
    require_room(request.constraint, room)


def allowed_ids(tokenizer: Tokenizer, request: Request) -> frozenset[int] | None:
    """Those of the vocabulary. Raises UsageError when there are none."""
    if request.allowed is None:
        return None
    known = frozenset(n for n in request.allowed if 0 <= n < tokenizer.vocab_size)
    if not known:
        raise UsageError("no token is allowed", hint="allow at least one id of the vocabulary")
    return known


def bias_by_id(tokenizer: Tokenizer, sampling: SamplingSettings) -> dict[int, float]:
    """`logit_bias` by id; digits are an id, anything else is the text of one token.

    Raises UsageError for an id beyond the vocabulary and for text of several tokens.
    """
    found: dict[int, float] = {}
    for name, value in sampling.logit_bias.items():
        if name.isascii() and name.isdigit():
            number = int(name)
        elif name in tokenizer.controls:
            number = tokenizer.controls[name]
        else:
            ids = tokenizer.encode(name)
            if len(ids) != 1:
                raise UsageError(
                    f"logit_bias: {name!r} is {len(ids)} tokens, not one",
                    hint="name single tokens, by their text or id",
                )
            number = ids[0]
        if number >= tokenizer.vocab_size:
            raise UsageError(
                f"logit_bias: there is no token {number}; ids end at {tokenizer.vocab_size - 1}"
            )
        found[number] = found.get(number, 0.0) + value
    return found


def describe(
    tokenizer: Tokenizer, scores: Tensor, chosen: list[int], top: int
) -> list[TokenLogprob]:
    """Figures of `chosen` (N ids) in logits (N, V) that hold the vocabulary alone."""
    if not chosen:
        return []
    wide = scores.double()
    spread = wide.logsumexp(-1, keepdim=True)
    picked = (wide.gather(1, torch.tensor(chosen)[:, None]) - spread).squeeze(1).tolist()
    values, ids = scores.topk(min(top, scores.shape[1]))
    likeliest = (values.double() - spread).tolist()
    names = {number: name for name, number in tokenizer.controls.items()}

    def spelled(number: int) -> str:
        data = tokenizer.token_bytes[number] if number < len(tokenizer.token_bytes) else b""
        return data.decode("utf-8", "backslashreplace") or names.get(number, "")

    return [
        TokenLogprob(
            number, spelled(number), list(tokenizer.token_bytes[number]), chance,
            [(n, spelled(n), value) for n, value in zip(row, ours, strict=True)],
        )
        for number, chance, row, ours in zip(chosen, picked, ids.tolist(), likeliest, strict=True)
    ]  # fmt: skip
