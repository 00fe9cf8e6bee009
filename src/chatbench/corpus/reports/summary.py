"""The short of a corpus folder as lines of text, for `chatbench info`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chatbench import console
from chatbench.console import format_count
from chatbench.corpus.reports.charts import cut, one_line, width
from chatbench.corpus.reports.facts import CorpusFacts, facts_of
from chatbench.corpus.reports.page import ranked
from chatbench.corpus.reports.wording import language_name
from chatbench.corpus.shards import KIND
from chatbench.errors import UsageError
from chatbench.storage import pretty_json, read_manifest

REPORT = "report.html"
_SOURCES = 8
_REASONS = 15
_NAMED = 6
_NAME_CELLS = 48


def show_corpus(folder: Path, *, as_json: bool = False) -> None:
    """Print the summary of a corpus folder on stdout, or its facts as JSON.

    Contents are not verified, so that this answers at once for any size. Raises UsageError when
    `folder` is no corpus, IntegrityError when its manifest or facts cannot be read.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.kind != KIND:
        raise UsageError(f"{folder} is not a corpus folder", hint="make one: chatbench preprocess")
    facts = facts_of(folder, manifest.info)
    if as_json:
        console.emit(pretty_json(facts).decode(), end="")
        return
    has_report = (folder / REPORT).is_file()
    for line in corpus_lines(manifest.info, facts, folder, has_report=has_report):
        console.emit(line)


def corpus_lines(
    info: Mapping[str, Any], facts: CorpusFacts, folder: Path, *, has_report: bool = True
) -> list[str]:
    """What a person wants to know about the corpus in `folder`, one line each.

    `info` is the manifest's, for what the facts leave out. Controls in names are drawn.
    """
    ledger = facts.ledger
    lines = [f"corpus {cut(facts.name or folder.name, _NAME_CELLS)}: {_holds(facts)}", ""]
    lines += _sources(facts)
    lines.append(
        f"records: {ledger.read:,} read, {ledger.kept:,} kept,"
        f" {sum(ledger.dropped.values()):,} dropped, {sum(ledger.failed.values()):,} failed"
    )
    left_out = [(reason, "dropped", n) for reason, n in ranked(ledger.dropped)]
    left_out += [(reason, "failed", n) for reason, n in ranked(ledger.failed)]
    rows = [[cut(reason, _NAME_CELLS), what, f"{n:,}"] for reason, what, n in left_out[:_REASONS]]
    if rest := left_out[_REASONS:]:
        rows.append([f"{len(rest)} more reasons", "", f"{sum(n for *_, n in rest):,}"])
    lines += aligned(rows, right=(2,))
    if facts.splits:
        counts = [
            [cut(name, _NAME_CELLS), f"{row.documents:,}", f"{row.tokens:,}",
             f"{row.supervised:,}"]
            for name, row in facts.splits.items()
        ]  # fmt: skip
        header = ["split", "documents", "tokens", "learned"]
        lines += ["", *aligned([header, *counts], right=(1, 2, 3), indent=0)]
    lines.append("")
    lines += aligned([[label, text] for label, text in _traits(info, facts)], indent=0)
    lines.append("")
    if has_report:
        lines.append(f"report: {one_line(str(folder / REPORT))}")
    return [*lines, *_next_steps(facts, shlex.quote(one_line(str(folder))))]


def aligned(
    rows: Sequence[Sequence[str]], right: Sequence[int] = (), indent: int = 2
) -> list[str]:  # fmt: skip
    """Rows as columns two spaces apart, padded by what a terminal shows: wide characters count
    twice. Columns in `right` are right-aligned."""
    widths = [max(width(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for place, (cell, room) in enumerate(zip(row, widths, strict=True)):
            gap = " " * (room - width(cell))
            cells.append(gap + cell if place in right else cell + gap)
        lines.append((" " * indent + "  ".join(cells)).rstrip())
    return lines


def _holds(facts: CorpusFacts) -> str:
    total = facts.total()
    conversations = sum(facts.turns.values())
    kept = facts.ledger.kept or total.documents
    parts = [f"{kept:,} document{'s' if kept != 1 else ''}"]
    if conversations:
        parts.append(f"{conversations:,} of them conversations")
    if total.tokens:
        parts.append(f"{format_count(total.tokens)} tokens")
    return ", ".join(parts)


def _sources(facts: CorpusFacts) -> list[str]:
    if not facts.sources:
        return []
    number, size = facts.file_count(), sum(source.bytes for source in facts.sources)
    rows = [
        [cut(s.path, _NAME_CELLS), f"{s.bytes:,} B", f"{s.records:,}", cut(s.verdict, _NAME_CELLS)]
        for s in facts.sources[:_SOURCES]
    ]
    lines = [f"sources: {number:,} file{'s' * (number != 1)}, {format_count(size)}B"]
    if number > len(facts.sources):
        lines[0] += f" in the first {len(facts.sources):,}"
    lines += aligned([["file", "size", "records", "read as"], *rows], right=(1, 2))
    if number > len(rows):
        lines.append(f"  and {number - len(rows):,} more")
    return [*lines, ""]


def _traits(info: Mapping[str, Any], facts: CorpusFacts) -> Iterator[tuple[str, str]]:
    """A label and what there is to say, for what is known."""
    if facts.languages:
        named = {language_name(code): n for code, n in facts.languages.items()}
        yield "languages", _listed(named)
    if facts.shapes:
        yield "forms", _listed(facts.shapes)
    lengths = facts.lengths
    if sum(lengths.counts):
        text = f"median {lengths.median:,.0f} tokens, 95 % up to {lengths.p95:,.0f}"
        text += f", longest {lengths.max:,}"
        above = [f"{limit}: {n:,}" for limit, n in sorted(lengths.longer_than.items()) if n]
        yield "lengths", text + (f"; longer than {', '.join(above)}" if above else "")
    if facts.changed:
        yield "mended", _listed(facts.changed)
    found = facts.duplicates
    if found.mode != "off" or found.exact or found.near:
        near = f", {found.near:,} near" if found.mode == "near" or found.near else ""
        yield "duplicates", f"{found.exact:,} exact{near}, dropped"
    leaks = facts.contamination.held_out
    if leaks:
        pairs = (f"{row.overlapping:,} of {row.documents:,} in {n}" for n, row in leaks.items())
        yield "leaks", f"share a 13-gram with training: {cut(', '.join(pairs), 120)}"
    if facts.pii.mode != "off" or facts.pii.counts:
        done = {"mask": "masked", "flag": "counted only"}.get(facts.pii.mode, facts.pii.mode)
        listed = _listed(facts.pii.counts) or "none found"
        yield "personal data", f"{listed} ({cut(done, _NAME_CELLS)})"
    for column in sorted(facts.tags):
        yield f"tag {cut(column, 24)}", _listed(facts.tags[column])
    known = facts.tokenizer
    if known.vocab_size:
        text = f"{known.vocab_size:,} entries"
        if known.fertility:
            rates = (f"{language_name(f.language)} {f.bytes_per_token:.2f}"
                     for f in known.fertility[:_NAMED])  # fmt: skip
            text += f"; bytes per token: {cut(', '.join(rates), 120)}"
        yield "tokenizer", text
    if facts.baseline:
        rates = (f"{facts.baseline[n]:.3f} on {n}" for n in sorted(facts.baseline))
        yield "n-gram model", f"{cut(', '.join(rates), 120)} (bits per byte)"
    fingerprint = facts.fingerprint or str(info.get("fingerprint", ""))
    if fingerprint:
        yield "fingerprint", cut(fingerprint[:16], 16)


def _listed(amounts: dict[str, int]) -> str:
    """`English 12 · Chinese 9 · 3 more`, the largest first."""
    named = [f"{cut(name, 32)} {n:,}" for name, n in ranked(amounts)]
    more = [f"{len(named) - _NAMED} more"] if len(named) > _NAMED else []
    return " · ".join([*named[:_NAMED], *more])


def _next_steps(facts: CorpusFacts, quoted: str) -> Iterator[str]:
    train = facts.splits.get("train")
    if facts.splits and (train is None or not train.documents):
        yield "next: add data, nothing in here is to train on"
        return
    yield f"next: chatbench pretrain -d {quoted} -o runs/base --minutes 10"
    if facts.holds_conversations():
        yield f"then: chatbench finetune -m runs/base -d {quoted} -o runs/bot"
