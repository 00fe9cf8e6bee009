"""What every format reader works on: a blob whose encoding is decided, and ways to read it."""

from __future__ import annotations

import codecs
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from io import BufferedReader, RawIOBase
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from chatbench.corpus.document import Failure, Record
from chatbench.corpus.sources.blob import Blob, ReadOptions
from chatbench.corpus.sources.encodings import Line, lines
from chatbench.errors import UsageError

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 1 << 16
MAX_TEXT_BYTES = 1 << 30
_PACKED = (".gz", ".zst", ".xz", ".bz2", ".zip")


class Source(NamedTuple):
    """A blob with its decided codec; `head` is what `handle` begins with, still unread."""

    name: str
    handle: BufferedReader
    path: Path | None
    first_line: int
    codec: str
    head: bytes
    options: ReadOptions

    def lines(self) -> Iterator[Line | Failure]:
        """Numbered lines without ends; see `encodings.lines`."""
        limit = self.options.max_record_bytes
        return lines(self.handle, self.codec, self.name, limit, self.first_line)

    def utf_8(self) -> Iterator[bytes]:
        """The content as blocks of UTF-8 without byte order mark. What does not decode stays
        invalid UTF-8, so that a parser refuses the one record that holds it."""
        if is_utf_8(self.codec):
            yield from _without_mark(iter(partial(self.handle.read, BLOCK_BYTES), b""))
            return
        decoder = codecs.getincrementaldecoder(self.codec)("chatbench.mark")
        blocks = chain(iter(partial(self.handle.read, BLOCK_BYTES), b""), (b"",))
        encoded = (
            decoder.decode(block, not block).encode("utf-8", "surrogatepass") for block in blocks
        )
        yield from _without_mark(encoded)

    def head_text(self) -> str:
        """The decoded head; a character cut at its end is left out."""
        return decoded_head(self.head, self.codec)


class Format(NamedTuple):
    """How one form of file is told and read; order in the registry is order of detection.

    `matches(head, text, name)` sees bytes, decoded text ("" for what is no text) and the lower-case
    name without endings of compression. `verdict` says in a few words what was found.
    """

    title: str
    read: Callable[[Source], Iterator[Record]]
    matches: Callable[[bytes, str, str, ReadOptions], bool]
    verdict: Callable[[Source], str] | None = None
    binary: bool = False
    package: str | None = None


class _Full(RawIOBase):
    """Another handle, always filling what it is asked to fill, so that `peek` sees enough."""

    def __init__(self, handle: BufferedReader) -> None:
        self._handle = handle
        self._place = 0
        self._damage: Exception | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._damage is not None:
            raise self._damage
        view, filled = memoryview(buffer), 0
        while filled < len(view):
            try:
                count = self._handle.readinto(view[filled:])
            except Exception as damage:
                if not filled:
                    raise
                self._damage = damage  # after what lies before it
                break
            if not count:
                break
            filled += count
        self._place += filled
        return filled

    def tell(self) -> int:
        return self._place


def fully_peekable(blob: Blob) -> Blob:
    """The blob with a handle whose `peek` shows HEAD_BYTES, or all there is."""
    return blob._replace(handle=BufferedReader(_Full(blob.handle), 2 * HEAD_BYTES))


def bare_name(name: str) -> str:
    """The name in lower case without endings of compression, which say nothing of the form."""
    name = name.casefold()
    while name.endswith(_PACKED):
        name = name.rpartition(".")[0]
    return name


def is_utf_8(codec: str) -> bool:
    return codecs.lookup(codec).name in ("utf-8", "utf-8-sig", "ascii")


def decoded_head(head: bytes, codec: str) -> str:
    """The text of a head, tolerantly: this is for looking only."""
    decoder = codecs.getincrementaldecoder(codec)("replace")
    return decoder.decode(head).removeprefix("\ufeff")


def package(name: str, what: str, hint: str) -> Any:
    """An optional package. Raises UsageError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        needed = name.partition(".")[0]
        raise UsageError(f"{what} needs {needed}", hint=hint) from error


def _without_mark(blocks: Iterator[bytes]) -> Iterator[bytes]:
    for number, block in enumerate(blocks):
        yield block.removeprefix(codecs.BOM_UTF8) if number == 0 else block
