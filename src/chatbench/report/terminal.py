"""The essentials of runs and evaluations as a table for people, on stderr."""

from __future__ import annotations

from collections.abc import Sequence

from chatbench import console
from chatbench.report.evaluation import EvaluationFacts
from chatbench.report.evaluation_page import precise, ranged, title
from chatbench.report.facts import differences, labels, results, shown_value
from chatbench.report.reading import RunFacts


def show_runs(runs: Sequence[RunFacts]) -> None:
    """Results of each run, and of several what sets them apart."""
    names = labels(runs)
    rows = [[name, *values] for name, values in results(runs)]
    console.table("", ["", *names], rows)
    if len(runs) > 1:
        differing = [[key, *map(shown_value, values)] for key, values in differences(runs)]
        if differing:
            console.table("settings that differ", ["", *names], differing)


def show_evaluation(facts: EvaluationFacts) -> None:
    """Scores with their intervals."""
    rows = [
        [n.name, precise(n.value), ranged(n.low, n.high), "–" if n.n is None else f"{n.n:,}"]
        for n in facts.numbers
    ]
    console.table(title(facts), ["", "value", "95 % interval", "n"], rows)
