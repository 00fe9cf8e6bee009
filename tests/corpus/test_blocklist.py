"""Blocked words and phrases against a plain search on word lists."""

from __future__ import annotations

import csv
import gzip
import io
import random
from pathlib import Path

import pytest

from chatbench.conversation import Message
from chatbench.corpus.cleaning.blocklist import Blocklist, block, read_phrases
from chatbench.corpus.cleaning.grams import spell
from chatbench.corpus.document import Document, Dropped
from chatbench.errors import DataError, EnvironmentFault, UsageError
from conftest import SHARED_DATA

PHRASES = ["Rotten Apple", "weasel", "坏蛋", "滚", "3rd-rate", "AV女郎", "naïve"]


def twin(phrases: list[str], text: str) -> str | None:
    """The first phrase in the text, the longest that starts there, by comparing word lists."""
    words = spell(text)
    known = [(phrase, spell(phrase)) for phrase in phrases]
    for start in range(len(words)):
        hits = [
            (len(wanted), phrase)
            for phrase, wanted in known
            if wanted and words[start : start + len(wanted)] == wanted
        ]
        if hits:
            longest = max(length for length, _ in hits)
            return next(phrase for length, phrase in hits if length == longest)
    return None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He is a WEASEL.", "weasel"),
        ("weasels and tweasel", None),
        ("a rotten\napple", "Rotten Apple"),
        ("rotten, apple!", "Rotten Apple"),
        ("rotten green apple", None),
        ("你是个坏蛋吗", "坏蛋"),
        ("坏，蛋", "坏蛋"),
        ("坏人吃蛋", None),
        ("快滚weasel", "滚"),
        ("a 3RD RATE film", "3rd-rate"),
        ("看av女郎", "AV女郎"),
        ("看xav女郎", None),
        ("nai\u0308ve", "naïve"),
        ("ｗｅａｓｅｌ", None),
        ("", None),
    ],
)
def test_words_phrases_and_characters_are_found(text: str, expected: str | None) -> None:
    (result,), counts = Blocklist(PHRASES)([Document("f", text=text)])
    assert result == (Dropped("blocked", expected) if expected else Document("f", text=text))
    assert not counts
    assert twin(PHRASES, text) == expected


def test_every_message_is_searched_but_no_phrase_spans_two() -> None:
    stage = Blocklist(PHRASES)
    apart = Document("f", messages=(Message("user", "it is rotten"), Message("user", "apple?")))
    inside = Document("g", messages=(Message("user", "hi"), Message("user", "rotten apple")))
    clean = Document("h", text="fresh apple")
    results, _ = stage([apart, inside, clean])
    assert results == [apart, Dropped("blocked", "Rotten Apple"), clean]
    assert results[0] is apart
    assert stage([]) == ([], {})


def test_the_stage_is_its_slow_twin_in_any_batches(rng: random.Random) -> None:
    letters = ["a", "b", "cd", "茶", "书", "E"]
    phrases = [" ".join(rng.choices(letters, k=rng.choice((1, 2, 3, 5)))) for _ in range(12)]
    rare = [phrase for phrase in phrases if len(spell(phrase)) > 1]
    texts = [
        rng.choice((" ", ", ", "\n")).join(rng.choices(letters, k=rng.randrange(9)))
        for _ in range(300)
    ]
    for known in (phrases, rare):
        # Two spellings of one phrase are one phrase, named as it stands first.
        stage = Blocklist([*known, *(phrase.upper() for phrase in known)])
        expected = [twin(known, text) for text in texts]
        found: list[str | None] = []
        while len(found) < len(texts):
            batch = texts[len(found) : len(found) + rng.randint(1, 90)]
            results, _ = stage([Document("f", text=text) for text in batch])
            found += [r.detail if isinstance(r, Dropped) else None for r in results]
        assert found == expected


def test_a_list_has_comments_blank_lines_and_entries_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeff# mine\r\n\r\n  weasel  \r\n🖕\r\n坏蛋\r\nWeasel\r\n".encode())
    assert read_phrases(path) == ["weasel", "🖕", "坏蛋", "Weasel"]
    said: list[str] = []
    stage = block([str(path)], said.append)
    assert len(stage) == 2
    assert len(said) == 1
    assert "1 entry" in said[0]
    assert "🖕" in said[0]


def test_lists_in_old_chinese_encodings_are_read(tmp_path: Path) -> None:
    phrases = ["坏蛋", "滚出去", "胡说八道", "骗子", "不要脸的东西", "weasel"]
    for codec in ("gb18030", "utf-16", "utf-8"):
        path = tmp_path / f"{codec}.txt"
        path.write_bytes("\n".join(phrases).encode(codec))
        assert read_phrases(path) == phrases


def test_a_list_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("one\n")
    assert len(block([str(path)])) == 1
    path.write_text("one\ntwo\n")
    assert len(block([str(path)])) == 2


def test_an_unusable_list_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        block([str(tmp_path / "no.txt")])
    with pytest.raises(EnvironmentFault, match="cannot read"):
        block([str(tmp_path)])
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="holds no word"):
        block([str(tmp_path / "empty.txt")])
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 4)
    with pytest.raises(DataError, match="is not text"):
        block([str(tmp_path / "binary")])


@pytest.mark.parametrize(
    ("words", "data", "column"),
    [("zh.txt", "cold-zh/cold-dev.csv.gz", "TEXT"), ("en.txt", "toxicity-en/*.csv.gz", "text")],
)
def test_real_lists_on_real_comments(words: str, data: str, column: str) -> None:
    path = SHARED_DATA / "blocked-words" / words
    found = sorted(SHARED_DATA.glob(data))
    if not path.is_file() or not found:
        pytest.skip("needs the real data")
    rows = csv.DictReader(io.StringIO(gzip.decompress(found[0].read_bytes()).decode("utf-8-sig")))
    texts = [row[column] for row in rows]
    phrases = read_phrases(path)
    hits = dict(Blocklist(phrases).find(texts))
    step = len(texts) // 300
    assert [twin(phrases, text) for text in texts[::step]] == [
        hits.get(number) for number in range(0, len(texts), step)
    ]
    assert hits
