"""Every accepted form is read; one bad record never stops a file and is named with its line."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbench.conversation import Message, exchange
from chatbench.corpus.document import Document, Failure
from chatbench.corpus.readers import (
    find_files,
    parse_row,
    read_file,
    split_passages,
)
from chatbench.errors import DataError, EnvironmentFault, UsageError
from conftest import write_jsonl

LENGTH = 8000
TEXT = "茶 tea\n\nsecond paragraph 👩‍👧"
CHAT = [{"role": "user", "content": "茶?"}, {"role": "assistant", "content": "Yes."}]


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def documents(path: Path, length: int = LENGTH) -> list[Document]:
    found = list(read_file(path, length))
    assert not [record for record in found if isinstance(record, Failure)], found
    return [record for record in found if isinstance(record, Document)]


def rows_text(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ---- forms


@pytest.mark.parametrize("name", ["a.txt", "b.md", "no-ending", "strange.json"])
def test_prose_is_told_by_its_content(tmp_path: Path, name: str) -> None:
    (document,) = documents(written(tmp_path / name, f"\n{TEXT}\n"))
    assert document == Document(str(tmp_path / name), text=TEXT)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": TEXT}, TEXT),
        ({"messages": CHAT}, exchange("茶?", "Yes.")),
        ({"prompt": "茶?", "completion": "Yes."}, exchange("茶?", "Yes.")),
        ({"prompt": "茶?", "response": "Yes."}, exchange("茶?", "Yes.")),
        ({"question": "茶?", "answer": "Yes."}, exchange("茶?", "Yes.")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("form", ["lines", "list", "pretty", "gzip", "bom", "crlf", "one line"])
def test_every_kind_of_row_is_read_from_every_form(
    tmp_path: Path, row: dict[str, Any], expected: Any, form: str
) -> None:
    rows = [{**row, "facts": ["x"], "source": "theirs", "n": n} for n in range(3)]
    lines = rows_text(rows)
    data = {
        "lines": lines.encode(),
        "list": json.dumps(rows).encode(),
        "pretty": b"\n \n" + json.dumps(rows, indent=2, ensure_ascii=False).encode(),
        "gzip": gzip.compress(lines.encode()),
        "bom": b"\xef\xbb\xbf" + lines.encode(),
        "crlf": lines.replace("\n", "\r\n").encode(),
        "one line": json.dumps(rows[0]).encode(),
    }[form]
    found = documents(written(tmp_path / "rows", data))
    assert len(found) == (1 if form == "one line" else 3)
    for number, document in enumerate(found):
        place = f"[{number + 1}]" if form in ("list", "pretty") else f":{number + 1}"
        assert document.source == f"{tmp_path / 'rows'}{place}"
        assert (document.messages or document.text) == expected
        assert document.meta == {"facts": ["x"], "n": number}


def test_prose_with_bom_crlf_or_gzip_is_the_same_prose(tmp_path: Path) -> None:
    for number, data in enumerate(
        (
            b"\xef\xbb\xbf" + TEXT.encode(),
            TEXT.replace("\n", "\r\n").encode(),
            gzip.compress(TEXT.encode()),
        )
    ):
        (document,) = documents(written(tmp_path / f"{number}.txt", data))
        assert document.text == TEXT


def test_blank_lines_are_no_records(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '\n{"text": "a"}\n\n  \n{"text": "b"}\n')
    assert [d.source[-2:] for d in documents(path)] == [":2", ":5"]


def test_a_written_row_reads_back_as_the_same_document(tmp_path: Path) -> None:
    before = [
        Document("s:1", text=TEXT, meta={"n": 1}),
        Document("s:2", messages=exchange("q", "a", "be kind"), meta={"note": "x", "facts": []}),
    ]
    path = write_jsonl(tmp_path / "val.jsonl", [document.as_row() for document in before])
    after = documents(path)
    assert [(d.text, d.messages, d.meta) for d in after] == [
        (d.text, d.messages, d.meta) for d in before
    ]
    assert [d.digest() for d in after] == [d.digest() for d in before]


def test_bad_json_in_line_3_of_5_is_one_failure_and_the_others_are_kept(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"number {n}"}) for n in range(1, 6)]
    lines[2] = '{"text": "numb'
    path = written(tmp_path / "rows.jsonl", "\n".join(lines))
    records = list(read_file(path, LENGTH))
    (failure,) = (record for record in records if isinstance(record, Failure))
    assert failure.source == f"{path}:3"
    assert failure.reason == "bad JSON"
    assert failure.original == '{"text": "numb'
    assert records.index(failure) == 2
    assert [r.text for r in records if isinstance(r, Document)] == [
        f"number {n}" for n in (1, 2, 4, 5)
    ]


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b'{"text": NaN}', "bad JSON", ""),
        (b'{"text": "a", "n": 1e999}', "bad JSON", ""),
        (b'{"text": "a"} {"text": "b"}', "bad JSON", "trailing"),
        (b'{"text": "\\ud800"}', "bad JSON", ""),
        (b'{"text": "\xff\xfe"}', "bad JSON", ""),
        (b'{"text": "a\x00b"}', "bad JSON", ""),
        (b'{"a":' * 100_000, "bad JSON", ""),
        (b"[" * 100_000 + b"]" * 100_000, "bad JSON", ""),
        (b"[1, 2]", "not an object", "list"),
        (b'"text"', "not an object", "str"),
        (b"null", "not an object", "NoneType"),
        (b"{}", "bad row", "(none)"),
        (b'{"txt": "a", "label": 1}', "bad row", "keys txt, label hold neither"),
        (b'{"prompt": "a"}', "bad row", "keys prompt hold neither"),
        (b'{"text": 5}', "bad row", "text is not a string"),
        (b'{"prompt": "a", "completion": null}', "bad row", "completion is not a string"),
        (b'{"question": ["a"], "answer": "b"}', "bad row", "question is not a string"),
        (b'{"messages": "hi"}', "bad row", "messages is not a list"),
        (b'{"messages": []}', "bad row", "messages is not a list with entries"),
        (b'{"messages": [{"role": "bot", "content": "x"}]}', "bad row", "role 'bot'"),
        (b'{"messages": [{"role": "user", "content": 1}]}', "bad row", "no text in content"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_a_bad_row_says_what_is_wrong_and_keeps_the_original(
    line: bytes, reason: str, detail: str
) -> None:
    failure = parse_row(line + b"\r\n", "file:1")
    assert isinstance(failure, Failure)
    assert (failure.source, failure.reason) == ("file:1", reason)
    assert detail in failure.detail
    assert failure.original.encode() == line or "\\x" in failure.original
    msgspec.json.encode(failure)


def test_any_bytes_give_a_record_that_can_be_stored(rng: random.Random) -> None:
    pieces = [b'{"text"', b":", b'"a"', b"}", b"{", b"[", b"]", b",", b"\xff", b"\x00", b"1", b'"',
              b'"messages"', b"\\", b"u12", "茶".encode(), b"null", b"-", b"e9"]  # fmt: skip
    for _ in range(3000):
        record = parse_row(b"".join(rng.choices(pieces, k=rng.randrange(9))), "f:1")
        msgspec.json.encode(record)


@pytest.mark.parametrize("inner", [b"[" * 100_000 + b"]" * 100_000, b"NaN", b"{"])
def test_a_damaged_list_is_one_failure(tmp_path: Path, inner: bytes) -> None:
    path = written(tmp_path / "a.json", b'[{"text": "a"}, {"text": ' + inner + b"}]")
    (failure,) = read_file(path, LENGTH)
    assert isinstance(failure, Failure)
    assert (failure.source, failure.reason) == (str(path), "bad JSON")


def test_a_bad_entry_of_a_list_leaves_the_others(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", '[{"text": "a"}, {"text": 5}, 7, {"text": "b"}]')
    one, two, three, four = read_file(path, LENGTH)
    assert isinstance(one, Document)
    assert isinstance(four, Document)
    assert isinstance(two, Failure)
    assert isinstance(three, Failure)
    assert (two.source, three.reason) == (f"{path}[2]", "not an object")


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        ("naïve".encode("latin-1"), "not UTF-8", "byte 2"),
        ("小店".encode("gbk"), "not UTF-8", "byte 2"),
        ("tea".encode("utf-16"), "not UTF-8", "byte 0"),
        (b"tea\x00", "not text", "NUL"),
        (gzip.compress(b"tea " * 500, mtime=0)[:-9], "damaged gzip", ""),
        (gzip.compress(b"tea", mtime=0)[:5], "damaged gzip", ""),
        (b"\x1f\x8bnothing of the kind", "damaged gzip", ""),
    ],
)
def test_a_file_that_is_no_text_is_one_failure(
    tmp_path: Path, data: bytes, reason: str, detail: str
) -> None:
    path = written(tmp_path / "f", data)
    (failure,) = read_file(path, LENGTH)
    assert isinstance(failure, Failure)
    assert (failure.source, failure.reason) == (str(path), reason)
    assert detail in failure.detail


def test_no_flipped_bit_of_a_gzip_goes_unnoticed_or_stops_the_reading(
    tmp_path: Path, rng: random.Random
) -> None:
    whole = rows_text([{"text": f"{n} {rng.random()}"} for n in range(40)])
    packed = gzip.compress(whole.encode(), mtime=0)
    path = tmp_path / "a.jsonl.gz"
    for bit in rng.sample(range(16, 8 * len(packed)), 200):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        records = list(read_file(written(path, damaged), LENGTH))
        texts = [record.text for record in records if isinstance(record, Document)]
        if len(texts) == len(records):
            # Only notes in the header and padding may change without a trace.
            assert "".join(f'{{"text": "{text}"}}\n' for text in texts) == whole


# ---- finding files


def test_a_folder_is_walked_without_hidden_entries_in_one_order(tmp_path: Path) -> None:
    names = "b.txt a/z.txt a/.hidden.txt .git/config a/.x/y.txt ä.txt B.txt"
    for name in names.split():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    os.mkfifo(tmp_path / "in" / "pipe")
    (tmp_path / "in" / "a" / "loop").symlink_to(tmp_path / "in")
    found = find_files([str(tmp_path / "in"), str(tmp_path / "in" / "b.txt")])
    assert [p.relative_to(tmp_path / "in").as_posix() for p in found] == [
        "B.txt", "a/z.txt", "b.txt", "ä.txt"
    ]  # fmt: skip


def test_a_path_that_is_not_there_is_a_usage_error_and_an_empty_folder_has_no_data(
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match="absent does not exist"):
        find_files([str(tmp_path), str(tmp_path / "absent")])
    (tmp_path / ".hidden").touch()
    with pytest.raises(DataError, match="no files in"):
        find_files([str(tmp_path)])


def test_a_hidden_file_that_is_named_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / ".notes", TEXT)
    assert find_files([str(path)]) == [path]


def test_a_file_that_vanished_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"cannot read .*gone: No such file"):
        list(read_file(tmp_path / "gone", LENGTH))


def test_a_file_name_that_is_not_utf_8_can_be_stored(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))
    try:
        written(path, TEXT)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (document,) = documents(path)
    assert document.source == f"{tmp_path}/caf\\xe9.txt"
    msgspec.json.encode(document)


# ---- passages


def bare(text: str) -> str:
    return "".join(text.split())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["\n\n", "\n", " ", "a", "茶", "word " * 5, "x" * 30, "\r", "\u2028"]))
    .map("".join),
    st.integers(1, 50),
)  # fmt: skip
def test_passages_lose_nothing_but_white_space(text: str, limit: int) -> None:
    passages = list(split_passages(text, limit))
    assert bare("".join(passages)) == bare(text)
    assert all(passage == passage.strip() for passage in passages)
    assert all(len(passage) <= limit for passage in passages)
    assert all(passages) or passages == [""]
    assert passages


def test_passages_are_cut_at_blank_lines_then_lines_then_anywhere() -> None:
    assert list(split_passages("aaaa\n\nbbb\n\ncc", 10)) == ["aaaa", "bbb\n\ncc"]
    assert list(split_passages("aaaa\nbbbb\ncccc", 10)) == ["aaaa\nbbbb", "cccc"]
    assert list(split_passages("茶" * 25, 10)) == ["茶" * 10, "茶" * 10, "茶" * 5]
    assert list(split_passages("short\n\ntext", 200)) == ["short\n\ntext"]
    assert list(split_passages("", 10)) == [""]
    assert list(split_passages("\n" * 100, 10)) == [""]


def test_passages_of_a_file_are_numbered(tmp_path: Path) -> None:
    path = written(tmp_path / "book.txt", "a" * 150 + "\n\n" + "b" * 150)
    assert [d.source for d in documents(path, 200)] == [f"{path}#1", f"{path}#2"]


# ---- documents


def test_a_digest_depends_on_the_content_alone() -> None:
    text = Document("a", text="hi", meta={"n": 1})
    assert text.digest() == Document("b:7", text="hi").digest()
    assert len(text.digest()) == 16
    others = [
        Document("a", text="h i"),
        Document("a", messages=(Message("user", "hi"),)),
        Document("a", messages=(Message("assistant", "hi"),)),
        Document("a", messages=(Message("user", "h"), Message("user", "i"))),
    ]
    assert len({document.digest() for document in (text, *others)}) == 5


def test_a_digest_does_not_see_what_a_model_does_not_see() -> None:
    assert Document("a", text=" caf\u00e9\n").digest() == Document("b", text="cafe\u0301").digest()
    chat = (Message("user", "hi "), Message("assistant", "\u00e9"))
    same = (Message("user", "hi"), Message("assistant", "e\u0301\n"))
    assert Document("a", messages=chat).digest() == Document("b", messages=same).digest()


def test_a_pair_may_bring_its_system_prompt(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "f.jsonl",
        [{"prompt": "q", "completion": "a", "system": "be kind"},
         {"prompt": "q", "completion": "a", "system": 7},
         {"messages": [{"role": "user", "content": "q"}], "text": None}],
    )  # fmt: skip
    good, bad, chat = read_file(path, LENGTH)
    assert good == Document(f"{path}:1", messages=exchange("q", "a", "be kind"))
    assert isinstance(bad, Failure)
    assert isinstance(chat, Document)
    assert chat.meta == {}
