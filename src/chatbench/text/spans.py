"""Entities and slots in answers: which of the right ones a model names, and how many wrong ones.

An answer is a JSON object of lists, `{"artist": ["Miles Davis"], "city": []}`, or a text with
tags in it, `play <artist>Miles Davis</artist>` or `play [Miles Davis](artist)`. An entity is right
when its type and its text are; the counts are those of conlleval (Tjong Kim Sang & Buchholz 2000).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from chatbench.text.measuring import Floats, Judged, Measured, table

Spans = Counter[tuple[str, str]]

# A tag's end names the same type; types are words, of any script.
_TAG = re.compile(r"<([^\W\d][\w.-]*)>([^<>]*)</\1>")
_LINK = re.compile(r"\[([^\[\]]+)\]\(([^\W\d][\w.-]*)\)")


def json_spans(answer: str) -> Spans | None:
    """Entities by (type, text), each as often as it is there; None for what is no such object."""
    try:
        found = msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    spans: Spans = Counter()
    for kind, values in found.items():
        listed = values if isinstance(values, list) else [] if values is None else [values]
        if not all(isinstance(value, str) for value in listed):
            return None
        spans.update((kind, " ".join(value.split())) for value in listed)
    return spans


def tagged_spans(answer: str) -> Spans:
    """Entities of a text with tags, by (type, text)."""
    pairs = [(match[1], match[2]) for match in _TAG.finditer(answer)]
    pairs += [(match[2], match[1]) for match in _LINK.finditer(answer)]
    return Counter((kind, " ".join(text.split())) for kind, text in pairs)


def span_f1(pairs: Sequence[Judged]) -> list[Measured]:
    """Micro F1, precision and recall of entities in percent; nothing unless all references are
    JSON objects of lists, or some have tags. A reply of another form names no entities."""
    found = _wanted([pair.reference for pair in pairs])
    if found is None:
        return []
    form, wanted = found
    read: Callable[[str], Spans | None] = json_spans if form == "json" else tagged_spans
    said = [read(pair.reply) for pair in pairs]
    rows = [
        ((spans & right).total(), spans.total(), right.total()) if spans is not None
        else (0, 0, right.total())
        for spans, right in zip(said, wanted, strict=True)
    ]  # fmt: skip
    lost = sum(spans is None for spans in said)
    entities = sum(right.total() for right in wanted)
    signature = f"micro|exact:type+text|{form}|entities:{entities}"
    signature += f"|unreadable:{lost}" if lost else ""
    sums = table(rows)
    return [
        Measured(name, sums, value_of, len(pairs), signature)
        for name, value_of in (
            ("span_f1", f1_of), ("span_precision", precision_of), ("span_recall", recall_of)
        )
    ]  # fmt: skip


def _wanted(references: Sequence[str]) -> tuple[str, list[Spans]] | None:
    """The form of the references, and their entities."""
    objects = [json_spans(reference) for reference in references]
    spans = [found for found in objects if found is not None]
    if references and len(spans) == len(references):
        return "json", spans
    tagged = [tagged_spans(reference) for reference in references]
    return ("tags", tagged) if any(tagged) else None


def f1_of(totals: Floats) -> Floats:
    """Percent (...) of totals (..., 3): right, named and wanted entities. As conlleval says it,
    nothing right is 0, and nothing wanted and nothing named is 0 as well."""
    return _percent(2 * totals[..., 0], totals[..., 1] + totals[..., 2])


def precision_of(totals: Floats) -> Floats:
    """Of the named entities, those that are right, in percent."""
    return _percent(totals[..., 0], totals[..., 1])


def recall_of(totals: Floats) -> Floats:
    """Of the wanted entities, those that were named, in percent."""
    return _percent(totals[..., 0], totals[..., 2])


def _percent(part: Floats, whole: Floats) -> Floats:
    found: Floats = 100 * part / np.where(whole > 0, whole, 1)
    return found
