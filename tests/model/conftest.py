"""Odd little models with random weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from chatbench.model.transformer import GPT, ModelConfig


@pytest.fixture
def random_config(rng: random.Random) -> Callable[..., ModelConfig]:
    """Shapes in which no two numbers agree by design; `changes` are kept as given."""

    def make(**changes: Any) -> ModelConfig:
        kv_heads = rng.choice((1, 2, 3))
        drawn = {
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
        return ModelConfig(**{**drawn, **changes})

    return make


@pytest.fixture
def random_model(rng: random.Random) -> Callable[[ModelConfig], GPT]:
    """Every weight is random, so every one of them matters to the output."""

    def make(config: ModelConfig) -> GPT:
        model = GPT(config)
        generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
        for weight in model.parameters():
            if weight.ndim == 1:
                nn.init.normal_(weight, 1.0, 0.2, generator=generator)
            else:
                nn.init.normal_(weight, std=0.5 * weight.shape[1] ** -0.5, generator=generator)
        return model.eval()

    return make
