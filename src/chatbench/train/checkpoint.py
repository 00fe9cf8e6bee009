"""A checkpoint is a folder: a whole model, the optimiser, the state, a manifest over all three."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from chatbench import console
from chatbench.errors import IntegrityError
from chatbench.model.architectures import ARCHITECTURES
from chatbench.model.folder import read_config, read_weights, write_model
from chatbench.model.transformer import ModelConfig
from chatbench.storage import new_folder, remove_folder, verify, write_json
from chatbench.text.tokenizer import Tokenizer

KIND = "checkpoint"
_OPTIMIZER = "optimizer.safetensors"
_STATE = "state.json"


class TrainState(msgspec.Struct):
    """Where a run is. All randomness is a function of seed and step, so no generator is kept."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    window_total: float = 0.0
    window_weight: float = 0.0
    validated: int = 0
    log_bytes: dict[str, int] = msgspec.field(default_factory=dict)
    fingerprint: str = ""


class Restored(NamedTuple):
    state: TrainState
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    path: Path


def checkpoints_of(run: Path) -> list[Path]:
    """Oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def save(
    run: Path,
    state: TrainState,
    config: ModelConfig,
    weights: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    tokenizer: Tokenizer,
    provenance: dict[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint, then drop the oldest beyond `keep` and any of a later step, which is
    one that a resume found damaged and went back behind."""
    final = run / "checkpoints" / f"step-{state.step:08d}"
    # replace: such a one may bear the same name.
    with new_folder(final, KIND, {"step": state.step}, replace=True) as folder:
        write_model(folder / "model", config, weights, tokenizer, provenance)
        save_file(
            {name: value.cpu().contiguous() for name, value in optimizer.items()},
            folder / _OPTIMIZER,
        )
        write_json(folder / _STATE, state)
    kept = [path for path in checkpoints_of(run) if path <= final][-keep:]
    for path in checkpoints_of(run):
        if path not in kept:
            remove_folder(path)
    return final


def load_newest(run: Path) -> Restored | None:
    """The newest checkpoint that is whole; a damaged one is named and passed over.

    Raises IntegrityError when checkpoints exist and none is whole.
    """
    damaged: IntegrityError | None = None
    for path in reversed(checkpoints_of(run)):
        try:
            return _load(path)
        except IntegrityError as error:
            damaged = error
            console.notice(f"{error}; trying the checkpoint before it")
    if damaged is not None:
        raise damaged
    return None


def _load(path: Path) -> Restored:
    verify(path, KIND)
    try:
        state = msgspec.json.decode((path / _STATE).read_bytes(), type=TrainState)
        optimizer = dict(load((path / _OPTIMIZER).read_bytes()))
    except (msgspec.DecodeError, SafetensorError, OSError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    return Restored(state, _weights(path / "model"), optimizer, path)


def _weights(folder: Path) -> dict[str, Tensor]:
    """By our names; on disk they have the hub's."""
    config = read_config(folder)
    return ARCHITECTURES[config.model_type].from_hub(read_weights(folder), config)
