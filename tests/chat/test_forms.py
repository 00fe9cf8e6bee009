"""Replies of a given form in pipes: one of several choices, or JSON; and messages that fit."""

from __future__ import annotations

import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat.piping import asker

from chatbench.chat import start
from chatbench.chat.forms import Form, Forms, Weighed, drawn, form_of, read_schema
from chatbench.chat.lines import JsonLines
from chatbench.chat.pipe import answer
from chatbench.conversation import Message
from chatbench.engine.constraints import Choices
from chatbench.engine.json_schema import ANY_OBJECT
from chatbench.errors import UsageError
from chatbench.model.folder import OpenedModel, open_model
from chatbench.settings import ChatSettings, SamplingSettings, replace
from chatbench.text.fitting import fit, oldest
from chatbench.text.template import render, reply_prompt

WARM = SamplingSettings(temperature=2.0, top_k=0, top_p=1.0, max_tokens=40)
SCHEMA = {"type": "object", "properties": {"店": {"enum": ["茶", "tea"]}}, "required": ["店"]}
Ask = Callable[..., tuple[int, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def opened(base_run: Path) -> OpenedModel:
    return open_model(base_run, torch.device("cpu"))


@pytest.fixture
def ask(opened: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """The exit code and the reply rows for the given rows."""

    def answered(*rows: Any, **given: Any) -> tuple[int, list[dict[str, Any]]]:
        (tmp_path / "in").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        stdin = os.open(tmp_path / "in", os.O_RDONLY)
        try:
            code = JsonLines(asker(opened, WARM, **given), 3).run(stdin)
        finally:
            os.close(stdin)
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return answered


# -- what is asked -------------------------------------------------------------------------------


def test_a_form_is_asked_for_by_choices_or_as_openai_does() -> None:
    assert form_of({"prompt": "x"}) is None
    assert form_of({"choices": ["yes", "否"]}) == Form(("yes", "否"))
    assert form_of({"response_format": {"type": "text"}}) == Form()
    assert form_of({"response_format": {"type": "json_object"}}) == Form(schema=ANY_OBJECT)
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}
    assert form_of({"response_format": wanted}) == Form(schema=SCHEMA)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"choices": "yes"}, "choices is not a list of texts"),
        ({"choices": [1]}, "choices is not a list of texts"),
        ({"choices": []}, "choices is empty"),
        ({"choices": ["a", " "]}, "a choice is empty"),
        ({"choices": ["茶", "茶"]}, "the choice 茶 is there twice"),
        ({"choices": ["tea", " tea"]}, "twice"),
        ({"choices": ["e\u0301"]}, "the tokenizer cannot write the choice"),
        ({"choices": ["tea " * 40]}, "tokens, and there is room for"),
        ({"choices": ["a"], "stop": ["a"]}, "stop would cut off"),
        ({"choices": ["a"], "response_format": {"type": "text"}}, "both choices and response"),
        ({"response_format": "json"}, "none of text, json_object and json_schema"),
        ({"response_format": {"type": "xml"}}, "none of text, json_object and json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "none of text"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {
                "schema": {"type": "string", "format": "date"}}}},
            "the schema has format, which replies cannot be held to",
        ),
    ],
)  # fmt: skip
def test_a_form_that_cannot_be_is_an_error_of_its_line(
    ask: Ask, row: dict[str, Any], why: str
) -> None:
    code, (bad, good) = ask({"prompt": "茶", **row}, {"prompt": "x", "max_tokens": 1})
    assert code == 3
    assert why in bad["error"]
    assert "text" in good


def test_a_schema_is_a_file_or_the_word_object(tmp_path: Path) -> None:
    path = tmp_path / "形.json"
    path.write_text("\ufeff" + json.dumps(SCHEMA), encoding="utf-8")
    assert read_schema(str(path)) == SCHEMA
    assert read_schema("object") == ANY_OBJECT
    path.write_text("{'a': 1}", encoding="utf-8")
    with pytest.raises(UsageError, match="is not JSON"):
        read_schema(str(path))
    path.write_text("null", encoding="utf-8")
    with pytest.raises(UsageError, match="is no JSON Schema"):
        read_schema(str(path))
    path.write_text(" " * (1 << 20) + "{}", encoding="utf-8")
    with pytest.raises(UsageError, match="larger than 1 MB"):
        read_schema(str(path))
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="there is no file"):
            read_schema(str(place))


def test_a_value_nested_too_deep_is_refused_in_one_line(opened: OpenedModel) -> None:
    value: list[Any] = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(UsageError, match="nested too deep"):
        asker(opened, WARM, form=Form(schema={"const": value}))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"choice": ["a"], "json_schema": "object", "prompt": "x"}, "two forms"),
        ({"choice": ["a"]}, "--choice needs a prompt"),
        ({"json_schema": "object"}, "--json-schema needs a prompt"),
        ({"json_schema": "no.json", "prompt": "x"}, "there is no file"),
        ({"choice": ["a", ""], "jsonl": True}, "a choice is empty"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(
    base_run: Path, given: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start.console, "stdin_is_terminal", lambda: True)
    with pytest.raises(UsageError, match=why):
        start.chat(ChatSettings(model=str(base_run), device="cpu", **given))


# -- choices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["yes", " You are welcome!", "不客气！", "茶 tea\n茶", "😀"])
def test_a_choice_is_written_as_training_writes_it(opened: OpenedModel, name: str) -> None:
    tokenizer = opened.tokenizer
    limit = Forms(tokenizer).constraint(Form((name,)))
    assert isinstance(limit, Choices)
    turns = [Message("system", "Be 友善"), Message("user", "好吗?")]
    prompt = reply_prompt(tokenizer, turns)
    rendered = render(tokenizer, [*turns, Message("assistant", name)])
    learned = [n for n, w in zip(rendered.ids, rendered.weights, strict=True) if w]
    assert rendered.ids[: len(prompt)] == prompt
    assert [*limit.choices[name], tokenizer.turn_end] == learned
    raw = Forms(tokenizer, raw=True).constraint(Form((name,)))
    assert isinstance(raw, Choices)
    assert tokenizer.decode(raw.choices[name]) == name


def test_replies_are_one_of_the_choices_with_the_share_of_each(
    ask: Ask, opened: OpenedModel
) -> None:
    names = ["yes", "yes, we do", "不", "没有茶"]
    rows = [{"prompt": p, "choices": names, "n": 3} for p in ("tea?", "有茶吗？")]
    code, replies = ask(*rows, {"prompt": "free", "max_tokens": 3})
    assert code == 0
    assert "choices" not in replies.pop()
    for reply in replies:
        assert reply["text"] in names
        assert reply["finish_reason"] == "stop"
        assert list(reply["choices"]) == names
        assert math.isclose(sum(reply["choices"].values()), 1.0, abs_tol=4e-6)
    assert replies[0]["choices"] == replies[2]["choices"]
    assert replies[0]["choices"] != replies[3]["choices"]


def test_shares_are_those_of_the_whole_replies(ask: Ask, opened: OpenedModel) -> None:
    """The slow twin: each choice as a conversation, its learned tokens in a row."""
    names = ["yes", "不", "yes, we do"]
    for raw in (False, True):
        _, (reply,) = ask({"prompt": "有茶吗?", "choices": names}, raw=raw)
        chances = []
        for name in names:
            turns = [Message("user", "有茶吗?")]
            before = reply_prompt(opened.tokenizer, turns)
            ids = render(opened.tokenizer, [*turns, Message("assistant", name)]).ids
            if raw:
                before = [*opened.tokenizer.text_prefix, *opened.tokenizer.encode("有茶吗?")]
                ids = [*before, *opened.tokenizer.encode(name)]
            with torch.inference_mode():
                scores = opened.model.logits(opened.model(torch.tensor([ids])))[0]
            table = scores[:, : opened.tokenizer.vocab_size].double().log_softmax(-1)
            end = ids.index(opened.tokenizer.turn_end, len(before)) if not raw else len(ids)
            chance = sum(float(table[at - 1, ids[at]]) for at in range(len(before), end))
            if not raw:
                chance += float(table[end - 1, sorted(opened.tokenizer.stops)].logsumexp(0))
            chances.append(chance)
        wanted = torch.tensor(chances).softmax(0).tolist()
        assert reply["text"] in names
        # float32 rounds the logits of at most ten tokens by 2 ** -20 of 16; told are six digits.
        assert list(reply["choices"].values()) == pytest.approx(wanted, abs=1e-3)


def test_choices_are_drawn_by_their_shares(opened: OpenedModel, rng: random.Random) -> None:
    """As whole replies, and greedily the likeliest whatever its first token is."""
    names = ["yes", "you", "y", "不", "没有"]
    warm = SamplingSettings(temperature=1.0, top_k=0, top_p=1.0)
    made = asker(opened, warm, form=Form(tuple(names)))
    (request,) = made.text("有茶吗?").requests
    limit = request.constraint
    assert isinstance(limit, Weighed)
    # Shares that differ by less than they happen to for a model of chance.
    limit._logprobs = [rng.uniform(-1.0, 1.0) for _ in names]
    draws = 4000
    counts: Counter[str] = Counter()
    for _ in range(draws):
        sampling = replace(warm, seed=rng.randrange(1 << 48))
        one = drawn(made.engine, request._replace(sampling=sampling)).constraint
        assert isinstance(one, Choices)
        ((name, ids),) = one.choices.items()
        assert ids == limit.choices[name]
        counts[name] += 1
    mass = [math.exp(chance) for chance in limit._logprobs]
    wanted = {n: draws * m / math.fsum(mass) for n, m in zip(names, mass, strict=True)}
    # Four degrees of freedom: above 50 less than once in a billion runs.
    assert sum((counts[n] - e) ** 2 / e for n, e in wanted.items()) < 50
    sure = replace(warm, temperature=0.0)
    one = drawn(made.engine, request._replace(sampling=sure)).constraint
    assert isinstance(one, Choices)
    assert [*one.choices] == [max(wanted, key=lambda name: wanted[name])]


def test_a_prompt_of_the_command_line_gets_one_of_its_choices(
    opened: OpenedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    form = Form(("是", "no"))
    assert answer(asker(opened, WARM, form=form), "open?") == 0
    assert capsys.readouterr().out in ("是\n", "no\n")
    assert answer(asker(opened, WARM, form=form, samples=2), "open?", as_json=True) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [set(row["choices"]) for row in rows] == [{"是", "no"}] * 2
    assert answer(asker(opened, WARM, form=form, raw=True), "open?") == 0
    assert capsys.readouterr().out in ("是\n", "no\n")


# -- JSON ----------------------------------------------------------------------------------------


def test_replies_are_json_of_the_schema(ask: Ask, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"type": "json_schema", "json_schema": {"schema": {"enum": [1, 2]}}}
    code, replies = ask(
        {"prompt": "a"}, {"prompt": "b", "response_format": {"type": "json_object"}},
        {"prompt": "c", "response_format": own}, {"prompt": "d", "choices": ["x"]},
        {"prompt": "e", "response_format": {"type": "text"}, "max_tokens": 2},
        form=Form(schema=SCHEMA),
    )  # fmt: skip
    assert code == 0
    first, second, third = (json.loads(reply["text"]) for reply in replies[:3])
    assert first["店"] in ("茶", "tea")
    assert isinstance(second, dict)
    assert third in (1, 2)
    assert replies[3]["text"] == "x"
    assert "choices" not in replies[0]


# -- messages that are too many ------------------------------------------------------------------


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": c} for n, c in enumerate(contents)]


def test_the_oldest_exchanges_make_room_and_the_system_turn_stays(
    ask: Ask, opened: OpenedModel
) -> None:
    whole = turns("a", "茶", "tea", "b", "c", "有", "now?")
    system = {"role": "system", "content": "Be"}
    _, (reply, short) = ask(
        {"messages": [system, *whole], "tags": {"s": 1}},
        {"messages": [system, *whole[-1:]]},
    )
    count = reply["dropped_turns"]
    assert count > 0
    assert count % 2 == 0
    assert "dropped_turns" not in short
    opening = [Message("system", "Be\n\ns: 1")]
    kept = [Message(m["role"], m["content"]) for m in whole[count:]]  # type: ignore[arg-type]
    prompt = reply_prompt(opened.tokenizer, [*opening, *kept])
    assert reply["usage"]["prompt_tokens"] == len(prompt)


def test_one_message_too_long_is_still_refused(ask: Ask) -> None:
    code, (reply,) = ask({"messages": [*turns("a", "b"), *turns("long " * 300)]})
    assert code == 3
    assert "context" in reply["error"]


def test_as_little_is_left_out_as_possible(opened: OpenedModel, rng: random.Random) -> None:
    """The slow twin: one exchange less, again and again."""
    tokenizer = opened.tokenizer
    for _ in range(40):
        messages = [
            Message(
                rng.choice(["user", "assistant"]), rng.choice(["tea", "茶叶 " * 4, "long " * 9])
            )
            for _ in range(rng.randint(1, 12))
        ]
        opening = rng.choice([[], [Message("system", "Be")]])
        room = rng.randint(10, 120)
        starts = [n for n, m in enumerate(messages) if m.role == "user"] or [0]
        out = rng.randrange(len(starts) + 2)
        wanted = min(out, len(starts) - 1)
        while True:
            left = messages[starts[wanted] :] if wanted else messages
            ids = reply_prompt(tokenizer, [*opening, *left])
            if len(ids) <= room or wanted == len(starts) - 1:
                break
            wanted += 1
        assert fit(tokenizer, opening, messages, room, out) == (ids, wanted)
        assert oldest(messages, wanted) == (starts[wanted] if wanted else 0)
