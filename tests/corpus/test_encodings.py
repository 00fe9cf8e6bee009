"""The right encoding is found, and text comes out exactly or as a counted failure."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbench.corpus.document import Failure
from chatbench.corpus.sources.blob import Blob
from chatbench.corpus.sources.encodings import Detected, Line, check_encoding, detect, lines, sample
from chatbench.corpus.sources.plausibility import cost
from chatbench.errors import UsageError
from conftest import SHARED_DATA

MESSY = SHARED_DATA / "messy-encodings"
ENGLISH = "The café — “naïve” façade costs 5 €.\n"
CHINESE = "小店早上九点开门，架子上有茶、书和纸。人们从雨里进来。\n"
TRADITIONAL = "小店早上九點開門，架子上有茶、書和紙。人們從雨裡進來。\n"
JAPANESE = "この店は朝九時に開きます。お茶と本があります。\n"
KOREAN = "이 가게는 아침 아홉 시에 문을 엽니다. 차와 책이 있습니다.\n"
RUSSIAN = "Магазин открывается в девять часов утра. Там есть чай и книги.\n"
LIMIT = 1 << 24


class Trickle(io.RawIOBase):
    """Bytes in pieces of the given sizes, over and over."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self.data, self.sizes, self.at, self.turn = data, sizes, 0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(self.sizes[self.turn % len(self.sizes)], len(buffer))
        piece = self.data[self.at : self.at + size]
        buffer[: len(piece)] = piece
        self.at += len(piece)
        self.turn += 1
        return len(piece)


def handle_of(data: bytes, sizes: list[int] | None = None) -> io.BufferedReader:
    return io.BufferedReader(Trickle(data, sizes or [1 << 17]), 1 << 17)


def read(
    data: bytes, codec: str, sizes: list[int] | None = None, limit: int = LIMIT, first: int = 1
) -> list[Line | Failure]:
    return list(lines(handle_of(data, sizes), codec, "f", limit, first))


def slow_lines(data: bytes, codec: str, limit: int) -> list[Line | str]:
    """Each line by itself, whole input at hand; failures as their source. For codecs in which a
    line end is one byte."""
    parts = re.split(rb"\r\n|\n|\r", data.removeprefix(b"\xef\xbb\xbf"))
    if not parts[-1]:
        parts.pop()
    found: list[Line | str] = []
    for number, part in enumerate(parts, 1):
        try:
            if len(part) > limit:
                raise ValueError
            found.append(Line(number, part.decode(codec)))
        except ValueError:
            found.append(f"f:{number}")
    return found


def sources(found: list[Line | Failure]) -> list[Line | str]:
    return [entry.source if isinstance(entry, Failure) else entry for entry in found]


# ---- lines

CODECS = ["utf-8", "gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1252", "koi8-r", "utf-16-le",
          "utf-16-be", "utf-32-le", "utf-32-be", "utf-16", "iso2022_jp", "hz", "utf-7", "cp500",
          "utf-8-sig"]  # fmt: skip
texts = st.text(
    st.one_of(
        st.sampled_from("\n\r\u2028\u0085\ufeff茶\U0001f375aé~\\"),
        st.characters(exclude_categories=("Cs",)),
    ),
    max_size=40,
)
sizes_of = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@settings(max_examples=400, deadline=None)
@given(texts, st.sampled_from(CODECS), sizes_of)
def test_any_text_in_any_encoding_comes_back_at_every_border(
    text: str, codec: str, sizes: list[int]
) -> None:
    if codec == "iso2022_jp":  # which cannot hold the characters it shifts with
        text = text.translate(dict.fromkeys(b"\x0e\x0f\x1b"))
    data = text.encode(codec, "ignore")
    text = data.decode(codec)
    if codec not in ("utf-16", "utf-8-sig", "cp1252", "koi8-r"):
        text = text.removeprefix("\ufeff")
    expected = re.split("\r\n|\n|\r", text)
    if not expected[-1]:
        expected.pop()
    found = read(data, codec, sizes)
    assert found == [Line(number, part) for number, part in enumerate(expected, 1)]
    assert found == read(data, codec)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"\n", b"\r", b"\r\n", b"\xff", b"\xe8\x8c\xb6", b"\xe8\x8c", b"\xc0\x80",
                         b"\xed\xa0\x80", b"a", b"\x81", "茶".encode("gbk"), b"\xef\xbb\xbf",
                         b"long " * 5])
    ).map(b"".join),
    st.sampled_from(["utf-8", "gb18030", "cp1252", "euc_kr"]),
    sizes_of,
    st.integers(1, 30),
)  # fmt: skip
def test_any_bytes_give_what_the_slow_twin_gives(
    data: bytes, codec: str, sizes: list[int], limit: int
) -> None:
    if codec != "utf-8" and data.startswith(b"\xef\xbb\xbf"):
        data = b"a" + data
    found = read(data, codec, sizes, limit)
    assert sources(found) == slow_lines(data, codec, limit)
    assert sources(read(data, codec, None, limit)) == sources(found)
    for entry in found:
        if isinstance(entry, Failure):
            json.dumps(entry.original).encode("utf-8")
            assert entry.reason in ("undecodable bytes", "line too long")
        else:
            assert "\ufffd" not in entry.text


def test_big_blocks_equal_the_slow_twin(rng: random.Random) -> None:
    pieces = [CHINESE.encode(), ENGLISH.encode(), b"\r\n", b"\r", b"\n", b"\xff\n", b"x" * 3000]
    data = b"".join(rng.choices(pieces, [30, 30, 5, 5, 5, 1, 1], k=9000))
    assert len(data) > 3 << 17
    expected = slow_lines(data, "utf-8", 4096)
    assert any(isinstance(entry, str) for entry in expected)
    assert sources(read(data, "utf-8", None, 4096)) == expected


def test_a_line_that_does_not_decode_is_a_failure_and_reading_goes_on() -> None:
    data = "one\n茶".encode() + b"\xe9t\xe9\n" + "三\n".encode()
    one, two, three = read(data, "utf-8")
    assert (one, three) == (Line(1, "one"), Line(3, "三"))
    assert two == Failure(
        "f:2", "undecodable bytes", "utf-8: byte 0xe9 at offset 3 of the line", "茶\\xe9t\\xe9"
    )


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_a_lone_surrogate_in_a_wide_encoding_spoils_its_line_alone(codec: str) -> None:
    data = "one\n茶".encode(codec) + "\ud8ff".encode(codec, "surrogatepass") + "x\n三".encode(codec)
    for sizes in ([1], [3], [1 << 17]):
        one, two, three = read(data, codec, sizes)
        assert (one, three) == (Line(1, "one"), Line(3, "三"))
        assert isinstance(two, Failure)
        assert (two.source, two.reason) == ("f:2", "undecodable bytes")
        assert codec in two.detail
        assert two.original[0] == "茶"
        assert r"\xff" in two.original
        assert two.original.endswith("x")


def test_half_a_character_at_the_end_is_a_failure() -> None:
    for codec in ("utf-8", "gb18030", "utf-16-le", "utf-32-be"):
        last = read("a\n茶茶".encode(codec)[:-1], codec)[-1]
        assert isinstance(last, Failure)
        assert last.source == "f:2"


def test_only_the_three_line_ends_end_a_line() -> None:
    text = "a\u2028b\u0085c\x0bd\x0ce\x1cf"
    for codec in ("utf-8", "gb18030", "utf-16-le"):
        assert read(text.encode(codec), codec) == [Line(1, text)]
    assert read(b"a\rb\rc", "utf-8") == [Line(1, "a"), Line(2, "b"), Line(3, "c")]
    assert read(b"\n\r\n\r", "utf-8") == [Line(1, ""), Line(2, ""), Line(3, "")]
    assert read(b"", "utf-8") == []


def test_a_byte_order_mark_is_taken_off_the_first_line_of_a_file_alone() -> None:
    for codec in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-be", "gb18030", "utf-8-sig"):
        data = "\ufeffa\n\ufeffb".encode(codec.replace("-sig", ""))
        assert read(data, codec) == [Line(1, "a"), Line(2, "\ufeffb")]
    assert read("\ufeffa".encode(), "utf-8", None, LIMIT, 7) == [Line(7, "\ufeffa")]
    assert read("\ufeff".encode(), "utf-8") == []
    assert read("茶".encode("utf-16-be"), "utf-16-be") == read(
        b"\xfe\xff" + "茶".encode("utf-16-be"), "utf-16"
    )


@pytest.mark.parametrize("codec", ["utf-8", "gb18030", "utf-16-le"])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_a_line_too_long_is_one_failure_in_flat_memory(codec: str, end: str) -> None:
    class Endless(io.RawIOBase):
        """Line one, 64 MiB without an end, and what comes behind."""

        left = [b"1" + end.encode(codec)] if end else []
        left += ["茶".encode(codec) + "x".encode(codec) * (1 << 16)] * (1 << 10)
        left += [(end + "last").encode(codec) if end else b""]

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            piece = self.left.pop(0) if self.left else b""
            head, rest = piece[: len(buffer)], piece[len(buffer) :]
            if rest:
                self.left.insert(0, rest)
            buffer[: len(head)] = head
            return len(head)

    if end:
        Endless.left[0] = ("1" + end).encode(codec)
    tracemalloc.start()
    found = list(lines(io.BufferedReader(Endless(), 1 << 17), codec, "f", 1 << 20, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20
    (failure,) = [entry for entry in found if isinstance(entry, Failure)]
    assert failure.source == ("f:2" if end else "f:1")
    assert failure.reason == "line too long"
    size = (1 << 10) * ((1 << 16) + len("茶".encode("gb18030" if codec == "gb18030" else "utf-8")))
    assert failure.detail == f"{size} bytes; at most {1 << 20} are read"
    assert failure.original.startswith("茶xxx")
    assert [e for e in found if isinstance(e, Line)] == (
        [Line(1, "1"), Line(3, "last")] if end else []
    )


def test_the_longest_line_allowed_is_read(rng: random.Random) -> None:
    for codec in ("utf-8", "gb18030", "utf-16-be"):
        for limit in (1, 30, 200_000):
            data = ("x" * limit + "\n" + "y" * (limit + 1) + "\nz").encode(codec)
            first, second, third = read(data, codec, [rng.randrange(1, limit + 9)], limit)
            assert (first, third) == (Line(1, "x" * limit), Line(3, "z"))
            assert isinstance(second, Failure)
            assert second.reason == "line too long"


def test_an_encoding_is_checked_by_name() -> None:
    assert check_encoding("GBK") == "gbk"
    assert check_encoding("latin1") == "iso8859-1"
    for name in ("klingon", "rot13", "base64", "hex", "", "utf-8\0", "undefined"):
        with pytest.raises(UsageError, match="is not known"):
            check_encoding(name)
        with pytest.raises(UsageError):
            lines(handle_of(b""), name, "f", LIMIT)


# ---- detect


@pytest.mark.parametrize(
    ("text", "codecs"),
    [
        (ENGLISH, ["cp1252", "utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]),
        (CHINESE, ["gb18030", "utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "hz"]),
        (TRADITIONAL, ["big5", "gb18030", "utf-8", "utf-16-le", "utf-32-be"]),
        (JAPANESE, ["cp932", "euc_jp", "iso2022_jp", "utf-8", "utf-16-be"]),
        (KOREAN, ["cp949", "iso2022_kr", "utf-8"]),
        (RUSSIAN, ["cp1251", "koi8-r", "iso8859-5", "cp866", "utf-8"]),
        ("Größe über Straße für Mädchen\n", ["cp1252", "utf-8"]),
        ("Zażółć gęślą jaźń, proszę państwa\n", ["cp1250", "iso8859-2", "utf-8"]),
        ("Καλημέρα, το μαγαζί ανοίγει στις εννέα.\n", ["cp1253", "iso8859-7", "utf-8"]),
        ("Bugün hava çok güzel, dışarı çıkalım mı?\n", ["cp1254", "utf-8"]),
    ],
)
@pytest.mark.parametrize("copies", [1, 40])
def test_the_usual_encodings_are_found(text: str, codecs: list[str], copies: int) -> None:
    for codec in codecs:
        data = (text * copies).encode(codec)
        found = detect(data)
        assert found.codec is not None, codec
        assert data.decode(found.codec) == text * copies, (codec, found)
        assert (found.how == "utf-8") == (codec == "utf-8")


@pytest.mark.parametrize("codec", ["gb18030", "big5", "utf-8", "utf-16-le", "cp932"])
def test_a_head_may_be_cut_inside_a_character(codec: str) -> None:
    text = {"gb18030": CHINESE, "cp932": JAPANESE}.get(codec, TRADITIONAL) * 4
    data = text.encode(codec)
    for cut in range(len(data) // 2, len(data)):
        found = detect(data[:cut]).codec
        assert found is not None
        assert data.decode(found) == text, cut


def test_a_byte_order_mark_says_it() -> None:
    for codec, python in (("utf-8-sig", "utf-8"), ("utf-16-le", "utf-16-le"),
                          ("utf-16-be", "utf-16-be"), ("utf-32-le", "utf-32-le"),
                          ("utf-32-be", "utf-32-be"), ("gb18030", "gb18030")):  # fmt: skip
        mark = "" if codec == "utf-8-sig" else "\ufeff"
        assert detect((mark + "茶 tea").encode(codec)) == Detected(python, "bom")


def test_a_declaration_is_believed_when_the_bytes_agree() -> None:
    page = '<html><meta http-equiv="x" content="text/html; charset=%s"><p>%s</p>'
    for label, codec, text in (("gb2312", "gb18030", "镕"), ("Shift_JIS", "cp932", "①"),
                               ("koi8-r", "koi8-r", "и"), ("iso-8859-1", "cp1252", "“é”"),
                               ("windows-1255", "cp1255", "ש")):  # fmt: skip
        assert detect((page % (label, text)).encode(codec)) == Detected(codec, "declared")
    xml = '<?xml version="1.0" encoding="iso-8859-2"?><a>ż</a>'
    assert detect(xml.encode("iso8859-2")) == Detected("iso8859-2", "declared")
    assert detect("#!x\n# -*- coding: euc-kr -*-\n차".encode("cp949")).codec == "cp949"
    assert detect((page % ("gbk", "茶")).encode()) == Detected("utf-8", "utf-8")
    assert detect((page % ("klingon", "é")).encode("cp1252")).how == "guessed"
    assert detect((page % ("utf-16", "tea")).encode()) == Detected("utf-8", "utf-8")
    lies = detect((page % ("shift_jis", CHINESE * 5)).encode("gb18030"))
    assert lies == Detected("gb18030", "guessed")


def test_ascii_is_utf_8_unless_something_was_declared() -> None:
    assert detect(b"") == Detected("utf-8", "utf-8")
    assert detect(b"tea and ~{no} marks ~} $B") == Detected("utf-8", "utf-8")
    assert detect(b"tea\x1b[31m red") == Detected("utf-8", "utf-8")
    assert detect(b"tea", "gbk") == Detected("gb18030", "declared")
    assert detect("茶".encode(), "gbk") == Detected("utf-8", "utf-8")
    assert detect("é".encode("cp1252"), "latin-1") == Detected("cp1252", "declared")
    assert detect(b"tea", "klingon") == Detected("utf-8", "utf-8")


def test_one_bad_byte_does_not_make_utf_8_something_else() -> None:
    for text in (CHINESE, RUSSIAN, ENGLISH * 4):
        data = bytearray((text * 5).encode())
        for place in range(0, len(data), 17):
            spoiled = bytes(data[:place] + b"\xff" + data[place:])
            assert detect(spoiled).codec == "utf-8"


def test_binary_is_no_text(rng: random.Random) -> None:
    for _ in range(50):
        assert detect(rng.randbytes(rng.randrange(300, 5000))).codec is None
    numbers = [rng.randrange(50_257) for _ in range(400)]
    assert detect(struct.pack("<400H", *numbers)).codec is None
    assert detect(struct.pack("<400f", *numbers)).codec is None
    assert detect(struct.pack("<200I", *range(200))).codec is None
    assert detect(bytes(100)).codec is None
    assert detect(b"\x7fELF\x02\x01\x01" + bytes(60)).codec is None
    assert detect(("tea " * 50).encode() + b"\0").codec == "utf-8"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_judged_the_same_twice(data: bytes) -> None:
    found = detect(data)
    assert found == detect(data)
    assert found.how in ("bom", "utf-8", "declared", "guessed")
    if found.codec is not None:
        read(data, found.codec)


def test_a_late_accent_is_in_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "book"
    early, late = b"plain words\n" * 50_000, "un café, s'il vous plaît\n".encode("cp1252")
    path.write_bytes(early + late + early)
    with open(path, "rb") as handle:
        shown = sample(Blob("book", handle, path))
        assert detect(shown[:4096]) == Detected("utf-8", "utf-8")
        assert detect(shown) == Detected("cp1252", "guessed")
        assert len(shown) < 1 << 18
        assert handle.read(5) == b"plain"
    with open(path, "rb") as handle:
        assert sample(Blob("book", handle, None)) == early[: len(sample(Blob("b", handle, None)))]


def test_a_likely_text_costs_less_than_the_same_characters_in_disorder(
    rng: random.Random,
) -> None:
    assert cost("日本語の本") < cost("㐀㐁㐂㐃㐄")
    assert cost("привет") < cost("ПриВЕт") < cost("п\x80р\x81и")
    for text in (ENGLISH, RUSSIAN):
        swapped = text.swapcase()
        assert cost(text) < cost(swapped)


# ---- real files

# Encodings that the sets state, by file name; where none is stated the file is UTF-8.
CHARDET = {
    "big5": "cp950", "euc_kr": "cp949", "gb18030": "gb18030", "iso2022jp": "iso2022_jp",
    "iso2022kr": "iso2022_kr", "iso88592_cs": "iso8859-2", "iso88595_ru": "iso8859-5",
    "iso88597_el": "iso8859-7", "iso88598": "iso8859-8", "iso88599_tr": "iso8859-9",
    "koi8r": "koi8-r", "utf16be": "utf-16", "utf16le": "utf-16", "utf32le": "utf-32-le",
    "windows_1251": "cp1251", "windows_1252": "cp1252", "windows_1254": "cp1254",
    "windows_1255": "cp1255", "windows_1257_et": "cp1257", "windows_1257_lt": "cp1257",
    "windows_1258": "cp1258", "windows_874": "cp874",
}  # fmt: skip
SAMPLES = {
    "chinese": "big5", "french-1": "cp1252", "greek": "iso8859-7", "greek-2": "iso8859-7",
    "hebrew-2": "cp1255", "hebrew-3": "cp1255", "korean": "cp949", "russian": "mac_cyrillic",
    "turkish": "cp1254",
}  # fmt: skip
DECLARATION_OF_RIGHTS = {
    "GB2312": "gb2312", "HZ": "hz", "EUC": "euc_jp", "SJIS": "cp932", "Cyrillic": "cp1251",
    "Hebrew": "iso8859-8", "Greek": "iso8859-7", "Latin2": "iso8859-2", "Turkish": "iso8859-9",
    "Latin1": "iso8859-1",
}  # fmt: skip
KNOWN_MISSES = {
    # Read as cp950, the Big5 that Windows writes: one kind of dot comes out as U+2027, not U+2022.
    "nahan-big5-crlf.txt",
    # Two encodings in one file: one of them is found, the lines in the other are failures.
    "mixed-gbk-then-utf8.txt",
    # Called Latin 2, but written in cp1250: "obradująca" is right in that alone.
    "Polish_Polski-Latin2",
}


def real_files() -> Iterator[tuple[Path, str]]:
    """Each file with its right text."""
    for path in sorted((MESSY / "cjkencodings").iterdir()):
        right = path.name if "-utf8" in path.name else f"{path.stem}-utf8.txt"
        yield path, (path.parent / right).read_bytes().decode()
    named = [(path, CHARDET.get(path.name, "utf-8")) for path in (MESSY / "node-chardet").iterdir()]
    named += [
        (path, SAMPLES.get(path.stem.removeprefix("sample-"), "utf-8"))
        for path in (MESSY / "charset-normalizer").glob("sample-*")
    ]
    named += [
        (path, DECLARATION_OF_RIGHTS.get(path.name.rpartition("-")[2], "utf-8"))
        for path in (MESSY / "udhr").iterdir()
    ]
    named += [
        (path, "iso8859-1" if path.stem.endswith("-8") else "utf-8")
        for path in (MESSY / "gutenberg").iterdir()
    ]
    for path, codec in sorted(named):
        # Some of these files are cut inside a character, two hold half a surrogate pair.
        errors = "surrogatepass" if codec.startswith("utf-16") else "ignore"
        yield path, path.read_bytes().decode(codec, errors)


def decoded(path: Path) -> str:
    data = path.read_bytes()
    codec = detect(data).codec
    assert codec is not None, path
    errors = "surrogatepass" if codec.startswith("utf-16") else "ignore"
    return data.decode(codec, errors).removeprefix("\ufeff")


@pytest.mark.skipif(not MESSY.exists(), reason="the shared data is absent")
def test_real_files_decode_to_exactly_the_right_text() -> None:
    missed = set()
    count = 0
    for path, right in real_files():
        count += 1
        if decoded(path) != right.removeprefix("\ufeff"):
            missed.add(path.name)
    for entry in json.loads((MESSY / "recoded" / "manifest.json").read_text("utf-8")):
        count += 1
        path = MESSY / "recoded" / entry["file"]
        text = decoded(path).replace("\r\n", "\n").replace("\r", "\n")
        if hashlib.sha256(text.encode()).hexdigest() != entry["sha256_of_utf8_with_LF"]:
            missed.add(path.name)
    assert count == 95
    assert missed == KNOWN_MISSES


@pytest.mark.skipif(not MESSY.exists(), reason="the shared data is absent")
def test_recoded_books_come_out_line_by_line() -> None:
    for entry in json.loads((MESSY / "recoded" / "manifest.json").read_text("utf-8")):
        path = MESSY / "recoded" / entry["file"]
        codec = entry["encoding"]
        if "then" in codec:
            found = read(path.read_bytes(), detect(path.read_bytes()).codec or "")
            failed = [line for line in found if isinstance(line, Failure)]
            assert 0 < len(failed) < len(found)
            continue
        found = read(path.read_bytes(), codec, [997])
        text = "".join(f"{line.text}\n" for line in found if isinstance(line, Line))
        whole = path.read_bytes().decode(codec).removeprefix("\ufeff")
        unified = whole.replace("\r\n", "\n").replace("\r", "\n")
        assert text.removesuffix("\n") == unified.removesuffix("\n")
        assert hashlib.sha256(unified.encode()).hexdigest() == entry["sha256_of_utf8_with_LF"]
