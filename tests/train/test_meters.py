"""Operations counted as torch counts them, a peak measured once, memory, and seconds by name."""

from __future__ import annotations

import random
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from chatbench.model.config import ModelConfig
from chatbench.model.transformer import GPT, initialise
from chatbench.train import meters
from chatbench.train.meters import Meter, Stopwatch, flops_per_token, peak_flops, peak_memory

CPU = torch.device("cpu")


def random_config(rng: random.Random) -> ModelConfig:
    kv = rng.choice((1, 2))
    return ModelConfig(
        vocab_size=rng.randint(20, 90), n_layers=rng.randint(1, 3),
        hidden_size=8 * rng.randint(1, 4), n_heads=kv * rng.randint(1, 3), n_kv_heads=kv,
        head_dim=2 * rng.randint(1, 5), ffn_size=rng.randint(3, 50), context=64,
        gated=rng.random() < 0.5, tie_embeddings=rng.random() < 0.5,
    ).check()  # fmt: skip


def test_operations_are_those_of_the_products_and_of_attention(rng: random.Random) -> None:
    """torch counts the products of a forward pass; backward takes twice that."""
    for _ in range(5):
        config, length = random_config(rng), rng.randint(2, 12)
        model = GPT(config)
        initialise(model, 0)
        ids = torch.zeros(1, length, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model.logits(model(ids))
        products = sum(
            flops
            for op, flops in counter.get_flop_counts()["Global"].items()
            if op in (torch.ops.aten.mm, torch.ops.aten.addmm)
        )
        # Of every head: a score and a weighted sum, 2 · width operations each, for every key.
        scores = config.n_layers * config.n_heads * length * 4 * config.head_dim
        assert flops_per_token(config, length) == 3 * (products / length + scores)


def test_the_peak_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    meters._peak_flops.cache_clear()
    taken = iter([0.1, 0.5, 0.25, 0.3])

    def seconds(*_: object) -> float:
        time.sleep(meters._PEAK_SECONDS / 2.5)
        return next(taken, 1.0)

    monkeypatch.setattr(meters, "_seconds", seconds)
    found = peak_flops(torch.float32, CPU)
    # The first was for warming up.
    assert found in (2 * 1024**3 / 0.5, 2 * 1024**3 / 0.25)
    assert peak_flops(torch.float32, CPU) == found
    meters._peak_flops.cache_clear()


def test_a_measured_peak_is_kept_for_each_number_format() -> None:
    single, double = (peak_flops(dtype, CPU) for dtype in (torch.float32, torch.float64))
    assert single > 0
    assert double > 0
    assert peak_flops(torch.float32, CPU) == single
    assert peak_flops(torch.float64, CPU) == double


def test_the_meter_divides_by_the_peak_of_the_models_number_format() -> None:
    config = ModelConfig(11, 1, 8, 1, 1, 8, 16, 16)
    model = GPT(config).to(torch.float64)
    read = Meter(model, 16).readings(1000.0)
    peak = peak_flops(torch.float64, CPU)
    assert read["mfu"] == pytest.approx(1000 * flops_per_token(config, 16) / peak, rel=1e-12)
    assert read["memory"] <= peak_memory(CPU)
    shared = Meter(model, 16, devices=4).readings(1000.0)
    assert shared["mfu"] == pytest.approx(read["mfu"] / 4, rel=1e-12)


def test_peak_memory_knows_what_was_held_for_a_moment() -> None:
    megabytes = peak_memory(CPU) // 1_000_000 + 50
    held = torch.ones(megabytes, 250_000)
    # The kernel counts pages lazily, by some hundreds.
    assert peak_memory(CPU) >= (megabytes - 25) * 1_000_000
    del held


def test_the_stopwatch_adds_up_until_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(meters.time, "perf_counter", lambda: now[0])
    watch = Stopwatch()
    for passed in (1.0, 2.5):
        with watch("data"):
            now[0] += passed
    watch.add("saving", 4.0)

    def fail() -> None:
        with watch("compute"):
            now[0] += 8.0
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert watch.take() == {"seconds_data": 3.5, "seconds_saving": 4.0, "seconds_compute": 8.0}
    assert watch.take() == {}
