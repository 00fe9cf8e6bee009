"""A checkpoint is a folder: a model, the optimiser, the state, a manifest over all three.

Where a part of the model learns, what is in `model/` may be an adapter, and that part lies beside
it as it is. Where parameters are spread over ranks, `sharded/` is in place of all weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from chatbench.model.weights import Deferred, read_file
from chatbench.storage import FileEntry, new_folder, remove_folder, verify, write_json
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.adapting import Write
from chatbench.train.parts import Meeting, Part, Parts
from chatbench.train.skipping import Skips
from chatbench.train.window import Window

KIND = "checkpoint"
_OPTIMIZER = "optimizer.safetensors"
_LEARNED = "learned.safetensors"
_STATE = "state.json"
_SHARDED = "sharded"


class TrainState(msgspec.Struct):
    """Where a run is. All randomness is a function of seed and step, so no generator is kept.

    `base`: digest of the weights beside those that learn. `validated`, `val_loss`: the newest
    validation; `best_step`, `best_loss`: the best; `stale`: validations since. `norm`: the newest
    gradient norm. `micro_batch`: rows computed at once, which memory may have made fewer.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    window: Window = msgspec.field(default_factory=Window)
    validated: int = 0
    val_loss: float | None = None
    best_step: int = 0
    best_loss: float | None = None
    stale: int = 0
    micro_batch: int = 0
    norm: float = 0.0
    skips: Skips = msgspec.field(default_factory=Skips)
    log_bytes: dict[str, int] = msgspec.field(default_factory=dict)
    fingerprint: str = ""
    tokenizer: str = ""
    base: str = ""

    def judge(self, loss: float) -> None:
        """Take in the validation of this step."""
        self.validated, self.val_loss = self.step, loss
        if loss < (math.inf if self.best_loss is None else self.best_loss):
            self.best_step, self.best_loss, self.stale = self.step, loss, 0
        else:
            self.stale += 1

    def copied(self) -> TrainState:
        """A copy that shares nothing."""
        return msgspec.convert(msgspec.to_builtins(self), TrainState)


class Restored(NamedTuple):
    state: TrainState
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
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
    write: Write | None = None,
) -> Path:
    """Write a checkpoint and read it back, then drop all but the newest `keep` and the best.

    `write`: fills the model folder where `weights` are those of a part of the model. One of a later
    step goes too: a resume found it damaged and went back behind it.
    """
    final = checkpoint_of(run, state.step)
    # replace: such a one may bear the same name.
    with new_folder(final, KIND, {"step": state.step}, replace=True) as folder:
        (write or write_model)(folder / "model", config, weights, tokenizer, provenance)
        held = {_OPTIMIZER: optimizer} | ({_LEARNED: weights} if write else {})
        for name, tensors in held.items():
            save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, folder / name)
        write_json(folder / _STATE, state)
    verify(final, KIND)
    _drop_others(run, state, keep)
    return final


def save_part(run: Path, state: TrainState, part: Part, meeting: Meeting, keep: int) -> Path | None:
    """What `save` does, by all ranks together; `run` and `keep` are rank 0's, which returns the
    folder. Each has read its own file back.

    Raises EnvironmentFault on the rank that cannot write.
    """
    if part.rank:
        meeting.follow(state.step, part)
        return None
    final = checkpoint_of(run, state.step)
    known: dict[str, FileEntry] = {}
    info = {"step": state.step}
    with new_folder(final, KIND, info, replace=True, known=known) as folder:
        written = meeting.lead(state.step, folder / _SHARDED, part)
        known |= {f"{_SHARDED}/{name}": entry for name, entry in written.items()}
        write_json(folder / _STATE, state)
    _drop_others(run, state, keep)
    return final


def _drop_others(run: Path, state: TrainState, keep: int) -> None:
    """All checkpoints but the newest `keep` and the best."""
    final = checkpoint_of(run, state.step)
    kept = [path for path in checkpoints_of(run) if path <= final][-keep:]
    kept.append(checkpoint_of(run, state.best_step))
    for path in checkpoints_of(run):
        if path not in kept:
            remove_folder(path)


def checkpoint_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies, or would lie."""
    return run / "checkpoints" / f"step-{step:08d}"


def weights_at(run: Path, step: int) -> Mapping[str, Tensor | Deferred]:
    """A checkpoint's weights, of what learns, by our names, deferred where ranks wrote their parts.

    Raises IntegrityError unless it is there and whole.
    """
    path = checkpoint_of(run, step)
    verify(path, KIND)
    if (path / _SHARDED).is_dir():
        return Parts(path / _SHARDED).chosen(memory=False).deferred()
    return _weights(path)


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
        if (path / _SHARDED).is_dir():
            parts = Parts(path / _SHARDED)
            weights, memory = parts.chosen(memory=False), parts.chosen(memory=True)
            return Restored(state, weights, memory, path)
        optimizer = dict(load((path / _OPTIMIZER).read_bytes()))
    except (msgspec.DecodeError, SafetensorError, OSError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    return Restored(state, _weights(path), optimizer, path)


def _weights(path: Path) -> dict[str, Tensor]:
    """By our names; in a model folder they have the hub's."""
    if (path / _LEARNED).is_file():
        return read_file(path / _LEARNED).read()
    folder = path / "model"
    config = read_config(folder)
    return ARCHITECTURES[config.model_type].from_hub(read_weights(folder), config)
