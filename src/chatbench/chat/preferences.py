"""What a person thinks of replies, as rows that preference training reads.

Two replies to the same messages, one judged good and one bad, make a pair {"prompt", "chosen",
"rejected"}; a reply judged alone makes {"prompt", "completion", "label"}, which gives way to a pair
as soon as there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from chatbench.chat.sessions import state_folder, write_private
from chatbench.conversation import Message, as_json
from chatbench.errors import UsageError
from chatbench.storage import FolderLock, disk_errors

NAME = "preferences.jsonl"


class Judged(NamedTuple):
    """Replies to the same messages (the system turn first, if there is one), by verdict."""

    prompt: Sequence[Message]
    good: Sequence[str]
    bad: Sequence[str]


def preferences_path() -> Path:
    """Beside the sessions. Raises UsageError where there is no home to keep anything in."""
    folder = state_folder()
    if folder is None:
        raise UsageError("there is no HOME to keep judgements in", hint="set CHATBENCH_HOME")
    return folder / NAME


def rows(judged: Judged) -> list[dict[str, Any]]:
    """Pairs of every good with every bad reply; where one kind is missing, each reply alone."""
    prompt = as_json(list(judged.prompt))
    good, bad = (list(dict.fromkeys(replies)) for replies in (judged.good, judged.bad))
    both = set(good) & set(bad)  # the same words, judged both ways, say nothing
    good, bad = ([r for r in replies if r not in both] for replies in (good, bad))
    if good and bad:
        return [
            {"prompt": prompt, "chosen": _reply(yes), "rejected": _reply(no)}
            for yes in good for no in bad
        ]  # fmt: skip
    verdicts = [(reply, True) for reply in good] + [(reply, False) for reply in bad]
    return [
        {"prompt": prompt, "completion": _reply(reply), "label": verdict}
        for reply, verdict in verdicts
    ]


def _reply(text: str) -> list[dict[str, Any]]:
    return as_json([Message("assistant", text)])


def record(path: Path, judged: Judged) -> int:
    """Put the judgements about a prompt's replies into the file, in place of what was there about
    the same replies; how many rows.

    Everything else in the file stays byte for byte. Raises InUseError, EnvironmentFault.
    """
    fresh = rows(judged)
    named = {*judged.good, *judged.bad}
    place = path.with_name(f".{path.name}.open")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FolderLock(place), disk_errors(path):
        before = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in before if not _is_about(line, as_json([*judged.prompt]), named)]
        if kept and not kept[-1].endswith(b"\n"):
            kept[-1] += b"\n"
        data = b"".join([*kept, *(msgspec.json.encode(row) + b"\n" for row in fresh)])
        write_private(path, data)
    return len(fresh)


def _is_about(line: bytes, prompt: list[dict[str, Any]], replies: set[str]) -> bool:
    """Whether a line judges these replies to this prompt, and no others."""
    try:
        row = msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(row, dict) or row.get("prompt") != prompt:
        return False
    given = [row[key] for key in ("chosen", "rejected", "completion") if key in row]
    return bool(given) and all(any(entry == _reply(reply) for reply in replies) for entry in given)
