"""JSON: a list of objects, an object that holds one, an object of objects, or a single object."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from chatbench.corpus.document import Failure, Record
from chatbench.corpus.formats.json_elements import Element, elements
from chatbench.corpus.formats.rows import has_shape, parse_row, row_record, shown
from chatbench.corpus.formats.source import Source
from chatbench.corpus.sources.blob import ReadOptions

_WHITE = b" \t\r\n"
_LIST_OF_OBJECTS = re.compile(rb'"([^"\\\n]*)"\s*:\s*\[\s*\{')
_BAD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def matches(head: bytes, text: str, name: str, options: ReadOptions) -> bool:
    """Begins like an object or a list of objects; under .json like any list."""
    start = text.lstrip()
    inner = start[1:].lstrip()
    if start[:1] == "{":
        return inner[:1] in ('"', "}") or (name.endswith(".json") and inner[:1] not in "%{#")
    if start[:1] == "[":
        return inner[:1] == "{" or name.endswith(".json")
    return name.endswith(".json") and start[:1] in ('"', "'", "}", "]")


def read(source: Source) -> Iterator[Record]:
    """`name[N]` is the N-th entry of the list, `name:1` a single object.

    A list is read element by element in flat memory, an object is held once. A broken entry is one
    Failure and reading goes on behind it.
    """
    blocks = source.utf_8()
    start = b""
    for block in blocks:
        start += block
        if start.strip(_WHITE):
            break
    if start.lstrip(_WHITE)[:1] == b"[":
        yield from _list(source, start.lstrip(_WHITE)[1:], blocks)
        return
    whole = b"".join((start, *blocks))
    if not whole.strip(_WHITE):
        yield Failure(source.name, "bad JSON", "nothing in it")
        return
    yield from _object(source, whole)


def _list(source: Source, start: bytes, blocks: Iterator[bytes]) -> Iterator[Record]:
    for element in elements(start, blocks, source.options.max_record_bytes):
        yield from _element(source, element, f"{source.name}[{element.number}]")


def _element(source: Source, element: Element, where: str) -> Iterator[Record]:
    if element.problem:
        shown = element.data[:2000].decode("utf-8", "backslashreplace")
        yield Failure(where, element.problem, element.detail, shown)
        return
    try:
        row = msgspec.json.decode(element.data)
    except _BAD:
        yield parse_row(element.data, where)
        return
    yield from row_records(row, where, source, element.data)


def row_records(row: Any, where: str, source: Source, data: bytes = b"") -> Iterator[Record]:
    """The records of a decoded row: one, or one for each question of a SQuAD article."""
    nested = _squad_rows(row)
    if nested is None:
        yield row_record(row, where, source.options.mapping, data)
        return
    for number, question in enumerate(nested, 1):
        yield row_record(question, f"{where}[{number}]", source.options.mapping)


def _squad_rows(row: Any) -> list[Any] | None:
    """Context, question and first answer of each question; None for a row of another kind."""
    if not isinstance(row, dict):
        return None
    paragraphs = row.get("paragraphs", [row] if "qas" in row else None)
    if not isinstance(paragraphs, list) or not all(
        isinstance(p, dict) and isinstance(p.get("qas"), list) for p in paragraphs
    ):
        return None
    title = {"title": row["title"]} if isinstance(row.get("title"), str) else {}
    return [
        {**title, "context": paragraph.get("context"), **question}
        if isinstance(question, dict) else question
        for paragraph in paragraphs
        for question in paragraph["qas"]
    ]  # fmt: skip


def _object(source: Source, whole: bytes) -> Iterator[Record]:
    try:
        values = msgspec.json.decode(whole, type=dict[str, msgspec.Raw])
    except _BAD:
        yield from _broken_object(source, whole)
        return
    nested = [value for value in values.values() if bytes(value)[:1] == b"["]
    if not has_shape(tuple(values), source.options.mapping) and "paragraphs" not in values:
        lists = [value for value in nested if bytes(value)[1:].lstrip(_WHITE)[:1] == b"{"]
        if len(lists) == 1:
            yield from _list(source, bytes(lists[0])[1:], iter(()))
            return
        if len(values) > 1 and all(bytes(value)[:1] == b"{" for value in values.values()):
            for key, value in values.items():
                element = Element(1, bytes(value))
                yield from _element(source, element, f"{source.name}[{key}]")
            return
    yield from _element(source, Element(1, whole.strip(_WHITE)), f"{source.name}:1")


def _broken_object(source: Source, whole: bytes) -> Iterator[Record]:
    """Objects one behind the other, or what can be saved of a damaged list inside an object."""
    limit = source.options.max_record_bytes
    first = next(elements(whole, iter(()), limit, closed=False))
    if not first.problem and _is_object(first.data):
        for element in elements(whole, iter(()), limit, closed=False):
            yield from _element(source, element, f"{source.name}[{element.number}]")
        return
    found = _LIST_OF_OBJECTS.search(whole)
    # A damaged row with a list of turns is one row, not a row for each turn.
    if found and not has_shape((shown(found[1]),), source.options.mapping):
        # What follows the list is counted as one failure, the only one when its entries are whole.
        yield from _list(source, whole[found.end() - 1 :], iter(()))
    else:
        yield parse_row(whole, f"{source.name}:1")


def _is_object(data: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(data), dict)
    except _BAD:
        return False
