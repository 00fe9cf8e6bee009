"""Reading an export again and comparing it with the model it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from chatbench.errors import IntegrityError
from chatbench.export.gguf import Entry, Plan
from chatbench.export.gguf_numbers import allowed_error, ggml_type
from chatbench.model.folder import OpenedModel, open_model, stored_weights

if TYPE_CHECKING:
    from gguf import ReaderTensor
    from torch import Tensor

_PIECE = 1 << 22  # numbers compared at once, whole blocks of every format
_PROBE_TOKENS = 48


def verify_gguf(path: Path, content: Plan) -> None:
    """Compare every key and every number of a file with what it should hold.

    Raises IntegrityError naming the first difference.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, KeyError, IndexError) as error:
        raise _differs(path, f"it cannot be read: {error}") from error
    found = {key: field.contents() for key, field in reader.fields.items()}
    if found.get("general.architecture") != content.architecture:
        raise _differs(path, f"its architecture is {found.get('general.architecture')!r}")
    for key, value in content.metadata.items():
        if not _same(found.get(key), value):
            raise _differs(path, f"{key} is not what was written")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if tensors.keys() != {entry.source.name for entry in content.entries}:
        raise _differs(path, "it does not hold the tensors of the model")
    for entry in content.entries:
        _compare(path, entry, tensors[entry.source.name])


def _same(found: Any, wanted: Any) -> bool:
    """Equal, as far as 32 bits carry a float."""
    if isinstance(wanted, float):
        return isinstance(found, float) and np.float32(found) == np.float32(wanted)
    if isinstance(wanted, list) and wanted and isinstance(wanted[0], float):
        return np.array_equal(np.asarray(found, np.float32), np.asarray(wanted, np.float32))
    return type(found) is type(wanted) and bool(found == wanted)


def _compare(path: Path, entry: Entry, stored: ReaderTensor) -> None:
    from gguf.quants import dequantize

    source, number_format = entry
    kind = ggml_type(number_format)
    # GGUF counts dimensions from the innermost.
    if stored.tensor_type != kind or tuple(stored.shape[::-1]) != source.shape:
        raise _differs(path, f"{source.name} has another type or shape")
    weight = source.load().reshape(-1)
    raw = stored.data.reshape(-1).view(np.uint8)
    for start in range(0, weight.size, _PIECE):
        piece = weight[start : start + _PIECE]
        share = raw[start * raw.size // weight.size :][: piece.size * raw.size // weight.size]
        numbers = dequantize(share.copy(), kind).reshape(-1).astype(np.float64)
        wrong = ~(np.abs(numbers - piece) <= allowed_error(piece, number_format))
        if wrong.any():
            at = int(wrong.argmax())
            raise _differs(
                path,
                f"{source.name} holds {numbers[at]:.6g} where the model has {piece[at]:.6g}",
            )


def verify_folder(folder: Path, opened: OpenedModel, weights: dict[str, Tensor]) -> None:
    """Open a written folder and compare all tensors bit by bit, then logits and ids of a probe.

    Raises IntegrityError naming the first difference.
    """
    again = open_model(folder, torch.device("cpu"))
    found = stored_weights(again.model)
    if found.keys() != weights.keys():
        raise _differs(folder, "it does not hold the tensors of the model")
    for name, weight in weights.items():
        if not torch.equal(found[name], weight.to(found[name].dtype)):
            raise _differs(folder, f"{name} is not what was written")
    probe = "A probe, 一个探针: 1 + 2 = 3?\n\tdef f(x): return x"
    ids = opened.tokenizer.encode(probe)
    if again.tokenizer.encode(probe) != ids or again.tokenizer.digest != opened.tokenizer.digest:
        raise _differs(folder, "its tokenizer is another")
    ids = ids[: min(_PROBE_TOKENS, opened.model.config.context)]
    with torch.inference_mode():
        row = torch.tensor([ids])
        mine, its = (m.logits(m(row)) for m in (opened.model, again.model))
    if not torch.equal(mine, its):
        raise _differs(folder, "its logits differ")


def _differs(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"{path} does not hold what was exported: {what}",
        hint="this is a defect of the program or the disk, and the export was not kept",
    )
