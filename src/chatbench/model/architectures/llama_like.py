"""What Llama, Mistral, Qwen2 and Qwen3 have in common: keys of config.json and weight names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from chatbench.errors import IntegrityError
from chatbench.model.architectures.activations import hub_activation, read_activation
from chatbench.model.architectures.refusals import refuse_sliding_layers, refuse_unknown
from chatbench.model.architectures.ropes import ROPE_KEYS, read_rope, write_rope
from chatbench.model.config import ModelConfig

_KEYS = ROPE_KEYS | {
    "vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings",
    "hidden_act", "rms_norm_eps", "tie_word_embeddings", "layer_types", "use_sliding_window",
}  # fmt: skip


def read_llama_like(
    raw: dict[str, Any], *, keys: frozenset[str] = frozenset(), n_kv_heads: int | None = None,
    head_dim: int | None = None, **fields: Any,
) -> ModelConfig:  # fmt: skip
    """A ModelConfig of RMSNorm, rotary positions and a gated feed-forward.

    `keys`: what the caller reads itself; `n_kv_heads`, `head_dim`: where config.json is silent
    (None: as many as heads, width / heads); `fields`: what the family fixes.
    Raises IntegrityError for what is missing or not computed.
    """
    refuse_sliding_layers(raw)
    refuse_unknown(raw, _KEYS | keys)
    try:
        heads = raw["num_attention_heads"]
        kv_heads = raw.get("num_key_value_heads", n_kv_heads)
        return ModelConfig(
            vocab_size=raw["vocab_size"],
            n_layers=raw["num_hidden_layers"],
            hidden_size=raw["hidden_size"],
            n_heads=heads,
            n_kv_heads=heads if kv_heads is None else kv_heads,
            head_dim=raw.get("head_dim") or head_dim or raw["hidden_size"] // max(1, heads),
            ffn_size=raw["intermediate_size"],
            context=raw["max_position_embeddings"],
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            tie_embeddings=raw.get("tie_word_embeddings", False),
            activation=read_activation(raw, "hidden_act", "silu"),
            **read_rope(raw),
            **fields,
        )
    except KeyError as error:
        raise IntegrityError(f"config.json does not say {error.args[0]}") from error


def write_llama_like(config: ModelConfig, architecture: str, **keys: Any) -> dict[str, Any]:
    """config.json of such a model; `keys` are the family's own."""
    return {
        "architectures": [architecture],
        "model_type": config.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": hub_activation(config.activation),
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        **write_rope(config),
        "attention_dropout": 0.0,
        **keys,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": "float32",
    }


def faithful(
    config: ModelConfig, raw: dict[str, Any], read: Callable[[dict[str, Any]], ModelConfig]
) -> dict[str, Any]:
    """`raw`, after making sure that it says all of `config`: no family can express every one."""
    assert read(raw) == config, f"{config.model_type} cannot express {config}"
    return raw


def without_buffers(weights: Mapping[str, Tensor], endings: tuple[str, ...]) -> dict[str, Tensor]:
    """Weights without the tables that old versions stored beside them and that are computed."""
    return {name: weight for name, weight in weights.items() if not name.endswith(endings)}


def from_hub(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Weights by our names from weights by hub names: they are the same."""
    return without_buffers(weights, ("rotary_emb.inv_freq",))


def to_hub(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Weights by hub names from weights by our names: they are the same."""
    return dict(weights)
