"""open_model and save_model: a model folder is a Hugging Face folder."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from chatbench.errors import IntegrityError, UsageError
from chatbench.model.architectures import qwen3
from chatbench.model.attention import rotary_table
from chatbench.model.transformer import GPT, ModelConfig
from chatbench.storage import read_manifest, verify_files, write_json
from chatbench.text.tokenizer import Tokenizer, open_tokenizer

ARCHITECTURES: dict[str, ModuleType] = {"qwen3": qwen3}
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class OpenedModel(NamedTuple):
    model: GPT
    tokenizer: Tokenizer
    folder: Path


def find_model(path: Path) -> Path:
    """The model folder that `path` names: itself, a run's `model/`, or its newest checkpoint.

    Raises UsageError when there is none.
    """
    if (path / CONFIG).is_file() or (path / WEIGHTS).is_file():
        return path
    if (path / "model").is_dir():
        return path / "model"
    checkpoints = sorted(path.glob("checkpoints/step-*/model"))
    if checkpoints:
        return checkpoints[-1]
    if not path.exists():
        near = [p.name for p in path.absolute().parent.glob("*")][:200]
        close = get_close_matches(path.name, near, n=1, cutoff=0.75)
        hint = (
            f"did you mean {path.parent / close[0]}?" if close else "train one, or check the path"
        )
        raise UsageError(f"{path} does not exist", hint=hint)
    raise UsageError(
        f"{path} holds no model", hint="name a folder with config.json, or a run folder"
    )


def open_model(path: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> OpenedModel:
    """Find, verify and load a model with its tokenizer, ready to compute on `device`.

    Raises UsageError (nothing there), IntegrityError (damaged, incomplete or not supported).
    """
    folder = find_model(path)
    try:
        return _open(folder, device, dtype)
    except FileNotFoundError as error:  # a run in progress drops its oldest checkpoints
        raise IntegrityError(
            f"{error.filename} went away while {folder} was read", hint="try again"
        ) from error


def _open(folder: Path, device: torch.device, dtype: torch.dtype) -> OpenedModel:
    # A checkpoint's manifest lies above its model/.
    for holder in (folder, folder.parent) if folder.name == "model" else (folder,):
        manifest = read_manifest(holder)
        if manifest is not None:
            verify_files(holder, manifest)
            break
    tokenizer = open_tokenizer(folder)
    config = read_config(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise IntegrityError(
            f"{folder} has a tokenizer of {tokenizer.vocab_size} entries for a model of "
            f"{config.vocab_size}",
            hint="use the tokenizer it was trained with",
        )
    model = _build(config, read_weights(folder))
    return OpenedModel(model.to(device, dtype).eval(), tokenizer, folder)


def _build(config: ModelConfig, weights: dict[str, Tensor]) -> GPT:
    """A model that owns these weights: nothing is initialised, nothing copied."""
    with torch.device("meta"):
        model = GPT(config)
    wanted = stored_weights(model)
    if config.tie_embeddings:
        weights.pop("lm_head.weight", None)
    check_weights(wanted, weights)
    model.load_state_dict(weights, strict=False, assign=True)
    model.tie()
    model.rotary = rotary_table(config.context, config.head_dim, config.rope_theta)
    return model


def read_provenance(folder: Path) -> dict[str, Any]:
    """What `write_model` noted about where a model came from; empty for other models."""
    raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    noted = raw.get("chatbench")
    return noted if isinstance(noted, dict) else {}


def read_config(folder: Path) -> ModelConfig:
    """config.json in our words. Raises IntegrityError."""
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        architecture = ARCHITECTURES.get(raw.get("model_type"))
    except FileNotFoundError:
        raise IntegrityError(f"{folder} has no {CONFIG}") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise IntegrityError(f"{path} is not a readable configuration: {error}") from error
    if architecture is None:
        raise IntegrityError(
            f"{path} is of model_type {raw.get('model_type')!r}, which chatbench does not compute",
            hint=f"known: {', '.join(ARCHITECTURES)}",
        )
    try:
        # As a tuple, or the types would not be looked at.
        return msgspec.convert(tuple(architecture.read(raw)), ModelConfig).check()
    except (msgspec.ValidationError, AttributeError, TypeError, UsageError) as error:
        raise IntegrityError(f"{path} does not describe a model: {error}") from error


def read_weights(folder: Path) -> dict[str, Tensor]:
    """model.safetensors, whole. Raises IntegrityError."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise IntegrityError(
            f"{folder} has no {WEIGHTS}", hint="other weight files, pickles above all, are not read"
        )
    try:
        # Read, not mapped: a file that shrinks under a mapping kills the process.
        return dict(load(path.read_bytes()))
    except (SafetensorError, ValueError) as error:
        raise IntegrityError(
            f"{path} is damaged: {error}", hint="restore it from a copy or make it again"
        ) from error


def check_weights(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Names and shapes must match. Raises IntegrityError."""
    missing, extra = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    if missing or extra:
        what = f"lacks {min(missing)}" if missing else f"holds an unknown {min(extra)}"
        raise IntegrityError(f"{WEIGHTS} {what}, so it does not belong to its {CONFIG}")
    for name, parameter in wanted.items():
        if parameter.shape != found[name].shape:
            raise IntegrityError(
                f"{WEIGHTS}: {name} has shape {tuple(found[name].shape)}, "
                f"{CONFIG} wants {tuple(parameter.shape)}"
            )


def stored_weights(model: GPT) -> dict[str, Tensor]:
    """Parameters by hub name, tied ones once."""
    return {name: p.detach() for name, p in sorted(model.named_parameters())}


def write_model(
    folder: Path, config: ModelConfig, weights: dict[str, Tensor], tokenizer: Tokenizer,
    provenance: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Fill a folder that `storage.new_folder` made, so that transformers opens it."""
    folder.mkdir(exist_ok=True)
    raw = ARCHITECTURES[config.model_type].write(config)
    stops = [tokenizer.turn_end, tokenizer.end_of_text]
    tokens = {"eos_token_id": tokenizer.turn_end, "pad_token_id": tokenizer.end_of_text}
    write_json(folder / CONFIG, {**raw, **tokens, "chatbench": provenance or {}})
    write_json(
        folder / "generation_config.json",
        {"eos_token_id": stops, "pad_token_id": tokenizer.end_of_text},
    )
    contiguous = {name: w.to("cpu", torch.float32).contiguous() for name, w in weights.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})
    tokenizer.save(folder, config.context)
