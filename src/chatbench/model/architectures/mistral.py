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
from chatbench.model.architectures.refusals import refuse, refuse_sliding_layers
from chatbench.model.config import ModelConfig

__all__ = ["from_hub", "read", "to_hub", "write"]

_KEYS = frozenset({"sliding_window", "use_sliding_window", "layer_types"})
_WINDOW_WHEN_SILENT = 4096


def read(raw: dict[str, Any]) -> ModelConfig:
    """From config.json. Raises IntegrityError for what is missing or not computed.

    A window as long as the context hides nothing from any position within it, so it is left out;
    a shorter one is refused. A config that does not mention the window has one of 4096.
    """
    refuse_sliding_layers(raw)
    config = read_llama_like(raw, keys=_KEYS, n_kv_heads=8, model_type="mistral", qk_norm=False)
    window = raw.get("sliding_window", _WINDOW_WHEN_SILENT)
    refuse(window is not None and window < config.context, f"sliding_window {window}")
    return config


def write(config: ModelConfig) -> dict[str, Any]:
    """To config.json, readable by transformers 4 and 5."""
    return faithful(
        config, write_llama_like(config, "MistralForCausalLM", sliding_window=None), read
    )
