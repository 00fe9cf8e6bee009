"""JSON Schemas at random, and a slow judge of values."""

from __future__ import annotations

import random
from typing import Any

NAMES = ("name", "na", "价格", 'a"b', "x\\y", "é", "items")
VALUES = ("yes", "yes sir", "茶", "", 0, -1, 1.5, 12, 123, True, False, None, [1, "a"], {"k": "值"})
_TYPES = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
}  # fmt: skip


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """One of the subset that replies can be held to."""
    kind = rng.choice(
        ["string", "integer", "number", "boolean", "null", "enum", "const", "types"]
        + ["object", "map", "array", "anyOf", "any"] * (2 if depth else 0)
    )
    if kind == "string":
        return {"type": kind, **rng.choice([{}, {"maxLength": rng.randrange(6)}])}
    if kind == "enum":
        return {"enum": rng.sample(VALUES, rng.randint(1, 5)), "title": "any of these"}
    if kind == "const":
        return {"const": rng.choice(VALUES)}
    if kind == "types":
        return {"type": rng.sample(["string", "null", "boolean", "number"], 2)}
    if kind == "any":
        return {"description": "anything"}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
    if kind == "array":
        least = rng.randrange(3)
        most = rng.choice([{}, {"maxItems": least + rng.randrange(3)}])
        return {"type": kind, "items": random_schema(rng, depth - 1), "minItems": least, **most}
    if kind == "map":
        return {"type": "object", "additionalProperties": random_schema(rng, depth - 1)}
    if kind == "object":
        names = rng.sample(NAMES, rng.randint(1, 4))
        return {
            "type": kind, "properties": {n: random_schema(rng, depth - 1) for n in names},
            "required": [n for n in names if rng.random() < 0.5],
            **rng.choice([{}, {"additionalProperties": False}]),
        }  # fmt: skip
    return {"type": kind}


def accepts(schema: Any, value: Any) -> bool:
    """Whether a value is valid, by what the keywords mean."""
    if isinstance(schema, bool):
        return schema
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return all((
        not kinds or any(is_of(kind, value) for kind in kinds),
        "enum" not in schema or any(same(value, one) for one in schema["enum"]),
        "const" not in schema or same(value, schema["const"]),
        "anyOf" not in schema or any(accepts(one, value) for one in schema["anyOf"]),
        not isinstance(value, str) or len(value) <= schema.get("maxLength", len(value)),
        not isinstance(value, list) or accepts_list(schema, value),
        not isinstance(value, dict) or accepts_object(schema, value),
    ))  # fmt: skip


def is_of(kind: str, value: Any) -> bool:
    if kind in ("integer", "number"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and (kind == "number" or int(value) == value)
    return isinstance(value, _TYPES[kind])


def same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and left == right


def accepts_list(schema: Any, value: list[Any]) -> bool:
    least, most = schema.get("minItems", 0), schema.get("maxItems", len(value))
    return least <= len(value) <= most and all(accepts(schema.get("items", True), v) for v in value)


def accepts_object(schema: Any, value: dict[str, Any]) -> bool:
    own, other = schema.get("properties", {}), schema.get("additionalProperties", True)
    return set(schema.get("required", [])) <= set(value) and all(
        accepts(own.get(name, other), inner) for name, inner in value.items()
    )
