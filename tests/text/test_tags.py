"""Tags are written one way everywhere, are text whatever they say, and are found again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from text.foreign import BUILDERS, write_tokenizer

from chatbench.conversation import Message
from chatbench.corpus.cleaning.stages import tagged
from chatbench.corpus.document import Document
from chatbench.errors import IntegrityError, UsageError
from chatbench.text.tags import (
    FILE,
    MOST_VALUES,
    Known,
    control_text,
    fewer,
    known_after,
    known_in,
    lines_of,
    merged,
    parse_tag,
    parse_tags,
    read_known,
    said,
    shown,
    system_text,
    tags_in,
    unlearned,
    with_control,
    write_known,
)
from chatbench.text.template import render, reply_prompt
from chatbench.text.tokenizer import Tokenizer, open_tokenizer

HOSTILE = (
    "formal", "正式", "a: b", "x\ny", "<|im_end|>", "<|im_start|>assistant\n", "</s>[/INST]", "  ",
    "\udcff", "é" * 3, "style: casual", "=", "\x00", "\x1b[31m", "{{ 7 * 7 }}", 3, 0.5, True, None,
    "<|eot_id|>", "<<SYS>>",
)  # fmt: skip
COLUMNS = ("style", "文体", "reply style", "a:b", "topic", "<|im_end|>", "two\nlines")
QWEN = """\
{%- if messages[0].role != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant, patient and kind.<|im_end|>\\n' -}}
{%- endif -%}
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
TEMPLATES = [
    ("qwen", "chatml"), ("qwen", QWEN), ("smollm", "chatml"), ("llama3", "llama3"),
    ("mistral", "mistral"), ("zephyr", "zephyr"), ("gpt2", "plain"), ("llama2", "plain"),
]  # fmt: skip


def some_tags(rng: random.Random) -> dict[str, Any]:
    return {c: rng.choice(HOSTILE) for c in rng.sample(COLUMNS, rng.randint(0, 4))}


@pytest.fixture(scope="module", params=TEMPLATES, ids=lambda p: f"{p[0]}-{p[1][:8].strip()}")
def foreign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    kind, template = request.param
    folder = write_tokenizer(tmp_path_factory.mktemp(kind), BUILDERS[kind]())
    return open_tokenizer(folder, template)


def check_prefix(tokenizer: Tokenizer, rng: random.Random) -> None:
    """What chat asks under tags is what training has in front of the reply."""
    meta = some_tags(rng)
    own = [Message("system", rng.choice([" Be kind.\n", "友善。", "a: b"]))] * rng.randint(0, 1)
    turns = (*own, Message("user", "茶多少钱？"), Message("assistant", "5 yuan."))
    document = tagged(Document("a", messages=turns, meta=meta), list(meta), 0.0, b"")
    trained = document.turns()
    assert trained is not None
    system = own[0].content if own else None
    opening = system_text(system, control_text(dict(reversed(meta.items())), order=list(meta)))
    asked = [Message("system", opening)] * bool(opening) + [turns[-2]]
    prompt = reply_prompt(tokenizer, asked)
    rendered = render(tokenizer, trained)
    assert rendered.ids[: len(prompt)] == prompt
    assert not any(rendered.weights[: len(prompt)])


def test_the_ids_of_a_chat_prompt_are_those_of_training(
    tokenizer: Tokenizer, rng: random.Random
) -> None:
    for _ in range(40):
        check_prefix(tokenizer, rng)


def test_so_they_are_in_the_formats_of_other_families(
    foreign: Tokenizer, rng: random.Random
) -> None:
    for _ in range(20):
        check_prefix(foreign, rng)


def test_tags_never_become_control_tokens(foreign: Tokenizer, rng: random.Random) -> None:
    for _ in range(20):
        control = control_text(some_tags(rng))
        turns = with_control([Message("user", "a")], control)
        plain = [Message(m.role, "a") for m in turns]
        found, wanted = (
            [n for n in reply_prompt(foreign, t) if n in foreign.control_ids]
            for t in (turns, plain)
        )
        assert found == wanted


@pytest.mark.parametrize(
    ("value", "line"),
    [("  very\n formal\t", "very formal"), ("茶\u3000书", "茶 书"), ("a: b", "a: b"), (3, "3"),
     (0.5, "0.5"), (False, "False"), ("", None), (" \n", None), (None, None), (["a"], None),
     ({"a": 1}, None), ("\udcff", "?")],
)  # fmt: skip
def test_what_a_value_says(value: object, line: str | None) -> None:
    assert said(value) == line


def test_columns_stand_in_the_order_that_was_learned() -> None:
    tags = {"new": "x", "topic": "茶", "style": "formal"}
    assert control_text(tags, ["style", "topic"]) == "style: formal\ntopic: 茶\nnew: x"
    assert control_text(tags) == "new: x\ntopic: 茶\nstyle: formal"
    assert control_text({"a\nb": " ", "c\nd": "e"}) == "c d: e"


@pytest.mark.parametrize("tags", [["a"], "style=formal", {"style": ["a"]}, {"style": {}}])
def test_what_is_no_tags_is_refused(tags: object) -> None:
    with pytest.raises(UsageError):
        control_text(tags)


def test_the_system_turn_holds_the_prompt_and_the_tags() -> None:
    assert system_text(None, "") is None
    assert system_text(" Be kind\n", "") == " Be kind\n"
    assert system_text(" Be kind\n", "style: x") == "Be kind\n\nstyle: x"
    assert system_text("  ", "style: x") == "style: x"
    asked = (Message("user", "a"),)
    assert with_control(asked, "") == asked
    assert with_control(asked, "style: x") == (Message("system", "style: x"), *asked)
    own = (Message("system", "Be kind", 0), *asked)
    assert with_control(own, "style: x") == (Message("system", "Be kind\n\nstyle: x"), *asked)


def test_fewer_tags() -> None:
    assert fewer("") == []
    assert fewer("a: 1") == [""]
    assert fewer("a: 1\nb: 2\nc: 3") == ["", "b: 2\nc: 3", "a: 1\nc: 3", "a: 1\nb: 2"]


@pytest.mark.parametrize("typed", ["style", "=formal", "style=", " = ", "", "style= \n"])
def test_what_is_typed_and_no_tag(typed: str) -> None:
    with pytest.raises(UsageError, match="such as --tag style=formal"):
        parse_tag(typed)


def test_what_is_typed_becomes_tags() -> None:
    given = ["style=formal", "文体= 很 \n正式", "a:b=c=d", "style=随意", "x=\udcff"]
    assert parse_tags(given) == {"style": "随意", "文体": "很 正式", "a:b": "c=d", "x": "?"}


def test_what_was_not_learned_is_told_with_what_was() -> None:
    known: Known = {"style": {"formal": 3, "随意": 9}, "topic": {}}
    assert unlearned({"style": "formal", "topic": "x"}, known) == []
    assert unlearned({"style": "foo"}, known) == [
        "the model has not learned style=foo; it knows 随意, formal"
    ]
    assert unlearned({"tone": "x"}, known) == [
        "the model has not learned a tag tone; it knows style, topic"
    ]
    assert unlearned({"style": "foo"}, {}) == [], "nothing is known of such a model"
    assert unlearned({"style": None}, known) == []
    many = {"style": {str(n): 1 for n in range(MOST_VALUES)}}
    assert unlearned({"style": "foo"}, many) == [], "more may have been learned than is noted"


def test_only_the_most_frequent_values_are_shown() -> None:
    assert shown({str(n): n for n in range(1, 12)}) == "11, 10, 9, 8, 7, 6, 5, 4 and 3 more"


def test_known_tags_come_back_from_a_folder(tmp_path: Path) -> None:
    known: Known = {"style": {"formal": 3, "随意": 1}}
    assert read_known(tmp_path) == {}
    write_known(tmp_path, {})
    assert not (tmp_path / FILE).exists()
    write_known(tmp_path, known)
    assert read_known(tmp_path) == known
    for damage in (b"{", b"[]", b'{"style": {"a": "b"}}', b"\xff", b"[" * 100_000):
        (tmp_path / FILE).write_bytes(damage)
        with pytest.raises(IntegrityError, match="damaged"):
            read_known(tmp_path)


@pytest.mark.parametrize(
    "noted", [{}, {"tags": 3}, {"tags": {"a": []}}, {"tags": {"a": {"b": "c"}}}]
)
def test_a_model_that_notes_nothing_of_use_knows_no_tags(noted: dict[str, Any]) -> None:
    assert known_in(noted) == {}


def test_counts_add_up_and_stay_small() -> None:
    many = {"n": {str(n): n for n in range(200)} | {"x" * 81: 999}}
    total = merged([{"style": {"a": 1, "b": 5}}, many, {"style": {"a": 7}, "new": {"茶": 1}}])
    assert list(total) == ["style", "n", "new"]
    assert list(total["style"].items()) == [("a", 8), ("b", 5)]
    assert list(total["n"]) == [str(n) for n in range(199, 199 - MOST_VALUES, -1)]
    assert len(merged([{f"c{n}": {"a": 1} for n in range(50)}])) == 20


def test_what_was_learned_again_is_counted_once() -> None:
    before: Known = {"style": {"a": 7, "b": 1}, "old": {"x": 1}}
    now: Known = {"new": {"茶": 2}, "style": {"a": 3, "c": 9}}
    after = known_after(before, now)
    assert after == {"new": {"茶": 2}, "style": {"c": 9, "a": 3, "b": 1}, "old": {"x": 1}}
    assert list(after) == ["new", "style", "old"]


def test_tags_are_found_again_behind_what_a_template_writes(
    foreign: Tokenizer, rng: random.Random
) -> None:
    known: Known = {
        "style": {"formal": 1, "very formal": 1, "随意": 1}, "my style": {"formal": 1},
    }  # fmt: skip
    assert tags_in("a style: formal\nmy style: formal\nstyle: x", known) == {
        "style": "formal", "my style": "formal",
    }  # fmt: skip
    for _ in range(20):
        tags = {
            column: rng.choice([*known[column]])
            for column in rng.sample([*known], rng.randint(0, 2))
        }
        turns = with_control([Message("user", "is it?")], control_text(tags, known))
        assert tags_in(lines_of(foreign, reply_prompt(foreign, turns)), known) == tags
