"""Files of any accepted form → documents and failures.

A format is a generator of records and a function that tells it from a head; adding one is an entry
in FORMATS, whose order is the order in which formats are tried. The content decides; the name only
where the content leaves a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from chatbench.corpus.document import Failure, Record
from chatbench.corpus.formats import (
    chatlogs,
    columnar,
    dialogues,
    jsonfile,
    jsonlines,
    prose,
    tables,
    tokens,
    webpage,
)
from chatbench.corpus.formats.rows import PARTS, parse_map, parse_row, to_document
from chatbench.corpus.formats.source import (
    HEAD_BYTES,
    Format,
    Source,
    bare_name,
    decoded_head,
    fully_peekable,
    is_utf_8,
    package,
)
from chatbench.corpus.sources.blob import Blob, ReadOptions
from chatbench.corpus.sources.encodings import check_encoding, detect, sample
from chatbench.errors import UsageError

__all__ = ["FORMATS", "PARTS", "names", "parse_map", "parse_row", "read_blob", "sniff",
           "split_passages", "to_document"]  # fmt: skip

split_passages = prose.split_passages
_AUTO = "auto"


def _always(head: bytes, text: str, name: str, options: ReadOptions) -> bool:
    return True


FORMATS: dict[str, Format] = {
    "parquet": Format(
        "Parquet", columnar.read_parquet, columnar.matches_parquet, binary=True,
        package="pyarrow.parquet",
    ),
    "arrow": Format(
        "Arrow", columnar.read_arrow, columnar.matches_arrow, binary=True, package="pyarrow.ipc"
    ),
    "bin": Format("token ids (uint16)", tokens.read, tokens.matches, binary=True),
    "chatml": Format("ChatML text", dialogues.read_chatml, dialogues.matches_chatml),
    "chatlog": Format(
        "chat export", chatlogs.read, chatlogs.matches, verdict=chatlogs.verdict
    ),
    "jsonl": Format("JSON Lines", jsonlines.read, jsonlines.matches),
    "json": Format("JSON", jsonfile.read, jsonfile.matches),
    "html": Format("HTML", webpage.read, webpage.matches),
    "chatterbot": Format(
        "ChatterBot YAML", dialogues.read_chatterbot, dialogues.matches_chatterbot, package="yaml"
    ),
    "dailydialog": Format(
        "DailyDialog text", dialogues.read_dailydialog, dialogues.matches_dailydialog
    ),
    "parlai": Format("ParlAI text", dialogues.read_parlai, dialogues.matches_parlai),
    "csv": Format("CSV", tables.read, tables.matches, verdict=tables.verdict),
    "text": Format("text", prose.read, _always),
}  # fmt: skip


def names() -> list[str]:
    """What --format accepts."""
    return [_AUTO, *FORMATS]


def sniff(head: bytes, name: str, options: ReadOptions) -> tuple[str, str | None]:
    """(format, codec) of what begins with `head`; the codec is None for what is no text, and
    "utf-8" wherever that reads it.

    Raises UsageError for an unknown `options.format` or `options.encoding`.
    """
    forced = _forced(options)
    bare = bare_name(name)
    for key, form in FORMATS.items():
        if form.binary and (forced == key if forced else form.matches(head, "", bare, options)):
            return key, None
    codec = _codec(head, options)
    if forced:
        return forced, codec
    if codec is None:
        return "text", None
    text = decoded_head(head, codec)
    if len(head) < HEAD_BYTES and not text.endswith("\n"):
        text += "\n"  # so that the last line counts as whole
    found = (k for k, f in FORMATS.items() if not f.binary and f.matches(head, text, bare, options))
    return next(found), codec


def _forced(options: ReadOptions) -> str | None:
    if options.format == _AUTO:
        return None
    if options.format not in FORMATS:
        raise UsageError(
            f"--format {options.format} is not known", hint=f"known: {', '.join(names())}"
        )
    return options.format


def _codec(head: bytes, options: ReadOptions) -> str | None:
    found = detect(head).codec if options.encoding == _AUTO else check_encoding(options.encoding)
    return "utf-8" if found is not None and is_utf_8(found) else found


def read_blob(blob: Blob, options: ReadOptions, said: Callable[[str], None]) -> Iterator[Record]:
    """All records of a blob, in flat memory; `said` is told once what it was taken for.

    The pieces of a shared file come with the format and the encoding of the whole. Raises
    UsageError for an unknown format or encoding and for a package that is not installed, before any
    record, and whatever the handle raises for damaged input.
    """
    blob = fully_peekable(blob)
    head = blob.handle.peek(HEAD_BYTES)[:HEAD_BYTES]
    key, codec = sniff(head, blob.name, options)
    form = FORMATS[key]
    if codec is not None and options.encoding == _AUTO and head.isascii():
        # What is not ASCII may come late.
        codec = _codec(sample(blob, HEAD_BYTES), options)
    if codec is None and not form.binary:
        said("not text")
        yield Failure(blob.name, "not text", "its bytes are in no known character encoding")
        return
    if form.package is not None:
        package(form.package, f"reading {form.title}", 'pip install "chatbench[data]"')
    source = Source(blob.name, blob.handle, blob.path, blob.first_line, codec or "", head, options)
    title = form.title if form.verdict is None else form.verdict(source)
    said(title if form.binary else f"{title} · {codec}")
    yield from form.read(source)
