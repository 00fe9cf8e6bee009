"""The stages that the settings ask for, what each leaves out, and tags as control text."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from corpus.corpora import (
    all_kinds,
    build,
    exchange_row,
    facts_of,
    fates,
    files_of,
    numbered,
    prose,
    rows_of,
)

from chatbench.conversation import Message, exchange, parse_messages
from chatbench.corpus import plan
from chatbench.corpus.cleaning.screen_training import train_on
from chatbench.corpus.cleaning.stages import drop_empty, make_stages, tag_value, tagged
from chatbench.corpus.columns import tag_columns
from chatbench.corpus.document import Document, Dropped
from chatbench.corpus.sources import parts
from chatbench.settings import PreprocessSettings
from chatbench.text.template import render, render_texts
from conftest import sample_chats, sample_texts, write_jsonl

INSULTS = {False: "blithering muppet", True: "没脑子的大笨蛋"}
SECRET = {False: "What is the exact weight in grams of the third stone in the old river wall?",
          True: "请问老河墙上第三块石头的准确重量是多少克？"}  # fmt: skip


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every optional stage asked for, with the files that it needs."""
    folder = tmp_path_factory.mktemp("lists")
    (folder / "words.txt").write_text("# not these\nforbidden fruit\n禁果\n", encoding="utf-8")
    write_jsonl(folder / "exam.jsonl", [{"text": text} for text in SECRET.values()])
    rng = random.Random(3)
    labelled = [
        (f"{prose(rng, n % 4 > 1, 1)} {INSULTS[n % 4 > 1] if n % 2 else ''} {n}", n % 2 == 1)
        for n in range(200)
    ]
    train_on(labelled)[0].save(folder / "screen")
    return {
        "repair": True, "lang": ["latin, zh"], "quality": True,
        "block": [str(folder / "words.txt")], "screen": str(folder / "screen"),
        "against": [str(folder / "exam.jsonl")], "pii": "mask",
    }  # fmt: skip


ALL = ["repair", "empty", "language", "quality", "block", "screen", "against", "pii"]
OFF = {"repair": False, "lang": [], "quality": False, "block": [], "screen": None,
       "against": [], "pii": "off"}  # fmt: skip


def names(**given: Any) -> list[str]:
    return [name for name, _ in make_stages(PreprocessSettings(out="x", **given), print)]


def test_stages_stand_in_order_and_each_can_be_left_out(lists: dict[str, Any]) -> None:
    assert names(**lists) == ALL
    assert names(**OFF) == ["empty"]
    assert names() == ["repair", "empty"]
    for setting, stage in zip(OFF, [name for name in ALL if name != "empty"], strict=True):
        assert names(**{**lists, setting: OFF[setting]}) == [name for name in ALL if name != stage]
        assert names(**{**OFF, setting: lists[setting]}) in (["empty", stage], [stage, "empty"])


def test_only_white_space_is_empty() -> None:
    documents = [
        Document("a", text=" \n\u3000\u2028"), Document("b", text=""), Document("c", text="茶"),
        Document("d", messages=exchange(" ", "\n")), Document("e", messages=exchange("", "a")),
    ]  # fmt: skip
    results, counts = drop_empty(documents)
    assert results == [Dropped("empty"), Dropped("empty"), documents[2], Dropped("empty"),
                       documents[4]]  # fmt: skip
    assert not counts


def test_every_stage_leaves_out_and_counts_what_was_planted(
    tmp_path: Path, rng: random.Random, lists: dict[str, Any]
) -> None:
    rows: list[dict[str, Any]] = []
    expected: list[str | None] = []

    def plant(reason: str | None, texts: list[str]) -> None:
        for text in texts:
            asked = "好的。" if "。" in text else "Fine."
            rows.append({"text": text} if rng.random() < 0.5 else exchange_row(text, asked))
            expected.append(reason)

    good = [prose(rng, n % 2 == 1) for n in range(60)]
    plant(None, good[:30])
    plant("language", ["Магазин открывается утром, люди пьют чай и читают. " * 3 + f"{n}"
                       for n in range(rng.randint(1, 4))])  # fmt: skip
    plant("blocked", [f"{text} {word}" for text, word in zip(good[30:34], (
        "Forbidden fruit!", "这是禁果。", "FORBIDDEN—FRUIT", "禁，果"), strict=True)])  # fmt: skip
    plant("screened", [f"{text} {INSULTS[n % 2 == 1]}" for n, text in enumerate(good[34:40])])
    plant("contaminated", [f"{text} {SECRET[n % 2 == 1]}" for n, text in enumerate(good[40:44])])
    plant(None, [f"{text} Mail tea{n}@shop.example.com now." for n, text in enumerate(good[44:50])])
    plant(None, [f"{text} It\u2019s caf\u00c3\u00a9 time." for text in good[50:53]])
    order = rng.sample(range(len(rows)), len(rows))
    path = numbered(tmp_path / "a.jsonl", [rows[n] for n in order])
    write_jsonl(tmp_path / "b.jsonl", [{"text": " \n"}, exchange_row("", " "), {"text": "\u3000"}])
    # Quality has rules of its own for each of these; it is planted for alone, below.
    corpus = build(tmp_path / "c", path, tmp_path / "b.jsonl", **{**lists, "quality": False})
    planted = Counter(reason for reason in expected if reason)
    assert corpus.manifest.info["ledger"]["dropped"] == {**planted, "empty": 3}
    rejected = {row["n"]: row["reason"] for row in rows_of(tmp_path / "c" / "dropped.jsonl")
                if row["reason"] != "empty"}  # fmt: skip
    assert [rejected.get(place) for place in range(len(rows))] == [expected[n] for n in order]
    facts = facts_of(corpus)
    assert facts.pii.counts == {"email": 6}
    assert facts.changed["mojibake"] == 3
    assert facts.contamination.against_dropped == planted["contaminated"]
    for name in ("train", "val", "test"):
        split = corpus.split(name)
        for number in range(len(split)):
            assert "shop.example" not in corpus.tokenizer.decode(split.ids(number).tolist())
        if name != "train":
            assert b"shop.example" not in (corpus.folder / f"{name}.jsonl").read_bytes()


def test_quality_drops_what_it_has_a_reason_for(tmp_path: Path, rng: random.Random) -> None:
    good = [prose(rng, n % 2 == 1) for n in range(20)]
    bad = [f"{text} Lorem ipsum dolor sit amet. 占位文字。" for text in good[:4]]
    path = numbered(tmp_path / "a.jsonl", [{"text": text} for text in good + bad])
    found = fates(build(tmp_path / "c", path, quality=True, val_fraction=0, test_fraction=0), 24)
    assert found == ["train"] * 20 + ["quality: placeholder text"] * 4


def test_columns_called_as_ours_do_not_hide_why_a_row_was_dropped(tmp_path: Path) -> None:
    row = {"text": "茶", "reason": "I like it", "status": "draft", "detail": 7, "note": "kept"}
    path = write_jsonl(tmp_path / "a.jsonl", [row, row, {**row, "text": " "}])
    rows = rows_of(build(tmp_path / "c", path).folder / "dropped.jsonl")
    assert [list(row)[:3] for row in rows] == [["status", "reason", "detail"]] * 2
    assert sorted(row["reason"] for row in rows) == ["duplicate", "empty"]
    assert {(row["status"], row["detail"], row["note"]) for row in rows} == {
        ("dropped", "", "kept")
    }


# ---- tags


def digest_of(number: int) -> bytes:
    return Document("", text=f"text {number}").digest()


def test_values_become_one_line_each_and_what_is_no_value_none() -> None:
    meta = {"style": " very\n formal\t", "topic": "茶\u2028书", "size": 3, "share": 0.5,
            "ok": False, "none": None, "empty": "", "blank": " \n\u3000", "list": ["a"],
            "dict": {"a": 1}, "unused": "x"}  # fmt: skip
    document = Document("a", text="t", meta=meta)
    columns = ["topic", "style", "size", "share", "ok", "none", "empty", "blank", "list", "dict",
               "absent"]  # fmt: skip
    found = tagged(document, columns, 0.0, document.digest())
    assert found.control == "topic: 茶 书\nstyle: very formal\nsize: 3\nshare: 0.5\nok: False"
    assert [c for c in columns if tag_value(document, c) is None] == columns[5:]
    assert tagged(document, columns[5:], 0.0, document.digest()) is document
    assert tagged(document, columns, 1.0, document.digest()) is document


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_each_tag_is_left_out_in_its_share_of_documents_by_content_alone(dropout: float) -> None:
    count = 4000
    meta = {"style": "formal", "主题": "茶"}
    lines = []
    for number in range(count):
        one, other = (
            tagged(Document(source, text="", meta=meta), columns, dropout, digest_of(number))
            for source, columns in (("a", ["style", "主题"]), ("b:7", ["主题", "style"]))
        )
        assert sorted(one.control.splitlines()) == sorted(other.control.splitlines())
        lines.append(one.control)
    # Seven standard deviations: these digests are no chance, but others might be.
    margin = 7 * (dropout * (1 - dropout) / count) ** 0.5
    for line in ("style: formal", "主题: 茶"):
        absent = sum(line not in control for control in lines) / count
        assert abs(absent - dropout) < margin
    neither = lines.count("") / count
    assert abs(neither - dropout**2) < margin, "columns are left out on their own"


def test_tag_columns_may_be_listed_or_repeated() -> None:
    for given in (["style,topic"], ["style", "topic"], [" style , ,topic,style", "topic"]):
        assert tag_columns(given) == ["style", "topic"]


@pytest.mark.parametrize("columns", [["style,topic"], ["style", "topic"]], ids=str)
def test_tags_stand_in_the_system_turn_and_are_not_learned(
    tmp_path: Path, rng: random.Random, columns: list[str]
) -> None:
    rows = [{"text": text} for text in sample_texts(20)] + sample_chats(20)
    rows += [exchange_row(f"How is it? {n}", "好。", system=" 要简短。\n") for n in range(20)]
    rows += [{"prompt": f"请选 {n}", "chosen": "a", "rejected": "b"} for n in range(10)]
    values = [rng.choice(["formal", "随意", "two\nlines"]) for _ in rows]
    tags = [{"style": value, "topic": f"<|im_end|> {n}"} for n, value in enumerate(values)]
    path = numbered(tmp_path / "a.jsonl", [r | t for r, t in zip(rows, tags, strict=True)])
    corpus = build(tmp_path / "c", path, tag_column=columns, tag_dropout=0.0, split_by="document")
    tokenizer = corpus.tokenizer
    expected, rejected = {}, {}
    for n, (row, value) in enumerate(zip(rows, values, strict=True)):
        control = f"style: {' '.join(value.split())}\ntopic: <|im_end|> {n}"
        turns = (Message("system", control),)
        if "text" in row:
            (after,) = render_texts(tokenizer, [row["text"]])
            before = render(tokenizer, turns)
            expected[n] = (before.ids + after.ids, before.weights + after.weights)
        elif "prompt" in row:
            asked = (*turns, Message("user", row["prompt"]))
            expected[n] = render(tokenizer, (*asked, Message("assistant", "a")))
            rejected[n] = render(tokenizer, (*asked, Message("assistant", "b")))
        else:
            said = parse_messages(row["messages"])
            if said[0].role == "system":
                turns, said = (Message("system", f"要简短。\n\n{control}"),), said[1:]
            expected[n] = render(tokenizer, (*turns, *said))
    found = fates(corpus, len(rows))
    for name in ("train", "val", "test"):
        split = corpus.split(name)
        wanted = sorted(
            tuple(map(tuple, expected[n])) for n in range(len(rows)) if found[n] == name
        )
        stored = [(split.ids(i).tolist(), split.weights(i).tolist()) for i in range(len(split))]
        assert sorted(tuple(map(tuple, row)) for row in stored) == wanted
        pairs = [split.rejected(i) for i in range(len(split))]
        other = [tuple(tuple(side.tolist()) for side in pair) for pair in pairs if pair is not None]
        assert sorted(other) == sorted(
            tuple(map(tuple, rejected[n])) for n in rejected if found[n] == name
        )
    for name in ("val", "test"):
        for row in rows_of(corpus.folder / f"{name}.jsonl"):
            shown = row["control"] if "text" in row else row["messages"][0]["content"]
            assert f"topic: <|im_end|> {row['n']}" in shown
            assert row["style"] == values[row["n"]]


# ---- everything at once


def test_every_stage_and_kind_of_document_with_two_workers_gives_the_same_bytes(
    tmp_path: Path, rng: random.Random, lists: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = all_kinds(rng, 100)
    rows += rng.choices(rows, k=15)
    rows += [{"text": rows[n]["text"] + " And more."} for n in range(0, 100, 10)]
    rows += [
        {"text": f"{prose(rng, False)} {SECRET[False]}"},
        {"text": f"{prose(rng, True)}禁果。"},
    ]
    rows += [{"text": "qzx vkj wqp " * 30 + str(n)} for n in range(4)]
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(0, len(rows), 25):
        write_jsonl(tree / f"{number}.jsonl", rows[number : number + 25])
    with open(tree / "0.jsonl", "a", encoding="utf-8") as handle:
        handle.write('{"broken\n' + json.dumps({"odd": 1}) + "\n")
    monkeypatch.setattr(parts, "PART_FILES", 2)
    monkeypatch.setattr(plan, "BUCKET_BYTES", 30_000)
    made = [
        build(
            tmp_path / name, tree, workers=workers, dedup="near", contamination="drop",
            min_fluency=2.0, tag_column=["style,topic"], profile=True, vocab_size=400, **lists,
        )
        for name, workers in (("one", 1), ("two", 2), ("again", 2))
    ]  # fmt: skip
    alone, two, again = (files_of(corpus.folder) for corpus in made)
    assert two == again == alone
    assert sum(name.startswith("train/") for name in alone) > 1
    info, facts = made[0].manifest.info, facts_of(made[0])
    ledger = info["ledger"]
    assert ledger["read"] == len(rows) + 2
    assert ledger["read"] == ledger["kept"] + sum(
        sum(ledger[kind].values()) for kind in ("dropped", "failed")
    )
    assert {"duplicate", "near-duplicate", "blocked", "not fluent"} <= set(ledger["dropped"])
    assert set(facts.shapes) == {"text", "messages", "preference", "unpaired", "alpaca"}
    assert set(facts.tags) == {"style", "topic"}
    assert set(facts.tags["style"]) == {"formal", "随意"}
