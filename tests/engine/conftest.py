"""Models in float64, in which a wrong token cannot hide behind rounding."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chatbench.model.transformer import GPT, ModelConfig
from chatbench.text.tokenizer import Tokenizer


@pytest.fixture
def make_model(rng: random.Random, tokenizer: Tokenizer) -> Callable[..., GPT]:
    """A random model; `changes` go into its config."""

    def make(**changes: Any) -> GPT:
        shape = {
            "vocab_size": tokenizer.vocab_size, "n_layers": 2, "hidden_size": 24, "n_heads": 4,
            "n_kv_heads": 2, "head_dim": 10, "ffn_size": 30, "context": 96,
        }  # fmt: skip
        model = GPT(ModelConfig(**{**shape, **changes}))
        generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
        for weight in model.parameters():
            if weight.ndim == 1:
                nn.init.normal_(weight, 1.0, 0.2, generator=generator)
            else:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=generator)
        return model.double().eval()

    return make


@pytest.fixture
def make_chain() -> Callable[..., GPT]:
    """A model that knows only the last token: after token i it gives logits[i], exactly."""

    def make(logits: Tensor, context: int = 96) -> GPT:
        size = len(logits)
        config = ModelConfig(
            vocab_size=size, n_layers=1, hidden_size=size, n_heads=1, n_kv_heads=1, head_dim=2,
            ffn_size=2, context=context, tie_embeddings=False,
        )  # fmt: skip
        model = GPT(config).double().eval()
        with torch.no_grad():
            for block in model.model.layers:
                block.self_attn.o_proj.weight.zero_()
                block.mlp.down_proj.weight.zero_()
            model.model.embed_tokens.weight.copy_(torch.eye(size))
            # RMSNorm makes of a one-hot row this much.
            height = (1 / size + config.norm_eps) ** -0.5
            model.lm_head.weight.copy_(logits.double().T / height)
        return model

    return make
