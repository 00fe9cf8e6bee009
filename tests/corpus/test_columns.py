"""Columns that are to become tags and are not there are told before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from corpus.corpora import build

from chatbench.corpus.columns import NoColumn, check_columns, tag_columns
from chatbench.errors import DataError, UsageError
from conftest import sample_chats, write_jsonl


def rows(**columns: Any) -> list[Any]:
    return [row | columns for row in sample_chats(8)]


def test_the_columns_that_exist_are_told_and_nothing_is_left(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", rows(style="formal", 语气="正式", empty=None, id=3))
    for wanted, told in (
        ("styel", "--tag-column styel: no document says anything there; did you mean style? "
                  "columns: id, style, 语气"),
        ("Style", "did you mean style?"),
        ("语汽", "there; did you mean 语气? columns"),
        ("empty", "--tag-column empty: no document"),
        ("style,topic,zzz", "--tag-column topic,zzz: no document says anything there; columns: "),
    ):  # fmt: skip
        with pytest.raises(NoColumn) as refused:
            build(tmp_path / "c", path, tag_column=[wanted])
        assert told in str(refused.value), wanted
        assert sorted(tmp_path.iterdir()) == [path]
    build(tmp_path / "c", path, tag_column=["style", "语气"])


def test_it_is_enough_that_one_document_of_any_file_has_it(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", rows())
    write_jsonl(tmp_path / "b.jsonl", [{"text": "茶 tea", "style": "formal"}])
    build(tmp_path / "c", tmp_path, tag_column=["style"])


def test_data_without_columns_or_documents_say_so(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_text("Tea is on the shelf. 架子上有茶。\n", encoding="utf-8")
    with pytest.raises(UsageError, match="the data have no columns beside the texts"):
        build(tmp_path / "c", plain, tag_column=["style"])
    with pytest.raises(DataError, match="nothing to keep"):
        build(tmp_path / "c", write_jsonl(tmp_path / "e.jsonl", [{"text": ""}]), tag_column=["x"])


def test_of_many_columns_the_most_frequent_are_told() -> None:
    there = {f"column{n}": 50 - n for n in range(20)}
    check_columns(["column0"], there)
    with pytest.raises(NoColumn) as refused:
        check_columns(["茶"], there)
    assert str(refused.value).endswith("; columns: " + ", ".join(list(there)[:12]) + " and 8 more")


def test_a_rare_column_among_very_many_is_found(tmp_path: Path) -> None:
    many = {f"c{n}": 1 for n in range(300)}
    every = [*rows(**many), *rows(**many), {"text": "茶 tea", "rare": "yes"}]
    build(tmp_path / "c", write_jsonl(tmp_path / "a.jsonl", every), tag_column=["rare"])


def test_columns_are_parted_by_commas_of_both_languages() -> None:
    given = [" style ,topic", "语气，主题、 style", "，", ""]
    assert tag_columns(given) == ["style", "topic", "语气", "主题"]
