"""One unit of a corpus: a text or a conversation, with where it came from."""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Any

import msgspec

from chatbench.conversation import Message, as_json


class Document(msgspec.Struct, frozen=True):
    """Either `text` or `messages` is set. `source` is `file` or `file:line`."""

    source: str
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    meta: dict[str, Any] = {}

    def digest(self) -> bytes:
        """16 bytes that depend on what a model would see alone: not on source, meta, outer white
        space or the Unicode composition of characters."""
        turns = self.messages or (Message("user", self.text or ""),)
        seen = [
            [message.role, unicodedata.normalize("NFC", message.content.strip())]
            for message in turns
        ]
        content = seen if self.messages is not None else seen[0][1]
        return hashlib.sha256(msgspec.json.encode(content)).digest()[:16]

    def texts(self) -> list[str]:
        """Everything in it that a tokenizer should learn from."""
        if self.messages is not None:
            return [message.content for message in self.messages]
        return [self.text or ""]

    def is_empty(self) -> bool:
        return not any(text.strip() for text in self.texts())

    def as_row(self) -> dict[str, Any]:
        """The document as a line of a corpus folder's val.jsonl or test.jsonl."""
        content: dict[str, Any] = (
            {"text": self.text} if self.messages is None else {"messages": as_json(self.messages)}
        )
        return {**self.meta, **content, "source": self.source}


class Failure(msgspec.Struct, frozen=True):
    """A record that could not be read: counted by reason, kept with its original."""

    source: str
    reason: str
    detail: str = ""
    original: str = ""
