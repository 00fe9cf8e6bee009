"""The page of one run: what it learned, how fast, what it said, what was asked of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from chatbench.console import format_count, format_duration
from chatbench.corpus.reports.charts import bar, count, share
from chatbench.corpus.reports.page import (
    Figure,
    Html,
    data,
    folded,
    paragraph,
    table,
    tiles,
)
from chatbench.report.curves import Below, Level, Line, curves
from chatbench.report.facts import (
    changed_settings,
    essentials,
    reached,
    shown_value,
    story,
)
from chatbench.report.reading import Ancestor, RunFacts, Sample, lineage
from chatbench.report.scales import thinned, written
from chatbench.report.style import Row, Section, drawing, head, link, page, panels

_FRAMES = 10
_PROMPTS = 6
_VALIDATIONS = 50
_SKIPS_SHOWN = 50
# Drawn in charts of their own, or what the axes are made of.
_OWN_CHARTS = frozenset(
    ("loss", "val_loss", "bits_per_byte", "val_bits_per_byte", "learning_rate", "grad_norm",
     "tokens_per_second", "mfu", "memory", "tokens", "seconds")
)  # fmt: skip
# A rate of many decades is a curve, one that doubles is a line.
_STEEP = 30.0


def render_run(run: RunFacts, out: Path | None = None) -> str:
    """The page as a string; `out` is the file it will be, for the links to its neighbours."""
    top = head("Run report", run.name, story(run), tiles(essentials(run)[:8]))
    source = "The numbers of this page are in metrics.jsonl and timings.jsonl of the run."
    return page(f"{run.name} – run report", top, run_sections(run, out), source)


def run_sections(run: RunFacts, out: Path | None = None) -> list[Section]:
    """The parts of the page."""
    return [
        Section("learning", "What it learned", learning(run)),
        Section("objective", "What its objective reports", _further(run)),
        Section("samples", "What it said while it learned", _film(run.samples)),
        Section("machine", "Rate, gradient and speed", _machine(run)),
        Section("plan", "Plan and outcome", _plan(run)),
        Section("skipped", "Steps that were not taken", _skipped(run)),
        Section("lineage", "Where it comes from", _lineage(lineage(run), out)),
        Section("settings", "Settings", _settings(run)),
    ]


def _axes(run: RunFacts) -> list[Below]:
    """Rows of tokens and time below the steps."""
    rows = []
    if run.curves.get("tokens"):
        rows.append(Below("tokens", lambda step: format_count(run.at(step, "tokens"))))
    if run.curves.get("seconds"):
        rows.append(Below("time", lambda step: format_duration(run.at(step, "seconds"))))
    return rows


def _chart(
    run: RunFacts, title: str, pairs: list[tuple[str, str]], levels: list[Level], ratio: float
) -> Callable[[int], str]:
    """Curves by (name, label) over steps, tokens and time."""
    lines = [
        Line(label, thinned(run.curves.get(name, [])), f"s{number}")
        for number, (name, label) in enumerate(pairs)
    ]
    marks = [(float(step), f"step {step} skipped: {why}") for step, why in run.skipped.items()]
    return lambda size: curves(
        title, lines, size, x_name="steps", levels=levels, marks=marks, below=_axes(run),
        log_ratio=ratio,
    )  # fmt: skip


def learning(run: RunFacts) -> str:
    """Loss and bits per byte with what they are held against, and the validations as a table."""
    chance = run.references.get("uniform_loss")
    losses = [("loss", "training"), ("val_loss", "validation")]
    levels = [Level("chance", chance)] if chance is not None else []
    body = drawing(_chart(run, "Loss", losses, levels, 4.0), "Nats a token, or what is minimised.")
    names = {"ngram_bits_per_byte": "n-gram model", "uniform_bits_per_byte": "chance"}
    levels = [Level(w, run.references[n]) for n, w in names.items() if n in run.references]
    bits = [("bits_per_byte", "training"), ("val_bits_per_byte", "validation")]
    if "ngram_bits_per_byte" in run.references:
        caption = (
            f"Lower is better. The {run.references.get('ngram_order', 0):.0f}-gram model has read"
            f" {format_count(run.references.get('ngram_tokens', 0))} tokens of the training text."
        )
    else:
        caption = "Lower is better, whatever the tokenizer."
    body += drawing(_chart(run, "Bits per byte", bits, levels, 4.0), caption)
    return body + _validations(run)


def _validations(run: RunFacts) -> str:
    """As a table, of many an even choice with the best among them."""
    points, known = run.curves.get("val_loss", []), dict(run.curves.get("val_bits_per_byte", []))
    chosen = {points[n][0] for n in evenly(len(points), _VALIDATIONS)}
    shown = [point for point in points if point[0] in chosen or point[0] == run.best.get("step")]
    rows: list[Row] = []
    for step, loss in shown:
        at_step = known.get(step)
        best = step == run.best.get("step")
        mark = Html('<span class="kind">best</span>') if best else ""
        rows.append([
            int(step), Figure(f"{loss:.4f}"), Figure("–" if at_step is None else f"{at_step:.4f}"),
            Figure(format_count(run.at(step, "tokens"))),
            Figure(format_duration(run.at(step, "seconds"))), mark,
        ])  # fmt: skip
    if not rows:
        return ""
    heads = ["step", "validation loss", "bits per byte", "tokens", "time", ""]
    title = f"{count(len(points))} validations as a table"
    title += f", {len(rows)} of them" if len(rows) < len(points) else ""
    return folded(title, table(heads, rows))


def _further(run: RunFacts) -> str:
    """Whatever else was logged, training beside validation: rewards, margins, lengths."""
    names = dict.fromkeys(name.removeprefix("val_") for name in run.curves)
    draws = [
        _chart(run, name.replace("_", " "), [(name, "training"), (f"val_{name}", "validation")],
               [], _STEEP)
        for name in names
        if name not in _OWN_CHARTS and not name.startswith("seconds_")
    ]  # fmt: skip
    return panels(draws)


def _machine(run: RunFacts) -> str:
    shown = (
        ("learning_rate", "Learning rate"), ("grad_norm", "Gradient norm"),
        ("tokens_per_second", "Tokens a second"), ("mfu", "Share of the machine's peak (MFU)"),
        ("memory", "Memory, bytes"),
    )  # fmt: skip
    body = panels([_chart(run, title, [(name, title)], [], _STEEP) for name, title in shown])
    rows: list[Row] = []
    for name, title in shown:
        values = [value for _, value in run.curves.get(name, [])]
        if values:
            numbers = (values[0], min(values), max(values), values[-1])
            rows.append([title, *(Figure(written(value, 3)) for value in numbers)])
    if rows:
        body += folded("As a table", table(["", "first", "lowest", "highest", "last"], rows))
    return body + _time(run)


def _time(run: RunFacts) -> str:
    """Where the seconds went."""
    parts = {
        name.removeprefix("seconds_"): sum(value for _, value in points)
        for name, points in run.curves.items()
        if name.startswith("seconds_")
    }
    whole = max(run.seconds, sum(parts.values()))
    if not parts or not whole:
        return ""
    rows: list[Row] = [
        [name, Html(bar(seconds, whole, "plain")), Figure(format_duration(seconds)),
         Figure(share(seconds, whole))]
        for name, seconds in sorted(parts.items(), key=lambda entry: -entry[1])
    ]  # fmt: skip
    return "<h3>Where the time went</h3>\n" + table(["", "", "time", "share"], rows)


def _film(samples: list[Sample]) -> str:
    """Every prompt with its replies side by side, the first and the last among them."""
    body = ""
    prompts = list(dict.fromkeys(sample.prompt for sample in samples))
    for prompt in prompts[:_PROMPTS]:
        frames = [sample for sample in samples if sample.prompt == prompt]
        chosen = evenly(len(frames), _FRAMES)
        cards = "".join(
            f"<li><b>step {count(frames[n].step)}</b>"
            f'<span class="quote">{data(frames[n].text, 400)}</span></li>\n'
            for n in chosen
        )
        # Reached by the keyboard, since it scrolls.
        body += (
            f'<h3 class="prompt">{data(prompt)}</h3>\n<ol class="film" tabindex="0">{cards}</ol>\n'
        )
    if prompts[_PROMPTS:]:
        body += paragraph(f"{len(prompts) - _PROMPTS} more prompts are in samples.jsonl.", "note")
    return body


def evenly(number: int, most: int) -> list[int]:
    """At most `most` (>= 2) of `number` places, first and last among them, ascending."""
    if number <= most:
        return list(range(number))
    return [round(n * (number - 1) / (most - 1)) for n in range(most)]


def _plan(run: RunFacts) -> str:
    rows = [[what, Figure(asked), Figure(got)] for what, asked, got in reached(run)]
    return table(["", "planned", "reached"], rows) if rows else ""


def _skipped(run: RunFacts) -> str:
    if not run.skipped:
        return ""
    entries = list(run.skipped.items())
    rows: list[Row] = [[step, why] for step, why in entries[:_SKIPS_SHOWN]]
    more = len(entries) - len(rows)
    note = paragraph(f"{more} more are in metrics.jsonl.", "note") if more else ""
    title = f"{count(len(entries))} of {count(run.step)} steps"
    return folded(title, table(["step", "why"], rows) + note, is_open=len(entries) <= 12)


def _lineage(chain: list[Ancestor], out: Path | None) -> str:
    cards = "".join(f"<li>{_ancestor(one, out)}</li>\n" for one in chain)
    return f'<ol class="chain">\n{cards}</ol>\n'


def _ancestor(one: Ancestor, out: Path | None) -> str:
    linked = partial(link, page=out)
    if one.corpus is not None and one.path is not None:
        total = one.corpus.total()
        words = f"{count(total.documents)} documents, {format_count(total.tokens)} tokens"
        name = linked(one.corpus.name or one.name, one.path / "report.html")
        return f"{name}<small>corpus · {data(words)}</small>"
    if one.run is not None and one.path is not None:
        facts = [one.run.kind, f"{count(one.run.step)} steps"] if one.run.step else [one.run.kind]
        facts += [f"{format_count(one.run.parameters)} parameters"] if one.run.parameters else []
        target = one.path / "report.html"
        name = data(one.name) if one.role == "run" else linked(one.name, target)
        return f"{name}<small>{one.role} · {data(', '.join(facts))}</small>"
    missing = "" if one.path is not None else " · not on this machine"
    return f"{data(one.name)}<small>{one.role}{missing}</small>"


def _settings(run: RunFacts) -> str:
    if not run.settings:
        return ""
    changed = changed_settings(run)
    rows = [[key, shown_value(value), shown_value(usual)] for key, (value, usual) in changed]
    body = table(["setting", "value", "default"], rows) if rows else ""
    everything = [[key, shown_value(value)] for key, value in sorted(run.settings.items())]
    body += folded(f"All {len(everything)} settings", table(["setting", "value"], everything))
    if run.environment:
        known = [[name, shown_value(value)] for name, value in sorted(run.environment.items())]
        body += folded("Machine and versions", table(["", ""], known))
    return body
