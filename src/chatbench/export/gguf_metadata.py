"""The shape of a model as GGUF metadata: which of llama.cpp's architectures computes it, and its
numbers under that architecture's keys (GGUF specification; `llama.cpp/src/models`)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from chatbench.errors import IntegrityError
from chatbench.export.gguf_numbers import Floats, Format
from chatbench.export.gguf_tensors import Source
from chatbench.export.gguf_tokenizer import Value
from chatbench.model.config import ModelConfig, RopeScaling
from chatbench.model.rotary import frequencies

_FILE_TYPES: dict[Format, int] = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7}
# llama.cpp treats models whose name contains one of these in its own way.
_STEERING_NAMES = ("phi-3", "phi3", "modern-bert")


class Shape(NamedTuple):
    """`metadata` for the file; tensors that belong to it; `notices` on what differs."""

    architecture: str
    metadata: dict[str, Value]
    tensors: list[Source]
    notices: list[str]


def describe_model(config: ModelConfig, name: str, number_format: Format) -> Shape:
    """Everything but the tokenizer. Raises IntegrityError for what llama.cpp does not compute."""
    architecture = choose_architecture(config)
    metadata: dict[str, Value] = {"general.type": "model"}
    if not any(part in name.lower() for part in _STEERING_NAMES):
        metadata["general.name"] = name
    metadata["general.file_type"] = _FILE_TYPES[number_format]
    if number_format in ("q8_0", "q4_0"):
        metadata["general.quantization_version"] = 2
    numbers: dict[str, Value] = {
        "vocab_size": config.vocab_size,
        "context_length": config.context,
        "embedding_length": config.hidden_size,
        "block_count": config.n_layers,
        "feed_forward_length": config.ffn_size,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
    }
    norm = "layer_norm_rms_epsilon" if config.norm == "rms" else "layer_norm_epsilon"
    numbers[f"attention.{norm}"] = config.norm_eps
    shape = Shape(architecture, metadata, [], [])
    if config.positions == "rotary":
        numbers |= {
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
            "rope.dimension_count": config.head_dim,
            "rope.freq_base": config.rope_theta,
        }
        if config.rope is not None:
            numbers |= _stretched(config, config.rope, shape)
    metadata |= {f"{architecture}.{key}": value for key, value in numbers.items()}
    return shape


def choose_architecture(config: ModelConfig) -> str:
    """gpt2, qwen3, qwen2 or llama: by what is computed, whatever the family is called.

    Raises IntegrityError when it is none of them.
    """
    if config.positions == "learned":
        wanted = ModelConfig(
            **config._asdict()
            | {"norm": "layer", "activation": "gelu_tanh", "gated": False, "qk_norm": False,
               "qkv_bias": True, "out_bias": True, "ffn_bias": True, "n_kv_heads": config.n_heads,
               "head_dim": config.hidden_size // config.n_heads}
        )  # fmt: skip
        architecture = "gpt2"
    else:
        wanted = config._replace(norm="rms", activation="silu", gated=True)
        architecture = "llama"
        if config.qk_norm:
            wanted = wanted._replace(qkv_bias=False, out_bias=False, ffn_bias=False)
            architecture = "qwen3"
        elif config.qkv_bias and not config.out_bias and not config.ffn_bias:
            architecture = "qwen2"
    for field, value in config._asdict().items():
        if value != getattr(wanted, field):
            raise IntegrityError(
                f"llama.cpp's architecture {architecture} has no {field} {value}"
                f" (only {getattr(wanted, field)})",
                hint="export with --to hf instead",
            )
    return architecture


def _stretched(config: ModelConfig, rope: RopeScaling, shape: Shape) -> dict[str, Value]:
    """Keys of scaled positions; what has no key goes into `shape`."""
    if rope.kind == "dynamic":
        shape.notices.append(
            f"positions beyond {config.context} are stretched here, but not by llama.cpp"
        )
        return {}
    if rope.kind == "llama3":
        if shape.architecture != "llama":
            raise IntegrityError(
                f"llama.cpp's architecture {shape.architecture} has no llama3 rope scaling",
                hint="export with --to hf instead",
            )
        factors = _slowdowns(config)
        shape.tensors.append(Source("rope_freqs.weight", factors.shape, lambda: factors))
        return {}
    keys: dict[str, Value] = {"rope.scaling.type": rope.kind, "rope.scaling.factor": rope.factor}
    if rope.kind == "linear":
        return keys
    if not rope.truncate:
        raise IntegrityError(
            "llama.cpp has no yarn rope scaling with truncate false",
            hint="export with --to hf instead",
        )
    assert rope.original_context
    # llama.cpp multiplies by the factor of the paper by itself.
    usual = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
    return keys | {
        "rope.scaling.original_context_length": rope.original_context,
        "rope.scaling.attn_factor": frequencies(config, seen=1)[1] / usual,
        "rope.scaling.yarn_beta_fast": rope.beta_fast or 32.0,
        "rope.scaling.yarn_beta_slow": rope.beta_slow or 1.0,
    }


def _slowdowns(config: ModelConfig) -> Floats:
    """What each rotary frequency is divided by, (D/2,)."""
    scaled, _ = frequencies(config, seen=1)
    plain, _ = frequencies(config._replace(rope=None), seen=1)
    quotient: Floats = (plain / scaled).to(torch.float32).numpy().astype(np.float32)
    return quotient
