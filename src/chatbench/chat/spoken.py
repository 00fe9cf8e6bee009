"""What a slash command may give back."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from chatbench.chat.display import Shown
from chatbench.chat.session import ChatSession, Event
from chatbench.errors import UsageError

# Told when to stop, it talks; what it shows at once, side by side, comes as one event.
Talk = Callable[[Callable[[], bool]], Iterator[Event | Shown]]


class Draft(NamedTuple):
    """Text to be changed in the person's editor: message `number` (from 1), or with None the next
    one. What comes back goes to `ChatSession.edit`, or `send`."""

    text: str
    number: int | None = None


class Leave(Exception):
    """The person wants to go."""


Reply = Talk | Shown | Draft | str | None
Command = Callable[[ChatSession, str], Reply]


def whole_number(text: str, usage: str) -> int:
    """A number from 1. Raises UsageError that shows how the command is used."""
    if not text.isdecimal() or int(text[:9]) == 0:
        raise UsageError(f"{text or 'nothing'} is no number from 1", hint=usage)
    return int(text[:9])


def typed_path(text: str) -> Path:
    """A path as a person types it; `~` is home, where there is one. Raises UsageError."""
    if "\0" in text:
        raise UsageError("a file name holds no NUL", hint="choose another name")
    return Path(os.path.expanduser(text))


def file_to_write(text: str) -> Path:
    """`typed_path` for a file that is to be written. Raises UsageError for a folder."""
    path = typed_path(text)
    if os.path.isdir(path) or path.name in ("", ".."):
        raise UsageError(f"{text} is a folder", hint="give a file name")
    return path
