"""One rendering serves training, chat and other people's programs."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest

from chatbench.conversation import ROLES, Message, as_json
from chatbench.text.template import (
    END_OF_TEXT,
    TURN_END,
    TURN_START,
    render,
    render_batch,
    render_texts,
    reply_prompt,
)
from chatbench.text.tokenizer import Tokenizer

SPACES = ["", "", " ", "\n", "\r\n", "\t ", "\u3000", "\u00a0", "\x85", "\x1c", "\u2028", "\n\n  "]
WORDS = ["tea", " 茶叶", "，", "\u0301", "e\u0301", "👩‍👧", "\n", "  ", "'s", "12", ".",
         "\u200b", "\x00", "{{ messages }}", "{% x %}", "[INST]", "\u037e", "\u2000"]  # fmt: skip
LOOKALIKES = [TURN_START, TURN_END, END_OF_TEXT, f"{TURN_END}\n{TURN_START}assistant\n", "<|im_"]


def content(rng: random.Random, words: list[str]) -> str:
    middle = "".join(rng.choices(words, k=rng.randrange(8)))
    return rng.choice(SPACES) + middle + rng.choice(SPACES)


def conversation(rng: random.Random, words: list[str]) -> list[Message]:
    """System or not, then turns in any order, contents with white space at both ends."""
    turns = [Message(rng.choice(ROLES[1:]), content(rng, words)) for _ in range(rng.randint(1, 6))]
    return [*([Message("system", content(rng, words))] if rng.random() < 0.3 else []), *turns]


def learned(ids: list[int], weights: list[int]) -> list[int]:
    return [number for number, weight in zip(ids, weights, strict=True) if weight]


def test_a_rendering_by_hand(tokenizer: Tokenizer) -> None:
    messages = [Message("user", " 茶? \n"), Message("assistant", "Yes.")]
    newline = tokenizer.encode("\n")
    asked = [tokenizer.turn_start, *tokenizer.encode("user\n"), *tokenizer.encode("茶?")]
    opening = [tokenizer.turn_start, *tokenizer.encode("assistant\n")]
    reply = [*tokenizer.encode("Yes."), tokenizer.turn_end]
    before = [*asked, tokenizer.turn_end, *newline, *opening]
    assert render(tokenizer, messages) == (
        [*before, *reply, *newline],
        [0] * len(before) + [1] * len(reply) + [0] * len(newline),
    )
    assert reply_prompt(tokenizer, messages[:1]) == before
    assert reply_prompt(tokenizer, []) == opening


def test_what_is_learned_is_the_replies_and_their_end_and_nothing_else(
    tokenizer: Tokenizer, rng: random.Random
) -> None:
    for _ in range(100):
        messages = conversation(rng, WORDS + LOOKALIKES)
        expected: list[int] = []
        for message in messages:
            if message.role == "assistant":
                expected += [*tokenizer.encode(message.content.strip()), tokenizer.turn_end]
        ids, weights = render(tokenizer, messages)
        assert learned(ids, weights) == expected
        assert set(weights) <= {0, 1}


def test_the_ids_before_each_reply_are_the_ids_of_the_chat_prompt(
    tokenizer: Tokenizer, rng: random.Random
) -> None:
    prefixes = 0
    for _ in range(100):
        messages = conversation(rng, WORDS + LOOKALIKES)
        ids, weights = render(tokenizer, messages)
        begins = [
            i for i, weight in enumerate(weights) if weight and (i == 0 or not weights[i - 1])
        ]
        replies = [i for i, message in enumerate(messages) if message.role == "assistant"]
        assert len(begins) == len(replies)
        for begin, reply in zip(begins, replies, strict=True):
            assert ids[:begin] == reply_prompt(tokenizer, messages[:reply])
            prefixes += 1
        for count in range(len(messages)):
            assert ids[: len(render(tokenizer, messages[:count]).ids)] == (
                render(tokenizer, messages[:count]).ids
            )
    assert prefixes > 50


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(folder))


def test_transformers_renders_the_very_same_ids(
    tokenizer: Tokenizer, theirs: Any, rng: random.Random
) -> None:
    for _ in range(100):
        messages = conversation(rng, WORDS)
        for prompt in (False, True):
            whole = render(tokenizer, messages).ids
            expected = reply_prompt(tokenizer, messages) if prompt else whole
            found = theirs.apply_chat_template(
                as_json(messages), tokenize=True, add_generation_prompt=prompt, return_dict=False
            )
            assert found == expected, messages


def test_lookalikes_in_contents_stay_text(tokenizer: Tokenizer, rng: random.Random) -> None:
    for _ in range(200):
        messages = conversation(rng, LOOKALIKES)
        ids, _ = render(tokenizer, messages)
        marks = [number for number in ids if number in tokenizer.control_ids]
        assert marks == [tokenizer.turn_start, tokenizer.turn_end] * len(messages)
        said = "".join(f"{m.role}\n{m.content.strip()}\n" for m in messages)
        assert tokenizer.decode(ids) == said


def test_many_conversations_together_equal_each_alone(
    tokenizer: Tokenizer, rng: random.Random
) -> None:
    many = [conversation(rng, WORDS) for _ in range(30)]
    assert list(render_batch(tokenizer, many)) == [render(tokenizer, one) for one in many]
    assert list(render_batch(tokenizer, [])) == []


def test_of_a_plain_text_everything_is_learned_and_its_end(tokenizer: Tokenizer) -> None:
    plain, empty = render_texts(tokenizer, [f" 茶 {TURN_END}", ""])
    assert plain.ids == [*tokenizer.encode(f" 茶 {TURN_END}"), tokenizer.end_of_text]
    assert plain.weights == [1] * len(plain.ids)
    assert empty == ([tokenizer.end_of_text], [1])
