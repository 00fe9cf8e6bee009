"""Replies that are JSON: every end is valid, every text of the dialect is allowed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine.schemas import accepts, random_schema

from chatbench.engine.engine import Engine, Request
from chatbench.engine.grammar import WHOLE, Automaton, State
from chatbench.engine.json_constraint import JsonReply, Spellings
from chatbench.engine.json_schema import ANY_OBJECT, JsonRules
from chatbench.errors import UsageError
from chatbench.model.transformer import GPT
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import Tokenizer, train_tokenizer

Make = Callable[..., GPT]

TEXTS = [
    '{"name": "茶", "price": 12.5, "open": true, "tags": ["a", "b"], "none": null}',
    '{"价格":-3e5,"items":[{"x":[]},{}],"text":"a \\"quote\\", \\n and 小店"}',
    "The shop opens at nine. 小店早上九点开门。",
]


@pytest.fixture(scope="module")
def spoken() -> Tokenizer:
    """A tokenizer whose tokens mix quotes, commas, words and halves of characters."""
    return train_tokenizer(TEXTS * 3, 420)


@pytest.fixture(scope="module")
def spellings(spoken: Tokenizer) -> Spellings:
    return Spellings(spoken)


def automaton(schema: object) -> Automaton:
    rules = JsonRules(schema)
    return Automaton(rules, rules.start)


def reads(machine: Automaton, text: str | bytes) -> bool:
    """Whether the whole of it is one text of the language."""
    data = text.encode() if isinstance(text, str) else text
    state = machine.after(machine.start, data)
    return state is not None and () in state


# -- the language --------------------------------------------------------------------------------


def test_strings_hold_what_utf8_and_json_hold(rng: random.Random) -> None:
    """Bytes at random, most of them of multi-byte characters, against Python's decoder."""
    machine = automaton({"type": "string"})
    leads = b'\x00\x1f\x20"a\x7f\x80\xa0\xbf\xc0\xc2\xdf\xe0\xe8\xed\x9f\xf0\x90\xf4\x8f\xf5\xff'
    for _ in range(3000):
        data = bytes(rng.choice(leads) for _ in range(rng.randrange(1, 6)))
        try:
            wanted = not any(c < " " or c == '"' for c in data.decode())
        except UnicodeDecodeError:
            wanted = False
        assert reads(machine, b'"' + data + b'"') == wanted, data


def test_characters_of_every_length_are_allowed_and_counted(rng: random.Random) -> None:
    for _ in range(200):
        text = "".join(rng.choice("aé茶😀 ~\u07ff\u0800\ud7ff\ue000\uffff\U0010ffff\n\"")
                       for _ in range(rng.randrange(6)))  # fmt: skip
        limit = rng.randrange(6)
        spelled = json.dumps(text, ensure_ascii=False)
        assert reads(automaton({"maxLength": limit}), spelled) == (len(text) <= limit)


def test_escapes_are_those_of_json_without_halves_of_pairs(rng: random.Random) -> None:
    machine = automaton({"type": "string"})
    for _ in range(2000):
        inner = "\\" + rng.choice('"\\/bfnrtuuuuuxv0') + "".join(
            rng.choice("dDeEfF0789aAgG") for _ in range(rng.choice([0, 3, 4, 4, 4]))
        )  # fmt: skip
        try:
            value = json.loads(f'"{inner}"')
            wanted = not any(0xD800 <= ord(c) < 0xE000 for c in value)
        except ValueError:
            wanted = False
        assert reads(machine, f'"{inner}"') == wanted, inner


def test_numbers_are_those_of_json(rng: random.Random) -> None:
    anything, whole = automaton({"type": "number"}), automaton({"type": "integer"})
    for _ in range(3000):
        text = "".join(rng.choice("0011259-+.eE") for _ in range(rng.randrange(1, 7)))
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        # Exponents have two digits at most, so that no number is infinite.
        if value is not None and len(text.lower().rpartition("e")[2].lstrip("+-")) > 2 and (
            "e" in text.lower()
        ):  # fmt: skip
            continue
        assert reads(anything, text) == (value is not None), text
        assert reads(whole, text) == isinstance(value, int), text


def spelled(rng: random.Random, value: Any) -> str:
    """JSON with a space or none wherever one may stand."""
    gap = lambda: rng.choice(["", " "])  # noqa: E731
    if isinstance(value, dict) and value:
        inner = f",{gap()}".join(
            f"{json.dumps(k, ensure_ascii=False)}:{gap()}{spelled(rng, v)}"
            for k, v in value.items()
        )
        return f"{{{gap()}{inner}{gap()}}}"
    if isinstance(value, list) and value:
        inner = f",{gap()}".join(spelled(rng, v) for v in value)
        return f"[{gap()}{inner}{gap()}]"
    return json.dumps(value, ensure_ascii=False)


def random_value(rng: random.Random, depth: int = 3) -> Any:
    kind = rng.randrange(8 if depth else 6)
    if kind == 6:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(3))]
    if kind == 7:
        return {rng.choice("ab茶 "): random_value(rng, depth - 1) for _ in range(rng.randrange(3))}
    text = rng.choice(["", "yes", 'a"\n', "价格"])
    return (text, rng.randrange(-99, 99), round(rng.random(), 6), True, False, None)[kind]


def test_any_value_may_be_written_and_an_object_only_where_one_is_asked(
    rng: random.Random,
) -> None:
    anything, some_object = automaton(True), automaton(ANY_OBJECT)
    for _ in range(300):
        value = random_value(rng)
        text = spelled(rng, value)
        assert reads(anything, text)
        assert reads(some_object, text) == isinstance(value, dict)
        cut = rng.randrange(len(text))
        assert reads(anything, text + "}") is False
        assert reads(some_object, text[:cut]) is False
    assert not reads(anything, '{"a":  1}'), "one space is enough"


def test_properties_stand_in_the_order_of_the_schema() -> None:
    machine = automaton({
        "properties": {"a": {"type": "integer"}, "茶": {"enum": ["x", "xy"]}, "c": {}},
        "required": ["茶"],
    })  # fmt: skip
    for good in ('{"茶":"x"}', '{"a":1,"茶":"xy"}', '{"茶": "x", "c": [{}]}'):
        assert reads(machine, good), good
    for bad in ("{}", '{"a":1}', '{"茶":"x","a":1}', '{"茶":"z"}', '{"茶":"x","d":1}',
                '{"a":1.5,"茶":"x"}', '{"茶":"x",}', '{,"茶":"x"}'):  # fmt: skip
        assert not reads(machine, bad), bad


def test_required_names_without_a_schema_are_written() -> None:
    machine = automaton({"required": ["a"], "additionalProperties": {"type": "null"}})
    assert reads(machine, '{"a":null}')
    assert not reads(machine, "{}")
    assert not reads(machine, '{"a":1}')
    assert reads(automaton({"type": "object", "additionalProperties": False}), "{}")
    assert not reads(automaton({"type": "object", "additionalProperties": False}), '{"a":1}')


def test_an_enum_beside_a_type_keeps_what_is_of_it() -> None:
    machine = automaton({"type": ["integer", "null"], "enum": [1, "1", 2.0, True, None, 1.5]})
    assert [reads(machine, text) for text in ("1", '"1"', "2.0", "true", "null", "1.5")] == [
        True, False, True, False, True, False
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "string", "pattern": "a+"}, "pattern, which replies cannot be held to"),
        ({"properties": {"价": {"minimum": 1}}}, "价 in the schema has minimum"),
        ({"type": "text"}, "the type text; known: object"),
        ({"type": "object", "required": "name"}, "required of the schema"),
        ({"required": ["a"], "additionalProperties": False}, "requires a"),
        ({"anyOf": []}, "anyOf of the schema"),
        ({"anyOf": [{}], "type": "object"}, "type beside anyOf"),
        ({"enum": ["a"], "maxLength": 1}, "maxLength beside enum"),
        ({"enum": ["a"], "type": "integer"}, "no value of the enum"),
        ({"maxLength": -1}, "maxLength of the schema"),
        ({"maxLength": True}, "maxLength of the schema"),
        ({"minItems": 3, "maxItems": 2}, "minItems of the schema"),
        ({"minItems": 1000}, "above 100"),
        ({"items": False}, "items of the schema is no JSON Schema"),
        ({"properties": ["a"]}, "properties of the schema"),
        ({"const": float("nan")}, "cannot hold"),
        ("object", "no JSON Schema"),
    ],
)
def test_what_cannot_be_held_to_is_refused_by_name(schema: object, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        JsonRules(schema)


def test_the_shortest_end_is_whole_and_the_rest_of_it_stays_the_shortest(
    rng: random.Random,
) -> None:
    for _ in range(30):
        machine = automaton(random_schema(rng))
        state = machine.start
        for _ in range(30):
            end = machine.closing(state)
            assert end is not None
            behind: State | None = state
            for at in range(len(end)):
                behind = machine.after(state, end[: at + 1])
                assert behind is not None
                assert machine.closing(behind) == end[at + 1 :]
            assert behind is not None
            assert () in behind
            row = machine.rows([machine.number(state)])[machine.number(state)]
            after = [byte for byte in range(256) if row[byte] >= 0]
            if not after:
                assert state == WHOLE
                break
            state = machine.states[row[rng.choice(after)]]


# -- tokens --------------------------------------------------------------------------------------


def test_a_mask_is_what_single_tokens_may_do(rng: random.Random, spellings: Spellings) -> None:
    """Each token's bytes one by one, and the tokens its end takes."""
    for _ in range(6):
        schema = random_schema(rng)
        reply = JsonReply(schema, spellings)
        state, machine = reply.begin(), automaton(schema)
        for _ in range(12):
            left = rng.choice([0, 1, 2, 5, 9, 500])
            mask = reply.mask(state, left)
            allowed, cut = set(), set()
            for number, data in enumerate(spellings.entries):
                if data and number not in spellings.stops and (
                    (behind := machine.after(state, data)) is not None
                ):  # fmt: skip
                    fits = spellings.count(machine.closing(behind) or b"") < left
                    (allowed if fits else cut).add(number)
            if () in state:
                allowed |= set(spellings.stops)
            assert set((~mask.forbidden).nonzero().flatten().tolist()) == allowed
            found = set() if mask.cut is None else set(mask.cut.nonzero().flatten().tolist())
            assert found == cut
            free = sorted((~reply.mask(state, 1000).forbidden).nonzero().flatten().tolist())
            number = rng.choice(free)
            if number in spellings.stops:
                break
            state = reply.after(state, number)


def test_counting_is_by_the_longest_tokens_and_their_rest(
    rng: random.Random, spellings: Spellings
) -> None:
    text = TEXTS[0].encode()
    for _ in range(50):
        part = text[rng.randrange(len(text)) :]
        first = max(
            (data for data in spellings._known if part.startswith(data)), key=len, default=b""
        )
        assert first
        assert spellings.count(part) == 1 + spellings.count(part[len(first) :])
    assert spellings.count(b"") == 0


def test_replies_at_random_are_valid_and_end_in_time(
    rng: random.Random, spellings: Spellings
) -> None:
    """Whatever is chosen among what is allowed, however few tokens there are."""
    for _ in range(25):
        schema = random_schema(rng)
        reply = JsonReply(schema, spellings)
        for _ in range(8):
            state, data = reply.begin(), b""
            left = reply.room + rng.choice([0, 0, 1, 5, 30])
            while left and not reply.ended(state):
                some = (~reply.mask(state, left).forbidden).nonzero().flatten().tolist()
                assert some
                number = rng.choice(some)
                if number in spellings.stops:
                    break
                data += spellings.entries[number]
                state, left = reply.after(state, number), left - 1
            assert accepts(schema, json.loads(data.decode())), (schema, data)


def test_long_strings_share_what_no_token_tells_apart(spellings: Spellings) -> None:
    reply = JsonReply({"type": "string", "maxLength": 5000}, spellings)
    quote = next(n for n, data in enumerate(spellings.entries) if data == b'"')
    letter = next(n for n, data in enumerate(spellings.entries) if data == b"a")
    state = reply.after(reply.begin(), quote)
    kept = []
    for _ in range(1000):
        kept.append(reply._look(state))
        state = reply.after(state, letter)
    assert all(one is kept[0] for one in kept)


def test_what_is_kept_is_bounded(
    spellings: Spellings, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbench.engine.json_constraint._MOST_STATES", 40)
    monkeypatch.setattr("chatbench.engine.json_constraint._MOST_ALIASES", 20)
    monkeypatch.setattr("chatbench.engine.json_constraint._KEPT_BYTES", 0)
    reply = JsonReply(ANY_OBJECT, spellings)
    for _ in range(10):
        state, data, left = reply.begin(), b"", 60
        while left and not reply.ended(state):
            number = rng.choice((~reply.mask(state, left).forbidden).nonzero().flatten().tolist())
            data += spellings.entries[number]
            state, left = reply.after(state, number), left - 1
        assert isinstance(json.loads(data), dict)
    assert len(reply._kept) <= 16
    assert len(reply._aliases) <= 20
    assert len(reply._needs) <= 20


# -- the engine ----------------------------------------------------------------------------------


def sampling(**changes: Any) -> SamplingSettings:
    return SamplingSettings(**{"temperature": 1.5, "top_k": 0, "top_p": 1.0, **changes})


def test_rows_of_the_engine_are_json_in_any_company(
    make_model: Make, spoken: Tokenizer, spellings: Spellings, rng: random.Random
) -> None:
    """Alone and beside free rows, with penalties and log-probabilities, by chance and greedily."""
    model = make_model(vocab_size=spoken.vocab_size)
    schemas = [random_schema(rng) for _ in range(5)]
    requests = []
    for number, schema in enumerate([*schemas, None, None]):
        reply = None if schema is None else JsonReply(schema, spellings)
        room = 0 if reply is None else reply.room
        own = sampling(
            seed=rng.randrange(1 << 40), max_tokens=room + rng.randrange(1, 20),
            temperature=rng.choice([0.0, 1.5]), frequency_penalty=0.5, logprobs=number % 2,
            speculate=rng.choice(["on", "auto"]), top_k=rng.choice([0, 5]),
        )  # fmt: skip
        prompt = [rng.randrange(spoken.vocab_size) for _ in range(rng.randint(1, 9))]
        requests.append(Request(prompt, own, number, constraint=reply))
    requests = [r for r in requests if len(r.ids) + r.sampling.max_tokens < 96]
    together = Engine(model, spoken, 3).complete(requests)
    for request, done in zip(requests, together, strict=True):
        (alone,) = Engine(model, spoken, 1).complete([request])
        assert alone.ids == done.ids
        assert done.logprobs is not None
        assert len(done.logprobs) == len(done.ids)
        if request.constraint is not None:
            assert accepts(schemas[request.key], json.loads(done.text))
            assert done.finish_reason in ("stop", "length")


def test_a_reply_that_is_closed_early_says_so(
    make_chain: Make, spoken: Tokenizer, spellings: Spellings
) -> None:
    """The model would write letters for ever; there is room for some."""
    size = spoken.vocab_size
    scores = torch.zeros(size, size)
    letter, quote = (
        next(n for n, data in enumerate(spellings.entries) if data == c) for c in (b"a", b'"')
    )
    scores[:, letter] = 9.0
    reply = JsonReply({"type": "string"}, spellings)
    greedy = sampling(temperature=0.0, max_tokens=7)
    engine = Engine(make_chain(scores), spoken)
    (done,) = engine.complete([Request([1], greedy, constraint=reply)])
    assert done.text == '"aaaaa"'
    assert done.finish_reason == "length"
    scores[letter, quote] = 20.0
    (done,) = Engine(make_chain(scores), spoken).complete([Request([1], greedy, constraint=reply)])
    assert (done.text, done.finish_reason) == ('"a"', "stop")


def test_no_room_for_the_shortest_reply_is_refused(
    make_model: Make, spoken: Tokenizer, spellings: Spellings
) -> None:
    engine = Engine(make_model(vocab_size=spoken.vocab_size), spoken)
    reply = JsonReply({"type": "array", "minItems": 20}, spellings)
    for ids, own in (([1], sampling(max_tokens=5)), ([1] * 90, sampling())):
        with pytest.raises(UsageError, match=r"needs \d+ tokens, and there is room for"):
            engine.complete([Request(ids, own, constraint=reply)])
    with pytest.raises(UsageError, match="stop would cut"):
        engine.complete([Request([1], sampling(stop=["}"]), constraint=reply)])
    with pytest.raises(UsageError, match="two ways"):
        engine.complete([Request([1], sampling(), allowed=frozenset([1]), constraint=reply)])
