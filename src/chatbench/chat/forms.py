"""The form a reply must have: one of several choices, or JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from chatbench.engine.choosing import choice_logprobs, reply_ids, unwritable
from chatbench.engine.constraints import Choices, Constraint
from chatbench.engine.engine import Engine, Request
from chatbench.engine.json_constraint import JsonReply, Spellings
from chatbench.engine.json_schema import ANY_OBJECT
from chatbench.engine.sampling import choose_rows
from chatbench.errors import UsageError
from chatbench.storage import disk_errors
from chatbench.text.tokenizer import Tokenizer

# What `--json-schema` and OpenAI's response_format say for any object.
OBJECT = "object"
FORM_KEYS = frozenset(("choices", "response_format"))
_SCHEMAS_KEPT = 32
_LARGEST_SCHEMA = 1 << 20


class Form(NamedTuple):
    """What was asked for: `choices` by their texts, or `schema`, a parsed JSON Schema; () and None
    for any reply."""

    choices: tuple[str, ...] = ()
    schema: object = None


def form_of(row: Mapping[str, Any]) -> Form | None:
    """What a request says by `choices` or by OpenAI's `response_format`; None when it says nothing.
    Raises UsageError."""
    choices, wanted = row.get("choices"), row.get("response_format")
    if choices is None and wanted is None:
        return None
    if choices is not None and wanted is not None:
        raise UsageError("there are both choices and response_format", hint="leave one out")
    if choices is not None:
        if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
            raise UsageError("choices is not a list of texts")
        if not choices:
            raise UsageError("choices is empty", hint="name some, or leave it out")
        return Form(tuple(choices))
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return Form()
    if kind == "json_object":
        return Form(schema=ANY_OBJECT)
    inner = wanted.get("json_schema") if isinstance(wanted, dict) else None
    if kind != "json_schema" or not isinstance(inner, dict) or inner.get("schema") is None:
        raise UsageError(
            "response_format is none of text, json_object and json_schema",
            hint='such as {"type": "json_schema", "json_schema": {"schema": {...}}}',
        )
    return Form(schema=inner["schema"])


def read_schema(place: str) -> object:
    """The JSON Schema in a file; `object` stands for any object. Raises UsageError."""
    if place == OBJECT:
        return ANY_OBJECT
    path = Path(place)
    if not path.is_file():
        raise UsageError(
            f"--json-schema: there is no file {place}", hint="name one, or `object` for any object"
        )
    with disk_errors(path), path.open("rb") as file:
        data = file.read(_LARGEST_SCHEMA + 1)
    if len(data) > _LARGEST_SCHEMA:
        raise UsageError(f"{place} is larger than {_LARGEST_SCHEMA >> 20} MB")
    try:
        schema = msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is not JSON: {error}") from error
    if schema is None:
        raise UsageError(f"{place} is no JSON Schema", hint='such as {"type": "object"}')
    return schema


class Weighed(Choices):
    """Choices of one prompt, and how likely each is as the whole reply.

    The reply is drawn among them by that, and not token by token: a token that begins an unlikely
    choice may be likely for what else it begins.
    """

    def __init__(self, choices: Mapping[str, Sequence[int]], tokenizer: Tokenizer) -> None:
        super().__init__(choices, tokenizer.vocab_size, tokenizer.stops)
        self._logprobs: list[float] = []

    def draw(self, engine: Engine, request: Request) -> Request:
        """The request with one choice left, by the row's seed, temperature and filters."""
        if not self._logprobs:
            spelled, ends = list(self.choices.values()), not request.goes_on
            self._logprobs = choice_logprobs(engine, request.ids, spelled, ends=ends)
        generator = torch.Generator()
        generator.manual_seed(request.sampling.seed or 0)
        scores = torch.tensor([self._logprobs], dtype=torch.float32)
        (place,) = choose_rows(scores, [request.sampling], [generator])
        tokenizer = engine.tokenizer
        only = dict([list(self.choices.items())[place]])
        limit = Choices(only, tokenizer.vocab_size, tokenizer.stops)
        return request._replace(constraint=limit)

    def shares(self) -> dict[str, float]:
        """The probability of each choice beside the others, by the model itself."""
        most = max(self._logprobs)
        mass = [math.exp(chance - most) for chance in self._logprobs]
        shares = [round(m / math.fsum(mass), 6) for m in mass]
        return dict(zip(self.choices, shares, strict=True))


def drawn(engine: Engine, request: Request) -> Request:
    """What the engine is asked: where there are choices, one of them."""
    form = request.constraint
    return form.draw(engine, request) if isinstance(form, Weighed) else request


class Forms:
    """Makes constraints of forms, for one tokenizer; `raw` for texts that are gone on with."""

    def __init__(self, tokenizer: Tokenizer, *, raw: bool = False) -> None:
        self._tokenizer = tokenizer
        self._raw = raw
        self._spellings: Spellings | None = None
        self._made: dict[bytes, Constraint] = {}

    def constraint(self, form: Form) -> Constraint | None:
        """What the engine holds a reply to. Raises UsageError for what cannot be."""
        if not form.choices and form.schema is None:
            return None
        try:
            key = msgspec.json.encode(form)
            made = self._made.pop(key, None)
            if made is None:
                made = self._choices(form.choices) if form.choices else self._json(form.schema)
        except RecursionError as error:
            raise UsageError("the schema holds a value that is nested too deep") from error
        self._made[key] = made
        if len(self._made) > _SCHEMAS_KEPT:
            del self._made[next(iter(self._made))]
        return made

    def _json(self, schema: object) -> JsonReply:
        if self._spellings is None:
            self._spellings = Spellings(self._tokenizer)
        return JsonReply(schema, self._spellings)

    def _choices(self, names: Sequence[str]) -> Choices:
        tokenizer = self._tokenizer
        spelled: dict[str, list[int]] = {}
        for name in names:
            if not name.strip():
                raise UsageError("a choice is empty", hint="leave it out")
            if name in spelled:
                raise UsageError(f"the choice {name} is there twice", hint="leave one out")
            spelled[name] = self._continued(name) if self._raw else reply_ids(self._tokenizer, name)
        return Choices(spelled, tokenizer.vocab_size, tokenizer.stops)

    def _continued(self, name: str) -> list[int]:
        """Ids that add exactly this to a text."""
        found = self._tokenizer.encode(name)
        for ids in (found, found[1:]):  # some encoders put a space before a text
            if self._added(ids) == name:
                return ids
        raise unwritable(self._tokenizer, name, found)

    def _added(self, ids: list[int]) -> str:
        stream = self._tokenizer.stream(begun=True)
        return "".join(map(stream.push, ids))
