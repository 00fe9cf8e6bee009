"""Chat exports in JSON: Telegram Desktop, DiscordChatExporter, the day files of Slack."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from html import unescape
from typing import Any, NamedTuple

import msgspec

from chatbench.corpus.document import Failure
from chatbench.corpus.formats.chatlog_lines import Said
from chatbench.corpus.formats.chatlog_times import SECONDS_A_DAY, iso_day, iso_seconds
from chatbench.corpus.formats.json_elements import Element, elements
from chatbench.corpus.formats.rows import shown
from chatbench.corpus.formats.source import Source

_BAD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_WHITE = b" \t\r\n"
_SHARE = 0.6
_MESSAGES = re.compile(rb'"messages"\s*:\s*\[')
_CHATS = re.compile(rb'"chats"\s*:\s*\{')
_OWNER = re.compile(rb'"personal_information"\s*:\s*\{')
_ABOUT = re.compile(rb'\s*\{\s*"about"\s*:\s*"')
_SLACK_TIME = re.compile(r"\d{9,11}\.\d{1,6}")
_SLACK_KEPT = (None, "thread_broadcast", "me_message", "file_share", "bot_message")
_DISCORD_KEPT = (
    "Default",
    "Reply",
    "ChatInputCommand",
    "ContextMenuCommand",
    "0",
    "19",
    "20",
    "23",
)
_MAX_EPOCH = 1 << 36
_EPOCH_DAY = date(1970, 1, 1).toordinal()


class Kind(NamedTuple):
    """`read` makes a message of an entry of the list, None of what nobody said; it raises
    ValueError for an entry of another form. `fits` tells the program's entries from others."""

    title: str
    read: Callable[[dict[str, Any], str, dict[str, str]], Said | None]
    fits: Callable[[dict[str, Any]], bool]


class Chat(NamedTuple):
    """The entries of one chat, and where it stands in the file."""

    where: str
    entries: Iterable[Element]


# ---- the three programs


def _telegram(entry: dict[str, Any], where: str, names: dict[str, str]) -> Said | None:
    if entry.get("type") != "message":
        return None
    text = entry.get("text")
    if isinstance(text, list):
        text = "".join(map(_telegram_part, text))
    if not isinstance(text, str):
        raise ValueError("no text in text")
    name, key = entry.get("from"), entry.get("from_id")
    key = str(key or name or "")
    name = _remembered(names, key, name if isinstance(name, str) else "")
    epoch = _number(entry.get("date_unixtime"))
    seconds = iso_seconds(entry.get("date")) if epoch is None else int(epoch)
    return Said(where, key, name, text.strip(), seconds, iso_day(entry.get("date")))


def _telegram_part(part: object) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str):
        raise ValueError("a part of text is no text")
    return text


def _discord(entry: dict[str, Any], where: str, names: dict[str, str]) -> Said | None:
    if str(entry.get("type", "Default")) not in _DISCORD_KEPT:
        return None
    author, text = entry.get("author"), entry.get("content")
    if not isinstance(author, dict) or not isinstance(text, str):
        raise ValueError("no author or no content")
    name, key = author.get("name"), author.get("id")
    key = str(key or name or "")
    name = _remembered(names, key, name if isinstance(name, str) else "")
    time = entry.get("timestamp")
    return Said(where, key, name, text.strip(), _zoned_seconds(time), iso_day(time))


def _zoned_seconds(time: object) -> int | None:
    """Seconds of a time with its zone, so that a change of the clock is no pause."""
    try:
        then = datetime.fromisoformat(time) if isinstance(time, str) else None
        if then is None or then.tzinfo is None:
            return iso_seconds(time)
        return iso_seconds(then.astimezone(UTC).isoformat())
    except (ValueError, OverflowError):
        return None


def _slack(entry: dict[str, Any], where: str, names: dict[str, str]) -> Said | None:
    if entry.get("type") != "message" or entry.get("subtype") not in _SLACK_KEPT:
        return None
    text = entry.get("text")
    if not isinstance(text, str):
        raise ValueError("no text in text")
    profile = entry.get("user_profile") or entry.get("bot_profile")
    profile = profile if isinstance(profile, dict) else {}
    found = (profile.get(key) for key in ("display_name", "real_name", "name"))
    name = next((n for n in (*found, entry.get("username")) if n and isinstance(n, str)), "")
    key = str(entry.get("user") or entry.get("bot_id") or name)
    name = _remembered(names, key, name)
    epoch = _number(entry.get("ts"))
    seconds = None if epoch is None else int(epoch)
    day = "" if seconds is None else _utc_day(seconds)
    return Said(where, key, name, _from_mrkdwn(text, names).strip(), seconds, day)


def _utc_day(seconds: int) -> str:
    return date.fromordinal(_EPOCH_DAY + seconds // SECONDS_A_DAY).isoformat()


_MRKDWN = re.compile(r"<([@#!]?)([^<>|]*)(?:\|([^<>]*))?>")


def _from_mrkdwn(text: str, names: Mapping[str, str]) -> str:
    """Slack's text with mentions by name, labels instead of links, and its three entities."""

    def plain(found: re.Match[str]) -> str:
        sign, target, label = found.groups()
        if sign in ("@", "!"):
            return "@" + (label or names.get(target) or target).removeprefix("@")
        return sign + (label or target)

    return unescape(_MRKDWN.sub(plain, text)) if "<" in text or "&" in text else text


def _remembered(names: dict[str, str], key: str, name: str) -> str:
    """The name that goes with a key: the first that was seen."""
    return names.setdefault(key, name) if name else names.get(key, key)


def _number(value: object) -> float | None:
    try:
        number = float(value) if isinstance(value, (int, float, str)) else -1.0
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number < _MAX_EPOCH else None


def _is_telegram(entry: dict[str, Any]) -> bool:
    kind, when = entry.get("type"), iso_day(entry.get("date"))
    return bool(when) and (
        (kind == "message" and "text" in entry and ("from" in entry or "from_id" in entry))
        or (kind == "service" and "action" in entry)
    )


def _is_discord(entry: dict[str, Any]) -> bool:
    author = entry.get("author")
    named = isinstance(author, dict) and isinstance(author.get("name"), str)
    return named and isinstance(entry.get("content"), str) and bool(iso_day(entry.get("timestamp")))


def _is_slack(entry: dict[str, Any]) -> bool:
    time = entry.get("ts")
    return (
        entry.get("type") == "message" and isinstance(time, str)
        and _SLACK_TIME.fullmatch(time) is not None
    )  # fmt: skip


_TELEGRAM = Kind("Telegram JSON", _telegram, _is_telegram)
_DISCORD = Kind("Discord JSON", _discord, _is_discord)
_SLACK = Kind("Slack JSON", _slack, _is_slack)


# ---- telling them apart


def kind_of(head: bytes) -> Kind | None:
    """Which program wrote the file that begins with these bytes of UTF-8."""
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip(_WHITE)
    if head[:1] == b"[":
        rows = head_rows(head)
        return _SLACK if _mostly(_SLACK, rows) else None
    if head[:1] != b"{" or _is_rows(head):
        return None
    if _MESSAGES.search(head) is None:
        # Contacts and settings may fill the head of a whole account's export.
        return _TELEGRAM if _ABOUT.match(head) and _OWNER.search(head) else None
    rows = head_rows(head)
    return next((kind for kind in (_TELEGRAM, _DISCORD) if _mostly(kind, rows)), None)


def _is_rows(head: bytes) -> bool:
    """Whether the first line is an object of its own and more lines follow."""
    first, _, rest = head.partition(b"\n")
    if not rest.strip(_WHITE):
        return False
    try:
        msgspec.json.decode(first, type=dict[str, msgspec.Raw])
    except _BAD:
        return False
    return True


def _mostly(kind: Kind, rows: list[dict[str, Any]]) -> bool:
    return sum(map(kind.fits, rows)) > _SHARE * len(rows)


def head_rows(head: bytes) -> list[dict[str, Any]]:
    """The whole objects of the first list of messages in a head; of a whole account's export those
    of the first chat that has any."""
    start = head.lstrip(_WHITE)[:1]
    places = [1] if start == b"[" else [found.end() for found in _MESSAGES.finditer(head)]
    for place in places:
        rows: list[dict[str, Any]] = []
        for element in elements(head[place:], iter(()), len(head)):
            if element.problem and rows:
                break  # the head ends in it
            if element.problem:
                continue
            try:
                row = msgspec.json.decode(element.data)
            except _BAD:
                continue
            if isinstance(row, dict):
                rows.append(row)
        if rows:
            return rows
    return []


def has_chats(head: bytes) -> bool:
    """Whether an export holds a whole account, as far as the head says."""
    return _CHATS.search(head) is not None or _OWNER.search(head) is not None


def owner_of(head: bytes) -> tuple[str, str] | None:
    """Sender's key and name of whom a Telegram export of a whole account belongs to."""
    found = _OWNER.search(head)
    if found is None:
        return None
    first = next(elements(head[found.end() - 1 :], iter(()), len(head), closed=False), None)
    try:
        row = msgspec.json.decode(first.data) if first and not first.problem else {}
    except _BAD:
        return None
    if not isinstance(row.get("user_id"), int):
        return None
    parts = (row.get("first_name"), row.get("last_name"))
    name = " ".join(part for part in parts if part and isinstance(part, str))
    return f"user{row['user_id']}", name or f"user{row['user_id']}"


# ---- reading


def chats(source: Source) -> Iterator[Chat | Failure]:
    """The chats of a file. A list is read in flat memory, an object is held once; of a broken one
    the messages that can be found are read as one chat."""
    blocks = source.utf_8()
    start = b""
    for block in blocks:
        start += block
        if start.strip(_WHITE):
            break
    limit = source.options.max_record_bytes
    start = start.lstrip(_WHITE)
    if start[:1] == b"[":
        yield Chat(source.name, elements(start[1:], blocks, limit))
        return
    whole = b"".join((start, *blocks))
    try:
        values = msgspec.json.decode(whole, type=dict[str, msgspec.Raw])
        lists = _lists(source.name, values)
    except _BAD as error:
        found = _MESSAGES.search(whole)
        if found is None:
            yield Failure(source.name, "bad JSON", str(error), shown(whole[:2000]))
            return
        yield Chat(source.name, elements(whole[found.end() :], iter(()), limit))
        return
    if not lists:
        yield Failure(source.name, "bad row", "no list of messages", shown(whole[:2000]))
    for where, entries in lists:
        yield Chat(where, (Element(n, bytes(raw)) for n, raw in enumerate(entries, 1)))


class _WithMessages(msgspec.Struct):
    messages: list[msgspec.Raw] = []


def _lists(name: str, values: dict[str, msgspec.Raw]) -> list[tuple[str, list[msgspec.Raw]]]:
    if "messages" in values:
        return [(name, msgspec.json.decode(values["messages"], type=list[msgspec.Raw]))]
    # Chats that were left stand in a list of their own, with numbers that go on.
    found: list[_WithMessages] = []
    for key in ("chats", "left_chats"):
        if key in values:
            part = msgspec.json.decode(values[key], type=dict[str, msgspec.Raw])
            found += msgspec.json.decode(part.get("list", b"[]"), type=list[_WithMessages])
    return [(f"{name}[{n}]", chat.messages) for n, chat in enumerate(found, 1)]


def messages(chat: Chat, kind: Kind, names: dict[str, str]) -> Iterator[Said | Failure]:
    """What people said in a chat, in order; `where` is `name[N]`, with N the place in the list.
    `names` remembers who goes by which key."""
    for element in chat.entries:
        where = f"{chat.where}[{element.number}]"
        original = element.data[:2000]
        if element.problem:
            yield Failure(where, element.problem, element.detail, shown(original))
            continue
        try:
            row = msgspec.json.decode(element.data)
        except _BAD as error:
            yield Failure(where, "bad JSON", str(error), shown(original))
            continue
        if not isinstance(row, dict):
            yield Failure(where, "not an object", type(row).__name__, shown(original))
            continue
        try:
            said = kind.read(row, where, names)
        except ValueError as error:
            yield Failure(where, "bad row", str(error), shown(original))
            continue
        if said is not None and said.text:
            yield said
