"""Messages come in in OpenAI's shape, or with one sentence saying what is off."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbench.conversation import (
    ROLES,
    Message,
    as_json,
    exchange,
    parse_messages,
)

messages = st.lists(
    st.builds(Message, st.sampled_from(ROLES), st.text()), min_size=1, max_size=5
).map(tuple)


@settings(max_examples=50, deadline=None)
@given(messages)
def test_json_and_back_changes_nothing(turns: tuple[Message, ...]) -> None:
    assert parse_messages(msgspec.json.decode(msgspec.json.encode(as_json(turns)))) == turns
    assert as_json(list(turns)) == as_json(turns)


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (None, "messages is not a list"),
        ([], "messages is not a list with entries"),
        ({"role": "user", "content": "x"}, "messages is not a list"),
        (["hi"], "message 1 is not an object"),
        ([{"role": "user", "content": "x"}, {"content": "x"}], "message 2 has role None"),
        ([{"role": "human", "content": "x"}], "role 'human', not one of system, user, assistant"),
        ([{"role": ["user"], "content": "x"}], "message 1 has role"),
        ([{"role": "user"}], "message 1 has no text in content"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "no text in content"),
        ([{"role": "user", "content": "x", "weight": 0.5}], "weight 0.5; only 0"),
        ([{"role": "user", "content": "x", "weight": None}], "weight None; only 0"),
    ],
)
def test_what_is_off_is_said(raw: object, what: str) -> None:
    with pytest.raises(ValueError, match=what.replace("[", r"\[")):
        parse_messages(raw)


@pytest.mark.parametrize("weight", [0, 1, 0.0, 1.0, False, True])
def test_a_weight_is_nothing_or_one(weight: object) -> None:
    (turn,) = parse_messages([{"role": "assistant", "content": "x", "weight": weight}])
    assert turn.weight == weight
    assert type(turn.weight) is int


def test_an_exchange_has_a_system_turn_only_when_there_is_one() -> None:
    assert [m.role for m in exchange("q", "a")] == ["user", "assistant"]
    assert [m.role for m in exchange("q", "a", "")] == ["user", "assistant"]
    assert exchange("q", "a", "s")[0] == Message("system", "s")
