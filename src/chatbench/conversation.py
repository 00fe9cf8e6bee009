"""What people and models say to each other, as plain values."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """`weight` 0 marks a reply that is read but not learned (OpenAI's finetuning format)."""

    role: Role
    content: str
    weight: int = 1


def parse_messages(raw: object) -> tuple[Message, ...]:
    """A `messages` list in OpenAI's shape with string contents.

    Raises ValueError saying what is off.
    """
    if not isinstance(raw, list) or not raw:
        raise ValueError("messages is not a list with entries")
    return tuple(_parse_message(number, entry) for number, entry in enumerate(raw, 1))


def _parse_message(number: int, entry: object) -> Message:
    if not isinstance(entry, dict):
        raise ValueError(f"message {number} is not an object")
    role, content = entry.get("role"), entry.get("content")
    if role not in ROLES:
        raise ValueError(f"message {number} has role {role!r}, not one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise ValueError(f"message {number} has no text in content")
    return Message(role, content, read_weight(number, entry.get("weight", 1)))


def read_weight(number: int, weight: object) -> int:
    """0: read, not learned, or 1, as in OpenAI's format. Raises ValueError for all else: half a
    weight would be learned whole or not at all, and nobody would see it."""
    if isinstance(weight, bool | int | float) and weight in (0, 1):
        return int(weight)
    raise ValueError(
        f"message {number} has weight {weight!r}; only 0 (read, not learned) and 1 are understood"
    )


def exchange(prompt: str, reply: str, system: str | None = None) -> tuple[Message, ...]:
    """One question and its answer."""
    opening = (Message("system", system),) if system else ()
    return (*opening, Message("user", prompt), Message("assistant", reply))


def as_json(messages: tuple[Message, ...] | list[Message]) -> list[dict[str, Any]]:
    """The messages as OpenAI's chat format writes them."""
    return [
        {"role": message.role, "content": message.content}
        | ({} if message.weight else {"weight": 0})
        for message in messages
    ]
