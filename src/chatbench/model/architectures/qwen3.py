"""`model_type` qwen3: config.json ↔ ModelConfig. Weight names are ours already."""

from __future__ import annotations

from typing import Any

from chatbench.errors import IntegrityError
from chatbench.model.transformer import ModelConfig


def read(raw: dict[str, Any]) -> ModelConfig:
    """From config.json, in the spelling of transformers 4 or 5.

    Raises IntegrityError for what the model asks for and we do not compute.
    """
    ropes = [raw[key] for key in ("rope_parameters", "rope_scaling") if raw.get(key)]
    scaled = {rope.get("rope_type", rope.get("type")) for rope in ropes} - {None, "default"}
    _refuse(raw.get("use_sliding_window"), "sliding-window attention")
    _refuse(
        set(raw.get("layer_types") or ()) - {"full_attention"}, "layer_types beside full_attention"
    )
    _refuse(scaled, "scaled rotary positions")
    _refuse(raw.get("attention_bias"), "attention biases")
    _refuse(raw.get("hidden_act", "silu") != "silu", f"activation {raw.get('hidden_act')}")
    try:
        heads = raw["num_attention_heads"]
        return ModelConfig(
            vocab_size=raw["vocab_size"],
            n_layers=raw["num_hidden_layers"],
            hidden_size=raw["hidden_size"],
            n_heads=heads,
            n_kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=raw.get("head_dim") or 128,
            ffn_size=raw["intermediate_size"],
            context=raw["max_position_embeddings"],
            rope_theta=next((t for r in [*ropes, raw] if (t := r.get("rope_theta"))), 10_000.0),
            norm_eps=raw.get("rms_norm_eps", 1e-6),
            tie_embeddings=raw.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise IntegrityError(f"config.json does not say {error.args[0]}") from error


def _refuse(condition: object, feature: str) -> None:
    if condition:
        raise IntegrityError(f"config.json asks for {feature}, which chatbench does not compute")


def write(config: ModelConfig) -> dict[str, Any]:
    """To config.json, readable by transformers 4 and 5."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": "float32",
    }
