"""One unit of a corpus: a text or a conversation, with where it came from."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from chatbench.conversation import Message, as_json
from chatbench.text.tags import with_control


class Document(msgspec.Struct, frozen=True, omit_defaults=True):
    """Either `text` or `messages` is set. `source` is `file` or `file:line`.

    `messages` is what a model should imitate; `rejected` is the same conversation with the ending
    it should not give, for preference pairs. A reply that is only known to be bad stands in both,
    with weight 0 in `messages`. `shape` names the row format it came from, for the report.
    `control` is what the tags say, one `column: value` a line; it stands in the system turn.
    """

    source: str
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    meta: dict[str, Any] = {}
    rejected: tuple[Message, ...] | None = None
    shape: str = "text"
    control: str = ""

    def digest(self) -> bytes:
        """16 bytes that depend on what a model would see alone: not on source, meta, outer white
        space or the Unicode composition of characters."""
        content: object
        if self.messages is None:
            content = _normal(self.text or "")
        else:
            turns: list[object] = [
                [m.role, _normal(m.content)] if m.weight else [m.role, _normal(m.content), 0]
                for m in self.messages
            ]
            if self.rejected is not None:
                turns.append([[m.role, _normal(m.content)] for m in self.rejected])
            content = turns
        return hashlib.sha256(msgspec.json.encode(content)).digest()[:16]

    def texts(self) -> list[str]:
        """Everything in it that a tokenizer should learn from."""
        if self.messages is not None:
            return [message.content for message in self.messages]
        return [self.text or ""]

    def joined(self) -> str:
        """All of it as one string, for stages that judge the document as a whole."""
        return (self.text or "") if self.messages is None else "\n".join(self.texts())

    def mapped(self, change: Callable[[str], str]) -> Document:
        """The document with `change` applied to every text in it; itself when nothing changed."""
        text = None if self.text is None else change(self.text)
        messages = _mapped(self.messages, change)
        rejected = _mapped(self.rejected, change)
        if (text, messages, rejected) == (self.text, self.messages, self.rejected):
            return self
        return msgspec.structs.replace(self, text=text, messages=messages, rejected=rejected)

    def is_empty(self) -> bool:
        return not any(text.strip() for text in self.texts())

    def turns(self) -> tuple[Message, ...] | None:
        """`messages` with the control text in the system turn."""
        return _controlled(self.messages, self.control)

    def rejected_turns(self) -> tuple[Message, ...] | None:
        """`rejected` with the control text in the system turn."""
        return _controlled(self.rejected, self.control)

    def as_row(self) -> dict[str, Any]:
        """The document as a line of a corpus folder's val.jsonl or test.jsonl."""
        turns, rejected = self.turns(), self.rejected_turns()
        content: dict[str, Any] = (
            {"text": self.text} if turns is None else {"messages": as_json(turns)}
        )
        if turns is None and self.control:
            content["control"] = self.control
        if rejected is not None:
            content["rejected"] = as_json(rejected)
        return {**self.meta, **content, "source": self.source}


# Python's own composition takes the square of the length of a run of combining marks, which a short
# text cannot make felt.
_LONG = 1 << 15
_LONG_RUN = re.compile(r"[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u064b-\u065f\u3099\u309a]{256}")


def _normal(text: str) -> str:
    text = text.strip()
    if text.isascii():
        return text
    if len(text) > _LONG and _LONG_RUN.search(text) is not None:
        from tokenizers import normalizers

        return str(normalizers.NFC().normalize_str(text))
    return unicodedata.normalize("NFC", text)


def _controlled(messages: tuple[Message, ...] | None, control: str) -> tuple[Message, ...] | None:
    return None if messages is None else with_control(messages, control)


def _mapped(
    messages: tuple[Message, ...] | None, change: Callable[[str], str]
) -> tuple[Message, ...] | None:
    if messages is None:
        return None
    return tuple(Message(m.role, change(m.content), m.weight) for m in messages)


class Failure(msgspec.Struct, frozen=True):
    """A record that could not be read: counted by reason, kept with its original."""

    source: str
    reason: str
    detail: str = ""
    original: str = ""


class Dropped(msgspec.Struct, frozen=True):
    """Why a stage leaves a document out."""

    reason: str
    detail: str = ""


Record: TypeAlias = Document | Failure
Counts: TypeAlias = Counter[str]

# A stage is a pure function: for each document of a batch, in order, the document (the same object
# when nothing changed) or why it is dropped; and how often it did what. It holds no state from one
# batch to the next, so that any number of workers, or a Ray or Spark map, can call it.
Stage: TypeAlias = Callable[[Sequence[Document]], tuple[list[Document | Dropped], Counts]]
