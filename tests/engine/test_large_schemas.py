"""Schemas of a size at which the shortest reply has to be looked for with care."""

from __future__ import annotations

import json
from typing import Any

import pytest

from chatbench.engine.grammar import Automaton
from chatbench.engine.json_constraint import JsonReply, Spellings
from chatbench.engine.json_schema import JsonRules
from chatbench.errors import UsageError
from chatbench.text.tokenizer import Tokenizer


def test_a_schema_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(500):
        schema = {"items": schema}
    with pytest.raises(UsageError, match="deeper"):
        JsonRules(schema)


@pytest.mark.parametrize("needed", [True, False], ids=["required", "optional"])
def test_an_object_may_have_a_thousand_properties(needed: bool) -> None:
    names = [f"字段{number}" for number in range(1000)]
    properties = {name: {"type": "integer"} for name in names}
    schema = {"properties": properties, "required": names if needed else []}
    rules = JsonRules(schema)
    machine = Automaton(rules, rules.start)
    end = machine.closing(machine.start)
    assert end is not None
    assert json.loads(end) == (dict.fromkeys(names, 0) if needed else {})
    all_of_them = json.dumps(dict.fromkeys(names, 7), ensure_ascii=False).encode()
    state = machine.after(machine.start, all_of_them)
    assert state is not None
    assert () in state


def arrays_of_arrays(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "minItems": 100, "items": schema}
    return schema


@pytest.mark.parametrize("depth", [3, 60])
def test_what_only_an_enormous_reply_could_be_is_refused(tokenizer: Tokenizer, depth: int) -> None:
    """A hundred in each of a hundred in each of …"""
    spellings = Spellings(tokenizer)
    with pytest.raises(UsageError, match="longer than 32,000 bytes"):
        JsonReply(arrays_of_arrays(depth), spellings)
    reply = JsonReply({"anyOf": [arrays_of_arrays(depth), {"const": "茶"}]}, spellings)
    free = (~reply.mask(reply.begin(), 100).forbidden).nonzero().flatten().tolist()
    assert free
    assert all(spellings.entries[number].startswith(b'"') for number in free)
