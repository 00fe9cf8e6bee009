"""Odd little models with random weights, of every family."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from chatbench.model.transformer import GPT, ModelConfig, RopeScaling

ROPE_KINDS = (None, "linear", "dynamic", "yarn", "llama3")


@pytest.fixture
def random_config(rng: random.Random) -> Callable[..., ModelConfig]:
    """Our own kind of model; no two numbers agree by design; `changes` are kept as given."""

    def make(**changes: Any) -> ModelConfig:
        return ModelConfig(**{**_rotary(rng), **changes})

    return make


@pytest.fixture
def random_family(rng: random.Random) -> Callable[..., ModelConfig]:
    """A random model that the family named can express; `changes` are kept as given."""

    def make(model_type: str, **changes: Any) -> ModelConfig:
        drawn = {**FAMILIES[model_type](rng), "model_type": model_type, **changes}
        return ModelConfig(**drawn).check()

    return make


@pytest.fixture
def random_rope(rng: random.Random) -> Callable[[str | None], RopeScaling | None]:
    """A scaling of this kind with whatever it can say, said or left out."""

    def make(kind: str | None) -> RopeScaling | None:
        return None if kind is None else _scaling(kind, rng)

    return make


@pytest.fixture
def random_model(rng: random.Random) -> Callable[[ModelConfig], GPT]:
    """Every weight is random, so every one of them matters to the output."""

    def make(config: ModelConfig) -> GPT:
        model = GPT(config)
        generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                centre = 0.0 if name.endswith("bias") else 1.0
                nn.init.normal_(weight, centre, 0.2, generator=generator)
            else:
                nn.init.normal_(weight, std=0.5 * weight.shape[1] ** -0.5, generator=generator)
        return model.eval()

    return make


def _rotary(rng: random.Random) -> dict[str, Any]:
    kv_heads = rng.choice((1, 2, 3))
    return {
        "vocab_size": rng.randrange(50, 90),
        "n_layers": rng.choice((1, 2, 3)),
        "hidden_size": rng.randrange(17, 40),
        "n_heads": kv_heads * rng.choice((1, 2, 3)),
        "n_kv_heads": kv_heads,
        "head_dim": rng.choice((6, 10, 16, 22)),
        "ffn_size": rng.randrange(19, 50),
        "context": 8192,
        "rope_theta": rng.choice((10_000.0, 1_000_000.0)),
        "norm_eps": rng.choice((1e-6, 1e-5)),
        "tie_embeddings": rng.random() < 0.5,
    }


def _scaling(kind: str, rng: random.Random) -> RopeScaling:
    factor = round(rng.uniform(1.5, 8), 2)
    if kind in ("linear", "dynamic"):
        return RopeScaling(kind, factor)
    original = rng.choice((128, 1000, 4096))
    if kind == "llama3":
        low = round(rng.uniform(0.5, 2), 1)
        high = low + rng.choice((1.0, 3.0))
        return RopeScaling(kind, factor, original, low_freq_factor=low, high_freq_factor=high)
    said = {
        "attention_factor": 1.25, "beta_fast": 24.0, "beta_slow": 1.5,
        "mscale": 0.7, "mscale_all_dim": 1.1,
    }  # fmt: skip
    chosen = {name: value for name, value in said.items() if rng.random() < 0.5}
    return RopeScaling(kind, factor, original, **chosen, truncate=rng.random() < 0.5)


def _qwen3(rng: random.Random) -> dict[str, Any]:
    bias = rng.random() < 0.5
    return {**_rotary(rng), "qkv_bias": bias, "out_bias": bias}


def _qwen2(rng: random.Random) -> dict[str, Any]:
    return {**_rotary(rng), "qk_norm": False, "qkv_bias": True}


def _mistral(rng: random.Random) -> dict[str, Any]:
    return {**_rotary(rng), "qk_norm": False}


def _llama(rng: random.Random) -> dict[str, Any]:
    drawn, bias = _rotary(rng), rng.random() < 0.5
    return {
        **drawn, "qk_norm": False, "qkv_bias": bias, "out_bias": bias,
        "ffn_bias": rng.random() < 0.5,
        # transformers refuses other widths, though the head width is given.
        "hidden_size": drawn["n_heads"] * rng.randrange(4, 9),
        "activation": rng.choice(("silu", "gelu", "gelu_tanh", "relu")),
    }  # fmt: skip


def _gpt2(rng: random.Random) -> dict[str, Any]:
    heads, head_dim = rng.choice((1, 2, 3, 5)), rng.randrange(5, 12)
    return {
        "vocab_size": rng.randrange(50, 90),
        "n_layers": rng.choice((1, 2, 3)),
        "hidden_size": heads * head_dim,
        "n_heads": heads,
        "n_kv_heads": heads,
        "head_dim": head_dim,
        "ffn_size": rng.randrange(19, 50),
        "context": 5120,
        "norm_eps": rng.choice((1e-6, 1e-5)),
        "tie_embeddings": rng.random() < 0.5,
        "positions": "learned",
        "norm": "layer",
        "activation": rng.choice(("silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "tanh")),
        "gated": False,
        "qk_norm": False,
        "qkv_bias": True,
        "out_bias": True,
        "ffn_bias": True,
    }


# A new family needs one entry here; test_families.py then tests it.
FAMILIES: dict[str, Callable[[random.Random], dict[str, Any]]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}
