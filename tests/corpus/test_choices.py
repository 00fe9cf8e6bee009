"""Questions with options: what is shown, what is learned, and which answer is meant."""

from __future__ import annotations

import random
from typing import Any

import pytest

from chatbench.corpus.formats.rows import to_document

TEAS = ["绿茶", "红茶", "oolong"]
SHOWN = "A. 绿茶\nB. 红茶\nC. oolong"


def turns(row: dict[str, Any], **mapping: str) -> list[str]:
    return [m.content for m in to_document(row, "f:1", mapping).messages or ()]


@pytest.mark.parametrize("answer", [1, "B", "b", "(B)", "B.", "红茶", ["B"], "1"])
def test_an_answer_may_be_a_letter_a_number_from_0_or_the_text(answer: object) -> None:
    row = {"question": "哪种？", "choices": TEAS, "answer": answer, "subject": "tea"}
    found = to_document(row, "f:1", {})
    assert [m.content for m in found.messages or ()] == [f"哪种？\n{SHOWN}", "B. 红茶"]
    assert (found.shape, found.meta) == ("multiple choice", {"subject": "tea"})


@pytest.mark.parametrize(
    "row",
    [
        {"question": "哪种？", "A": "绿茶", "B": "红茶", "C": "oolong", "answer": "1"},
        {"question": "哪种？", "a": "绿茶", "b": "红茶", "c": "oolong", "答案": "B"},
        {"question": "哪种？", "choices": {"text": TEAS, "label": ["A", "B", "C"]},
         "answerKey": "B"},
        {"question": "哪种？", "options": dict(zip("ABC", TEAS, strict=True)), "answer": "B"},
        {"passage": None, "question": "哪种？", "options": TEAS, "label": "B", "answer": None},
        {"问题": "哪种？", "选项": TEAS, "答案": "B"},
    ],
)  # fmt: skip
def test_options_come_in_many_clothes(row: dict[str, Any]) -> None:
    assert turns(row) == [f"哪种？\n{SHOWN}", "B. 红茶"]


def test_options_that_bear_their_letters_keep_them_and_a_passage_comes_first() -> None:
    row = {"passage": "她进了店。", "question": "哪种？", "options": ["(A)绿茶", "(B)红茶"],
           "label": "B"}  # fmt: skip
    assert turns(row) == ["她进了店。\n\n哪种？\n(A)绿茶\n(B)红茶", "(B)红茶"]


def test_numbers_in_a_table_count_options_even_where_these_are_numbers() -> None:
    table = {"question": "2 × 2?", "A": "0", "B": "4", "C": "2", "D": "1", "answer": "1"}
    assert turns(table)[1] == "B. 4"
    named = {"question": "2 × 2?", "choices": {"text": ["3", "4"], "label": ["1", "2"]},
             "answerKey": "2"}  # fmt: skip
    assert turns(named)[1] == "2. 4"
    assert turns({"question": "2 × 2?", "choices": ["3", "4", "5", "6"], "answer": "4"})[1] == (
        "B. 4"
    )


@pytest.mark.parametrize("answer", ["E", 3, -1, None, True, "x"])
def test_an_answer_that_no_option_has_is_a_bad_row(answer: object) -> None:
    with pytest.raises(ValueError, match="names none of the 3 options"):
        turns({"question": "哪种？", "choices": TEAS, "answer": answer})


def test_an_answer_in_free_words_and_a_map_are_left_as_they_were() -> None:
    row = {"question": "哪种？", "choices": TEAS, "answer": "I like them all."}
    assert turns(row) == ["哪种？", "I like them all."]
    mapped = {**row, "answer": "B"}
    assert turns(mapped, user="question", assistant="answer") == ["哪种？", "B"]


def test_the_reply_is_always_a_line_of_the_prompt(rng: random.Random) -> None:
    for _ in range(200):
        texts = rng.sample(["茶", "ink", "雨 伞", "a b", "书", "42", "tea."], rng.randint(2, 5))
        right = rng.randrange(len(texts))
        given: object = rng.choice([right, "ABCDE"[right], f"({'abcde'[right]})"])
        prompt, reply = turns({"question": "?", "choices": texts, "answer": given})
        assert prompt.split("\n")[1 + right] == reply
        assert reply.endswith(texts[right])
