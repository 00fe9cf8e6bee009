"""What is to be classified: rows of a table, JSON Lines or plain lines, one by one.

Nothing waits for more input than a row needs, so that in a pipe labels follow their texts at once.
"""

from __future__ import annotations

import re
import select
import sys
from collections.abc import Callable, Iterator
from io import BufferedReader, FileIO, RawIOBase
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from chatbench.corpus.document import Failure
from chatbench.corpus.formats import jsonlines, tables
from chatbench.corpus.formats.rows import text_column
from chatbench.corpus.formats.source import (
    HEAD_BYTES,
    Source,
    bare_name,
    decoded_head,
    fully_peekable,
)
from chatbench.corpus.formats.tables import Dialect
from chatbench.corpus.sources.blob import Blob, ReadOptions
from chatbench.corpus.sources.containers import DamagedInput, open_blobs
from chatbench.corpus.sources.encodings import check_encoding, detect, sample
from chatbench.errors import DataError, UsageError

FORMS = ("auto", "csv", "jsonl", "text")
_NAME = re.compile(r"(?:\w(?:[\w .:#/()-]*[\w.:#/()-])?)?")


class Row(NamedTuple):
    """`value`: the fields of a table's row, the value of a JSON line, or a line. `error` says why
    there is no text in it."""

    number: int
    value: Any
    text: str = ""
    error: str = ""


class Table(NamedTuple):
    """An open input. `form`: csv, jsonl or text; `dialect`: how a csv is to be written."""

    form: str
    rows: Iterator[Row]
    dialect: Dialect | None = None


class _Watched(RawIOBase):
    """A file descriptor that says when somebody has to be waited for."""

    def __init__(self, descriptor: int, waiting: Callable[[], None]) -> None:
        self._file = FileIO(descriptor, closefd=False)
        self._waiting = waiting

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not select.select([self._file], [], [], 0)[0]:
            self._waiting()
        return self._file.readinto(buffer) or 0


class _Prompt(BufferedReader):
    """Gives what is there instead of waiting until as much is as was asked for."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(size) if size is None or size < 0 else self.read1(size)


def open_table(
    path: Path | None, options: ReadOptions, waiting: Callable[[], None] = lambda: None
) -> Table:
    """The rows of a file, or of stdin; `waiting` is called before others are waited for.

    Raises UsageError for what cannot be meant, DataError for what is no text.
    """
    if options.format not in FORMS:
        raise UsageError(
            f"--format {options.format} is not known", hint=f"known: {', '.join(FORMS)}"
        )
    blob, rest = _stdin(waiting) if path is None else _first(path, options)
    head = blob.handle.peek(1 if path is None else HEAD_BYTES)[:HEAD_BYTES]
    codec = _codec(blob, head, options)
    source = Source(blob.name, blob.handle, blob.path, 1, codec, head, options)
    text = decoded_head(head, codec)
    form = _form(head, text, bare_name(blob.name), options)
    if form == "jsonl":
        return Table(form, _json_rows(source, rest))
    if form == "text":
        return Table(form, _lines(source, rest))
    dialect = tables.sniff_dialect(text if text.endswith("\n") else f"{text}\n", options)
    rows = _table_rows(source, dialect, _column(dialect, options), rest)
    if len(dialect.columns) == 1 and not bare_name(blob.name).endswith((".tsv", ".tab")):
        # One column says nothing of what would part it from another.
        dialect = dialect._replace(delimiter=",")
    return Table(form, rows, dialect)


def _stdin(waiting: Callable[[], None]) -> tuple[Blob, Iterator[Blob | Failure]]:
    if sys.stdin is None:
        raise UsageError("stdin is closed", hint="name a file, or pipe texts in")
    return Blob("stdin", _Prompt(_Watched(sys.stdin.fileno(), waiting), HEAD_BYTES)), iter(())


def _first(path: Path, options: ReadOptions) -> tuple[Blob, Iterator[Blob | Failure]]:
    """The file, unpacked, and what else lies in an archive. Raises UsageError, DataError."""
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise UsageError(f"{path} {what}", hint="name a table, JSON Lines or a file of lines")
    blobs = iter(open_blobs(path, str(path), options))
    first = next(blobs, None)
    if first is None or isinstance(first, Failure):
        why = "is empty" if first is None else f"cannot be read: {first.reason} {first.detail}"
        raise DataError(f"{path} {why}")
    return fully_peekable(first), blobs


def _codec(blob: Blob, head: bytes, options: ReadOptions) -> str:
    if options.encoding != "auto":
        return check_encoding(options.encoding)
    found = detect(sample(blob, HEAD_BYTES) if blob.path is not None else head).codec
    if found is None:
        raise DataError(
            f"{blob.name} is not text in a known encoding", hint="name it by --encoding"
        )
    return found


def _form(head: bytes, text: str, name: str, options: ReadOptions) -> str:
    if options.format != "auto":
        return options.format
    if name.endswith(".json"):
        raise UsageError(f"{name} is one JSON value", hint="write JSON Lines, an object a line")
    if jsonlines.matches(head, text, name, options) or _is_object(text.split("\n", 1)[0]):
        return "jsonl"
    ended = text if text.endswith("\n") else f"{text}\n"
    if name.endswith(".txt"):
        return "text"
    is_table = tables.matches(head, ended, name, options) or _begins_with_names(ended, options)
    return "csv" if is_table else "text"


def _begins_with_names(text: str, options: ReadOptions) -> bool:
    """Whether the first line is names of columns and nothing else, that of the text among them.

    Rows of another width are broken rows then, and a pipe may still owe all of them.
    """
    dialect = tables.sniff_dialect(text, options)
    if not dialect.has_header or len(dialect.columns) < 2:
        return False
    names = [name.strip("\"'") for name in text.splitlines()[0].split(dialect.delimiter)]
    return all(map(_NAME.fullmatch, names)) and _wanted(dialect, options) in dialect.columns


def _is_object(line: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(line), dict)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


def _column(dialect: Dialect, options: ReadOptions) -> int:
    """The place of the text among the fields. Raises UsageError."""
    columns, wanted = dialect.columns, _wanted(dialect, options)
    if wanted not in columns:
        named = f"no column {wanted}" if wanted else "several columns"
        raise UsageError(
            f"the table has {named}: {', '.join(columns)}", hint="name it: --map text=COLUMN"
        )
    return columns.index(wanted)


def _wanted(dialect: Dialect, options: ReadOptions) -> str | None:
    """The column that --map names, else the only one or that with a known name."""
    named = options.mapping.get("text", options.mapping.get("user"))
    if named is not None:
        return named
    return dialect.columns[0] if len(dialect.columns) == 1 else text_column(dialect.columns)


def _table_rows(
    source: Source, dialect: Dialect, column: int, rest: Iterator[Any]
) -> Iterator[Row]:
    header = dialect.has_header
    for entry in _undamaged(tables.fields_of(source, dialect), rest):
        if isinstance(entry, Failure):
            yield _broken(entry)
            continue
        number, fields = entry
        if not fields:
            continue
        if header:
            header = False
        elif len(fields) != len(dialect.columns):
            yield Row(
                number, fields, error=f"{len(fields)} fields instead of {len(dialect.columns)}"
            )
        else:
            yield _row(number, fields, fields[column])


def _json_rows(source: Source, rest: Iterator[Any]) -> Iterator[Row]:
    wanted = source.options.mapping.get("text", source.options.mapping.get("user"))
    for line in _undamaged(source.lines(), rest):
        if isinstance(line, Failure):
            yield _broken(line)
        elif line[1].strip():
            yield _json_row(line[0], line[1], wanted)


def _json_row(number: int, line: str, wanted: str | None) -> Row:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Row(number, line, error=f"no JSON: {error}")
    if isinstance(value, str):
        return _row(number, value, value)
    if not isinstance(value, dict):
        return Row(number, value, error="neither an object nor a text")
    column = wanted or text_column([*value])
    if column is None or not isinstance(value.get(column), str):
        return Row(number, value, error=f"no text in {column or 'any known key'}")
    return _row(number, value, value[column])


def _lines(source: Source, rest: Iterator[Any]) -> Iterator[Row]:
    for line in _undamaged(source.lines(), rest):
        if isinstance(line, Failure):
            yield _broken(line)
        elif line[1].strip():
            yield _row(line[0], line[1], line[1])


def _row(number: int, value: Any, text: str) -> Row:
    return Row(number, value, text) if text.strip() else Row(number, value, error="empty text")


def _broken(failure: Failure) -> Row:
    number = failure.source.rpartition(":")[2]
    why = f"{failure.reason}: {failure.detail}" if failure.detail else failure.reason
    return Row(int(number) if number.isdigit() else 0, None, error=why)


def _undamaged(entries: Iterator[Any], rest: Iterator[Any]) -> Iterator[Any]:
    """All that can be read; the rest of a damaged file, and of an archive, is one failure."""
    try:
        yield from entries
        if next(rest, None) is not None:
            yield Failure("", "several files", "only the first file of an archive is read")
    except DamagedInput as damage:
        yield Failure("", damage.reason, damage.detail)
