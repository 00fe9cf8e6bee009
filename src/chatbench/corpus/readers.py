"""Files and folders → documents and failures; the form is judged by content, one bad row never
stops a file."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from chatbench.conversation import exchange, parse_messages
from chatbench.corpus.document import Document, Failure
from chatbench.errors import DataError, EnvironmentFault, UsageError

Record = Document | Failure
_PROMPT_KEYS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
_SNIFF_BYTES = 1 << 16


def find_files(inputs: Iterable[str]) -> list[Path]:
    """The regular files that `inputs` name, folders walked, hidden entries left out, sorted.

    Raises UsageError for a path that does not exist, DataError when nothing is found.
    """
    found: set[Path] = set()
    names = list(inputs)
    for name in names:
        path = Path(name)
        if path.is_dir():
            found.update(_walk(path))
        elif path.is_file():
            found.add(path)
        else:
            raise UsageError(f"{path} does not exist", hint="check the path")
    if not found:
        raise DataError(f"no files in {', '.join(names)}", hint="give a folder that holds text")
    return sorted(found, key=os.fsencode)


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in files:
            path = Path(root, name)
            if not name.startswith(".") and path.is_file():
                yield path


def read_file(path: Path, passage_chars: int) -> Iterator[Record]:
    """All records of one file, plain or gzip. Raises EnvironmentFault when it cannot be read."""
    name = written(path)
    try:
        with _open(path) as handle:
            head = handle.read(_SNIFF_BYTES)
        with _open(path) as handle:
            if looks_like_rows(head):
                yield from read_rows(handle, name)
            else:
                yield from _read_text(handle, name, passage_chars)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield Failure(name, "damaged gzip", str(error))
    except OSError as error:
        raise EnvironmentFault(f"cannot read {name}: {error.strerror}") from error


def written(path: str | Path) -> str:
    """The path as text that can be stored; bytes of it that are not UTF-8 as `\\xff`."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def _open(path: Path) -> BinaryIO:
    with open(path, "rb") as handle:
        zipped = handle.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path)) if zipped else open(path, "rb")


def looks_like_rows(head: bytes) -> bool:
    """Whether a file holds JSON objects (one a line, or in one list) rather than prose."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] == b"[":
        return start[1:].lstrip()[:1] == b"{"
    return start[:1] == b"{"


def read_rows(handle: Iterable[bytes], name: str) -> Iterator[Record]:
    """JSON Lines, or one JSON list of objects; blank lines do not count as records."""
    first = True
    for number, line in enumerate(handle, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        if first and line.lstrip()[:1] == b"[":
            yield from _read_list(line + b"".join(handle), name)
            return
        first = False
        yield parse_row(line, f"{name}:{number}")


def _read_list(data: bytes, name: str) -> Iterator[Record]:
    try:
        rows = msgspec.json.decode(data, type=list[msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        yield Failure(name, "bad JSON", str(error), _shown(data))
        return
    for number, row in enumerate(rows, 1):
        yield parse_row(bytes(row), f"{name}[{number}]")


def parse_row(line: bytes, source: str) -> Record:
    """One JSON object → document, by the keys it has."""
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Failure(source, "bad JSON", str(error), _shown(line))
    if not isinstance(row, dict):
        return Failure(source, "not an object", type(row).__name__, _shown(line))
    try:
        return _document(row, source)
    except ValueError as error:
        return Failure(source, "bad row", str(error), _shown(line))


def _shown(line: bytes) -> str:
    return line.decode("utf-8", errors="backslashreplace").rstrip("\r\n")


def _document(row: dict[str, Any], source: str) -> Document:
    if "messages" in row:
        messages = parse_messages(row["messages"])
        return Document(source, messages=messages, meta=_rest(row, "messages"))
    for prompt, completion in _PROMPT_KEYS:
        if prompt in row and completion in row:
            pair = _strings(row, prompt, completion)
            return Document(
                source,
                messages=exchange(pair[0], pair[1], _system(row)),
                meta=_rest(row, prompt, completion, "system"),
            )
    if "text" in row:
        (text,) = _strings(row, "text")
        return Document(source, text=text, meta=_rest(row, "text"))
    raise ValueError(
        f"keys {', '.join(map(str, row)) or '(none)'} hold neither messages, text, "
        "prompt and completion, nor question and answer"
    )


def _system(row: dict[str, Any]) -> str | None:
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise ValueError("system is not a string")
    return system


def _strings(row: dict[str, Any], *keys: str) -> list[str]:
    for key in keys:
        if not isinstance(row[key], str):
            raise ValueError(f"{key} is not a string")
    return [row[key] for key in keys]


def _rest(row: dict[str, Any], *used: str) -> dict[str, Any]:
    return {
        key: value for key, value in row.items() if key not in (*used, "source", "text", "messages")
    }


def _read_text(handle: BinaryIO, name: str, passage_chars: int) -> Iterator[Record]:
    data = handle.read().removeprefix(b"\xef\xbb\xbf")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        yield Failure(name, "not UTF-8", f"byte {error.start}")
        return
    if "\0" in text:
        yield Failure(name, "not text", "it holds NUL bytes")
        return
    passages = list(split_passages(text.replace("\r\n", "\n"), passage_chars))
    for number, passage in enumerate(passages, 1):
        yield Document(name if len(passages) == 1 else f"{name}#{number}", text=passage)


def split_passages(text: str, passage_chars: int) -> Iterator[str]:
    """Cut at blank lines, else at line ends, into pieces of at most about `passage_chars`.

    Nothing but white space between pieces is lost; an empty text is one empty piece.
    """
    if len(text) <= passage_chars or not text.strip():
        yield text.strip()
        return
    for piece in _packed(_parts(text, passage_chars), passage_chars):
        if piece.strip():
            yield piece.strip()


def _packed(parts: Iterable[str], limit: int) -> Iterator[str]:
    """As many parts together as fit."""
    piece: list[str] = []
    size = 0
    for part in parts:
        if piece and size + len(part) > limit:
            yield "".join(piece)
            piece, size = [], 0
        piece.append(part)
        size += len(part)
    yield "".join(piece)


def _parts(text: str, limit: int) -> Iterator[str]:
    """Paragraphs with their blank lines; longer ones as lines; longer lines as slices."""
    for paragraph in _keep_ends(text, "\n\n"):
        if len(paragraph) <= limit:
            yield paragraph
            continue
        for line in paragraph.splitlines(keepends=True):
            yield from (line[i : i + limit] for i in range(0, len(line), limit))


def _keep_ends(text: str, separator: str) -> Iterator[str]:
    pieces = text.split(separator)
    for piece in pieces[:-1]:
        yield piece + separator
    yield pieces[-1]
