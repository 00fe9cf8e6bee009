"""Engine: every fast path gives what one request gives alone, without a cache, token by token."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch

from chatbench.engine.engine import Completion, Engine, Piece, Request
from chatbench.engine.sampling import choose
from chatbench.errors import UsageError
from chatbench.model.transformer import GPT
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import Tokenizer

Make = Callable[..., GPT]


def greedy(**changes: Any) -> SamplingSettings:
    return SamplingSettings(**{"temperature": 0, "max_tokens": 20, **changes})


def sampled(rng: random.Random, **changes: Any) -> SamplingSettings:
    """Settings that differ from row to row, with a seed of their own."""
    return SamplingSettings(
        **{
            "temperature": rng.uniform(0.5, 2), "top_k": rng.choice((0, 5, 50)),
            "top_p": rng.choice((1.0, 0.8)), "max_tokens": rng.randrange(1, 25),
            "repetition_penalty": rng.choice((1.0, 1.3)), "seed": rng.randrange(1 << 40),
            **changes,
        }
    )  # fmt: skip


def prompt_of(rng: random.Random, tokenizer: Tokenizer, tokens: int | None = None) -> list[int]:
    size = tokens or rng.randrange(1, 40)
    return [rng.randrange(tokenizer.vocab_size) for _ in range(size)]


@torch.no_grad()
def slow(model: GPT, tokenizer: Tokenizer, request: Request) -> list[int]:
    """The whole row through the model for every token."""
    settings, ids = request.sampling, list(request.ids)
    source = torch.Generator().manual_seed(settings.seed or 0)
    while len(ids) < min(len(request.ids) + settings.max_tokens, model.config.context):
        logits = model.logits(model(torch.tensor([ids])))[0, -1]
        number = choose(logits, settings, source, torch.tensor(sorted(set(ids))))
        if number in (tokenizer.turn_end, tokenizer.end_of_text):
            break
        ids.append(number)
    return ids[len(request.ids) :]


def key(done: Completion) -> tuple[list[int], str, str]:
    return done.ids, done.text, done.finish_reason


def alone(model: GPT, tokenizer: Tokenizer, request: Request) -> Completion:
    """What a new engine with room for one row says."""
    (done,) = Engine(model, tokenizer, max_rows=1).complete([request])
    return done


def split(events: Iterable[Piece | Completion]) -> tuple[dict[int, str], dict[int, Completion]]:
    """The streamed text and the completion of each key."""
    shown: dict[int, str] = {}
    done: dict[int, Completion] = {}
    for event in events:
        assert event.key not in done
        if isinstance(event, Piece):
            assert event.text
            shown[event.key] = shown.get(event.key, "") + event.text
        else:
            done[event.key] = event
    return shown, done


# ---- cache and batch


def test_greedy_tokens_are_those_without_a_cache(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    for _ in range(5):
        request = Request(prompt_of(rng, tokenizer), greedy())
        assert alone(model, tokenizer, request).ids == slow(model, tokenizer, request)


def test_sampled_tokens_are_those_without_a_cache(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    for _ in range(5):
        request = Request(prompt_of(rng, tokenizer), sampled(rng))
        assert alone(model, tokenizer, request).ids == slow(model, tokenizer, request)


@pytest.mark.parametrize("settings", [lambda rng: greedy(), sampled], ids=["greedy", "sampled"])
@pytest.mark.parametrize("max_rows", [1, 3, 16])
def test_rows_that_join_and_leave_say_what_each_says_alone(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random, max_rows: int, settings: Any
) -> None:
    model = make_model()
    requests = [Request(prompt_of(rng, tokenizer), settings(rng), key=n) for n in range(8)]
    together = Engine(model, tokenizer, max_rows).complete(requests)
    for request, done in zip(requests, together, strict=True):
        assert key(done) == key(alone(model, tokenizer, request))


def test_completions_keep_the_order_and_the_keys_of_the_requests(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    requests = [
        Request(prompt_of(rng, tokenizer), greedy(max_tokens=length), key=name)
        for name, length in ((7, 9), (7, 1), (3, 5))
    ]
    done = Engine(make_model(), tokenizer, 2).complete(iter(requests))
    assert [d.key for d in done] == [7, 7, 3]
    assert [d.prompt_tokens for d in done] == [len(r.ids) for r in requests]


@pytest.mark.parametrize("chunk", [1, 7, 16, 64])
@pytest.mark.parametrize("settings", [lambda rng: greedy(max_tokens=9), sampled])
def test_many_long_prompts_are_read_in_parts(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random, chunk: int, settings: Any
) -> None:
    model = make_model()
    lengths = (40, 3, 30, 1, 64, 20, 95)
    requests = [Request(prompt_of(rng, tokenizer, n), settings(rng)) for n in lengths]
    together = Engine(model, tokenizer, rng.choice((2, 3, 16)), chunk).complete(requests)
    assert list(map(key, together)) == [key(alone(model, tokenizer, r)) for r in requests]


def test_rows_that_outgrow_the_first_capacity_go_on(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model(context=300)
    requests = [Request(prompt_of(rng, tokenizer, n), greedy(max_tokens=60)) for n in (100, 5, 127)]
    together = Engine(model, tokenizer).complete(requests)
    assert [done.ids for done in together] == [slow(model, tokenizer, r) for r in requests]


# ---- prefix reuse


def test_a_conversation_is_read_on_from_where_it_stopped(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    engine = Engine(model, tokenizer, 4)
    history = prompt_of(rng, tokenizer, 15)
    (first,) = engine.complete([Request(history, sampled(rng, max_tokens=6))])
    assert first.cached_tokens == 0
    for _ in range(3):
        held = len(history) + len(first.ids) - 1
        history = [*history, *first.ids, *prompt_of(rng, tokenizer, 3)]
        request = Request(history, sampled(rng, max_tokens=6))
        (first,) = engine.complete([request])
        assert first.cached_tokens >= held
        assert key(first) == key(alone(model, tokenizer, request))


def test_an_edited_history_is_reused_up_to_the_edit(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    engine = Engine(model, tokenizer, 4)
    history = prompt_of(rng, tokenizer, 30)
    engine.complete([Request(history, greedy())])
    at = rng.randrange(1, 29)
    history[at] = (history[at] + 1) % tokenizer.vocab_size
    (done,) = engine.complete([Request(history, greedy())])
    assert done.cached_tokens == at
    assert key(done) == key(alone(model, tokenizer, Request(history, greedy())))


def test_the_same_prompt_again_and_a_shorter_one_are_reused_but_for_one_token(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    engine = Engine(model, tokenizer)
    history = prompt_of(rng, tokenizer, 20)
    engine.complete([Request(history, greedy())])
    for ids in (history, history[:9], history):
        (done,) = engine.complete([Request(ids, greedy())])
        assert done.cached_tokens > 0
        assert key(done) == key(alone(model, tokenizer, Request(ids, greedy())))


def test_nothing_is_taken_from_a_reply_that_was_abandoned_or_a_batch(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    engine = Engine(model, tokenizer, 3)
    history = prompt_of(rng, tokenizer, 20)
    cold = key(alone(model, tokenizer, Request(history, greedy())))
    engine.complete([Request(history, greedy())])
    abandoned = engine.run([Request(prompt_of(rng, tokenizer, 20), greedy(max_tokens=50))])
    next(abandoned)
    abandoned.close()
    assert key(engine.complete([Request(history, greedy())])[0]) == cold
    engine.complete(Request(prompt_of(rng, tokenizer), sampled(rng)) for _ in range(5))
    assert key(engine.complete([Request(history, greedy())])[0]) == cold


# ---- streams, stops and ends


def path_through(rng: random.Random, tokenizer: Tokenizer, tokens: int) -> list[int]:
    """Distinct tokens, whole and broken characters mixed."""
    control = (tokenizer.turn_end, tokenizer.end_of_text, tokenizer.turn_start)
    return rng.sample([n for n in range(tokenizer.vocab_size) if n not in control], tokens)


def chain_along(make_chain: Make, tokenizer: Tokenizer, path: list[int], **options: Any) -> GPT:
    """A model that says `path` after its first token."""
    logits = torch.zeros(tokenizer.vocab_size, tokenizer.vocab_size)
    for before, after in pairwise(path):
        logits[before, after] = 20.0
    return make_chain(logits, **options)


def expected_text(tokenizer: Tokenizer, ids: list[int], stops: list[str]) -> str:
    """All text so far, decoded anew after every token, until a stop string is in it."""
    text = ""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count])
        found = [text.index(stop) for stop in stops if stop in text]
        if found:
            return text[: min(found)]
    return text


def test_pieces_make_up_the_text_of_the_completion(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    model = make_model()
    requests = [
        Request(prompt_of(rng, tokenizer), sampled(rng, stop=["e", "小"]), n) for n in range(6)
    ]
    shown, done = split(Engine(model, tokenizer, 3).run(requests))
    assert done.keys() == set(range(6))
    for number, completion in done.items():
        assert shown.get(number, "") == completion.text


def test_half_characters_are_never_shown(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    text = "茶🍵é"
    ids = [tokenizer.encode(chr(byte))[0] for byte in b"abc"]
    alphabet = {bytes_: n for n, bytes_ in enumerate(tokenizer.token_bytes) if len(bytes_) == 1}
    path = [ids[0], *(alphabet[bytes([byte])] for byte in text.encode())]
    if len(set(path)) < len(path):
        pytest.fail("the bytes of the sample text are not distinct")
    engine = Engine(chain_along(make_chain, tokenizer, path), tokenizer)
    settings = greedy(max_tokens=len(path) - 1)
    events = list(engine.run([Request(path[:1], settings)]))
    assert [event.text for event in events[:-1]] == list(text)
    cut = engine.complete([Request(path[:1], greedy(max_tokens=5))])
    assert cut[0].text == "茶"


@pytest.mark.parametrize("attempt", range(15))
def test_a_stop_string_is_cut_wherever_tokens_part_it(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random, attempt: int
) -> None:
    path = path_through(rng, tokenizer, 40)
    text = tokenizer.decode(path[1:])
    stops = []
    for _ in range(rng.choice((1, 3))):
        begin = rng.randrange(len(text) - 1)
        stops.append(text[begin : begin + rng.choice((1, 2, 5, 12))])
    engine = Engine(chain_along(make_chain, tokenizer, path), tokenizer)
    settings = greedy(max_tokens=len(path) - 1, stop=stops)
    shown, done = split(engine.run([Request(path[:1], settings)]))
    wanted = expected_text(tokenizer, path[1:], stops)
    assert done[0].text == wanted
    assert shown.get(0, "") == wanted
    assert done[0].finish_reason == "stop"
    assert not any(stop in done[0].text for stop in stops)


def test_the_beginning_of_a_stop_string_is_shown_when_it_comes_to_nothing(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    path = path_through(rng, tokenizer, 20)
    text = tokenizer.decode(path[1:])
    stops = [text[-1] + "never said", text[3:6] + "never said", ""]
    engine = Engine(chain_along(make_chain, tokenizer, path), tokenizer)
    settings = greedy(max_tokens=len(path) - 1, stop=stops)
    shown, done = split(engine.run([Request(path[:1], settings)]))
    assert shown[0] == done[0].text == text
    assert done[0].finish_reason == "length"


def test_what_was_held_back_for_a_stop_string_is_shown_when_the_reply_ends(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    path = [tokenizer.encode(letter)[0] for letter in "abc"]
    model = chain_along(make_chain, tokenizer, [*path, tokenizer.turn_end])
    shown, done = split(
        Engine(model, tokenizer).run([Request(path[:1], greedy(stop=["cd", "bcd"]))])
    )
    assert shown[0] == done[0].text == "bc"


@pytest.mark.parametrize("end", ["turn_end", "end_of_text"])
def test_each_end_token_ends_the_reply_and_is_not_part_of_it(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random, end: str
) -> None:
    path = path_through(rng, tokenizer, 10)
    model = chain_along(make_chain, tokenizer, [*path, getattr(tokenizer, end), path[0]])
    (done,) = Engine(model, tokenizer).complete([Request(path[:1], greedy())])
    assert done.finish_reason == "stop"
    assert done.ids == path[1:]
    assert done.text == tokenizer.decode(path[1:])


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_reply_of_max_tokens_ends_for_its_length(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random, length: int
) -> None:
    path = path_through(rng, tokenizer, 11)
    model = chain_along(make_chain, tokenizer, path)
    (done,) = Engine(model, tokenizer).complete([Request(path[:1], greedy(max_tokens=length))])
    assert (done.finish_reason, done.ids) == ("length", path[1 : length + 1])


def test_a_reply_ends_where_the_context_does(
    make_model: Make, make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    path = path_through(rng, tokenizer, 50)
    model = chain_along(make_chain, tokenizer, path, context=32)
    requests = [Request(path[:n], greedy(max_tokens=500)) for n in (31, 20, 1)]
    for request, done in zip(requests, Engine(model, tokenizer, 2).complete(requests), strict=True):
        assert done.finish_reason == "length"
        assert [*request.ids, *done.ids] == path[:32]


def test_cancelling_ends_every_unfinished_row_with_what_it_has(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    path = path_through(rng, tokenizer, 40)
    engine = Engine(chain_along(make_chain, tokenizer, path), tokenizer, 2)
    settings = [greedy(max_tokens=3), greedy(max_tokens=30)]
    requests = [Request(path[:1], s, n) for n, s in enumerate(settings)]
    steps = iter(range(100))
    shown, done = split(engine.run(requests, cancelled=lambda: next(steps) >= 5))
    assert (done[0].finish_reason, done[1].finish_reason) == ("length", "cancelled")
    assert done[1].ids == path[1 : 1 + len(done[1].ids)]
    assert 0 < len(done[1].ids) < 30
    assert done[1].text == shown.get(1, "")


def test_cancelling_ends_the_requests_that_still_wait(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    path = path_through(rng, tokenizer, 40)
    engine = Engine(chain_along(make_chain, tokenizer, path), tokenizer, 1)
    requests = [Request(path[:1], greedy(max_tokens=30), n) for n in range(4)]
    _, done = split(engine.run(requests, cancelled=lambda: True))
    assert [done[n].finish_reason for n in range(4)] == ["cancelled"] * 4
    assert sum(len(d.ids) for d in done.values()) <= 4


# ---- seeds


def test_a_seed_repeats_a_reply_and_another_changes_it(
    make_chain: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    logits = torch.zeros(tokenizer.vocab_size, tokenizer.vocab_size)
    logits[:, [tokenizer.turn_end, tokenizer.end_of_text]] = -50.0
    engine = Engine(make_chain(logits), tokenizer, 4)
    seed = rng.randrange(1 << 40)

    def said(number: int | None) -> list[int]:
        even = SamplingSettings(temperature=1.0, top_k=0, top_p=1.0, max_tokens=30, seed=number)
        return engine.complete([Request([5], even)])[0].ids

    assert said(seed) == said(seed)
    assert said(seed) != said(seed + 1)
    assert said(None) != said(None)


def test_rows_without_a_seed_differ_from_their_first_token_on(
    make_chain: Make, tokenizer: Tokenizer
) -> None:
    size = tokenizer.vocab_size
    engine = Engine(make_chain(torch.zeros(size, size)), tokenizer)
    even = SamplingSettings(temperature=1.0, top_k=0, top_p=1.0, max_tokens=1)
    done = engine.complete([Request([5], even)] * 12)
    assert len({tuple(d.ids) for d in done}) > 3


# ---- what cannot be answered


def test_an_empty_prompt_and_one_that_fills_the_context_are_usage_errors(
    make_model: Make, tokenizer: Tokenizer, rng: random.Random
) -> None:
    engine = Engine(make_model(context=32), tokenizer)
    assert engine.complete([Request(prompt_of(rng, tokenizer, 31), greedy())])
    for ids, words in (([], "empty"), (prompt_of(rng, tokenizer, 32), "context is 32")):
        with pytest.raises(UsageError, match=words) as caught:
            engine.complete([Request([1], greedy()), Request(ids, greedy())])
        assert caught.value.exit_code == 2


def test_no_requests_give_no_events(make_model: Make, tokenizer: Tokenizer) -> None:
    assert Engine(make_model(), tokenizer).complete([]) == []


def test_rows_of_the_table_that_stand_for_no_token_are_never_said(
    make_chain: Make, tokenizer: Tokenizer
) -> None:
    padded = tokenizer.vocab_size + 30
    logits = torch.zeros(padded, padded)
    logits[:, tokenizer.vocab_size :] = 50.0
    engine = Engine(make_chain(logits), tokenizer)
    hot = SamplingSettings(temperature=2.0, top_k=0, top_p=1.0, max_tokens=20)
    for done in engine.complete([Request([1], hot), Request([1], greedy())]):
        assert all(number < tokenizer.vocab_size for number in done.ids)
