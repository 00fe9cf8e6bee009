"""Tests of the bundled demo corpus."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from chatbench.demo import corpus
from chatbench.demo.corpus import LANGUAGES, Shop, load_shop, normalise

Row = dict[str, Any]


def digest() -> str:
    made = [corpus.dialogues(3, 300), corpus.questions(), corpus.prose(3, 60)]
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()


def user_texts(rows: list[Row], language: str) -> list[str]:
    chosen = [row for row in rows if row["language"] == language]
    return [m["content"] for row in chosen for m in row["messages"] if m["role"] == "user"]


def key(text: str, language: str) -> str:
    """A wording without case and punctuation; padded so that only whole words match."""
    words = normalise(text)
    return words.replace(" ", "") if language == "zh" else f" {words} "


def lines(block: str) -> list[str]:
    return [text for line in block.strip().splitlines() for text in corpus.expand(line)]


def templates(shop: Shop, split: str) -> dict[str, list[list[str]]]:
    """Per intent: its phrasings, each with all wordings it may take (one per product)."""
    products, again = shop.others(""), {"train": "again", "held": "again_held"}[split]
    found = {e["name"]: [[t] for t in lines(e[split])] for e in shop.raw["fact"]}
    found["unknown"] = [[t] for t in lines(shop.raw["unknown"][split])]
    for slot in shop.raw["slot"]:
        asked = lines(slot[split])
        found[slot["name"]] = [[t.format(p=p) for p in products] for t in asked]
        found[f"{slot['name']} again"] = [[t] for t in lines(slot[again])]
    for pair in shop.raw["follow"]:
        found[f"{pair['after']} {pair['intent']}"] = [[t] for t in lines(pair[split])]
    switches = lines(shop.raw["switch"][split])
    found["switch"] = [[t.format(p=p) for p in products] for t in switches]
    return found


def facts_by_owner(shop: Shop) -> dict[str, list[str]]:
    owners = {e["name"]: list(e["facts"]) for e in shop.raw["fact"]}
    owners["unknown"] = list(shop.raw["unknown"]["facts"])
    for slot in shop.raw["slot"]:
        for product in shop.raw["product"]:
            owners[f"{slot['name']} {product['name']}"] = [product[slot["name"]]]
    return owners


@pytest.fixture(scope="module")
def talks() -> list[Row]:
    return corpus.dialogues(0, 8000)


@pytest.fixture(scope="module")
def passages() -> list[str]:
    return corpus.prose(0, 1200)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return corpus.questions()


def test_expand_writes_out_alternatives() -> None:
    assert corpus.expand("[a|b] c [d|]") == ["a c d", "a c ", "b c d", "b c "]


def test_same_seed_gives_same_corpus_under_another_hash_seed() -> None:
    here = Path(__file__).resolve().parent
    source = str(Path(corpus.__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    env["PYTHONPATH"] = os.pathsep.join([source, str(here)])
    code = "import test_corpus; print(test_corpus.digest())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest()


def test_another_seed_gives_another_corpus() -> None:
    assert corpus.dialogues(1, 20) != corpus.dialogues(2, 20)
    assert corpus.prose(1, 4) != corpus.prose(2, 4)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_held_out_phrasing_is_trained_on(
    language: str, talks: list[Row], passages: list[str]
) -> None:
    asked = user_texts(talks, language)
    told = passages[LANGUAGES.index(language) :: 2]
    seen = "\n".join(key(text, language) for text in {*asked, *told})
    held = templates(load_shop(language), "held").values()
    wordings = [text for phrasings in held for group in phrasings for text in group]
    assert [text for text in wordings if key(text, language) in seen] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_phrasings_belong_to_one_intent(language: str) -> None:
    shop = load_shop(language)
    asks = [*shop.train, *shop.held, *shop.chat, *shop.closing]
    counts = Counter(key(ask.text, language) for ask in asks)
    assert [text for text, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_hold_their_own_facts_and_no_others(language: str) -> None:
    shop = load_shop(language)
    owners = facts_by_owner(shop)
    answers = {
        (f"{ask.intent} {ask.product}".strip(), answer)
        for ask in [*shop.train, *shop.held, *shop.chat, *shop.closing]
        for answer in ask.answers
    }
    for owner, answer in answers:
        found = {name for name, facts in owners.items() if any(fact in answer for fact in facts)}
        assert found == ({owner} if owner in owners else set()), answer
        assert all(fact in answer for fact in owners.get(owner, []))
        assert (len(answer) <= 30) if language == "zh" else (len(answer.split()) <= 20)


@pytest.mark.parametrize("language", LANGUAGES)
def test_facts_are_distinct(language: str) -> None:
    facts = [fact for own in facts_by_owner(load_shop(language)).values() for fact in own]
    assert len(facts) == len(set(facts))


def test_references_hold_their_facts(rows: list[Row]) -> None:
    for row in rows:
        assert row["facts"]
        assert all(fact in row["messages"][-1]["content"] for fact in row["facts"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_slot_rows_ask_for_the_product_named_last(language: str, rows: list[Row]) -> None:
    shop = load_shop(language)
    slots = {slot["name"] for slot in shop.raw["slot"]}
    chosen = [r for r in rows if r["language"] == language and r["intent"] in slots]
    assert len(chosen) > 30
    for row in chosen:
        asked = [m["content"] for m in row["messages"][-2::-1]]
        near = next(text for text in asked if any(p in text for p in shop.others("")))
        named = [item for item in shop.raw["product"] if item["name"] in near]
        assert [item[row["intent"]] for item in named] == row["facts"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_replies_speak_of_the_product_asked_for(language: str, talks: list[Row]) -> None:
    names, checked = load_shop(language).others(""), 0
    for row in talks:
        said = [m["content"].lower() for m in row["messages"] if row["language"] == language]
        for question, reply in zip(said[::2], said[1::2], strict=True):
            for name in [name for name in names if name in question]:
                assert name in reply
                checked += 1
    assert checked > 1000


def test_messages_alternate_and_end_with_the_assistant(talks: list[Row], rows: list[Row]) -> None:
    lengths = Counter(len(row["messages"]) // 2 for row in talks)
    assert set(lengths) == {1, 2, 3, 4}
    assert lengths[1] > 0.25 * len(talks)
    for row in talks + rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"].strip() for message in row["messages"])


def test_languages_are_balanced(talks: list[Row], rows: list[Row]) -> None:
    for made in (talks, rows):
        counts = Counter(row["language"] for row in made)
        assert set(counts) == set(LANGUAGES)
        assert min(counts.values()) >= 0.48 * len(made)


def test_few_dialogues_are_repeated(talks: list[Row]) -> None:
    assert len(talks) == 8000
    assert len({json.dumps(row) for row in talks}) > 0.9 * len(talks)


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_are_enough_phrasings(language: str) -> None:
    shop = load_shop(language)
    train, held = templates(shop, "train"), templates(shop, "held")
    facts, slots = [e["name"] for e in shop.raw["fact"]], [s["name"] for s in shop.raw["slot"]]
    assert (len(facts), len(slots), len(shop.raw["product"])) == (40, 3, 12)
    assert [n for n in facts if len(train[n]) < 16 or len(held[n]) < 4] == []
    assert [n for n in slots if len(train[n]) < 12 or len(held[n]) < 3] == []
    assert len(shop.raw["chat"]) == 14


def test_there_are_enough_held_out_rows(rows: list[Row]) -> None:
    assert 330 <= len(rows) <= 460
    assert 0.1 <= sum(len(row["messages"]) > 2 for row in rows) / len(rows) <= 0.2
    texts = [json.dumps(row["messages"]) for row in rows]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_phrasing_is_trained_on(language: str) -> None:
    shop = load_shop(language)
    raw = shop.raw
    openers = ["", *(key(o, "zh") for o in raw["openers"] + raw["question_openers"])]
    closers = ["", *(key(c, "zh") for c in raw["closers"])]
    seen = set()
    for text in {key(text, "zh") for text in user_texts(corpus.dialogues(5, 4000), language)}:
        ends = [text[: len(text) - len(c)] for c in closers if text.endswith(c)]
        seen |= {end[len(o) :] for end in ends for o in openers if end.startswith(o)}
    groups = [group for phrasings in templates(shop, "train").values() for group in phrasings]
    groups += [[ask.text] for ask in [*shop.chat, *shop.closing]]
    assert [group[0] for group in groups if not seen & {key(t, "zh") for t in group}] == []


def test_passages_have_the_right_length(passages: list[str]) -> None:
    assert len(set(passages)) == len(passages) == 1200
    assert all(80 <= len(text.split()) <= 200 for text in passages[::2])
    assert all(120 <= len(text) <= 350 for text in passages[1::2])
    assert not any("{" in text for text in passages)


def test_passages_state_every_fact(passages: list[str]) -> None:
    for i, language in enumerate(LANGUAGES):
        text = "\n".join(passages[i::2])
        facts = [fact for own in facts_by_owner(load_shop(language)).values() for fact in own]
        told = [fact for fact in facts if text.count(fact) >= 5]
        assert set(facts) - set(told) <= set(load_shop(language).raw["unknown"]["facts"])
