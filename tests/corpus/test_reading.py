"""Lines of pieces of a file, and options that are refused before anything is read."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from chatbench.corpus.document import Document, Dropped
from chatbench.corpus.sources import parts
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.corpus.sources.inputs import find_inputs
from chatbench.corpus.sources.parts import plan_parts
from chatbench.corpus.sources.reading import dropped_row, read_slice


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_a_carriage_return_inside_a_row_is_no_line_end_for_later_pieces(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    lines = []
    for number in range(200):
        space = rng.choice(["", " ", "\r", "\t\r"])
        lines.append(f'{{"text":{space}{json.dumps(f"tea 茶 {number}")}}}')
    path = tmp_path / "a.jsonl"
    path.write_bytes("".join(line + end for line in lines).encode())
    monkeypatch.setattr(parts, "PART_BYTES", 600)
    found, _ = find_inputs([str(path)], None)
    planned = list(plan_parts(found, ReadOptions()))
    assert len(planned) > 3
    records = [r for part in planned for piece in part
               for r in read_slice(piece, ReadOptions(), [])]  # fmt: skip
    assert records == [
        Document(f"{path}:{n}", text=f"tea 茶 {n - 1}") for n in range(1, len(lines) + 1)
    ]


def test_a_dropped_row_says_why_first_and_keeps_the_other_columns() -> None:
    document = Document("a:1", text="茶", meta={"detail": "mine", "status": 1, "note": "x"})
    row = dropped_row(document, Dropped("blocked", "words"))
    assert list(row.items()) == [
        ("status", "dropped"), ("reason", "blocked"), ("detail", "words"), ("note", "x"),
        ("text", "茶"), ("source", "a:1"),
    ]  # fmt: skip
