"""Shards and rows hold the documents of the plan: both sides of pairs, and all that was read."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from corpus.corpora import Row, all_kinds, build, exchange_row, facts_of, fates, numbered, rows_of

from chatbench.conversation import Message
from chatbench.corpus import plan
from chatbench.corpus.document import Document
from chatbench.corpus.encoding import item_of
from chatbench.corpus.shards import TokenSplit
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.corpus.sources.reading import read_path
from chatbench.text.rendering import Item
from chatbench.text.template import render, render_texts
from chatbench.text.tokenizer import Tokenizer
from conftest import write_jsonl

Side = tuple[tuple[int, ...], tuple[int, ...]]
SPLITS = ("train", "val", "test")


def documents_of(path: Path) -> list[Document]:
    found = list(read_path(path, path.name, ReadOptions()))
    assert all(isinstance(record, Document) for record in found), found
    return [record for record in found if isinstance(record, Document)]


def sides(tokenizer: Tokenizer, document: Document) -> tuple[Side, Side | None]:
    """The two sides of a document by the slow way."""
    if document.messages is None:
        (wanted,) = render_texts(tokenizer, [document.text or ""])
    else:
        wanted = render(tokenizer, document.messages)
    if document.rejected is None:
        return _side(*wanted), None
    return _side(*wanted), _side(*render(tokenizer, document.rejected))


def _side(ids: list[int], weights: list[int]) -> Side:
    return tuple(ids), tuple(weights)


def stored(split: TokenSplit) -> list[tuple[Side, Side | None]]:
    found = []
    for number in range(len(split)):
        pair = split.rejected(number)
        other = None if pair is None else _side(pair[0].tolist(), pair[1].tolist())
        found.append((_side(split.ids(number).tolist(), split.weights(number).tolist()), other))
    return found


@pytest.mark.parametrize("read_at_once", [512, 3])
def test_shards_hold_both_sides_of_every_document(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, read_at_once: int
) -> None:
    monkeypatch.setattr(plan, "_READ_AT_ONCE", read_at_once)
    monkeypatch.setattr(plan, "BUCKET_BYTES", 20_000)
    rows = all_kinds(rng, 80)
    path = numbered(tmp_path / "a.jsonl", rows)
    corpus = build(tmp_path / "c", path)
    documents = documents_of(path)
    fate = fates(corpus, len(rows))
    assert len(list((tmp_path / "c" / "train").iterdir())) > 1
    for name in SPLITS:
        mine = [d for d, found in zip(documents, fate, strict=True) if found == name]
        mine.sort(key=Document.digest)
        assert stored(corpus.split(name)) == [sides(corpus.tokenizer, d) for d in mine]
    rejected = [found[1] is not None for name in SPLITS for found in stored(corpus.split(name))]
    assert rejected.count(True) == sum("rejected" in r or r.get("label") is False for r in rows)


def test_replies_that_are_only_known_to_be_bad_are_not_learned(
    tmp_path: Path, rng: random.Random
) -> None:
    rows: list[Row] = [
        {"prompt": f"请问{n}？", "completion": f"reply {n}", "label": n % 2 == 0} for n in range(40)
    ]
    corpus = build(tmp_path / "c", write_jsonl(tmp_path / "a.jsonl", rows))
    seen = 0
    for name in SPLITS:
        split = corpus.split(name)
        learned = 0
        for number in range(len(split)):
            reply = int(corpus.tokenizer.decode(split.ids(number).tolist()).split("reply ")[1])
            other = split.rejected(number)
            good = reply % 2 == 0
            assert bool(split.weights(number).any()) == good
            assert (other is None) == good
            if other is not None:
                assert other[0].tolist() == split.ids(number).tolist()
                assert other[1].any()
            learned += int(split.weights(number).sum())
            seen += 1
        assert facts_of(corpus).splits[name].supervised == learned
    assert seen == len(rows)


def test_held_out_rows_read_back_to_the_same_documents(tmp_path: Path, rng: random.Random) -> None:
    rows = all_kinds(rng, 60)
    rows += [
        {"messages": [
            {"role": "system", "content": "茶"}, {"role": "user", "content": "天气？"},
            {"role": "assistant", "content": "", "weight": 0},
            {"role": "tool", "content": '{"rain": 3}'},
            {"role": "assistant", "content": f" 有雨 {n}\n"},
        ]} for n in range(10)
    ]  # fmt: skip
    path = numbered(tmp_path / "a.jsonl", rows)
    corpus = build(tmp_path / "c", path, repair=False, val_fraction=0.4, test_fraction=0.4)
    before = {document.meta["n"]: document for document in documents_of(path)}
    compared = 0
    for name in ("val", "test"):
        for after in documents_of(corpus.folder / f"{name}.jsonl"):
            known = before[after.meta["n"]]
            shape = after.shape if known.rejected is None else known.shape
            assert msgspec.structs.replace(after, source=known.source, shape=known.shape) == known
            assert after.shape == shape
            assert after.digest() == known.digest()
            compared += 1
    assert compared > 30


def test_a_corpus_of_held_out_rows_has_the_shards_of_that_split(
    tmp_path: Path, rng: random.Random
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", all_kinds(rng, 100))
    corpus = build(tmp_path / "c", path, contamination="off")
    for name in ("val", "test"):
        again = build(
            tmp_path / name, corpus.folder / f"{name}.jsonl", tokenizer=str(corpus.folder),
            val_fraction=0, test_fraction=0,
        )  # fmt: skip
        shard = "00000.safetensors"
        assert (again.folder / "train" / shard).read_bytes() == (
            corpus.folder / name / shard
        ).read_bytes()


def test_dropped_rows_can_be_read_again(tmp_path: Path, rng: random.Random) -> None:
    rows = all_kinds(rng, 20)
    path = numbered(tmp_path / "a.jsonl", rows + rows)
    corpus = build(tmp_path / "c", path, repair=False)
    known = {document.meta["n"]: document for document in documents_of(path)}
    again = documents_of(corpus.folder / "dropped.jsonl")
    assert len(again) == len(rows)
    assert {row["reason"] for row in rows_of(corpus.folder / "dropped.jsonl")} == {"duplicate"}
    for document in again:
        assert document.digest() == known[document.meta["n"]].digest()


def test_what_is_rendered_of_a_document() -> None:
    text = Document("a", text="茶", control="style: x")
    assert item_of(text) == Item((Message("system", "style: x"),), "茶")
    assert item_of(Document("a", text="茶")) == Item((), "茶")
    turns = (Message("system", " Be brief. "), Message("user", "?"))
    chat = Document("a", messages=turns, control="style: x")
    assert item_of(chat) == Item((Message("system", "Be brief.\n\nstyle: x"), turns[1]))
    assert item_of(Document("a", messages=turns[1:], control="style: x")) == Item(
        (Message("system", "style: x"), turns[1])
    )


def test_rows_show_the_tags_beside_what_was_read(tmp_path: Path) -> None:
    rows = [{**exchange_row(f"问 {n}", "答"), "style": "随意"} for n in range(30)]
    rows += [{"text": f"tea {n}", "style": "formal"} for n in range(30)]
    corpus = build(
        tmp_path / "c", write_jsonl(tmp_path / "a.jsonl", rows), tag_column=["style"],
        tag_dropout=0.0,
    )  # fmt: skip
    shown = rows_of(corpus.folder / "val.jsonl") + rows_of(corpus.folder / "test.jsonl")
    assert {"text" in row for row in shown} == {True, False}
    for row in shown:
        if "text" in row:
            assert (row["control"], row["style"]) == ("style: formal", "formal")
        else:
            assert row["messages"][0] == {"role": "system", "content": "style: 随意"}
