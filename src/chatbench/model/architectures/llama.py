"""`model_type` llama."""

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

_KEYS = frozenset({"attention_bias", "mlp_bias", "pretraining_tp"})


def read(raw: dict[str, Any]) -> ModelConfig:
    """From config.json. Raises IntegrityError for what is missing or not computed."""
    bias = raw.get("attention_bias") or False
    return read_llama_like(
        raw, keys=_KEYS, model_type="llama", qk_norm=False,
        qkv_bias=bias, out_bias=bias, ffn_bias=raw.get("mlp_bias") or False,
    )  # fmt: skip


def write(config: ModelConfig) -> dict[str, Any]:
    """To config.json, readable by transformers 4 and 5."""
    raw = write_llama_like(
        config, "LlamaForCausalLM", attention_bias=config.qkv_bias, mlp_bias=config.ffn_bias
    )
    return faithful(config, raw, read)
