"""`model_type` qwen3: norms on queries and keys, head width of its own."""

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

_KEYS = frozenset({"attention_bias", "sliding_window"})


def read(raw: dict[str, Any]) -> ModelConfig:
    """From config.json. Raises IntegrityError for what is missing or not computed."""
    bias = raw.get("attention_bias") or False
    return read_llama_like(
        raw, keys=_KEYS, n_kv_heads=32, head_dim=128,
        model_type="qwen3", qk_norm=True, qkv_bias=bias, out_bias=bias,
    )  # fmt: skip


def write(config: ModelConfig) -> dict[str, Any]:
    """To config.json, readable by transformers 4 and 5."""
    raw = write_llama_like(
        config, "Qwen3ForCausalLM", attention_bias=config.qkv_bias, use_sliding_window=False
    )
    return faithful(config, raw, read)
