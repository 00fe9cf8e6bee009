"""classify: whatever comes in goes out in its form and order, with a label and a confidence."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbench.classify.reading import Row, open_table
from chatbench.classify.run import Pipe, classify
from chatbench.classify.writing import free
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.errors import DataError, ExitCode, UsageError
from chatbench.settings import ClassifySettings


class Lengths:
    """Labels texts by how long they are; how sure it is hangs on that as well."""

    labels = ("short", "长", "a\tb")
    cut = 0

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def probabilities(self, texts: Sequence[str]) -> torch.Tensor:
        self.asked.append([*texts])
        rows = [[8.0 - len(text) % 3, len(text) % 5, 1.0] for text in texts]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).softmax(-1)


Out = Callable[..., tuple[str, str, int]]


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Out:
    """(stdout, stderr, broken rows) of bytes in a file of this name."""

    def out(data: bytes, name: str, **changes: Any) -> tuple[str, str, int]:
        path = tmp_path / name
        path.write_bytes(data)
        mapping = changes.pop("mapping", {})
        form, encoding = changes.pop("format", "auto"), changes.pop("encoding", "auto")
        options = ReadOptions(form, encoding, mapping)
        pipe = Pipe(Lengths(), ClassifySettings(model="", **changes))
        capfd.readouterr()
        pipe.run(open_table(path, options, pipe.flush))
        said = capfd.readouterr()
        return said.out, " ".join(said.err.split()), pipe.tally.broken

    return out


def expected(text: str) -> tuple[str, float]:
    (row,) = Lengths().probabilities([text.strip() and text]).tolist()
    best = max(range(3), key=row.__getitem__)
    return Lengths.labels[best], row[best]


def test_a_table_comes_back_with_two_columns_more(run: Out, rng: random.Random) -> None:
    rows = [
        [str(n), rng.choice(("card", "卡，丢了", 'a "quoted" one', "two\nlines", "a,b")) + "!" * n]
        for n in range(40)
    ]
    text = io.StringIO()
    csv.writer(text).writerows([["id", "text"], *rows])
    out, err, broken = run(text.getvalue().encode("utf-8-sig"), "rows.csv", batch_size=3)
    assert not broken
    assert not err
    header, *found = csv.reader(io.StringIO(out))
    assert header == ["id", "text", "label", "confidence"]
    assert [row[:2] for row in found] == rows
    for row in found:
        label, confidence = expected(row[1])
        assert row[2] == " ".join(label.split())
        assert float(row[3]) == pytest.approx(confidence, abs=1e-6)


@pytest.mark.parametrize("codec", ["utf-8", "gb18030", "utf-16"])
def test_encodings_are_found_or_named(run: Out, codec: str) -> None:
    rows = [f"{n}\t银行卡丢了怎么办，我已经等了很久 {n}" for n in range(30)]
    data = "\n".join(["编号\t内容", *rows, ""]).encode(codec)
    for encoding in ("auto", codec):
        out, _, broken = run(data, "rows.tsv", encoding=encoding)
        assert not broken
        lines = out.splitlines()
        assert lines[0] == "编号\t内容\tlabel\tconfidence"
        assert [line.rsplit("\t", 2)[0] for line in lines[1:]] == rows


def test_json_lines_keep_their_keys(run: Out) -> None:
    rows: list[Any] = [
        {"id": 1, "review": "很好", "nested": {"a": [1]}},
        {"review": "bad", "label": "old"},
        "a bare text",
    ]
    data = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    out, _, broken = run(data, "rows.jsonl", top_k=2)
    first, second, third = map(json.loads, out.splitlines())
    assert not broken
    assert first["nested"] == {"a": [1]}
    assert first["label"] == expected("很好")[0]
    assert first["labels"][0]["label"] == first["label"]
    assert len(first["labels"]) == 2
    assert second["label"] == "old"
    assert second["predicted_label"] == expected("bad")[0]
    assert third["text"] == "a bare text"


def test_lines_get_their_label_before_them(run: Out) -> None:
    out, _, _ = run("one text\n\n另一个\ttext\n".encode(), "lines.txt")
    lines = out.splitlines()
    assert [line.split("\t")[2] for line in lines] == ["one text", "另一个 text"]
    assert [line.split("\t")[0] for line in lines] == [
        " ".join(expected(t)[0].split()) for t in ("one text", "另一个\ttext")
    ]


def test_anything_becomes_json_where_that_is_asked(run: Out) -> None:
    out, _, _ = run(b"id,text\n7,hello there\n", "rows.csv", json=True)
    (row,) = map(json.loads, out.splitlines())
    assert (row["id"], row["text"]) == ("7", "hello there")
    assert row["label"] == expected("hello there")[0]
    out, _, _ = run(b"hello there\n", "rows.txt", json=True)
    assert json.loads(out)["text"] == "hello there"


def test_broken_rows_are_told_counted_and_keep_their_place(run: Out) -> None:
    data = b'{"text": "a"}\nno json\n{"text": ""}\n{"other": "b"}\n[1]\n{"text": "c"}\n'
    out, err, broken = run(data, "rows.jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row.get("line") for row in rows] == [None, 2, 3, 4, 5, None]
    assert broken == 4
    assert "line 2: no JSON" in err
    assert "4 rows could not be classified" in err
    table = b"id,text\n1,a\n2\n3,\n4,d\n"
    out, err, broken = run(table, "rows.csv")
    assert broken == 2
    assert "line 3: 1 fields instead of 2" in err
    assert "line 4: empty text" in err
    assert [line.split(",")[0] for line in out.splitlines()] == ["id", "1", "4"]


def test_a_line_that_does_not_decode_is_broken(run: Out) -> None:
    out, err, broken = run(b"one\nt\xffwo\nthree\n", "rows.txt", encoding="utf-8")
    assert broken == 1
    assert "line 2" in err
    assert [line.rsplit("\t", 1)[1] for line in out.splitlines()] == ["one", "three"]


def test_columns_are_found_or_named(run: Out) -> None:
    table = b"nr;frage;thema\n1;Wo ist sie?;x\n"
    with pytest.raises(UsageError, match="several columns: nr, frage, thema"):
        run(table, "rows.csv")
    out, _, _ = run(table, "rows.csv", mapping={"text": "frage"})
    assert out.splitlines()[0] == "nr;frage;thema;label;confidence"
    with pytest.raises(UsageError, match="no column fragge"):
        run(table, "rows.csv", mapping={"text": "fragge"})
    bare = b"1,where is it\n2,here it is\n"
    out, _, _ = run(bare, "rows.csv", mapping={"text": "2"})
    assert out.splitlines()[0].startswith("1,where is it,")
    out, _, _ = run(b"label,text\nold,a\n", "rows.csv")
    assert out.splitlines()[0] == "label,text,predicted_label,predicted_confidence"


@pytest.mark.parametrize("head", ["id,text", '"text",id', "\ttext", "文本;编号", "编号,内容 a"])
def test_names_of_columns_make_a_table_whatever_follows(run: Out, head: str) -> None:
    """A pipe has often brought no row yet, or a broken one."""
    mapping = {"text": "内容 a"} if "内容" in head else {}
    part = next(mark for mark in ",;\t" if mark in head)
    good, short, long = f"a{part}b", "一", f"a{part}b{part}c"
    for rows in ([good], [short], [short, "", good], [good, long, good], [good, "", good]):
        out, _, broken = run("\n".join([head, *rows, ""]).encode(), "stdin", mapping=mapping)
        first, *answers = out.splitlines()
        assert first == head.replace('"', "") + f"{part}label{part}confidence"
        assert len(answers) == rows.count(good)
        assert broken == rows.count(short) + rows.count(long)


def test_a_table_is_one_before_its_first_row(tmp_path: Path) -> None:
    path = tmp_path / "stdin"
    path.write_text("text,id\n", "utf-8")
    assert open_table(path, ReadOptions()).form == "csv"


@pytest.mark.parametrize(
    "line", ["Text, please", "hello,world", "text me", "Well, text", "文本，好"]
)
def test_a_sentence_is_no_header(run: Out, line: str) -> None:
    out, _, broken = run(f"{line}\nand more\n".encode(), "stdin")
    assert not broken
    assert [row.rsplit("\t", 1)[1] for row in out.splitlines()] == [line, "and more"]


def test_names_that_are_taken_give_way() -> None:
    assert free(("label", "confidence"), ("text",)) == ["label", "confidence"]
    taken = ("label", "predicted_label")
    assert free(("label", "confidence"), taken)[0] == "predicted_predicted_label"


def test_packed_files_are_read(run: Out, tmp_path: Path) -> None:
    out, _, _ = run(gzip.compress(b"text\nhello\nthere\n"), "rows.csv.gz")
    assert [line.split(",")[0] for line in out.splitlines()] == ["text", "hello", "there"]
    cut = gzip.compress(b"text\n" + b"".join(b"%d\n" % n for n in range(50_000)))
    _, err, broken = run(cut[: len(cut) // 2], "rows.csv.gz")
    assert broken == 1
    assert "1 rows could not be classified" in err


def test_a_report_counts_labels(run: Out) -> None:
    texts = ["a", "bb", "ccc", "dddd", "eeeee"]
    data = "\n".join(texts).encode()
    out, _, _ = run(data, "rows.txt", report=True)
    header, *lines = (line.split("\t") for line in out.splitlines())
    assert header == ["label", "rows", "share", "confidence"]
    assert sum(int(line[1]) for line in lines) == 5
    out, _, _ = run(data, "rows.txt", report=True, json=True)
    told = json.loads(out)
    assert (told["rows"], told["broken"]) == (5, 0)
    assert set(told["labels"]) == set(Lengths.labels)
    for label, found in told["labels"].items():
        own = [p for name, p in map(expected, texts) if name == label]
        assert found["rows"] == len(own)
        assert found["share"] == pytest.approx(len(own) / 5)
        if own:
            assert found["confidence"] == pytest.approx(sum(own) / len(own), abs=1e-6)


def test_windows_of_rows_are_judged_together_and_stay_in_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("".join(f"text {n}\n" for n in range(50)), "utf-8")
    judge = Lengths()
    pipe = Pipe(judge, ClassifySettings(model="", batch_size=2))
    pipe.run(open_table(path, ReadOptions()))
    assert [len(each) for each in judge.asked] == [16, 16, 16, 2]
    assert [text for each in judge.asked for text in each] == [f"text {n}" for n in range(50)]


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, run: Out) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_table(tmp_path / "nowhere.csv", ReadOptions())
    with pytest.raises(UsageError, match="is no file"):
        open_table(tmp_path, ReadOptions())
    with pytest.raises(UsageError, match="--format xml"):
        run(b"a\n", "rows.txt", format="xml")
    with pytest.raises(UsageError, match="one JSON value"):
        run(b'[{"text": "a"}]', "rows.json")
    with pytest.raises(DataError, match="no text to classify"):
        run(b"\n\n", "rows.txt")
    with pytest.raises(DataError):
        run(bytes(range(256)) * 40, "rows.txt")
    with pytest.raises(UsageError, match="one file"):
        classify(ClassifySettings(model="m", inputs=["a", "b"]))


def test_rows_are_values_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,n\n"two\nlines",1\nlast,2\n', "utf-8")
    rows = [*open_table(path, ReadOptions()).rows]
    assert rows == [Row(2, ["two\nlines", "1"], "two\nlines"), Row(4, ["last", "2"], "last")]


# ---- the program


@pytest.fixture
def talk(base_run: Path) -> Callable[..., subprocess.Popen[str]]:
    def start(*arguments: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "chatbench", "classify", "-m", str(base_run),
                 "--device", "cpu", "--choice", "card", "--choice", "贷款", *arguments]  # fmt: skip
        return subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, encoding="utf-8", env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    return start


def test_labels_follow_their_texts_at_once(talk: Callable[..., subprocess.Popen[str]]) -> None:
    """Whoever writes a line gets its label before writing another."""
    with talk() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text in ("where is my card", "我想贷款", "again"):
            process.stdin.write(text + "\n")
            process.stdin.flush()
            label, confidence, said = process.stdout.readline().rstrip("\n").split("\t")
            assert said == text
            assert label in ("card", "贷款")
            assert 0.5 <= float(confidence) <= 1
        process.stdin.close()
        assert process.wait() == ExitCode.DONE


def test_broken_rows_end_with_their_exit_code(talk: Callable[..., subprocess.Popen[str]]) -> None:
    with talk("--format", "jsonl") as process:
        out, err = process.communicate('{"text": "a"}\n{"text": 3}\n')
    assert process.returncode == ExitCode.DATA
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows[0]["label"] in ("card", "贷款")
    assert rows[1]["line"] == 2
    assert "no text in text" in err
