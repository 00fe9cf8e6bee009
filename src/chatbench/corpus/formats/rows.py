"""One row of a data set → document, by the keys it has or by the user's --map.

Which shape a set of keys has is decided once and remembered; the values decide only where keys
alone cannot. Keys are compared without regard to case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from chatbench.corpus.document import Document, Failure, Record
from chatbench.corpus.formats import choices, shapes
from chatbench.corpus.formats.shapes import EARLIER_TURN, Columns, Reader, Row
from chatbench.errors import UsageError, did_you_mean

PARTS = ("user", "assistant", "system", "text", "label", "messages", "prompt", "completion",
         "chosen", "rejected")  # fmt: skip
_CANONICAL = {"user": "prompt", "assistant": "completion"}

_NAMES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "dialogue", "dialog", "turns",
                 "utterances", "对话"),
    "chosen": ("chosen", "chosen_messages", "preferred_output", "preferred"),
    "rejected": ("rejected", "rejected_messages", "non_preferred_output"),
    "system": ("system", "system_prompt"),
    "tools": ("tools",),
    "history": ("history",),
    "input": ("input",),
    "label": ("label_text", "label", "intent", "category", "class", "sentiment", "target",
              "is_toxic", "toxic", "is_spam", "标签", "类别", "分类", "情感", "意图", "v1"),
    "labelled text": ("text", "sentence", "review", "query", "utterance", "comment", "tweet",
                      "content", "内容", "文本", "评论", "句子", "v2"),
    "text": ("text", "content", "body", "document", "文本", "内容", "正文"),
    "prompt alone": ("prompt", "question", "instruction", "query"),
    "verdict": ("kto_tag", "label"),
    "instances": ("instances",),
    "options": ("choices", "options", "选项"),
    "asked": ("question", "question_stem", "stem", "prompt", "query", "问题"),
    "passage": ("passage", "context", "article", "文章"),
}  # fmt: skip
_PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("query", "response"),
    ("question", "answer"), ("question", "answers"), ("q", "a"), ("问题", "答案"), ("问", "答"),
    ("instruction", "response"), ("instruction", "output"), ("input", "output"),
    ("input", "target"), ("context", "response"), ("problem", "solution"),
    ("question", "solution"), ("prompt", "canonical_solution"), ("dialogue", "summary"),
    ("dialog", "summary"), ("document", "summary"), ("article", "summary"),
    ("article", "highlights"), ("source", "target"),
)  # fmt: skip
_BESIDE = ("system", "tools", "history", "input", "context")
_RESERVED = {"source", "text", "messages", "rejected"}


class Plan(NamedTuple):
    """How rows with certain keys are read; `columns` is part → key, `rest` what becomes meta."""

    read: Reader
    columns: Columns
    rest: tuple[str, ...]


def parse_map(entries: Sequence[str]) -> dict[str, str]:
    """--map's `part=column` entries. Raises UsageError for an unknown or repeated part."""
    mapping: dict[str, str] = {}
    for entry in entries:
        part, equals, column = (piece.strip() for piece in entry.partition("="))
        if not equals or not column:
            raise UsageError(f"--map {entry} is not PART=COLUMN", hint="such as user=question")
        if part not in PARTS:
            raise UsageError(f"--map knows no part {part}", hint=did_you_mean(part, [*PARTS]))
        if part in mapping:
            raise UsageError(f"--map names {part} twice", hint="give each part one column")
        mapping[part] = column
    return mapping


def to_document(row: Row, source: str, mapping: Mapping[str, str]) -> Document:
    """The document that a row holds; keys without a part become its meta.

    Raises ValueError in a sentence that names the keys and what --map could say.
    """
    keys = tuple(row)
    for plan in _plans(keys, tuple(sorted(mapping.items())) if mapping else ()):
        document = plan.read(row, source, plan.columns, plan.rest)
        if document is not None:
            return document
    # What helps comes first, for the end is cut where lines are short.
    raise ValueError(
        "name its columns, such as --map user=COLUMN --map assistant=COLUMN; keys "
        f"{', '.join(map(str, keys)) or '(none)'} hold neither messages, text, prompt and "
        "completion, question and answer, nor text and label"
    )


def names_a_column(mapping: Mapping[str, str], keys: Sequence[str]) -> bool:
    """Whether --map names one of these keys: a column as it is, or one of several with commas
    between them, without regard to case."""
    names = {str(key).strip().casefold() for key in keys}
    wanted = (name for column in mapping.values() for name in (column, *column.split(",")))
    return any(name.strip().casefold() in names for name in wanted if name.strip())


def may_name_a_sender(mapping: Mapping[str, str], keys: Sequence[str]) -> bool:
    """Whether --map says only whom to imitate in chat exports, and nothing of these keys."""
    return mapping.keys() == {"assistant"} and not names_a_column(mapping, keys)


def text_column(keys: Sequence[str]) -> str | None:
    """The key under which rows with these keys hold what would be labelled."""
    known = _known(tuple(keys))
    parts = ("labelled text", "text", "prompt alone")
    return next((known[part] for part in parts if part in known), None)


def has_shape(keys: Sequence[str], mapping: Mapping[str, str] | None = None) -> bool:
    """Whether rows with these keys can be read."""
    try:
        return bool(_plans(tuple(keys), tuple(sorted((mapping or {}).items()))))
    except ValueError:
        return False


def parse_row(line: bytes, source: str, mapping: Mapping[str, str] | None = None) -> Record:
    """One JSON object → document, or the failure that it is. The last of equal keys counts."""
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Failure(source, "bad JSON", str(error), shown(line))
    return row_record(row, source, mapping or {}, line)


def row_record(row: object, source: str, mapping: Mapping[str, str], line: bytes = b"") -> Record:
    """A decoded row → document or failure; `line` is what the failure keeps as the original."""
    if not isinstance(row, dict):
        return Failure(source, "not an object", type(row).__name__, shown(line or _encoded(row)))
    try:
        return to_document(row, source, mapping)
    except ValueError as error:
        return Failure(source, "bad row", str(error), shown(line or _encoded(row)))


def shown(line: bytes) -> str:
    """Bytes as text that can be stored; what is not UTF-8 as `\\xff`."""
    return line.decode("utf-8", errors="backslashreplace").rstrip("\r\n")


def _encoded(row: object) -> bytes:
    return msgspec.json.encode(row, enc_hook=str)


# ---- which shape


@lru_cache(maxsize=1024)
def _plans(keys: tuple[str, ...], mapping: tuple[tuple[str, str], ...]) -> tuple[Plan, ...]:
    """The ways to read rows with these keys, the best first. Raises ValueError for a mapped
    column that is not there, unless it may be a sender and the rows need no mapping."""
    if not mapping:
        return tuple(_shapes(_known(keys), keys))
    if may_name_a_sender(dict(mapping), keys):
        unmapped = tuple(_shapes(_known(keys), keys))
        if unmapped:
            return unmapped
    mapped: Columns = {}
    for part, column in mapping:
        if column not in keys:
            raise ValueError(f"column {column} of --map {part}={column} is not among the keys "
                             f"{', '.join(map(str, keys)) or '(none)'}")  # fmt: skip
        mapped[_CANONICAL.get(part, part)] = column
    taken = set(mapped.values())
    guessed = _known(tuple(key for key in keys if key not in taken))
    asides = {part: guessed[part] for part in ("system", "tools", "history") if part in guessed}
    own = tuple(_shapes(asides | _with_twins(mapped), keys))
    return own or tuple(_shapes(guessed | _with_twins(mapped), keys))


def _known(keys: tuple[str, ...]) -> Columns:
    """Every recognised name (lower case) and part → key."""
    names = {key.strip().casefold(): key for key in reversed(keys) if isinstance(key, str)}
    parts = {
        part: names[name] for part, known in _NAMES.items()
        for name in reversed(known) if name in names
    }  # fmt: skip
    pair = next((pair for pair in _PAIRS if pair[0] in names and pair[1] in names), None)
    if pair == ("source", "target") and ("text" in parts or "messages" in parts):
        pair = None  # where a written document came from
    if pair is not None:
        parts["prompt"], parts["completion"] = names[pair[0]], names[pair[1]]
        if "context" in names and pair[0] in ("question", "instruction", "prompt", "问题"):
            parts["context"] = names["context"]
        if pair[0] != "instruction":
            parts.pop("input", None)
    elif "prompt alone" in parts:
        parts["prompt"] = parts["prompt alone"]
    if "asked" in parts:
        answers = {name: names[name] for name in choices.ANSWERS if name in names}
        parts |= choices.lettered_columns(names) | answers
    return parts | {name: key for name, key in names.items() if EARLIER_TURN.fullmatch(name)}


def _with_twins(mapped: Columns) -> Columns:
    """Mapped parts also under the names by which single shapes look for them."""
    parts = dict(mapped)
    if "text" in parts:
        parts["labelled text"] = parts["text"]
    if "label" in parts:
        parts["verdict"] = parts["label"]
    return parts


def _shapes(parts: Columns, keys: tuple[str, ...]) -> list[Plan]:
    has = parts.keys()
    plans: list[Plan] = []

    def shape(read: Reader, *used: str) -> None:
        columns = {part: parts[part] for part in parts if part in used}
        taken = {*columns.values(), *_RESERVED}
        plans.append(Plan(read, columns, tuple(key for key in keys if key not in taken)))

    if {"chosen", "rejected"} <= has:
        shape(shapes.preference, "chosen", "rejected", "prompt", "messages", *_BESIDE)
    if "messages" in has:
        if "rejected" in has and "chosen" not in has:
            shape(shapes.written_pair, "messages", "rejected")
        if "verdict" in has:
            shape(shapes.unpaired_messages, "messages", "verdict", "system", "tools")
        shape(shapes.messages, "messages", "system", "tools")
    if "asked" in has and ("options" in has or "option b" in has):
        answers = [part for part in choices.ANSWERS if part in has]
        lettered = [part for part in has if part.startswith("option ")]
        if answers:
            shape(choices.multiple_choice, "asked", "options", "passage", *lettered, *answers)
    if {"prompt", "instances"} <= has:
        shape(shapes.instances, "prompt", "instances")
    if {"prompt", "completion"} <= has:
        if "verdict" in has:
            shape(shapes.unpaired, "prompt", "completion", "verdict", *_BESIDE)
        earlier = [part for part in parts if EARLIER_TURN.fullmatch(part)]
        shape(shapes.prompt, "prompt", "completion", *_BESIDE, *earlier)
    if {"labelled text", "label"} <= has and parts["labelled text"] != parts["label"]:
        shape(shapes.labelled, "labelled text", "label", "system")
    if "text" in has:
        shape(shapes.text, "text")
    return plans
