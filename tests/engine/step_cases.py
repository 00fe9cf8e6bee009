"""Random models of every family and kind of weight, with caches that hold random rows."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import torch
from torch import Tensor

from chatbench.engine.cache import KVCache
from chatbench.model.quantize import quantize_model
from chatbench.model.transformer import GPT, ModelConfig

_spec = importlib.util.spec_from_file_location(
    "families", Path(__file__).parents[1] / "model" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
families = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(families)
CPU = torch.device("cpu")


def drawn(config: ModelConfig, generator: torch.Generator) -> GPT:
    """Every weight is random, so every one of them matters."""
    model = GPT(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.normal_(0.0 if name.endswith("bias") else 1.0, 0.2, generator=generator)
            else:
                weight.normal_(0.0, 0.5 * weight.shape[1] ** -0.5, generator=generator)
    return model.eval()


def fitting(config: ModelConfig, rng: random.Random) -> ModelConfig:
    """The same family with widths that int4 takes."""
    head_dim = rng.choice((16, 32))
    kv_heads = rng.choice((2, 4)) if config.n_heads > 1 else 4
    share = 1 if config.model_type == "gpt2" else rng.choice((1, 2, 3))
    heads = kv_heads * share
    width = heads * head_dim
    return config._replace(
        hidden_size=width, n_heads=heads, n_kv_heads=kv_heads, head_dim=head_dim,
        ffn_size=rng.choice((64, 160, 192)), vocab_size=96,
    )  # fmt: skip


def model_of(kind: str, family: str, rng: random.Random, generator: torch.Generator) -> GPT:
    config = ModelConfig(**{**families.FAMILIES[family](rng), "model_type": family}).check()
    if kind in ("int8", "int4"):
        model = drawn(fitting(config, rng), generator)
        quantize_model(model, kind)
        return model
    return drawn(config, generator).to(torch.bfloat16 if kind == "bfloat16" else torch.float32)


def cache_of(model: GPT, lengths: list[int], generator: torch.Generator) -> KVCache:
    """Rows that hold so many random keys and values."""
    dtype = model.model.embed_tokens.weight.dtype
    cache = KVCache(model.config, len(lengths), CPU, dtype)
    cache.reserve(max(lengths) + 1)
    for stores in cache.stores(len(lengths)):
        for store in stores:
            store.normal_(generator=generator)
    cache.lengths[:] = lengths
    return cache


def copied(cache: KVCache, model: GPT, dtype: torch.dtype) -> KVCache:
    rows = len(cache.lengths)
    twin = KVCache(model.config, rows, CPU, dtype)
    twin.reserve(cache.capacity)
    for ours, theirs in zip(cache.stores(rows), twin.stores(rows), strict=True):
        for store, other in zip(ours, theirs, strict=True):
            other.copy_(store)
    twin.lengths[:] = cache.lengths
    return twin


@torch.no_grad()
def by_torch(model: GPT, cache: KVCache, ids: list[int]) -> Tensor:
    """Logits (M, V) of the model itself, which appends to the cache."""
    hidden = model(torch.tensor(ids)[:, None], cache=cache.layers(0, len(ids)))
    return model.logits(hidden)[:, 0]
