"""Which folder is meant by a path: a model, an adapter and its base, a run or a checkpoint."""

from __future__ import annotations

import hashlib
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from chatbench.errors import IntegrityError, UsageError
from chatbench.hub import PREFIX, cached
from chatbench.model.reading import read_object, shown
from chatbench.model.unreadable import PICKLES, find_unreadable, name_suffix
from chatbench.model.weights import INDEX, WEIGHTS
from chatbench.runs import named
from chatbench.storage import hash_file, read_manifest
from chatbench.text.tokenizer_files import TOKENIZER_FILE

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# What `finetune` notes beside an adapter: where its base lies from there, and which it was.
NOTES = "chatbench.json"
LARGEST_CONFIG = 1_000_000  # bytes
_LINK = "base"
_MARKS = (CONFIG, WEIGHTS, WEIGHTS + INDEX, ADAPTER_CONFIG)


def find_model(path: Path) -> Path:
    """The model or adapter folder that `path` names: itself, a run's `model/`, or its newest
    checkpoint. `@latest`, `@best` and other names of runs are understood.

    Raises UsageError when there is none.
    """
    path = named(path, model=True)
    if any(os.path.lexists(path / name) for name in _MARKS):
        return path
    if (path / "model").is_dir():
        return path / "model"
    checkpoints = sorted(path.glob("checkpoints/step-*/model"))
    if checkpoints:
        return checkpoints[-1]
    if any(path.glob("checkpoints/step-*/sharded")):
        raise UsageError(
            f"{path} is an unfinished run, whose checkpoints hold parts of a model",
            hint="end it: the same training command with --resume, and as many --steps as it has",
        )
    if not path.exists():
        raise UsageError(f"{path} does not exist", hint=_near(path))
    if path.is_file():
        raise _explain_file(path)
    raise find_unreadable(path) or UsageError(
        f"{path} holds no model", hint="name a folder with config.json, or a run folder"
    )


def _near(path: Path) -> str:
    names = [p.name for p in path.absolute().parent.glob("*")][:200]
    close = get_close_matches(path.name, names, n=1, cutoff=0.75)
    if close:
        return f"did you mean {path.parent / close[0]}?"
    if path.parts[:1] == ("hf:",):
        return f"a name on the hub is written {PREFIX}owner/name"
    if len(path.parts) == 2 and not path.is_absolute():
        return f"train one, check the path, or fetch {PREFIX}{path} from the hub"
    return "train one, or check the path"


def _explain_file(path: Path) -> UsageError | IntegrityError:
    answer = name_suffix(path)
    if answer is None:
        hint = "name the folder it lies in" if path.suffix in (".safetensors", ".json") else None
        return UsageError(f"{path} is a file and holds no model to open", hint=hint)
    what, hint = answer
    return (IntegrityError if answer == PICKLES else UsageError)(f"{path} is {what}", hint=hint)


def find_base(folder: Path) -> Path | None:
    """The model folder that an adapter folder belongs to; None for a folder that is a model.

    A base is looked for beside the adapter, below the working directory, where it lay from the
    adapter when that was trained, and among what was fetched from the hub before; an adapter never
    makes the program connect to anything. A link `base` in its folder goes before all.
    Raises UsageError (it is not here), IntegrityError (not said, another one, or an adapter).
    """
    if not (folder / ADAPTER_CONFIG).is_file() or _holds_weights(folder):
        return None
    said = read_object(folder / ADAPTER_CONFIG, LARGEST_CONFIG)
    name, revision = said.get("base_model_name_or_path"), said.get("revision")
    if not isinstance(name, str) or not name or "\0" in name:
        raise IntegrityError(f"{folder / ADAPTER_CONFIG} does not say base_model_name_or_path")
    name = name.removeprefix(PREFIX)
    notes = read_notes(folder)
    tried = [folder / _LINK, folder / name, Path(name)]
    if isinstance(notes.get("base"), str) and "\0" not in notes["base"]:
        tried.append(folder / notes["base"])
    at = f"@{revision}" if isinstance(revision, str) else ""
    place = next((place for place in tried if os.path.isdir(place)), None) or cached(name + at)
    if place is None:
        raise _missing_base(folder, name, trained_here=bool(notes))
    base = find_model(place)
    if (base / ADAPTER_CONFIG).is_file() and not _holds_weights(base):
        raise IntegrityError(
            f"{folder} is an adapter for {base}, which is an adapter itself",
            hint="merge that one first: chatbench export --to hf",
        )
    known, found = notes.get("digest"), weights_digest(base)
    if known is not None and found is not None and known != found:
        raise IntegrityError(
            f"{folder} is an adapter for other weights than {base} holds now",
            hint=f"bring those back, or link to them: ln -s FOLDER {folder / _LINK}",
        )
    return base


def _missing_base(folder: Path, name: str, *, trained_here: bool) -> UsageError:
    hint = (
        f"if it was moved, link to it: ln -s FOLDER {folder / _LINK}" if trained_here
        else f"fetch it once with -m {PREFIX}OWNER/NAME, or write the folder it lies in into "
        f"{ADAPTER_CONFIG}"
    )  # fmt: skip
    return UsageError(f"{folder} is an adapter for {shown(name)}, which is not here", hint=hint)


def read_notes(folder: Path) -> dict[str, Any]:
    """What `finetune` noted beside an adapter; empty for adapters from elsewhere."""
    try:
        return read_object(folder / NOTES, LARGEST_CONFIG)
    except FileNotFoundError:
        return {}


def weights_digest(folder: Path, *, read: bool = False) -> str | None:
    """One number for the weights of a model folder, from its manifest; where it has none the files
    are read if `read` says so, else None."""
    files: dict[str, str] = {}
    for holder, below in ((folder, ""), (folder.parent, f"{folder.name}/")):
        manifest = read_manifest(holder)
        if manifest is not None and not files:
            files = {
                name.removeprefix(below): entry.sha256
                for name, entry in manifest.files.items()
                if name.startswith(below) and Path(name).suffix == ".safetensors"
            }
    if not files and read:
        files = {path.name: hash_file(path) for path in folder.glob("*.safetensors")}
    if not files:
        return None
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()


def _holds_weights(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and any(
        (folder / name).is_file() for name in (WEIGHTS, WEIGHTS + INDEX)
    )


def tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer of a model or adapter folder lies: there, or in the adapter's base."""
    if (folder / TOKENIZER_FILE).is_file():
        return folder
    return find_base(folder) or folder
