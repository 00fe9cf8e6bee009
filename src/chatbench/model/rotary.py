"""Rotary positions (Su et al. 2021) and the four ways in which families stretch them.

Legend: D head width, T tokens, B rows. Pairs are half-split as in Llama: entry i turns with entry
i + D/2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from chatbench.model.config import ModelConfig, RopeScaling

_FIRST_REACH = 256


class RotaryTable:
    """cos and sin of the positions met so far: made when first needed, doubled when outgrown.

    No buffer of the model: it never travels with weights nor changes their number format, and a
    model of a context of 128K that reads short texts spends nothing on the rest.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._table = torch.zeros(2, 0, config.head_dim // 2)

    def at(self, position: Tensor, reach: int, dtype: torch.dtype) -> Tensor:
        """cos and sin (2, B, T, 1, D) of `position` (B, T), all of them below `reach`."""
        table = self._covering(reach, position.device)
        half = table[:, position].to(dtype)[:, :, :, None]
        return torch.cat((half, half), dim=-1)

    def first(self, count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """cos and sin (2, 1, T, 1, D) of the positions 0 to `count` - 1."""
        half = self._covering(count, device)[:, None, :count, None].to(dtype)
        return torch.cat((half, half), dim=-1)

    def cover(self, reach: int, device: torch.device) -> Tensor:
        """Make the table now, so that later calls find it (before a compiler traces them); the
        table, for those who must keep it from being freed when a longer one takes its place."""
        return self._covering(reach, device)

    def depends_on_length(self) -> bool:
        """Whether the angle of a position changes with the length of the text it is in."""
        rope = self._config.rope
        return rope is not None and rope.kind == "dynamic"

    def _covering(self, reach: int, device: torch.device) -> Tensor:
        if self.depends_on_length() and reach > self._config.context:
            return _angles(self._config, reach, device, seen=reach)
        if self._table.shape[1] < reach or self._table.device != device:
            held = self._table.shape[1]
            size = held if held >= reach else max(reach, 2 * held, _FIRST_REACH)
            self._table = _angles(self._config, size, device, seen=1)
        return self._table


def _angles(config: ModelConfig, positions: int, device: torch.device, seen: int) -> Tensor:
    """cos and sin (2, positions, D/2) in float32 on the device, from angles in float64."""
    # A table made while generating must serve training later, its copy on the device too.
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        frequency, factor = frequencies(config, seen)
        angle = torch.arange(positions, dtype=torch.float64)[:, None] * frequency
        return (torch.stack((angle.cos(), angle.sin())) * factor).float().to(device)


def frequencies(config: ModelConfig, seen: int) -> tuple[Tensor, float]:
    """Radians a position (D/2,) in float64, and the factor on cos and sin.

    `seen`: length of the text so far; only `dynamic` looks at it.
    """
    rope = config.rope
    theta = config.rope_theta
    if rope is not None and rope.kind == "dynamic":
        theta = _dynamic_theta(config, rope, seen)
    width = config.head_dim
    plain = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    if rope is None or rope.kind == "dynamic":
        return plain, 1.0
    if rope.kind == "linear":
        return plain / rope.factor, 1.0
    if rope.kind == "llama3":
        return _llama3(plain, rope), 1.0
    return _yarn(plain, config, rope), _yarn_attention_factor(rope)


def _dynamic_theta(config: ModelConfig, rope: RopeScaling, seen: int) -> float:
    """NTK-aware scaling that grows with the text once it is longer than the context."""
    stretch = max(seen, config.context) / config.context
    width = config.head_dim
    grown = 1 + rope.factor * (stretch - 1)
    return float(config.rope_theta * grown ** (width / (width - 2)))


def _llama3(plain: Tensor, rope: RopeScaling) -> Tensor:
    """Llama 3.1: long waves are slowed by `factor`, short ones kept, a ramp between."""
    original, low, high = rope.original_context, rope.low_freq_factor, rope.high_freq_factor
    assert original
    assert low
    assert high
    turns = original * plain / (2 * math.pi)  # within the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * (kept + (1 - kept) / rope.factor)


def _yarn(plain: Tensor, config: ModelConfig, rope: RopeScaling) -> Tensor:
    """YaRN (Peng et al. 2023): a ramp over the pairs, from kept to slowed by `factor`."""
    assert rope.original_context
    width, original = config.head_dim, rope.original_context

    def pair_that_turns(times: float) -> float:
        return (
            width * math.log(original / (times * 2 * math.pi)) / (2 * math.log(config.rope_theta))
        )

    low, high = pair_that_turns(rope.beta_fast or 32), pair_that_turns(rope.beta_slow or 1)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    pair = torch.arange(width // 2, dtype=torch.float64)
    slowed = ((pair - low) / (high - low)).clamp(0, 1)
    return plain * ((1 - slowed) + slowed / rope.factor)


def _betas(rope: RopeScaling) -> tuple[float, float]:
    """Turns within the original context above which a pair is kept, below which it is slowed."""
    return rope.beta_fast or 32, rope.beta_slow or 1


def _yarn_attention_factor(rope: RopeScaling) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def scale(by: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * by * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)
