"""`model_type` mistral: a Llama without biases, whose layers may see a window only."""

from __future__ import annotations

from typing import Any

from chatbench.model.architectures.llama_like import (
    faithful,
    from_hub,
    read_llama_like,
    to_hub,
    write_llama_like,
)
from chatbench.model.architectures.refusals import refuse
from chatbench.model.config import ModelConfig

__all__ = ["from_hub", "read", "to_hub", "write"]

_KEYS = frozenset({"sliding_window"})
_WINDOW_WHEN_SILENT = 4096


def read(raw: dict[str, Any]) -> ModelConfig:
    """From config.json. Raises IntegrityError for what is missing or not computed.

    A window hides nothing from any position of a text that fits into it, so the context becomes
    the window where that is shorter. A config that does not mention the window has one of 4096.
    """
    config = read_llama_like(raw, keys=_KEYS, n_kv_heads=8, model_type="mistral", qk_norm=False)
    window = raw.get("sliding_window", _WINDOW_WHEN_SILENT)
    if window is None:
        return config
    refuse(window < 1, f"sliding_window {window}")
    return config._replace(context=min(config.context, window))


def write(config: ModelConfig) -> dict[str, Any]:
    """To config.json, readable by transformers 4 and 5."""
    return faithful(
        config, write_llama_like(config, "MistralForCausalLM", sliding_window=None), read
    )
