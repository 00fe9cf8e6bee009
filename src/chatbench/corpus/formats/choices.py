"""Questions with a list of answers to choose from → a prompt that shows them, and the right line.

The rows of MMLU (question, A … D, answer), ARC (choices of text and label, answerKey),
CommonsenseQA, AGIEval (passage, options, label) and their like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from chatbench.conversation import Message
from chatbench.corpus.document import Document

LETTERS = "abcdefghij"
ANSWERS = ("answer", "label", "answerkey", "answer_key", "answer_idx", "correct_answer", "答案")
_LETTERED = re.compile(r"\s*\(?([A-Ja-j])(?:[).:、．：)]|\s*）)\s*\S")
_MARKS = " \t()（）.:．：、"
_LONGEST_NAME = 3


class Option(NamedTuple):
    """One answer: its name (A, B, … or the row's own), its text, and the line that shows it."""

    name: str
    text: str
    line: str


def multiple_choice(
    row: dict[str, Any], source: str, columns: Mapping[str, str], rest: tuple[str, ...]
) -> Document | None:
    """The question with its options below, and as reply the line of the right one.

    The answer is an option's letter, its own label, its number from 0 or its text. None where the
    options or the answer are of another kind; raises ValueError for an answer that no option has.
    """
    asked = row[columns["asked"]]
    options = _options(row, columns)
    if options is None or not isinstance(asked, str):
        return None
    answers = [row[columns[name]] for name in ANSWERS if name in columns]
    given = [answer for answer in answers if answer is not None]
    chosen = next(filter(None, (_chosen(a, options, columns) for a in given)), None)
    if chosen is None:
        if any(isinstance(answer, str) and len(answer.strip()) > _LONGEST_NAME for answer in given):
            return None  # an answer in free words
        shown = given[0] if given else None
        raise ValueError(f"answer {shown!r} names none of the {len(options)} options")
    passage = row[columns["passage"]] if "passage" in columns else None
    opening = f"{passage.strip()}\n\n" if isinstance(passage, str) and passage.strip() else ""
    lines = "\n".join(option.line for option in options)
    turns = (
        Message("user", f"{opening}{asked.strip()}\n{lines}"),
        Message("assistant", chosen.line),
    )
    meta = {key: row[key] for key in rest if key in row}
    return Document(source, messages=turns, meta=meta, shape="multiple choice")


def lettered_columns(names: Mapping[str, str]) -> dict[str, str]:
    """Columns named A, B, C …, two at least and none left out; `names` is lower case → key."""
    found: dict[str, str] = {}
    for letter in LETTERS:
        if letter not in names:
            break
        found[f"option {letter}"] = names[letter]
    return found if len(found) > 1 else {}


def _options(row: dict[str, Any], columns: Mapping[str, str]) -> list[Option] | None:
    if "options" not in columns:
        raw: object = {letter.upper(): row[columns[f"option {letter}"]] for letter in LETTERS
                       if f"option {letter}" in columns}  # fmt: skip
    else:
        raw = row[columns["options"]]
    names: list[Any] = []
    texts: list[Any] = []
    if isinstance(raw, dict) and isinstance(raw.get("text"), list):
        texts, names = raw["text"], raw.get("label") or []
    elif isinstance(raw, dict):
        names, texts = list(raw), list(raw.values())
    elif isinstance(raw, list):
        texts = raw
    texts = [str(t) if isinstance(t, int | float) and not isinstance(t, bool) else t for t in texts]
    if not 1 < len(texts) <= len(LETTERS) or not all(isinstance(t, str) for t in texts):
        return None
    if not names and _are_lettered(texts):
        return [Option(t.strip(_MARKS)[0].upper(), t, t.strip()) for t in texts]
    names = names or [letter.upper() for letter in LETTERS[: len(texts)]]
    if len(names) != len(texts):
        return None
    pairs = [(str(name), text.strip()) for name, text in zip(names, texts, strict=True)]
    return [Option(name, text, f"{name}. {text}") for name, text in pairs]


def _are_lettered(texts: list[str]) -> bool:
    """Whether the options bear their letters already, in order."""
    found = [_LETTERED.match(text) for text in texts]
    return [m[1].casefold() for m in found if m] == list(LETTERS[: len(texts)])


def _chosen(answer: Any, options: list[Option], columns: Mapping[str, str]) -> Option | None:
    """Of a table's cells digits are a number; of JSON's values only numbers are."""
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, str):
        bare = answer.strip(_MARKS).casefold()
        tests: list[Callable[[Option], bool]] = [
            lambda option: option.name.casefold() == bare,
            lambda option: option.text.strip() == answer.strip(),
        ]
        if "options" not in columns and bare.isdecimal():
            tests.pop()
        for test in tests:
            found = [option for option in options if test(option)]
            if found:
                return found[0] if len(found) == 1 else None
        answer = int(bare) if bare.isascii() and bare.isdecimal() else None
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return options[answer]
    return None
