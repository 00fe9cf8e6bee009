"""preprocess: read, deduplicate, split, tokenise, write, and account for every record.

The corpus is a function of the set of documents: they are ordered by content digest, so file
names, listing order and restarts change nothing but the `source` notes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec

from chatbench import console
from chatbench.corpus.document import Document, Failure
from chatbench.corpus.readers import find_files, read_file, written
from chatbench.corpus.shards import KIND, ShardWriter
from chatbench.corpus.split import SPLITS, assign
from chatbench.errors import DataError, UsageError
from chatbench.settings import PreprocessSettings
from chatbench.storage import hash_file, new_folder, require_own
from chatbench.text.template import Rendered, render_batch, render_texts
from chatbench.text.tokenizer import Tokenizer, open_tokenizer, train_tokenizer

_SHOWN_PER_REASON = 5
_BATCH = 512


class Ledger(msgspec.Struct):
    """read = kept + the sum of dropped + the sum of failed, always."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = msgspec.field(default_factory=Counter)
    failed: Counter[str] = msgspec.field(default_factory=Counter)

    def balances(self) -> bool:
        return self.read == self.kept + self.dropped.total() + self.failed.total()

    def as_info(self) -> dict[str, object]:
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "failed": dict(sorted(self.failed.items())),
        }


class Spool:
    """Kept documents on disk in reading order, found again by position."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "w+b")  # noqa: SIM115  (closed by close())
        self._entries: list[tuple[bytes, int]] = []

    def add(self, document: Document, digest: bytes) -> None:
        self._entries.append((digest, self._file.tell()))
        self._file.write(msgspec.json.encode(document) + b"\n")

    def sort(self) -> list[bytes]:
        """Order the documents by digest; returns the digests."""
        self._entries.sort()
        return [digest for digest, _ in self._entries]

    def documents(self) -> Iterator[Document]:
        decoder = msgspec.json.Decoder(Document)
        for _, position in self._entries:
            self._file.seek(position)
            yield decoder.decode(self._file.readline())

    def close(self) -> None:
        """Close and delete."""
        self._file.close()
        self._path.unlink()


def preprocess(settings: PreprocessSettings) -> Path:
    """Turn `settings.inputs` into the corpus folder `settings.out`; returns it."""
    out = Path(settings.out)
    if not settings.inputs:
        raise UsageError("no input is given", hint="name files or folders to read")
    if settings.val_fraction + settings.test_fraction >= 1:
        raise UsageError("val_fraction and test_fraction leave nothing to train on")
    require_own(out, KIND, overwrite=settings.overwrite)
    inside = out.resolve()
    files = [f for f in find_files(settings.inputs) if inside not in f.resolve().parents]
    info: dict[str, object] = {}
    with new_folder(out, KIND, info, replace=settings.overwrite) as folder:
        build(settings, files, folder, info)
    return out


def build(
    settings: PreprocessSettings, files: list[Path], folder: Path, info: dict[str, object]
) -> None:
    """Fill `folder` and `info`."""
    ledger = Ledger()
    with closing(Spool(folder / "spool.jsonl")) as spool:
        sources = _read_all(settings, files, folder, ledger, spool)
        _show_ledger(ledger)
        if not ledger.kept:
            raise DataError(
                f"nothing to keep in {', '.join(settings.inputs)}: read {ledger.read}, "
                f"dropped {ledger.dropped.total()}, failed {ledger.failed.total()}"
            )
        digests = spool.sort()
        splits = assign(digests, settings.val_fraction, settings.test_fraction)
        tokenizer = _tokenizer(settings, spool, splits)
        tokenizer.save(folder / "tokenizer")
        counts = _write_splits(folder, tokenizer, spool, splits)
    info |= {
        "settings": _recorded(settings),
        "sources": sources,
        "ledger": ledger.as_info(),
        "splits": counts,
        "tokenizer": {"digest": tokenizer.digest, "vocab_size": tokenizer.vocab_size},
        "fingerprint": hashlib.sha256(
            b"".join(digests) + "".join(s[1] for s in splits).encode() + tokenizer.digest.encode()
        ).hexdigest(),
    }
    _show_splits(counts, tokenizer)


def _recorded(settings: PreprocessSettings) -> dict[str, object]:
    """What decides the corpus: everything but where it lies."""
    values = msgspec.to_builtins(settings) | {"inputs": [written(i) for i in settings.inputs]}
    return {key: value for key, value in values.items() if key not in ("out", "overwrite")}


def _read_all(
    settings: PreprocessSettings, files: list[Path], folder: Path, ledger: Ledger, spool: Spool
) -> list[dict[str, object]]:
    seen: Counter[bytes] = Counter()
    sources = []
    with open(folder / "dropped.jsonl", "wb") as rejects:
        for path in files:
            before = ledger.read
            for record in read_file(path, settings.passage_chars):
                ledger.read += 1
                rejected = _judge(record, settings, seen, spool, ledger)
                if rejected is not None:
                    rejects.write(msgspec.json.encode(rejected) + b"\n")
            sources.append(
                {
                    "path": written(path),
                    "bytes": path.stat().st_size,
                    "sha256": hash_file(path),
                    "records": ledger.read - before,
                }
            )
    return sources


def _judge(
    record: Document | Failure,
    settings: PreprocessSettings,
    seen: Counter[bytes],
    spool: Spool,
    ledger: Ledger,
) -> dict[str, object] | None:
    """Keep the record, or count why not and return what dropped.jsonl should hold."""
    if isinstance(record, Failure):
        ledger.failed[record.reason] += 1
        if ledger.failed[record.reason] <= _SHOWN_PER_REASON:
            console.notice(f"{record.source}: {record.reason}: {record.detail}")
        return {"status": "failed", **msgspec.to_builtins(record)}
    reason = None
    digest = record.digest()
    if record.is_empty():
        reason = "empty"
    elif settings.dedup == "exact" and seen[digest]:
        reason = "duplicate"
    if reason is not None:
        ledger.dropped[reason] += 1
        return {"status": "dropped", "reason": reason, **record.as_row()}
    copy = seen[digest]
    seen[digest] += 1
    if copy:
        # The first half decides the split, so copies stay together.
        digest = digest[:8] + hashlib.sha256(digest + copy.to_bytes(8, "big")).digest()[:8]
    spool.add(record, digest)
    ledger.kept += 1
    return None


def _tokenizer(settings: PreprocessSettings, spool: Spool, splits: list[str]) -> Tokenizer:
    if settings.tokenizer is not None:
        return open_tokenizer(_find_tokenizer(Path(settings.tokenizer)))
    console.say(f"training a tokenizer of {settings.vocab_size} entries")
    texts = (
        text
        for document, split in zip(spool.documents(), splits, strict=True)
        if split == "train"
        for text in document.texts()
    )
    return train_tokenizer(texts, settings.vocab_size)


def _find_tokenizer(folder: Path) -> Path:
    """Where the tokenizer of a corpus, run or model folder lies. Raises UsageError."""
    if not folder.is_dir():
        raise UsageError(f"{folder} does not exist", hint="name a model, run or corpus folder")
    places = [folder / "tokenizer", folder / "model"]
    places += sorted(folder.glob("checkpoints/step-*/model"))[-1:]
    return next((place for place in places if place.is_dir()), folder)


def _write_splits(
    folder: Path, tokenizer: Tokenizer, spool: Spool, splits: list[str]
) -> dict[str, dict[str, int]]:
    writers = {name: ShardWriter(folder / name, tokenizer.vocab_size) for name in SPLITS}
    with ExitStack() as stack:
        held_out = {
            name: stack.enter_context(open(folder / f"{name}.jsonl", "wb"))
            for name in ("val", "test")
        }
        for batch in _batched(zip(spool.documents(), splits, strict=True)):
            rendered = iter(_render_all(tokenizer, [document for document, _ in batch]))
            for document, split in batch:
                writers[split].add(*next(rendered))
                if split in held_out:
                    held_out[split].write(msgspec.json.encode(document.as_row()) + b"\n")
    for writer in writers.values():
        writer.close()
    return {
        name: {"documents": w.documents, "tokens": w.tokens, "supervised": w.supervised}
        for name, w in writers.items()
    }


def _batched(
    documents: Iterable[tuple[Document, str]],
) -> Iterator[list[tuple[Document, str]]]:
    batch = []
    for entry in documents:
        batch.append(entry)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _render_all(tokenizer: Tokenizer, documents: list[Document]) -> Iterator[Rendered]:
    chats = iter(render_batch(tokenizer, [d.messages for d in documents if d.messages is not None]))
    texts = iter(render_texts(tokenizer, [d.text or "" for d in documents if d.messages is None]))
    for document in documents:
        yield next(texts if document.messages is None else chats)


def _show_ledger(ledger: Ledger) -> None:
    parts = [f"read {ledger.read}", f"kept {ledger.kept}"]
    for label, counter in (("dropped", ledger.dropped), ("failed", ledger.failed)):
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(counter.items()))
        parts.append(f"{label} {counter.total()}" + (f" ({reasons})" if reasons else ""))
    console.say("records: " + " · ".join(parts))


def _show_splits(counts: dict[str, dict[str, int]], tokenizer: Tokenizer) -> None:
    console.table(
        f"vocabulary {tokenizer.vocab_size}",
        ["split", "documents", "tokens", "supervised"],
        [[name, *(f"{value:,}" for value in row.values())] for name, row in counts.items()],
    )
    empty = [name for name in ("val", "test") if not counts[name]["documents"]]
    if empty:
        console.notice(f"too few documents for {' and '.join(empty)}: those splits are empty")
