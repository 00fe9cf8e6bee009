"""Number formats of GGUF tensors: which one a tensor gets, conversion in pieces, and how far a
number may move by it (block formats of ggml: `ggml-common.h`, 32 numbers share one f16 scale)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from chatbench.errors import IntegrityError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

Format = Literal["f32", "f16", "q8_0", "q4_0"]
Floats = npt.NDArray[np.float32]

BLOCK = 32
_LARGEST_F16 = 65504.0
_PIECE = 1 << 22  # numbers converted at once

# Read as rows by id: llama.cpp's own converter leaves positions alone, and a vocabulary in 4 bits
# costs more than it saves.
_POSITIONS = "position_embd.weight"
_VOCABULARY = ("token_embd.weight", "output.weight")


def choose_format(name: str, shape: tuple[int, ...], wanted: Format) -> Format:
    """The format of tensor `name` in a file of format `wanted`.

    Norms, biases and positions stay f32; the vocabulary gets 8 bits where matrices get 4; rows
    that are not whole blocks stay f16.
    """
    if len(shape) < 2 or name == _POSITIONS:
        return "f32"
    if wanted in ("q8_0", "q4_0") and shape[-1] % BLOCK:
        return "f16"
    return "q8_0" if wanted == "q4_0" and name in _VOCABULARY else wanted


def ggml_type(number_format: Format) -> GGMLQuantizationType:
    """The package's name for a format."""
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType[number_format.upper()]


def stored_bytes(shape: tuple[int, ...], number_format: Format) -> int:
    """Bytes of a tensor in the file."""
    numbers = int(np.prod(shape, dtype=np.int64))
    if number_format in ("f32", "f16"):
        return numbers * (4 if number_format == "f32" else 2)
    return numbers // BLOCK * (34 if number_format == "q8_0" else 18)


def convert(name: str, weight: Floats, number_format: Format) -> npt.NDArray[np.uint8]:
    """The bytes of a tensor (flat); no more than `_PIECE` numbers are held in between.

    Raises IntegrityError for numbers that the format cannot hold.
    """
    from gguf.quants import quantize

    flat = weight.reshape(-1)
    # NaN comes through both.
    largest = float(max(flat.max(initial=0.0), -flat.min(initial=0.0)))
    # The scale of a block is an f16 as well: amax / 127 and amax / 8.
    limit = {"f32": np.inf, "f16": 1.0, "q8_0": 127.0, "q4_0": 8.0}[number_format] * _LARGEST_F16
    if not largest < np.inf or largest > limit:
        what = "numbers that are not finite" if not largest < np.inf else f"{largest:.3g}"
        raise IntegrityError(
            f"{name} holds {what}, which {number_format} cannot",
            hint="export with --quantize f32" if largest < np.inf else "the training diverged",
        )
    out = np.empty(stored_bytes(weight.shape, number_format), np.uint8)
    kind, done = ggml_type(number_format), 0
    for start in range(0, flat.size, _PIECE):
        # A block of numbers too small for an f16 scale becomes zeros.
        with np.errstate(all="ignore"):
            piece = quantize(flat[start : start + _PIECE], kind).reshape(-1).view(np.uint8)
        out[done : done + piece.size] = piece
        done += piece.size
    return out


def allowed_error(weight: Floats, number_format: Format) -> npt.NDArray[np.float64]:
    """How far each number of `weight` (flat) may lie from what is stored.

    f16: half a unit in the last place. Blocks with scale d = amax / 127 or |max| / 8: half a step
    of d (q4_0: a whole one, its range reaches from -8 d to 7 d only) and the rounding of d to f16.
    """
    exact = np.abs(weight.reshape(-1).astype(np.float64))
    if number_format == "f32":
        return np.zeros_like(exact)
    if number_format == "f16":
        return exact * 2.0**-11 + 2.0**-25
    largest = np.repeat(exact.reshape(-1, BLOCK).max(1), BLOCK)
    steps, share = (127, 0.5) if number_format == "q8_0" else (8, 1.0)
    scale = largest / steps
    return scale * share * (1 + 1e-5) + steps * (scale * 2.0**-11 + 2.0**-25)
