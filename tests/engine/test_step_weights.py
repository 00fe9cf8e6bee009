"""The step in C and the weights it reads: changed, replaced, merged, freed."""

from __future__ import annotations

import gc
import math
import random
import weakref

import pytest
import torch
from engine.step_cases import by_torch, cache_of, copied, drawn, families, model_of

from chatbench.engine.engine import Completion, Engine, Request
from chatbench.engine.step import Stepper
from chatbench.model.kernels import compiled
from chatbench.model.lora import LoraConfig, add_adapter, merge
from chatbench.model.transformer import ModelConfig
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import Tokenizer

pytest.importorskip("chatbench.model.kernels._decode")
FAMILIES = sorted(families.FAMILIES)


@pytest.fixture(autouse=True)
def _anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """With vectors or without, and whatever the environment asks for."""
    monkeypatch.setattr(compiled, "why_not", lambda: "")


@pytest.fixture
def generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(1 << 32))


def test_weights_may_change_in_place_and_the_cache_may_grow(
    rng: random.Random, generator: torch.Generator
) -> None:
    model = model_of("float32", rng.choice(FAMILIES), rng, generator)
    cache = cache_of(model, [100], generator)
    stepper = Stepper(model, cache)
    before = stepper.next([7])
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.1, generator=generator)
    changed, fresh = stepper.next([7]), Stepper(model, cache).next([7])
    assert before is not None
    assert changed is not None
    assert fresh is not None
    assert not torch.equal(changed, before)
    assert torch.equal(changed, fresh)
    capacity = cache.capacity
    for length in range(capacity - 3, capacity + 3):
        for store in cache.stores(1)[0]:
            store[0, cache.lengths[0] : length].normal_(generator=generator)
        cache.lengths[0] = length
        found = stepper.next([7])
        assert found is not None
        assert torch.equal(found, Stepper(model, cache).next([7]))  # type: ignore[arg-type]
    assert cache.capacity > capacity


def test_a_merged_adapter_is_part_of_the_weights(
    rng: random.Random, generator: torch.Generator
) -> None:
    model = model_of("float32", "qwen3", rng, generator)
    add_adapter(model, LoraConfig(rank=2, alpha=4), seed=0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=generator)
    merge(model)
    cache = cache_of(model, [30, 0], generator)
    wanted = by_torch(model, copied(cache, model, torch.float32), [3, 4])
    found = Stepper(model, cache).next([3, 4])
    assert found is not None
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_a_weight_may_be_given_other_storage(
    rng: random.Random, generator: torch.Generator
) -> None:
    """What is computed then is the old model until a new stepper looks, and never freed memory."""
    model = model_of("float32", rng.choice(FAMILIES), rng, generator)
    cache = cache_of(model, [100], generator)
    stepper = Stepper(model, cache)
    before = stepper.next([7])
    for weight in model.parameters():
        weight.data = torch.full_like(weight, float("nan"))
    gc.collect()
    after, fresh = stepper.next([7]), Stepper(model, cache).next([7])
    assert before is not None
    assert after is not None
    assert fresh is not None
    assert torch.equal(after, before)
    assert bool(fresh.isnan().all())


def test_forgetting_in_the_middle_of_a_run_finds_the_weights_anew(
    rng: random.Random, generator: torch.Generator, tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = ModelConfig(**families.FAMILIES["qwen3"](rng))
    model = drawn(config._replace(vocab_size=tokenizer.vocab_size), generator)
    monkeypatch.setattr(tokenizer, "stops", frozenset())
    engine = Engine(model, tokenizer, max_rows=1)
    sampling = SamplingSettings(temperature=0.0, max_tokens=12, speculate="off", logprobs=1)
    # An id at which every token is whole text, so that each step has an event.
    letter = tokenizer.token_bytes.index(b"a")
    run = engine.run([Request([1], sampling, allowed=frozenset([letter]))])
    for _ in range(4):
        next(run)
    model.lm_head.weight.data = torch.zeros_like(model.lm_head.weight)
    engine.forget()
    *_, done = run
    assert isinstance(done, Completion)
    assert done.logprobs is not None
    even = -math.log(tokenizer.vocab_size)
    assert [abs(token.logprob - even) < 1e-9 for token in done.logprobs] == [False] * 4 + [True] * 8


def test_a_model_that_nobody_needs_is_freed(
    rng: random.Random, generator: torch.Generator, tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = ModelConfig(**families.FAMILIES["qwen3"](rng))
    model = drawn(config._replace(vocab_size=tokenizer.vocab_size), generator)
    # A reply that ends with its first token takes no step.
    monkeypatch.setattr(tokenizer, "stops", frozenset())
    engine = Engine(model, tokenizer, max_rows=1)
    engine.complete([Request([1, 2], SamplingSettings(temperature=0.0, max_tokens=4))])
    assert engine._stepper is not None
    held = weakref.ref(model)
    del model, engine
    gc.collect()
    assert held() is None
