"""Exports of messengers become conversations, whoever wrote them and in whatever dialect."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from chatbench.conversation import Message
from chatbench.corpus.document import Document, Failure, Record
from chatbench.corpus.formats import chatlogs
from chatbench.corpus.formats.chatlog_times import TIME, clock_of, date_order, day_of, iso_seconds
from chatbench.corpus.formats.source import HEAD_BYTES, Source, decoded_head, fully_peekable
from chatbench.corpus.sources.blob import Blob, ReadOptions
from conftest import SHARED_DATA

SAMPLES = Path(__file__).with_name("samples")
HOURS = timedelta(hours=1)
LRM, NARROW = "\u200e", "\u202f"


def source_of(
    data: bytes | str, name: str = "f", codec: str = "utf-8", raw: Any = None, **changes: Any
) -> Source:
    data = data.encode(codec) if isinstance(data, str) else data
    handle = io.BufferedReader(raw or io.BytesIO(data))
    blob = fully_peekable(Blob(name, handle))
    head = blob.handle.peek(HEAD_BYTES)[:HEAD_BYTES]
    options = msgspec.structs.replace(ReadOptions(), **changes)
    return Source(name, blob.handle, None, 1, codec, head, options)


def read(data: bytes | str, name: str = "f", codec: str = "utf-8", **changes: Any) -> list[Record]:
    records = list(chatlogs.read(source_of(data, name, codec, **changes)))
    for record in records:
        msgspec.json.encode(record)
    return records


def documents(data: bytes | str, **changes: Any) -> list[Document]:
    records = read(data, **changes)
    assert not [record for record in records if isinstance(record, Failure)], records
    return [record for record in records if isinstance(record, Document)]


def verdict(data: bytes | str, **changes: Any) -> str:
    return chatlogs.verdict(source_of(data, **changes))


def is_chat(data: bytes | str, name: str = "f", codec: str = "utf-8") -> bool:
    head = (data.encode(codec) if isinstance(data, str) else data)[:HEAD_BYTES]
    return chatlogs.matches(head, decoded_head(head, codec), name, ReadOptions())


def turns(document: Document) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in document.messages or ()]


def user(text: str) -> tuple[str, str]:
    return ("user", text)


def assistant(text: str) -> tuple[str, str]:
    return ("assistant", text)


# ---- one sample for each program

Turns = list[tuple[str, str]]
CHANGE = "--map assistant=NAME for another"
CONTENTS: dict[str, tuple[str, list[tuple[str, str, Turns]]]] = {
    "chatlog_whatsapp.txt": (
        f"WhatsApp text, Bob as assistant (the second to speak; {CHANGE})",
        [
            (":2", "2023-12-31", [user("Is there tea?\nGreen, please."),
                                  assistant("Yes:\n- green\n\n- black")]),
            (":9", "2024-01-01", [user("Open today?"), assistant("From nine.")]),
        ],
    ),
    "chatlog_whatsapp_zh.txt": (
        f"WhatsApp text, 小红 as assistant (the second to speak; {CHANGE})",
        [
            (":2", "2023-12-31", [user("有茶吗？"), assistant("有的。\n绿茶和红茶。")]),
            (":6", "2024-01-01", [assistant("新年好！")]),
        ],
    ),
    "chatlog_wechat.txt": (
        f"WeChat text, 小红 as assistant (the second to speak; {CHANGE})",
        [(":1", "2023-12-31", [user("有茶吗？"), assistant("有的。\n绿茶和红茶。"),
                               user("多少钱？")])],
    ),
    "chatlog_qq.txt": (
        f"QQ text, 小红 as assistant (says most; {CHANGE})",
        [(":9", "2023-12-31", [user("小明: 有茶吗？"), assistant("有的。"),
                               user("小刚: tea or 茶?"), assistant("Both.")])],
    ),
    "chatlog_irc.txt": (
        f"IRC log, bob as assistant (the second to speak; {CHANGE})",
        [
            (":1", "", [user("is there tea?"), assistant("trey: yes"), user("* waves"),
                        assistant("还有红茶")]),
            (":6", "", [user("morning")]),
        ],
    ),
    "chatlog_telegram.json": (
        f"Telegram JSON, 小红 as assistant (the second to speak; {CHANGE})",
        [
            ("[2]", "2023-12-31", [user("See example.com 好吗？"), assistant("好的。")]),
            ("[5]", "2024-01-01", [user("Thanks!")]),
        ],
    ),
    "chatlog_discord.json": (
        f"Discord JSON, teabot as assistant (says most; {CHANGE})",
        [("[1]", "2023-12-31", [user("alice: Is there tea?"), assistant("有的。"),
                                user("carol: And paper?"), assistant("Also.")])],
    ),
    "chatlog_slack.json": (
        f"Slack JSON, 小红 as assistant (the second to speak; {CHANGE})",
        [("[2]", "2023-12-31", [user("Is there tea & paper, @U2?"),
                                assistant("有的，see our list"), user("谢谢")])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CONTENTS))
@pytest.mark.parametrize("form", ["plain", "bom", "crlf", "utf-16"])
def test_a_sample_becomes_conversations(name: str, form: str) -> None:
    data = (SAMPLES / name).read_bytes()
    if form == "bom":
        data = b"\xef\xbb\xbf" + data
    elif form == "crlf":
        data = data.replace(b"\n", b"\r\n")
    codec = "utf-16" if form == "utf-16" else "utf-8"
    data = data.decode().encode(codec) if form == "utf-16" else data
    said, wanted = CONTENTS[name]
    assert is_chat(data, codec=codec)
    assert verdict(data, codec=codec) == said
    found = documents(data, name=name, codec=codec)
    expected = [(name + place, {"date": day} if day else {}, said) for place, day, said in wanted]
    assert [(d.source, d.meta, turns(d)) for d in found] == expected
    assert {d.shape for d in found} == {"chatlog"}


# ---- twins: messages → export → documents


class Said(NamedTuple):
    sender: str
    text: str
    at: datetime


Writer = Callable[[list[Said], random.Random], str]
NAMES = ("Alice", "Bob the 2nd", "小明", "王小红", "carol_99", "+49 151 2345")
NICKS = ("alice", "bob`", "|trey|", "小明", "_x", "Carol99")
WORDS = ("tea", "paper", "yes", "no?", "12:30", "(ok)", "茶", "好的！", "几点", "纸：", "a: b",
         "😀", "[微笑]", "<3", "1/2", "-", "https://example.com/?q=1")  # fmt: skip


def random_chat(rng: random.Random, people: int, lines: int, seconds: bool) -> list[Said]:
    names = rng.sample(NAMES if lines > 1 else NICKS, people)
    at = datetime(rng.randrange(2013, 2030), rng.randrange(1, 13), rng.randrange(13, 20), 9, 30)
    chat: list[Said] = []
    for number in range(rng.randrange(max(8, people), 40)):
        at += rng.choice((timedelta(minutes=1), 17 * HOURS / 60, HOURS, 3 * HOURS, 30 * HOURS))
        if seconds:
            at += timedelta(seconds=rng.randrange(60))
        sender = names[number] if number < people else rng.choice(names)
        rows = [
            " ".join(rng.choices(WORDS, k=rng.randrange(1, 6)))
            for _ in range(rng.randint(1, lines))
        ]
        if len(rows) > 2 and rng.random() < 0.5:
            rows[1] = ""
        chat.append(Said(sender, "\n".join(rows), at))
    return chat


def expected(chat: list[Said], limit: int, wanted: set[str]) -> list[Turns]:
    """The conversations of a chat, by whole lists and without haste."""
    order = list(dict.fromkeys(said.sender for said in chat))
    counts = Counter(said.sender for said in chat)
    if not wanted:
        wanted = {order[1] if len(order) == 2 else max(order, key=lambda name: counts[name])}
    named = len(set(order) - wanted) > 1
    parts: list[list[Said]] = []
    for said in chat:
        last = parts[-1] if parts else None
        fits = last and len(flat(turned([*last, said], wanted, named))) <= limit
        if last and fits and said.at - last[-1].at < 3 * HOURS:
            last.append(said)
        else:
            parts.append([said])
    return [turned(part, wanted, named) for part in parts]


def flat(turns: Turns) -> str:
    return "".join(text + "\n" for _, text in turns)


def turned(part: list[Said], wanted: set[str], named: bool) -> Turns:
    result: Turns = []
    for number, said in enumerate(part):
        role = "assistant" if said.sender in wanted else "user"
        is_new = number == 0 or part[number - 1].sender != said.sender
        text = f"{said.sender}: {said.text}" if named and role == "user" and is_new else said.text
        if result and result[-1][0] == role:
            result[-1] = (role, f"{result[-1][1]}\n{text}")
        else:
            result.append((role, text))
    return result


def half_day(at: datetime) -> str:
    return f"{at.hour % 12 or 12}:{at.minute:02}"


def android(order: str, clock: str) -> Writer:
    def day(at: datetime) -> str:
        return {
            "dmy": f"{at.day:02}/{at.month:02}/{at.year}",
            "mdy": f"{at.month}/{at.day}/{at.year % 100:02}",
            "dots": f"{at.day:02}.{at.month:02}.{at.year % 100:02}",
            "ymd": f"{at.year}-{at.month:02}-{at.day:02}",
            "zh": f"{at.year}/{at.month}/{at.day}",
            "年": f"{at.year}年{at.month}月{at.day}日",
        }[order]

    def time(at: datetime) -> str:
        late = at.hour >= 12
        return {
            "24": f", {at:%H:%M}",
            "am": f", {half_day(at)}{NARROW}{'PM' if late else 'AM'}",
            "a.m.": f", {half_day(at)} {'p' if late else 'a'}.m.",
            "zh": f" {'下午' if late else '上午'}{half_day(at)}",
        }[clock]

    def write(chat: list[Said], rng: random.Random) -> str:
        first = chat[0].at
        text = [f"{day(first)}{time(first)} - {rng.choice(NOTICES)}\n"]
        for said in chat:
            stamp = f"{day(said.at)}{time(said.at)} - "
            text.append(f"{stamp}{said.sender}: {said.text}\n")
            if rng.random() < 0.2:
                text.append(f"{stamp}{said.sender}: {rng.choice(PLACEHOLDERS)}\n")
            if rng.random() < 0.1:
                text.append(f"{stamp}{rng.choice(EVENTS)}\n")
        return "".join(text)

    return write


NOTICES = (
    "Messages and calls are end-to-end encrypted. No one outside of this chat can read them.",
    "消息和通话已进行端到端加密。只有此聊天中的参与者可以读取。",
)
PLACEHOLDERS = (
    "<Media omitted>", "<省略多媒体文件>", "<省略影音内容>", "<附件：00000012-PHOTO.jpg>",
    "图片已忽略",
    "image omitted", "IMG-20231231-WA0001.jpg (file attached)", "This message was deleted",
    "You deleted this message.", "此消息已删除", "您删除了此消息。", "圖片已略去",
    "<Medien ausgeschlossen>", "Missed voice call",
)  # fmt: skip
EVENTS = (
    "Alice added 小明", "小明加入了群组", "Bob changed the group name to “Tea: the best”",
    "Your security code with Alice changed. Tap to learn more.",
)  # fmt: skip


def ios(chat: list[Said], rng: random.Random) -> str:
    text = []
    for said in chat:
        stamp = f"[{said.at:%d.%m.%y, %H:%M:%S}] "
        edited = f" {LRM}<This message was edited>" if rng.random() < 0.2 else ""
        text.append(f"{rng.choice(('', LRM))}{stamp}~{NARROW}{said.sender}: {said.text}{edited}\n")
        if rng.random() < 0.2:
            text.append(
                f"{LRM}{stamp}{said.sender}: {LRM}{rng.choice(('image omitted', 'vidéo'))}\n"
            )
    return "".join(text)


def ios_zh(chat: list[Said], rng: random.Random) -> str:
    def stamp(at: datetime) -> str:
        half = "下午" if at.hour >= 12 else "上午"
        return f"[{at.year}/{at.month}/{at.day} {half}{half_day(at)}:{at.second:02}]"

    return "".join(f"{stamp(said.at)} {said.sender}: {said.text}\n" for said in chat)


def wechat(chat: list[Said], rng: random.Random) -> str:
    return "".join(f"{said.at:%Y-%m-%d %H:%M:%S} {said.sender}\n{said.text}\n\n" for said in chat)


def name_first(chat: list[Said], rng: random.Random) -> str:
    picture = "[图片]\n"
    return "".join(
        f"{said.sender} {said.at:%Y-%m-%d %H:%M:%S}\n{said.text}\n{rng.choice(('', picture))}\n"
        for said in chat
    )


def qq(chat: list[Said], rng: random.Random) -> str:
    preface = (
        "消息记录（此消息记录为文本格式，不支持重新导入）\n\n" + "=" * 64 + "\n消息对象:小红\n\n"
    )
    numbers = {name: 10_000 + n for n, name in enumerate(NAMES)}
    titles = ("", "", "【群主】")
    return preface + "".join(
        f"{s.at:%Y-%m-%d} {s.at.hour}:{s.at:%M:%S} {rng.choice(titles)}{s.sender}"
        f"({numbers[s.sender]})\n{s.text}\n\n"
        for s in chat
    )


def irc(form: str) -> Writer:
    def write(chat: list[Said], rng: random.Random) -> str:
        text = []
        for said in chat:
            text.append({
                "brackets": f"[{said.at:%H:%M}] <{said.sender}> {said.text}\n",
                "irssi": f"{said.at:%H:%M} <{rng.choice(' @+')}{said.sender}> {said.text}\n",
                "dated": f"{said.at:%Y-%m-%d %H:%M:%S} <{said.sender}> {said.text}\n",
            }[form])  # fmt: skip
            if rng.random() < 0.2:
                text.append(f"=== {said.sender} [~x@example.org]  has joined #茶\n")
            if rng.random() < 0.1:
                text.append(f"{said.at:%H:%M} -!- {said.sender} has quit [bye]\n")
        return "".join(text)

    return write


def telegram(chat: list[Said], rng: random.Random) -> str:
    entries: list[dict[str, Any]] = []
    for number, said in enumerate(chat):
        middle = rng.randrange(len(said.text) + 1)
        parts = [said.text[:middle], {"type": "bold", "text": said.text[middle:]}]
        entries.append({
            "id": number, "type": "message", "date": said.at.isoformat(), "from": said.sender,
            "from_id": f"user{NAMES.index(said.sender)}", "text": rng.choice((parts, said.text)),
        })  # fmt: skip
        if rng.random() < 0.3:
            entries.append({"id": 0, "type": "service", "date": said.at.isoformat(),
                            "actor": "x", "action": "pin_message", "text": ""})  # fmt: skip
    whole = {"name": "茶", "type": "private_group", "id": 5, "messages": entries}
    return json.dumps(whole, indent=rng.choice((None, 1)), ensure_ascii=rng.random() < 0.5)


def discord(chat: list[Said], rng: random.Random) -> str:
    entries = [
        {"id": str(n), "type": rng.choice(("Default", "Reply")), "content": said.text,
         "timestamp": f"{said.at.isoformat()}.123+08:00",
         "author": {"id": str(NAMES.index(said.sender)), "name": said.sender, "isBot": False}}
        for n, said in enumerate(chat)
    ]  # fmt: skip
    whole = {"guild": {"id": "1"}, "channel": {"topic": '"messages": ['}, "messages": entries,
             "messageCount": len(entries)}  # fmt: skip
    return json.dumps(whole, indent=2, ensure_ascii=False)


def slack(chat: list[Said], rng: random.Random) -> str:
    def entry(said: Said) -> dict[str, Any]:
        seconds = int((said.at - datetime(1970, 1, 1)).total_seconds())
        text = said.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        profile = {"display_name": "", "real_name": said.sender}
        return {"type": "message", "user": f"U{NAMES.index(said.sender)}", "text": text,
                "ts": f"{seconds}.000200", "user_profile": profile}  # fmt: skip

    return json.dumps([entry(said) for said in chat], indent=rng.choice((None, 4)))


# writer, lines a message may have, whether it writes seconds, whether its days are certain
WRITERS: dict[str, tuple[Writer, int, bool, bool]] = {
    **{
        f"android {order} {clock}": (android(order, clock), 4, False, True)
        for order, clock in (("dmy", "24"), ("dmy", "a.m."), ("mdy", "am"), ("mdy", "24"),
                             ("dots", "24"), ("ymd", "am"), ("zh", "zh"), ("年", "zh"))
    },
    "ios": (ios, 4, True, True),
    "ios zh": (ios_zh, 4, True, True),
    "wechat": (wechat, 4, True, True),
    "name first": (name_first, 4, True, True),
    "qq": (qq, 4, True, True),
    "irc brackets": (irc("brackets"), 1, False, False),
    "irc irssi": (irc("irssi"), 1, False, False),
    "irc dated": (irc("dated"), 1, True, True),
    "telegram": (telegram, 4, True, True),
    "discord": (discord, 4, True, True),
    "slack": (slack, 4, True, True),
}  # fmt: skip


def without_dates(chat: list[Said]) -> list[Said]:
    """The chat with its pauses cut to what a clock of the day can show."""
    at, kept = chat[0].at, [chat[0]]
    for before, said in pairwise(chat):
        at += (said.at - before.at) % timedelta(days=1)
        kept.append(said._replace(at=at))
    return kept


@pytest.mark.parametrize("dialect", sorted(WRITERS))
@pytest.mark.parametrize("people", [2, 3, 5])
def test_any_chat_comes_back(dialect: str, people: int, rng: random.Random) -> None:
    write, lines, seconds, has_days = WRITERS[dialect]
    for _ in range(6):
        chat = random_chat(rng, people, lines, seconds)
        if not has_days:
            chat = without_dates(chat)
        limit = rng.choice((200, 400, 8000))
        names = sorted({said.sender for said in chat})
        wanted = set(rng.sample(names, rng.choice((0, 0, 1, 2))))
        mapping = {"assistant": ",".join(sorted(wanted))} if wanted else {}
        text = write(chat, rng)
        assert is_chat(text), text
        found = documents(text, passage_chars=limit, mapping=mapping)
        assert [turns(d) for d in found] == expected(chat, limit, wanted), text
        days = [document.meta.get("date") for document in found]
        assert days == [day if has_days else None for day in first_days(chat, found)]


def first_days(chat: list[Said], found: list[Document]) -> list[str]:
    """The day on which each document begins; what is said is in the order of the chat."""
    days, place = [], 0
    for document in found:
        days.append(chat[place].at.date().isoformat())
        text = "\n".join(message.content for message in document.messages or ())
        while place < len(chat) and (begin := text.find(chat[place].text)) >= 0:
            text = text[begin + len(chat[place].text) :]
            place += 1
    return days


@pytest.mark.parametrize("dialect", ["android mdy am", "ios", "wechat", "qq", "irc brackets"])
def test_a_source_is_the_line_of_the_first_message(dialect: str, rng: random.Random) -> None:
    write, lines, seconds, has_days = WRITERS[dialect]
    chat = random_chat(rng, 2, lines, seconds)
    text = write(chat if has_days else without_dates(chat), rng)
    rows = text.split("\n")
    for document in documents(text):
        row = int(document.source.removeprefix("f:")) - 1
        first = (document.messages or ())[0].content.split("\n")[0]
        assert first in rows[row] or first == rows[row + 1]


def test_a_plain_log_without_times_is_one_conversation() -> None:
    text = "<alice> hi\n<小明> 你好\n=== bob has joined\n<alice> tea?\n* alice waves\n<小明> <3\n"
    assert is_chat(text)
    (document,) = documents(text)
    assert turns(document) == [
        user("hi"), assistant("你好"), user("tea?\n* waves"), assistant("<3"),
    ]  # fmt: skip


def test_real_logs_keep_every_line() -> None:
    folder = SHARED_DATA / "irc-ubuntu"
    if not folder.is_dir():
        pytest.skip("the shared data sets are not here")
    said = re.compile(r"\[\d\d:\d\d\] <([^>]+)> (.*)")
    for path in sorted(folder.glob("*.raw.txt.gz")):
        data = gzip.decompress(path.read_bytes())
        lines = [found for line in data.decode().split("\n") if (found := said.match(line))]
        counts = Counter(found[1] for found in lines)
        found = documents(data, mapping={"assistant": max(counts, key=lambda n: (counts[n], n))})
        text = "\n".join(m.content for d in found for m in d.messages or ())
        place = 0
        for line in lines:
            if line[2].strip():
                place = text.index(line[2].strip(), place)
        assert max(len(d.joined()) for d in found) <= 8000
        assert len(found) > 5


# ---- dates and times


@pytest.mark.parametrize(
    ("written", "hour"),
    [("9:41 PM", 21), ("12:41 AM", 0), ("12:41 PM", 12), ("9:41 a.m.", 9), ("9:41 p. m.", 21),
     (f"9:41{NARROW}pm", 21), ("21:41", 21), ("0:41", 0), ("下午9:41", 21), ("上午9:41", 9),
     ("上午12:41", 0), ("下午12:41", 12), ("凌晨3:41", 3), ("凌晨12:41", 0), ("中午12:41", 12),
     ("中午1:41", 13), ("中午11:41", 11), ("晚上11:41", 23), ("晚上12:41", 0), ("下午21:41", 21),
     ("午後9:41", 21), ("오후 9:41", 21), ("9.41", 9), ("25:41", None), ("9:61", None)],
)  # fmt: skip
def test_clocks_of_all_kinds(written: str, hour: int | None) -> None:
    found = re.fullmatch(TIME, written)
    assert found is not None
    minute = int(re.findall(r"\d+", written)[1])
    assert clock_of(*found.groups()) == (None if hour is None else 3600 * hour + 60 * minute)


@pytest.mark.parametrize(
    ("dates", "day_first", "is_certain"),
    [
        ([(31, 12, 23)], True, True),
        ([(12, 31, 23)], False, True),
        ([(1, 2, 23), (1, 13, 23)], False, True),
        ([(1, 2, 23), (2, 1, 23)], False, True),
        ([(1, 2, 23), (1, 3, 23)], True, False),
        ([(1, 2, 23)], True, False),
        ([(3, 3, 23)], True, True),
        ([(2023, 2, 1), (2023, 3, 1)], True, True),
        ([(30, 1, 23), (1, 2, 23)], True, True),
        ([(10, 2, 23), (11, 2, 23), (1, 3, 23)], True, True),
        ([(2, 10, 23), (2, 11, 23), (3, 1, 23)], False, True),
        ([(23, 12, 30), (24, 1, 2)], True, False),
        ([], True, False),
    ],
)
def test_the_order_of_a_date(dates: list[Any], day_first: bool, is_certain: bool) -> None:
    assert date_order(dates) == (day_first, is_certain)


def test_random_calendars_are_read_as_they_were_written(rng: random.Random) -> None:
    for _ in range(200):
        start = date(rng.randrange(2010, 2031), 1, 1) + timedelta(rng.randrange(366))
        steps = [timedelta(rng.randrange(4)) for _ in range(rng.randrange(1, 40))]
        days = [start]
        for step in steps:
            days.append(days[-1] + step)
        day_first = rng.random() < 0.5
        written = [
            (d.day, d.month, d.year % 100) if day_first else (d.month, d.day, d.year % 100)
            for d in days
        ]
        order = date_order(written)
        read_back = [day_of(numbers, order.day_first) for numbers in written]
        if order.is_certain:
            assert read_back == days
        else:
            assert all(d.day <= 12 for d in days)


def test_a_late_day_above_12_settles_what_the_head_left_open() -> None:
    rows = [f"1/{day}/23, 10:00 - {'AB'[day % 2]}: word {day}" for day in range(1, 16)]
    head = "\n".join(rows[:3]) + "\n"
    filler = "".join(f"1/3/23, 10:00 - A: {'x' * 60} {n}\n" for n in range(1200))
    found = documents(head + filler + "\n".join(rows[3:]) + "\n")
    assert len(head + filler) > HEAD_BYTES
    days = [document.meta.get("date") for document in found]
    assert days[-3:] == ["2023-01-13", "2023-01-14", "2023-01-15"]
    assert set(days[:-3]) == {None}


def test_iso_times() -> None:
    assert iso_seconds("2023-12-31T21:41:03") == iso_seconds("2023-12-31 21:41:03.5+08:00")
    assert iso_seconds("2023-02-30T21:41:03") is None
    assert iso_seconds(5) is None


# ---- who is imitated


def whatsapp(*said: tuple[str, str], minutes: int = 1) -> str:
    at = datetime(2023, 12, 31, 9)
    stamps = (at + timedelta(minutes=minutes * n) for n in range(len(said)))
    return "".join(
        f"{t:%d/%m/%Y, %H:%M} - {name}: {text}\n"
        for t, (name, text) in zip(stamps, said, strict=True)
    )


def test_the_names_of_map_are_imitated_in_any_case() -> None:
    text = whatsapp(("Alice", "1"), ("Bob", "2"), ("Smith, Jo", "3"), ("Bob", "4"))
    assert turns(documents(text, mapping={"assistant": "alice"})[0]) == [
        assistant("1"), user("Bob: 2\nSmith, Jo: 3\nBob: 4"),
    ]  # fmt: skip
    assert verdict(text, mapping={"assistant": "alice, BOB"}) == (
        "WhatsApp text, Alice, Bob as assistant"
    )
    assert [r for r, _ in turns(documents(text, mapping={"assistant": "Smith, Jo"})[0])] == [
        "user", "assistant", "user",
    ]  # fmt: skip


def test_a_name_that_nobody_has_is_said_and_nothing_vanishes() -> None:
    text = whatsapp(("小明", "有茶吗？"), ("小红", "有的。"), ("小明", "好"))
    assert verdict(text, mapping={"assistant": "小刚"}) == (
        "WhatsApp text, whom --map assistant names is not among the first senders: 小明, 小红"
    )
    (document,) = documents(text, mapping={"assistant": "小刚"})
    assert document.messages == (Message("user", "小明: 有茶吗？\n小红: 有的。\n小明: 好"),)


def test_somebody_who_answers_late_is_the_assistant_all_the_same() -> None:
    alone = [("Alice", "x" * 80) for _ in range(800)]
    text = whatsapp(*alone, ("Bob", "yes"), ("Carol", "no"), minutes=0)
    found = documents(text)
    assert turns(found[-1])[-2:] == [assistant("yes"), user("Carol: no")]
    assert "the second to speak as assistant" in verdict(text)
    assert {m.role for d in found[:-1] for m in d.messages or ()} == {"user"}


def test_control_characters_of_names_do_not_reach_the_terminal() -> None:
    text = whatsapp(("Alice", "1"), ("B\x1b[31mob", "2"), ("Alice", "3"))
    assert "\x1b" not in verdict(text)
    assert "ob as assistant" in verdict(text)


# ---- what is left out


@pytest.mark.parametrize("text", [*PLACEHOLDERS, "report.pdf • 14 pages <attached: 2.pdf>"])
def test_what_stands_for_a_picture_is_left_out(text: str) -> None:
    chat = whatsapp(("A", "看"), ("B", text), ("A", "tea"), ("B", "茶"))
    assert turns(documents(chat)[0]) == [user("看\ntea"), assistant("茶")]


@pytest.mark.parametrize(
    "text",
    ["image", "I omitted the image omitted there", "<3 <3", "<b>bold</b>", "null", "删除了吗",
     "a • b", "This message was deleted by me? no. Really", "[微笑]", "你看图片已忽略了吗"],
)  # fmt: skip
def test_what_only_resembles_it_stays(text: str) -> None:
    chat = whatsapp(("A", "看"), ("B", text), ("A", "tea"))
    assert turns(documents(chat)[0])[1] == assistant(text)


def test_captions_outlive_their_picture() -> None:
    chat = whatsapp(
        ("A", "看"),
        ("B", "IMG-1.jpg (file attached)\n我的茶"),
        ("A", f"so? {LRM}<attached: 1.jpg>"),
    )
    assert turns(documents(chat)[0]) == [user("看"), assistant("我的茶"), user("so?")]


# ---- Telegram's whole account, Slack's marks


def account(owner: bool) -> dict[str, Any]:
    names = ("", "Ann", "小红", "Zoe")

    def message(who: int, text: Any, minute: int) -> dict[str, Any]:
        return {"id": 1, "type": "message", "date": f"2023-12-31T10:{minute:02}:00",
                "date_unixtime": str(1704016800 + 60 * minute), "from": names[who],
                "from_id": f"user{who}", "text": text}  # fmt: skip

    whole: dict[str, Any] = {"about": "Here is the data you requested."}
    if owner:
        whole["personal_information"] = {"user_id": 1, "first_name": "Ann", "last_name": "Li",
                                         "bio": "} ] \" {"}  # fmt: skip
    whole["chats"] = {"about": "", "list": [
        {"name": "小红", "type": "personal_chat", "id": 1, "messages": [
            message(1, "hi", 0), message(2, "你好", 1), message(1, "tea?", 2)]},
        {"name": "three", "type": "private_group", "id": 2, "messages": [
            message(3, "anyone?", 0), message(2, "我", 1), message(1, "me", 2), message(3, "ok", 3),
        ]},
        {"type": "saved_messages", "id": 3, "messages": [message(1, ["note"], 0)]},
    ]}  # fmt: skip
    return whole


def test_the_owner_of_a_telegram_account_is_imitated_in_every_chat() -> None:
    text = json.dumps(account(True), ensure_ascii=False, indent=1)
    assert is_chat(text)
    assert verdict(text).startswith("Telegram JSON, Ann Li as assistant (the owner")
    assert [(d.source, turns(d)) for d in documents(text)] == [
        ("f[1][1]", [assistant("hi"), user("你好"), assistant("tea?")]),
        ("f[2][1]", [user("Zoe: anyone?\n小红: 我"), assistant("me"), user("Zoe: ok")]),
        ("f[3][1]", [assistant("note")]),
    ]


def test_without_an_owner_each_chat_has_its_own_assistant() -> None:
    text = json.dumps(account(False), ensure_ascii=False)
    assert is_chat(text)
    assert "in each chat the second to speak" in verdict(text)
    assert [[role for role, _ in turns(d)] for d in documents(text)] == [
        ["user", "assistant", "user"], ["assistant", "user", "assistant"], ["user"],
    ]  # fmt: skip
    assert [d.source for d in documents(text, mapping={"assistant": "user2"})] == [
        "f[1][1]", "f[2][1]", "f[3][1]",
    ]  # fmt: skip


def test_an_account_is_told_even_when_its_contacts_fill_the_head() -> None:
    whole = account(True)
    chats = whole.pop("chats")
    whole["contacts"] = {"list": [{"first_name": f"n{n}" * 20} for n in range(2000)]}
    text = json.dumps({**whole, "chats": chats}, indent=1)
    assert len(text) > 2 * HEAD_BYTES
    assert is_chat(text)
    assert len(documents(text)) == 3


def test_slack_marks_become_words() -> None:
    rows = [
        {"type": "message", "user": "U1", "text": "茶", "ts": "1704058860.1",
         "user_profile": {"display_name": "ann"}},
        {"type": "message", "user": "U2", "ts": "1704058861.1",
         "text": "<@U1> <!here> <#C1|shop> <https://example.com> <https://e.org|list> 1 &lt; 2"},
    ]  # fmt: skip
    (document,) = documents(json.dumps(rows))
    assert turns(document)[1] == assistant("@ann @here #shop https://example.com list 1 < 2")


# ---- bad data


def test_damaged_entries_are_failures_and_the_rest_is_read() -> None:
    good = '{"id":1,"type":"message","date":"2023-12-31T10:00:00","from":"甲","text":"茶"}'
    other = good.replace("甲", "乙").replace("茶", "tea")
    bad = '{"id":2,"type":"message","date":"2023-12-31T10:00:00","from":"甲","text":'
    textless = good.replace('"茶"', "5")
    data = f'{{"name":"x","messages":[\n{good},\n{other},\n{bad}}},\n7,\n{textless},\n{good}\n]}}'
    assert is_chat(data)
    records = read(data)
    (document,) = [r for r in records if isinstance(r, Document)]
    assert turns(document) == [user("茶"), assistant("tea"), user("茶")]
    reasons = [(r.source, r.reason) for r in records if isinstance(r, Failure)]
    assert reasons[:3] == [("f[3]", "bad JSON"), ("f[4]", "not an object"), ("f[5]", "bad row")]
    # What follows the list of a broken object is one failure more, as for all JSON.
    assert [reason for _, reason in reasons[3:]] in ([], ["bad JSON"])


@pytest.mark.parametrize("name", [n for n in sorted(CONTENTS) if n.endswith(".json")])
def test_a_torn_file_loses_its_end_alone(name: str) -> None:
    data = (SAMPLES / name).read_bytes()
    said = {text.rpartition(": ")[2] for text in all_turns(read(data))}
    kept = []
    for cut in range(len(data) // 4, len(data) - 3, 7):
        records = read(data[:cut], format="chatlog")
        assert any(isinstance(record, Failure) for record in records)
        texts = all_turns(records)
        assert {text.rpartition(": ")[2] for text in texts} <= said
        kept.append(len(texts))
    assert kept == sorted(kept)
    assert 0 < kept[-1] <= len(said)


def all_turns(records: list[Record]) -> list[str]:
    return [m.content for r in records if isinstance(r, Document) for m in r.messages or ()]


def test_no_bytes_stop_the_reading(rng: random.Random) -> None:
    bits = [b"{", b"}", b"[", b"]", b'"messages":', b'"type":"message"', b",",
            b'"ts":"1704058860.1"',
            b'"text":"x"', b'"author":{"name":"a"}', b'"date":"2023-12-31T10:00:00"', b"\xff",
            b"31/12/23, 10:00 - A: x\n", b"[31.12.23, 10:00:00] B: y\n", b"<a> b\n", b"\n", b"null",
            "2023-12-31 10:00:00 小明\n".encode(), "小明 2023-12-31 10:00:00\n".encode(),
            b"99/99/99, 10:00 - A: x\n"]  # fmt: skip
    for _ in range(1500):
        data = b"".join(rng.choices(bits, k=rng.randrange(20)))
        is_chat(data)
        verdict(data)
        for record in read(data):
            assert record.reason if isinstance(record, Failure) else not record.is_empty()


def test_a_line_that_does_not_decode_is_one_failure() -> None:
    data = whatsapp(("A", "茶"), ("B", "X"), ("A", "tea")).encode().replace(b"X", b"\xff")
    records = read(data)
    assert [(r.source, type(r)) for r in records] == [("f:2", Failure), ("f:1", Document)]


def test_a_message_without_end_is_a_failure_in_flat_memory() -> None:
    class Endless(io.RawIOBase):
        def __init__(self, count: int) -> None:
            self._left = count

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            unit = b"31/12/2023, 10:00 - A: x\n" * 4 + b"more tea\n" * 9000
            size = min(len(buffer), self._left, len(unit))
            buffer[:size] = unit[:size]
            self._left -= size
            return size

    def peak(size: int) -> int:
        source = source_of(b"", raw=Endless(size), max_record_bytes=1 << 14)
        tracemalloc.start()
        reasons = Counter(r.reason for r in chatlogs.read(source) if isinstance(r, Failure))
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert set(reasons) == {"record too long"}
        return held

    assert peak(3 << 20) < peak(1 << 20) + (1 << 19)


def test_what_is_no_chat_is_said_when_somebody_insists() -> None:
    (failure,) = read("Once upon a time.\n")
    assert isinstance(failure, Failure)
    assert failure.reason == "not a chat export"
    assert verdict("Once upon a time.\n") == "chat export of no known form"
    first, document = read("copied from my phone\n" + whatsapp(("A", "茶"), ("B", "tea")))
    assert isinstance(first, Failure)
    assert (first.source, first.reason) == ("f:1", "text before the first message")
    assert isinstance(document, Document)
    assert turns(document) == [user("茶"), assistant("tea")]


# ---- what is no chat

LOOKALIKES = {
    "prose": "She said: hello.\n\nAt 9:41 PM - Alice: that was - he left.\n\n他说：你好。\n" * 3,
    "diary": "12/31/23 - It rained.\n\n1/1/24 - Alice: who is she?\n\n1/2/24 - 雨停了。\n",
    "screenplay": "ALICE: Is there tea?\n\nBOB: Yes.\n\nALICE: Good.\n\n小明：好。\n",
    "novel": "“Tea?” asked Alice.\n<Alice> was her name online.\n“是的。”小红说。\n" * 4,
    "csv": "date,time,name,text\n2023-12-31,21:41,Alice,hi\n2023-12-31,21:42,Bob,yo\n" * 3,
    "csv of stamps": "2023-12-31 21:41:03,Alice,hi\n2023-12-31 21:42:03,Bob,yo\n" * 3,
    "changelog": "## 2023-12-31\n- fix: tea\n\n## 2023-12-30\n- 修复：茶\n\n## 2023-12-29\n- new\n",
    "yaml": "conversations:\n- - Hi\n  - Hello\n- - 你好\n  - 您好\n",
    "log": "2023-12-31 21:41:03 INFO started\n2023-12-31 21:41:04 ERROR no tea\n" * 5,
    "traces": "2023-12-31 21:41:03 ERROR a\n  at x\n2023-12-31 21:41:04 ERROR a\n  at y\n" * 5,
    "bracket log": "[2023-12-31 21:41:03] local.ERROR: x\n[2023-12-31 21:41:04] app.INFO: x\n"
    * 5,
    "server log": "[2023-12-31 21:41:03] INFO: up\n[2023-12-31 21:41:04] WARNING: down\n" * 5,
    "subtitles": "1\n00:00:01,000 --> 00:00:02,000\nHello\n\n2\n00:00:03,000 --> 00:00:04,5\n好\n",
    "html": "<p> one\n<p> two\n<b> three\n<li> four\n<p> five\n",
    "xml": "<name> tea </name>\n<price> 2 </price>\n<name> 茶 </name>\n<price> 3 </price>\n",
    "chatml": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n" * 3,
    "tokens": "<s> tea is good\n<s> paper too\n<s> 茶\n<unk> x\n" * 3,
    "git log": "commit abc\nAuthor: A <a@b.org>\nDate:   2023-12-31 21:41:03 +0800\n\n    x\n" * 4,
    "appointments": "31/12/2023, 10:00 - dentist\n01/01/2024, 10:00 - tea\n02/01/2024, 9:00 - 茶\n",
    "markdown": "* one thing\n* 两件事\n* three things\n=== \n",
    "empty": "",
    "two messages": whatsapp(("A", "x"), ("B", "y")),
    "quoted chat": "My friends wrote:\n" + whatsapp(("A", "x"), ("B", "y"), ("A", "z")),
    "rows": '{"messages": [{"role": "user", "content": "hi"}]}\n' * 3,
    "rows of exports": '{"messages": [{"author": {"name": "a"}, "content": "b", '
    '"timestamp": "2023-12-31T10:00:00"}]}\n' * 2,
    "messages": json.dumps({"messages": [{"role": "user", "content": "茶", "type": "x"}] * 4}),
    "list": json.dumps([{"type": "message", "text": "hi", "user": "a"}] * 4),
    "share": json.dumps([{"conversations": [{"from": "human", "value": "hi"}]}]),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(LOOKALIKES))
def test_what_only_resembles_a_chat_is_left_to_others(name: str) -> None:
    assert not is_chat(LOOKALIKES[name])


def heads() -> Iterator[tuple[str, bytes]]:
    for path in sorted(SHARED_DATA.rglob("*")):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    with archive.open(member) as handle:
                        yield f"{path.name}/{member}", handle.read(HEAD_BYTES)
        elif path.suffix == ".gz":
            with gzip.open(path) as packed:
                yield path.relative_to(SHARED_DATA).as_posix(), packed.read(HEAD_BYTES)
        elif path.is_file():
            with open(path, "rb") as plain:
                yield path.relative_to(SHARED_DATA).as_posix(), plain.read(HEAD_BYTES)


def test_of_the_real_sets_only_irc_is_a_chat_export() -> None:
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data sets are not here")
    found, count = [], 0
    for name, head in heads():
        count += 1
        if is_chat(head, name) or is_chat(head, name, "gb18030"):
            found.append(name)
    assert count > 1000
    logs = [name for name in found if name.startswith("irc-ubuntu/")]
    assert found == logs
    assert len(logs) == 20
    assert not [name for name in logs if "annotation" in name]
