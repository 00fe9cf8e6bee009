"""How WhatsApp, WeChat, QQ and IRC clients write a message as lines of text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from chatbench.corpus.formats.chatlog_times import (
    DATE,
    TIME,
    Numbers,
    clock_of,
    numbers_of,
)

_MARKS = "\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"
APP_MARK = "\u200e"
SHARE = 0.6


class Header(NamedTuple):
    """The line a message begins with; `name` is None for a line of the program itself."""

    numbers: Numbers | None
    clock: int | None
    name: str | None
    text: str


class Dialect(NamedTuple):
    """How one program writes its messages. `noise` matches a line that stands for what is not text,
    `shown` says whether the head of a file can be in this dialect beyond what all have to meet.
    With `has_marks`, what the program itself says begins with APP_MARK."""

    title: str
    header: Callable[[str], Header | None]
    noise: re.Pattern[str]
    shown: Callable[[list[str], list[Header | None]], bool]
    has_marks: bool = False


# ---- WhatsApp

_DASHED = re.compile(rf"[{_MARKS}]*{DATE},?\s(?:klo\s|um\s)?{TIME}\s[-–]\s(.*)")
_BRACKETED = re.compile(rf"[{_MARKS}]*\[{DATE},?\s(?:klo\s|um\s)?{TIME}\]\s(.*)")
# System lines quote the names of groups, which may hold a colon; names hardly hold quotes.
_SENDER = re.compile(rf"[{_MARKS}~\s]*+([^:\"“”「」]{{1,80}}?)[{_MARKS}\s]{{0,4}}:(?:\s(.*)|$)")
EDITED = re.compile(
    rf"\s?[{_MARKS}]?<(?:this message was edited|[^<>]{{0,12}}(?:编辑|編輯)[^<>]{{0,6}})>\s*$",
    re.IGNORECASE,
)
ATTACHED = re.compile(rf"\s?[{_MARKS}]?<(?:attached|附件)\s?[:：][^<>]*>")
_WHATSAPP_NOISE = re.compile(
    r"<[^<>]{0,80}(?:omit|omis|omess|ausgeschl|weggelaten|attached|附件|省略|忽略|略去)[^<>]{0,120}>"
    r"|(?:image|video|video note|audio|sticker|gif|document|contact card|media) omitted"
    r"|(?:图片|圖片|照片|视频|视讯|影片|音频|音訊|语音|語音|贴图|貼圖|动图|GIF|文件|文档|檔案|文件檔案"
    r"|联系人名片|联系人卡片|聯絡人)\s?(?:已忽略|已略去|已省略|忽略|略去|省略)"
    r"|.{1,120} [(（](?:file attached|文件附件|附件文件|附件|檔案附件)[)）]"
    r"|.{1,120}\.\w{1,5} • \d+ \S+"
    r"|(?:this message was deleted|you deleted this message)[^.]{0,60}\.?"
    r"|(?:此|这条|這則)(?:消息|訊息|讯息)已(?:经|經)?(?:被)?(?:.{0,6})?(?:删除|刪除)。?"
    r"|(?:你|您)已?(?:删除|刪除)了?(?:此|这条|這則)(?:消息|訊息|讯息)。?"
    r"|messages and calls are end-to-end encrypted.*"
    r"|(?:消息|訊息|讯息)[和与與及]通[话話].{0,20}加密.*"
    r"|missed (?:group )?(?:voice|video) call.*|waiting for this message\..*",
    re.IGNORECASE,
)


def _whatsapp(pattern: re.Pattern[str]) -> Callable[[str], Header | None]:
    def header(line: str) -> Header | None:
        found = pattern.match(line)
        when = _when(found)
        if found is None or when is None:
            return None
        sender = _SENDER.match(found[9])
        if sender is None:
            return Header(*when, None, "")
        return Header(*when, _name(sender[1]), sender[2] or "")

    return header


def _when(found: re.Match[str] | None, first: int = 1) -> tuple[Numbers, int] | None:
    """Date and time of a match in which the groups from `first` on are DATE's and TIME's."""
    if found is None:
        return None
    a, b, c, period, hour, minute, second, half = found.groups()[first - 1 : first + 7]
    numbers, clock = numbers_of(a, b, c), clock_of(period, hour, minute, second, half)
    return None if numbers is None or clock is None else (numbers, clock)


ALL_MARKS = re.compile(f"[{_MARKS}]")
_LEVELS = "TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|CRITICAL|FATAL|ALERT|SEVERE|EMERGENCY"
LEVEL = re.compile(rf"(?:.*[\s.\[])?(?i:{_LEVELS})\]?|\[?(?:{_LEVELS})[\s\]].*")


def _name(text: str) -> str:
    return " ".join(ALL_MARKS.sub("", text).split())


def _begins_dated(lines: list[str], headers: list[Header | None]) -> bool:
    """Most of the lines that begin with a date are headers."""
    dated = sum(bool(h) or _DATED.match(line) is not None
                for line, h in zip(lines, headers, strict=True))  # fmt: skip
    return sum(map(bool, headers)) > SHARE * dated


_DATED = re.compile(rf"[{_MARKS}]*\[?\d{{1,4}}[./年-] ?\d{{1,2}}[./月-] ?\d{{1,4}}\b")


# ---- WeChat and QQ: a line with time and name, the text below

_STAMP = rf"{DATE}\s{{1,4}}{TIME}"
_QQ = re.compile(
    rf"{_STAMP}\s{{1,4}}(?:【[^】]{{1,20}}】)?(.{{0,60}}?)\s?(?:\((\d{{4,12}})\)|<([^<>]{{3,80}})>)"
    r"\s{0,4}$"
)
_TIME_FIRST = re.compile(rf"{_STAMP}\s{{1,4}}(\S(?:.{{0,38}}\S)?)\s{{0,4}}$")
_NAME_FIRST = re.compile(rf"(\S(?:.{{0,38}}?\S)?)\s{{1,4}}{_STAMP}\s{{0,4}}$")
_PROGRAM = ("系统消息", "系統訊息", "系统提示", "System Message", "系统通知")
_UNLIKE_NAMES = re.compile(r"[:：|;；,，。=<>\t]")
PREFACE = re.compile(r"消息记录|消息分组|消息对象|={8}|$")
_BRACKET_NOISE = re.compile(
    r"\[(?:图片|圖片|照片|视频|視頻|影片|语音|語音|表情|动画表情|動畫表情|表情包|文件|位置|名片|红包"
    r"|紅包|转账|轉帳|音乐|小程序|聊天记录|视频通话|语音通话|分享|photo|image|video|voice|sticker|file"
    r"|location|contact|voice call|video call|red packet)\]"
    r"|.{1,60}(?:撤回了一条消息|撤回了一條訊息|recalled a message\.?)|以上是打招呼的内容",
    re.IGNORECASE,
)


def _qq(line: str) -> Header | None:
    found = _QQ.match(line)
    when = _when(found)
    if found is None or when is None:
        return None
    return Header(*when, _person(found[9] or found[10] or found[11]), "")


def _time_first(line: str) -> Header | None:
    found = _TIME_FIRST.match(line)
    when = _when(found)
    return None if found is None or when is None else Header(*when, _person(found[9]), "")


def _name_first(line: str) -> Header | None:
    found = _NAME_FIRST.match(line)
    when = _when(found, 2)
    return None if found is None or when is None else Header(*when, _person(found[1]), "")


def _person(text: str) -> str | None:
    name = _name(text)
    return None if name in _PROGRAM else name


def _stands_above_text(lines: list[str], headers: list[Header | None]) -> bool:
    """Most headers have text below, several people speak and one of them again, the names look
    like names: a log of a program has lines that begin like these."""
    if not _begins_dated(lines, headers):
        return False
    places = [place for place, header in enumerate(headers) if header]
    above = sum(
        place + 1 == len(lines) or (headers[place + 1] is None and bool(lines[place + 1].strip()))
        for place in places
    )
    names = [header.name for header in headers if header and header.name is not None]
    plain = sum(_UNLIKE_NAMES.search(name) is None for name in names)
    return above > SHARE * len(places) and plain > SHARE * len(names) and (
        1 < len(set(names)) < len(names)
    )  # fmt: skip


def _is_qq(lines: list[str], headers: list[Header | None]) -> bool:
    return _begins_dated(lines, headers)


# ---- IRC

_IRC_TIME = r"(?:\[?(?:(\d{4})-(\d\d)-(\d\d)[T ])?(\d{1,2}):(\d\d)(?::(\d\d))?\]?\s+)?"
_IRC = re.compile(rf"{_IRC_TIME}<[ ~&@%+]?([^\s<>]{{1,40}})>(?:\s(.*)|$)")
_ACTION = re.compile(rf"{_IRC_TIME}\*\s+([^\s<>*]{{1,40}})\s(.*)")
_EVENT = re.compile(rf"{_IRC_TIME}(?:===|---|\*\*\*|-!-|<--|-->)(?:\s.*|$)")
_EVENT_VERB = re.compile(
    r"(?:[(\[]\S{1,120}[)\]]\s+)?(?:has (?:joined|left|quit)|is now known as|sets mode"
    r"|changes topic|was kicked|(?:joined|left) #)"
)
_TAG = re.compile(r"(?:[biuspaq]|h[1-6]|t[dhr]|d[dlt]|[ou]l|li|br|hr|em|div|pre|span|html|body|head"
                  r"|title|table|code|strong|center|font|unk|bos|s)\Z", re.IGNORECASE)  # fmt: skip
_NOTHING = re.compile(r"(?!)")


def _irc(line: str) -> Header | None:
    if _EVENT.match(line):
        return Header(None, None, None, "")
    found, is_action = _IRC.match(line), False
    if found is None:
        found, is_action = _ACTION.match(line), True
    if found is None:
        return None
    numbers, clock = None, None
    if found[4]:
        clock = clock_of(None, found[4], found[5], found[6], None)
    if found[1]:
        numbers = numbers_of(found[1], found[2], found[3])
    if (found[4] and clock is None) or (found[1] and numbers is None):
        return None
    text = found[8] or ""
    if is_action and _EVENT_VERB.match(text):
        return Header(numbers, clock, None, "")
    return Header(numbers, clock, found[7], f"* {text}" if is_action else text)


def _is_irc(lines: list[str], headers: list[Header | None]) -> bool:
    """Most lines are what somebody said; without times, several people and no tags of markup."""
    full = [(line, header) for line, header in zip(lines, headers, strict=True) if line.strip()]
    others = sum(header is None or header.name is not None for _, header in full)
    said = [(line, header) for line, header in full if header and _IRC.match(line)]
    if len(said) <= SHARE * others:
        return False
    timed = sum(header.clock is not None for _, header in said)
    if timed > SHARE * len(said):
        return True
    nicks = [h.name for line, h in said if "</" not in line and not _TAG.match(h.name or "")]
    return len(nicks) > SHARE * others and 1 < len(set(nicks)) < len(nicks)


DIALECTS = (
    Dialect("WhatsApp text", _whatsapp(_DASHED), _WHATSAPP_NOISE, _begins_dated, True),
    Dialect("WhatsApp text", _whatsapp(_BRACKETED), _WHATSAPP_NOISE, _begins_dated, True),
    Dialect("QQ text", _qq, _BRACKET_NOISE, _is_qq),
    Dialect("WeChat text", _time_first, _BRACKET_NOISE, _stands_above_text),
    Dialect("WeChat text", _name_first, _BRACKET_NOISE, _stands_above_text),
    Dialect("IRC log", _irc, _NOTHING, _is_irc),
)
