"""Operations counted as torch counts them, a peak measured once, memory, and seconds by name."""

from __future__ import annotations

import random
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from chatbench.model.attention import Packing
from chatbench.model.config import ModelConfig
from chatbench.model.transformer import GPT, initialise
from chatbench.train import meters
from chatbench.train.meters import (
    Meter,
    Stopwatch,
    flops_per_token,
    peak_flops,
    peak_memory,
    step_flops,
)
from chatbench.train.objective import Batch, GlobalBatch

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


def test_a_step_is_counted_as_its_rows_were_one_by_one(rng: random.Random) -> None:
    """Documents of a packed row cost what they cost alone; the head what counts costs."""
    for _ in range(5):
        config = random_config(rng)
        lengths = [[rng.randint(1, 9) for _ in range(rng.randint(1, 4))] for _ in range(3)]
        width = max(map(sum, lengths)) + rng.randint(0, 3)
        weights = torch.tensor([[float(rng.randint(0, 1)) for _ in range(width)] for _ in lengths])
        document = torch.full((3, width), -1)
        position = torch.zeros(3, width, dtype=torch.int64)
        for row, sizes in enumerate(lengths):
            at = 0
            for number, size in enumerate(sizes):
                document[row, at : at + size] = number
                position[row, at : at + size] = torch.arange(size)
                at += size
        ids = torch.zeros(3, width, dtype=torch.int64)
        head = 6.0 * config.hidden_size * config.vocab_size
        products = (flops_per_token(config, 0) - head) * ids.numel() + head * float(weights.sum())
        scores = flops_per_token(config, 1) - flops_per_token(config, 0)

        packed = Batch(ids, ids, weights, Packing(document, position))
        squares = sum(size * size for sizes in lengths for size in sizes)
        found = step_flops(config, GlobalBatch([packed], 1.0, ids.numel()))
        assert found == pytest.approx(products + scores * squares, rel=1e-12)

        whole = packed._replace(packing=None)
        found = step_flops(config, GlobalBatch([whole, whole], 1.0, 2 * ids.numel()))
        assert found == pytest.approx(2 * (products + scores * 3 * width * width), rel=1e-12)


def test_the_meter_divides_by_the_peak_of_the_models_number_format() -> None:
    model = GPT(ModelConfig(11, 1, 8, 1, 1, 8, 16, 16)).to(torch.float64)
    ids = torch.zeros(2, 16, dtype=torch.int64)
    batch = GlobalBatch([Batch(ids, ids, torch.ones(2, 16), None)], 32.0, 32)
    work, peak = step_flops(model.config, batch), peak_flops(torch.float64, CPU)
    meter = Meter(model)
    assert set(meter.readings()) == {"memory"}
    for _ in range(2):
        meter.count(batch, 10 * work / peak)
        meter.count(batch, 30 * work / peak)
        read = meter.readings()
        assert read["mfu"] == pytest.approx(1 / 20, rel=1e-9)
        assert read["memory"] <= peak_memory(CPU)


def test_nothing_is_faster_than_the_peak() -> None:
    """A peak that was measured while others computed is too low."""
    model = GPT(ModelConfig(11, 1, 8, 1, 1, 8, 16, 16)).to(torch.float64)
    ids = torch.zeros(2, 16, dtype=torch.int64)
    batch = GlobalBatch([Batch(ids, ids, torch.ones(2, 16), None)], 32.0, 32)
    seconds = step_flops(model.config, batch) / peak_flops(torch.float64, CPU)
    meter = Meter(model)
    meter.count(batch, seconds / 4)
    assert meter.readings()["mfu"] == 1
    meter.count(batch, seconds)
    assert meter.readings()["mfu"] == pytest.approx(1 / 4, rel=1e-9)


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
