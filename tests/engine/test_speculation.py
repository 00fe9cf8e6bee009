"""Guesses from the text so far change how fast a reply comes, not what it says."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from chatbench.engine.engine import Engine, Request
from chatbench.engine.speculation import Cost, Lookup
from chatbench.model.transformer import GPT
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import Tokenizer

Make = Callable[..., GPT]


def settings(speculate: str, **changes: Any) -> SamplingSettings:
    return SamplingSettings(
        **{"temperature": 0, "max_tokens": 60, "speculate": speculate, **changes}
    )


def repetitive(rng: random.Random, tokenizer: Tokenizer) -> list[int]:
    phrase = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(3, 8))]
    return (phrase * 6)[: rng.randrange(6, 30)]


def echo(make_chain: Make, tokenizer: Tokenizer, rng: random.Random, sharp: float) -> GPT:
    """Each token has a likely successor, so that replies run in circles."""
    size = tokenizer.vocab_size
    source = torch.Generator().manual_seed(rng.randrange(1 << 30))
    logits = torch.randn(size, size, generator=source)
    ring = rng.sample([n for n in range(size) if n not in tokenizer.stops], 6)
    for before, after in zip(ring, ring[1:] + ring[:1], strict=True):
        logits[before, after] += sharp
    logits[:, sorted(tokenizer.stops)] = -30.0
    logits[[n for n in range(size) if n not in ring], ring[0]] += sharp
    return make_chain(logits, context=200)


@pytest.mark.parametrize("speculate", ["auto", "on"])
def test_greedy_with_guesses_is_greedy(
    make_model: Make, make_chain: Make, tokenizer: Tokenizer, rng: random.Random, speculate: str
) -> None:
    for model in (make_model(), echo(make_chain, tokenizer, rng, 20.0)):
        for _ in range(4):
            ids = repetitive(rng, tokenizer)
            stop = [tokenizer.decode([rng.randrange(tokenizer.vocab_size)])]
            extra = {"stop": stop, "repetition_penalty": rng.choice((1.0, 1.2))}
            guessed, plain = (
                Engine(model, tokenizer, 2).complete([Request(ids, settings(how, **extra))])[0]
                for how in (speculate, "off")
            )
            assert guessed.ids == plain.ids
            assert (guessed.text, guessed.finish_reason) == (plain.text, plain.finish_reason)


def test_guesses_come_true_where_text_repeats(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    engine = Engine(echo(make_chain, tokenizer, rng, 20.0), tokenizer)
    steps = []
    forward = engine._forward
    engine._forward = lambda ids, first: steps.append(1) or forward(ids, first)  # type: ignore
    (done,) = engine.complete([Request([1], settings("on"))])
    assert len(done.ids) == 60
    assert engine.cost.right > 30
    assert len(steps) == 60 - engine.cost.right


def test_sampled_rows_draw_the_tokens_they_would_draw_without_guesses(
    make_model: Make, make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = echo(make_chain, tokenizer, rng, 7.0)
    for _ in range(6):
        ids = repetitive(rng, tokenizer)
        drawn = {
            "temperature": rng.uniform(0.6, 1.3), "seed": rng.randrange(1 << 40),
            "top_k": rng.choice((0, 20)), "top_p": rng.choice((0.9, 1.0)),
            "frequency_penalty": rng.choice((0.0, 0.1)), "logprobs": 1,
        }  # fmt: skip
        guessed, plain = (
            Engine(model, tokenizer, 2).complete([Request(ids, settings(how, **drawn))])[0]
            for how in ("on", "off")
        )
        assert guessed.ids == plain.ids
        assert [entry.id for entry in guessed.logprobs or []] == guessed.ids


def test_sampled_rows_with_guesses_follow_the_distribution(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    """The second token after a known one, guessed each time from the prompt, by chi-square."""
    size = tokenizer.vocab_size
    logits = torch.full((size, size), -60.0)
    logits[5, [7, 8, 9, 10]] = torch.tensor([0.5, 1.0, 0.0, -1.0])
    logits[[7, 8, 9, 10], 5] = 5.0
    engine = Engine(make_chain(logits), tokenizer, 16)
    even = settings("on", temperature=1.0, top_k=0, top_p=1.0, max_tokens=3)
    counts = dict.fromkeys((7, 8, 9, 10), 0)
    # A prompt in which 7 followed: after "5" is said, 7 is the guess.
    for done in engine.complete([Request([8, 5, 7, 5, 8], even)] * 2000):
        counts[done.ids[1]] += 1
    assert engine.cost.guessed > 0
    chances = torch.tensor([0.5, 1.0, 0.0, -1.0], dtype=torch.float64).softmax(0).tolist()
    expected = [2000 * chance for chance in chances]
    # Three degrees of freedom: above 42 less than once in a hundred million runs.
    found = zip(counts.values(), expected, strict=True)
    assert sum((c - e) ** 2 / e for c, e in found) < 42


def test_rows_with_and_without_guesses_share_a_batch(
    make_model: Make, make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    for model in (make_model(), echo(make_chain, tokenizer, rng, 9.0)):
        requests = [
            Request(
                repetitive(rng, tokenizer),
                settings(
                    rng.choice(("on", "off", "auto")), temperature=rng.choice((0, 0.8)),
                    seed=rng.randrange(1 << 40), max_tokens=rng.randrange(1, 90),
                ),
            )
            for _ in range(7)
        ]  # fmt: skip
        together = Engine(model, tokenizer, 3, chunk=8).complete(requests)
        for request, done in zip(requests, together, strict=True):
            (alone,) = Engine(model, tokenizer, 1).complete([
                request._replace(sampling=settings("off", **{
                    name: getattr(request.sampling, name)
                    for name in ("temperature", "seed", "max_tokens")
                }))
            ])  # fmt: skip
            assert done.ids == alone.ids


def test_guesses_stay_within_the_context(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = echo(make_chain, tokenizer, rng, 20.0)
    requests = [Request([1] * n, settings("on", max_tokens=500)) for n in (3, 150, 199)]
    for done in Engine(model, tokenizer, 3).complete(requests):
        assert done.prompt_tokens + len(done.ids) == 200


def test_a_sampled_row_takes_no_guesses_unasked(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    engine = Engine(echo(make_chain, tokenizer, rng, 20.0), tokenizer)
    engine.complete([Request([1], settings("auto", temperature=0.5))])
    assert engine.cost.guessed == 0


def test_rounding_that_differs_by_width_takes_no_guesses_unasked(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    engine = Engine(echo(make_chain, tokenizer, rng, 20.0).bfloat16(), tokenizer)
    engine.complete([Request([1], settings("auto"))])
    assert engine.cost.guessed == 0


# ---- the guesses


def test_a_guess_is_what_followed_the_longest_known_end(rng: random.Random) -> None:
    for _ in range(200):
        ids = [rng.randrange(4) for _ in range(rng.randrange(40))]
        lookup = Lookup(ids[:10])
        lookup.extend(ids[10:])
        guess = lookup.guess(3)
        wanted: list[int] = []
        for size in (3, 2):
            ends = [e for e in range(size, len(ids)) if ids[e - size : e] == ids[-size:]]
            if ends and len(ids) >= size and not wanted:
                wanted = (ids[ends[-1] :] * 3)[:3]
        assert guess == wanted


def test_the_width_follows_success_and_poor_guesses_rest() -> None:
    lookup = Lookup([1, 2] * 30)
    assert lookup.guess(16) == [1, 2, 1]
    assert lookup.guess(1) == [1]
    assert lookup.guess(-1) == []
    lookup = Lookup([*range(40), 0, 1, 2])
    widths = []
    for right in (3, 7, 0, 0):
        guess = lookup.guess(16)
        widths.append(len(guess))
        lookup.judge(len(guess), right)
    assert widths == [3, 7, 15, 7]
    for _ in range(40):
        lookup.judge(4, 0)
    assert lookup.guess(16) == []
    assert lookup.guess(16, steadfast=True) != []
    for _ in range(20):
        lookup.judge(4, 0)


def test_guesses_pay_when_they_bring_more_than_they_cost() -> None:
    for right, several, pays in ((3, 2.0, True), (0, 2.0, False), (3, 5.0, False), (1, 1.1, True)):
        cost = Cost()
        assert cost.pays(3)
        for _ in range(20):
            cost.step(1, 1.0)
            cost.step(4, several)
            cost.judge(3, right)
        assert cost.pays(3) is pays
        # Now and then it is tried again.
        assert any(cost.pays(3) for _ in range(100))
