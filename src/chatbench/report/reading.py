"""A run folder as plain values, read tolerantly: what is absent or unreadable is left out."""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from chatbench.corpus.reports.facts import CorpusFacts, facts_of
from chatbench.corpus.shards import KIND as CORPUS
from chatbench.errors import UserError
from chatbench.model.counting import parameters_in
from chatbench.runs import (
    best_validation,
    changed,
    find_runs,
    is_run,
    log_rows,
    object_in,
    objective_of,
    settings_of,
    short_name,
    tags_of,
)
from chatbench.storage import read_manifest

PLAN = "plan.json"
_FARTHEST = 8
Curve = list[tuple[float, float]]


class Sample(NamedTuple):
    """What the model made of a prompt after `step` steps."""

    step: int
    prompt: str
    text: str


class RunFacts(NamedTuple):
    """A run, as its logs tell it. `curves`: name → (step, value), steps ascending, finite values
    alone; `settings`: dotted key → value; `best`: the row of the best validation; `chosen`: the
    step that model/ holds; `probe`: bits per byte on earlier text, before and after; `tokens` and
    `seconds`: those of the last line; `skipped`: step → why.
    """

    path: Path
    name: str
    kind: str
    finished: bool
    settings: dict[str, Any]
    curves: dict[str, Curve]
    skipped: dict[int, str]
    samples: list[Sample]
    references: dict[str, float]
    plan: dict[str, Any]
    probe: dict[str, float]
    environment: dict[str, Any]
    tags: list[str]
    best: dict[str, Any]
    step: int
    tokens: float
    seconds: float
    chosen: int | None
    parameters: int | None
    when: float

    def last(self, name: str) -> float | None:
        """The newest value of a curve."""
        points = self.curves.get(name)
        return points[-1][1] if points else None

    def against(self, name: str, axis: str) -> Curve:
        """A curve with `steps`, `tokens` or `seconds` in place of steps."""
        points = self.curves.get(name, [])
        if axis == "steps":
            return points
        return [(self.at(step, axis), value) for step, value in points]

    def at(self, step: float, axis: str) -> float:
        """Tokens or seconds after `step` steps, between what was logged."""
        return between(self.curves.get(axis, []), step)


def read_run(path: Path, *, logs: bool = True) -> RunFacts:
    """The facts of a run; without `logs` no curves, skips and samples."""
    settings = settings_of(path)
    curves, skipped, step = _curves(path) if logs else ({}, {}, 0)
    manifest = None
    finished = (path / "model").is_dir()
    parameters = None
    with suppress(UserError, OSError):
        manifest = read_manifest(path / "model")
    with suppress(UserError, OSError):
        parameters = parameters_in(_newest_model(path))
    info = manifest.info if manifest is not None else {}
    totals = {name: curves[name][-1][1] for name in ("tokens", "seconds") if curves.get(name)}
    return RunFacts(
        path=path, name=short_name(path), kind=objective_of(settings), finished=finished,
        settings=flat(settings), curves=curves, skipped=skipped,
        samples=list(_samples(path)) if logs else [],
        references=_numbers(object_in(path / "references.json")),
        plan=object_in(path / PLAN), probe=_numbers(object_in(path / "probe.json")),
        environment=object_in(path / "environment.json"),
        tags=tags_of(path), best=best_validation(path) or {},
        step=max(step, _whole(info.get("trained"))),
        tokens=totals.get("tokens", 0.0), seconds=totals.get("seconds", 0.0),
        chosen=_whole(info.get("step")) or None, parameters=parameters, when=changed(path),
    )  # fmt: skip


def _newest_model(run: Path) -> Path:
    folders = [run / "model", *sorted(run.glob("checkpoints/step-*/model"), reverse=True)]
    return next((folder for folder in folders if folder.is_dir()), run / "model")


def _whole(value: object) -> int:
    return value if type(value) is int else 0


def _numbers(raw: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in raw.items() if is_number(value)}


def is_number(value: object) -> bool:
    """A finite number that is no truth value."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool)
        and abs(value) < 1e300 and math.isfinite(value)
    )  # fmt: skip


def number(value: object) -> float | None:
    """As a float, where it is a finite number."""
    return float(value) if isinstance(value, int | float) and is_number(value) else None


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys for nested tables."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _curves(run: Path) -> tuple[dict[str, Curve], dict[int, str], int]:
    """Every number of both logs by name, what was skipped, and the last step."""
    points: dict[str, dict[int, float]] = {}
    skipped: dict[int, str] = {}
    last = 0
    for log in ("metrics", "timings"):
        for row in log_rows(run / f"{log}.jsonl"):
            step = row["step"]
            last = max(last, step)
            if "skipped" in row:
                skipped[step] = str(row["skipped"])
                continue
            for name, value in row.items():
                if name != "step" and is_number(value):
                    # Lines of a step that was logged again take the place of the older ones.
                    points.setdefault(name, {})[step] = float(value)
    curves = {name: [(float(s), v) for s, v in sorted(p.items())] for name, p in points.items()}
    return curves, dict(sorted(skipped.items())), last


def _samples(run: Path) -> Iterator[Sample]:
    for row in log_rows(run / "samples.jsonl"):
        if isinstance(row.get("prompt"), str) and isinstance(row.get("text"), str):
            yield Sample(row["step"], row["prompt"], row["text"])


def between(points: Sequence[tuple[float, float]], x: float) -> float:
    """The value at `x` on the straight line between neighbours, and from the origin to the first;
    beyond the last with the slope of the last two."""
    if not points:
        return 0.0
    places = [(0.0, 0.0), *points] if points[0][0] > 0 else list(points)
    at = min(max(bisect_left(places, (x, -math.inf)), 1), len(places) - 1)
    if at == 0:
        return places[0][1]
    (x0, y0), (x1, y1) = places[at - 1], places[at]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y1


class Ancestor(NamedTuple):
    """Where a run comes from, oldest first: `corpus`, `base` or `run`; `facts` and `run` hold what
    is there of it, `path` None for a name that is no folder here."""

    role: str
    name: str
    path: Path | None
    corpus: CorpusFacts | None = None
    run: RunFacts | None = None


def lineage(run: RunFacts) -> list[Ancestor]:
    """Corpus, base, corpus of the base, ... the run itself last."""
    chain: list[Ancestor] = [Ancestor("run", run.name, run.path, run=run)]
    seen = {run.path.resolve()}
    here = run
    while len(chain) < _FARTHEST:
        data, base = here.settings.get("data"), here.settings.get("model")
        # Several sources stand in one setting in some objectives.
        for source in data if isinstance(data, list) else [data]:
            if isinstance(source, str) and source:
                chain.insert(0, _corpus(source, here))
        if not isinstance(base, str) or not base:
            break
        place = _run_of(_found(base, here.path))
        if place is None or place.resolve() in seen:
            chain.insert(0, Ancestor("base", base, _found(base, here.path)))
            break
        seen.add(place.resolve())
        here = read_run(place)
        chain.insert(0, Ancestor("base", here.name, place, run=here))
    return chain


def _found(name: str, run: Path) -> Path | None:
    """What a setting names, from the working directory, or beside the run (moved along with it)."""
    if "://" in name or "\0" in name:
        return None
    for path in (Path(name), run.parent / Path(name).name):
        if os.path.exists(path):  # whatever its name is, unlike Path.exists
            return path
    return None


def _run_of(path: Path | None) -> Path | None:
    """The run that a path of a run, of its model or of a checkpoint belongs to."""
    if path is None:
        return None
    here = path.absolute()
    candidates = (here, *list(here.parents)[:3])
    return next((folder for folder in candidates if is_run(folder)), None)


def _corpus(name: str, run: RunFacts) -> Ancestor:
    """What a `data` setting names; of a file, the corpus that the run made of it."""
    bare = name.rpartition(":")[0] or name  # a share of it: old/:0.1
    path = _found(name, run.path) or _found(bare, run.path)
    folder = path if path is None or path.is_dir() else run.path / "corpus"
    facts = None
    if folder is not None:
        with suppress(UserError, OSError):
            manifest = read_manifest(folder)
            if manifest is not None and manifest.kind == CORPUS:
                facts, path = facts_of(folder, manifest.info), folder
    return Ancestor("corpus", name, path, corpus=facts)


def read_runs(folders: Sequence[Path] | None = None) -> list[RunFacts]:
    """All runs in `folders` (default: where runs are looked for), the newest first."""
    return [read_run(run) for run in find_runs(folders)]
