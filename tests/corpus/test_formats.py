"""Every form of file is told by its content and read in flat memory; no file stops the reading."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbench.conversation import Message
from chatbench.corpus.document import Document, Failure, Record
from chatbench.corpus.formats import FORMATS, names, read_blob, sniff, split_passages
from chatbench.corpus.formats.json_elements import elements
from chatbench.corpus.formats.rows import parse_row
from chatbench.corpus.formats.webpage import readable
from chatbench.corpus.sources.blob import Blob, ReadOptions
from chatbench.errors import UsageError
from conftest import SHARED_DATA

SAMPLES = Path(__file__).with_name("samples")
ROWS = [{"text": "茶 tea"}, {"question": "有茶吗？", "answer": "有的。"}, {"text": "第三 third"}]
PAIR = (Message("user", "有茶吗？"), Message("assistant", "有的。"))


def options(**changes: Any) -> ReadOptions:
    return msgspec.structs.replace(ReadOptions(), **changes)


def told(
    data: bytes | Path, name: str = "f", first_line: int = 1, **changes: Any
) -> tuple[str, list[Record]]:
    """The verdict and the records of some bytes, or of a file."""
    verdicts: list[str] = []
    path = data if isinstance(data, Path) else None
    with io.BufferedReader(io.BytesIO(data)) if path is None else open(path, "rb") as handle:  # type: ignore[arg-type]
        blob = Blob(name, handle, path, first_line)
        records = list(read_blob(blob, options(**changes), verdicts.append))
    (verdict,) = verdicts
    for record in records:
        msgspec.json.encode(record)
    return verdict, records


def read(data: bytes | str | Path, name: str = "f", **changes: Any) -> list[Record]:
    return told(data.encode() if isinstance(data, str) else data, name, **changes)[1]


def documents(data: bytes | str | Path, name: str = "f", **changes: Any) -> list[Document]:
    records = read(data, name, **changes)
    assert not [record for record in records if isinstance(record, Failure)], records
    return [record for record in records if isinstance(record, Document)]


def failures(records: Iterable[Record]) -> list[tuple[str, str]]:
    return [(r.source, r.reason) for r in records if isinstance(r, Failure)]


def said(document: Document) -> list[str]:
    return [m.content for m in document.messages or ()] or [document.text or ""]


# ---- one sample for each form

VERDICTS = {
    "story.txt": "text · utf-8",
    "notes.md": "text · utf-8",
    "page.html": "HTML · utf-8",
    "page-gb2312.html": "HTML · gb18030",
    "rows.jsonl": "JSON Lines · utf-8",
    "list.json": "JSON · utf-8",
    "nested.json": "JSON · utf-8",
    "table.csv": "CSV with columns question, answer, topic · utf-8",
    "table-gb18030.csv": "CSV with columns 问题, 答案 · gb18030",
    "labelled.csv": "CSV with columns text, label · utf-8",
    "pairs.tsv": "TSV without header, question and answer · utf-8",
    "chat.chatml": "ChatML text · utf-8",
    "talk.yml": "ChatterBot YAML · utf-8",
    "parlai.txt": "ParlAI text · utf-8",
    "parlai-numbered.txt": "ParlAI text · utf-8",
}
CONTENTS: dict[str, list[tuple[str, list[str]]]] = {
    "rows.jsonl": [
        ("rows.jsonl:1", ["Tea is a drink. 茶是一种饮料。"]),
        ("rows.jsonl:2", ["有茶吗？", "有的。"]),
        ("rows.jsonl:3", ["Is there tea?", "Yes."]),
    ],
    "list.json": [
        ("list.json[1]", ["Say hello", "Hello!"]),
        ("list.json[2]", ["你好", "您好", "翻译成英文\n\n茶", "tea"]),
    ],
    "nested.json": [
        ("nested.json[1][1]", ["茶是用茶叶泡的。\n\n茶是用什么泡的？", "茶叶"]),
        ("nested.json[1][2]", ["茶是用茶叶泡的。\n\n茶是什么泡的？", "茶叶泡的"]),
        ("nested.json[2][1]", ["Tea is made of leaves.\n\nWhat is tea made of?", "leaves"]),
    ],
    "table.csv": [
        ("table.csv:2", ['What does "tea" cost?', "Two yuan,\nor three."]),
        ("table.csv:4", ["信纸多少钱？", "十二元。"]),
    ],
    "table-gb18030.csv": [
        ("table-gb18030.csv:2", ["有茶吗？", "有。"]),
        ("table-gb18030.csv:3", ["营业吗？", "营业。"]),
    ],
    "labelled.csv": [
        ("labelled.csv:2", ["很好喝", "正面"]),
        ("labelled.csv:3", ["bad, very bad", "negative"]),
    ],
    "pairs.tsv": [
        ("pairs.tsv:1", ["Is it open?", "Yes, until six."]),
        ("pairs.tsv:2", ["几点开门？", "九点。"]),
        ("pairs.tsv:3", ["Do you sell ink?", '"Of course" is what we say.']),
    ],
    "chat.chatml": [
        ("chat.chatml:1", ["Be brief.", "Is there tea?\n\nGreen, please.", "Yes."]),
        ("chat.chatml:10", ["有茶吗？", "有的。"]),
        ("chat.chatml:14", ["一句话回答。", "几点开门？", "九点。"]),
    ],
    "talk.yml": [
        ("talk.yml:5", ["Is there tea?", "Yes"]),
        ("talk.yml:7", ["有茶吗？", "有的。", "多少钱？", "两元。"]),
        ("talk.yml:11", ["Any advice?", "Note: drink it hot"]),
    ],
    "parlai.txt": [
        ("parlai.txt:1", ["Hello there", "Hi!", "Is there tea?\nGreen one.", "Yes."]),
        ("parlai.txt:3", ["有茶吗？", "有的。"]),
    ],
    "parlai-numbered.txt": [
        ("parlai-numbered.txt:1",
         ["Mary is in the shop.\nWhere is Mary?", "shop", "有茶吗？", "有的。"]),
        ("parlai-numbered.txt:4", ["Hello.", "Hi."]),
    ],
    "page-gb2312.html": [
        ("page-gb2312.html", ["小店\n\n我们卖茶叶、信纸和墨水。\n\n欢迎光临！"]),
    ],
    "notes.md": [("notes.md", ['# Tea\n\n- black tea\n- 绿茶\n\n```python\nprint("茶")\n```'])],
}  # fmt: skip


def test_every_sample_has_a_verdict() -> None:
    names = {path.name for path in SAMPLES.iterdir()}
    # test_chatlogs.py has those of the chat exports.
    assert {name for name in names if not name.startswith("chatlog_")} == set(VERDICTS)


@pytest.mark.parametrize("name", sorted(VERDICTS))
def test_a_sample_is_told_by_its_content_even_without_its_name(name: str) -> None:
    data = (SAMPLES / name).read_bytes()
    assert told(data, name)[0] == VERDICTS[name]
    if name != "pairs.tsv" and "labelled" not in name:
        assert told(data, "nameless")[0] == VERDICTS[name]


@pytest.mark.parametrize("name", sorted(CONTENTS))
@pytest.mark.parametrize("packed", [False, True])
def test_a_sample_becomes_documents(name: str, packed: bool) -> None:
    path = SAMPLES / name
    if packed:
        with gzip.open(io.BytesIO(gzip.compress(path.read_bytes()))) as handle:
            blob = Blob(name, io.BufferedReader(handle))  # type: ignore[arg-type]
            records = list(read_blob(blob, options(), str))  # type: ignore[arg-type]
    else:
        records = read(path, name)
    assert [(r.source, said(r)) for r in records if isinstance(r, Document)] == CONTENTS[name]
    assert len(records) == len(CONTENTS[name])


@pytest.mark.parametrize("name", sorted(VERDICTS))
def test_line_ends_and_a_byte_order_mark_change_nothing(name: str) -> None:
    data = (SAMPLES / name).read_bytes()
    unix = data.replace(b"\r\n", b"\n")
    wanted = [(r.source, said(r)) for r in documents(unix, name)]
    variants = [unix.replace(b"\n", b"\r\n")]
    if "gb" not in name:
        variants.append(b"\xef\xbb\xbf" + unix.removeprefix(b"\xef\xbb\xbf"))
        text = unix.decode("utf-8-sig")
        variants += [text.encode("utf-16"), text.encode("utf-16-be")] if "html" not in name else []
    for variant in variants:
        assert [(r.source, said(r)) for r in documents(variant, name)] == wanted


@pytest.mark.parametrize("name", ["rows.jsonl", "list.json", "table.csv", "chat.chatml"])
def test_a_forced_encoding_is_used(name: str) -> None:
    text = (SAMPLES / name).read_text("utf-8-sig")
    wanted = [said(r) for r in documents(SAMPLES / name, name)]
    for codec in ("gb18030", "big5hkscs" if "欢" not in text and "马" not in text else "gbk"):
        try:
            data = text.encode(codec)
        except UnicodeEncodeError:
            continue
        assert [said(r) for r in documents(data, name, encoding=codec)] == wanted


def test_unknown_formats_and_encodings_are_usage_errors() -> None:
    with pytest.raises(UsageError, match=r"known: auto, parquet, .*csv"):
        read(b"x", format="xls")
    with pytest.raises(UsageError, match="not known"):
        read(b"x", encoding="utf-9")
    assert names() == ["auto", *FORMATS]


def test_a_forced_format_wins_over_the_content() -> None:
    line = b'{"text": "a"}\n'
    assert documents(line * 2, format="text")[0].text == '{"text": "a"}\n{"text": "a"}'
    assert told(line, format="jsonl")[0] == "JSON Lines · utf-8"
    assert sniff(line, "f", options(format="csv")) == ("csv", "utf-8")
    assert said(documents("a b\tc\n", format="csv")[0]) == ["a b", "c"]


def test_sniffing_tells_what_may_be_shared() -> None:
    assert sniff(b'{"text": "a"}\n{"te', "f", options()) == ("jsonl", "utf-8")
    assert sniff("Tea.\n\n茶。".encode(), "f.txt", options()) == ("text", "utf-8")
    assert sniff("茶。小店九点开门，下着雨。".encode("gb18030"), "f", options()) == (
        "text",
        "gb18030",
    )
    assert sniff(bytes(range(256)) * 20, "f", options()) == ("text", None)
    assert sniff(b"PAR1\x15\x04", "f", options()) == ("parquet", None)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{% for m in messages %}{{ m }}{% endfor %}\n{{ x }}\n{% if y %}\n", "f.jinja"),
        ("Prose, with commas, here.\nAnd, as it goes, more, of them.\n", "f.txt"),
        ("[Chapter 1]\nIt began.\n", "f"),
        ("{\\rtf1 no JSON}\n", "f"),
        ("tea\tO\n茶\tO\n\nshop\tB-LOC\n", "f.conll"),
        ("title: x\nitems:\n- a\n", "f.yml"),
        ("12 monkeys\n13 apes\n", "f"),
        ("I saw <b>it</b> & left.\n", "f.md"),
        ("one\ttwo\tthree\nfour\tfive\tsix\n", "f.txt"),
        ("<|im_end|> is a mark.\n", "f"),
    ],
)
def test_what_only_resembles_a_format_is_text(text: str, name: str) -> None:
    assert told(text.encode(), name)[0] == "text · utf-8"


def test_bytes_that_are_no_text_are_one_failure() -> None:
    verdict, records = told(bytes(range(256)) * 40, "f.txt")
    assert verdict == "not text"
    assert failures(records) == [("f.txt", "not text")]


def test_an_empty_file_is_an_empty_text() -> None:
    (document,) = documents(b"", "f")
    assert document == Document("f", text="")


# ---- text


def bare(text: str) -> str:
    return "".join(text.split())


PIECES = st.lists(
    st.sampled_from(["\n\n", "\n", " ", "a", "茶", "word " * 5, "x" * 30, "\n\n\n", "\u2028"])
).map("".join)


@settings(max_examples=150, deadline=None)
@given(PIECES, st.integers(1, 50))
def test_passages_lose_nothing_but_white_space(text: str, limit: int) -> None:
    passages = list(split_passages(text, limit))
    assert bare("".join(passages)) == bare(text)
    assert all(len(passage) <= limit for passage in passages)
    assert passages == [""] or all(p and p == p.strip() for p in passages)


def reference_passages(text: str, limit: int) -> list[str]:
    """Paragraphs packed greedily, for texts in which every paragraph fits."""
    passages: list[str] = []
    for paragraph in text.split("\n\n"):
        if passages and len(passages[-1]) + 2 + len(paragraph) <= limit:
            passages[-1] += "\n\n" + paragraph
        else:
            passages.append(paragraph)
    return passages


def test_a_huge_line_is_cut_in_time_that_grows_with_its_length() -> None:
    text = "tea " * 1_000_000
    passages = list(split_passages(text, 8000))
    assert bare("".join(passages)) == bare(text)
    assert max(map(len, passages)) <= 8000


def test_passages_are_paragraphs_packed_greedily(rng: random.Random) -> None:
    for _ in range(200):
        paragraphs = ["\n".join(rng.choices(["tea", "茶叶", "rain"], k=rng.randrange(1, 5)))
                      for _ in range(rng.randrange(1, 30))]  # fmt: skip
        text, limit = "\n\n".join(paragraphs), rng.randrange(25, 80)
        assert list(split_passages(text, limit)) == reference_passages(text, limit)


def test_pieces_that_start_at_a_passage_give_the_passages_of_the_whole(rng: random.Random) -> None:
    text = "\n\n".join(f"{n} " + "茶 tea\n" * rng.randrange(1, 9) for n in range(60)) + "\n"
    whole = documents(text, passage_chars=200)
    assert len(whole) > 5
    lines = text.split("\n")
    for document in whole[1:]:
        line = int(document.source.split(":")[1])
        rest = "\n".join(lines[line - 1 :])
        pieces = documents(rest, passage_chars=200, first_line=line)
        assert pieces == whole[whole.index(document) :]


def test_passages_are_named_by_their_line_when_there_are_several() -> None:
    assert [d.source for d in documents("a\n\n\nb\n", passage_chars=200)] == ["f"]
    assert [d.source for d in documents("\na a\n\n\nb b\nc\n", passage_chars=5)] == ["f:2", "f:5"]


def test_front_matter_is_taken_off_and_a_rule_is_not() -> None:
    assert documents("---\ntitle: x\n---\nTea\n", "a.md")[0].text == "Tea"
    kept = "---\nTea is what\nwe drink\n---\nmore"
    assert documents(kept, "a.md")[0].text == kept
    assert documents("---\na: b\n", "a.md")[0].text == "---\na: b"


def test_a_bad_line_parts_the_text_and_is_counted() -> None:
    data = "茶\n\n小店\n".encode() * 3 + b"tea \xff\xfe\n" + "茶\n".encode()
    records = read(data, "f", encoding="utf-8")
    assert failures(records) == [("f:10", "undecodable bytes")]
    assert [r.source for r in records] == ["f:1", "f:10", "f:11"]


class Endless(io.RawIOBase):
    """`count` times the same bytes, made as they are read."""

    def __init__(self, unit: bytes, count: int) -> None:
        self._unit = unit * (1 + (1 << 16) // len(unit))
        self._left = len(unit) * count
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._left, len(self._unit) - self._at)
        buffer[:size] = self._unit[self._at : self._at + size]
        self._at = (self._at + size) % len(self._unit)
        self._left -= size
        return size


def peak_of(unit: bytes, size: int, name: str, **changes: Any) -> tuple[int, int]:
    """Peak memory in bytes and number of records of a file of about `size` bytes."""
    handle = io.BufferedReader(Endless(unit, size // len(unit)))
    tracemalloc.start()
    count = sum(1 for _ in read_blob(Blob(name, handle), options(**changes), str))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, count


@pytest.mark.parametrize(
    ("unit", "name"),
    [
        (("茶 tea " * 200 + "\n").encode(), "a.txt"),
        (("茶 tea " * 20 + "\n\n").encode(), "b.txt"),
        (json.dumps({"text": "tea " * 3000}).encode() + b"\n", "a.jsonl"),
        (b"[" + json.dumps({"text": "tea " * 3000}).encode() + b",", "a.json"),
        (b'"' + b"tea " * 3000 + b'",b\n', "a.csv"),
        (b"x" * 4096, "long.txt"),
        (b'{"text": "' + b"x" * 4096, "long.jsonl"),
        (b"[[" + b"x" * 4096, "long.json"),
        (b'"' + (b"x" * 500 + b"\n") * 16, "long.csv"),
        (b"<|im_start|>user\n" + (b"x" * 500 + b"\n") * 16, "a.chatml"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_memory_does_not_grow_with_the_file(unit: bytes, name: str) -> None:
    limit = {"max_record_bytes": 1 << 16}
    small, few = peak_of(unit, 3 << 20, name, **limit)
    large, many = peak_of(unit, 7 << 20, name, **limit)
    assert min(few, many) > 0
    assert large < small + (1 << 20)


# ---- HTML


def test_a_page_becomes_readable_text() -> None:
    (document,) = documents(SAMPLES / "page.html", "page.html")
    assert document.text == (
        "Tea & paper\n\nWhat we sell\n\nWe sell tea,\npaper & ink\xa0— and books.\n\n"
        "- black tea\n- 绿茶\n\nThing | Yuan\n信纸 | 12\n\ntwo  spaces\nnext line"
    )
    assert document.meta == {"title": "Tea & paper"}


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<html><body><p>a<p>b</body>", "a\n\nb"),
        ("<!doctype html><title>t</title><nav><p>everything in here", "everything in here"),
        ("<html><head><title>t</title><p>no body", "no body"),
        ("<html><![if IE]><p>茶<![endif]></html>", "茶"),
        ("<html><![CDATA[茶]]></html>", "茶"),
        ("<html><p>a &lt;b&gt; &#33590; &bogus; &", "a <b> 茶 &bogus; &"),
        ("<html><p>x</p></div></div><b><p>y", "x\n\ny"),
        ("<html><p>a<!-- no", "a"),
        ("<html><p>a<script>no", "a"),
        ("<html>", ""),
    ],
)
def test_broken_pages_are_read_as_far_as_they_go(page: str, text: str) -> None:
    assert readable(page)[1] == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(
    ["<", ">", "<p>", "</p>", "<!", "<![", "<!--", "-->", "]]>", "&", "&#", "<script>", "</", '"',
     "<a b='", "茶", "<?", "</script", "<title>", "<pre>", "<td>", "<nav>", "</nav>", "/>", "\0",
     "=", " ", "[", "<!x"]
)).map("".join))  # fmt: skip
def test_no_page_stops_the_reader(page: str) -> None:
    _, text = readable("<html>" + page)
    assert text == text.strip()
    assert "\n\n\n" not in text


def test_a_long_page_is_cut_into_passages() -> None:
    page = "<html><title>茶</title>" + "<p>word word</p>" * 60
    found = documents(page, "a.html", passage_chars=200)
    assert [d.source for d in found[:2]] == ["a.html#1", "a.html#2"]
    assert all(len(d.text or "") <= 200 and d.meta == {"title": "茶"} for d in found)
    assert sum((d.text or "").count("word word") for d in found) == 60


# ---- JSON and JSON Lines


@pytest.mark.parametrize("form", ["lines", "list", "pretty", "inside", "crlf", "stream"])
@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_rows_are_the_same_in_every_form_of_json(form: str, codec: str) -> None:
    rows = [{**row, "n": n, "note": "小店九点开门。外面的街上下着雨"} for n, row in enumerate(ROWS)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    text = {
        "lines": lines,
        "list": json.dumps(rows, ensure_ascii=False),
        "pretty": "\n \n" + json.dumps(rows, indent=2, ensure_ascii=False) + "\n",
        "inside": json.dumps({"version": "1", "data": rows}, indent=1, ensure_ascii=False),
        "crlf": lines.replace("\n", "\r\n"),
        "stream": "\n".join(json.dumps(row, indent=2, ensure_ascii=False) for row in rows),
    }[form]
    found = documents(text.encode(codec), "f")
    assert [said(d) for d in found] == [["茶 tea"], ["有茶吗？", "有的。"], ["第三 third"]]
    assert [d.meta["n"] for d in found] == [0, 1, 2]
    by_line = form in ("lines", "crlf")
    assert [d.source for d in found] == [f"f:{n}" if by_line else f"f[{n}]" for n in (1, 2, 3)]


def test_one_object_is_one_row_or_the_rows_in_it() -> None:
    row = {"messages": [{"role": "user", "content": "茶"}], "n": 1}
    assert [d.source for d in documents(json.dumps(row, indent=1))] == ["f:1"]
    assert [d.source for d in documents(json.dumps(row))] == ["f:1"]
    by_id = {"17": {"text": "茶"}, "4": {"text": "tea"}}
    assert [(d.source, d.text) for d in documents(json.dumps(by_id))] == [
        ("f[17]", "茶"), ("f[4]", "tea")
    ]  # fmt: skip
    assert failures(read('{"a": 1}', "f.json")) == [("f:1".replace("f", "f.json"), "bad row")]


def test_json_lines_are_what_one_row_after_the_other_gives(rng: random.Random) -> None:
    """The fast reader against `parse_row` on each line, over blocks of any border."""
    lines: list[bytes] = []
    for n in range(3000):
        kind = rng.randrange(12)
        text = "茶tea\u2028 " * rng.choice((0, 1, 5, 900))
        row = {"text": text, "n": n} if kind else {"prompt": text, "completion": "好"}
        line = json.dumps(row, ensure_ascii=bool(kind % 2)).encode()
        if kind == 3:
            line = rng.choice(
                (b"", b" \t", b"[1]", b"null", b'{"a": 1}', line[:-1], b"\xff", b"{}x")
            )
        lines.append(line)
    data = rng.choice((b"\n", b"\r\n")).join(lines) + rng.choice((b"", b"\n"))
    wanted = [parse_row(line, f"f.jsonl:{n}") for n, line in enumerate(lines, 7) if line.strip()]
    found = read(data, "f.jsonl", first_line=7)
    assert found == wanted
    assert len(data) > 2 << 20


def test_an_overlong_line_is_one_failure_wherever_it_lies(rng: random.Random) -> None:
    good = b'{"text": "a"}'
    for size in (2000, 3 << 20):
        long = b'{"text": "' + b"x" * size + b'"}'
        for lines in ([long, good, good], [good, long, good], [good, good, long], [long, long]):
            for end in (b"", b"\n"):
                records = read(b"\n".join(lines) + end, "f.jsonl", max_record_bytes=1500)
                assert [isinstance(r, Document) for r in records] == [x is good for x in lines]
                assert {r.reason for r in records if isinstance(r, Failure)} == {"line too long"}
                assert [r.source for r in records] == [
                    f"f.jsonl:{n}" for n in range(1, len(lines) + 1)
                ]


def test_the_entries_of_a_list_are_found_as_a_parser_finds_them(rng: random.Random) -> None:
    """The scanner against msgspec on valid lists, cut into blocks anywhere, at any depth."""

    def value(depth: int) -> Any:
        if depth > rng.choice((1, 3, 8)):
            return rng.choice([1, None, "a", 'q"\\', "茶[{", "\\", "\u2028", -1.5e3, True, ""])
        kind = rng.choice((list, dict))
        if kind is list:
            return [value(depth + 1) for _ in range(rng.randrange(4))]
        return {rng.choice('ab]茶"\\'): value(depth + 1) for _ in range(rng.randrange(4))}

    for _ in range(150):
        rows = [value(0) for _ in range(rng.randrange(8))]
        data = json.dumps(rows, indent=rng.choice((None, 1)), ensure_ascii=False).encode()[1:]
        step = rng.choice((1, 2, 7, 100, 5000))
        blocks = [data[n : n + step] for n in range(0, len(data), step)]
        found = list(elements(b"", iter(blocks), 1 << 16))
        assert [json.loads(element.data) for element in found] == rows
        assert not [element for element in found if element.problem]


def pretty(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=2, ensure_ascii=False).encode()


def one_line(rows: list[Any]) -> bytes:
    return json.dumps(rows, ensure_ascii=False).encode()


def line_each(rows: list[Any]) -> bytes:
    return (
        b"[\n" + b",\n".join(one_line(rows)[1:-1].replace(b"}, {", b"},\n{").split(b",\n")) + b"]"
    )


@pytest.mark.parametrize("write", [pretty, one_line, line_each])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"number 3", b"number \xff"),
        (b'number 3"', b"number 3"),
        (b'"number 3"', b"NaN"),
        (b'"number 3"', b"[" * 100_000 + b"]" * 100_000),
        (b'"number 3"', b"1" * 4301),
        (b'"number 3"', b'"\\ud800"'),
        (b'"number 3"', b'"a\x01b"'),
        (b'"number 3"', b"'number 3'"),
        (b'"number 3"', b'"number 3",'),
        (b'"number 3"', b"{"),
        (b'"number 3"', b"["),
        (b'"number 3"', b"}"),
        (b'"number 3"', b"]"),
    ],
    ids=lambda v: repr(v[:20]) if isinstance(v, bytes) else "",
)
def test_one_broken_entry_costs_one_entry(
    write: Any, wrapped: bool, old: bytes, new: bytes
) -> None:
    data = write([{"text": f"number {n}", "lang": "中文"} for n in range(6)]).replace(old, new)
    if wrapped:
        data = b'{"version": "1", "data": ' + data + b"}"
    records = read(data, "f.json")
    kept = [r.text for r in records if isinstance(r, Document)]
    assert kept == [f"number {n}" for n in (0, 1, 2, 4, 5)]
    assert failures(records)
    assert {reason for _, reason in failures(records)} <= {"bad JSON", "not an object"}


def test_a_list_that_is_cut_off_keeps_what_is_whole() -> None:
    data = one_line([{"text": f"number {n}"} for n in range(4)])
    for cut, kept in ((-1, 4), (-5, 3), (-25, 2)):
        records = read(data[:cut], "f.json")
        assert len([r for r in records if isinstance(r, Document)]) == kept
        assert [reason for _, reason in failures(records)] == ["bad JSON"]


def test_an_entry_that_is_too_long_is_passed_over(rng: random.Random) -> None:
    rows = [{"text": f"number {n}", "n": n} for n in range(5)]
    rows[2]["pad"] = ["x" * 900] * 5000
    data = json.dumps(rows).encode()
    records = read(data, "f.json", max_record_bytes=4000)
    assert [r.text for r in records if isinstance(r, Document)] == [
        "number 0", "number 1", "number 3", "number 4"
    ]  # fmt: skip
    assert failures(records) == [("f.json[3]", "record too long")]


def test_what_follows_a_list_is_counted() -> None:
    data = b'[{"text": "a"}] [7]'
    assert failures(read(data, "f.json")) == [("f.json[2]", "bad JSON")]
    assert failures(read(b'{"data": [{"text": "a"}],}', "f.json")) == [("f.json[2]", "bad JSON")]


def test_commas_too_many_or_too_few_are_no_loss() -> None:
    assert len(documents(b'[{"text": "a"},, {"text": "b"} {"text": "c"},]')) == 3


def test_no_bytes_stop_the_reading_of_json(rng: random.Random) -> None:
    bits = [b'{"text"', b":", b'"a"', b"}", b"{", b"[", b"]", b",", b"\xff", b"\x00", b"1", b'"',
            b"\n", b'"messages"', b"\\", b"u12", "茶".encode(), b"null", b"-", b"e9",
            b" "]  # fmt: skip
    for _ in range(1500):
        data = rng.choice((b"[{", b"{", b"[")) + b"".join(rng.choices(bits, k=rng.randrange(20)))
        records = read(data, rng.choice(("f.json", "f.jsonl", "f")))
        assert records or not data.strip(b"[], \n")


def test_a_damaged_conversation_is_not_taken_for_its_turns() -> None:
    (failure,) = read(b'{"messages": [{"role": "user", "content": "a"}, {"role": "assis', "f.json")
    assert failures([failure]) == [("f.json:1", "bad JSON")]


# ---- tables


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quote", ['"', "'", ""])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_dialect_of_a_table_is_found(
    delimiter: str, quote: str, end: str, rng: random.Random
) -> None:
    words = ["tea", "茶叶", "it is", "信纸。"] + (["a,b", "x;y"] if quote else [])
    rows = [[f"{n} {rng.choice(words)}", rng.choice(words), str(n)] for n in range(30)]
    lines = [["question", "answer", "n"], *rows]
    data = end.join(delimiter.join(f"{quote}{f}{quote}" for f in line) for line in lines) + end
    found = documents(data, "f.csv")
    assert [(*said(d), d.meta["n"]) for d in found] == [tuple(row) for row in rows]
    assert [d.source for d in found] == [f"f.csv:{n}" for n in range(2, 32)]


def test_rows_of_a_table_know_their_first_line_and_bad_ones_are_counted() -> None:
    data = 'text,label\n"two\nlines",a\nshort\n茶,b\n1,2,3\n\n"x, ""y""",c\n'
    records = read(data, "f.csv")
    assert [(r.source, said(r)) for r in records if isinstance(r, Document)] == [
        ("f.csv:2", ["two\nlines", "a"]), ("f.csv:5", ["茶", "b"]), ("f.csv:8", ['x, "y"', "c"]),
    ]  # fmt: skip
    assert failures(records) == [
        ("f.csv:4", "wrong number of columns"), ("f.csv:6", "wrong number of columns"),
    ]  # fmt: skip


def test_a_quote_that_is_not_closed_costs_one_row() -> None:
    good = "".join(f'"question {n}","答案 {n}"\n' for n in range(40))
    data = "question,answer\n" + good + '"open,never closed\n' + good
    records = read(data, "f.csv")
    assert failures(records) == [("f.csv:42", "unclosed quote")]
    assert len(records) == 81
    assert said(records[-1]) == ["question 39", "答案 39"]  # type: ignore[arg-type]


def test_sloppy_quotes_on_one_line_are_read() -> None:
    good = '"question","yes, it is"\n' * 40
    found = documents('question,answer\n"so "called" tea",有的。\n' + good, "f.csv")
    assert said(found[0]) == ['so called" tea"', "有的。"]
    assert said(found[1]) == ["question", "yes, it is"]


def test_a_bad_line_inside_a_row_takes_the_row_with_it() -> None:
    data = b'text,label\n"a\n\xff\xfe\nb",x\n\xe8\x8c\xb6,y\n'
    records = read(data, "f.csv", encoding="utf-8")
    assert failures(records) == [("f.csv:3", "undecodable bytes"), ("f.csv:2", "incomplete row")]
    assert [said(r) for r in records if isinstance(r, Document)] == [["茶", "y"]]


def test_wide_fields_are_read() -> None:
    long = "茶 tea " * 60_000
    (document,) = documents(f'text,n\n"{long}",1\n', "f.csv")
    assert document.text == long


def test_tables_without_a_header() -> None:
    assert [said(d) for d in documents("有茶吗？,有的。\nIs it?,Yes\n", "f.csv")] == [
        ["有茶吗？", "有的。"], ["Is it?", "Yes"]
    ]  # fmt: skip
    three = "to title\t茶\t饮料\nto title\ttea\tdrink\nto title\tx\ty\n"
    assert {reason for _, reason in failures(read(three, "f.tsv"))} == {"bad row"}
    mapped = documents(three, "f.txt", mapping={"user": "2", "assistant": "3"})
    assert [said(d) for d in mapped][:2] == [["茶", "饮料"], ["tea", "drink"]]
    assert [d.text for d in documents("text\n茶\ntea\n", "f.csv")] == ["茶", "tea"]


def test_a_header_that_only_the_map_knows() -> None:
    data = "frage|antwort\nHat es Tee?|Ja.\n有茶吗？|有的。\n"
    found = documents(data, "f", mapping={"user": "frage", "assistant": "antwort"})
    assert found[1].messages == PAIR
    (first, _) = read(data, "f.csv", mapping={"user": "question", "assistant": "antwort"})
    assert isinstance(first, Failure)
    assert "column question of --map user=question is not among the keys" in first.detail


def test_a_map_that_names_a_sender_changes_nothing_about_rows() -> None:
    pair = {"question": "有茶吗？", "answer": "有的。"}
    listed = json.dumps([pair, pair])
    turns = json.dumps({"messages": [{"role": "user", "content": "a"}] * 2, "id": 1})
    for data, name in (
        ("问题,答案\n有茶吗？,有的。\n".encode("gb18030"), "faq.csv"),
        ("有茶吗？,有的。\nIs it?,Yes\n".encode(), "headless.csv"),
        ("question\tanswer\n有茶吗？\t有的。\n".encode(), "told-by-its-content"),
        (b"to title\ttea\tdrink\nto title\tx\ty\n", "f.tsv"),
        (b"tea\ncoffee\n", "one.csv"),
        (b"text\ntea\n", "one-named.csv"),
        (listed.encode(), "f.json"),
        (f'{{"data": {listed}}}'.encode(), "f.json"),
        (turns.encode(), "f.json"),
        (turns[:-12].encode(), "cut-off.json"),
        (json.dumps(pair).encode() + b"\n", "f.jsonl"),
    ):
        plain = told(data, name)
        mapped = told(data, name, mapping={"assistant": "Anna"})
        if name == "f.tsv":  # the one that cannot be read without a map
            assert {reason for _, reason in failures(mapped[1])} == {"bad row"}
            assert len(mapped[1]) == len(plain[1])
        else:
            assert mapped == plain, name


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(['"', ",", "\n", "a", "茶", "\t", "'", ";", "\r\n", " ", "\\"])).map(
        "".join
    )
)
def test_no_text_stops_the_reading_of_tables(text: str) -> None:
    read("question,answer\na,b\n" + text, "f.csv")
    read(text + "x", "f.csv", max_record_bytes=20)


# ---- ChatML, ParlAI, ChatterBot


def test_chatml_that_is_not_quite_right() -> None:
    data = (
        "<|im_start|>user\n有茶吗？\n<|im_start|>assistant\n有的。<|im_end|>\n\n"
        "<|im_start|>user name=tom\none line<|im_end|><|im_start|>assistant\nyes<|im_end|>\n\n"
        "<|im_start|>narrator\nx<|im_end|>\n\n"
        "<|im_start|>user\na<|im_end|>\nstray\n\n"
        "<|im_start|>user\nlast<|im_end|>\n<|im_start|>assistant\n"
    )
    records = read(data)
    assert [(r.source, said(r)) for r in records if isinstance(r, Document)] == [
        ("f:1", ["有茶吗？", "有的。"]), ("f:6", ["one line", "yes"]), ("f:17", ["last"])
    ]  # fmt: skip
    assert failures(records) == [("f:10", "bad conversation"), ("f:13", "bad conversation")]


def test_dailydialog_has_a_conversation_a_line() -> None:
    chinese = "有茶吗？ __eou__ 有的。 __eou__ 谢谢 __eou__"
    text = f"Is there tea ? __eou__ Yes . __eou__\n{chinese}\n\nHi __eou__\n"
    verdict, records = told(text.encode(), "d.txt")
    assert verdict == "DailyDialog text · utf-8"
    first, second, third = records
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert said(first) == ["Is there tea ?", "Yes ."]
    assert said(second) == ["有茶吗？", "有的。", "谢谢"]
    assert [m.role for m in second.messages or ()] == ["user", "assistant", "user"]
    assert (first.source, second.source) == ("d.txt:1", "d.txt:2")
    assert failures([third]) == [("d.txt:4", "bad conversation")]


def test_numbers_behind_a_conversation_of_dailydialog_are_no_turn() -> None:
    lines = [
        "Hi __eou__ Yes ? __eou__\t1\t2 1\t0 4",
        "有茶吗？__eou__有。__eou__10\t块__eou__\t3\t2 1 1\t0 0 0 ",
        "How many ? __eou__ 12",
        "One ? __eou__\t1\t2\t0",
    ]
    records = told("\n".join(lines).encode(), "d.txt")[1]
    assert [said(record) for record in records if isinstance(record, Document)] == [
        ["Hi", "Yes ?"], ["有茶吗？", "有。", "10\t块"], ["How many ?", "12"]
    ]  # fmt: skip
    assert failures(records) == [("d.txt:4", "bad conversation")]


def test_prose_that_mentions_the_mark_of_dailydialog_stays_prose() -> None:
    text = "Its turns end with __eou__ marks.\n\nPeople speak in turn.\n\n茶在架子上。\n"
    assert told(text.encode())[0] == "text · utf-8"


def test_a_table_of_three_nameless_columns_is_not_taken_for_prose() -> None:
    text = "".join(f"Tea {n}.\t茶{n}。\tby {n}\n" for n in range(30))
    verdict, records = told(text.encode(), "pairs.txt")
    assert verdict == "TSV without header, 3 columns · utf-8"
    assert {reason for _, reason in failures(records)} == {"bad row"}
    mapped = documents(text, "pairs.txt", mapping={"user": "1", "assistant": "2"})
    assert said(mapped[7]) == ["Tea 7.", "茶7。"]


def test_parlai_lines_that_cannot_be_read() -> None:
    data = "text:a\tlabels:b\tepisode_done:True\nnonsense\ntext:c\tepisode_done:True\n"
    assert failures(read(data)) == [("f:2", "bad row"), ("f:3", "bad row")]


def test_yaml_that_is_broken_or_something_else() -> None:
    start = "categories:\n- a\nconversations:\n- - Hi\n  - Yes\n"
    assert said(documents(start)[0]) == ["Hi", "Yes"]
    assert failures(read(start + "- - 'open\n")) == [("f", "bad YAML")]
    assert failures(read(start + "- just text\n- - [a]\n")) == [
        ("f:6", "bad row"),
        ("f:7", "bad row"),
    ]
    assert failures(read("a: b\n", format="chatterbot")) == [("f", "bad YAML")]
    for deep in ("[" * 200_000, "[" * 200_000 + "]" * 200_000):
        assert failures(read(start + "- - " + deep)) == [("f", "bad YAML")]


# ---- columns and token ids


def arrow_files(rows: list[dict[str, Any]], schema: Any = None) -> dict[str, bytes]:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.Table.from_pylist(rows, schema=schema)
    out: dict[str, bytes] = {}
    for kind, opened in (("file", arrow.ipc.new_file), ("stream", arrow.ipc.new_stream)):
        sink = io.BytesIO()
        with opened(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
        out[kind] = sink.getvalue()
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    out["parquet"] = sink.getvalue()
    return out


@pytest.mark.parametrize("kind", ["file", "stream", "parquet"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_parquet_and_arrow(kind: str, on_disk: bool, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"茶 {n}"}], "n": n, "bytes": b"\xff"}
            for n in range(1500)]  # fmt: skip
    data: Any = arrow_files(rows)[kind]
    if on_disk:
        (tmp_path / "x").write_bytes(data)
        data = tmp_path / "x"
    verdict, _ = told(data, "x")
    assert verdict == ("Parquet" if kind == "parquet" else "Arrow")
    found = documents(data, "x")
    assert [(d.source, said(d), d.meta["n"]) for d in found] == [
        (f"x[{n + 1}]", [f"茶 {n}"], n) for n in range(1500)
    ]


def test_class_labels_of_hugging_face_get_their_names() -> None:
    arrow = pytest.importorskip("pyarrow")
    features = {"label": {"_type": "ClassLabel", "names": ["坏", "好"]}, "text": {}}
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = arrow.schema([("text", arrow.string()), ("label", arrow.int64())], metadata=noted)
    files = arrow_files([{"text": "茶", "label": 1}, {"text": "tea", "label": -1}], schema)
    for data in files.values():
        assert [said(d) for d in documents(data)] == [["茶", "好"], ["tea", "-1"]]


@pytest.mark.parametrize("kind", ["file", "stream", "parquet"])
def test_damaged_columns_are_failures(kind: str, rng: random.Random) -> None:
    data = arrow_files([{"text": f"茶 {n} " * 20} for n in range(300)])[kind]
    records = read(data[: len(data) // 2], "x")
    assert failures(records)[-1][1] in ("damaged Arrow", "damaged Parquet")
    for _ in range(30):
        broken = bytearray(data)
        for place in rng.sample(range(8, len(data)), 20):
            broken[place] ^= 1 << rng.randrange(8)
        read(bytes(broken), "x")


def test_a_length_beyond_all_memory_is_damage() -> None:
    import pyarrow

    data = arrow_files([{"text": f"茶 {n} " * 20} for n in range(300)])["stream"]
    reader = pyarrow.ipc.MessageReader.open_stream(data)
    body = list(reader)[1].body.size.to_bytes(8, "little")
    assert data.count(body) == 1
    records = read(data.replace(body, (1 << 60).to_bytes(8, "little")), "x")
    assert failures(records) == [("x", "damaged Arrow")]
    [failure] = [record for record in records if isinstance(record, Failure)]
    assert "more memory than there is" in str(failure)


def test_without_pyarrow_there_is_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def absent(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UsageError, match=r'Parquet needs pyarrow; pip install "chatbench\[data\]"'):
        read(b"PAR1" + b"x" * 100)


@pytest.fixture
def bytes_tokenizer(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate([*alphabet, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def packed_ids(path: Path, texts: list[str]) -> bytes:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    ids = [i for text in texts for i in (*tokenizer.encode(text).ids, 256)]
    return b"".join(i.to_bytes(2, "little") for i in ids)


def test_token_ids_become_text_again(
    bytes_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Tea.\n\n茶。", "小店九点开门。" * 50, "last 最后"]
    data = packed_ids(bytes_tokenizer, texts)
    for window in (1 << 15, 5, 7):
        monkeypatch.setattr("chatbench.corpus.formats.tokens._WINDOW", window)
        for place in (bytes_tokenizer, bytes_tokenizer.parent):
            found = documents(data, "train.bin", bin_tokenizer=str(place))
            assert [(d.source, d.text) for d in found] == [
                (f"train.bin[{n}]", text) for n, text in enumerate(texts, 1)
            ]
    cut = documents(data, "x", format="bin", bin_tokenizer=str(bytes_tokenizer), passage_chars=200)
    assert bare("".join(d.text or "" for d in cut)) == bare("".join(texts))


def test_a_line_of_token_ids_is_cut_where_it_is_too_long(
    bytes_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["tea 茶 " * 300 + "\nshort\n" + "x" * 100, "leaf " * 5]
    data = packed_ids(bytes_tokenizer, texts)
    found = []
    for window in (1 << 15, 64, 7):
        monkeypatch.setattr("chatbench.corpus.formats.tokens._WINDOW", window)
        found.append(documents(data, "t.bin", bin_tokenizer=str(bytes_tokenizer),
                               max_record_bytes=30))  # fmt: skip
    assert found[0] == found[1] == found[2]
    first, last = (d.text or "" for d in found[0])
    assert bare(first + last) == bare("".join(texts))
    lines = first.split("\n")
    assert max(map(len, lines)) <= 30
    assert all(set(line.split()) == {"tea", "茶"} for line in lines[: lines.index("short")])
    assert last == texts[1].strip()


def test_memory_does_not_grow_with_token_ids_that_never_end_a_line(bytes_tokenizer: Path) -> None:
    unit = packed_ids(bytes_tokenizer, ["tea leaf " * 200]).removesuffix(b"\x00\x01")
    given = {"bin_tokenizer": str(bytes_tokenizer), "max_record_bytes": 1 << 14}
    small, few = peak_of(unit, 3 << 20, "t.bin", **given)
    large, many = peak_of(unit, 7 << 20, "t.bin", **given)
    assert few < many
    assert large < small + (1 << 19)


def test_token_ids_that_cannot_be_read(bytes_tokenizer: Path, tmp_path: Path) -> None:
    data = packed_ids(bytes_tokenizer, ["茶"])
    (failure,) = read(data, "train.bin")
    assert isinstance(failure, Failure)
    assert failure.reason == "token ids without a tokenizer"
    assert "--bin-tokenizer" in failure.detail
    given = {"bin_tokenizer": str(bytes_tokenizer)}
    assert failures(read(data + b"x", "t.bin", **given)) == [("t.bin", "odd number of bytes")]
    assert failures(read(b"\xff\xff" + data, "t.bin", **given)) == [
        ("t.bin[1]", "unknown token ids")
    ]
    with pytest.raises(UsageError, match="does not exist"):
        read(data, "t.bin", bin_tokenizer=str(tmp_path / "absent"))
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UsageError, match="is no tokenizer"):
        read(data, "t.bin", bin_tokenizer=str(tmp_path / "bad.json"))


# ---- real data


def real_files() -> list[Path]:
    if not SHARED_DATA.is_dir():
        return []
    found = (path for path in SHARED_DATA.rglob("*") if path.is_file())
    return sorted(path for path in found if path.stat().st_size < 1 << 20)


def opened(path: Path) -> Iterator[Blob]:
    """The file as it is, and gzip."""
    with open(path, "rb") as handle:
        packed = handle.peek(2)[:2] == b"\x1f\x8b"
        if not packed:
            yield Blob(path.name, handle, path)
            return
        with io.BufferedReader(gzip.open(handle)) as unpacked:  # type: ignore[arg-type]
            yield Blob(path.name, unpacked)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no shared data")
def test_every_real_file_gives_records_and_no_exception() -> None:
    files = real_files()
    assert len(files) > 500
    for path in files:
        for blob in opened(path):
            verdicts: list[str] = []
            # The first thousand records of each, for the tests have to be quick.
            count = sum(1 for _ in islice(read_blob(blob, options(), verdicts.append), 1000))
            assert len(verdicts) == 1, path
            assert count or path.stat().st_size == 0, path


REAL = [
    ("banking77/train.csv", 10003, "labelled", 0),
    ("bitext-support/Bitext_Sample_Customer_Service_Validation_Dataset.csv", 810, "labelled", 0),
    ("cold-zh/cold-dev.csv.gz", 6431, "labelled", 0),
    ("sms-spam/spam.csv", 5572, "labelled", 0),
    ("toxicity-en/toxicity_en.csv.gz", 1000, "labelled", 0),
    ("cdial-zh/toy_train.txt.gz", 10000, "prompt", 0),
    ("personality-chat/qna_chitchat_professional.tsv.gz", 8398, "prompt", 0),
    ("chatterbot-corpus/english/ai.yml", 105, "chatterbot", 0),
    ("chatterbot-corpus/chinese/ai.yml", 56, "chatterbot", 0),
    ("kdconv-zh/film-dev.json.gz", 150, "messages", 0),
    ("sgd/dev-dialogues_001.json.gz", 128, "messages", 0),
    ("drcd-zh/DRCD_dev.json.gz", 3524, "prompt", 0),
    ("cmrc2018-zh/cmrc2018_trial.json.gz", 1002, "prompt", 0),
    ("xquad/xquad.zh.json.gz", 1190, "prompt", 0),
    ("gsm8k/train.jsonl.gz", 7473, "prompt", 0),
    ("llamafactory-demo/alpaca_zh_demo.json.gz", 1000, "alpaca", 0),
    ("llamafactory-demo/dpo_zh_demo.json.gz", 300, "preference", 0),
    ("llamafactory-demo/v1_dpo_demo.jsonl", 10, "preference", 0),
    ("llamafactory-demo/kto_en_demo.json.gz", 300, "unpaired", 0),
    ("llamafactory-demo/glaive_toolcall_zh_demo.json.gz", 300, "sharegpt", 0),
    ("llamafactory-demo/reason_tool_use_demo_50.jsonl", 50, "messages", 0),
    ("docs-zh/vue-zh.jsonl.gz", None, "text", 0),
]  # fmt: skip


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no shared data")
@pytest.mark.parametrize(("name", "count", "shape", "failed"), REAL, ids=[row[0] for row in REAL])
def test_what_real_sets_become(name: str, count: int | None, shape: str, failed: int) -> None:
    found: Counter[str] = Counter()
    for blob in opened(SHARED_DATA / name):
        for record in read_blob(blob, options(), str):  # type: ignore[arg-type]
            found[record.shape if isinstance(record, Document) else "failed"] += 1
    assert found["failed"] == failed
    assert set(found) - {"failed"} == {shape}
    assert count is None or found[shape] == count


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no shared data")
def test_crosswoz_dialogues_alternate_between_user_and_assistant() -> None:
    with zipfile.ZipFile(SHARED_DATA / "crosswoz-zh" / "val.json.zip") as archive:
        (name,) = archive.namelist()
        found = documents(archive.read(name), name)
    assert len(found) == 500
    assert sum(len(d.messages or ()) for d in found) == 8458
    roles = [[m.role for m in d.messages or ()] for d in found]
    assert all(row == ["user", "assistant"] * (len(row) // 2) for row in roles)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no shared data")
def test_the_json_test_suite_gives_records_only() -> None:
    with tarfile.open(SHARED_DATA / "messy-encodings" / "json-test-suite.tar.gz") as archive:
        members = [m for m in archive.getmembers() if m.isfile()]
        assert len(members) > 200
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            data = file.read()
            for form in ("json", "jsonl"):
                records = read(data, member.name, format=form)
                assert records or not data.strip(b"[], \n\t\xef\xbb\xbf"), member.name
                if "/n_" in member.name and form == "json":
                    assert not [r for r in records if isinstance(r, Document)], member.name
                # As a row of a list and of lines, no neighbour is lost.
                if form == "jsonl" and b"\n" not in data and b"\0" not in data and data.isascii():
                    lines = b'{"text": "a"}\n' + data + b'\n{"text": "b"}\n'
                    kept = [r for r in read(lines, "f.jsonl") if isinstance(r, Document)]
                    assert [kept[0].text, kept[-1].text] == ["a", "b"]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no shared data")
def test_the_csv_spectrum_has_the_fields_that_it_says() -> None:
    folder = SHARED_DATA / "messy-encodings" / "csv-spectrum"
    for path in sorted((folder / "csvs").iterdir()):
        wanted = json.loads((folder / "json" / f"{path.stem}.json").read_bytes())
        columns = list(wanted[0])
        mapping = {"user": columns[0], "assistant": columns[1]}
        found = documents(path, path.name, mapping=mapping)
        rows = [{**dict(zip(columns, said(d), strict=False)), **d.meta} for d in found]
        assert rows == [
            {key: value.replace("\r\n", "\n") for key, value in row.items()} for row in wanted
        ]


def test_the_help_names_every_format() -> None:
    from chatbench.config import leaves
    from chatbench.settings import PreprocessSettings

    (leaf,) = [leaf for leaf in leaves(PreprocessSettings) if leaf.name == "format"]
    assert leaf.meta is not None
    assert leaf.meta.description is not None
    listed = leaf.meta.description.partition(": ")[2].replace(" (by content)", "").split(",")
    assert sorted(name.strip() for name in listed) == sorted(names())
