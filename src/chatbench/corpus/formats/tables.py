"""CSV and TSV: dialect and header judged on the head, rows by the standard library's parser."""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from chatbench.corpus.document import Failure, Record
from chatbench.corpus.formats.rows import (
    has_shape,
    may_name_a_sender,
    names_a_column,
    row_record,
)
from chatbench.corpus.formats.source import Source
from chatbench.corpus.sources.blob import ReadOptions

_DELIMITERS = ("\t", ",", ";", "|")
_QUOTES = ('"', "'", None)
_SUFFIXES = (".csv", ".tsv", ".tab")
_TRIAL_ROWS = 200
_MAX_NAME = 60
_NUMBER = re.compile(r"\s*[-+]?[\d.,]+%?\s*")
_MAX_UNCLOSED = 20


class Dialect(NamedTuple):
    """How a table is written; `columns` are the header's names or, without a header, 1, 2, 3 …"""

    delimiter: str
    quote: str | None
    columns: tuple[str, ...]
    has_header: bool

    def reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        return _reader(lines, self.delimiter, self.quote, strict=True)

    def lenient(self, line: str) -> list[str]:
        """The fields of a single line whose quotes are not as they should be."""
        return next(_reader([line + "\n"], self.delimiter, self.quote), [])


class Trial(NamedTuple):
    """Rows of a head under some dialect, and how many its quotes break."""

    rows: list[list[str]]
    broken: int


def matches(head: bytes, text: str, name: str, options: ReadOptions) -> bool:
    """Under .csv or .tsv any table; elsewhere only one without doubt, for prose has commas too:
    no blank lines, and columns of tab-separated text or a header that can be read."""
    if name.endswith(_SUFFIXES):
        return bool(text.strip())
    lines = _whole_lines(text, options)
    if len(lines) < 2 or any(not line.strip() for line in lines):
        return False
    dialect = sniff_dialect(text, options)
    width = len(dialect.columns)
    widths = Counter(len(row) for row in _trial(lines, dialect.delimiter, dialect.quote).rows)
    if width < 2 or set(widths) != {width}:
        return False
    if dialect.has_header:
        return has_shape(dialect.columns, options.mapping)
    mapped = has_shape(dialect.columns, options.mapping) and bool(options.mapping)
    return mapped or (dialect.delimiter == "\t" and len(lines) > 2)


def verdict(source: Source) -> str:
    dialect = sniff_dialect(source.head_text(), source.options)
    kind = "TSV" if dialect.delimiter == "\t" else "CSV"
    if dialect.has_header:
        return f"{kind} with columns {', '.join(filter(None, dialect.columns))}"
    what = "question and answer" if len(dialect.columns) == 2 else f"{len(dialect.columns)} columns"
    return f"{kind} without header, {what}"


def read(source: Source) -> Iterator[Record]:
    """A record for each row; `name:LINE` is the row's first line. Rows with another number of
    fields than the first are failures."""
    dialect = sniff_dialect(source.head_text(), source.options)
    names = dialect.columns
    mapping = source.options.mapping
    names_none = not mapping or (_named(mapping) and may_name_a_sender(mapping, names))
    if not dialect.has_header and names_none:
        names = {1: ("text",), 2: ("question", "answer")}.get(len(names), names)
    feed = _Feed(source, dialect)
    is_first = dialect.has_header and source.first_line == 1
    for entry in feed.rows():
        if isinstance(entry, Failure):
            yield entry
            continue
        number, fields = entry
        if not fields or is_first:
            is_first = is_first and not fields
            continue
        where = f"{source.name}:{number}"
        if len(fields) != len(names):
            detail = f"{len(fields)} instead of {len(names)}"
            shown = dialect.delimiter.join(fields)[:2000]
            yield Failure(where, "wrong number of columns", detail, shown)
            continue
        # A column without a name is an index or padding.
        row = {name: field for name, field in zip(names, fields, strict=True) if name}
        yield row_record(row, where, mapping)


def fields_of(source: Source, dialect: Dialect) -> Iterator[tuple[int, list[str]] | Failure]:
    """The fields of every row, the header's among them, each with the number of its first line."""
    yield from _Feed(source, dialect).rows()


class _Feed:
    """Lines for the csv parser, so that rows know their lines, and a quote that is never closed
    costs one line instead of the rest of the file."""

    def __init__(self, source: Source, dialect: Dialect) -> None:
        self._source, self._dialect = source, dialect
        self._lines = source.lines()
        self._again: deque[tuple[int, str]] = deque()
        self._used: list[tuple[int, str]] = []
        self._failures: list[Failure] = []
        self._size = 0
        self._ended = False
        self._is_torn = False
        self._unclosed = 0

    def rows(self) -> Iterator[tuple[int, list[str]] | Failure]:
        """Each row with the number of its first line."""
        csv.field_size_limit(max(csv.field_size_limit(), 2 * self._source.options.max_record_bytes))
        reader = self._dialect.reader(self)
        while True:
            self._used, self._size = [], 0
            self._ended = self._is_torn = False
            fields: list[str] | None = None
            try:
                fields = next(reader, None)
            except csv.Error:
                reader = self._dialect.reader(self)
                if len(self._used) == 1 and not self._ended:
                    fields = self._dialect.lenient(self._used[0][1])
            broken, self._failures = self._failures, []
            yield from broken
            if not self._used:
                return
            number = self._used[0][0]
            if fields is None:
                yield self._unclosed_quote(number)
            elif self._is_torn:
                where = f"{self._source.name}:{number}"
                yield Failure(where, "incomplete row", "a line inside it cannot be read")
            else:
                yield number, fields

    def _unclosed_quote(self, number: int) -> Failure:
        """Give up the row's first line and read those after it anew."""
        self._unclosed += 1
        text = self._used[0][1]
        if self._unclosed <= _MAX_UNCLOSED:
            self._again.extendleft(reversed(self._used[1:]))
        detail = "a quote is opened and not closed"
        if self._unclosed > _MAX_UNCLOSED:
            detail += f", {len(self._used)} lines are lost"
        return Failure(f"{self._source.name}:{number}", "unclosed quote", detail, text[:2000])

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._size > self._source.options.max_record_bytes:
            self._ended = True
            raise StopIteration
        while not self._again:
            line = next(self._lines, None)
            if line is None:
                self._ended = bool(self._used)
                raise StopIteration
            if isinstance(line, Failure):
                self._failures.append(line)
                self._is_torn = bool(self._used)
            else:
                self._again.append((line[0], line[1]))
        number, text = self._again.popleft()
        self._used.append((number, text))
        self._size += len(text)
        return text + "\n"


# ---- the dialect


def sniff_dialect(text: str, options: ReadOptions) -> Dialect:
    """The delimiter and quote under which the rows of the head agree best on their number of
    columns; of two that are equal, the quote that is used, then the order above."""
    lines = _whole_lines(text, options)
    best = (-1.0, ",", '"')
    rows: list[list[str]] = []
    for delimiter in _DELIMITERS:
        for quote in _QUOTES:
            trial = _trial(lines, delimiter, quote)
            score = _score(trial, lines, delimiter, quote)
            if score > best[0]:
                best, rows = (score, delimiter, quote or ""), trial.rows
    header = rows[0] if rows else [""]
    delimiter, quote = best[1], best[2] or None
    if _is_header(header, rows[1:], options):
        return Dialect(delimiter, quote, _unique(header), True)
    return Dialect(delimiter, quote, tuple(str(n) for n in range(1, len(header) + 1)), False)


def _whole_lines(text: str, options: ReadOptions) -> list[str]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if len(lines) > 1:
        lines.pop()  # cut where the head ends, or empty behind the last line end
    while lines and not lines[-1].strip():
        lines.pop()
    return lines[: 4 * _TRIAL_ROWS]


def _reader(
    lines: Iterable[str], delimiter: str, quote: str | None, strict: bool = False
) -> Iterator[list[str]]:
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=delimiter, quotechar=quote, quoting=quoting, strict=strict)


def _trial(lines: list[str], delimiter: str, quote: str | None) -> Trial:
    """The first rows under a dialect."""
    rows: list[list[str]] = []
    feed = (line + "\n" for line in lines)
    broken = 0
    while len(rows) < _TRIAL_ROWS:
        try:
            for row in _reader(feed, delimiter, quote, strict=True):
                if row:
                    rows.append(row)
                if len(rows) == _TRIAL_ROWS:
                    break
            break
        except csv.Error as error:
            # At the end of the head a quote may be open for no fault of the dialect's.
            broken += "unexpected end" not in str(error) or len(rows) < 2
    return Trial(rows, broken)


def _score(trial: Trial, lines: list[str], delimiter: str, quote: str | None) -> float:
    """The share of rows with the usual number of columns; more for quotes that are in use, less
    for those that would break rows."""
    if not trial.rows:
        return 0.0
    width, count = Counter(len(row) for row in trial.rows).most_common(1)[0]
    if width < 2:
        return 0.01 if quote == '"' else 0.0
    agreement = count / (len(trial.rows) + trial.broken)
    if quote is None:
        return agreement
    opened = sum(line.startswith(quote) or f"{delimiter}{quote}" in line for line in lines)
    needed = len(lines) // 2 if quote == "'" else 4 * trial.broken
    if opened > needed:
        return agreement + 0.1
    return agreement if quote == '"' else agreement - 0.1


def _is_header(first: list[str], rows: list[list[str]], options: ReadOptions) -> bool:
    """Names that can be read or that --map names; or, in a wide table, short and distinct words
    above rows that are something else."""
    names = [name.strip() for name in first]
    if names_a_column(_named(options.mapping), names):
        return True
    if any(len(name) > _MAX_NAME for name in names):
        return False
    if has_shape(names):
        return True
    filled = [name for name in names if name]
    distinct = len(filled) == len(set(filled)) and not any(map(_NUMBER.fullmatch, filled))
    if len(names) < 3 or not filled or not distinct:
        return False
    if any(
        name in (row[n].strip() for row in rows if n < len(row))
        for n, name in enumerate(names)
        if name
    ):
        return False  # a name does not come back as a value of its column
    return all(re.fullmatch(r"\w[\w .:#/()-]*", name) and len(name) <= 40 for name in filled)


def _named(mapping: Mapping[str, str]) -> dict[str, str]:
    """The part of --map that gives columns by name: numbers are for tables without a header."""
    return {part: column for part, column in mapping.items() if not column.isdigit()}


def _unique(header: list[str]) -> tuple[str, ...]:
    """The names; of equal ones the later are numbered."""
    seen: Counter[str] = Counter()
    names = []
    for name in (field.strip() for field in header):
        seen[name] += 1
        names.append(f"{name}.{seen[name]}" if name and seen[name] > 1 else name)
    return tuple(names)
