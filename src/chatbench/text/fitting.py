"""As much of a conversation as a context holds: the oldest exchanges give way."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from chatbench.conversation import Message
from chatbench.text.template import reply_prompt
from chatbench.text.tokenizer import Tokenizer


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
