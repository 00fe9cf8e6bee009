"""KVCache: a model that reads through it computes what it computes without."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from chatbench.engine.cache import KVCache
from chatbench.model.transformer import GPT

CPU = torch.device("cpu")
Make = Callable[..., GPT]


def cache_for(model: GPT, rows: int = 1) -> KVCache:
    return KVCache(model.config, rows, CPU, torch.float64)


def ids_of(rng: random.Random, model: GPT, tokens: int) -> list[int]:
    return [rng.randrange(model.config.vocab_size) for _ in range(tokens)]


@torch.no_grad()
def read(model: GPT, cache: KVCache, rows: list[list[int]], first: int = 0) -> Tensor:
    """Append these tokens, as many to each row, and count them."""
    cache.reserve(max(cache.lengths[first : first + len(rows)]) + len(rows[0]))
    hidden = model(torch.tensor(rows), cache=cache.layers(first, len(rows)))
    for row, ids in enumerate(rows, first):
        cache.lengths[row] += len(ids)
    return model.logits(hidden)


@torch.no_grad()
def uncached(model: GPT, ids: list[int]) -> Tensor:
    return model.logits(model(torch.tensor([ids])))


def test_logits_are_those_without_a_cache_at_every_split(
    make_model: Make, rng: random.Random
) -> None:
    model = make_model()
    ids = ids_of(rng, model, 20)
    wanted = uncached(model, ids)
    for at in range(1, len(ids)):
        cache = cache_for(model)
        parts = [read(model, cache, [part]) for part in (ids[:at], ids[at:])]
        torch.testing.assert_close(torch.cat(parts, 1), wanted)


def test_logits_are_those_without_a_cache_for_any_chunks(
    make_model: Make, rng: random.Random
) -> None:
    model = make_model()
    ids = ids_of(rng, model, 60)
    cache, parts, at = cache_for(model), [], 0
    while at < len(ids):
        end = min(len(ids), at + rng.choice((1, 1, 3, 10)))
        parts.append(read(model, cache, [ids[at:end]]))
        at = end
    torch.testing.assert_close(torch.cat(parts, 1), uncached(model, ids))


def test_rows_of_different_lengths_do_not_feel_each_other(
    make_model: Make, rng: random.Random
) -> None:
    model = make_model()
    rows = [ids_of(rng, model, length) for length in (9, 1, 17, 4)]
    cache = cache_for(model, len(rows))
    for number, row in enumerate(rows):
        read(model, cache, [row], first=number)
    for _ in range(5):
        fresh = [ids_of(rng, model, 2) for _ in rows]
        found = read(model, cache, fresh)
        for row, new, logits in zip(rows, fresh, found, strict=True):
            row += new
            torch.testing.assert_close(logits, uncached(model, row)[0, -2:])


def test_growing_keeps_what_is_there(make_model: Make, rng: random.Random) -> None:
    model = make_model(context=700)
    cache = cache_for(model, 2)
    first = cache.capacity
    rows = [ids_of(rng, model, first - 5) for _ in range(2)]
    read(model, cache, rows)
    held = [(k[:, :first].clone(), v[:, :first].clone()) for k, v, *_ in cache.layers(0, 2)]
    cache.reserve(first + 1)
    assert cache.capacity == 2 * first
    for (keys, values), layer in zip(held, cache.layers(0, 2), strict=True):
        assert torch.equal(layer.keys[:, :first], keys)
        assert torch.equal(layer.values[:, :first], values)
    fresh = [ids_of(rng, model, 30) for _ in range(2)]
    found = read(model, cache, fresh)
    for row, new, logits in zip(rows, fresh, found, strict=True):
        torch.testing.assert_close(logits, uncached(model, row + new)[0, -30:])


def test_capacity_at_least_doubles_and_never_exceeds_the_context(make_model: Make) -> None:
    cache = cache_for(make_model(context=700))
    grown = []
    for wanted in (5, 129, 130, 300, 513, 700):
        cache.reserve(wanted)
        grown.append(cache.capacity)
    assert grown == [128, 256, 256, 512, 700, 700]


def test_a_small_context_is_never_exceeded(make_model: Make) -> None:
    cache = cache_for(make_model(context=40))
    assert cache.capacity == 40
    cache.reserve(40)
    assert cache.layers(0, 1)[0].keys.shape[1] == 40


def test_a_moved_row_goes_on_as_the_row_it_was(make_model: Make, rng: random.Random) -> None:
    model = make_model()
    cache = cache_for(model, 3)
    rows = [ids_of(rng, model, length) for length in (20, 5, 8)]
    for number, row in enumerate(rows):
        read(model, cache, [row], first=number)
    cache.move(2, 0)
    assert cache.lengths[:2] == [8, 5]
    fresh = [ids_of(rng, model, 3) for _ in range(2)]
    found = read(model, cache, fresh)
    torch.testing.assert_close(found[0], uncached(model, rows[2] + fresh[0])[0, -3:])
    torch.testing.assert_close(found[1], uncached(model, rows[1] + fresh[1])[0, -3:])


def test_a_shortened_row_forgets_its_end(make_model: Make, rng: random.Random) -> None:
    """Prefix reuse: what lies beyond the length is never seen again."""
    model = make_model()
    cache = cache_for(model)
    ids, other = ids_of(rng, model, 30), ids_of(rng, model, 12)
    read(model, cache, [ids])
    cache.lengths[0] = 11
    found = read(model, cache, [other])
    torch.testing.assert_close(found[0], uncached(model, ids[:11] + other)[0, -12:])
