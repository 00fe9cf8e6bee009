"""The verb export: a model leaves as one GGUF file or as a plain folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from chatbench import console
from chatbench.errors import UsageError
from chatbench.export.gguf import Plan, plan, require_gguf, write_gguf
from chatbench.export.verify import verify_folder, verify_gguf
from chatbench.model.adapter import fold
from chatbench.model.finding import find_model
from chatbench.model.folder import (
    CONFIG,
    OpenedModel,
    find_base,
    open_model,
    read_provenance,
    stored_weights,
    write_model,
)
from chatbench.model.labels import labels_of
from chatbench.model.weights import READABLE, open_weights
from chatbench.settings import ExportSettings
from chatbench.storage import new_file, new_folder, require_own

KIND = "model"
DEFAULT_FORMAT: Final = "f16"
_MAGIC = b"GGUF"
# The first transformers that knows a family, where it is not older than safetensors.
_KNOWN_SINCE = {"qwen3": "4.51", "qwen2": "4.37", "mistral": "4.34"}


def export(settings: ExportSettings) -> Path:
    """Write a model for other programs; the path of what was written.

    Raises UsageError (nothing to open, a classifier, the path is taken, package gguf absent),
    IntegrityError (a damaged model, or one that the other programs would compute or read
    differently), EnvironmentFault (disk).
    """
    out = Path(settings.out)
    if labels_of(settings.model):
        raise UsageError(
            f"{settings.model} is a classifier; what is exported are models that write text",
            hint=f"its folder {find_model(Path(settings.model))} is a Hugging Face folder already; "
            f"labels: chatbench classify -m {settings.model}",
        )
    if settings.to == "gguf":
        require_gguf()
        _require_free_file(out, overwrite=settings.overwrite)
    elif settings.quantize is not None:
        raise UsageError(
            f"--quantize {settings.quantize} is for --to gguf; a plain folder keeps the numbers as "
            "the model has them",
            hint="leave it out, or choose --to gguf",
        )
    else:
        require_own(out, KIND, overwrite=settings.overwrite)
    opened = open_model(settings.model, torch.device("cpu"), template=settings.template)
    fold(opened.model)
    if settings.to == "gguf":
        return _export_gguf(out, opened, settings)
    return _export_folder(out, opened, settings)


def _export_gguf(out: Path, opened: OpenedModel, settings: ExportSettings) -> Path:
    weights = stored_weights(opened.model)
    content = plan(opened, weights, out.stem, settings.quantize or DEFAULT_FORMAT)
    with new_file(out) as temporary:
        write_gguf(temporary, content)
        if settings.verify:
            verify_gguf(temporary, content)
    _tell(content, verified=settings.verify)
    return out


def _tell(content: Plan, *, verified: bool) -> None:
    rows = [
        (number_format, f"{tensors:,}", f"{size:,}")
        for number_format, (tensors, size) in content.sizes().items()
    ]
    console.table("", ("format", "tensors", "bytes"), rows)
    console.say(f"architecture {content.architecture}, pre-tokenizer {content.splitter}")
    for notice in content.notices:
        console.notice(notice)
    if verified:
        console.say("verified: metadata, vocabulary, chat template and every number read again")


def _require_free_file(out: Path, *, overwrite: bool) -> None:
    """Raise UsageError when `out` is taken, with `overwrite` by anything but a GGUF file."""
    if not out.exists():
        return
    if not overwrite:
        raise UsageError(
            f"{out} exists already", hint="choose another -o, or replace it with --overwrite"
        )
    if out.is_file():
        with open(out, "rb") as handle:
            if handle.read(len(_MAGIC)) in (b"", _MAGIC):
                return
    raise UsageError(
        f"{out} exists already and is not a GGUF file, so it is not replaced",
        hint="choose another place",
    )


def _stored_dtype(folder: Path) -> torch.dtype:
    """The number format of a whole model's weights, which then stay bit for bit; float32 for what
    holds several, and for adapters, whose sum with the weights half the bits would round."""
    if find_base(folder) is None:
        kinds = {READABLE.get(entry.dtype) for entry in open_weights(folder).values()}
        if len(kinds) == 1:
            return kinds.pop() or torch.float32
    return torch.float32


def _export_folder(out: Path, opened: OpenedModel, settings: ExportSettings) -> Path:
    dtype = _stored_dtype(opened.folder)
    weights = {name: weight.to(dtype) for name, weight in stored_weights(opened.model).items()}
    config = opened.model.config
    noted = read_provenance(opened.folder) if (opened.folder / CONFIG).is_file() else {}
    with new_folder(out, KIND, replace=settings.overwrite) as folder:
        write_model(folder, config, weights, opened.tokenizer, noted)
        if settings.verify:
            verify_folder(folder, opened, weights)
    since = _KNOWN_SINCE.get(config.model_type)
    wanted = f" of version {since} or newer" if since else ""
    console.notice(f"opens with transformers{wanted}, and with programs that read its folders;"
                   " no code of chatbench is needed")  # fmt: skip
    if settings.verify:
        console.say("verified: tensors, tokenizer and logits read again")
    return out
