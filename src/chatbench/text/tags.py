"""Control tags: what a corpus says of its documents, written in the system turn as `style: formal`.

One definition for training, chat, evaluation and rewards: a tag is a line `column: value`, the
tags of a document stand below the system prompt of its author, an empty line between them. Columns
and values are text like any other, never control tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from chatbench.conversation import Message
from chatbench.errors import IntegrityError, UsageError
from chatbench.storage import write_json

if TYPE_CHECKING:
    from chatbench.text.tokenizer import Tokenizer

FILE = "tags.json"
# Of a column that says something else in every document nobody wants a list.
MOST_VALUES = 50
_MOST_COLUMNS = 20
_LONGEST_VALUE = 80
_LARGEST_FILE = 1 << 22
_SHOWN_VALUES = 8

# Column → value → documents of the corpus; columns in the order in which they are written.
Known = dict[str, dict[str, int]]


def said(value: object) -> str | None:
    """A plain value on one line, without what no file can hold; None for what says nothing."""
    if value is None or isinstance(value, dict | list):
        return None
    line = " ".join(str(value).split())
    return line.encode("utf-8", errors="replace").decode("utf-8") or None


def control_text(tags: object, order: Iterable[str] = ()) -> str:
    """`{"style": "formal"}` → `style: formal`, one a line; what says nothing is left out.

    Columns in `order` come first, in that order: the one in which a model has learned them.
    Raises UsageError for what is no plain value.
    """
    if not isinstance(tags, Mapping):
        raise UsageError("tags is not an object of plain values")
    for column, value in tags.items():
        if isinstance(value, dict | list):
            raise UsageError(f"tag {column} is not a plain value")
    first = [column for column in order if column in tags]
    columns = dict.fromkeys([*first, *tags])
    lines = ((said(column), said(tags[column])) for column in columns)
    return "\n".join(f"{column}: {value}" for column, value in lines if column and value)


def system_text(system: str | None, control: str) -> str | None:
    """The system turn: the prompt, and the tags below it. None when there is neither."""
    if control and system and system.strip():
        return f"{system.strip()}\n\n{control}"
    return control or system or None


def with_control(messages: Sequence[Message], control: str) -> tuple[Message, ...]:
    """The turns with the tags in the system turn, which is made where there is none."""
    if not control:
        return tuple(messages)
    own = messages[0].content if messages and messages[0].role == "system" else None
    turn = Message("system", system_text(own, control) or "")
    return (turn, *(messages if own is None else messages[1:]))


def fewer(control: str) -> list[str]:
    """What is left of a control text without all its tags, and without each one of several."""
    lines = control.split("\n") if control else []
    if len(lines) < 2:
        return [""] * len(lines)
    return ["", *("\n".join(lines[:n] + lines[n + 1 :]) for n in range(len(lines)))]


def tags_in(text: str, known: Known) -> dict[str, str]:
    """The known tags that stand in a system turn or a prompt, each at the end of a line: some chat
    templates write something before the first."""
    spelled = {f"{column}: {value}": (column, value) for column in known for value in known[column]}
    found = {}
    for line in map(str.strip, text.split("\n")):
        said_here = [tag for tag in spelled if line == tag or line.endswith(f" {tag}")]
        if said_here:
            column, value = spelled[max(said_here, key=len)]
            found[column] = value
    return found


def lines_of(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of a prompt's ids for `tags_in`: every control token ends a line."""
    entries, controls = tokenizer.token_bytes, tokenizer.control_ids
    spelled = b"".join(b"\n" if n in controls else entries[n] for n in ids)
    return spelled.decode("utf-8", errors="ignore")


# ---- what people type


def parse_tag(text: str) -> tuple[str, str]:
    """`style=formal` → column and value. Raises UsageError."""
    column, equals, value = text.partition("=")
    name, told = said(column), said(value)
    if not equals or name is None or told is None:
        raise UsageError(f"--tag {text} is no tag", hint="such as --tag style=formal")
    return name, told


def parse_tags(given: Sequence[str]) -> dict[str, str]:
    """All of them; the last one of a column counts. Raises UsageError."""
    return dict(map(parse_tag, given))


def unlearned(tags: Mapping[str, object], known: Known) -> list[str]:
    """A line for each tag that a model with `known` tags has never seen; none where nothing is
    known of its tags."""
    told = []
    for column, value in tags.items():
        name, line = said(column), said(value)
        if not known or name is None or line is None:
            continue
        values = known.get(name)
        if values is None:
            there = ", ".join(known)
            told.append(f"the model has not learned a tag {name}; it knows {there}")
        elif values and line not in values and len(values) < MOST_VALUES:
            told.append(f"the model has not learned {name}={line}; it knows {shown(values)}")
    return told


def shown(values: Mapping[str, int]) -> str:
    """The most frequent values."""
    ranked = _ranked(values)
    more = len(ranked) - _SHOWN_VALUES
    return ", ".join(ranked[:_SHOWN_VALUES]) + (f" and {more} more" if more > 0 else "")


# ---- what a model has learned


def write_known(folder: Path, known: Known) -> None:
    """Keep them in the folder of a corpus or model; no file for no tags."""
    if known:
        write_json(folder / FILE, known)


def read_known(folder: Path) -> Known:
    """What a corpus holds, or a model has learned; empty where nothing is noted.

    Raises IntegrityError for a file that is damaged.
    """
    path = folder / FILE
    try:
        with open(path, "rb") as handle:
            data = handle.read(_LARGEST_FILE)
        return msgspec.json.decode(data, type=Known)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise IntegrityError(f"{path} is damaged: {error}", hint="make it anew") from error


def known_in(noted: Mapping[str, object]) -> Known:
    """What a model's folder notes about its tags; empty where that is nothing, or damaged."""
    try:
        return msgspec.convert(noted.get("tags", {}), Known)
    except msgspec.ValidationError:
        return {}


def merged(several: Iterable[Mapping[str, Mapping[str, int]]]) -> Known:
    """Added up; of each column the most frequent values, without long ones."""
    total: Known = {}
    for known in several:
        for column, values in known.items():
            there = total.setdefault(column, {})
            for value, count in values.items():
                there[value] = there.get(value, 0) + count
    return {
        column: {value: values[value] for value in _ranked(values)[:MOST_VALUES]}
        for column, values in [*total.items()][:_MOST_COLUMNS]
    }


def known_after(before: Known, now: Known) -> Known:
    """What a model knows that has learned from a corpus after what it knew: the corpus counts."""
    columns = dict.fromkeys([*now, *before])
    return merged([{c: {**before.get(c, {}), **now.get(c, {})}} for c in columns])


def _ranked(values: Mapping[str, int]) -> list[str]:
    return sorted((v for v in values if len(v) <= _LONGEST_VALUE), key=lambda v: (-values[v], v))
