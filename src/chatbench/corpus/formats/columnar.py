"""Parquet and Arrow (file and stream, so Hugging Face data sets too), in batches of rows."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

import msgspec

from chatbench.corpus.document import Failure, Record
from chatbench.corpus.formats.jsonfile import row_records
from chatbench.corpus.formats.source import Source, package
from chatbench.corpus.sources.blob import ReadOptions

_BATCH_ROWS = 512
_PARQUET, _ARROW, _STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_HINT = 'pip install "chatbench[data]"'


def matches_parquet(head: bytes, text: str, name: str, options: ReadOptions) -> bool:
    return head.startswith(_PARQUET)


def matches_arrow(head: bytes, text: str, name: str, options: ReadOptions) -> bool:
    """The file's magic, or a stream's first message: a mark and the length of a schema."""
    if head.startswith(_ARROW):
        return True
    length = int.from_bytes(head[4:8], "little", signed=True)
    return head.startswith(_STREAM) and 0 < length < 1 << 28 and length % 8 == 0


def read_parquet(source: Source) -> Iterator[Record]:
    """`name[N]` is the N-th row. Raises UsageError without pyarrow."""
    parquet = package("pyarrow.parquet", "reading Parquet", _HINT)
    with ExitStack() as stack:
        handle = _seekable(source, stack)
        try:
            file = parquet.ParquetFile(handle)
            names = _label_names(file.schema_arrow)
            yield from _records(source, file.iter_batches(_BATCH_ROWS), names)
        except _errors() as error:
            yield Failure(source.name, "damaged Parquet", _line(error))


def read_arrow(source: Source) -> Iterator[Record]:
    """`name[N]` is the N-th row. Raises UsageError without pyarrow."""
    ipc = package("pyarrow.ipc", "reading Arrow", _HINT)
    with ExitStack() as stack:
        handle = _seekable(source, stack)
        try:
            if source.head.startswith(_ARROW):
                file = ipc.open_file(handle)
                batches = (file.get_batch(n) for n in range(file.num_record_batches))
            else:
                file = ipc.open_stream(handle)
                batches = iter(file)
            yield from _records(source, batches, _label_names(file.schema))
        except _errors() as error:
            yield Failure(source.name, "damaged Arrow", _line(error))


def _seekable(source: Source, stack: ExitStack) -> IO[bytes]:
    """The file itself, or a temporary copy of what has no place of its own."""
    if source.path is not None:
        return stack.enter_context(open(source.path, "rb"))
    copy = stack.enter_context(tempfile.TemporaryFile(prefix="chatbench-"))  # noqa: SIM115
    shutil.copyfileobj(source.handle, copy, 1 << 20)
    copy.seek(0)
    return copy


def _records(
    source: Source, batches: Iterator[Any], names: dict[str, list[str]]
) -> Iterator[Record]:
    number = 0
    for batch in batches:
        # Damaged offsets point anywhere in memory; nothing but this looks at them.
        batch.validate(full=True)
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            for row in batch.slice(start, _BATCH_ROWS).to_pylist():
                number += 1
                for column, labels in names.items():
                    value = row.get(column)
                    if isinstance(value, int) and 0 <= value < len(labels):
                        row[column] = labels[value]
                yield from row_records(row, f"{source.name}[{number}]", source)


def _label_names(schema: Any) -> dict[str, list[str]]:
    """Names of class labels, which Hugging Face data sets keep as numbers beside a list."""
    try:
        noted = msgspec.json.decode((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = noted["info"]["features"]
        labels = {
            column: feature["names"] for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }  # fmt: skip
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return {}
    return {
        column: names for column, names in labels.items()
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
    }  # fmt: skip


def _errors() -> tuple[type[BaseException], ...]:
    # pyarrow says OSError for a damaged file, and text that is not UTF-8 is found out late; a
    # damaged length asks for more memory than there is.
    arrow = package("pyarrow", "reading Arrow", _HINT)
    return (arrow.ArrowException, OSError, UnicodeDecodeError, MemoryError)


def _line(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "a part of it asks for more memory than there is"
    return " ".join(str(error).split())[:300]
