"""`model_type` qwen2: biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from chatbench.model.architectures.llama_like import (
    faithful,
    from_hub,
    read_llama_like,
    to_hub,
    write_llama_like,
)
from chatbench.model.config import ModelConfig

__all__ = ["from_hub", "read", "to_hub", "write"]

_KEYS = frozenset({"sliding_window"})


def read(raw: dict[str, Any]) -> ModelConfig:
    """From config.json. Raises IntegrityError for what is missing or not computed."""
    return read_llama_like(
        raw, keys=_KEYS, n_kv_heads=32, model_type="qwen2", qk_norm=False, qkv_bias=True
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """To config.json, readable by transformers 4 and 5."""
    raw = write_llama_like(config, "Qwen2ForCausalLM", use_sliding_window=False)
    return faithful(config, raw, read)
