"""A conversation with a model. Knows no terminal: text in, events out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from chatbench import console
from chatbench.chat import sessions
from chatbench.chat.prompting import opening_text
from chatbench.chat.sessions import SessionFile, Stored
from chatbench.chat.tree import Conversation, Turn
from chatbench.conversation import Message, as_json
from chatbench.engine.engine import Completion, Engine, Piece, Request
from chatbench.errors import UsageError
from chatbench.model.folder import OpenedModel, read_provenance
from chatbench.settings import SamplingSettings
from chatbench.storage import disk_errors, write_file
from chatbench.text.fitting import fit, room_for
from chatbench.text.tags import known_in
from chatbench.text.template import render, reply_prompt


class Forgotten(NamedTuple):
    """The oldest exchanges no longer fit into the model's context; `turns` of them are left out.
    Told when the number changes."""

    turns: int


Event = Piece | Completion | Forgotten
Cancelled = Callable[[], bool]


class View(msgspec.Struct):
    """How replies are shown."""

    markdown: bool = True
    quiet: bool = False


class Trace(NamedTuple):
    """The ids of a reply and of what it answers."""

    turn: int
    prompt: list[int]
    reply: list[int]


def _never() -> bool:
    return False


class ChatSession:
    """A tree of messages, a system prompt, sampling, and an engine that keeps its cache."""

    def __init__(
        self, opened: OpenedModel, sampling: SamplingSettings, system: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.opened = opened
        self.engine = Engine(opened.model, opened.tokenizer, max_rows=1)
        self.folder = opened.folder
        self.context = opened.model.config.context
        self.sampling = sampling
        self.system = system
        self.tags = dict(tags or {})
        self.known_tags = known_in(read_provenance(opened.folder))
        self.view = View()
        self.conversation = Conversation()
        self.others: dict[str, OpenedModel] = {}  # opened by /compare
        self.attached: list[str] = []  # texts that go with the next message
        self.used = 0
        self.trace: Trace | None = None
        self.file: SessionFile | None = None
        self._tokenizer = opened.tokenizer
        self._replies = 0
        self._forgotten = 0

    # ---- what was said

    @property
    def messages(self) -> list[Message]:
        """The current path, oldest first; a copy. Assigned, it becomes a new conversation."""
        return self.conversation.messages()

    @messages.setter
    def messages(self, messages: Iterable[Message]) -> None:
        self.conversation = Conversation(messages)
        self._moved()

    def opening(self) -> list[Message]:
        """The system turn, if there is one."""
        text = opening_text(self.system, self.tags, self.known_tags)
        return [Message("system", text)] if text else []

    def put_tags(self, tags: Mapping[str, str | None]) -> None:
        """Answer under these tags from here on; None takes one away."""
        self.tags = {k: v for k, v in {**self.tags, **tags}.items() if v is not None}
        self.keep()

    @property
    def left_out(self) -> int:
        """How many old exchanges the model does not see any more."""
        return self._forgotten

    # ---- talking

    def send(self, text: str, cancelled: Cancelled = _never) -> Iterator[Event]:
        """Say something; the events of the reply. A reply that is cancelled is kept as far as it
        came. Raises UsageError, with the conversation as it was, when the message is too long."""
        whole = "\n\n".join([*self.attached, text])
        message = Message("user", _plain(whole))
        yield from self._reply(self.conversation.tip, message, cancelled)

    def retry(self, cancelled: Cancelled = _never) -> Iterator[Event]:
        """Answer the last message anew; the reply before stays beside it. Raises UsageError when
        there is none."""
        asked = [turn for turn in self.conversation.path() if turn.message.role == "user"]
        if not asked:
            raise UsageError("there is nothing to answer again", hint="say something first")
        yield from self._reply(asked[-1].id, None, cancelled)

    def edit(self, number: int, text: str, cancelled: Cancelled = _never) -> Iterator[Event]:
        """Say message `number` (from 1) otherwise and go on from there; what followed stays beside
        it. A changed reply is taken as it is, a changed message is answered. Raises UsageError."""
        turn = self.conversation.numbered(number)
        if not text.strip():
            raise UsageError(f"message {number} would be empty", hint=f"/edit {number} TEXT")
        message = Message(turn.message.role, _plain(text))
        if message.role == "user":
            yield from self._reply(turn.parent, message, cancelled, edited=True)
            return
        self.conversation.move(turn.parent)
        self.conversation.add(message)
        self._moved()
        self.keep()

    def _reply(
        self, at: int, message: Message | None, cancelled: Cancelled, *, edited: bool = False
    ) -> Iterator[Event]:
        """Go to turn `at`, say `message` there, and answer. Nothing changes when it is refused."""
        fresh = [] if message is None else [message]
        before = self._forgotten
        # What was said otherwise may leave room again for what was left out.
        out = 0 if edited else before
        ids, forgotten = self.fit([*self.conversation.messages(at), *fresh], out)
        self.conversation.move(at)
        for said in fresh:
            self.conversation.add(said)
            self.attached.clear()
        self.keep()
        self._forgotten = forgotten
        if forgotten and forgotten != before:
            yield Forgotten(forgotten)
        sampling = self.sampling
        if sampling.seed is not None:
            # The same seed for every turn would favour the same words in each of them.
            sampling = msgspec.structs.replace(sampling, seed=sampling.seed + self._replies)
        self._replies += 1
        for event in self.engine.run([Request(ids, sampling)], cancelled):
            if isinstance(event, Completion):
                self._keep_reply(ids, event)
            yield event

    def _keep_reply(self, prompt: list[int], reply: Completion) -> None:
        stopped = reply.finish_reason == "cancelled"
        turn = self.conversation.add(Message("assistant", reply.text.strip()), stopped=stopped)
        self.trace = Trace(turn.id, prompt, reply.ids)
        self.used = reply.prompt_tokens + len(reply.ids)
        self.keep()

    def room(self) -> int:
        """Tokens a prompt may have, so that there is room for a reply."""
        return room_for(self.context, self.sampling.max_tokens)

    def fit(self, messages: list[Message], out: int = 0) -> tuple[list[int], int]:
        """Ids to continue, and how many old exchanges had to be left out to leave room for a reply;
        `out` of them are out already. Raises UsageError when the last message alone is too long."""
        room = self.room()
        ids, forgotten = fit(self._tokenizer, self.opening(), messages, room, out)
        if len(ids) > room:
            raise UsageError(
                f"the message takes {len(ids)} tokens; with room for a reply, "
                f"{room} of the model's context of {self.context} are left",
                hint="/read none takes the files out" if self.attached else "shorten it",
            )
        return ids, forgotten

    # ---- moving in the tree

    def undo(self, count: int = 1) -> int:
        """Take back the last `count` exchanges, as far as there are; how many it were."""
        undone = self.conversation.undo(count)
        self._moved()
        self.keep()
        return undone

    def redo(self) -> None:
        """Take the last undo back."""
        self.conversation.redo()
        self._moved()
        self.keep()

    def branch(self, name: str = "") -> str:
        """Go on under another name, so that this point stays; the name."""
        made = self.conversation.branch(name)
        self.keep()
        return made

    def switch(self, name: str) -> None:
        """Go on where another branch ends."""
        self.conversation.switch(name)
        self._moved()
        self.keep()

    def choose(self, turn: Turn) -> None:
        """Make `turn` the last one."""
        self.conversation.move(turn.id)
        self._moved()
        self.keep()

    def clear(self) -> None:
        """Begin a new conversation; one that is kept stays where it is, under its name."""
        said = bool(self.conversation.turns)
        self.conversation = Conversation()
        self.attached.clear()
        if self.file is not None and said:
            self.file.close()
            self.file = self.file.another()
        self._moved()

    def _moved(self) -> None:
        messages = self.messages
        self._forgotten = 0
        self.used = self.count([*self.opening(), *messages]) if messages else 0

    def tokens(self, messages: list[Message]) -> int:
        """Tokens of a prompt of these turns."""
        return len(reply_prompt(self._tokenizer, messages))

    def count(self, messages: list[Message]) -> int:
        """Tokens of these turns, at most the context."""
        return min(len(render(self._tokenizer, messages).ids), self.context)

    # ---- keeping

    def keep(self) -> None:
        """Write the session's file, where there is one; an empty conversation makes none."""
        if self.file is None or not self.conversation.turns:
            return
        opening = opening_text(self.system, self.tags, self.known_tags)
        stored = Stored(self.conversation, self.system, self.tags)
        self.file.write(sessions.encode(stored, opening))

    def keep_in(self, folder: Path, name: str = "") -> bool:
        """Write after every message to a file in `folder`; go on with `name`, where it is there.
        Whether it was. Raises UsageError for a file that holds no conversation."""
        file = SessionFile(folder, name, tell=console.notice)
        there = bool(name) and os.path.exists(file.path)
        if there:
            self._take(sessions.read(file.path))
        if self.file is not None:
            self.file.close()
        self.file = file
        if name:
            file.begin()
        return there

    def close(self) -> None:
        """Let another chat have the session."""
        if self.file is not None:
            self.file.close()

    def save(self, path: Path) -> None:
        """Add the conversation to `path` as a line of JSON that `finetune -d` accepts.

        Raises UsageError when nothing was said, EnvironmentFault when it cannot be written.
        """
        if not self.messages:
            raise UsageError("there is nothing to save", hint="say something first")
        row = {"messages": as_json([*self.opening(), *self.messages])}
        with disk_errors(path):
            before = path.read_bytes() if path.is_file() else b""
        if before and not before.endswith(b"\n"):
            before += b"\n"
        write_file(path, before + msgspec.json.encode(row) + b"\n")

    def load(self, path: Path) -> None:
        """Continue what `save` wrote, or a session with its branches. Raises UsageError, with the
        conversation as it was, also when the chat template does not take the turns."""
        self._take(sessions.read(path))
        if self.file is not None:
            self.file.close()
            self.file = self.file.another()
        self.keep()

    def _take(self, stored: Stored) -> None:
        text = opening_text(stored.system, stored.tags, self.known_tags)
        opening = [Message("system", text)] if text else []
        turns = [*opening, *stored.conversation.messages()]
        used = self.count(turns) if turns else 0
        self.conversation, self.system, self.tags = stored
        self.attached.clear()
        self._forgotten = 0
        self.used = used
        self.trace = None


def _plain(text: str) -> str:
    """Without lone surrogates, which a terminal can send and no file can hold."""
    return text.encode("utf-8", errors="replace").decode("utf-8")
