"""report: a page for runs, an evaluation or a corpus; and the one that a run leaves behind."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from chatbench import console
from chatbench.corpus.reports.facts import facts_of
from chatbench.corpus.shards import KIND as CORPUS
from chatbench.errors import UsageError, UserError
from chatbench.report.evaluation import EvaluationFacts, is_evaluation, read_evaluation
from chatbench.report.evaluation_page import render_evaluation, sections, side_by_side, title
from chatbench.report.facts import as_data, labels
from chatbench.report.overlay import overlay
from chatbench.report.reading import RunFacts, read_run
from chatbench.report.run_page import render_run, run_sections
from chatbench.report.style import MARK, head, page
from chatbench.report.terminal import show_evaluation, show_runs
from chatbench.runs import find_runs, is_run, named
from chatbench.settings import ReportSettings
from chatbench.storage import pretty_json, read_manifest, write_file

REPORT = "report.html"


class _Found(NamedTuple):
    runs: list[RunFacts]
    evaluations: list[EvaluationFacts]
    corpora: list[Path]


def report(settings: ReportSettings) -> None:
    """Write the page, show its essentials on stderr and its path, or all as JSON, on stdout.

    Raises UsageError, IntegrityError, EnvironmentFault.
    """
    if settings.png:
        from chatbench.report.pictures import matplotlib_figure

        matplotlib_figure()  # before any work
    found = _find(settings.paths)
    out = _place(settings, found)
    _require_ours(out)
    write_file(out, _render(found, out).encode())
    drawn: list[Path] = []
    if settings.png:
        from chatbench.report.pictures import write_pictures

        drawn = write_pictures(Path(settings.png), found.runs, found.evaluations)
    if settings.json:
        pictures = [str(path) for path in drawn]
        console.emit(pretty_json(_as_data(found, out, pictures)).decode(), end="")
    else:
        if found.runs:
            show_runs(found.runs)
        for facts in found.evaluations:
            show_evaluation(facts)
        console.emit(str(out))
    if settings.open and not webbrowser.open(out.absolute().as_uri()):
        console.notice(f"no browser could be started; open {out} in one")


def _find(paths: Sequence[str]) -> _Found:
    """What the paths hold. Raises UsageError for what has no page."""
    if not paths:
        raise UsageError("nothing to report on", hint="name a run: chatbench report @latest")
    found = _Found([], [], [])
    for name in paths:
        path = named(name)
        if is_run(path):
            found.runs.append(read_run(path))
        elif is_evaluation(path):
            found.evaluations.append(read_evaluation(path))
        elif path.is_dir() and _is_corpus(path):
            found.corpora.append(path)
        elif path.is_dir() and (inside := find_runs([path])):
            found.runs.extend(read_run(run) for run in reversed(inside))
        else:
            what = "is no run, evaluation or corpus" if path.exists() else "does not exist"
            raise UsageError(f"{path} {what}", hint="list your runs: chatbench runs")
    if found.corpora and len(paths) > 1:
        raise UsageError(
            f"{found.corpora[0]} is a corpus, whose page shares nothing with others",
            hint="report on it alone",
        )
    return found


def _is_corpus(path: Path) -> bool:
    manifest = read_manifest(path)
    return manifest is not None and manifest.kind == CORPUS


def _place(settings: ReportSettings, found: _Found) -> Path:
    """The file to write: as asked, else in the one folder that is reported on, else here."""
    if settings.out:
        out = Path(settings.out)
        return out / REPORT if out.is_dir() else out
    folders = [run.path for run in found.runs] + [facts.path for facts in found.evaluations]
    folders += found.corpora
    return folders[0] / REPORT if len(folders) == 1 else Path(REPORT)


def _require_ours(out: Path) -> None:
    """Raise UsageError rather than write over what is no report."""
    if out.exists() and (not out.is_file() or MARK.encode() not in out.read_bytes()):
        raise UsageError(f"{out} is no report, so it is not replaced", hint="choose another -o")


def _render(found: _Found, out: Path) -> str:
    if found.corpora:
        from chatbench.corpus.reports.report import render

        folder = found.corpora[0]
        manifest = read_manifest(folder)
        return render(facts_of(folder, manifest.info if manifest else {}))
    if len(found.runs) == 1 and not found.evaluations:
        return render_run(found.runs[0], out)
    if len(found.evaluations) == 1 and not found.runs:
        return render_evaluation(found.evaluations[0])
    return _together(found, out)


def _together(found: _Found, out: Path) -> str:
    """Several runs over each other, several evaluations beside each other, on one page."""
    parts = overlay(found.runs, out) if len(found.runs) > 1 else []
    parts += run_sections(found.runs[0], out) if len(found.runs) == 1 else []
    names = _names(found.evaluations)
    if found.evaluations:
        parts.append(side_by_side(found.evaluations, names))
        for number, facts in enumerate(found.evaluations):
            parts += sections(facts, prefix=f"{chr(ord('a') + number % 26) * (1 + number // 26)}x")
    words = [f"{len(found.runs)} runs"] if len(found.runs) > 1 else []
    words += [found.runs[0].name] if len(found.runs) == 1 else []
    words += [f"{len(names)} evaluation{'s' * (len(names) > 1)}"] if names else []
    heading = " and ".join(words)
    lead = ", ".join([*labels(found.runs), *names])
    top = head("Comparison", heading, lead, "")
    return page(heading, top, parts, "The numbers are in the folders that are compared.")


def _names(evaluations: Sequence[EvaluationFacts]) -> list[str]:
    """By model, or by folder where models are the same."""
    names = [title(facts) for facts in evaluations]
    return names if len(set(names)) == len(names) else [str(each.path) for each in evaluations]


def _as_data(found: _Found, out: Path, pictures: list[str]) -> dict[str, Any]:
    return {
        "report": str(out),
        "runs": [as_data(run) for run in found.runs],
        "evaluations": [
            {"folder": str(facts.path), "model": facts.model, "data": facts.data,
             "scores": [number._asdict() for number in facts.numbers]}
            for facts in found.evaluations
        ],
        "corpora": [str(path) for path in found.corpora],
        "pictures": pictures,
    }  # fmt: skip


def leave_report(run: Path) -> None:
    """report.html in a run that has ended. What goes wrong is told and stops nothing: the model is
    worth more than its page."""
    try:
        write_file(run / REPORT, render_run(read_run(run), run / REPORT).encode())
    except (UserError, OSError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        console.notice(f"no report of {run}: {error}")
