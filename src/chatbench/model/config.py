"""The shape of a model in our words; `architectures/` translates to and from config.json."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from chatbench.errors import UsageError

Pooling = Literal["mean", "last"]
Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2", "tanh"]


class RopeScaling(NamedTuple):
    """How rotary positions are stretched beyond the length a model was first trained on.

    `original_context` is that length (yarn and llama3; dynamic takes the model's context). What is
    None follows from the rest, as the formulas in `rotary.py` say.
    """

    kind: Literal["linear", "dynamic", "yarn", "llama3"]
    factor: float
    original_context: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def check(self) -> RopeScaling:
        """Itself, or UsageError when the numbers cannot be meant."""
        for name, value in self._asdict().items():
            # Written so that NaN fails too.
            if type(value) in (int, float) and not 0 <= value < math.inf:
                raise UsageError(f"rope {name} is {value}, it must be finite and not negative")
        if self.factor == 0:
            raise UsageError("rope factor is 0")
        if self.kind in ("yarn", "llama3") and not self.original_context:
            raise UsageError(f"rope scaling {self.kind} does not say its original context")
        if self.kind == "llama3":
            low, high = self.low_freq_factor or 0, self.high_freq_factor or 0
            if not 0 < low < high:
                raise UsageError(
                    f"rope low_freq_factor {self.low_freq_factor} must be above 0 and below "
                    f"high_freq_factor {self.high_freq_factor}"
                )
        return self


class ModelConfig(NamedTuple):
    """Every block is x + attention(norm(x)), then x + mlp(norm(x)); the fields say which kinds.

    The defaults are those of our own models: rotary positions, RMSNorm, SwiGLU, QK-norm, no biases.
    """

    vocab_size: int
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_size: int
    context: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    model_type: str = "qwen3"
    positions: Literal["rotary", "learned"] = "rotary"
    rope: RopeScaling | None = None
    norm: Literal["rms", "layer"] = "rms"
    activation: Activation = "silu"
    gated: bool = True
    qk_norm: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    # Classes that the head tells apart, in the order of its rows; none: it names tokens.
    labels: tuple[str, ...] = ()
    # What of a text that head sees: the mean over its tokens, or its last token.
    pooling: Pooling = "last"
    # Whether a token sees only itself and what comes before it; all that writes text does.
    causal: bool = True

    def check(self) -> ModelConfig:
        """Itself, or UsageError when the numbers do not fit together."""
        for name, value in self._asdict().items():
            if type(value) is int and value < 1:
                raise UsageError(f"{name} is {value}, it must be at least 1")
        if self.n_heads % self.n_kv_heads:
            raise UsageError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            )
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1:
            raise UsageError("the labels of a classifier are two or more, all different")
        if not self.causal and not (self.labels and self.pooling == "mean"):
            raise UsageError("only a classifier by the mean of a text's tokens reads both ways")
        if not 0 <= self.norm_eps < math.inf:
            raise UsageError(f"norm_eps is {self.norm_eps}, it must be finite and not negative")
        if self.positions == "rotary":
            self._check_rotary()
        return self

    def _check_rotary(self) -> None:
        if self.head_dim % 2:
            raise UsageError(f"head_dim {self.head_dim} is odd, rotary positions need pairs")
        if not 1 < self.rope_theta < math.inf:
            raise UsageError(f"rope_theta is {self.rope_theta}, it must be finite and above 1")
        if self.rope is not None:
            self.rope.check()
            if self.rope.kind == "dynamic" and self.head_dim == 2:
                raise UsageError("head_dim 2 has one frequency, dynamic rope scaling needs two")
