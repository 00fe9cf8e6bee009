"""info: what a folder is, or what this installation is, on stdout."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from chatbench import __version__, console
from chatbench.console import format_count, visible
from chatbench.corpus.reports.summary import aligned, show_corpus
from chatbench.corpus.shards import KIND as CORPUS
from chatbench.errors import IntegrityError, UsageError
from chatbench.hub import PREFIX, cached, is_hub_name
from chatbench.model.counting import count_parameters, parameters_in
from chatbench.runs import named
from chatbench.storage import Manifest, pretty_json, read_manifest
from chatbench.text.tags import known_in, shown

_CORE_PACKAGES = ("torch", "tokenizers", "numpy", "safetensors", "nltk")
_FOR_DEVELOPERS = ("dev", "oracle")
Facts = dict[str, Any]


def info(name: str | Path | None, as_json: bool, kernels: bool = False) -> None:
    """Print what `name` holds (corpus, run, model, adapter or another folder of ours; of an
    hf://owner/name what was fetched of it before), or without one the versions, packages and
    folders of this installation, or with `kernels` what computes attention on this machine and
    why; as JSON on demand.

    Raises UsageError for what is none of these, IntegrityError for folders that cannot be read.
    """
    if kernels:
        _print_kernels(as_json)
        return
    if name is None:
        _print(installation(), as_json)
        return
    path = _fetched(str(name)) if is_hub_name(name) else named(name)
    if not path.is_dir():
        from chatbench.model.finding import find_model

        find_model(path)  # says why it is no folder
    manifest = read_manifest(path)
    if manifest is not None and manifest.kind == CORPUS:
        show_corpus(path, as_json=as_json)
        return
    _print(folder_facts(path, manifest), as_json)


def _fetched(name: str) -> Path:
    """Where the hub's model lies on this machine; nothing is fetched only to be looked at."""
    folder = cached(name.removeprefix(PREFIX))
    if folder is None:
        raise UsageError(
            f"{name} was not fetched yet, or not wholly", hint=f"chatbench chat -m {name} does that"
        )
    return folder


def _print(facts: Facts, as_json: bool) -> None:
    if as_json:
        console.emit(pretty_json(facts).decode(), end="")
        return
    rows = [[name, visible(_written(value))] for name, value in facts.items() if value is not None]
    for line in aligned([[name, " ".join(text.split())] for name, text in rows], indent=0):
        console.emit(line)


def _written(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def folder_facts(path: Path, manifest: Manifest | None) -> Facts:
    """Name → value for a run, checkpoint or model folder, or another folder with a manifest.

    Raises UsageError when it is nothing of ours, IntegrityError when it cannot be read.
    """
    checkpoints = sorted((path / "checkpoints").glob("step-*"))
    if (path / "config.toml").is_file() or checkpoints:
        return _run_facts(path, checkpoints)
    if (path / "adapter_config.json").is_file():
        return {"kind": "adapter", "folder": str(path), **_adapter_facts(path)}
    if (path / "config.json").is_file():
        return {"kind": "model", "folder": str(path), **_model_facts(path, manifest)}
    if manifest is None:
        raise UsageError(
            f"{path} is no folder of chatbench and holds no model",
            hint="name a corpus, run or model folder",
        )
    facts: Facts = {"kind": manifest.kind, "folder": str(path)}
    if (path / "model" / "config.json").is_file():
        return facts | _model_facts(path / "model", manifest)
    size = sum(entry.bytes for entry in manifest.files.values())
    plain = {k: v for k, v in manifest.info.items() if isinstance(v, str | int | float)}
    return facts | {"files": len(manifest.files), "bytes": size} | plain


def _run_facts(path: Path, checkpoints: list[Path]) -> Facts:
    finished = _holds_model(path / "model")
    facts: Facts = {
        "kind": "run",
        "folder": str(path),
        "state": "finished" if finished else "not finished, continue with --resume",
        "checkpoints": len(checkpoints),
    }
    if finished:
        return facts | _learned_facts(path / "model", read_manifest(path / "model"))
    if checkpoints and _holds_model(checkpoints[-1] / "model"):
        newest = checkpoints[-1]
        return facts | _learned_facts(newest / "model", read_manifest(newest))
    return facts


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _learned_facts(folder: Path, manifest: Manifest | None) -> Facts:
    """Facts of what a run has made, a model or an adapter."""
    if not (folder / "adapter_config.json").is_file():
        return _model_facts(folder, manifest)
    step = None if manifest is None else manifest.info.get("step")
    return _adapter_facts(folder) | {"step": step}


def _model_facts(folder: Path, manifest: Manifest | None) -> Facts:
    """What config.json and the header of the weights tell, in the words of the hub."""
    raw = _read_object(folder / "config.json")
    noted = raw.get("chatbench")
    step = None if manifest is None else manifest.info.get("step")
    return {
        "model type": raw.get("model_type"),
        "layers": raw.get("num_hidden_layers", raw.get("n_layer")),
        "width": raw.get("hidden_size", raw.get("n_embd")),
        "heads": raw.get("num_attention_heads", raw.get("n_head")),
        "parameters": parameters_in(folder),
        "vocabulary": raw.get("vocab_size"),
        "context": raw.get("max_position_embeddings", raw.get("n_positions")),
        "step": step,
        "base": noted.get("base") if isinstance(noted, dict) else None,
        "tags": _tags(noted) if isinstance(noted, dict) else None,
    }


def _tags(noted: Facts) -> str | None:
    """Which tags a model has learned, with their most frequent values."""
    told = [f"{column} ({shown(values)})" for column, values in known_in(noted).items()]
    return ", ".join(told) or None


def _adapter_facts(folder: Path) -> Facts:
    raw = _read_object(folder / "adapter_config.json")
    targets = raw.get("target_modules")
    return {
        "adapter type": raw.get("peft_type"),
        "base": raw.get("base_model_name_or_path"),
        "rank": raw.get("r"),
        "targets": ", ".join(sorted(map(str, targets))) if isinstance(targets, list) else targets,
        "parameters": count_parameters(folder / "adapter_model.safetensors"),
    }


def _read_object(path: Path) -> Facts:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is not a readable configuration: {error}") from error
    if not isinstance(raw, dict):
        raise IntegrityError(f"{path} is not a readable configuration: it holds no object")
    return raw


def _print_kernels(as_json: bool) -> None:
    """What `attention` runs in each phase on the device that `auto` means, and why."""
    from chatbench.model.attention import describe_choices
    from chatbench.model.device import pick_device

    device = pick_device("auto")
    choices = describe_choices(device)
    if as_json:
        console.emit(pretty_json([choice._asdict() for choice in choices]).decode(), end="")
        return
    console.emit(f"attention on {device}")
    for line in aligned([[str(field) for field in choice] for choice in choices], indent=0):
        console.emit(line)


def installation() -> Facts:
    """Versions, machine, optional packages and folders; loads none of the packages."""
    facts: Facts = {"chatbench": __version__, "python": platform.python_version()}
    facts |= {package: _version(package) or "missing" for package in _CORE_PACKAGES}
    facts |= {"platform": platform.platform(), "cores": _cores(), "memory": _memory()}
    for extra, packages in optional_packages().items():
        facts[f"extra {extra}"] = {name: _version(name) or "missing" for name in packages}
    facts |= {
        "home": str(_home()),
        "cache": _cache(),
        "temporary files": tempfile.gettempdir(),
        "program": sys.prefix,
    }
    return facts


def optional_packages() -> dict[str, list[str]]:
    """Extra → packages, as the installed package declares them; empty when it is not installed."""
    try:
        required = metadata.requires("chatbench") or []
    except metadata.PackageNotFoundError:
        return {}
    extras: dict[str, list[str]] = {}
    for line in required:
        found = re.match(r"([A-Za-z0-9._-]+).*;.*extra == ['\"]([A-Za-z0-9._-]+)['\"]", line)
        if found and found[2] not in _FOR_DEVELOPERS:
            extras.setdefault(found[2], []).append(found[1])
    return {extra: sorted(packages) for extra, packages in sorted(extras.items())}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    """Those this process may use, where the system tells."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _memory() -> str | None:
    try:
        return f"{format_count(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))}B"
    except (AttributeError, ValueError, OSError):
        return None


def _cache() -> str:
    """Where corpora made behind the scenes are kept, and what they take."""
    from chatbench.corpus.cache import cache_folder, cached_bytes

    place = cache_folder()
    if place is None:
        return "none: there is no HOME"
    return f"{place}, {format_count(cached_bytes(place))}B"


def _home() -> Path:
    """Where chat keeps what was typed: CHATBENCH_HOME, else XDG's state folder."""
    if home := os.environ.get("CHATBENCH_HOME"):
        return Path(home)
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state, "chatbench")
