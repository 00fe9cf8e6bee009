"""Shared 13-grams: planted overlaps, and slow twins on sets of word tuples."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from chatbench.conversation import Message
from chatbench.corpus.cleaning import contamination
from chatbench.corpus.cleaning.contamination import (
    GRAM_WORDS,
    HeldOutGrams,
    against,
    against_texts,
    batches,
)
from chatbench.corpus.cleaning.grams import spell
from chatbench.corpus.document import Document, Dropped
from chatbench.errors import DataError, UsageError
from conftest import CHINESE, ENGLISH

EN = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("ain", "ell", "ock", "umb", "ire", "ast")]
ZH = [chr(code) for code in range(0x4E10, 0x4F80)]
ENGLISH_ITEM = "How many pounds of green tea does the shop on the corner sell in a week?"
CHINESE_ITEM = "街角的小店每个星期一共卖出多少斤绿茶？"


def prose(rng: random.Random, length: int, chinese: bool) -> str:
    return ("" if chinese else " ").join(rng.choices(ZH if chinese else EN, k=length))


def grams_of(text: str, n: int = GRAM_WORDS) -> set[tuple[str, ...]]:
    words = spell(text)
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def fates(texts: Sequence[str], items: Sequence[str]) -> list[bool]:
    stage = against_texts(items)
    documents = [Document(f"f:{n}", text=text) for n, text in enumerate(texts)]
    results, _ = stage(documents)
    assert len(results) == len(documents)
    for result, document in zip(results, documents, strict=True):
        if isinstance(result, Dropped):
            assert result.reason == "contaminated"
        else:
            assert result is document
    return [isinstance(result, Dropped) for result in results]


def twin_fates(texts: Sequence[str], items: Sequence[str]) -> list[bool]:
    found = []
    for text in texts:
        hit = False
        for item in items:
            count = len(spell(item))
            if count >= 8:
                n = min(count, GRAM_WORDS)
                hit |= bool(grams_of(item, n) & grams_of(text, n))
        found.append(hit)
    return found


# ---- against test files


@pytest.mark.parametrize(("item", "around"), [(ENGLISH_ITEM, ENGLISH), (CHINESE_ITEM, CHINESE)])
def test_a_planted_item_is_found_and_named(item: str, around: str) -> None:
    stage = against_texts([item])
    texts = [around, around + item.upper() + around, around + item.replace("，", " - ")]
    results, counts = stage([Document("f", text=text) for text in texts])
    assert isinstance(results[0], Document)
    for result in results[1:]:
        assert isinstance(result, Dropped)
        assert result.reason == "contaminated"
        words = spell(item)
        assert result.detail == " ".join(words[:GRAM_WORDS])
    assert not counts


def test_thirteen_words_are_the_rule_and_twelve_are_not_enough() -> None:
    words = ENGLISH_ITEM.split()
    assert len(words) == 16
    assert fates([" ".join(words[:13]), " ".join(words[1:13]), " ".join(words[3:])],
                 [ENGLISH_ITEM]) == [True, False, True]  # fmt: skip
    assert fates([CHINESE_ITEM[:13], CHINESE_ITEM[:12]], [CHINESE_ITEM]) == [True, False]


def test_short_items_match_as_a_whole_and_very_short_ones_not_at_all() -> None:
    nine = "what does a cup of white tea cost here"
    assert fates([f"so {nine}? ten", nine[:-5]], [nine]) == [True, False]
    assert fates(["请问这里白茶多少钱一杯呢", "请问这里白茶"], ["这里白茶多少钱一杯"]) == [
        True,
        False,
    ]
    stage = against_texts(["one two three four five six seven", "多少钱", nine, ENGLISH_ITEM, ""])
    assert (stage.items, stage.ignored) == (2, 3)
    assert sorted(stage.grams) == [9, 13]


def test_the_stage_is_its_slow_twin_in_any_batches(rng: random.Random) -> None:
    items = [prose(rng, rng.choice((5, 8, 9, 12, 13, 14, 40)), n % 2 == 0) for n in range(40)]
    texts = []
    for n in range(200):
        chinese = n % 2 == 0
        item = rng.choice(items)
        words = spell(item)
        start = rng.randrange(len(words))
        piece = words[start : start + rng.randrange(8, 30)]
        text = prose(rng, 20, chinese) + " " + " ".join(piece) + " " + prose(rng, 20, chinese)
        texts.append(rng.choice((text, item, prose(rng, rng.randrange(50), chinese))))
    expected = twin_fates(texts, items)
    assert 20 < sum(expected) < 180
    assert fates(texts, items) == expected
    cut = rng.randrange(200)
    assert fates(texts[:cut], items) + fates(texts[cut:], items[::-1]) == expected


def test_conversations_are_judged_as_a_whole_but_system_messages_test_nothing() -> None:
    system = Message("system", "You are a kind and helpful clerk of a small shop that sells tea.")
    turns = (Message("user", "How much is the green tea?"),
             Message("assistant", "It is twelve yuan for a small bag, sir."))  # fmt: skip
    document = Document("f", messages=(system, *turns))
    assert contamination.tested_text(document) == "\n".join(turn.content for turn in turns)
    stage = against_texts([contamination.tested_text(document)])
    other = Document("g", messages=(system, Message("user", "Hello"), Message("assistant", "Hi")))
    results, _ = stage([Document("h", messages=turns), other])
    assert isinstance(results[0], Dropped)
    assert results[1] is other


def test_nothing_to_look_for_drops_nothing() -> None:
    assert fates([ENGLISH, ""], []) == [False, False]
    assert fates([], [ENGLISH]) == []


def test_test_files_are_read_in_any_form_and_what_is_unused_is_said(tmp_path: Path) -> None:
    (tmp_path / "en.jsonl").write_text(
        json.dumps({"text": ENGLISH_ITEM}) + "\n{bad\n" + json.dumps({"text": "too short"}) + "\n"
    )
    (tmp_path / "zh.txt").write_bytes(CHINESE_ITEM.encode("gb18030"))
    said: list[str] = []
    stage = against([str(tmp_path)], said.append)
    results, _ = stage([Document("f", text=t) for t in (ENGLISH_ITEM, CHINESE_ITEM, "tea 茶")])
    assert [isinstance(result, Dropped) for result in results] == [True, True, False]
    assert len(said) == 2
    assert "1 record" in said[0]
    assert "en.jsonl:2" in said[0]
    assert "1 of 3 test items" in said[1]


def test_a_missing_or_empty_test_file_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        against([str(tmp_path / "no.txt")])
    (tmp_path / "short.txt").write_text("two words")
    with pytest.raises(DataError, match="no test item of 8 words"):
        against([str(tmp_path / "short.txt")], lambda line: None)


# ---- between the splits


def corpus(rng: random.Random) -> tuple[list[str], list[str], list[str]]:
    """val, test and training texts, some of which share runs of 10 to 16 words."""
    held = [prose(rng, rng.randrange(5, 60), n % 2 == 0) for n in range(60)]
    train = []
    for n in range(120):
        words = spell(rng.choice(held))
        start = rng.randrange(len(words))
        run = words[start : start + rng.randrange(10, 17)] if n % 3 == 0 else []
        chinese = n % 2 == 0
        train.append(f"{prose(rng, 25, chinese)} {' '.join(run)} {prose(rng, 25, chinese)}")
    return held[:30], held[30:], train


def built(parts: Sequence[tuple[Sequence[str], int]], limit: int = 10**6) -> HeldOutGrams:
    made = HeldOutGrams(limit)
    for texts, split in parts:
        made.add(texts, split)
    return made


def test_overlaps_are_those_of_the_slow_twin_in_both_directions(rng: random.Random) -> None:
    val, test, train = corpus(rng)
    held = built([(val, 0), (test, 1)])
    assert held.rate == 1
    seen = held.no_marks()
    found = held.overlap(train, seen)
    train_grams = [grams_of(text) for text in train]
    for split, texts in enumerate((val, test)):
        known = set().union(*map(grams_of, texts))
        assert found[:, split].tolist() == [bool(grams & known) for grams in train_grams]
        everything = set().union(*train_grams)
        expected = [bool(grams_of(text) & everything) for text in texts]
        assert held.overlapping(texts, seen).tolist() == expected
    assert 5 < found.any(axis=1).sum() < 60
    assert np.array_equal(held.overlap(train), found)


def test_workers_can_share_the_work_and_save_arrays(rng: random.Random, tmp_path: Path) -> None:
    val, test, train = corpus(rng)
    whole = built([(val, 0), (test, 1)])
    merged = built([(test[7:], 1), (val[:3], 0)])
    merged.merge(built([(val[3:], 0), (test[:7], 1)]))
    assert np.array_equal(merged.hashes, whole.hashes)
    assert np.array_equal(merged.marks, whole.marks)
    for name in ("hashes", "marks"):
        np.save(tmp_path / f"{name}.npy", getattr(merged, name), allow_pickle=False)
    back = HeldOutGrams.of(
        *(np.load(tmp_path / f"{name}.npy", allow_pickle=False) for name in ("hashes", "marks")),
        merged.rate,
    )
    one, two = back.no_marks(), back.no_marks()
    back.overlap(train[:50], one)
    back.overlap(train[50:], two)
    together = whole.no_marks()
    whole.overlap(train, together)
    assert np.array_equal(one | two, together)


def test_too_many_grams_become_an_even_sample_that_knows_no_order(rng: random.Random) -> None:
    texts = [prose(rng, 60, n % 2 == 0) for n in range(300)]
    whole = built([(texts, 0), (texts[::2], 1)])
    for limit in (10, 1000, 5000):
        cuts = sorted(rng.sample(range(1, 300), 5))
        pieces = [texts[a:b] for a, b in zip([0, *cuts], [*cuts, 300], strict=True)]
        rng.shuffle(pieces)
        one = built([(piece, 0) for piece in pieces] + [(texts[::2], 1)], limit)
        two = built([(texts[::2], 1), (pieces[0], 0), (pieces[0], 0)], limit)
        for piece in pieces[1:]:
            two.merge(built([(piece, 0)], limit))
        assert len(one.hashes) <= limit < 2 * len(whole.hashes)
        assert one.rate == two.rate < 1
        assert np.array_equal(one.hashes, two.hashes)
        assert np.array_equal(one.marks, two.marks)
        below = whole.hashes <= np.uint64(int(one.rate * 2**64) - 1)
        assert np.array_equal(one.hashes, whole.hashes[below])
        assert np.array_equal(one.marks, whole.marks[below])
        twice = whole.hashes <= np.uint64(int(2 * one.rate * 2**64) - 1)
        assert twice.sum() > limit, "no bound is lower than it has to be"
        again = HeldOutGrams.of(one.hashes, one.marks, one.rate, limit)
        assert again.rate == one.rate
        again.add(texts, 0)
        assert np.array_equal(again.hashes, one.hashes)


def test_a_sample_still_finds_long_overlaps(rng: random.Random) -> None:
    texts = [prose(rng, 400, n % 2 == 0) for n in range(50)]
    held = built([(texts, 1)], limit=4000)
    assert held.rate < 0.5
    assert held.overlap(texts)[:, 1].all()
    assert not held.overlap(texts)[:, 0].any()
    assert not held.overlap([prose(rng, 400, n % 2 == 0) for n in range(50)]).any()


def test_empty_held_out_sets_overlap_with_nothing() -> None:
    held = HeldOutGrams()
    assert held.overlap([ENGLISH, CHINESE]).tolist() == [[False, False]] * 2
    held.add(["", "too short"], 0)
    assert held.rate == 1
    assert held.overlapping([ENGLISH], held.no_marks()).tolist() == [False]
    assert held.overlap([]).shape == (0, 2)


def test_batches_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contamination, "_BATCH_CHARACTERS", 5)
    texts = ["ab", "", "abcdefgh", "c", "de"]
    assert [text for batch in batches(texts) for text in batch] == texts
    assert max(len(batch) for batch in batches(texts)) <= 3
