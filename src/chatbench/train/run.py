"""A run folder: who may write to it, what it was started with, where it stands."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from chatbench import __version__
from chatbench.config import differing_keys, resolve, to_toml
from chatbench.console import say
from chatbench.errors import IntegrityError, UsageError
from chatbench.model.device import dtype_name, pick_dtype
from chatbench.settings import FinetuneSettings, PretrainSettings
from chatbench.storage import LOCK, FolderLock, disk_errors, recover, write_file, write_json
from chatbench.train import checkpoint

RunSettings = PretrainSettings | FinetuneSettings
CONFIG = "config.toml"
_FREE_TO_CHANGE = frozenset(
    ("out", "resume", "device", "train.keep", "train.save_every", "train.save_minutes",
     "train.tensorboard", "train.compile", "train.activation_checkpointing")
)  # fmt: skip


class Run(NamedTuple):
    """A run folder that is ours alone while open."""

    path: Path
    finished: bool

    def begin(
        self, settings: RunSettings, fingerprint: str, device: torch.device
    ) -> checkpoint.Restored | None:
        """Write config.toml, or check against it; the checkpoint to continue from.

        Fixes `settings.dtype`, so that a resume computes as the start did.
        Raises IntegrityError when the folder was started with other settings or data.
        """
        stored = self.path / CONFIG
        if stored.is_file():
            _check_settings(settings, stored)
        if settings.dtype == "auto":
            settings.dtype = dtype_name(pick_dtype("auto", device))
        if not stored.is_file():
            write_json(self.path / "environment.json", _environment())
            write_file(stored, to_toml(settings).encode())
        recover(self.path / "checkpoints")
        restored = checkpoint.load_newest(self.path)
        if restored is not None and restored.state.fingerprint != fingerprint:
            raise IntegrityError(
                f"{settings.data} is not the data that {self.path} was trained on",
                hint="give the same data, or choose another --out",
            )
        return restored


@contextmanager
def open_run(settings: RunSettings) -> Iterator[Run]:
    """Lock `settings.out`. Raises UsageError when a run is there and --resume is not given."""
    path = Path(settings.out)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, not a run folder", hint="choose another --out")
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    with FolderLock(path):
        finished = (path / "model").is_dir()
        begun = finished or (path / CONFIG).is_file()
        if begun and not settings.resume:
            what = "a finished run" if finished else "an unfinished run"
            hint = "choose another --out" + ("" if finished else ", or add --resume to go on")
            raise UsageError(f"{path} holds {what} already", hint=hint)
        if finished and (path / CONFIG).is_file():
            _check_settings(settings, path / CONFIG)
            say(f"{path} is finished already")
        try:
            yield Run(path, finished)
        finally:
            if [entry.name for entry in path.iterdir()] == [LOCK]:
                (path / LOCK).unlink()
                path.rmdir()


def _check_settings(settings: RunSettings, stored: Path) -> None:
    before = resolve(type(settings), config_file=stored, environ={}).settings
    if settings.dtype == "auto":
        settings.dtype = before.dtype
    changed = {
        key: values
        for key, values in differing_keys(before, settings).items()
        if key not in _FREE_TO_CHANGE
    }
    if changed:
        shown = ", ".join(f"{key} was {old!r}, now {new!r}" for key, (old, new) in changed.items())
        raise IntegrityError(
            f"{stored.parent} was started with other settings: {shown}",
            hint="resume with the old ones, or choose another --out",
        )


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
