"""How many numbers a weights file holds, from its header alone, without torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from chatbench.errors import IntegrityError

_LARGEST_HEADER = 100_000_000  # bytes, the format's own limit


def parameters_in(folder: Path) -> int | None:
    """Of model.safetensors, of all its shards, or of an adapter; None where none of them is.

    Raises IntegrityError when a header cannot be read.
    """
    for name in ("model.safetensors", "adapter_model.safetensors"):
        if (folder / name).is_file():
            return count_parameters(folder / name)
    counts = [count_parameters(shard) for shard in sorted(folder.glob("model-*-of-*.safetensors"))]
    return sum(count for count in counts if count) or None


def count_parameters(weights: Path) -> int | None:
    """Numbers in a safetensors file, from its header alone; None when there is no such file.

    Format: 8 bytes of header length, little-endian, then JSON of name → dtype, shape, offsets.
    Raises IntegrityError when the header cannot be read.
    """
    if not weights.is_file():
        return None
    try:
        with open(weights, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > _LARGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(handle.read(length))
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        return sum(_product(shape) for shape in shapes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise IntegrityError(f"{weights} is damaged: {error}") from error


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= int(size)
    return total
