"""Runs by name: which there are, how they are tagged, and what @latest, @best and @NAME mean.

Looked for in ./runs and in the folder that CHATBENCH_RUNS names, with torch nowhere near.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from chatbench import console
from chatbench.errors import UsageError, did_you_mean
from chatbench.storage import write_json

MARK = "@"
PLACE = "CHATBENCH_RUNS"
CONFIG, METRICS, TAGS = "config.toml", "metrics.jsonl", "tags.json"
_DEEPEST = 3
_MOST_STEPS, _LARGEST = 1 << 53, 1e300
_OF_ALL = ("latest", "best")
_TAG = re.compile(r"(?![-.])[\w.+-]{1,64}")


def is_run(folder: Path) -> bool:
    """Whether a training run has begun there."""
    return (folder / CONFIG).is_file() and any(
        (folder / name).exists() for name in (METRICS, "model", "checkpoints")
    )


def places() -> list[Path]:
    """The folders in which runs are looked for when none is named."""
    given = os.environ.get(PLACE)
    return [Path("runs"), *([Path(given)] if given else [])]


def find_runs(folders: Sequence[Path] | None = None) -> list[Path]:
    """Runs in or at most three folders below `folders` (default: `places`), each once, those first
    that trained last."""
    found = {
        run.resolve(): run
        for folder in (places() if folders is None else folders)
        for run in _below(folder, _DEEPEST)
    }
    return sorted(found.values(), key=lambda run: (-changed(run), str(run)))


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
        return
    entries: list[Path] = []
    with suppress(OSError):  # a folder that is not ours to read holds nothing for us
        entries = sorted(folder.iterdir())
    for entry in entries:
        if depth and not entry.name.startswith(".") and entry.is_dir():
            yield from _below(entry, depth - 1)


def changed(run: Path) -> float:
    """When a run last logged something, in seconds since 1970; 0 when that cannot be told."""
    for name in (METRICS, CONFIG):
        with suppress(OSError):
            return (run / name).stat().st_mtime
    return 0.0


def holds_model(run: Path) -> bool:
    """Whether there is something to talk to already."""
    return (run / "model").is_dir() or any(run.glob("checkpoints/step-*/model"))


def named(name: str | Path, *, model: bool = False, but: Path | None = None) -> Path:
    """`@latest`, `@best`, `@TAG` or `@FOLDER` → that run; any other name, and what lies on disk
    under this one, stays a path.

    `model`: only runs that hold one; `but`: a run that is not meant. Raises UsageError.
    """
    text = str(name)
    if not text.startswith(MARK) or os.path.lexists(text):
        return Path(name)
    runs = [run for run in find_runs() if but is None or run.resolve() != but.resolve()]
    usable = [run for run in runs if holds_model(run)] if model else runs
    if not usable:
        where = " or ".join(map(str, places()))
        what = "run with a model" if runs else "run"
        raise UsageError(
            f"{text}: there is no {what} in {where}",
            hint=f"give the path of a run, or set {PLACE} to the folder that holds your runs",
        )
    wanted = text.removeprefix(MARK)
    if wanted == "latest":
        console.say(f"{text} is {usable[0]}")
        return usable[0]
    if wanted == "best":
        return _best(usable)
    return _called(text, wanted, usable)


def _called(text: str, wanted: str, runs: list[Path]) -> Path:
    """The run of that tag, else of that folder name. Raises UsageError."""
    tagged = [run for run in runs if wanted in tags_of(run)]
    found = tagged or [run for run in runs if wanted in (run.name, short_name(run))]
    if not found:
        known = {tag for run in runs for tag in tags_of(run)} | {short_name(run) for run in runs}
        hint = did_you_mean(wanted, sorted(known))
        raise UsageError(f"no run is called {text}", hint=f"{hint} (list them: chatbench runs)")
    if len(found) > 1:
        raise UsageError(
            f"{text} could be {' or '.join(map(str, sorted(found)))}",
            hint="give the path, or a tag: chatbench runs tag RUN NAME",
        )
    return found[0]


def short_name(run: Path) -> str:
    """The path of a run below the place in which it is looked for: `demo/bot`."""
    for place in places():
        with suppress(ValueError):
            shortened = run.resolve().relative_to(place.resolve()).as_posix()
            return run.name if shortened == "." else shortened
    return run.name


class Measured(NamedTuple):
    """The best validation of a run: `value` in `unit`, lower is better."""

    run: Path
    value: float
    unit: str


def _best(runs: list[Path]) -> Path:
    """By bits per byte, or by loss where not all have them, among those that learn the same thing
    from the same data as the latest validated one: others cannot be compared."""
    validated = [run for run in runs if best_validation(run) is not None]
    if not validated:
        raise UsageError(
            f"{MARK}best: no run has a validation yet", hint=f"name one, or {MARK}latest"
        )
    alike = [run for run in validated if _subject(run) == _subject(validated[0])]
    best = best_of(alike)
    console.say(
        f"{MARK}best is {best.run}: {best.value:.4f} {best.unit}, the best of {len(alike)} on"
        " the same data"
    )
    return best.run


def best_of(runs: Sequence[Path]) -> Measured:
    """Of runs that are validated."""
    rows = {run: best_validation(run) or {} for run in runs}
    names = (("val_bits_per_byte", "bits per byte"), ("val_loss", "validation loss"))
    for name, unit in names:
        if all(_finite(row.get(name)) for row in rows.values()):
            run = min(runs, key=lambda run: rows[run][name])
            return Measured(run, rows[run][name], unit)
    raise AssertionError("a validated run has a finite loss")


def _subject(run: Path) -> tuple[str, str]:
    """What is learned, and from what: two runs that share it can be compared."""
    settings = settings_of(run)
    for folder in (run / "model", *sorted(run.glob("checkpoints/step-*/model"), reverse=True)):
        # Of an adapter its notes, of a whole model its configuration.
        for name in ("chatbench.json", "config.json"):
            noted = object_in(folder / name).get("chatbench")
            if isinstance(noted, dict) and noted.get("corpus"):
                return objective_of(settings), str(noted["corpus"])
    return objective_of(settings), str(settings.get("data"))


def settings_of(run: Path) -> dict[str, Any]:
    """config.toml as it is, sections as dictionaries; empty when it cannot be read."""
    try:
        return tomllib.loads((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError):
        return {}


def objective_of(settings: dict[str, Any]) -> str:
    """`pretrain`, or what a finetune minimises, by the settings of its run."""
    if isinstance(settings.get("model"), str):
        return str(settings.get("objective", "sft"))
    return "pretrain"


def object_in(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty when there is none or it cannot be read."""
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def log_rows(log: Path) -> Iterator[dict[str, Any]]:
    """Rows of a log of a run that can be read, each with a `step`; none when there is no log."""
    try:
        lines = log.read_bytes().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            row = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        step = row.get("step") if isinstance(row, dict) else None
        if type(step) is int and 0 <= step < _MOST_STEPS:
            yield row


def best_validation(run: Path) -> dict[str, Any] | None:
    """The row of metrics.jsonl with the lowest finite `val_loss`, the first of equals."""
    rows = [row for row in log_rows(run / METRICS) if _finite(row.get("val_loss"))]
    return min(rows, key=lambda row: row["val_loss"], default=None)


def _finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _LARGEST


def tags_of(run: Path) -> list[str]:
    """The names a run was given."""
    try:
        return msgspec.json.decode((run / TAGS).read_bytes(), type=list[str])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return []


def tag(run: Path, name: str, *, remove: bool = False) -> None:
    """Give a run a name of its own, or take it away; another run of that name loses it.

    Raises UsageError for what is no run or no name, EnvironmentFault.
    """
    name = name.removeprefix(MARK)
    if not is_run(run):
        raise UsageError(f"{run} is no run", hint="list them: chatbench runs")
    if not _TAG.fullmatch(name) or name in _OF_ALL:
        raise UsageError(
            f"{name!r} cannot be a tag",
            hint="a tag has letters, digits and . + - _, and is neither latest nor best",
        )
    mine = tags_of(run)
    if remove:
        if name not in mine:
            hint = did_you_mean(name, mine) if mine else "it has none"
            raise UsageError(f"{run} has no tag {name}", hint=hint)
        write_json(run / TAGS, [tag for tag in mine if tag != name])
        return
    for other in find_runs():
        theirs = tags_of(other)
        if name in theirs and other.resolve() != run.resolve():
            write_json(other / TAGS, [tag for tag in theirs if tag != name])
            console.say(f"{MARK}{name} was {other} until now")
    if name not in mine:
        write_json(run / TAGS, [*mine, name])
