"""Several threads, half-read streams, and chunks between which others speak."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest
import torch

from chatbench.engine.engine import Completion, Engine, Piece, Request
from chatbench.engine.turnstile import Turnstile
from chatbench.model.transformer import GPT
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import Tokenizer

Make = Callable[..., GPT]


def greedy(tokens: int) -> SamplingSettings:
    return SamplingSettings(temperature=0, max_tokens=tokens)


def some(rng: random.Random, tokenizer: Tokenizer, tokens: int) -> list[int]:
    return [rng.randrange(tokenizer.vocab_size) for _ in range(tokens)]


def test_threads_get_what_each_would_get_alone(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    engine = Engine(model, tokenizer, 2)
    asked = [[Request(some(rng, tokenizer, 20), greedy(8)) for _ in range(3)] for _ in range(4)]
    got: dict[int, list[list[int]]] = {}

    def ask(number: int) -> None:
        got[number] = [done.ids for done in engine.complete(asked[number])]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, requests in enumerate(asked):
        alone = Engine(model, tokenizer, 2).complete(requests)
        assert got[number] == [done.ids for done in alone]


def test_a_stream_left_half_read_ends_when_its_thread_asks_again(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    engine = Engine(model, tokenizer, 2)
    endless = SamplingSettings(
        temperature=0, max_tokens=60, logit_bias={str(n): -100.0 for n in tokenizer.stops}
    )
    old = engine.run([Request(some(rng, tokenizer, 20), endless, n) for n in range(3)])
    next(old)
    request = Request(some(rng, tokenizer, 20), greedy(10))
    (done,) = engine.complete([request])
    assert done.ids == Engine(model, tokenizer, 1).complete([request])[0].ids
    rest = [event for event in old if isinstance(event, Completion)]
    assert {event.key for event in rest} == {0, 1, 2}
    assert all(event.finish_reason == "cancelled" for event in rest)
    assert engine.complete([request])[0].ids == done.ids


def test_explaining_waits_for_no_stream_of_its_own_thread(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    engine = Engine(make_model(), tokenizer)
    request = Request(some(rng, tokenizer, 20), greedy(10))
    whole = engine.complete([request])[0].ids
    stream = engine.run([request])
    first = next(stream)
    assert len(engine.explain([1, 2, 3], 1, 0)) == 2
    (done,) = (event for event in [first, *stream] if isinstance(event, Completion))
    assert done.ids == whole


def test_an_error_lets_the_next_one_in(make_model: Make, tokenizer: Tokenizer) -> None:
    engine = Engine(make_model(), tokenizer)

    def broken() -> bool:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        list(engine.run([Request([1], greedy(3))], broken))
    found = []
    thread = threading.Thread(
        target=lambda: found.extend(engine.complete([Request([1], greedy(3))]))
    )
    thread.start()
    thread.join(20)
    assert len(found) == 1


def test_a_turnstile_lets_one_thread_in_at_a_time() -> None:
    turnstile, inside, most = Turnstile(), [0], [0]

    def visit() -> None:
        for _ in range(50):
            mine = turnstile.enter()
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            inside[0] -= 1
            turnstile.leave(mine)

    threads = [threading.Thread(target=visit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_live_rows_speak_between_the_chunks_of_a_long_prompt(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    size = tokenizer.vocab_size
    (letter,) = tokenizer.encode("a")
    logits = torch.zeros(size, size)
    logits[:, letter] = 9.0
    engine = Engine(make_chain(logits), tokenizer, 2, chunk=8)
    requests = [Request([5], greedy(4), 0), Request([5], greedy(30), 1),
                Request(some(rng, tokenizer, 64), greedy(3), 2)]  # fmt: skip
    events = list(engine.run(requests))
    order = [event.key for event in events if isinstance(event, Piece)]
    between = order[: order.index(2)].count(1)
    assert between >= 4 + 6


@pytest.mark.parametrize("after", [0, 1, 3])
def test_cancelling_is_heard_between_chunks(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random, after: int
) -> None:
    engine = Engine(make_model(), tokenizer, 2, chunk=10)
    asked = iter(range(100))
    steps = []
    forward = engine._forward
    engine._forward = lambda ids, first: steps.append(1) or forward(ids, first)  # type: ignore
    request = Request(some(rng, tokenizer, 90), greedy(5))
    (done,) = engine.run([request], cancelled=lambda: next(asked) >= after)
    assert isinstance(done, Completion)
    assert (done.finish_reason, done.ids, len(steps)) == ("cancelled", [], after)
    assert done.first_seconds == done.seconds
