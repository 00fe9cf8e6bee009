"""PNG files of what the pages draw, for slides and papers; needs matplotlib, the extra `plot`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chatbench import console
from chatbench.errors import EnvironmentFault, UsageError
from chatbench.report.evaluation import EvaluationFacts
from chatbench.report.facts import labels
from chatbench.report.reading import RunFacts
from chatbench.report.scales import wants_log
from chatbench.report.style import COLOURS
from chatbench.storage import new_file

_CURVES = (
    ("loss", "val_loss", "Loss"),
    ("bits_per_byte", "val_bits_per_byte", "Bits per byte"),
    ("learning_rate", "", "Learning rate"),
    ("grad_norm", "", "Gradient norm"),
    ("tokens_per_second", "", "Tokens a second"),
)
_STYLES = ("-", "--", ":", "-.")
_HAN = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "PingFang SC",
    "Heiti SC", "Microsoft YaHei", "SimHei", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Droid Sans Fallback", "Arial Unicode MS",
)  # fmt: skip
_INCHES = (8.0, 4.5)
_DOTS_PER_INCH = 160


def write_pictures(
    folder: Path, runs: Sequence[RunFacts], evaluations: Sequence[EvaluationFacts]
) -> list[Path]:
    """One file for each curve that the runs have and each confusion matrix; returns them.

    Raises UsageError when matplotlib is not installed, EnvironmentFault.
    """
    figure_of = matplotlib_figure()
    with _fonts():
        return _drawn(figure_of, folder, runs, evaluations)


def _drawn(
    figure_of: Any, folder: Path, runs: Sequence[RunFacts], evaluations: Sequence[EvaluationFacts]
) -> list[Path]:
    written = []
    for train, val, title in _CURVES:
        if any(run.curves.get(name) for run in runs for name in (train, val)):
            figure = _curves(figure_of, runs, train, val, title)
            written.append(_save(figure, folder / f"{train}.png"))
    for number, facts in enumerate(evaluations):
        if facts.matrix is not None:
            ending = f"-{number + 1}" if len(evaluations) > 1 else ""
            figure = _confusion(figure_of, *facts.matrix)
            written.append(_save(figure, folder / f"confusion{ending}.png"))
    return written


def _plain(name: str) -> str:
    """Not taken for a formula, nor for a line that wants no name."""
    return console.visible(name).replace("$", r"\$").lstrip("_") or "run"


def _curves(figure_of: Any, runs: Sequence[RunFacts], train: str, val: str, title: str) -> Any:
    """Each run in its colour and dashes; training paler where a validation is there."""
    figure = figure_of(figsize=_INCHES, layout="constrained")
    axes = figure.subplots()
    values: list[float] = []
    for number, (run, name) in enumerate(zip(runs, map(_plain, labels(runs)), strict=True)):
        colour, style = COLOURS[number % len(COLOURS)], _STYLES[number % len(_STYLES)]
        faint, strong = run.curves.get(train, []), run.curves.get(val, [])
        for points, words in ((faint, name), (strong, f"{name}, validation")):
            if points:
                pale = bool(strong) and points is faint
                axes.plot(
                    [x for x, _ in points], [y for _, y in points], color=colour, linestyle=style,
                    alpha=0.45 if pale else 1.0, linewidth=1.0 if pale else 1.8, label=words,
                )  # fmt: skip
                values += [y for _, y in points]
    axes.set(title=title, xlabel="steps")
    if wants_log(values, 4.0):
        axes.set_yscale("log")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def matplotlib_figure() -> Any:
    """Its Figure, drawn without a screen. Raises UsageError when it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            "drawing PNG files needs matplotlib", hint='pip install "chatbench[plot]"'
        ) from None
    return Figure


@contextmanager
def _fonts() -> Iterator[None]:
    """Fonts that have Han characters stand in for what the usual one lacks; where none is
    installed, that is told once."""
    from matplotlib import rc_context
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in _HAN if name in installed)]
    with rc_context({"font.family": families}), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        yield
    if any("missing from font" in str(each.message) for each in heard):
        console.notice("no installed font has all characters of the pictures")


def _confusion(figure_of: Any, names: Sequence[str], counts: Sequence[Sequence[float]]) -> Any:
    figure = figure_of(figsize=(7.0, 7.0), layout="constrained")
    axes = figure.subplots()
    shares = [[cell / (sum(row) or 1.0) for cell in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set(title="Confusion matrix", xlabel="predicted", ylabel="true")
    if len(names) <= 40:
        axes.set_xticks(range(len(names)), [*map(_plain, names)], rotation=90)
        axes.set_yticks(range(len(names)), [*map(_plain, names)])
    return figure


def _save(figure: Any, path: Path) -> Path:
    try:
        with new_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=_DOTS_PER_INCH)
    except ValueError as error:
        raise EnvironmentFault(f"cannot draw {path}: {error}") from error
    return path
