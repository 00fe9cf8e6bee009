"""Names of activations: the hub's, which has several for one function, and ours."""

from __future__ import annotations

from typing import Any

from chatbench.model.architectures.refusals import refuse
from chatbench.model.config import Activation

_OURS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "tanh": "tanh",
}


def read_activation(raw: dict[str, Any], key: str, default: str) -> Activation:
    """What `key` of config.json names, in our word. Raises IntegrityError when unknown."""
    name = raw.get(key, default)
    refuse(not isinstance(name, str) or name not in _OURS, f"activation {str(name)[:40]}")
    return _OURS[name]


def hub_activation(activation: Activation) -> str:
    """The hub's first name for it."""
    return next(hub for hub, ours in _OURS.items() if ours == activation)
