"""An evaluation on stdout: JSON, or aligned tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from chatbench import console
from chatbench.corpus.reports.summary import aligned as in_columns
from chatbench.evaluate.classes import confused
from chatbench.evaluate.comparing import Beside, Flip
from chatbench.evaluate.run import Evaluation
from chatbench.evaluate.slices import Slice
from chatbench.storage import pretty_json
from chatbench.text.measuring import Score

_OF_SLICES = (
    "exact_fact_match", "accuracy", "exact_match", "token_f1", "bleu", "chrf", "rougeL",
    "length_ratio",
)  # fmt: skip
_SHOWN_FLIPS = 3
_LONGEST = 60


def show(result: Evaluation, *, as_json: bool) -> None:
    """The scores on stdout, aligned or as JSON; what to do next for people on stderr."""
    if as_json:
        console.emit(pretty_json(result).decode(), end="")
    else:
        for line in text_of(result):
            console.emit(line)
    for advice in result.advice:
        console.say(f"{advice.finding}: {advice.why}")
        console.say(f"  try: {advice.command}", style="dim")


def text_of(result: Evaluation) -> list[str]:
    """The lines: scores, slices, comparisons."""
    lines = aligned([_score_row(score) for score in result.scores], left={0, 4})
    if result.classes is not None:
        lines += [
            f"{_short(label)} taken for {_short(other)}: {count}"
            for label, other, count in confused(result.classes)
        ]
    for by in dict.fromkeys(each.by for each in result.slices):
        lines += ["", *_slice_lines(by, [each for each in result.slices if each.by == by])]
    for each in result.baselines:
        lines += ["", *_baseline_lines(each)]
    return lines


def _score_row(score: Score) -> list[str]:
    interval = ""
    if score.low is not None and score.high is not None:
        interval = f"[{score.low:.4f}, {score.high:.4f}]"
    return [score.name, f"{score.value:.4f}", interval, f"n={score.n}", score.signature]


def aligned(rows: Sequence[Sequence[str]], left: set[int]) -> list[str]:
    """Cells in columns, right-aligned but for those in `left`; wide characters take two places."""
    right = [place for place in range(len(rows[0]) if rows else 0) if place not in left]
    return in_columns(rows, right, indent=0)


def _slice_lines(by: str, slices: Sequence[Slice]) -> list[str]:
    there = {score.name for each in slices for score in each.scores}
    names = [name for name in _OF_SLICES if name in there]
    rows = [[console.visible(f"by {by}"), "n", *names]]
    for each in slices:
        values = {score.name: f"{score.value:.2f}" for score in each.scores}
        cells = [values.get(name, "") for name in names]
        rows.append([console.visible(each.value), str(each.n), *cells])
    return aligned(rows, left={0})


def _baseline_lines(each: Beside) -> list[str]:
    rows = [["beside " + console.visible(each.name), "ours", "theirs", "difference", "", "p"]]
    rows += [
        [
            d.name, f"{d.value:.4f}", f"{d.baseline:.4f}", f"{d.difference:+.4f}",
            f"[{d.low:+.4f}, {d.high:+.4f}]", f"{d.p:.3f}",
        ]
        for d in each.differences
    ]  # fmt: skip
    lines = aligned(rows, left={0})
    if each.flipped is not None:
        flipped = each.flipped
        lines.append(
            f"right only here ({flipped.metric}): {len(flipped.gained)}; "
            f"right only there: {len(flipped.lost)}"
        )
        for mark, flips in (("+", flipped.gained), ("-", flipped.lost)):
            lines += [_flip_line(mark, flip) for flip in flips[:_SHOWN_FLIPS]]
    return lines


def _flip_line(mark: str, flip: Flip) -> str:
    said = (_short(text) for text in (flip.question, flip.reference, flip.reply, flip.baseline))
    question, reference, ours, theirs = said
    return f"  {mark} {question} → {reference} · here: {ours} · there: {theirs}"


def _short(text: str) -> str:
    line = " ".join(console.visible(text).split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"
