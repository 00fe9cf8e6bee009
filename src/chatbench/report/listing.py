"""runs: which runs there are, what sets two apart, and names for them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from chatbench import console
from chatbench.console import format_count, visible
from chatbench.corpus.reports.summary import aligned
from chatbench.errors import UsageError
from chatbench.report.facts import as_data, best_value, differences, labels, results, shown_value
from chatbench.report.reading import RunFacts, read_run
from chatbench.runs import PLACE, find_runs, is_run, named, places, tag, tags_of
from chatbench.storage import pretty_json

_HEADS = ("name", "kind", "step", "val loss", "bits/byte", "parameters", "tokens", "when", "tags")
_RIGHT = (2, 3, 4, 5, 6)


def runs(words: Sequence[str], *, as_json: bool = False, remove: bool = False) -> None:
    """`[FOLDER]` lists, `compare RUN RUN...` compares, `tag RUN NAME` names; on stdout.

    Raises UsageError.
    """
    verb, rest = (words[0], list(words[1:])) if words else ("", [])
    if remove and verb != "tag":
        raise UsageError("--remove goes with tag", hint="chatbench runs tag RUN NAME --remove")
    if verb == "compare":
        _compare(rest, as_json=as_json)
    elif verb == "tag":
        _tag(rest, as_json=as_json, remove=remove)
    elif rest:
        raise UsageError(
            f"runs does not know {verb}", hint="it lists FOLDER, or takes compare or tag"
        )
    else:
        _list([named(verb)] if verb else None, as_json=as_json)


def _list(folders: list[Path] | None, *, as_json: bool) -> None:
    for folder in folders or []:
        if not folder.is_dir():
            raise UsageError(f"{folder} is no folder", hint="chatbench runs [FOLDER]")
    known = [read_run(run) for run in find_runs(folders)]
    if as_json:
        console.emit(pretty_json([as_data(run) for run in known]).decode(), end="")
        return
    if not known:
        where = " or ".join(map(str, folders or places()))
        console.say(f"no run in {where}; begin one with chatbench pretrain, or set {PLACE}")
        return
    rows = [list(_HEADS), *(_row(run) for run in known)]
    for line in aligned(rows, right=_RIGHT, indent=0):
        console.emit(line)


def _row(run: RunFacts) -> list[str]:
    numbers = (best_value(run, "val_loss"), best_value(run, "val_bits_per_byte"))
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.when)) if run.when else "–"
    cells = [
        run.name,
        run.kind,
        f"{run.step:,}" if run.finished else f"{run.step:,} …",
        *("–" if value is None else f"{value:.3f}" for value in numbers),
        format_count(run.parameters) if run.parameters else "–",
        format_count(run.tokens) if run.tokens else "–",
        when,
        " ".join(run.tags),
    ]
    return [" ".join(visible(cell).split()) for cell in cells]


def _compare(names: Sequence[str], *, as_json: bool) -> None:
    if len(names) < 2:
        raise UsageError("two runs are compared at least", hint="chatbench runs compare RUN RUN")
    known = [read_run(_run(name)) for name in names]
    if as_json:
        differing = dict(differences(known))
        data = {"runs": [as_data(run) for run in known], "differences": differing}
        console.emit(pretty_json(data).decode(), end="")
        return
    rows = [["", *labels(known)]]
    rows += [[name, *values] for name, values in results(known)]
    rows += [[key, *map(shown_value, values)] for key, values in differences(known)]
    cells = [[" ".join(visible(cell).split()) for cell in row] for row in rows]
    for line in aligned(cells, right=range(1, len(known) + 1), indent=0):
        console.emit(line)


def _tag(names: Sequence[str], *, as_json: bool, remove: bool) -> None:
    if len(names) != 2:
        raise UsageError("a run and a name are needed", hint="chatbench runs tag RUN NAME")
    run = _run(names[0])
    tag(run, names[1], remove=remove)
    if as_json:
        console.emit(pretty_json({"folder": str(run), "tags": tags_of(run)}).decode(), end="")
    else:
        console.emit(str(run))


def _run(name: str) -> Path:
    path = named(name)
    if not is_run(path):
        raise UsageError(f"{path} is no run", hint="list them: chatbench runs")
    return path
