"""Rows of known shapes → documents: one reader for each shape.

A reader gets the row, the document's source, its columns (part → key) and the keys that become
meta. It raises ValueError saying what is off, and returns None when the values belong to another
shape with the same keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from chatbench.conversation import Message
from chatbench.corpus.document import Document
from chatbench.corpus.formats.turns import read_turns, with_system

Row: TypeAlias = dict[str, Any]
Columns: TypeAlias = dict[str, str]
Rest: TypeAlias = tuple[str, ...]
Reader: TypeAlias = Callable[[Row, str, Columns, Rest], Document | None]
Messages: TypeAlias = tuple[Message, ...]

EARLIER_TURN = re.compile(r"context/(\d+)")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKER = ("role", "from", "speaker")
# Long texts that data sets for summaries keep as lists of sentences.
_SENTENCES = ("source", "document", "dialogue", "dialog", "article")


def text(row: Row, source: str, columns: Columns, rest: Rest) -> Document:
    """{"text"}: plain text."""
    return Document(source, text=_string(row, columns["text"]), meta=_meta(row, rest))


def messages(row: Row, source: str, columns: Columns, rest: Rest) -> Document | None:
    """{"messages"} (OpenAI), {"conversations"} (ShareGPT) and dialogue sets."""
    key = columns["messages"]
    raw = row[key]
    if key != "messages" and not isinstance(raw, list):
        return None
    if key == "turns" and raw and isinstance(raw[0], str):
        return None  # the questions of a benchmark, not a dialogue
    turns = read_turns(raw, _get(row, columns, "system"), _get(row, columns, "tools"), key)
    sharegpt = isinstance(raw[0], dict) and "from" in raw[0]
    shape = "sharegpt" if sharegpt else "messages"
    return Document(source, messages=turns, meta=_meta(row, rest), shape=shape)


def prompt(row: Row, source: str, columns: Columns, rest: Rest) -> Document:
    """A prompt and its reply under any of their names; instruction, input and output (Alpaca)."""
    asked, told = columns["prompt"], columns["completion"]
    turns = (*_opening(row, columns), *_ending(row[told], told))
    alpaca = (asked.casefold(), told.casefold()) == ("instruction", "output")
    shape = "alpaca" if alpaca else "prompt"
    return Document(source, messages=turns, meta=_meta(row, rest), shape=shape)


def instances(row: Row, source: str, columns: Columns, rest: Rest) -> Document | None:
    """An instruction with its one instance of input and output (Self-Instruct)."""
    key = columns["instances"]
    found = row[key]
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        return None
    if len(found) != 1:
        raise ValueError(f"{key} has {len(found)} entries; write a row for each")
    flat = {**found[0], columns["prompt"]: row[columns["prompt"]]}
    if not isinstance(flat.get("output"), str):
        raise ValueError(f"{key} has no output in its entry")
    parts = {"prompt": columns["prompt"], "completion": "output"}
    if "input" in flat:
        parts["input"] = "input"
    document = prompt(flat, source, parts, ())
    return msgspec.structs.replace(document, meta=_meta(row, rest))


def labelled(row: Row, source: str, columns: Columns, rest: Rest) -> Document | None:
    """A text and its class."""
    label = label_text(row[columns["label"]])
    if label is None:
        return None
    turns = (
        Message("user", _string(row, columns["labelled text"])),
        Message("assistant", label),
    )
    # As text, for a stored truth value would turn the row into one that is judged good or bad.
    meta = _meta(row, rest) | {"label": label}
    shown = tuple(with_system(turns, _get(row, columns, "system")))
    return Document(source, messages=shown, meta=meta, shape="labelled")


def label_text(value: object) -> str | None:
    """A label as a model would write it; None for what is no label."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int | float):
        return str(value)
    return value.strip() or None if isinstance(value, str) else None


# ---- what to prefer


def preference(row: Row, source: str, columns: Columns, rest: Rest) -> Document:
    """prompt, chosen and rejected; with whole conversations the prompt is what they share (trl)."""
    chosen = _ending(row[columns["chosen"]], columns["chosen"])
    rejected = _ending(row[columns["rejected"]], columns["rejected"])
    opening = _preference_prompt(row, columns)
    if opening is None:
        chosen, rejected = _split_hh(chosen), _split_hh(rejected)
        opening = _shared_prompt(chosen, rejected)
        chosen, rejected = chosen[len(opening) :], rejected[len(opening) :]
    else:
        chosen, rejected = _without(opening, chosen), _without(opening, rejected)
    if not chosen or not rejected:
        raise ValueError("chosen or rejected holds no reply after the prompt")
    return Document(source, messages=(*opening, *chosen), rejected=(*opening, *rejected),
                    meta=_meta(row, rest), shape="preference")  # fmt: skip


def written_pair(row: Row, source: str, columns: Columns, rest: Rest) -> Document | None:
    """A pair as a corpus folder keeps it: `messages` and `rejected`, both conversations whole."""
    if not isinstance(row[columns["rejected"]], list):
        return None
    good = read_turns(row[columns["messages"]])
    bad = read_turns(row[columns["rejected"]], name="rejected")
    same = _said(good) == _said(bad)
    if not same:
        _shared_prompt(good, bad)
    shape = "unpaired" if same else "preference"
    return Document(source, messages=good, rejected=bad, meta=_meta(row, rest), shape=shape)


def unpaired(row: Row, source: str, columns: Columns, rest: Rest) -> Document | None:
    """prompt, completion and whether that is good (KTO)."""
    good = _verdict(row[columns["verdict"]])
    if good is None:
        return None
    document = prompt(row, source, columns, rest)
    return _judged(document, good)


def unpaired_messages(row: Row, source: str, columns: Columns, rest: Rest) -> Document | None:
    """A conversation and, as true or false, whether its last reply is good."""
    good = row[columns["verdict"]]
    if not isinstance(good, bool):
        return None
    document = messages(row, source, columns, rest)
    return None if document is None else _judged(document, good)


def _judged(document: Document, good: bool) -> Document:
    turns = document.messages or ()
    if good:
        return msgspec.structs.replace(document, shape="unpaired")
    if turns[-1].role != "assistant":
        raise ValueError("a conversation labelled as bad does not end with a reply")
    learned, unlearned = (msgspec.structs.replace(turns[-1], weight=w) for w in (1, 0))
    return msgspec.structs.replace(document, messages=(*turns[:-1], unlearned),
                                   rejected=(*turns[:-1], learned), shape="unpaired")  # fmt: skip


def _verdict(value: object) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().casefold())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def _preference_prompt(row: Row, columns: Columns) -> Messages | None:
    system, tools = _get(row, columns, "system"), _get(row, columns, "tools")
    if "prompt" in columns:
        return _opening(row, columns)
    if "messages" in columns:
        key = columns["messages"]
        return read_turns(row[key], system, tools, key)
    asked = _get(row, columns, "input")
    if isinstance(asked, dict):
        return read_turns(asked.get("messages"), system, asked.get("tools"), "input.messages")
    if isinstance(asked, str):
        return tuple(with_system((Message("user", asked),), system, tools))
    return None


def _without(opening: Messages, turns: Messages) -> Messages:
    """The turns after the opening, where they repeat it."""
    return turns[len(opening) :] if _said(turns[: len(opening)]) == _said(opening) else turns


def _shared_prompt(chosen: Messages, rejected: Messages) -> Messages:
    """The turns that both conversations begin with, the last turn of each aside."""
    length = 0
    for one, other in zip(_said(chosen[:-1]), _said(rejected[:-1]), strict=False):
        if one != other:
            break
        length += 1
    if not length:
        raise ValueError("chosen and rejected do not share a prompt; name it, such as "
                         "--map prompt=COLUMN")  # fmt: skip
    return chosen[:length]


def _said(turns: Messages) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in turns]


def _split_hh(turns: Messages) -> Messages:
    """A conversation that Anthropic's hh-rlhf writes as one string; any other as it is."""
    pieces = _HH_TURN.split(turns[0].content) if len(turns) == 1 else []
    if len(pieces) < 3 or pieces[0].strip():
        return turns
    return tuple(
        Message("user" if who == "Human" else "assistant", said.strip())
        for who, said in zip(pieces[1::2], pieces[2::2], strict=True)
    )


# ---- prompts and replies


def _opening(row: Row, columns: Columns) -> Messages:
    """System, history and the user's turns."""
    key = columns["prompt"]
    asked = row[key]
    system, tools = _get(row, columns, "system"), _get(row, columns, "tools")
    turns: list[Message]
    if key.casefold() == "context":
        turns = _context(row, key, columns)
    elif isinstance(asked, list) and asked and isinstance(asked[0], dict):
        turns = list(read_turns(asked, name=key))
    else:
        said = _sentences(row, key) if key.casefold() in _SENTENCES else _string(row, key)
        pieces = (_aside(row, columns, "context"), said, _aside(row, columns, "input"))
        turns = [*_history(row, columns), Message("user", "\n\n".join(filter(None, pieces)))]
    return tuple(with_system(turns, system, tools))


def _context(row: Row, key: str, columns: Columns) -> list[Message]:
    """The turns before a response, the last of them the user's; context/0 is the one before
    context (PolyAI's conversational data sets)."""
    said = row[key]
    if isinstance(said, list):
        if said and isinstance(said[0], dict):
            return list(read_turns(said, name=key))
        turns = said
    else:
        found = ((EARLIER_TURN.fullmatch(part), column) for part, column in columns.items())
        earlier = {int(match[1]): row[column] for match, column in found if match}
        turns = [earlier[number] for number in sorted(earlier, reverse=True)] + [said]
    if not turns or not all(isinstance(turn, str) for turn in turns):
        raise ValueError(f"{key} is not a string or a list of strings")
    return [
        Message("assistant" if (len(turns) - number) % 2 == 0 else "user", turn)
        for number, turn in enumerate(turns)
    ]


def _history(row: Row, columns: Columns) -> list[Message]:
    """Earlier exchanges as pairs (Alpaca with history)."""
    turns: list[Message] = []
    pairs = _get(row, columns, "history") or []
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not (isinstance(pair, list) and len(pair) == 2
                and all(isinstance(said, str) for said in pair)):  # fmt: skip
            raise ValueError("history is not a list of pairs of strings")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    return turns


def _ending(value: Any, key: str) -> Messages:
    """A reply as text, number, list of which the first counts, SQuAD's answers, or turns."""
    if isinstance(value, str):
        return (Message("assistant", value),)
    if isinstance(value, dict):
        if any(name in value for name in _SPEAKER):
            return read_turns([value], name=key)
        return _ending(value.get("text"), key)
    if isinstance(value, list) and value:
        if isinstance(value[0], dict) and any(name in value[0] for name in _SPEAKER):
            return read_turns(value, name=key)
        if not isinstance(value[0], list):
            return _ending(value[0], key)
    label = label_text(value)
    if label is None:
        raise ValueError(f"{key} is not a string")
    return (Message("assistant", label),)


def _meta(row: Row, rest: Rest) -> dict[str, Any]:
    return {key: row[key] for key in rest} if rest else {}


def _get(row: Row, columns: Columns, part: str) -> Any:
    return row[columns[part]] if part in columns else None


def _string(row: Row, key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is not a string")
    return value


def _sentences(row: Row, key: str) -> str:
    value = row[key]
    if isinstance(value, list) and value and all(isinstance(piece, str) for piece in value):
        return "\n".join(value)
    return _string(row, key)


def _aside(row: Row, columns: Columns, part: str) -> str:
    """A text that stands beside the prompt, or nothing."""
    value = _get(row, columns, part)
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(piece, str) for piece in value):
        return "\n".join(value)
    return _string(row, columns[part])
