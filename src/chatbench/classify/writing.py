"""Rows with their labels, in the form in which they came; or how often each label occurred."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import msgspec

from chatbench import console
from chatbench.classify.reading import Row, Table
from chatbench.corpus.formats.tables import Dialect
from chatbench.storage import pretty_json

Guess = tuple[str, float]
_DIGITS = 6


class Writer:
    """Writes to stdout: CSV for CSV, JSON Lines for JSON Lines (or whatever came, with `as_json`),
    `label, confidence, text` with tabs between them for plain lines."""

    def __init__(self, table: Table, top_k: int, *, as_json: bool) -> None:
        self._table, self._top_k = table, top_k
        self._as_json = as_json or table.form == "jsonl"
        self._begun = False

    def write(self, rows: Sequence[tuple[Row, Sequence[Guess]]]) -> None:
        """Rows with their likeliest labels, the best first; none for a row that is broken, which
        only JSON can say."""
        if self._as_json:
            text = "".join(f"{_line(self._object(row, guesses))}\n" for row, guesses in rows)
        elif self._table.dialect is not None:
            text = self._csv(self._table.dialect, rows)
        else:
            text = "".join(
                "\t".join([*_cells(guesses), " ".join(row.text.split("\t"))]) + "\n"
                for row, guesses in rows if guesses
            )  # fmt: skip
        if text:
            console.emit(shown(text), end="")

    def _object(self, row: Row, guesses: Sequence[Guess]) -> dict[str, Any]:
        if not guesses:
            return {"line": row.number, "error": row.error}
        value = row.value
        if self._table.dialect is not None:
            value = dict(zip(self._table.dialect.columns, row.value, strict=True))
        elif not isinstance(value, dict):
            value = {"text": row.text}
        best = guesses[0]
        label, confidence, labels = free(("label", "confidence", "labels"), [*value])
        found: dict[str, Any] = {label: best[0], confidence: round(best[1], _DIGITS)}
        if self._top_k > 1:
            found[labels] = [{"label": n, "confidence": round(p, _DIGITS)} for n, p in guesses]
        return {**value, **found}

    def _csv(self, dialect: Dialect, rows: Sequence[tuple[Row, Sequence[Guess]]]) -> str:
        text = io.StringIO()
        quote = dialect.quote or '"'
        write = csv.writer(text, delimiter=dialect.delimiter, quotechar=quote, lineterminator="\n")
        if not self._begun and dialect.has_header:
            numbers = ["", *(f"_{n}" for n in range(2, self._top_k + 1))]
            added = [f"{name}{n}" for n in numbers for name in ("label", "confidence")]
            write.writerow([*dialect.columns, *free(added, dialect.columns)])
        self._begun = True
        for row, guesses in rows:
            if guesses:
                write.writerow([*row.value, *_cells(guesses)])
        return text.getvalue()


class Tally:
    """How often each label came first, and how sure the model was of it then."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._counts = dict.fromkeys(labels, 0)
        self._sums = dict.fromkeys(labels, 0.0)
        self.broken = 0

    def add(self, guess: Guess) -> None:
        self._counts[guess[0]] += 1
        self._sums[guess[0]] += guess[1]

    def show(self, *, as_json: bool) -> None:
        """On stdout, the most frequent first."""
        total = max(1, sum(self._counts.values()))
        order = sorted(self._counts, key=lambda label: (-self._counts[label], label))
        rows = {
            label: {
                "rows": count,
                "share": round(count / total, _DIGITS),
                "confidence": round(self._sums[label] / count, _DIGITS) if count else None,
            }
            for label in order
            for count in (self._counts[label],)
        }
        if as_json:
            told = {"rows": sum(self._counts.values()), "broken": self.broken, "labels": rows}
            console.emit(shown(pretty_json(told).decode()), end="")
            return
        console.emit("label\trows\tshare\tconfidence")
        for label, found in rows.items():
            values = ["" if value is None else str(value) for value in found.values()]
            console.emit(shown("\t".join([_flat(label), *values])))


def free(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The names, all of them with `predicted_` before where one is taken already."""
    found = list(names)
    while set(found) & set(taken):
        found = [f"predicted_{name}" for name in found]
    return found


def shown(text: str) -> str:
    """As it is for a pipe; for a terminal with nothing in it that it would obey."""
    return console.visible(text) if console.stdout_is_terminal() else text


def _cells(guesses: Sequence[Guess]) -> list[str]:
    return [cell for label, p in guesses for cell in (_flat(label), f"{p:.{_DIGITS}f}")]


def _flat(label: str) -> str:
    return " ".join(label.split())


def _line(value: object) -> str:
    return msgspec.json.encode(value).decode()
