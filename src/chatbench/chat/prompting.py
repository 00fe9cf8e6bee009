"""What a model reads before the conversation: the system turn."""

from __future__ import annotations

from collections.abc import Iterable

from chatbench.text.tags import control_text, system_text


def opening_text(system: str | None, tags: object, order: Iterable[str] = ()) -> str | None:
    """The system turn: the prompt and below it the tags, as `preprocess --tag-column` taught them.
    None when there is neither. Raises and orders as `control_text`."""
    return system_text(system, control_text(tags, order))
