"""A JSON Schema as rules of an `Automaton`: what they spell is valid JSON that the schema accepts.

Not all that it accepts is spelled, so that every reply ends and none is ambiguous: at most one
space where JSON allows any, numbers of 15 digits, free values nested to a depth, properties in the
order of the schema and beside them no others. Characters are UTF-8 (RFC 3629) or escapes of single
characters, never half a surrogate pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from chatbench.engine.grammar import Stack, Symbol
from chatbench.errors import UsageError

ANY_OBJECT: dict[str, Any] = {"type": "object"}
_DEPTH = 16
_DIGITS = 15
_MOST_ITEMS = 100
_DEEPEST_SCHEMA = 64

_ANNOTATIONS = frozenset((
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "$schema", "$id", "$comment",
))  # fmt: skip
# Keywords by the type they are about.
_ABOUT = {
    "properties": "object", "required": "object", "additionalProperties": "object",
    "items": "array", "minItems": "array", "maxItems": "array", "maxLength": "string",
}  # fmt: skip
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_KNOWN = ("type", "enum", "const", "anyOf", *_ABOUT)


def _bytes(*ranges: tuple[int, int]) -> frozenset[int]:
    return frozenset(byte for low, high in ranges for byte in range(low, high + 1))


_DIGIT = _bytes((0x30, 0x39))
_HEX = _DIGIT | frozenset(b"abcdefABCDEF")
_NEXT = _bytes((0x80, 0xBF))
_SPACE = ("space",)
_CHARACTER: tuple[Stack, ...] = (
    (_bytes((0x20, 0x7F)) - frozenset(b'"\\'),),
    (_bytes((0xC2, 0xDF)), _NEXT),
    (b"\xe0", _bytes((0xA0, 0xBF)), _NEXT),
    (_bytes((0xE1, 0xEC), (0xEE, 0xEF)), _NEXT, _NEXT),
    (b"\xed", _bytes((0x80, 0x9F)), _NEXT),
    (b"\xf0", _bytes((0x90, 0xBF)), _NEXT, _NEXT),
    (_bytes((0xF1, 0xF3)), _NEXT, _NEXT, _NEXT),
    (b"\xf4", _bytes((0x80, 0x8F)), _NEXT, _NEXT),
    (b"\\", frozenset(b'"\\/bfnrt')),
    (b"\\u", _HEX - frozenset(b"dD"), _HEX, _HEX, _HEX),
    (b"\\u", frozenset(b"dD"), _bytes((0x30, 0x37)), _HEX, _HEX),
)
_FIXED: dict[Symbol, tuple[Stack, ...]] = {
    _SPACE: ((), (b" ",)),
    ("character",): _CHARACTER,
    ("sign",): ((), (b"-",)),
    ("whole",): ((b"0",), (_DIGIT - frozenset(b"0"), ("digits", _DIGITS - 1))),
    ("fraction",): ((), (b".", _DIGIT, ("digits", _DIGITS - 1))),
    ("exponent",): ((), (frozenset(b"eE"), ("either sign",), _DIGIT, ("digits", 1))),
    ("either sign",): ((), (frozenset(b"+-"),)),
    ("integer",): ((("sign",), ("whole",)),),
    ("number",): ((("sign",), ("whole",), ("fraction",), ("exponent",)),),
    ("boolean",): ((b"true",), (b"false",)),
    ("null",): ((b"null",),),
}


class JsonRules:
    """The rules for one schema (a parsed JSON value), beginning with `start`; `padded` lets one
    space come first. Raises UsageError for what is no schema and for keywords beyond the subset."""

    def __init__(self, schema: object, *, padded: bool = False) -> None:
        self._objects: list[list[tuple[bytes, Symbol, bool]]] = []
        self._choices: list[tuple[Stack, ...]] = []
        value = self._read(schema, "the schema", 0)
        self.start: Symbol = self._either([(_SPACE, value)]) if padded else value

    def __call__(self, symbol: Symbol) -> tuple[Stack, ...]:
        """The ways to write a symbol."""
        assert isinstance(symbol, tuple)
        match symbol:
            case ("value", int(depth)):
                return _value(depth)
            case ("chars", None):
                return (), (("character",), symbol)
            case ("chars" | "digits" as kind, int(left)):
                one: Symbol = ("character",) if kind == "chars" else _DIGIT
                return ((), (one, (kind, left - 1))) if left else ((),)
            case ("string", left):
                return ((b'"', ("chars", left), b'"'),)
            case ("array", item, least, most):
                return ((b"[", _SPACE, ("items", item, least, most), b"]"),)
            case ("items" | "more items" as kind, item, int(least), most):
                return _items(kind, item, least, most)
            case ("map", value):
                return ((b"{", _SPACE, ("pairs", value), b"}"),)
            case ("pairs", value):
                return (), (*_pair(value), ("more pairs", value), _SPACE)
            case ("more pairs", value):
                return (), (b",", _SPACE, *_pair(value), symbol)
            case ("fields", int(number), int(place), bool(first)):
                return self._fields(number, place, first)
            case ("either", int(number)):
                return self._choices[number]
        return _FIXED[symbol]

    def _fields(self, number: int, place: int, first: bool) -> tuple[Stack, ...]:
        """The properties of an object from one on; `first` while none is written."""
        fields = self._objects[number]
        if place == len(fields):
            return ((),) if first else ((_SPACE,),)
        key, value, required = fields[place]
        comma: Stack = () if first else (b",", _SPACE)
        ways = [(*comma, key + b":", _SPACE, value, ("fields", number, place + 1, False))]
        if not required:
            ways.append((("fields", number, place + 1, first),))
        return tuple(ways)

    def _either(self, ways: Sequence[Stack]) -> Symbol:
        self._choices.append(tuple(dict.fromkeys(ways)))
        return ("either", len(self._choices) - 1)

    # ---- a schema is read

    def _read(self, schema: object, place: str, depth: int) -> Symbol:
        if schema is True:
            return ("value", _DEPTH)
        if not isinstance(schema, Mapping):
            raise UsageError(f"{place} is no JSON Schema", hint='such as {"type": "object"}')
        if depth > _DEEPEST_SCHEMA:
            raise UsageError(f"{place} lies deeper than {_DEEPEST_SCHEMA} schemas")
        said = [name for name in schema if name not in _ANNOTATIONS]
        for name in said:
            if name not in _KNOWN:
                raise UsageError(
                    f"{place} has {name}, which replies cannot be held to",
                    hint=f"leave it out; known: {', '.join(_KNOWN)}",
                )
        for name in ("anyOf", "enum", "const"):
            beside = set(said) - ({name} if name == "anyOf" else {name, "type"})
            if name in schema and beside:
                raise UsageError(
                    f"{place} has {min(beside)} beside {name}", hint="leave one of them out"
                )
        if "anyOf" in schema:
            options = _listed(schema["anyOf"], f"anyOf of {place}")
            return self._either(
                [
                    (self._read(option, f"option {n} of {place}", depth + 1),)
                    for n, option in enumerate(options, 1)
                ]
            )
        types = _types(schema, place)
        if "enum" in schema or "const" in schema:
            return self._values(schema, types, place)
        if types is None:
            return ("value", _DEPTH)
        return self._either([(self._typed(kind, schema, place, depth),) for kind in types])

    def _values(self, schema: Mapping[str, Any], types: Sequence[str] | None, place: str) -> Symbol:
        values = _listed(schema["enum"], f"enum of {place}") if "enum" in schema else (
            [schema["const"]]
        )  # fmt: skip
        kept = [v for v in values if types is None or any(_is_of(v, kind) for kind in types)]
        if not kept:
            raise UsageError(f"no value of the enum of {place} is of its type")
        return self._either([(_spelled(value, place),) for value in kept])

    def _typed(self, kind: str, schema: Mapping[str, Any], place: str, depth: int) -> Symbol:
        if kind == "string":
            return ("string", _count(schema, "maxLength", place))
        if kind == "array":
            least, most = _count(schema, "minItems", place) or 0, _count(schema, "maxItems", place)
            if least > _MOST_ITEMS or (most is not None and most < least):
                raise UsageError(f"minItems of {place} is above maxItems, or above {_MOST_ITEMS}")
            item = self._read(schema.get("items", True), f"items of {place}", depth + 1)
            return ("array", item, least, most)
        return self._object(schema, place, depth) if kind == "object" else (kind,)

    def _object(self, schema: Mapping[str, Any], place: str, depth: int) -> Symbol:
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        if not isinstance(properties, Mapping):
            raise UsageError(f"properties of {place} are no object")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise UsageError(f"required of {place} is no list of names")
        others = [name for name in dict.fromkeys(required) if name not in properties]
        if more is False and others:
            raise UsageError(f"{place} requires {others[0]} and has no such property")
        other = None if more is False else (
            self._read(more, f"additionalProperties of {place}", depth + 1)
        )  # fmt: skip
        if not properties and not required and other is not None:
            return ("map", other)
        fields = [
            (_spelled(name, place), self._read(value, f"{name} in {place}", depth + 1),
             name in required)
            for name, value in properties.items()
        ]  # fmt: skip
        fields += [(_spelled(name, place), other, True) for name in others]
        self._objects.append(fields)
        number = len(self._objects) - 1
        return self._either([(b"{", _SPACE, ("fields", number, 0, True), b"}")])


def _value(depth: int) -> tuple[Stack, ...]:
    """Any JSON, nested no deeper."""
    plain: list[Stack] = [(("string", None),), (("number",),), (("boolean",),), (("null",),)]
    if depth:
        inner = ("value", depth - 1)
        plain += [(("array", inner, 0, None),), (("map", inner),)]
    return tuple(plain)


def _pair(value: Symbol) -> Stack:
    return ("string", None), b":", _SPACE, value


def _items(kind: str, item: Symbol, least: int, most: int | None) -> tuple[Stack, ...]:
    """What stands in an array from its beginning, or from behind an item on."""
    rest = ("more items", item, max(0, least - 1), None if most is None else most - 1)
    one = (item, rest, _SPACE) if kind == "items" else (b",", _SPACE, item, rest)
    none: tuple[Stack, ...] = ((),) if least == 0 else ()
    return none if most == 0 else (*none, one)


def _types(schema: Mapping[str, Any], place: str) -> list[str] | None:
    """Those that are named, or that the keywords are about; None for all."""
    named = schema.get("type")
    if named is None:
        return sorted({_ABOUT[name] for name in schema if name in _ABOUT}) or None
    found = [named] if isinstance(named, str) else _listed(named, f"type of {place}")
    for kind in found:
        if kind not in _TYPES:
            raise UsageError(f"{place} has the type {kind}", hint=f"known: {', '.join(_TYPES)}")
    return found


def _is_of(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return {
        "object": isinstance(value, dict), "array": isinstance(value, list),
        "string": isinstance(value, str), "number": isinstance(value, int | float),
        "integer": whole, "boolean": False, "null": value is None,
    }[kind]  # fmt: skip


def _spelled(value: object, place: str) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise UsageError(f"{place} names a value that UTF-8 JSON cannot hold: {error}") from error


def _listed(value: object, what: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{what} is no list with entries")
    return value


def _count(schema: Mapping[str, Any], name: str, place: str) -> int | None:
    count = schema.get(name)
    if count is not None and (type(count) is not int or count < 0):
        raise UsageError(f"{name} of {place} is no number from 0")
    return count
