"""The page of an evaluation: scores with intervals, slices, cases, confusions, calibration."""

from __future__ import annotations

from collections.abc import Sequence

from chatbench.corpus.reports.charts import count, escape, one_line
from chatbench.corpus.reports.page import (
    Figure,
    Html,
    data,
    folded,
    paragraph,
    table,
    tiles,
)
from chatbench.report.evaluation import Case, Change, EvaluationFacts, Number, worst
from chatbench.report.figures import calibration, confusion, interval
from chatbench.report.scales import Scale, scale_for, written
from chatbench.report.style import Row, Section, drawing, head, page

_CASES = 10
_FLIPPED = 10
_PAIRS = 15
_LONGEST = 600  # columns of a reply
_TILES = 8
# What is not between 0 and 100.
_PERCENT = Scale(0.0, 100.0)


def render_evaluation(facts: EvaluationFacts) -> str:
    """The page as a string, a function of the facts alone."""
    top = head("Evaluation", title(facts), story(facts), tiles(_tiles(facts)))
    where = "The numbers of this page are in results.json and samples.jsonl beside it."
    return page(f"{title(facts)} – evaluation", top, sections(facts), where)


def sections(facts: EvaluationFacts, prefix: str = "") -> list[Section]:
    """The parts of the page; `prefix` keeps anchors and titles of several evaluations apart."""
    parts = (
        ("scores", "Scores", _scores(facts)),
        ("changes", "Against the baseline", _changes(facts)),
        ("slices", "By slice", _slices(facts)),
        ("confusions", "What is taken for what", _confusion(facts)),
        ("calibration", "How sure it is", _calibration(facts)),
        ("flipped", "Items that flipped", _flipped(facts)),
        ("worst", "Worst cases", _worst(facts)),
        ("next", "Where next", _advice(facts)),
        ("asked", "How it was asked", _settings(facts)),
    )
    name = f": {title(facts)}" if prefix else ""
    return [Section(prefix + anchor, words + name, body) for anchor, words, body in parts]


def title(facts: EvaluationFacts) -> str:
    """The last two parts of the model's path, of a run its name."""
    parts = [part for part in facts.model.split("/") if part not in ("", "model")]
    return "/".join(parts[-2:]) or facts.path.absolute().name


def story(facts: EvaluationFacts) -> str:
    """One sentence on what was judged by what."""
    left = [f"{count(n)} {name}" for name, n in facts.counts.items() if n]
    note = f" ({', '.join(left)})" if left else ""
    return f"{facts.model or 'Replies'}, judged by {facts.data or 'a file'}{note}."


def precise(value: float) -> str:
    """A score with the places that mean something."""
    size = abs(value)
    if size >= 10_000:
        return written(value, 5)
    return f"{value:.{1 if size >= 100 else 2 if size >= 10 else 3}f}"


def ranged(low: float | None, high: float | None) -> str:
    """`12.1 to 14.9`, or a dash."""
    return "–" if low is None or high is None else f"{precise(low)} to {precise(high)}"


def _tiles(facts: EvaluationFacts) -> list[tuple[str, str, str]]:
    return [
        (number.name.replace("_", " "), precise(number.value), ranged(number.low, number.high)
         if number.low is not None else f"n = {count(number.n or 0)}")
        for number in facts.numbers[:_TILES]
    ]  # fmt: skip


def _scale(number: Number) -> Scale:
    """0 to 100 where the score lies within, else around the value."""
    values = [v for v in (number.value, number.low, number.high) if v is not None]
    if all(1.5 < value <= 100 for value in values):
        return _PERCENT
    return scale_for([0.0, *values], room=0.05)


def _scores(facts: EvaluationFacts) -> str:
    if not facts.numbers:
        return paragraph("No score is there.", "soft")
    failed = "".join(f"<li>{data(each)}</li>\n" for each in facts.missed)
    failed = f"<p>Required and not reached:</p>\n<ul>\n{failed}</ul>\n" if failed else ""
    names = [baseline.name for baseline in facts.baselines]
    known = [{n.name: n for n in baseline.numbers} for baseline in facts.baselines]
    rows: list[Row] = []
    for number in facts.numbers:
        beside = [numbers.get(number.name) for numbers in known]
        rows.append([
            number.name,
            interval(number.value, number.low, number.high, _scale(number)),
            Figure(precise(number.value)),
            Figure(ranged(number.low, number.high)),
            *(Figure("–" if other is None else precise(other.value)) for other in beside),
            Figure("–" if number.n is None else count(number.n)),
        ])  # fmt: skip
    heads = ["score", "", "value", "95 % interval", *names, "n"]
    signed = [[number.name, number.signature] for number in facts.numbers if number.signature]
    body = failed + table(heads, rows)
    if signed:
        body += folded("How each is computed", table(["score", "signature"], signed))
    return body


def _changes(facts: EvaluationFacts) -> str:
    body = ""
    for baseline in facts.baselines:
        rows: list[Row] = [
            [change.name, _difference(change), Figure(precise(change.value)),
             Figure(precise(change.baseline)), Figure(f"{change.difference:+.3f}"),
             Figure(ranged(change.low, change.high)),
             Figure("–" if change.p is None else written(change.p, 2))]
            for change in baseline.changes
        ]  # fmt: skip
        if rows:
            heads = ["score", "", "value", "baseline", "difference", "95 % interval", "p"]
            body += f"<h3>{data(baseline.name)}</h3>\n" + table(heads, rows)
    if not body:
        return ""
    return body + paragraph("A line that crosses zero is what chance alone may do.", "note")


def _difference(change: Change) -> Html:
    ends = [v for v in (change.difference, change.low, change.high) if v is not None]
    reach = max(map(abs, ends)) * 1.05 or 1.0
    return interval(change.difference, change.low, change.high, Scale(-reach, reach))


def _slices(facts: EvaluationFacts) -> str:
    body = ""
    for what in dict.fromkeys(part.by for part in facts.slices):
        parts = [part for part in facts.slices if part.by == what]
        names = list(dict.fromkeys(n.name for part in parts for n in part.numbers))
        lines: list[Row] = []
        for part in parts:
            known = {n.name: n for n in part.numbers}
            cells = [Figure(precise(known[n].value) if n in known else "–") for n in names]
            lines.append([part.value, part.n, *cells])
        body += f"<h3>{data(what or 'slice')}</h3>\n" + table([what or "", "n", *names], lines)
    return body


def _confusion(facts: EvaluationFacts) -> str:
    if facts.matrix is None:
        return ""
    labels, counts = facts.matrix
    caption = "Rows are true labels, columns answers; the more colour, the larger the share."
    body = drawing(lambda size: confusion(labels, counts, size), caption)
    pairs = [
        (amount, labels[down], labels[across])
        for down, row in enumerate(counts)
        for across, amount in enumerate(row)
        if amount and down != across
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    if pairs:
        rows: list[Row] = [[true, said, amount] for amount, true, said in pairs[:_PAIRS]]
        body += "<h3>Most frequent confusions</h3>\n" + table(["true", "taken for", "items"], rows)
    per_label: list[Row] = [
        [label, int(sum(counts[n])), Figure(_percent(counts[n][n], sum(counts[n]))),
         Figure(_percent(counts[n][n], sum(row[n] for row in counts)))]
        for n, label in enumerate(labels)
    ]  # fmt: skip
    heads = ["label", "items", "found (recall)", "right when said (precision)"]
    return body + folded(f"{len(labels)} labels as a table", table(heads, per_label))


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def _calibration(facts: EvaluationFacts) -> str:
    if not facts.bins:
        return ""
    caption = "Below the diagonal it is surer than it should be; the area is the number of answers."
    rows: list[Row] = [
        [Figure(f"{100 * each.confidence:.1f} %"), Figure(f"{100 * each.accuracy:.1f} %"), each.n]
        for each in facts.bins
    ]
    return drawing(lambda size: calibration(facts.bins, size), caption) + folded(
        "As a table", table(["sure", "right", "answers"], rows)
    )


def _flipped(facts: EvaluationFacts) -> str:
    body = ""
    for baseline in facts.baselines:
        for words, cases in (("wrong here, right", baseline.lost),
                             ("right here, wrong", baseline.gained)):  # fmt: skip
            if cases:
                title = f"{count(len(cases))} {words} with {baseline.name}, by {baseline.metric}"
                shown = "".join(_case(case, baseline.name) for case in cases[:_FLIPPED])
                if cases[_FLIPPED:]:
                    more = f"{count(len(cases) - _FLIPPED)} more are in results.json."
                    shown += paragraph(more, "note")
                body += folded(title, shown, is_open=len(facts.baselines) == 1)
    return body


def _worst(facts: EvaluationFacts) -> str:
    by, cases = worst(facts.cases, _CASES)
    if not cases:
        return ""
    return paragraph(f"The lowest by {by}, of {count(len(facts.cases))}.") + "".join(
        _case(case) for case in cases
    )


def _case(case: Case, baseline: str = "baseline") -> str:
    rows = [("question", case.question), ("reply", case.reply)]
    rows += [(baseline, case.before)] if case.before is not None else []
    rows += [("reference", case.reference)] if case.reference else []
    if case.scores:
        told = {k: precise(v) for k, v in case.scores.items()}
        if "right" in told:
            told["right"] = "yes" if case.scores["right"] else "no"
        rows.append(("", " · ".join(f"{name} {value}" for name, value in told.items())))
    lines = "".join(f"<dt>{data(words, 40)}</dt><dd>{_lines(text)}</dd>\n" for words, text in rows)
    return f'<div class="case"><dl>\n{lines}</dl></div>\n'


def _lines(text: str) -> Html:
    """Text of a model or of the data, line by line."""
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    shown = "\n".join(escape(one_line(line)) for line in cut.split("\n"))
    return Html(f"<bdi>{shown or '(nothing)'}</bdi>")


def _advice(facts: EvaluationFacts) -> str:
    items = "".join(
        f"<li>{data(says, 600)}{f'<br><code>{data(command, 400)}</code>' if command else ''}</li>\n"
        for says, command in facts.advice
    )
    return f"<ul>\n{items}</ul>\n" if items else ""


def _settings(facts: EvaluationFacts) -> str:
    rows = [[k, str(v)] for k, v in sorted(facts.settings.items()) if v not in (None, "", [])]
    return folded(f"{len(rows)} settings", table(["setting", "value"], rows)) if rows else ""


def side_by_side(evaluations: Sequence[EvaluationFacts], names: Sequence[str]) -> Section:
    """The scores of several evaluations in one table."""
    known = [{n.name: n for n in facts.numbers} for facts in evaluations]
    rows: list[Row] = []
    for name in dict.fromkeys(name for numbers in known for name in numbers):
        cells = []
        for numbers in known:
            number = numbers.get(name)
            text = "–" if number is None else precise(number.value)
            if number is not None and number.low is not None:
                text += f" ({ranged(number.low, number.high)})"
            cells.append(Figure(text))
        rows.append([name, *cells])
    return Section("compared", "Scores side by side", table(["score", *names], rows))
