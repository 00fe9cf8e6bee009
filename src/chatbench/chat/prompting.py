"""What a model reads before it replies: the system turn, and as much of the talk as fits."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from chatbench.conversation import Message
from chatbench.errors import UsageError
from chatbench.text.template import reply_prompt
from chatbench.text.tokenizer import Tokenizer


def control_text(tags: object) -> str:
    """`{"style": "formal"}` → `style: formal`, one a line, as `preprocess --tag-column` taught it.

    Raises UsageError for what is no plain value.
    """
    if not isinstance(tags, dict):
        raise UsageError("tags is not an object of plain values")
    lines = []
    for column, value in tags.items():
        if isinstance(value, dict | list):
            raise UsageError(f"tag {column} is not a plain value")
        said = "" if value is None else " ".join(str(value).split())
        lines += [f"{column}: {said}"] if said else []
    return "\n".join(lines)


def opening_text(system: str | None, tags: object) -> str | None:
    """The system turn: the prompt and below it the tags. None when there is neither. Raises as
    `control_text`."""
    control = control_text(tags)
    if control and system and system.strip():
        return f"{system.strip()}\n\n{control}"
    return control or system or None


def room_for(context: int, max_tokens: int) -> int:
    """Tokens a prompt may have, so that there is room for a reply."""
    return context - min(max_tokens, context // 4)


def fit(
    tokenizer: Tokenizer, opening: Sequence[Message], messages: Sequence[Message], room: int,
    out: int = 0,
) -> tuple[list[int], int]:  # fmt: skip
    """Ids to continue, at most `room` of them where that can be, and how many of the oldest
    exchanges had to be left out; the last one never is. An exchange begins with a person's message.

    `out` of them are out already and stay so, for then a cache holds the beginning.
    """
    starts = [n for n, message in enumerate(messages) if message.role == "user"] or [0]
    last = len(starts) - 1
    made: dict[int, list[int]] = {}

    def fits(forgotten: int) -> bool:
        left = messages[starts[forgotten] :] if forgotten else messages
        made[forgotten] = reply_prompt(tokenizer, [*opening, *left])
        return len(made[forgotten]) <= room

    first = min(out, last)
    if not fits(first) and first < last:
        # Fewer turns are fewer tokens.
        first = bisect_left(range(first + 1, last), True, key=fits) + first + 1
        if first not in made:
            fits(first)
    return made[first], first


def oldest(messages: Sequence[Message], exchanges: int) -> int:
    """How many messages so many of the oldest exchanges are."""
    starts = [n for n, message in enumerate(messages) if message.role == "user"]
    return starts[exchanges] if exchanges else 0
