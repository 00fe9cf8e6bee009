"""The verb classify: every text gets a label and how sure the model is of it."""

from __future__ import annotations

from pathlib import Path

from chatbench import console
from chatbench.classify.reading import Row, Table, open_table
from chatbench.classify.writing import Tally, Writer
from chatbench.corpus.formats import parse_map
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.engine.classes import Judge, judge_of
from chatbench.errors import DataError, ExitCode, UsageError
from chatbench.model.device import pick_device
from chatbench.model.folder import open_model
from chatbench.settings import ClassifySettings

# Rows that wait for each other, for each that is computed at once: of similar length go together.
_WINDOW = 8
_TOLD = 5


def classify(settings: ClassifySettings) -> int:
    """Run the verb; DATA when any row could not be classified. Raises UsageError, DataError."""
    path = _path(settings)
    options = ReadOptions(settings.format, settings.encoding, parse_map(settings.map))
    opened = open_model(
        settings.model, pick_device(settings.device), template=settings.template, classifier=True
    )
    judge = judge_of(opened, settings.choice, settings.batch_size, settings.system)
    pipe = Pipe(judge, settings)
    pipe.run(open_table(path, options, pipe.flush))
    return ExitCode.DATA if pipe.tally.broken else ExitCode.DONE


def _path(settings: ClassifySettings) -> Path | None:
    if len(settings.inputs) > 1:
        raise UsageError("classify reads one file", hint="or pipe several in: cat FILE FILE |")
    named = settings.inputs[0] if settings.inputs else "-"
    if named == "-" and console.stdin_is_terminal():
        raise UsageError("there is no text to classify", hint="name a file, or pipe texts in")
    return None if named == "-" else Path(named)


class Pipe:
    """Rows in, rows out, in their order; nobody waits for more than a window of them."""

    def __init__(self, judge: Judge, settings: ClassifySettings) -> None:
        self._judge, self._settings = judge, settings
        self._top_k = min(settings.top_k, len(judge.labels))
        self._pending: list[Row] = []
        self._writer: Writer | None = None
        self._labelled = 0
        self.tally = Tally(judge.labels)

    def run(self, table: Table) -> None:
        """Classify every row. Raises DataError when there is none."""
        settings = self._settings
        if not settings.report:
            self._writer = Writer(table, self._top_k, as_json=settings.json)
        for row in table.rows:
            self._pending.append(row)
            if len(self._pending) >= _WINDOW * settings.batch_size:
                self.flush()
        self.flush()
        if not self._labelled and not self.tally.broken:
            raise DataError("there is no text to classify", hint="name a file, or pipe texts in")
        if settings.report:
            self.tally.show(as_json=settings.json)
        self._tell()

    def flush(self) -> None:
        """Answer the rows that wait."""
        rows, self._pending = self._pending, []
        if not rows:
            return
        whole = [row for row in rows if not row.error]
        found = self._judge.probabilities([row.text for row in whole])
        chances, places = found.topk(self._top_k, dim=-1) if whole else (found, found)
        guesses = iter(
            [(self._judge.labels[int(place)], chance) for place, chance in zip(*pair, strict=True)]
            for pair in zip(places.tolist(), chances.tolist(), strict=True)
        )
        answered = [(row, [] if row.error else next(guesses)) for row in rows]
        for row, best in answered:
            if best:
                self._labelled += 1
                self.tally.add(best[0])
            else:
                self._tell_broken(row)
        if self._writer is not None:
            self._writer.write(answered)

    def _tell_broken(self, row: Row) -> None:
        self.tally.broken += 1
        if self.tally.broken <= _TOLD:
            where = f"line {row.number}: " if row.number else ""
            console.notice(f"{where}{row.error}")

    def _tell(self) -> None:
        if self.tally.broken:
            console.notice(f"{self.tally.broken} rows could not be classified")
        if self._judge.cut:
            console.notice(
                f"{self._judge.cut} texts are longer than the model reads: a quarter of what it "
                "reads of them is their beginning, the rest their end"
            )
