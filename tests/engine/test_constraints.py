"""Replies that are one of several: drawn exactly, judged exactly."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from chatbench.engine.choosing import choice_logprobs
from chatbench.engine.constraints import Choices
from chatbench.engine.engine import Engine, Request
from chatbench.errors import UsageError
from chatbench.model.transformer import GPT
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import Tokenizer

Make = Callable[..., GPT]
DRAWS = 3000


def plain(**changes: Any) -> SamplingSettings:
    return SamplingSettings(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **changes})


def made(tokenizer: Tokenizer, choices: list[list[int]]) -> Choices:
    named = {f"c{n}": ids for n, ids in enumerate(choices)}
    return Choices(named, tokenizer.vocab_size, tokenizer.stops)


def test_choices_are_drawn_by_what_the_model_gives_to_what_is_allowed(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    """Token by token: the model's distribution over what may follow, made to sum to 1."""
    size = tokenizer.vocab_size
    source = torch.Generator().manual_seed(rng.randrange(1 << 40))
    logits = 2 * torch.rand(size, size, generator=source, dtype=torch.float64)
    a, b, c, d, before = rng.sample(range(size - len(tokenizer.controls)), 5)
    choices = [[a], [a, b], [a, c], [d, b], [d, c, a]]

    def step(last: int, number: int, others: list[int]) -> float:
        mass = logits[last].exp()
        return float(mass[number] / mass[others].sum())

    stops = sorted(tokenizer.stops)
    first = {n: step(before, n, [a, d]) for n in (a, d)}
    behind = {n: step(a, n, [b, c, *stops]) for n in (b, c)}
    wanted = {
        (a,): first[a] * (1 - behind[b] - behind[c]),
        (a, b): first[a] * behind[b], (a, c): first[a] * behind[c],
        (d, b): first[d] * step(d, b, [b, c]), (d, c, a): first[d] * step(d, c, [b, c]),
    }  # fmt: skip
    assert math.isclose(sum(wanted.values()), 1.0)
    engine = Engine(make_chain(logits), tokenizer, 16)
    limit = made(tokenizer, choices)
    requests = [Request([before], plain(seed=rng.randrange(1 << 48)), constraint=limit)
                for _ in range(DRAWS)]  # fmt: skip
    done = engine.complete(requests)
    assert {reply.finish_reason for reply in done} == {"stop"}
    counts = Counter(tuple(reply.ids) for reply in done)
    assert set(counts) <= set(wanted)
    off = sum((counts[ids] - DRAWS * p) ** 2 / (DRAWS * p) for ids, p in wanted.items())
    # Four degrees of freedom: above 50 less than once in a billion runs.
    assert off < 50


@torch.no_grad()
def test_the_likeliest_token_is_taken_greedily_whatever_else_is_likely(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    engine = Engine(model, tokenizer, 4)
    for _ in range(5):
        ids = [[rng.randrange(300) for _ in range(rng.randint(1, 4))] for _ in range(6)]
        ids = [list(x) for x in dict.fromkeys(map(tuple, ids))]
        prompt = [rng.randrange(300) for _ in range(rng.randint(1, 30))]
        limit = made(tokenizer, ids)
        own = plain(temperature=0.0, max_tokens=4, speculate=rng.choice(["on", "auto"]))
        (done,) = engine.complete([Request(prompt, own, constraint=limit)])
        said: list[int] = []
        while True:
            rest = [x[len(said) :] for x in ids if x[: len(said)] == said]
            may = {x[0] for x in rest if x} | (tokenizer.stops if [] in rest else set())
            if not any(rest):
                break
            row = model.logits(model(torch.tensor([[*prompt, *said]])))[0, -1]
            number = max(may, key=lambda n: float(row[n].float()))
            if number in tokenizer.stops:
                break
            said.append(number)
        assert done.ids == said
        assert done.finish_reason == "stop"


@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("chunk", [4, 64])
def test_a_choice_is_as_likely_as_its_tokens_in_a_row(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random, rows: int, chunk: int
) -> None:
    engine = Engine(make_model(), tokenizer, rows, chunk)
    prompt = [rng.randrange(300) for _ in range(rng.choice([1, 5, 40]))]
    choices = [[rng.randrange(300) for _ in range(rng.randint(1, 5))] for _ in range(5)]
    for ends in (True, False):
        found = choice_logprobs(engine, prompt, choices, ends=ends)
        for ids, chance in zip(choices, found, strict=True):
            told = engine.explain([*prompt, *ids], len(prompt), 0)
            wanted = math.fsum(token.logprob for token in told)
            if ends:
                stops = [engine.explain([*prompt, *ids, n], len(prompt) + len(ids), 0)[0].logprob
                         for n in tokenizer.stops]  # fmt: skip
                wanted += math.log(math.fsum(map(math.exp, stops)))
            # Both take logits as float32: 24 bits of numbers below 2 ** 6, for each of 6 tokens.
            assert chance == pytest.approx(wanted, abs=6 * 4 * 2.0**-18)


def test_what_is_no_choice_is_refused(tokenizer: Tokenizer, make_model: Make) -> None:
    for choices in ([], [[1], []]):
        with pytest.raises(UsageError, match="empty choice, or none"):
            made(tokenizer, choices)
    with pytest.raises(UsageError, match="c1 is there twice"):
        made(tokenizer, [[1, 2], [1, 2]])
    limit = made(tokenizer, [[1], [1, 2, 3]])
    with pytest.raises(UsageError, match="needs 3 tokens, and there is room for 2"):
        Engine(make_model(), tokenizer).complete(
            [Request([1], plain(max_tokens=2), constraint=limit)]
        )
