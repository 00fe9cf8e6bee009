"""Hub model families: each a module that translates config.json and weights, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from chatbench.model.architectures import gpt2, llama, mistral, qwen2, qwen3
from chatbench.model.config import ModelConfig


class Architecture(Protocol):
    """What a module named after its `model_type` offers."""

    def read(self, raw: dict[str, Any]) -> ModelConfig:
        """From config.json. Raises IntegrityError for what is missing or not computed."""

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """To config.json, readable by transformers 4 and 5; `read` gives the same config back."""

    def from_hub(self, weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """Weights by our names and layouts from those of the hub, for any part of them."""

    def to_hub(self, weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """Weights by hub names and layouts from ours, for whole blocks."""


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": gpt2,
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
}
