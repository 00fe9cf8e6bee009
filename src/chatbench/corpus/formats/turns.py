"""Lists of turns, as many tools write them → messages.

Known are OpenAI's chat format (roles, parts, tool calls, weights), ShareGPT (from, value), the
dialogue sets that say `speaker` and `utterance`, and plain lists in which two people alternate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from chatbench.conversation import ROLES, Message, Role, read_weight

_ROLE_NAMES: dict[str, tuple[str, ...]] = {
    "system": ("system", "developer", "系统"),
    "user": ("user", "human", "usr", "customer", "client", "prompter", "用户", "人类"),
    "assistant": ("assistant", "gpt", "chatgpt", "gpt4", "gpt-4", "bard", "bing", "claude",
                  "gemini", "model", "bot", "chatbot", "ai", "agent", "function_call", "tool_call",
                  "助手"),
    "tool": ("tool", "function", "observation", "ipython", "tool_response", "function_response"),
}  # fmt: skip
_ROLE_OF: dict[str, Any] = {name: role for role, names in _ROLE_NAMES.items() for name in names}
_CALLS = ("function_call", "tool_call")
_SPEAKER_KEYS = ("role", "from", "speaker", "author")
_CONTENT_KEYS = ("content", "value", "text", "message", "utterance")
_TEXT_PARTS = ("text", "input_text", "output_text", "reasoning")


def read_turns(
    raw: object, system: object = None, tools: object = None, name: str = "messages"
) -> tuple[Message, ...]:
    """A list of turns, with a system text and tool descriptions that stood beside it.

    Turns are objects, or strings in which user and assistant alternate. `function_call` turns and
    `tool_calls` become `<tool_call>` blocks in the assistant's content; `tools` goes into the
    system turn, one JSON a line. Raises ValueError saying what is off.
    """
    if not isinstance(raw, list) or not raw:
        raise ValueError(f"{name} is not a list with entries")
    messages = _plain(raw)
    if messages is None:
        roles = _Roles(raw)
        messages = [roles.message(number, entry) for number, entry in enumerate(raw, 1)]
    return tuple(with_system(messages, system, tools))


def _plain(raw: list[Any]) -> list[Message] | None:
    """The common case without its price: role and content, nothing else."""
    messages = []
    for entry in raw:
        if not isinstance(entry, dict) or len(entry) != 2:
            return None
        role, content = entry.get("role"), entry.get("content")
        if type(content) is not str or role not in ROLES:
            return None
        messages.append(Message(role, content))
    return messages


class _Roles:
    """Who speaks, where that depends on the other turns of the same list."""

    def __init__(self, raw: list[Any]) -> None:
        names = [str(_first(turn, _SPEAKER_KEYS)[1] or "").casefold() for turn in raw
                 if isinstance(turn, dict)]  # fmt: skip
        self._bare = not any(names)
        # Task-oriented sets call the machine "system" (or "sys") beside a "user" or "usr".
        machine = not any(_ROLE_OF.get(name) == "assistant" for name in names)
        spoken = any(isinstance(turn, dict) and "speaker" in turn for turn in raw)
        self._system_is_machine = machine and (spoken or "usr" in names or "sys" in names)

    def message(self, number: int, entry: object) -> Message:
        alternate: Role = "user" if number % 2 else "assistant"
        if isinstance(entry, str):
            if not self._bare:
                raise ValueError(f"message {number} is not an object")
            return Message(alternate, entry)
        if not isinstance(entry, dict):
            raise ValueError(f"message {number} is not an object")
        role = alternate if self._bare else self._role(number, entry)
        return Message(role, _content(number, entry), _weight(number, entry, role))

    def _role(self, number: int, entry: dict[str, Any]) -> Role:
        key, said = _first(entry, _SPEAKER_KEYS)
        name = said.casefold() if isinstance(said, str) else ""
        if self._system_is_machine and name in ("system", "sys"):
            return "assistant"
        role: Role | None = _ROLE_OF.get(name)
        if role is None:
            known = ", ".join(ROLES)
            raise ValueError(f"message {number} has {key or 'role'} {said!r}, not one of {known}")
        return role


def role_of(name: str) -> Role:
    """The role that a name stands for. Raises ValueError."""
    role: Role | None = _ROLE_OF.get(name.casefold())
    if role is None:
        raise ValueError(f"role {name!r} is not one of {', '.join(ROLES)}")
    return role


def _first(entry: dict[str, Any], keys: Sequence[str]) -> tuple[str | None, Any]:
    return next(((key, entry[key]) for key in keys if key in entry), (None, None))


def _content(number: int, entry: dict[str, Any]) -> str:
    key, value = _first(entry, _CONTENT_KEYS)
    calls = entry.get("tool_calls") or (
        [entry["function_call"]] if entry.get("function_call") else []
    )
    if value is None:
        if not calls:
            raise ValueError(f"message {number} has no text in {key or 'content'}")
        text = ""
    else:
        text = _text(number, key or "content", value)
    speaker = _first(entry, _SPEAKER_KEYS)[1]
    if isinstance(speaker, str) and speaker.casefold() in _CALLS:
        return tool_calls(_decoded(text))
    return "\n".join(filter(None, (text, tool_calls(calls) if calls else "")))


def _text(number: int, key: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(filter(None, (_part(number, part) for part in value)))
    raise ValueError(f"message {number} has no text in {key}")


def _part(number: int, part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        kind = part.get("type", "text")
        text = _first(part, ("text", "value", "refusal"))[1]
        if isinstance(text, str) and kind in _CALLS:
            return tool_calls(_decoded(text))
        if isinstance(text, str) and (kind in _TEXT_PARTS or kind == "refusal"):
            return text
        raise ValueError(f"message {number} holds a part of type {kind}, not text")
    raise ValueError(f"message {number} holds a part that is not an object")


def tool_calls(calls: object) -> str:
    """Calls as `<tool_call>` blocks of one JSON line each, arguments as an object (the form of
    Hermes and Qwen)."""
    listed = calls if isinstance(calls, list) else [calls]
    return "\n".join(f"<tool_call>\n{_call(call)}\n</tool_call>" for call in listed)


def _call(call: object) -> str:
    if isinstance(call, dict) and isinstance(call.get("function"), dict):
        call = call["function"]
    if isinstance(call, dict) and "name" in call:
        arguments = _decoded(call.get("arguments", {}))
        return _json({"name": call["name"], "arguments": arguments})
    return call if isinstance(call, str) else _json(call)


def _decoded(value: Any) -> Any:
    """What a string of JSON says; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return value


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _weight(number: int, entry: dict[str, Any], role: Role) -> int:
    weight = entry.get("weight")
    if weight is None and role == "assistant":
        weight = entry.get("loss_weight")
    if weight is None:
        return 1
    return read_weight(number, weight)


def with_system(messages: Sequence[Message], system: object, tools: object = None) -> list[Message]:
    """The messages with a system text and tools in their first turn. Raises ValueError."""
    if system is not None and not isinstance(system, str):
        raise ValueError("system is not a string")
    described = _described(tools)
    if not system and not described:
        return list(messages)
    rest = list(messages)
    own = rest.pop(0).content if rest and rest[0].role == "system" else ""
    texts = [system or "", own, f"Tools:\n{described}" if described else ""]
    return [Message("system", "\n\n".join(filter(None, texts))), *rest]


def _described(tools: object) -> str:
    known = _decoded(tools)
    if not known:
        return ""
    if isinstance(known, list):
        return "\n".join(tool if isinstance(tool, str) else _json(tool) for tool in known)
    return known if isinstance(known, str) else _json(known)
