"""A conversation with a model. Knows no terminal: text in, events out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from chatbench.conversation import Message, as_json, parse_messages
from chatbench.engine.engine import Completion, Engine, Piece, Request
from chatbench.errors import UsageError
from chatbench.model.folder import OpenedModel
from chatbench.settings import SamplingSettings
from chatbench.storage import write_file
from chatbench.text.template import render, reply_prompt


class Forgotten(NamedTuple):
    """The oldest turns no longer fit into the model's context and were left out."""

    turns: int


Event = Piece | Completion | Forgotten


class ChatSession:
    """Messages, a system prompt, sampling, and an engine that keeps its cache between turns."""

    def __init__(
        self, opened: OpenedModel, sampling: SamplingSettings, system: str | None = None
    ) -> None:
        self._tokenizer = opened.tokenizer
        self._engine = Engine(opened.model, opened.tokenizer, max_rows=1)
        self.folder = opened.folder
        self.context = opened.model.config.context
        self.sampling = sampling
        self.system = system
        self.messages: list[Message] = []
        self.used = 0
        self._replies = 0

    def send(self, text: str, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Say something; the events of the reply. A reply that is cancelled is kept as far as it
        came. Raises UsageError, with the conversation as it was, when the message is too long."""
        self.messages.append(Message("user", text))
        try:
            yield from self._reply(cancelled)
        except UsageError:
            self.messages.pop()
            raise

    def retry(self, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Answer the last message anew. Raises UsageError when there is none."""
        if not any(message.role == "user" for message in self.messages):
            raise UsageError("there is nothing to answer again", hint="say something first")
        before = list(self.messages)
        while self.messages[-1].role != "user":
            self.messages.pop()
        try:
            yield from self._reply(cancelled)
        except UsageError:
            self.messages = before
            raise

    def clear(self) -> None:
        self.messages.clear()
        self.used = 0

    def _reply(self, cancelled: Callable[[], bool]) -> Iterator[Event]:
        ids, forgotten = self._prompt()
        if forgotten:
            yield Forgotten(forgotten)
        sampling = self.sampling
        if sampling.seed is not None:
            # The same seed for every turn would favour the same words in each of them.
            sampling = msgspec.structs.replace(sampling, seed=sampling.seed + self._replies)
        self._replies += 1
        for event in self._engine.run([Request(ids, sampling)], cancelled):
            if isinstance(event, Completion):
                self.messages.append(Message("assistant", event.text.strip()))
                self.used = event.prompt_tokens + len(event.ids)
            yield event

    def _prompt(self) -> tuple[list[int], int]:
        """Ids to continue, and how many old exchanges had to be left out to leave room."""
        opening = [Message("system", self.system)] if self.system else []
        room = self.context - min(self.sampling.max_tokens, self.context // 4)
        starts = [n for n, message in enumerate(self.messages) if message.role == "user"]
        for forgotten, start in enumerate(starts):
            ids = reply_prompt(self._tokenizer, [*opening, *self.messages[start:]])
            if len(ids) <= room:
                return ids, forgotten
        raise UsageError(
            f"the message takes {len(ids)} tokens; with room for a reply, "
            f"{room} of the model's context of {self.context} are left",
            hint="shorten it",
        )

    def save(self, path: Path) -> None:
        """Add the conversation to `path` as a line of JSON that `finetune -d` accepts.

        Raises UsageError when nothing was said, EnvironmentFault when it cannot be written.
        """
        if not self.messages:
            raise UsageError("there is nothing to save", hint="say something first")
        opening = [Message("system", self.system)] if self.system else []
        row = {"messages": as_json([*opening, *self.messages])}
        before = path.read_bytes() if path.is_file() else b""
        if before and not before.endswith(b"\n"):
            before += b"\n"
        write_file(path, before + msgspec.json.encode(row) + b"\n")

    def load(self, path: Path) -> None:
        """Continue what `save` wrote. Raises UsageError, with the conversation as it was, also when
        the chat template does not take the turns."""
        try:
            row = msgspec.json.decode(path.read_bytes().splitlines()[-1])
            messages = list(parse_messages(row["messages"]))
        except FileNotFoundError:
            raise UsageError(f"{path} does not exist") from None
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise UsageError(f"{path} holds no conversation: {error}") from error
        self.used = min(len(render(self._tokenizer, messages).ids), self.context)
        self.system = messages.pop(0).content if messages[0].role == "system" else None
        self.messages = messages
