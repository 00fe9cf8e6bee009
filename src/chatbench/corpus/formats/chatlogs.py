"""Exports of messengers → conversations: one sender is imitated, all others are the user.

The forms are in `chatlog_lines` (WhatsApp, WeChat, QQ, IRC) and `chatlog_json` (Telegram, Discord,
Slack). Who is imitated is decided on the head of a file, so that reading can stream.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from chatbench.console import visible
from chatbench.conversation import Message, Role
from chatbench.corpus.document import Document, Failure, Record
from chatbench.corpus.formats import chatlog_json, chatlog_lines
from chatbench.corpus.formats.chatlog_dialects import Dialect
from chatbench.corpus.formats.chatlog_json import Kind
from chatbench.corpus.formats.chatlog_lines import Said
from chatbench.corpus.formats.chatlog_times import DateOrder
from chatbench.corpus.formats.source import HEAD_BYTES, Source
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.corpus.sources.encodings import Line

GAP_SECONDS = 3 * 3600
_NAME = "chatlog"
_LINE_END = re.compile(r"\r\n|\r|\n")
_BLANK = re.compile(r"\s*")
_SHOWN_NAMES = 4
_HEAD_MESSAGES = 1000
_CHANGE = "--map assistant=NAME for another"
_EACH = "the second to speak, in groups who says most,"


def matches(head: bytes, text: str, name: str, options: ReadOptions) -> bool:
    """Whether a file with this head is an export of a messenger; strict, for prose, tables and
    other logs have dates and names too."""
    start = text[_begin(text) :][:1]
    if start and start in "{[" and chatlog_json.kind_of(text.encode("utf-8", "replace")):
        return True
    return start != "{" and chatlog_lines.dialect_of(_head_lines(head, text)) is not None


def verdict(source: Source) -> str:
    """The program that wrote the file, and who of the senders is imitated and how to change it."""
    return _Plan(source).verdict()


def read(source: Source) -> Iterator[Record]:
    """Conversations, cut where nobody spoke for three hours and before they pass
    `options.passage_chars`.

    `name:LINE` is the line of the first message, in JSON `name[INDEX]`, of a whole account
    `name[CHAT][INDEX]`. The assistant is whom `options.mapping["assistant"]` names (several with
    commas); else the owner of a Telegram account, else of two senders the second to speak, of more
    the one who says most, each by the head of the file. Consecutive messages of one role are one
    turn. `date` in meta is the ISO day of the first message, where that is certain.
    """
    plan = _Plan(source)
    if plan.kind is not None:
        names: dict[str, str] = {}
        for chat in chatlog_json.chats(source):
            if isinstance(chat, Failure):
                yield chat
                continue
            said = chatlog_json.messages(chat, plan.kind, names)
            if plan.has_chats:
                first = list(islice(said, _HEAD_MESSAGES))
                cast = plan.new_cast(first)
                yield from _conversations(chain(first, said), cast, source)
            else:
                yield from _conversations(said, plan.cast, source)
        return
    if plan.dialect is None:
        detail = "no line of it begins a message in a form that is known"
        yield Failure(source.name, "not a chat export", detail)
        return
    limit = source.options.max_record_bytes
    said = chatlog_lines.messages(source.lines(), source.name, plan.dialect, plan.order, limit)
    yield from _conversations(said, plan.cast, source)


def _begin(text: str) -> int:
    found = _BLANK.match(text)
    return found.end() if found else 0


def _head_lines(head: bytes, text: str) -> list[str]:
    """The whole lines of a head."""
    lines = _LINE_END.split(text)
    return lines[:-1] if len(head) >= HEAD_BYTES else lines


class _Plan:
    """What the head of a file says: the form, the order of dates, the senders."""

    def __init__(self, source: Source) -> None:
        self._source = source
        text = source.head_text()
        self.kind: Kind | None = None
        self.dialect: Dialect | None = None
        self.order = DateOrder()
        self.has_chats = False
        self._owner: tuple[str, str] | None = None
        said: Iterable[Said | Failure] = ()
        if text[_begin(text) :][:1] in ("{", "["):
            self.kind = chatlog_json.kind_of(text.encode("utf-8", "replace"))
        if self.kind is not None:
            said = self._of_json(self.kind, text.encode("utf-8", "replace"))
        else:
            lines = _head_lines(source.head, text)
            found = chatlog_lines.dialect_of(lines)
            self.dialect = found or chatlog_lines.dialect_of(lines, is_forced=True)
            if self.dialect is not None:
                self.order = chatlog_lines.order_of(self.dialect, lines)
                numbered = [Line(number, line) for number, line in enumerate(lines, 1)]
                said = chatlog_lines.messages(
                    numbered, source.name, self.dialect, self.order, HEAD_BYTES
                )
        self.cast = _Cast(
            [one for one in said if isinstance(one, Said)], self._wanted(), self._owner
        )

    def _of_json(self, kind: Kind, head: bytes) -> list[Said]:
        self.has_chats = kind.title.startswith("Telegram") and chatlog_json.has_chats(head)
        self._owner = chatlog_json.owner_of(head) if self.has_chats else None
        names: dict[str, str] = {}
        said = []
        for row in chatlog_json.head_rows(head):
            try:
                said.append(kind.read(row, "", names))
            except ValueError:
                continue
        return [one for one in said if one is not None and one.text]

    def _wanted(self) -> str:
        return self._source.options.mapping.get("assistant", "")

    def new_cast(self, first: Iterable[Said | Failure]) -> _Cast:
        """The cast of one chat of many, by its own first messages."""
        said = [one for one in first if isinstance(one, Said)]
        return _Cast(said, self._wanted(), self._owner)

    def verdict(self) -> str:
        form = self.kind or self.dialect
        if form is None:
            return "chat export of no known form"
        if self.has_chats and not self._wanted() and self._owner is None:
            return f"{form.title} of a whole account, in each chat {_EACH} as assistant ({_CHANGE})"
        return f"{form.title}, {visible(self.cast.described())}"


class _Cast:
    """Who of the senders is imitated, and whose words carry a name."""

    def __init__(self, head: list[Said], wanted: str, owner: tuple[str, str] | None) -> None:
        self._wanted = {_folded(name) for name in (wanted, *wanted.split(",")) if name.strip()}
        self._owner = owner
        self._names = {said.key: said.name for said in reversed(head)}
        order = list(dict.fromkeys(said.key for said in head))
        counts = Counter(said.key for said in head)
        self._first = order[0] if order else None
        self._chosen: str | None = None
        self._is_group = len(order) > 2
        if not self._wanted and owner is None and len(order) > 1:
            most = max(order, key=lambda key: counts[key])  # the first of equals
            self._chosen = most if self._is_group else order[1]
        self._found = [said for said in head if self.is_assistant(said)]
        users = [key for key in order if key not in {said.key for said in self._found}]
        self._partner = users[0] if users else None
        self._has_crowd = len(users) > 1
        self._order = order

    def is_assistant(self, said: Said) -> bool:
        if self._wanted:
            return _folded(said.key) in self._wanted or _folded(said.name) in self._wanted
        if self._owner is not None:
            return said.key == self._owner[0]
        if self._chosen is None:
            self._first = said.key if self._first is None else self._first
            if said.key == self._first:
                return False
            self._chosen = said.key
        return said.key == self._chosen

    def is_named(self, said: Said) -> bool:
        """Whether a user's words need the name before them: the one other of two needs none."""
        if self._partner is None:
            self._partner = said.key
        return self._has_crowd or said.key != self._partner

    def described(self) -> str:
        if self._wanted:
            if self._found:
                names = dict.fromkeys(said.name for said in self._found)
                return f"{', '.join(names)} as assistant"
            known = ", ".join(self._names[key] for key in self._order[:_SHOWN_NAMES])
            return f"whom --map assistant names is not among the first senders: {known}"
        if self._owner is not None:
            return f"{self._owner[1]} as assistant (the owner; {_CHANGE})"
        if self._chosen is None:
            return f"the second to speak as assistant ({_CHANGE})"
        why = "says most" if self._is_group else "the second to speak"
        return f"{self._names[self._chosen]} as assistant ({why}; {_CHANGE})"


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def _conversations(
    messages: Iterable[Said | Failure], cast: _Cast, source: Source
) -> Iterator[Record]:
    conversation = _Conversation(cast)
    limit = source.options.passage_chars
    for said in messages:
        if isinstance(said, Failure):
            yield said
            continue
        if not conversation.holds(said, limit):
            yield conversation.document()
            conversation = _Conversation(cast)
        conversation.add(said)
    if conversation.turns:
        yield conversation.document()


def _pause(earlier: int | None, later: int | None) -> int:
    """Seconds between two messages, in either direction; 0 where one has no time."""
    return 0 if earlier is None or later is None else abs(later - earlier)


class _Conversation:
    """The conversation that is being read; `turns` are roles with what was said in a row."""

    def __init__(self, cast: _Cast) -> None:
        self._cast = cast
        self.turns: list[tuple[Role, list[str]]] = []
        self._begin: Said | None = None
        self._last: Said | None = None
        self._seconds: int | None = None
        self._size = 0

    def holds(self, said: Said, limit: int) -> bool:
        """Whether a message still belongs here: there was no pause, and it fits."""
        if not self.turns:
            return True
        if _pause(self._seconds, said.seconds) >= GAP_SECONDS:
            return False
        return self._size + len(self._written(said)[1]) + 1 <= limit

    def add(self, said: Said) -> None:
        role, text = self._written(said)
        if not self.turns or self.turns[-1][0] != role:
            self.turns.append((role, []))
        self.turns[-1][1].append(text)
        self._size += len(text) + 1
        self._begin = self._begin or said
        self._last = said
        self._seconds = self._seconds if said.seconds is None else said.seconds

    def _written(self, said: Said) -> tuple[Role, str]:
        """The role, and the text with the speaker's name where another speaker was before."""
        if self._cast.is_assistant(said):
            return "assistant", said.text
        goes_on = self._last is not None and self._last.key == said.key
        if self._cast.is_named(said) and not goes_on:
            return "user", f"{said.name}: {said.text}"
        return "user", said.text

    def document(self) -> Document:
        assert self._begin is not None
        turns = tuple(Message(role, "\n".join(texts)) for role, texts in self.turns)
        meta = {"date": self._begin.day} if self._begin.day else {}
        return Document(self._begin.where, messages=turns, meta=meta, shape=_NAME)
