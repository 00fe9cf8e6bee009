"""A run folder: who may write to it, what it was started with, where it stands."""

from __future__ import annotations

import platform
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from chatbench import __version__
from chatbench.config import differing_keys, resolve, to_toml
from chatbench.console import notice, say
from chatbench.errors import IntegrityError, UsageError
from chatbench.model.device import dtype_name, pick_dtype
from chatbench.settings import FinetuneSettings, PretrainSettings, TrainSettings
from chatbench.settings.base import replace
from chatbench.settings.heads import HeadSettings
from chatbench.storage import (
    LOCK,
    FolderLock,
    disk_errors,
    read_manifest,
    recover,
    write_file,
    write_json,
)
from chatbench.train import checkpoint
from chatbench.train.parallel import SOLO, World
from chatbench.train.plan import take_over

RunSettings = PretrainSettings | FinetuneSettings
CONFIG = "config.toml"
_FREE_TO_CHANGE = frozenset(
    ("out", "resume", "device", "train.keep", "train.save_every", "train.save_minutes",
     "train.tensorboard", "train.histograms", "train.compile", "train.activation_checkpointing",
     "train.parallel")
)  # fmt: skip
# When a run ends: a resume may ask for more.
_LENGTH = ("minutes", "steps", "tokens", "epochs", "patience")
# Measured when a run begins; where they were left open, a later measurement is no change of mind.
_MEASURED = frozenset(("train.micro_batch", "train.eval_every", "train.eval_tokens"))
_FINETUNE_PATIENCE = 3
MODEL_KIND = "model"


def asked(train: TrainSettings) -> dict[str, float | None]:
    """What was asked for of a run's length; noted in the finished model."""
    return {name: getattr(train, name) for name in _LENGTH}


def patience_of(settings: RunSettings) -> int:
    """Validations without a better one that end a run, 0 = any number.

    Finetunes see few texts many times and overfit within minutes; pretraining gets best while its
    rate falls, at the end, and was given that time on purpose. Rewards rise by fits and starts.
    """
    given = settings.train.patience
    if given is not None:
        return given
    imitates = isinstance(settings, FinetuneSettings) and settings.objective != "grpo"
    return _FINETUNE_PATIENCE if imitates else 0


class Run(NamedTuple):
    """A run folder that is ours alone while open."""

    path: Path
    finished: bool

    def take_over(self, settings: RunSettings) -> None:
        """Fill what the settings leave open with what was chosen when the run began, if it has.

        Raises IntegrityError when it began with other settings: before anything is measured.
        """
        if (self.path / CONFIG).is_file():
            _check_settings(settings, self.path / CONFIG)

    def begin(
        self, settings: RunSettings, fingerprint: str, device: torch.device, tokenizer: str = "",
        world: World = SOLO, base: str = "",
    ) -> checkpoint.Restored | None:  # fmt: skip
        """What `_begin` does, by the first process alone; all get what it found. `base`: digest of
        the weights beside those that learn."""
        restored = None
        if world.first:
            restored = self._begin(settings, fingerprint, device, tokenizer)
            if restored is not None:
                self._check_base(settings, restored.state, base)
        settings.dtype = world.same(settings.dtype)
        state = world.same(restored and restored.state, checkpoint.TrainState | None)
        if state is None:
            return None
        weights = world.tensors(restored and restored.weights)
        memory = world.tensors(restored and restored.optimizer)
        return checkpoint.Restored(state, weights, memory, restored.path if restored else self.path)

    def _begin(
        self, settings: RunSettings, fingerprint: str, device: torch.device, tokenizer: str
    ) -> checkpoint.Restored | None:
        """Write config.toml, or check against it; the checkpoint to continue from.

        `fingerprint` and `tokenizer` are the digests of the data and of its tokenizer.
        Fixes `settings.dtype`, so that a resume computes as the start did.
        Raises IntegrityError when the folder was started with other settings or data.
        """
        stored = self.path / CONFIG
        before = _check_settings(settings, stored) if stored.is_file() else None
        if settings.dtype == "auto":
            settings.dtype = dtype_name(pick_dtype("auto", device))
        if not stored.is_file():
            write_json(self.path / "environment.json", _environment())
            write_file(stored, to_toml(settings).encode())
        recover(self.path / "checkpoints")
        restored = checkpoint.load_newest(self.path)
        if restored is not None:
            data = settings.data if isinstance(settings.data, str) else ", ".join(settings.data)
            self._check_data(data, restored.state, fingerprint, tokenizer)
            self._forgive(restored.state)
        if before is not None and asked(before.train) != asked(settings.train):
            # From now on this is what an unfinished run has to reach.
            write_file(stored, to_toml(settings).encode())
            shown = _differences(asked(before.train), asked(settings.train))
            notice(f"{shown}: the learning rate follows the new length from here on")
        return restored

    def _forgive(self, state: checkpoint.TrainState) -> None:
        """Whoever asks a run for more that stopped early wants it to go on: validations that were
        not better count anew from where it ended."""
        ended = read_manifest(self.path / "model")
        if ended is not None and ended.info.get("trained") == state.step:
            state.stale = 0

    def _check_base(self, settings: RunSettings, state: checkpoint.TrainState, base: str) -> None:
        if state.base != base:
            raise IntegrityError(
                f"{settings.model} is not the model that {self.path} began with: the digest of its "
                f"weights is {base[:12]}, it was {state.base[:12]}",
                hint="give the same model, or choose another --out",
            )

    def _check_data(
        self, data: str, state: checkpoint.TrainState, fingerprint: str, tokenizer: str
    ) -> None:
        if state.fingerprint == fingerprint:
            return
        what = f"its digest is {fingerprint[:12]}, the run's {state.fingerprint[:12]}"
        if tokenizer and state.tokenizer and tokenizer != state.tokenizer:
            what = f"its tokenizer is {tokenizer[:12]}, the run's {state.tokenizer[:12]}"
        raise IntegrityError(
            f"{data} is not the data that {self.path} was trained on: {what}",
            hint="give the same data, or choose another --out",
        )


@contextmanager
def open_run(settings: RunSettings, world: World = SOLO) -> Iterator[Run]:
    """Lock `settings.out`. Raises UsageError when a run is there and --resume is not given.

    Of several processes the first opens it; the others write to folders that nobody will read.
    """
    if world.first:
        with _open(settings) as run:
            world.same(run.finished)
            yield run
    else:
        finished = world.same(False)
        with tempfile.TemporaryDirectory() as nowhere:
            yield Run(Path(nowhere), finished)


@contextmanager
def _open(settings: RunSettings) -> Iterator[Run]:
    path = Path(settings.out)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, not a run folder", hint="choose another --out")
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    with FolderLock(path):
        done = (path / "model").is_dir()
        begun = done or (path / CONFIG).is_file()
        if begun and not settings.resume:
            what = "a finished run" if done else "an unfinished run"
            hint = "choose another --out" + ("" if done else ", or add --resume to go on")
            raise UsageError(f"{path} holds {what} already", hint=hint)
        finished = done and not _asks_for_more(path, settings)
        if finished and (path / CONFIG).is_file():
            _check_settings(settings, path / CONFIG)
            say(f"{path} is finished already; ask for more steps, epochs or minutes to go on")
        try:
            yield Run(path, finished)
        finally:
            if [entry.name for entry in path.iterdir()] == [LOCK]:
                (path / LOCK).unlink()
                path.rmdir()


def _asks_for_more(path: Path, settings: RunSettings) -> bool:
    """Whether another length is asked for than that which the finished model was trained for."""
    manifest = read_manifest(path / "model")
    reached = None if manifest is None else manifest.info.get("asked")
    return reached is not None and reached != asked(settings.train)


def _differences(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    changed = [key for key in now if before[key] != now[key]]
    return ", ".join(f"{key} was {before[key]!r}, now {now[key]!r}" for key in changed)


def _check_settings(settings: RunSettings, stored: Path) -> RunSettings:
    """The settings that a run was started with. Raises IntegrityError when others are given."""
    before = _before(settings, stored)
    changed = {
        key: values
        for key, values in differing_keys(before, settings).items()
        if key not in _FREE_TO_CHANGE and key.removeprefix("train.") not in _LENGTH
        and not (key in _MEASURED and values[0] is None)
    }  # fmt: skip
    if changed:
        shown = ", ".join(f"{key} was {old!r}, now {new!r}" for key, (old, new) in changed.items())
        raise IntegrityError(
            f"{stored.parent} was started with other settings: {shown}",
            hint="resume with the old ones, or choose another --out",
        )
    return before


def _before(settings: RunSettings, stored: Path) -> RunSettings:
    """The stored settings; what was chosen then and is left open now is filled in."""
    before = resolve(type(settings), config_file=stored, environ={}).settings
    classifies = isinstance(before, FinetuneSettings) and before.objective == "classify"
    if classifies and "head" not in tomllib.loads(stored.read_text(encoding="utf-8")):
        # It began when there was no other.
        before = replace(before, head=HeadSettings(pooling="last", token_dropout=0.0))
    if settings.dtype == "auto":
        settings.dtype = before.dtype
    take_over(settings, before)
    return before


def _environment() -> dict[str, Any]:
    return {
        "chatbench": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv,
    }
