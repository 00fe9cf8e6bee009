"""The page of several runs laid over each other, against steps, tokens and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from chatbench.corpus.reports.page import Figure, folded, paragraph, table
from chatbench.report.curves import COLOURS, Line, curves
from chatbench.report.facts import differences, labels, results, shown_value
from chatbench.report.reading import RunFacts
from chatbench.report.scales import thinned, unit_of_time
from chatbench.report.style import Section, drawing, link, panels

_STEEP = 30.0
_MEASURES = (
    ("val_bits_per_byte", "Bits per byte of the validation"),
    ("val_loss", "Validation loss"),
    ("loss", "Training loss"),
)
_BESIDE = (
    ("learning_rate", "Learning rate"), ("grad_norm", "Gradient norm"),
    ("tokens_per_second", "Tokens a second"), ("mfu", "Share of the machine's peak (MFU)"),
)  # fmt: skip
_AXES = ("steps", "tokens", "seconds")


def overlay(runs: Sequence[RunFacts], out: Path | None = None) -> list[Section]:
    """Sections for at least two runs."""
    names = labels(runs)
    body = ""
    for name, title in _MEASURES:
        charts = "".join(drawing(_chart(runs, names, name, title, axis)) for axis in _AXES)
        if charts:
            # The same thing in other units is there for who asks.
            body += charts if not body else folded(title, charts)
    beside = panels([_chart(runs, names, name, title, "steps") for name, title in _BESIDE])
    return [
        Section("results", "Results side by side", _results(runs, names, out)),
        Section("differences", "Settings that differ", _differences(runs, names)),
        Section("curves", "Curves over each other", body),
        Section("machine", "Rate, gradient and speed", beside),
    ]


def _chart(
    runs: Sequence[RunFacts], names: Sequence[str], curve: str, title: str, axis: str
) -> Callable[[int], str]:
    points = [thinned(run.against(curve, axis)) for run in runs]
    x_name = axis
    if axis == "seconds":
        unit = unit_of_time(max((x for line in points for x, _ in line), default=0.0))
        points = [[(x / unit.seconds, y) for x, y in line] for line in points]
        x_name = unit.name
    if axis != "steps" and not any(x for line in points for x, _ in line):
        points = []  # nobody logged it
    lines = [
        Line(name, line, f"s{number % COLOURS}")
        for number, (name, line) in enumerate(zip(names, points, strict=False))
    ]
    ratio = _STEEP if curve in ("grad_norm", "learning_rate") else 4.0
    return lambda size: curves(title, lines, size, x_name=x_name, log_ratio=ratio)


def _results(runs: Sequence[RunFacts], names: Sequence[str], out: Path | None) -> str:
    rows = results(runs)
    body = [
        [link(name, run.path / "report.html", out), *(Figure(values[n]) for _, values in rows)]
        for n, (name, run) in enumerate(zip(names, runs, strict=True))
    ]
    return table(["run", *(name for name, _ in rows)], body)


def _differences(runs: Sequence[RunFacts], names: Sequence[str]) -> str:
    rows = [[key, *map(shown_value, values)] for key, values in differences(runs)]
    if not rows:
        return paragraph("None: these runs have the same settings.", "soft")
    return table(["setting", *names], rows)
