"""JSON Lines, the form that carries gigabytes: blocks of bytes, split at line ends, row by row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain

import msgspec

from chatbench.corpus.document import Failure, Record
from chatbench.corpus.formats.rows import parse_row, row_record, to_document
from chatbench.corpus.formats.source import Source
from chatbench.corpus.sources.blob import ReadOptions

_VOTES = 20
_OBJECT = re.compile(r'\{\s*(?:"|\}|$)')
_SHOWN_BYTES = 200
_BLANKS = b" \t\r\n\v\f"


def matches(head: bytes, text: str, name: str, options: ReadOptions) -> bool:
    """Several lines, the first of them or most of them objects; in a .jsonl file any line that
    begins like one."""
    lines = [line.strip() for line in text.split("\n", 4 * _VOTES)[: 4 * _VOTES]]
    full = [line for line in lines if line][:_VOTES]
    if not full:
        return False
    if name.endswith((".jsonl", ".ndjson")):
        return any(map(_OBJECT.match, full))
    if len(full) > 1 and _is_object(full[0]):
        return True
    # The last line of the head may be cut.
    whole = full[:-1] if len(full) < _VOTES and len(full) > 1 else full
    objects = sum(_OBJECT.match(line) is not None and line[-1] == "}" for line in whole)
    return len(full) > 1 and 2 * objects > len(whole)


def _is_object(line: str) -> bool:
    try:
        return type(msgspec.json.decode(line)) is dict
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def read(source: Source) -> Iterator[Record]:
    """A document or failure for each line that is not blank; `file:line` is its source."""
    name, mapping = source.name, source.options.mapping
    decode = msgspec.json.Decoder().decode
    for number, lines in _numbered(source):
        if isinstance(lines, Failure):
            yield lines
            continue
        for place, line in enumerate(lines, number):
            where = f"{name}:{place}"
            try:
                row = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                if line.strip(_BLANKS):
                    yield parse_row(line, where, mapping)
                continue
            if type(row) is dict:
                try:
                    document = to_document(row, where, mapping)
                except ValueError:
                    yield row_record(row, where, mapping, line)
                else:
                    yield document
            else:
                yield row_record(row, where, mapping, line)


def _numbered(source: Source) -> Iterator[tuple[int, list[bytes] | Failure]]:
    """Runs of whole lines, each with the number of its first one; a too long line is a failure of
    which only the beginning is held."""
    limit = source.options.max_record_bytes
    number = source.first_line
    pending: list[bytes] = []
    size = 0
    for block in chain(source.utf_8(), (b"\n",)):
        cut = block.rfind(b"\n")
        if cut < 0:
            size += len(block)
            if size <= limit:
                pending.append(block)
            elif pending != [b""]:
                pending = [b"".join((*pending, block))[:_SHOWN_BYTES]]
            continue
        first = block.find(b"\n")
        if size + first > limit:
            yield number, _too_long(source, number, size + first, b"".join((*pending, block)))
            lines = block[first + 1 : cut].split(b"\n") if cut > first else []
            number += 1
        else:
            lines = b"".join((*pending, block[:cut])).split(b"\n")
        yield from _checked(source, number, lines, limit)
        number += len(lines)
        pending, size = [block[cut + 1 :]], len(block) - cut - 1


def _checked(
    source: Source, number: int, lines: list[bytes], limit: int
) -> Iterator[tuple[int, list[bytes] | Failure]]:
    if not lines or max(map(len, lines)) <= limit:
        yield number, lines
        return
    for place, line in enumerate(lines, number):
        fits = len(line) <= limit
        yield place, [line] if fits else _too_long(source, place, len(line), line)


def _too_long(source: Source, number: int, size: int, start: bytes) -> Failure:
    detail = f"{size} bytes; at most {source.options.max_record_bytes} are read"
    shown = start[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")
    return Failure(f"{source.name}:{number}", "line too long", detail, shown)
