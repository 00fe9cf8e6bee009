"""How likely each of several replies is as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import torch

from chatbench.conversation import Message
from chatbench.engine.cache import KVCache
from chatbench.errors import UsageError
from chatbench.text.template import render, reply_prompt
from chatbench.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from chatbench.engine.engine import Engine


def reply_ids(tokenizer: Tokenizer, name: str) -> list[int]:
    """The ids a model is taught for this reply, its end not among them.

    Raises UsageError when it is empty, or the tokenizer cannot write it.
    """
    if not name.strip():
        raise UsageError("a choice is empty", hint="leave it out")
    asked = [Message("user", "?")]
    prompt = reply_prompt(tokenizer, asked)
    ids, weights = render(tokenizer, [*asked, Message("assistant", name)])
    reply = zip(ids[len(prompt) :], weights[len(prompt) :], strict=True)
    found = [
        n for n, _ in takewhile(lambda pair: pair[1] and pair[0] not in tokenizer.stops, reply)
    ]
    if tokenizer.decode(found).strip() != name.strip():
        raise unwritable(tokenizer, name, found)
    return found


def unwritable(tokenizer: Tokenizer, name: str, ids: Sequence[int]) -> UsageError:
    """What to raise for a choice that becomes other text by the ids found for it."""
    return UsageError(
        f"the tokenizer cannot write the choice {name}; it makes {tokenizer.decode(ids)!r} of it",
        hint="name it otherwise",
    )


@torch.inference_mode()
def choice_logprobs(
    engine: Engine, prompt: Sequence[int], choices: Sequence[Sequence[int]], *, ends: bool = True
) -> list[float]:
    """ln p of each choice after `prompt`, by the model's own distribution; with `ends` also that it
    says no more. The prompt is read once, into a cache of its own, so a run may be under way.

    There must be room for the prompt and the longest choice in the context.
    """
    weight = engine.model.model.embed_tokens.weight
    rows = min(len(choices), engine._max_rows)
    cache = KVCache(engine.model.config, rows, weight.device, weight.dtype)
    cache.reserve(len(prompt) + max(map(len, choices)))
    found: list[float] = []
    with engine._turnstile.between():
        read = len(prompt) - 1
        for at in range(0, read, engine._chunk):
            part = torch.tensor([list(prompt[at : min(read, at + engine._chunk)])])
            engine.model(part.to(weight.device), cache=cache.layers(0, 1))
            cache.lengths[0] += part.shape[1]
        for row in range(1, rows):
            cache.copy(0, row, read)
        for at in range(0, len(choices), rows):
            found += _judge(engine, cache, prompt[-1], choices[at : at + rows], ends)
    return found


def _judge(
    engine: Engine, cache: KVCache, before: int, choices: Sequence[Sequence[int]], ends: bool
) -> list[float]:
    """ln p of choices that follow id `before`; what they leave in the cache counts for nothing."""
    width = 1 + max(map(len, choices))
    padded = [[before, *ids, *[0] * (width - 1 - len(ids))] for ids in choices]
    device = engine.model.model.embed_tokens.weight.device
    tokens = torch.tensor(padded, device=device)
    hidden = engine.model(tokens, cache=cache.layers(0, len(choices)))
    stops = sorted(engine.tokenizer.stops)
    found = []
    for row, ids in zip(hidden, choices, strict=True):
        scores = engine._scores(row[: len(ids) + 1]).double().log_softmax(-1)
        chance = scores[torch.arange(len(ids)), torch.tensor(ids)].sum()
        found.append(float(chance + scores[-1, stops].logsumexp(0) if ends else chance))
    return found
