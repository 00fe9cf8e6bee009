"""Beginnings taken over: how many tokens are, and that replies are those of a fresh engine."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from chatbench.engine.cache import KVCache, Saved
from chatbench.engine.engine import Completion, Engine, Request
from chatbench.engine.prefixes import WORTH, PrefixStore, common
from chatbench.model.transformer import GPT
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import Tokenizer

Make = Callable[..., GPT]


def settings(rng: random.Random, **changes: Any) -> SamplingSettings:
    return SamplingSettings(
        **{
            "temperature": rng.choice((0, 0.8)), "max_tokens": rng.randrange(1, 9),
            "seed": rng.randrange(1 << 40), "repetition_penalty": rng.choice((1.0, 1.2)),
            **changes,
        }
    )  # fmt: skip


def some(rng: random.Random, tokenizer: Tokenizer, tokens: int) -> list[int]:
    return [rng.randrange(tokenizer.vocab_size) for _ in range(tokens)]


def said(done: Completion) -> tuple[list[int], str, str]:
    return done.ids, done.text, done.finish_reason


def fresh(model: GPT, tokenizer: Tokenizer, request: Request) -> tuple[list[int], str, str]:
    return said(Engine(model, tokenizer, 1).complete([request])[0])


def test_common_counts_equal_leading_ids(rng: random.Random) -> None:
    for _ in range(300):
        ours, theirs = ([rng.randrange(2) for _ in range(rng.randrange(9))] for _ in "ab")
        theirs = ours[: rng.randrange(9)] + theirs
        slow = 0
        while slow < min(len(ours), len(theirs)) and ours[slow] == theirs[slow]:
            slow += 1
        assert common(ours, theirs) == slow


@pytest.mark.parametrize("max_rows", [1, 3, 16])
@pytest.mark.parametrize("chunk", [8, 64])
def test_requests_with_one_beginning_compute_it_once(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random, max_rows: int, chunk: int
) -> None:
    model = make_model()
    for shared in (WORTH, 40, 60):
        opening = some(rng, tokenizer, shared)
        requests = [
            Request([*opening, *some(rng, tokenizer, rng.randrange(1, 8))], settings(rng))
            for _ in range(6)
        ]
        together = Engine(model, tokenizer, max_rows, chunk).complete(requests)
        assert [done.cached_tokens >= shared for done in together] == [False] + [True] * 5
        assert [said(done) for done in together] == [fresh(model, tokenizer, r) for r in requests]


def test_samples_of_one_prompt_read_it_once(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    ids = some(rng, tokenizer, 30)
    requests = [Request(ids, settings(rng)) for _ in range(5)]
    together = Engine(model, tokenizer, 8).complete(requests)
    assert [done.cached_tokens for done in together] == [0] + [29] * 4
    assert [said(done) for done in together] == [fresh(model, tokenizer, r) for r in requests]


def test_every_split_of_a_prompt_gives_the_same_reply(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    ids = some(rng, tokenizer, 24)
    request = Request(ids, settings(rng, logprobs=2))
    (cold,) = Engine(model, tokenizer, 1).complete([request])
    for at in range(1, 24):
        other = [*ids[:at], (ids[at] + 1) % tokenizer.vocab_size]
        engine = Engine(model, tokenizer, 2)
        engine.complete([Request(other, settings(rng))])
        (warm,) = engine.complete([request])
        assert warm.cached_tokens == at
        assert said(warm) == said(cold)
        for one, two in zip(warm.logprobs or [], cold.logprobs or [], strict=True):
            assert one.logprob == pytest.approx(two.logprob, abs=1e-9)


@pytest.mark.parametrize("max_rows", [1, 4])
def test_conversations_by_turns_each_go_on_from_their_own(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random, max_rows: int
) -> None:
    model = make_model(context=400)
    engine = Engine(model, tokenizer, max_rows)
    opening = some(rng, tokenizer, 20)
    histories = [[*opening, *some(rng, tokenizer, 30)] for _ in range(3)]
    held = [0, 0, 0]
    for turn in range(4):
        for number, history in enumerate(histories):
            request = Request(list(history), settings(rng))
            (done,) = engine.complete([request])
            assert done.cached_tokens >= held[number]
            assert (turn == 0) or held[number] >= 50
            assert said(done) == fresh(model, tokenizer, request)
            held[number] = len(history) + max(0, len(done.ids) - 1)
            history += [*done.ids, *some(rng, tokenizer, 5)]


def test_a_conversation_outlives_a_batch(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    engine = Engine(model, tokenizer, 3)
    history = some(rng, tokenizer, 40)
    engine.complete([Request(history, settings(rng))])
    engine.complete([Request(some(rng, tokenizer, 10), settings(rng)) for _ in range(7)])
    request = Request([*history, 5], settings(rng))
    (done,) = engine.complete([request])
    assert done.cached_tokens >= 40
    assert said(done) == fresh(model, tokenizer, request)


def test_random_histories_in_random_runs_are_answered_as_by_fresh_engines(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    engine = Engine(model, tokenizer, 3, chunk=9)
    known = [some(rng, tokenizer, 30) for _ in range(2)]
    for _ in range(12):
        requests = []
        for _ in range(rng.choice((1, 1, 2, 5))):
            base = rng.choice(known)
            ids = [*base[: rng.randrange(1, len(base))], *some(rng, tokenizer, rng.randrange(1, 9))]
            requests.append(Request(ids[:90], settings(rng)))
        rounds = iter(range(1000))
        if rng.random() < 0.3:
            stop = rng.randrange(6)
            list(engine.run(requests, lambda rounds=rounds, stop=stop: next(rounds) >= stop))
            continue
        for request, done in zip(requests, engine.complete(requests), strict=True):
            assert said(done) == fresh(model, tokenizer, request)
            known.append([*request.ids, *done.ids])


def test_forgetting_is_for_changed_weights(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    engine = Engine(model, tokenizer)
    request = Request(some(rng, tokenizer, 40), settings(rng))
    engine.complete([request])
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.7)
    engine.forget()
    (done,) = engine.complete([request])
    assert done.cached_tokens == 0
    assert said(done) == fresh(model, tokenizer, request)


def test_a_row_interrupted_while_it_is_read_claims_nothing_it_has_not(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    engine = Engine(model, tokenizer, 2, chunk=10)
    request = Request(some(rng, tokenizer, 50), settings(rng))
    calls = iter(range(100))
    forward = engine._forward

    def failing(ids: list[list[int]], first: int) -> torch.Tensor:
        found = forward(ids, first)
        if next(calls) == 2:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_forward", failing)
        with pytest.raises(KeyboardInterrupt):
            engine.complete([request])
    (done,) = engine.complete([request])
    assert done.cached_tokens == 20
    assert said(done) == fresh(model, tokenizer, request)


# ---- the store


def stored(make_model: Make) -> KVCache:
    model = make_model()
    return KVCache(model.config, 1, torch.device("cpu"), torch.float64)


def test_the_store_is_bounded_and_lets_the_oldest_used_go(make_model: Make) -> None:
    cache, store = stored(make_model), PrefixStore(30)

    def saved(tokens: int) -> Saved:
        return cache.saved(0, tokens)

    store.put([1] * 10, saved(10))
    store.put([2] * 10, saved(10))
    assert store.best([1] * 12)[0] == 10
    store.put([3] * 15, saved(15))
    assert store.tokens <= 30
    assert [store.best([n] * 20)[0] for n in (1, 2, 3)] == [10, 0, 15]
    store.put([4] * 31, saved(31))
    assert store.best([4] * 31) == (0, None)


def test_a_longer_beginning_takes_the_place_of_its_own_beginning(make_model: Make) -> None:
    cache, store = stored(make_model), PrefixStore(100)
    store.put([1, 2, 3], cache.saved(0, 3))
    store.put([1, 2, 3, 4], cache.saved(0, 4))
    assert store.tokens == 4
    assert store.covers([1, 2])
    assert not store.covers([1, 3])


def test_what_was_saved_comes_back_as_it_was(make_model: Make, rng: random.Random) -> None:
    cache = stored(make_model)
    for layer in cache.layers(0, 1):
        layer.keys.normal_()
        layer.values.normal_()
    before = [(k.clone(), v.clone()) for k, v, *_ in cache.layers(0, 1)]
    saved = cache.saved(0, 20)
    for layer in cache.layers(0, 1):
        layer.keys.zero_()
        layer.values.zero_()
    cache.restore(0, saved, 12)
    assert cache.lengths == [12]
    for (keys, values), layer in zip(before, cache.layers(0, 1), strict=True):
        assert torch.equal(layer.keys[0, :12], keys[0, :12])
        assert torch.equal(layer.values[0, :12], values[0, :12])
        assert not layer.keys[0, 12:].any()
