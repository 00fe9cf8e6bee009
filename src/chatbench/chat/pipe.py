"""Replies without a terminal: one for a prompt, or one a line for JSON Lines, in order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from chatbench import console
from chatbench.chat.session import ChatSession, Forgotten
from chatbench.conversation import Message, parse_messages
from chatbench.engine.engine import Completion, Engine, Piece, Request
from chatbench.errors import ExitCode, UsageError, did_you_mean
from chatbench.model.folder import OpenedModel
from chatbench.settings import SamplingSettings, replace
from chatbench.text.template import reply_prompt
from chatbench.text.tokenizer import Tokenizer

_READ_BYTES = 1 << 16
_KNOWN = frozenset(("id", "prompt", "messages", "system"))
_SAMPLING = frozenset(SamplingSettings.__struct_fields__)


def reply_once(session: ChatSession, prompt: str) -> int:
    """The reply to `prompt`, streamed to stdout."""
    for event in session.send(prompt):
        if isinstance(event, Piece):
            console.emit(console.visible(event.text), end="")
        elif isinstance(event, Forgotten):
            console.notice("earlier turns no longer fit and are left out")
    console.emit("")
    return ExitCode.DONE


def continue_text(opened: OpenedModel, sampling: SamplingSettings, text: str) -> int:
    """What a base model writes after `text`, streamed to stdout."""
    engine = Engine(opened.model, opened.tokenizer, max_rows=1)
    for event in engine.run([Request(raw_prompt(opened.tokenizer, text), sampling, goes_on=True)]):
        if isinstance(event, Piece):
            console.emit(console.visible(event.text), end="")
    console.emit("")
    return ExitCode.DONE


def raw_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """A document's beginning, as in pretraining."""
    return [*tokenizer.text_prefix, *tokenizer.encode(text)]


class Asked(NamedTuple):
    """One line of input: a request, or why it is none."""

    id: object
    request: Request | None
    error: str = ""


class JsonLines:
    """Requests in, replies out: order kept, flushed, answered several at once."""

    def __init__(
        self, opened: OpenedModel, sampling: SamplingSettings, system: str | None, *,
        raw: bool, batch_size: int,
    ) -> None:  # fmt: skip
        self._tokenizer = opened.tokenizer
        self._engine = Engine(opened.model, opened.tokenizer, batch_size)
        self._sampling = sampling
        self._system = system
        self._raw = raw
        self._batch_size = batch_size

    def run(self, stdin: int) -> int:
        """Answer every line of the file descriptor; DATA when any line could not be."""
        failed = False
        for group in _arriving(stdin, self._batch_size):
            asked = [self.parse(line, number) for number, line in group]
            completions = iter(self._engine.complete(a.request for a in asked if a.request))
            for entry in asked:
                row = _error(entry) if entry.request is None else _reply(entry, next(completions))
                failed = failed or entry.request is None
                console.emit(msgspec.json.encode(row).decode())
        return ExitCode.DATA if failed else ExitCode.DONE

    def parse(self, line: bytes, number: int) -> Asked:
        """One JSON object with prompt or messages, an id, and its own sampling."""
        row: Any = None
        try:
            row = msgspec.json.decode(line)
            if not isinstance(row, dict):
                raise UsageError(f"line {number} is not a JSON object")
            ids = self._ids(row)
            self._engine.check(ids)
            own = {key: value for key, value in row.items() if key not in _KNOWN}
            for name in own.keys() - _SAMPLING:
                hint = did_you_mean(name, sorted(_KNOWN | _SAMPLING))
                raise UsageError(f"there is no {name}", hint=hint)
            goes_on = self._raw and "messages" not in row
            request = Request(ids, replace(self._sampling, **own), goes_on=goes_on)
            return Asked(row.get("id", number), request)
        except (ValueError, RecursionError, UsageError) as error:
            name = row.get("id", number) if isinstance(row, dict) else number
            return Asked(name, None, f"line {number}: {error}")

    def _ids(self, row: dict[str, Any]) -> list[int]:
        if "messages" in row:
            messages = list(parse_messages(row["messages"]))
        elif isinstance(row.get("prompt"), str):
            if self._raw:
                return raw_prompt(self._tokenizer, row["prompt"])
            messages = [Message("user", row["prompt"])]
        else:
            raise UsageError("there is neither prompt nor messages")
        system = row.get("system", self._system)
        if system and messages[0].role != "system":
            messages.insert(0, Message("system", str(system)))
        return reply_prompt(self._tokenizer, messages)


def _arriving(stdin: int, most: int) -> Iterator[list[tuple[int, bytes]]]:
    """Numbered lines in groups, as soon as they are there, so that a waiting writer is served."""
    rest = b""
    number = 0
    while True:
        data = os.read(stdin, _READ_BYTES)
        *lines, rest = (rest + data).split(b"\n")
        if not data and rest:
            lines, rest = [*lines, rest], b""
        numbered = []
        for line in lines:
            number += 1
            if line.strip():
                numbered.append((number, line))
        for begin in range(0, len(numbered), most):
            yield numbered[begin : begin + most]
        if not data:
            return


def _reply(asked: Asked, completion: Completion) -> dict[str, Any]:
    return {
        "id": asked.id,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "usage": {
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": len(completion.ids),
        },
    }


def _error(asked: Asked) -> dict[str, Any]:
    return {"id": asked.id, "error": asked.error}
