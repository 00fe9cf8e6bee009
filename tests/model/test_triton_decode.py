"""Decode attention by splits: the twin against the definition, the real kernel against the twin."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from chatbench.model.kernels.triton_decode import (
    decode_attention,
    decode_attention_torch,
    split_length,
)

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
RUNS_HERE = HAS_TRITON and (INTERPRETED or torch.cuda.is_available())
# The interpreter computes with numpy, which has no bfloat16.
HALF = torch.float16 if INTERPRETED else torch.bfloat16
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"


def slow(
    q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float | None,
    window: int | None,
) -> Tensor:  # fmt: skip
    """One query head and one place list at a time, in float64."""
    rows, tokens, heads, width = q.shape
    group = heads // keys.shape[2]
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(rows):
        for t in range(tokens):
            end = int(lengths[b]) - tokens + t + 1
            begin = 0 if window is None else max(0, end - window)
            if end <= begin:
                continue
            for h in range(heads):
                key = keys[b, begin:end, h // group].double()
                score = key @ q[b, t, h].double() * (width**-0.5 if scale is None else scale)
                out[b, t, h] = score.softmax(0) @ values[b, begin:end, h // group].double()
    return out


def ragged(
    rng: random.Random, tokens: int, heads: int, kv_heads: int, width: int, places: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """q, keys, values, lengths: an empty row, one shorter than T, a full one; strided views of a
    cache whose unused places hold no numbers."""
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    lengths = torch.tensor([0, rng.randrange(1, tokens + 1), rng.randrange(1, places + 1), places])
    # (B, K, S, D) in memory, seen as (B, S, K, D).
    cache = torch.randn(2, 4, kv_heads, places + 3, width, generator=generator)
    q = torch.randn(4, heads, tokens, width, generator=generator).transpose(1, 2)
    for row, length in enumerate(lengths.tolist()):
        cache[:, row, :, length:] = torch.nan
    keys, values = cache[:, :, :, :places].transpose(2, 3).to(dtype)
    return q.to(dtype), keys, values, lengths


NAMES = ("tokens", "heads", "kv", "width", "places", "split", "window", "scale")
GRID = [
    (1, 4, 4, 16, 50, 16, None, None),
    (1, 6, 2, 24, 97, 32, None, 0.3),
    (3, 8, 1, 16, 130, 64, None, None),
    (2, 4, 2, 40, 70, 70, 9, None),
    (16, 4, 2, 16, 65, 16, 20, 0.2),
    (5, 3, 3, 64, 33, 64, 1, None),
    (12, 12, 1, 16, 40, 16, 7, None),
]


@pytest.mark.parametrize(NAMES, GRID)
def test_the_twin_is_attention(
    rng: random.Random, tokens: int, heads: int, kv: int, width: int, places: int, split: int,
    window: int | None, scale: float | None,
) -> None:  # fmt: skip
    q, keys, values, lengths = ragged(rng, tokens, heads, kv, width, places)
    q, keys, values = q.double(), keys.double(), values.double()
    wanted = slow(q, keys, values, lengths, scale, window)
    for each in (split, None):
        found = decode_attention_torch(
            q, keys, values, lengths, scale=scale, window=window, split=each
        )
        assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    assert not found[0].any(), "an empty row gives zeros"


def test_nothing_depends_on_where_the_splits_fall(rng: random.Random) -> None:
    q, keys, values, lengths = ragged(rng, 2, 4, 2, 16, 90)
    q, keys, values = q.double(), keys.double(), values.double()
    whole = decode_attention_torch(q, keys, values, lengths, split=90)
    for split in (1, 7, 64, 200):
        found = decode_attention_torch(q, keys, values, lengths, split=split)
        assert torch.allclose(found, whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rows", [1, 16, 64, 512])
@pytest.mark.parametrize("places", [1, 128, 4096, 131072])
def test_splits_cover_all_places_and_are_few(rows: int, places: int) -> None:
    split = split_length(rows, 8, places)
    assert split % 64 == 0
    assert -(-places // split) <= 64


@pytest.mark.skipif(not RUNS_HERE, reason="needs Triton, and a GPU or TRITON_INTERPRET=1")
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(NAMES, GRID)
def test_the_kernel_is_its_twin(
    rng: random.Random, tokens: int, heads: int, kv: int, width: int, places: int, split: int,
    window: int | None, scale: float | None, dtype: torch.dtype,
) -> None:  # fmt: skip
    split = max(split, 64) if DEVICE == "cuda" else split
    q, keys, values, lengths = (
        x.to(DEVICE) for x in ragged(rng, tokens, heads, kv, width, places, dtype)
    )
    for count in (lengths, lengths.int()):
        chosen: dict[str, Any] = {"scale": scale, "window": window, "split": split}
        found = decode_attention(q, keys, values, count, **chosen)
        assert found.dtype == dtype
        wanted = decode_attention_torch(q.double(), keys.double(), values.double(), count, **chosen)
        error = float((found.double() - wanted).abs().max())
        assert error < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_graph_replays_with_other_lengths(rng: random.Random) -> None:
    q, keys, values, lengths = (x.cuda() for x in ragged(rng, 1, 8, 2, 64, 700, torch.bfloat16))
    decode_attention(q, keys, values, lengths)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = decode_attention(q, keys, values, lengths)
    lengths.copy_(torch.tensor([0, 1, 1, 350]))
    graph.replay()
    wanted = decode_attention_torch(q.double(), keys.double(), values.double(), lengths)
    assert float((out.double() - wanted).abs().max()) < 2e-2


@pytest.mark.skipif(not HAS_TRITON or INTERPRETED, reason="needs Triton")
def test_the_kernel_is_its_twin_under_triton_s_interpreter() -> None:
    """The tests above once more, in a process where Triton runs its programs on the CPU."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True,
    )  # fmt: skip
    if "runtime/interpreter.py" in done.stdout and "TypeError" in done.stdout:
        pytest.skip("this version of Triton's interpreter does not work with this numpy")
    assert done.returncode == 0, done.stdout[-3000:]
