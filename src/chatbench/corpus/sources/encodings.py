"""Which character encoding some bytes are in, and bytes → numbered lines, strictly.

`detect` looks at a head of a file, `lines` decodes the whole of it. Nothing is replaced on the way:
a line that does not decode is a counted failure that keeps its bytes as escapes.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from io import BufferedReader
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

from chatbench.corpus.document import Failure
from chatbench.corpus.sources.blob import Blob
from chatbench.corpus.sources.plausibility import (
    ASCII,
    CANDIDATES,
    MARKED,
    PLAIN_CONTROLS,
    WIDE,
    cost,
    decodes,
    likeliest,
    tolerant,
)
from chatbench.errors import UsageError

BLOCK_BYTES = 1 << 17
_SHOWN_BYTES = 200
_WIDE_SAMPLE = 1 << 13
_WORST_BITS_OF_UTF_32 = 21
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"), (b"\x84\x31\x95\x33", "gb18030"),
)  # fmt: skip
_SEVEN_BIT = (
    (rb"\x1b\$[@B]|\x1b\$\([DOPQ]", ("iso2022_jp", "iso2022_jp_2", "iso2022_jp_ext")),
    (rb"\x1b\$\)C", ("iso2022_kr",)),
    (rb"~\{(?:[!-w][!-~])+~\}", ("hz",)),
)
# What a label means in practice: the widest set that programs write under that name.
_MEANT = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "gb2312": "gb18030",
    "gbk": "gb18030", "big5": "cp950", "shift_jis": "cp932", "euc_kr": "cp949",
    "tis-620": "cp874", "utf-8-sig": "utf-8", "iso8859-8": "cp1255",
}  # fmt: skip
_DECLARATIONS = (
    re.compile(rb"""\A\s*<\?xml[^>]{0,200}?\sencoding\s*=\s*["']([\w.:-]{1,40})["']"""),
    re.compile(rb"""<meta\s[^>]{0,200}?charset\s*=\s*["']?([\w.:-]{1,40})""", re.IGNORECASE),
    re.compile(rb"\A(?:[^\n]*\n)?[ \t\f]*#[^\n]{0,200}?coding[:=][ \t]*([\w.-]{1,40})"),
)
_NOT_BY_LINE = ("utf-16", "utf-32", "utf-7", "iso2022", "hz")
_CONTROLS = bytes(byte for byte in range(32) if chr(byte) not in PLAIN_CONTROLS)


class Detected(NamedTuple):
    """`codec` is Python's name for it, None for bytes that are no text. `how` is bom, utf-8,
    declared or guessed."""

    codec: str | None
    how: str


class Line(NamedTuple):
    """One line without its end; `number` counts from 1 in its file."""

    number: int
    text: str


def detect(head: bytes, declared: str | None = None) -> Detected:
    """The encoding of a text of which `head` is the beginning, perhaps cut inside a character.

    Tried in this order: a byte order mark; valid UTF-8; UTF-16 and UTF-32 by their zero bytes;
    `declared` (from outside, such as a mail header), then a declaration in the head (HTML meta, XML
    encoding, Python coding), each only when the head decodes with it; the likeliest of the known
    encodings. ASCII alone says nothing, so there a declaration comes before UTF-8.
    """
    for mark, codec in _BOMS:
        if head.startswith(mark):
            return Detected(codec, "bom")
    if b"\0" in head:
        wide = _wide(head)
        if wide is not None:
            return Detected(wide, "guessed")
    escaped = _escaped_codec(head) if head.isascii() else None
    if escaped is not None:
        return Detected(escaped, "guessed")
    if _is_control_rich(head):
        return Detected(None, "guessed")
    if head.isascii():
        label = _declared(head, declared) or "utf-8"
        return Detected(label, "utf-8" if label == "utf-8" else "declared")
    if _is_utf_8(head):
        return Detected("utf-8", "utf-8")
    named = _declared(head, declared)
    if named is not None:
        return Detected(named, "declared")
    return Detected(likeliest(head, CANDIDATES), "guessed")


def sample(blob: Blob, size: int = 1 << 16) -> bytes:
    """The bytes to show to `detect`: the first `size` at most, without moving `blob.handle`.

    Where these are ASCII and the blob is a file of its own, the first line beyond them that is not
    ASCII comes behind: an old book may have its only accent in the last chapter. Raises
    DamagedInput as the handle does.
    """
    head = blob.handle.peek(size)[:size]
    end = blob.handle.tell() + len(head) if blob.path is not None else 0
    if blob.path is None or not head.isascii() or b"\0" in head:
        return head
    with suppress(OSError):  # the handle will say it
        if blob.path.stat().st_size > end:
            return head + _odd_line(blob.path, end, size)
    return head


def _odd_line(path: Path, start: int, size: int) -> bytes:
    """The first line behind `start` that is not ASCII, or a part of it."""
    with open(path, "rb") as handle:
        handle.seek(start)
        while block := handle.read(1 << 20):
            if not block.isascii():
                block += handle.readline(size)
                odd = next(place for place, byte in enumerate(block) if byte >= 0x80)
                begin = max(block.rfind(b"\n", 0, odd) + 1, odd - size)
                return b"\n" + block[begin : odd + size]
    return b""


def check_encoding(name: str) -> str:
    """Python's name of the encoding a person named, such as gb18030. Raises UsageError for one that
    is not known or is none of text."""
    try:
        found = codecs.lookup(name)
    except (LookupError, ValueError):
        found = None
    if found is None or not _is_text(found) or "\0" in name:
        raise UsageError(
            f"encoding {name!r} is not known", hint="known are auto, utf-8, gb18030, big5, cp1252…"
        )
    return found.name


def _is_text(found: codecs.CodecInfo) -> bool:
    # Hex, base64 and their like are codecs too, from bytes to bytes; "undefined" decodes nothing.
    return bool(getattr(found, "_is_text_encoding", True)) and found.name not in (
        "undefined", "idna", "punycode", "unicode_escape", "unicode-escape", "raw-unicode-escape",
        "raw_unicode_escape", "mbcs", "oem",
    )  # fmt: skip


def _is_utf_8(head: bytes) -> bool:
    """One byte of a half character behind ASCII is no evidence, unless the head is long enough to
    have been cut."""
    whole = head.decode("utf-8", "ignore")
    return decodes(head, "utf-8") and (len(head) >= 1024 or not whole.isascii())


def _is_control_rich(head: bytes) -> bool:
    controls = len(head) - len(head.translate(None, _CONTROLS))
    return controls > len(head) // (10 if decodes(head, "utf-8") else 50)


def _wide(head: bytes) -> str | None:
    """UTF-32 leaves no doubt; UTF-16 has to be likelier than the bytes themselves."""
    for codec in ("utf-32-le", "utf-32-be"):
        text = head[:_WIDE_SAMPLE].decode(codec, "ignore")
        if not decodes(head, codec) or "\0" in text:
            continue
        if text and cost(text) < _WORST_BITS_OF_UTF_32 * len(text):
            return codec
    best = likeliest(head, (*WIDE, "utf-8"))
    return best if best in WIDE else None


def _escaped_codec(head: bytes) -> str | None:
    """The encoding of a text that is all ASCII because it shifts in and out of its characters."""
    for pattern, family in _SEVEN_BIT:
        if re.search(pattern, head):
            for codec in family:
                # Cheaper than the bytes as ASCII, or the marks stand there by chance.
                if decodes(head, codec) and cost(tolerant(head, codec)) < ASCII * len(head):
                    return codec
    return None


def _declared(head: bytes, declared: str | None) -> str | None:
    labels = [] if declared is None else [declared]
    for pattern in _DECLARATIONS:
        found = pattern.search(head[:4096])
        if found:
            labels.append(found[1].decode("ascii"))
    for label in labels:
        try:
            codec = check_encoding(label)
        except UsageError:
            continue
        codec = _MEANT.get(codec, codec)
        # A declaration that could be read as ASCII is not in UTF-16, whatever it says.
        if not codec.startswith(("utf-16", "utf-32", "utf-7")) and decodes(head, codec):
            return codec
    return None


def lines(
    handle: BufferedReader, codec: str, name: str, max_bytes: int, first_line: int = 1
) -> Iterator[Line | Failure]:
    """The lines of `handle` in `codec`, strictly; ends are LF, CRLF and CR and are not in the text.

    A byte order mark at the start of line 1 is taken off. A line that does not decode, or has more
    than `max_bytes` bytes (UTF-16, UTF-32 and stateful codecs: as UTF-8), is one Failure
    `name:number` and reading goes on; only about `max_bytes` are held. Raises UsageError for an
    unknown codec, and DamagedInput from the handle after the lines before the damage.
    """
    codec = check_encoding(codec)
    if codec == "utf-8-sig":
        codec = "utf-8"
    blocks = iter(partial(handle.read1, BLOCK_BYTES), b"")
    decode: Callable[[bytes], str] = partial(_decode, codec)
    form = codec
    if codec.startswith(_NOT_BY_LINE) or not _keeps_ends(codec):
        blocks, decode, form = _as_utf_8(blocks, codec), _decode_marked, "utf-8"
    if first_line == 1:
        blocks = _without_mark(blocks, form)
    splitter = _Splitter(codec, decode, name, max_bytes, first_line)
    return chain.from_iterable(splitter.batches(blocks))


def _without_mark(blocks: Iterator[bytes], codec: str) -> Iterator[bytes]:
    mark = next((mark for mark, marked in _BOMS if marked == codec), b"")
    yield _gathered(blocks, len(mark)).removeprefix(mark)
    yield from blocks


def _gathered(blocks: Iterator[bytes], size: int) -> bytes:
    """The first block or blocks, `size` bytes at least where there are as many."""
    first = b""
    while len(first) < size and (block := next(blocks, b"")):
        first += block
    return first


def _decode(codec: str, data: bytes) -> str:
    return data.decode(codec)


def _decode_marked(data: bytes) -> str:
    text = data.decode("utf-8", "surrogatepass")
    if MARKED.search(text):
        raise UnicodeError("bytes that did not decode")
    return text


def _keeps_ends(codec: str) -> bool:
    """Whether a byte 10 or 13 is always a line end, so that lines can be cut before decoding."""
    try:
        return b"\n\r".decode(codec) == "\n\r"
    except UnicodeError:
        return False


def _as_utf_8(blocks: Iterator[bytes], codec: str) -> Iterator[bytes]:
    """The decoded text as UTF-8 with marks, in which a line end is one byte."""
    block = _gathered(blocks, 4)
    if codec in ("utf-16", "utf-32"):
        # Without a mark, little endian is what nearly all such files are.
        codec += "-be" if block.startswith((b"\xfe\xff", b"\0\0\xfe\xff")) else "-le"
    decoder = codecs.getincrementaldecoder(codec)("chatbench.mark")
    more = True
    while more:
        more = bool(block)
        text = decoder.decode(block, not more)
        if text:
            yield text.encode("utf-8", "surrogatepass")
        block = next(blocks, b"")


class _Splitter:
    """Blocks of bytes → lines; holds the one line that is not yet at its end."""

    def __init__(
        self, codec: str, decode: Callable[[bytes], str], name: str, max_bytes: int, number: int
    ) -> None:
        self._codec, self._decode = codec, decode
        self._name, self._max_bytes, self._number = name, max_bytes, number
        self._pending: list[bytes] = []
        self._size = 0
        self._dropping = False

    def batches(self, blocks: Iterable[bytes]) -> Iterator[Iterable[Line | Failure]]:
        """The lines of each block together, so that no Python code runs once a line."""
        after_cr = False
        for block in blocks:
            # The border may lie between the two halves of a CRLF.
            if after_cr and block[:1] == b"\n":
                block = block[1:]
                after_cr = False
            if not block:
                continue
            after_cr = block.endswith(b"\r")
            if b"\r" in block:
                block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            if self._dropping:
                end = block.find(b"\n")
                if end < 0:
                    self._size += len(block)
                    continue
                self._size += end
                yield [self._too_long()]
                block = block[end + 1 :]
            cut = block.rfind(b"\n")
            if cut >= 0:
                self._pending.append(block[:cut])
                yield self._lines(b"".join(self._pending))
                self._pending.clear()
                self._size = 0
            self._keep(block[cut + 1 :])
        if self._dropping:
            yield [self._too_long()]
        elif self._size:
            yield self._lines(b"".join(self._pending))

    def _keep(self, rest: bytes) -> None:
        self._pending.append(rest)
        self._size += len(rest)
        if self._size > self._max_bytes:
            self._dropping = True
            self._pending = [b"".join(self._pending)[:_SHOWN_BYTES]]

    def _too_long(self) -> Failure:
        failure = self._long(self._size, b"".join(self._pending))
        self._pending.clear()
        self._size, self._dropping = 0, False
        self._number += 1
        return failure

    def _lines(self, data: bytes) -> Iterable[Line | Failure]:
        """The lines of `data`, which has its line ends between them and none behind."""
        if len(data) <= self._max_bytes:
            try:
                texts = self._decode(data).split("\n")
            except UnicodeError:
                pass
            else:
                numbers = count(self._number)
                self._number += len(texts)
                return map(_new_line, zip(numbers, texts, strict=False))
        found = []
        for line in data.split(b"\n"):
            found.append(self._line(line))
            self._number += 1
        return found

    def _line(self, line: bytes) -> Line | Failure:
        if len(line) > self._max_bytes:
            return self._long(len(line), line[:_SHOWN_BYTES])
        try:
            return Line(self._number, self._decode(line))
        except UnicodeDecodeError as error:
            detail = f"{self._codec}: byte 0x{line[error.start]:02x} at offset {error.start}"
            original = line.decode(self._codec, "backslashreplace")
        except UnicodeError:
            text = line.decode("utf-8", "surrogatepass")
            detail = _marked_place(self._codec, text)
            original = MARKED.sub(_escaped, text)
        where = f"{self._name}:{self._number}"
        return Failure(where, "undecodable bytes", f"{detail} of the line", original)

    def _long(self, size: int, start: bytes) -> Failure:
        detail = f"{size} bytes; at most {self._max_bytes} are read"
        codec = "utf-8" if self._decode is _decode_marked else self._codec
        shown = start.decode(codec, "backslashreplace")
        return Failure(f"{self._name}:{self._number}", "line too long", detail, shown)


_new_line: Callable[[tuple[int, str]], Line] = partial(tuple.__new__, Line)


def _marked_place(codec: str, text: str) -> str:
    found = MARKED.search(text)
    assert found is not None
    return f"{codec}: {_escaped(found)} at character {found.start()}"


def _escaped(found: re.Match[str]) -> str:
    point = ord(found[0])
    return f"\\x{point - 0xDC00:02x}" if 0xDC00 <= point < 0xDD00 else f"\\u{point:04x}"
