"""Weights as codes of 8 or 4 bits with scales: the numbers alone, without layers.

Legend: N outputs, K inputs, G group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Elements searched at once: few enough to stay near the processor.
_PIECE = 1 << 19
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
_REFINEMENTS = 3


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes (N, K) and bfloat16 scales (N,); no weight moves by more than half a scale."""
    wide = weight.float()
    scales = (wide.abs().amax(1) / 127).clamp(min=1e-30).to(torch.bfloat16)
    codes = (wide / scales.float()[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scales


def quantize_groups(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """int4 codes 0…15 as uint8 (N, K), and bfloat16 scales and zeros (K/G, N, 2).

    Each group takes the range, from its extremes to 0.8 of them, whose squared error is least;
    then scale and zero are fitted to the codes by least squares as long as that helps.
    Raises ValueError when G does not divide K.
    """
    rows, inputs = weight.shape
    if inputs % group:
        raise ValueError(f"groups of {group} do not divide {inputs} inputs")
    step = max(1, _PIECE // inputs)
    parts = [
        _search(piece.float().reshape(len(piece), -1, group)) for piece in torch.split(weight, step)
    ]
    codes = torch.cat([codes for codes, _, _ in parts]).view(rows, inputs)
    scales = torch.stack([torch.cat([part[i] for part in parts]).T for i in (1, 2)], dim=-1)
    return codes, scales.contiguous()


class _Fit(NamedTuple):
    """Groups (n, g, G) as codes, with scale and zero (n, g)."""

    codes: Tensor
    scale: Tensor
    zero: Tensor


def _search(groups: Tensor) -> _Fit:
    low, high = groups.amin(-1), groups.amax(-1)
    best, least = None, None
    for shrink in _SHRINKS:
        scale = ((high - low) * (shrink / 15)).to(torch.bfloat16).float()
        lowest = low + (high - low) * ((1 - shrink) / 2)
        best, least = _better(best, least, groups, scale, lowest + 8 * scale)
    assert best is not None
    for _ in range(_REFINEMENTS):
        codes = best.codes.float() - 8
        mean, middle = codes.mean(-1), groups.mean(-1)
        away = codes - mean[..., None]
        spread = away.square().sum(-1)
        scale = (away * groups).sum(-1) / spread.clamp(min=1e-9)
        best, least = _better(best, least, groups, scale, middle - scale * mean)
    return best


def _better(
    best: _Fit | None, least: Tensor | None, groups: Tensor, scale: Tensor, zero: Tensor
) -> tuple[_Fit, Tensor]:
    """The fit by this scale and zero, in the groups where its squared error is smaller."""
    scale = scale.clamp(min=1e-30).to(torch.bfloat16)
    zero = zero.to(torch.bfloat16)
    step, offset = scale.float()[..., None], zero.float()[..., None]
    codes = ((groups - offset) / step + 8).round_().clamp_(0, 15)
    error = ((codes - 8) * step + offset).sub_(groups).square_().sum(-1)
    fresh = _Fit(codes.to(torch.uint8), scale, zero)
    if best is None or least is None:
        return fresh, error
    wins = error < least
    chosen = [torch.where(wins, new, old) for new, old in zip(fresh[1:], best[1:], strict=True)]
    codes = torch.where(wins[..., None], fresh.codes, best.codes)
    return _Fit(codes, *chosen), torch.where(wins, error, least)
