"""What is chosen for an amount of time or text, from made-up machines and corpora."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest

from chatbench.model.transformer import GPT, ModelConfig
from chatbench.train.budget import (
    Amount,
    batch_for,
    choose,
    context_for,
    expected_bits,
    outcome,
    parameters,
    shapes,
    vocabulary_advice,
    warnings,
)
from chatbench.train.forecast import Difficulty, Forecast, filled, forecast, worth
from chatbench.train.meters import flops_per_token
from chatbench.train.probe import Timing, update_flops


def template(vocabulary: int = 4096) -> ModelConfig:
    return ModelConfig(vocabulary, 2, 64, 1, 1, 64, 192, 256)


def hard(unique: int = 10**9, vocabulary: int = 4096) -> Difficulty:
    return Difficulty(2.0, 1 << 19, 0.085, 3.4, vocabulary, unique)


def clock(flops: float) -> Callable[[ModelConfig], Timing]:
    return lambda config: Timing(
        flops_per_token(config, config.context) / flops, update_flops(config) / flops
    )


def slow_best(
    candidates: list[ModelConfig], seconds: float, timer: Callable[[ModelConfig], Timing],
    of: Difficulty,
) -> float:  # fmt: skip
    """The best forecast that any shape reaches, with the batch that suits its tokens."""
    return min(expected_bits(outcome(c, timer(c), seconds, None), of) for c in candidates)


def test_parameters_are_those_of_the_model_but_for_its_norms(rng: random.Random) -> None:
    heads = rng.randint(1, 4)
    config = ModelConfig(
        rng.randint(50, 500), rng.randint(1, 4), 16 * heads, heads, heads, 16, 40, 32,
        tie_embeddings=rng.random() < 0.5,
    )  # fmt: skip
    model = GPT(config)
    body, tables = parameters(config)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    assert body + tables == matrices
    assert tables == config.vocab_size * config.hidden_size * (2 - config.tie_embeddings)


@pytest.mark.parametrize("flops", [1e10, 1e12, 4e14])
def test_the_choice_is_within_a_hair_of_the_best_of_all_shapes(
    rng: random.Random, flops: float
) -> None:
    seconds = 60 * math.exp(rng.uniform(math.log(0.5), math.log(600)))
    of = hard(unique=round(math.exp(rng.uniform(math.log(1e5), math.log(1e10)))))
    candidates = list(shapes(template(), 10_000))
    choice = choose(candidates, Amount(seconds=seconds), clock(flops), of)
    best = slow_best(candidates, seconds, clock(flops), of)
    assert best <= expected_bits(choice, of) <= best * 1.002


def test_more_time_and_faster_machines_never_get_smaller_models(rng: random.Random) -> None:
    def size(seconds: float, flops: float) -> int:
        made = choose(
            list(shapes(template(), 10_000)), Amount(seconds=seconds), clock(flops), hard()
        )
        return made.config.hidden_size

    start = 60 * rng.uniform(0.5, 2)
    # Far enough apart that the next step of the ladder is well beyond a tie.
    widths = [size(start * 30**n, 4e10) for n in range(4)]
    assert widths == sorted(widths)
    assert size(start * 30, 4e10) <= size(start * 30, 4e13)
    assert widths[0] < widths[-1]


def test_small_corpora_get_smaller_models_and_a_warning() -> None:
    seconds, timer = 600.0, clock(3e13)
    candidates = list(shapes(template(), 10_000))
    small = choose(candidates, Amount(seconds=seconds), timer, hard(unique=300_000))
    large = choose(candidates, Amount(seconds=seconds), timer, hard())
    assert small.config.hidden_size < large.config.hidden_size
    (told, *_) = warnings(small, hard(unique=300_000))
    assert "the corpus is small for this" in told
    assert not [line for line in warnings(large, hard()) if "corpus is small" in line]


def test_for_an_amount_of_text_a_shape_is_chosen_that_its_own_time_would_choose() -> None:
    candidates = list(shapes(template(), 10_000))
    sizes = []
    for tokens in (2e5, 5e6, 2e8, 1e10):
        choice = choose(candidates, Amount(tokens=tokens), clock(1.0), hard())
        assert choice.tokens == tokens
        assert choice.batch_tokens == batch_for(tokens)
        sizes.append(choice.config.hidden_size)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    # The operations of a second change nothing where no seconds are given.
    again = choose(candidates, Amount(tokens=2e8), clock(1e12), hard())
    assert again.config.hidden_size == sizes[2]


def test_what_does_not_fit_into_memory_is_not_chosen() -> None:
    candidates = list(shapes(template(), 10_000))
    amount = Amount(seconds=36_000)
    free = choose(candidates, amount, clock(1e14), hard())
    bound = choose(candidates, amount, clock(1e14), hard(), fits=lambda c: c.hidden_size <= 128)
    assert free.config.hidden_size > 128 >= bound.config.hidden_size
    nothing = choose(candidates, amount, clock(1e14), hard(), fits=lambda c: False)
    assert nothing.config == candidates[0]


def test_a_given_batch_is_kept(rng: random.Random) -> None:
    batch = 2 ** rng.randint(6, 16)
    choice = choose(
        list(shapes(template(), 10_000)), Amount(seconds=60), clock(1e11), hard(), batch
    )
    assert choice.batch_tokens == batch
    timing = clock(1e11)(choice.config)
    assert choice.tokens == pytest.approx(60 / timing.step(batch) * batch)


def test_batches_are_powers_of_two_and_leave_many_steps(rng: random.Random) -> None:
    tokens = math.exp(rng.uniform(math.log(1e4), math.log(1e12)))
    batch = batch_for(tokens)
    assert batch & (batch - 1) == 0
    assert batch >= 1024
    # Rounding to a power of two is worth a factor of the root of two.
    assert batch == 1024 or tokens / batch >= 1000 / math.sqrt(2) * (1 - 1e-12)
    assert batch_for(2 * tokens) >= batch


def test_contexts_are_long_enough_and_not_longer_than_the_texts(rng: random.Random) -> None:
    longest = rng.randint(1, 5000)
    for width in (64, 320, 384, 640, 768, 2048):
        context = context_for(width, longest)
        assert 128 <= context <= 1024
        assert context == 128 or context < 2 * longest
        assert context >= min(longest, 256)


def test_all_shapes_can_be_built() -> None:
    found = list(shapes(template(), 10_000))
    for config in found:
        assert config.check() == config
        assert config.n_heads * config.head_dim == config.hidden_size
    sizes = [sum(parameters(config)) for config in found]
    assert sizes == sorted(sizes)
    assert all(a < b for a, b in itertools.pairwise(sizes))


# -- the law -------------------------------------------------------------------------------------


def test_more_tokens_and_parameters_are_never_worse(rng: random.Random) -> None:
    of = hard(unique=round(math.exp(rng.uniform(math.log(1e5), math.log(1e10)))))
    body, tokens = rng.uniform(1e5, 1e9), rng.uniform(1e5, 1e10)
    usual = forecast(of, body, body / 2, tokens)
    assert usual.low < usual.bits < usual.high
    assert forecast(of, 2 * body, body / 2, tokens).bits <= usual.bits
    # Beyond what a model can hold the law says nothing of more tokens; well below it must fall.
    few = body / 100
    assert forecast(of, body, 0, 2 * few).bits <= forecast(of, body, 0, few).bits


def test_no_forecast_is_worse_than_guessing() -> None:
    of = hard()
    assert forecast(of, 1e5, 1e5, 1.0).bits == of.uniform
    assert isinstance(forecast(of, 1e5, 1e5, 1e6), Forecast)


def test_repeated_tokens_are_worth_less_and_less(rng: random.Random) -> None:
    unique = rng.uniform(1e4, 1e8)
    assert worth(0.7 * unique, unique) == 0.7 * unique
    values = [worth(n * unique, unique) / unique for n in (1, 2, 4, 8, 100, 10_000)]
    assert values == sorted(values)
    # About four passes are nearly as good as fresh text, and there is an end to it.
    assert 3.6 < values[2] < 4
    assert values[-1] == pytest.approx(16.4)
    gains = [(worth((n + 1) * unique, unique) - worth(n * unique, unique)) for n in range(1, 9)]
    assert gains == sorted(gains, reverse=True)


def test_a_corpus_fills_only_so_many_parameters(rng: random.Random) -> None:
    unique = rng.uniform(1e5, 1e8)
    few = rng.uniform(0.01, 0.25) * unique
    assert filled(few, unique) == few
    assert unique / 4 < filled(unique, unique) < unique
    assert filled(1e15, unique) == pytest.approx(6.3 * unique / 4)


# -- the vocabulary ------------------------------------------------------------------------------


def test_a_vocabulary_that_is_most_of_the_model_is_named_with_a_better_one() -> None:
    advice = vocabulary_advice(template(32_768), unique=10**9, smallest=512)
    assert advice is not None
    assert "holds 95%" in advice
    assert "--vocab-size 1024" in advice
    wide = template()._replace(hidden_size=512, n_layers=8, n_heads=8, n_kv_heads=8, ffn_size=1408)
    assert vocabulary_advice(wide, unique=10**9, smallest=512) is None


def test_a_vocabulary_that_the_corpus_hardly_uses_is_named_too() -> None:
    wide = template()._replace(hidden_size=512, n_layers=8, n_heads=8, n_kv_heads=8, ffn_size=1408)
    advice = vocabulary_advice(wide, unique=40_960, smallest=512)
    assert advice is not None
    assert "sees each entry 10 times" in advice
    assert "--vocab-size 1024" in advice


def test_advice_is_never_a_larger_vocabulary_or_one_too_small_for_the_script(
    rng: random.Random,
) -> None:
    for _ in range(50):
        config = template(rng.randint(300, 60_000))
        smallest = rng.choice((512, 2048))
        advice = vocabulary_advice(config, rng.randint(1000, 10**9), smallest)
        if advice is not None:
            wanted = int(advice.split("--vocab-size ")[1].split()[0])
            assert smallest <= wanted < config.vocab_size
