"""Penalties, bias and allowed tokens against their definitions, one token at a time in Python."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from chatbench.engine.engine import Engine, Request
from chatbench.engine.sampling import Adjustment, choose_rows, likely_tokens
from chatbench.errors import UsageError
from chatbench.model.transformer import GPT
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import Tokenizer

Make = Callable[..., GPT]
DRAWS = 10_000


def plain(**changes: Any) -> SamplingSettings:
    return SamplingSettings(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **changes})


def by_definition(
    logits: list[float], settings: SamplingSettings, prompt: list[int], reply: list[int],
    bias: dict[int, float], allowed: frozenset[int] | None,
) -> list[float]:  # fmt: skip
    found = []
    for number, logit in enumerate(logits):
        score, penalty = logit, settings.repetition_penalty
        if number in prompt or number in reply:
            score = score / penalty if score > 0 else score * penalty
        times = reply.count(number)
        score -= settings.frequency_penalty * times + settings.presence_penalty * (times > 0)
        score += bias.get(number, 0.0)
        found.append(score if allowed is None or number in allowed else -math.inf)
    return found


def test_scores_are_those_of_the_definitions(rng: random.Random) -> None:
    for _ in range(200):
        size = rng.randrange(2, 40)
        settings = plain(
            repetition_penalty=rng.choice((1.0, 1.3, 0.8)),
            presence_penalty=rng.choice((0.0, 1.5, -0.7)),
            frequency_penalty=rng.choice((0.0, 0.4, -2.0)),
        )
        prompt, reply = ([rng.randrange(size) for _ in range(rng.randrange(12))] for _ in "ab")
        bias = {rng.randrange(size): rng.uniform(-5, 5) for _ in range(rng.randrange(3))}
        allowed = rng.choice((None, frozenset(rng.sample(range(size), rng.randrange(1, size)))))
        logits = torch.randn(size, generator=torch.Generator().manual_seed(rng.randrange(1 << 30)))
        adjustment = Adjustment(settings, prompt, bias, allowed)
        for number in reply:
            adjustment.take(number)
        wanted = by_definition(logits.tolist(), settings, prompt, reply, bias, allowed)
        adjustment.apply(logits)
        torch.testing.assert_close(logits, torch.tensor(wanted))


def test_presence_and_frequency_spare_the_prompt() -> None:
    settings = plain(presence_penalty=2.0, frequency_penalty=2.0)
    scores = torch.ones(3)
    Adjustment(settings, [0, 0, 1]).apply(scores)
    assert scores.tolist() == [1.0] * 3


def softmax(scores: list[float]) -> list[float]:
    mass = [math.exp(score) for score in scores]
    return [m / math.fsum(mass) for m in mass]


@pytest.mark.parametrize("changes", [
    {}, {"top_k": 8}, {"top_p": 0.999999}, {"min_p": 1e-9}, {"temperature": 0.6},
])  # fmt: skip
def test_adjusted_draws_follow_the_adjusted_distribution(
    rng: random.Random, changes: dict[str, Any]
) -> None:
    logits = [0.7, -0.2, 1.3, 0.0, -1.1, 0.4, -0.6, 1.0]
    settings = plain(repetition_penalty=1.4, presence_penalty=0.6, frequency_penalty=0.3, **changes)
    bias, allowed = {3: 1.2, 0: -0.5}, frozenset({0, 2, 3, 4, 6})
    prompt, reply = [4, 1], [2, 2, 6]
    adjustment = Adjustment(settings, prompt, bias, allowed)
    for number in reply:
        adjustment.take(number)
    scores = torch.tensor(logits)
    adjustment.apply(scores)
    source = torch.Generator().manual_seed(rng.randrange(1 << 40))
    counts = [0] * len(logits)
    for _ in range(DRAWS // 100):
        for number in choose_rows(scores.expand(100, -1), [settings] * 100, [source] * 100):
            counts[number] += 1
    wanted = by_definition(logits, settings, prompt, reply, bias, allowed)
    chances = softmax([score / settings.temperature for score in wanted])
    assert all(counts[n] == 0 for n in range(8) if n not in allowed)
    pairs = [(counts[n], DRAWS * chances[n]) for n in sorted(allowed)]
    # Four degrees of freedom: above 45 less than once in a hundred million runs.
    assert sum((c - e) ** 2 / e for c, e in pairs) < 45


def test_top_p_over_a_flat_large_vocabulary_is_the_sorted_one(rng: random.Random) -> None:
    """Far more tokens are needed than the first look takes."""
    for top_p in (0.3, 0.9, 0.999):
        source = torch.Generator().manual_seed(rng.randrange(1 << 40))
        scores = torch.randperm(5000, generator=source) / 1000
        kept, ids = likely_tokens(scores, plain(top_p=top_p))
        values, order = scores.double().sort(descending=True)
        before = values.softmax(0).cumsum(0) - values.softmax(0)
        count = int((before < top_p).sum())
        assert abs(len(ids) - count) <= 1
        assert torch.equal(ids, order[: len(ids)])
        assert torch.equal(kept, scores[ids])


def test_a_row_draws_the_same_in_any_company(rng: random.Random) -> None:
    size, rows = 700, 24
    scores = torch.randn(
        rows, size, generator=torch.Generator().manual_seed(rng.randrange(1 << 40))
    )
    settings = [
        plain(
            temperature=rng.choice((0, 0.7, 1.5)), top_k=rng.choice((0, 5, 5, 40, 300, 9999)),
            top_p=rng.choice((1.0, 0.9)), min_p=rng.choice((0.0, 0.05)),
        )
        for _ in range(rows)
    ]  # fmt: skip
    seeds = [rng.randrange(1 << 40) for _ in range(rows)]

    def sources(places: list[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seeds[place]) for place in places]

    every = list(range(rows))
    together = choose_rows(scores, settings, sources(every))
    alone = [choose_rows(scores[n : n + 1], [settings[n]], sources([n]))[0] for n in every]
    assert together == alone
    rng.shuffle(every)
    shuffled = choose_rows(scores[every], [settings[n] for n in every], sources(every))
    assert shuffled == [together[n] for n in every]


def test_the_engine_says_only_what_is_allowed_and_heeds_bias(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    engine = Engine(make_model(), tokenizer, 4)
    allowed = frozenset(rng.sample(range(tokenizer.vocab_size), 3))
    hot = plain(max_tokens=20, temperature=2.0)
    cold = plain(max_tokens=20, temperature=0)
    for done in engine.complete([Request([5], s, allowed=allowed) for s in (hot, cold)] * 2):
        assert set(done.ids) <= allowed
    (text,) = tokenizer.encode("a")
    for name in ("a", str(text)):
        biased = plain(max_tokens=5, temperature=0, logit_bias={name: 100.0})
        assert engine.complete([Request([5], biased)])[0].ids == [text] * 5


def test_an_end_token_can_be_biased_by_name(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    engine = Engine(make_model(), tokenizer)
    settings = plain(max_tokens=20, logit_bias={"<|im_end|>": 100.0})
    (done,) = engine.complete([Request([5], settings)])
    assert (done.ids, done.finish_reason) == ([], "stop")


@pytest.mark.parametrize("name", ["two words here", "两个字符", "", "99999999"])
def test_a_bias_for_what_is_no_token_is_a_usage_error(
    make_model: Make, tokenizer: Tokenizer, name: str
) -> None:
    engine = Engine(make_model(), tokenizer)
    settings = plain(logit_bias={name: 1.0})
    for ask in (lambda: engine.check([1], settings), lambda: engine.complete([
        Request([1], settings)
    ])):  # fmt: skip
        with pytest.raises(UsageError, match="logit_bias"):
            ask()


def test_allowing_nothing_is_a_usage_error(make_model: Make, tokenizer: Tokenizer) -> None:
    engine = Engine(make_model(), tokenizer)
    for allowed in (frozenset(), frozenset({tokenizer.vocab_size, -1})):
        with pytest.raises(UsageError, match="allowed"):
            engine.complete([Request([1], plain(), allowed=allowed)])


def test_few_tokens_are_drawn_in_python_as_many_are_in_torch(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same number picks the same token."""
    for _ in range(300):
        steps = rng.sample(range(-4000, 4000), 60)
        scores = torch.tensor(steps)[None] / 1000
        settings = plain(
            temperature=rng.choice((1.0, 0.3, 2.0)), top_k=rng.randrange(1, 61),
            top_p=rng.choice((1.0, rng.uniform(0.01, 1))),
            min_p=rng.choice((0.0, rng.random() * 0.99)),
        )  # fmt: skip
        seed = rng.randrange(1 << 40)
        drawn = []
        for few in (0, 256):
            monkeypatch.setattr("chatbench.engine.sampling._FEW", few)
            source = torch.Generator().manual_seed(seed)
            drawn.append(choose_rows(scores, [settings], [source]))
        assert drawn[0] == drawn[1]
