"""report.html: a corpus on one page, self-contained, the same bytes for the same facts."""

from __future__ import annotations

import json
from pathlib import Path

from chatbench.console import format_count
from chatbench.corpus.reports.charts import Stream, count, cut, flow, histogram, share
from chatbench.corpus.reports.facts import CorpusFacts, FertilityFacts
from chatbench.corpus.reports.page import (
    ROWS_IN_VIEW,
    Figure,
    Html,
    Section,
    bars,
    chips,
    data,
    document,
    figure,
    folded,
    long_bars,
    paragraph,
    quotes,
    ranked,
    table,
    tiles,
)
from chatbench.corpus.reports.wording import language_name, reason_meaning
from chatbench.storage import write_file

__all__ = ["CorpusFacts", "render", "write_report"]
_FLOW_REASONS = 12
_OPEN_EXAMPLES = 3
_VALUES_OF_A_TAG = 12


def write_report(path: Path, facts: CorpusFacts) -> None:
    """Write the report of `facts` to `path`, atomically. Raises EnvironmentFault."""
    write_file(path, render(facts).encode())


def render(facts: CorpusFacts) -> str:
    """The page as a string; a function of `facts` alone."""
    parts = (
        ("records", "From records to documents", _records(facts)),
        ("reasons", "What was left out, and why", _reasons(facts)),
        ("repairs", "What was mended", _repairs(facts)),
        ("lengths", "Lengths", _lengths(facts)),
        ("languages", "Languages and forms", _forms(facts)),
        ("duplicates", "Duplicates", _duplicates(facts)),
        ("leaks", "Leaks into validation and test", _leaks(facts)),
        ("personal", "Personal data", _personal(facts)),
        ("tags", "Tags", _tags(facts)),
        ("tokenizer", "Tokenizer", _tokenizer(facts)),
        ("words", "Words that go together", _words(facts)),
        ("sources", "Sources", _sources(facts)),
        ("settings", "Settings", _settings(facts)),
    )
    sections = [Section(anchor, title, body) for anchor, title, body in parts if body]
    return document(
        f"{facts.name or 'Corpus'} – corpus report", _head(facts), sections, _foot(facts)
    )


def _head(facts: CorpusFacts) -> str:
    total = facts.total()
    numbers = [("documents", _big(facts.ledger.kept), f"of {count(facts.ledger.read)} read")]
    if total.tokens:
        learned = f"{share(total.supervised, total.tokens)} learned"
        numbers.append(("tokens", _big(total.tokens), learned))
    if facts.characters:
        ratio = f"{facts.characters / total.tokens:.2f} a token" if total.tokens else ""
        numbers.append(("characters", _big(facts.characters), ratio))
    if turns := sum(facts.turns.values()):
        exchanged = sum(number * amount for number, amount in facts.turns.items())
        numbers.append(("conversations", _big(turns), f"{exchanged / turns:.1f} turns each"))
    if facts.tokenizer.vocab_size:
        use = facts.tokenizer.vocabulary_use
        used = "" if use is None else f"{share(use, 1)} in use"
        numbers.append(("vocabulary", count(facts.tokenizer.vocab_size), used))
    if facts.baseline:
        split = min(facts.baseline, key=lambda name: (name != "test", name))
        value = f"{facts.baseline[split]:.2f}"
        numbers.append(("n-gram baseline", value, f"bits per byte on {cut(split, 20)}"))
    title = data(facts.name) if facts.name else Html("Corpus")
    return (
        f'<p class="eyebrow">Corpus report</p>\n<h1>{title}</h1>\n'
        f"{paragraph(_lead(facts), 'lead')}{tiles(numbers)}"
    )


def _big(number: int) -> str:
    """A number that fits into a tile."""
    return count(number) if number < 10**10 else format_count(number)


def _lead(facts: CorpusFacts) -> str:
    """One sentence on what the corpus is."""
    if not facts.ledger.kept:
        return "Nothing was kept."
    conversations = sum(facts.turns.values())
    kind = "texts"
    if conversations:
        kind = "conversations" if conversations >= facts.ledger.kept else "texts and conversations"
    spoken = [cut(language_name(c), 40) for c, _ in ranked(facts.languages) if c != "none"][:3]
    tongues = f", mostly in {' and '.join(spoken[:2])}" if len(facts.languages) > 2 else ""
    if spoken and not tongues:
        tongues = f" in {' and '.join(spoken)}"
    number = facts.file_count()
    files = f" from {count(number)} file{'s' * (number != 1)}" if number else ""
    return f"{kind.capitalize()}{tongues}{files}."


def _records(facts: CorpusFacts) -> str:
    ledger = facts.ledger
    if not ledger.read:
        return paragraph("No record was read.", "soft")
    kept = Stream("kept", ledger.kept, "kept")
    splits = [
        Stream(name, row.documents, name if name in ("train", "val", "test") else "kept")
        for name, row in facts.splits.items()
    ]
    reasons = [Stream(reason, n, "dropped") for reason, n in ranked(ledger.dropped)]
    reasons += [Stream(f"{reason} (failed)", n, "failed") for reason, n in ranked(ledger.failed)]
    shown = reasons
    if len(reasons) > _FLOW_REASONS:
        shown = sorted(reasons, key=lambda s: (-s.amount, s.label))[: _FLOW_REASONS - 1]
        shown = [stream for stream in reasons if stream in shown]
        rest = sum(s.amount for s in reasons) - sum(s.amount for s in shown)
        more = len(reasons) - len(shown)
        shown.append(Stream(f"{more} more reasons", rest, "dropped"))
    lost = sum(ledger.dropped.values())
    bad = sum(ledger.failed.values())
    sentence = (
        f"Of {count(ledger.read)} records {count(ledger.kept)} were kept, {count(lost)} dropped"
        f" on purpose, and {count(bad)} could not be read."
    )
    if ledger.read != ledger.kept + lost + bad:
        sentence += " These numbers do not add up, so something is missing from this account."
    rows: list[list[str | int | float]] = [
        [name, row.documents, Figure(share(row.documents, facts.total().documents)), row.tokens,
         row.supervised]
        for name, row in facts.splits.items()
    ]  # fmt: skip
    return (
        paragraph(sentence)
        + figure(lambda size: flow(ledger.read, kept, splits, shown, size),
                 "Height is the number of records; percentages are of all that was read.")
        + (table(["split", "documents", "share", "tokens", "learned"], rows) if rows else "")
    )  # fmt: skip


def _reasons(facts: CorpusFacts) -> str:
    ledger = facts.ledger
    entries = [(reason, n, "dropped") for reason, n in ledger.dropped.items()]
    entries += [(reason, n, "failed") for reason, n in ledger.failed.items()]
    entries.sort(key=lambda entry: (-entry[1], entry[0], entry[2]))
    if not entries:
        return paragraph("Nothing: every record became a document.", "soft") if ledger.read else ""
    marks = {"dropped": "dropped", "failed": "failed to read"}
    rows = [
        (Html(f'{data(reason)} <span class="kind{" lost" if kind == "failed" else ""}">'
              f"{marks[kind]}</span>"), n)
        for reason, n, kind in entries
    ]  # fmt: skip
    body = bars("reason", "records", rows, ledger.read, (kind for *_, kind in entries))
    shown = 0
    for reason, n, _ in entries:
        examples = ledger.examples.get(reason, [])
        meaning = reason_meaning(reason)
        if examples:
            title = f"{reason}: {meaning}" if meaning else reason
            more = f" · {len(examples)} of {count(n)}" if n > len(examples) else ""
            body += folded(title + more, quotes(examples), is_open=shown < _OPEN_EXAMPLES)
            shown += 1
    return body


def _repairs(facts: CorpusFacts) -> str:
    if not facts.changed:
        return ""
    return bars("repair", "documents", ranked(facts.changed), facts.ledger.read)


def _lengths(facts: CorpusFacts) -> str:
    lengths = facts.lengths
    if not sum(lengths.counts):
        return ""
    whole = sum(lengths.counts)
    sentence = (
        f"Half of the documents have at most {count(round(lengths.median))} tokens, 95"
        f" percent at most {count(round(lengths.p95))}; the longest has {count(lengths.max)}."
    )
    marks = {"median": lengths.median, "95 %": lengths.p95}
    caption = "Documents by number of tokens; each pair of columns doubles the length."
    if any(lengths.longer_than.values()):
        caption += " Dashed lines are context limits, each with the share of longer documents."
    drawn = figure(
        lambda size: histogram(lengths.edges, lengths.counts, marks, lengths.longer_than, size),
        caption,
    )
    rows: list[list[str | int | float]] = [
        [f"{count(limit)} tokens", above, Figure(share(above, whole))]
        for limit, above in sorted(lengths.longer_than.items())
    ]
    limits = table(["context", "longer documents", "share"], rows) if rows else ""
    columns: list[list[str | int | float]] = [
        [f"{count(low)} to {count(high - 1)}", n, Figure(share(n, whole))]
        for low, high, n in zip(lengths.edges, lengths.edges[1:], lengths.counts, strict=False)
    ]
    return (
        paragraph(sentence) + drawn + limits
        + folded("The columns as a table", table(["tokens", "documents", "share"], columns))
    )  # fmt: skip


def _forms(facts: CorpusFacts) -> str:
    parts = []
    if facts.languages:
        named = [(language_name(code), n) for code, n in ranked(facts.languages)]
        parts.append(("Languages", "language", "documents", named))
    if facts.turns:
        turns = [(f"{n} turn{'s' * (n != 1)}", facts.turns[n]) for n in sorted(facts.turns)]
        if len(turns) > ROWS_IN_VIEW:
            rest = sum(n for _, n in turns[ROWS_IN_VIEW - 1 :])
            first = sorted(facts.turns)[ROWS_IN_VIEW - 1]
            turns = [*turns[: ROWS_IN_VIEW - 1], (f"{first} turns and more", rest)]
        parts.append(("Length of conversations", "turns", "conversations", turns))
    if facts.roles:
        parts.append(("Who speaks", "role", "turns", ranked(facts.roles)))
    if facts.shapes:
        parts.append(("Form of the rows", "form", "documents", ranked(facts.shapes)))
    if not parts:
        return ""
    blocks = "".join(
        f"<div><h3>{title}</h3>{long_bars(label, unit, amounts)}</div>\n"
        for title, label, unit, amounts in parts
    )
    return f'<div class="two">\n{blocks}</div>\n'


def _duplicates(facts: CorpusFacts) -> str:
    found = facts.duplicates
    if found.mode == "off" and not (found.exact or found.near or found.cluster_sizes):
        return paragraph("Not asked for (--dedup off).", "soft")
    near = "near-duplicates were not asked for (--dedup near finds them)"
    if found.mode == "near" or found.near:
        near = f"{count(found.near)} near-duplicates were dropped"
        if found.threshold is not None:
            near += f" (similarity from {found.threshold:g})"
    body = paragraph(f"{count(found.exact)} exact copies were dropped; {near}.")
    if found.cluster_sizes:
        groups = sum(found.cluster_sizes.values())
        rows = [(f"{n} documents", found.cluster_sizes[n]) for n in sorted(found.cluster_sizes)]
        body += f"<h3>{count(groups)} groups of near-duplicates</h3>\n"
        body += long_bars("size of the group", "groups", rows)
    if found.largest:
        largest = sorted(found.largest, key=lambda c: (-c.size, c.excerpt))[:5]
        body += "<h3>The largest groups</h3>\n"
        body += table(
            ["documents", "how one of them begins"], [[c.size, c.excerpt] for c in largest]
        )
    return body


def _leaks(facts: CorpusFacts) -> str:
    found = facts.contamination
    body = ""
    if found.held_out:
        rows: list[list[str | int | float]] = [
            [name, row.documents, row.overlapping, Figure(share(row.overlapping, row.documents))]
            for name, row in found.held_out.items()
        ]
        body += paragraph(
            "Held-out documents that share 13 words in a row (in Chinese: characters) with"
            " training; what a model reads there it may simply remember."
        )
        body += table(["split", "documents", "sharing a 13-gram", "share"], rows)
        if found.rate < 1:
            seen = f"A sample of {share(found.rate, 1)} of the 13-grams was looked at."
            body += paragraph(seen, "note")
    elif found.mode == "off":
        body += paragraph("Between the splits: not asked for (--contamination off).", "soft")
    if found.against:
        body += paragraph(
            f"{count(found.against_dropped)} documents were dropped because they share a 13-gram"
            f" with the test set{'s' * (len(found.against) != 1)}:"
        )
        body += chips(data(path) for path in found.against)
    return body


def _personal(facts: CorpusFacts) -> str:
    found = facts.pii
    if found.mode == "off" and not found.counts:
        return paragraph("Not asked for (--pii flag or --pii mask).", "soft")
    if not sum(found.counts.values()):
        return paragraph("None of the known kinds was found.", "soft")
    done = "replaced by placeholders" if found.mode == "mask" else "counted and left in the text"
    whole = sum(found.counts.values())
    return (
        paragraph(f"{count(whole)} items were {done}.")
        + bars("kind", "items", ranked(found.counts), whole)
        + paragraph("Names, addresses and free descriptions are not looked for.", "note")
    )


def _tags(facts: CorpusFacts) -> str:
    blocks = ""
    for column in sorted(facts.tags):
        values = ranked(facts.tags[column])
        whole = sum(n for _, n in values)
        body = bars("value", "documents", values[:_VALUES_OF_A_TAG], whole)
        if rest := values[_VALUES_OF_A_TAG:]:
            others = sum(n for _, n in rest)
            body += paragraph(f"{count(len(rest))} more values, {count(others)} documents", "note")
        blocks += f"<div><h3>{data(column)}</h3>{body}</div>\n"
    return f'<div class="two">\n{blocks}</div>\n' if blocks else ""


def _tokenizer(facts: CorpusFacts) -> str:
    known = facts.tokenizer
    if not known.vocab_size:
        return ""
    use = known.vocabulary_use
    used = "" if use is None else f", of which {share(use, 1)} occur in the training text"
    body = paragraph(f"{count(known.vocab_size)} entries{used}.")
    if known.fertility:
        body += table(
            ["language", "bytes per token", "tokens per word", "tokens per character", "texts"],
            [_fertility(row) for row in known.fertility],
        )
        body += paragraph("More bytes in a token mean shorter rows and faster training.", "note")
    for language in sorted({cut_word.language for cut_word in known.worst_words}):
        words = [w for w in known.worst_words if w.language == language]
        of = f" ({language_name(language)})" if language else ""
        body += f"<h3>Frequent words cut into most pieces{data(of) if of else ''}</h3>\n"
        body += chips((Html(f"{data(w.word, 60)} · {count(w.tokens)}") for w in words), language)
    return body


def _fertility(row: FertilityFacts) -> list[str | int | float]:
    per_unit = Figure(f"{row.tokens_per_unit:.2f}" if row.tokens_per_unit else "–")
    words, characters = (Figure("–"), per_unit) if row.unit != "word" else (per_unit, Figure("–"))
    texts = Figure(count(row.texts) if row.texts else "–")
    return [language_name(row.language), Figure(f"{row.bytes_per_token:.2f}"), words, characters,
            texts]  # fmt: skip


def _words(facts: CorpusFacts) -> str:
    body = ""
    for language in sorted(facts.collocations):
        if phrases := facts.collocations[language]:
            mean = facts.sentence_lengths.get(language)
            says = f", {mean:.0f} characters a sentence" if mean else ""
            body += f"<h3>{data(language_name(language) + says)}</h3>\n"
            body += chips((data(phrase, 60) for phrase in phrases), language)
    return body


def _sources(facts: CorpusFacts) -> str:
    if not facts.sources:
        return ""
    rows: list[list[str | int | float]] = [
        [source.path, source.verdict or "–", source.bytes, source.records]
        for source in facts.sources
    ]
    size, records = (sum(getattr(s, name) for s in facts.sources) for name in ("bytes", "records"))
    body = table(["file", "read as", "bytes", "records"], rows)
    total = f"{count(len(rows))} files, {format_count(size)}B, {count(records)} records"
    if facts.file_count() > len(rows):
        total = f"The first {total}; {count(facts.file_count())} files in all"
    return folded(total, body, is_open=len(rows) <= ROWS_IN_VIEW)


def _settings(facts: CorpusFacts) -> str:
    if not facts.settings:
        return ""
    rows = [[key, _written(facts.settings[key])] for key in sorted(facts.settings)]
    return folded(f"{len(rows)} settings", table(["setting", "value"], rows))


def _written(value: object) -> str:
    if value in (None, [], ""):
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _foot(facts: CorpusFacts) -> str:
    lines = (
        ("Fingerprint of the corpus", facts.fingerprint),
        ("Tokenizer", facts.tokenizer.digest),
    )
    shown = "".join(
        f"<p>{name}: <code>{data(value)}</code></p>\n" for name, value in lines if value
    )
    return (
        shown + "<p>Made by chatbench. The numbers of this page are in facts.json beside it.</p>\n"
    )
