"""preprocess: read, clean, compare, split, tokenise, write, and account for every record.

The corpus is a function of the set of documents and of the settings: documents are ordered by
content digest, so file names, listing order, the number of workers and restarts change nothing but
the `source` notes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from chatbench import __version__, console
from chatbench.corpus import comparing
from chatbench.corpus import ledger as accounts
from chatbench.corpus import plan as plans
from chatbench.corpus.chunks import Entries, content_sizes, digests_of
from chatbench.corpus.cleaning.refused import REFUSED
from chatbench.corpus.cleaning.stages import make_stages
from chatbench.corpus.columns import check_columns, tag_columns
from chatbench.corpus.crew import Crew, WorkerLost, cores
from chatbench.corpus.encoding import HELD_OUT, BucketResult, item_of, rows_path, shard_path
from chatbench.corpus.fluent import sample_documents
from chatbench.corpus.ledger import Ledger
from chatbench.corpus.reports.describing import describe, recorded
from chatbench.corpus.reports.facts import FACTS
from chatbench.corpus.shards import KIND, write_tags
from chatbench.corpus.sources.inputs import Input, find_inputs, written
from chatbench.corpus.sources.parts import PART_BYTES, Slice, plan_parts
from chatbench.corpus.sources.reading import PartReader, PartResult, read_options, rejects_path
from chatbench.corpus.split import SPLITS
from chatbench.corpus.vocabulary import check_tokenizer, corpus_tokenizer
from chatbench.errors import DataError, ExitCode, Stopped, UsageError
from chatbench.settings import PreprocessSettings
from chatbench.storage import new_folder, pretty_json, require_own
from chatbench.text.rendering import render_arrays
from chatbench.text.template import Rendered
from chatbench.text.tokenizer import Tokenizer

_COPY_BLOCK = 1 << 20


def preprocess(settings: PreprocessSettings) -> Path:
    """Turn `settings.inputs` into the corpus folder `settings.out`; returns it."""
    out = Path(settings.out)
    _check(settings)
    require_own(out, KIND, overwrite=settings.overwrite)
    info: dict[str, object] = {}
    with (
        new_folder(out, KIND, info, replace=settings.overwrite) as folder,
        _work_folder(out) as work,
        Crew(settings.workers or cores()) as crew,
    ):
        Build(settings, folder, work, crew, info).run()
    return out


def _check(settings: PreprocessSettings) -> None:
    """Everything that can be said before any work is done."""
    if not settings.inputs:
        raise UsageError("no input is given", hint="name files or folders to read, or - for stdin")
    if settings.val_fraction + settings.test_fraction >= 1:
        raise UsageError("val_fraction and test_fraction leave nothing to train on")
    if settings.extend_vocab and settings.tokenizer is None:
        raise UsageError(
            "--extend-vocab has no tokenizer to extend", hint="name one with --tokenizer"
        )
    read_options(settings)
    make_stages(settings)
    check_tokenizer(settings)
    if settings.bin_tokenizer is not None and not Path(settings.bin_tokenizer).exists():
        raise UsageError(f"{settings.bin_tokenizer} does not exist", hint="check --bin-tokenizer")


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """Where finished parts lie until the corpus is whole; kept when the work is interrupted."""
    work = out.with_name(f".{out.name}.parts")
    work.mkdir(parents=True, exist_ok=True)
    try:
        with _stopped_by_sigterm():
            yield work
    except (KeyboardInterrupt, Stopped, WorkerLost, MemoryError):
        console.say(f"finished parts are kept in {work}: the same command goes on from there")
        raise
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block with exit code 75, as it ends a training."""

    def stop(*_: object) -> None:
        raise Stopped("stopped by SIGTERM", ExitCode.STOPPED, hint="the same command goes on")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Build:
    """One run of preprocess: from the inputs to a filled folder."""

    def __init__(
        self,
        settings: PreprocessSettings,
        folder: Path,
        work: Path,
        crew: Crew,
        info: dict[str, object],
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.work = work
        self.crew = crew
        self.info = info
        self._parts = 0

    def run(self) -> None:
        """The story, in the order things happen."""
        inputs, unreadable = self._find()
        if sum(found.bytes for found in inputs) > 2 * PART_BYTES:
            self.crew.hire()
        ledger = Ledger(inputs, unreadable)
        chunks = self._read(inputs, ledger)
        job = plans.Job(self.settings, chunks)
        plans.write_job(self.work, job)
        entries, compared = comparing.decide(self.settings, self.work, job, self.crew)
        ledger.add_fates(entries)
        if not np.any(entries["fate"] < len(SPLITS)):
            accounts.show(ledger)
            raise self._nothing(ledger)
        tokenizer = corpus_tokenizer(self.settings, self.work, job, self.crew)
        tokenizer.save(self.folder / "tokenizer")
        results = self._encode(job, tokenizer, ledger)
        accounts.show(ledger)
        self._assemble(job, results, ledger)
        facts = describe(
            self.settings, self.folder, self.work, job, ledger, compared, results, tokenizer
        )
        fingerprint = self._fingerprint(entries, results, tokenizer)
        facts = msgspec.structs.replace(facts, fingerprint=fingerprint)
        (self.folder / FACTS).write_bytes(pretty_json(facts))
        write_tags(self.folder, [result.counts for result in results])
        self._write_report(facts)
        self.info |= {
            "settings": recorded(self.settings),
            "sources": {"files": len(inputs), "bytes": sum(found.bytes for found in inputs)},
            "ledger": ledger.total().as_info(),
            "splits": {name: msgspec.to_builtins(facts.splits[name]) for name in SPLITS},
            "tokenizer": {"digest": tokenizer.digest, "vocab_size": tokenizer.vocab_size},
            "fingerprint": fingerprint,
        }
        if self.settings.show:
            self._show_examples(job, tokenizer)
        self._show_splits(facts, tokenizer)

    def _find(self) -> tuple[list[Input], list[Any]]:
        """The input files; stdin is kept as a file, since it can be read only once."""
        named = [name for name in self.settings.inputs if name != "-"]
        inputs: list[Input] = []
        unreadable: list[Any] = []
        if named:
            inputs, unreadable = find_inputs(named, Path(self.settings.out))
        if self.settings.pii == "mask":
            from chatbench.corpus.cleaning.pii.everywhere import masked_value

            inputs = [found._replace(name=masked_value(found.name)) for found in inputs]
            unreadable = [
                msgspec.structs.replace(
                    f, source=masked_value(f.source), detail=masked_value(f.detail)
                )
                for f in unreadable
            ]
        if "-" in self.settings.inputs:
            inputs.append(self._keep_stdin())
        return inputs, unreadable

    def _keep_stdin(self) -> Input:
        if sys.stdin is None:
            raise UsageError("stdin is closed", hint="pipe text into the command, or name files")
        kept = self.work / "stdin"
        with open(kept, "wb") as handle:
            shutil.copyfileobj(sys.stdin.buffer, handle, _COPY_BLOCK)
        found = kept.stat()
        return Input(kept, "stdin", found.st_size, found.st_mtime_ns)

    def _read(self, inputs: Sequence[Input], ledger: Ledger) -> list[str]:
        """All parts, those of an interrupted run taken over; returns the chunk names in order."""
        parts = list(plan_parts(inputs, read_options(self.settings)))
        self._match_key(inputs)
        plans.write_job(self.work, plans.Job(self.settings))
        before = {number: _finished(self.work, number) for number in range(len(parts))}
        results = {number: result for number, result in before.items() if result is not None}
        todo = [number for number in before if number not in results]
        if results:
            console.say(f"{len(results)} of {len(parts)} parts were finished before")
        total = sum(found.bytes for found in inputs)
        with console.ProgressLine("reading", max(1, len(todo))) as progress:
            tasks = [(number, parts[number]) for number in todo]
            answers = self.crew.run("chatbench.corpus.build:read_part", str(self.work), tasks)
            for count, (number, answer) in enumerate(zip(todo, answers, strict=True), 1):
                results[number] = msgspec.convert(answer, PartResult)
                progress.update(count, f"part {count} of {len(todo)}, {total / 1e6:,.0f} MB in all")
        self._parts = len(parts)
        for number in range(len(parts)):
            ledger.add_part(results[number])
        accounts.show_verdicts(ledger)
        self._refuse_failures(ledger)
        if ledger.total().kept:  # else there is worse to tell
            check_columns(tag_columns(self.settings.tag_column), ledger.columns)
        return [name for number in range(len(parts)) for name in results[number].chunks]

    def _match_key(self, inputs: Sequence[Input]) -> None:
        """Parts of another program, other settings or other files are of no use."""
        key = hashlib.sha256(
            msgspec.json.encode(
                [program_versions(), recorded(self.settings), _state_of_lists(self.settings), [
                    (os.fsencode(i.path), i.bytes, i.mtime_ns) for i in inputs
                ]]
            )
        ).hexdigest()  # fmt: skip
        path = self.work / "key"
        if path.is_file() and path.read_text() == key:
            return
        for old in self.work.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
            elif old.name != "stdin":
                old.unlink()
        path.write_text(key)

    def _nothing(self, ledger: Ledger) -> DataError:
        total = ledger.total()
        return DataError(
            f"nothing to keep in {', '.join(self.settings.inputs)}: read {total.read}, "
            f"dropped {total.dropped.total()}, failed {total.failed.total()}",
            hint="the reasons stand above; --map user=COLUMN names columns, --format the form",
        )

    def _refuse_failures(self, ledger: Ledger) -> None:
        total = ledger.total()
        failed, refused = total.failed.total(), total.dropped[REFUSED]
        if (failed or refused) and self.settings.strict:
            accounts.show(ledger)
            what = "read" if failed else "written in the chat template"
            raise DataError(
                f"{console.counted(failed or refused, 'record')} cannot be {what}, and --strict "
                "asks for all",
                hint="mend them, or leave --strict out to go on without them",
            )

    def _encode(self, job: plans.Job, tokenizer: Tokenizer, ledger: Ledger) -> list[BucketResult]:
        tokenizer.save(self.work / "tokenizer")
        results = []
        with console.ProgressLine("tokenising", len(job.buckets)) as progress:
            task = "chatbench.corpus.encoding:encode_bucket"
            answers = self.crew.run(task, str(self.work), range(len(job.buckets)))
            for count, answer in enumerate(answers, 1):
                results.append(msgspec.convert(answer, BucketResult))
                ledger.add_examples(results[-1].examples)
                progress.update(count, f"shard {count} of {len(job.buckets)}")
        return results

    def _assemble(self, job: plans.Job, results: Sequence[BucketResult], ledger: Ledger) -> None:
        """Shards to their places; rows of all pieces into one file each, in order."""
        numbers = range(len(results))
        for split in SPLITS:
            for number in numbers:
                shard = shard_path(self.work, split, number)
                if shard.is_file():
                    final = shard_path(self.folder, split, number)
                    final.parent.mkdir(exist_ok=True)
                    os.replace(shard, final)
        for kind in HELD_OUT:
            _join(self.folder / f"{kind}.jsonl", [rows_path(self.work, kind, n) for n in numbers])
        rejects = [rejects_path(self.work, number) for number in range(self._parts)]
        rejects += [rows_path(self.work, "dropped", n) for n in numbers]
        _join(self.folder / "dropped.jsonl", rejects)
        with open(self.folder / "sources.jsonl", "wb") as handle:
            for row in ledger.rows():
                handle.write(msgspec.json.encode(row) + b"\n")

    def _fingerprint(
        self, entries: Entries, results: Sequence[BucketResult], tokenizer: Tokenizer
    ) -> str:
        """What decides training: the documents, their order and split, and their ids."""
        kept = entries[entries["fate"] < len(SPLITS)]
        total = hashlib.sha256(digests_of(kept) + kept["fate"].tobytes())
        total.update(tokenizer.digest.encode())
        for result in results:
            total.update("".join(result.splits[s].sha256 or "-" for s in SPLITS).encode())
        return total.hexdigest()

    def _write_report(self, facts: Any) -> None:
        from chatbench.corpus.reports.report import write_report

        write_report(self.folder / "report.html", facts)

    def _show_examples(self, job: plans.Job, tokenizer: Tokenizer) -> None:
        from chatbench.corpus.reports.preview import show

        documents = sample_documents(self.work, job, 1 << 30, self.settings.show)
        arrays = render_arrays(tokenizer, [item_of(document) for document in documents])
        ids, weights = arrays.ids.tolist(), arrays.weights.tolist()
        rendered = [Rendered(ids[a:b], weights[a:b]) for a, b in pairwise(arrays.starts.tolist())]
        show(tokenizer, documents, rendered)

    def _show_splits(self, facts: Any, tokenizer: Tokenizer) -> None:
        rows = [
            [name, f"{row.documents:,}", f"{row.tokens:,}", f"{row.supervised:,}"]
            for name, row in facts.splits.items()
        ]
        console.table(
            f"vocabulary {tokenizer.vocab_size}",
            ["split", "documents", "tokens", "learned"],
            rows,
        )
        wanted = {"val": self.settings.val_fraction, "test": self.settings.test_fraction}
        empty = [name for name in HELD_OUT if not facts.splits[name].documents and wanted[name]]
        if empty:
            console.notice(f"too few documents for {' and '.join(empty)}: those splits are empty")


def _join(path: Path, pieces: Sequence[Path]) -> None:
    with open(path, "wb") as whole:
        for piece in pieces:
            with open(piece, "rb") as handle:
                shutil.copyfileobj(handle, whole, _COPY_BLOCK)


# What decides how a document is read and cleaned, besides our own code.
_DECIDING = ("ftfy", "msgspec", "phonenumbers", "py3langid", "pyarrow", "python-stdnum", "PyYAML")


def program_versions() -> list[str]:
    found = [__version__, sys.version]
    for package in _DECIDING:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return found


def _state_of_lists(settings: PreprocessSettings) -> list[tuple[str, int, int]]:
    """Path, size and time of every file that a stage reads."""
    named = [*settings.block, *settings.against, settings.screen, settings.bin_tokenizer]
    named += [settings.tokenizer, settings.template]
    places = [Path(name) for name in named if name is not None and os.path.exists(name)]
    files = [f for p in places for f in (sorted(p.rglob("*")) if p.is_dir() else [p])]
    states = [(written(file), file.stat()) for file in files if file.is_file()]
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def _result_path(work: Path, number: int) -> Path:
    return work / f"part-{number:06d}.json"


def _finished(work: Path, number: int) -> PartResult | None:
    """What an earlier run left of a part, if that is whole."""
    try:
        result = msgspec.json.decode(_result_path(work, number).read_bytes(), type=PartResult)
        found = content_sizes(work, result.chunks), rejects_path(work, number).stat().st_size
        return result if found == (result.sizes, result.rejects) else None
    except (OSError, msgspec.DecodeError):
        return None


def read_part(work: str, argument: tuple[int, list[Any]]) -> PartResult:
    """The task of reading one part; its result file is written last."""
    folder = Path(work)
    number, slices = argument
    job = plans.read_job(folder)
    reader = PartReader(folder, number, job.settings)
    result = reader.read(msgspec.convert(slices, list[Slice]))
    temporary = folder / f".part-{number:06d}"
    temporary.write_bytes(msgspec.json.encode(result))
    os.replace(temporary, _result_path(folder, number))
    return result
