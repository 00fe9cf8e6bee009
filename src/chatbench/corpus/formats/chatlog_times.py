"""Dates and times of chat exports, read without a locale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, TypeAlias

SECONDS_A_DAY = 86400

# Three numbers as written: their order is a matter of the country, and of the whole file.
Numbers: TypeAlias = tuple[int, int, int]

_PERIODS = {
    "am": "凌晨 清晨 早上 上午 午夜 半夜 午前 오전",
    "noon": "中午",
    "pm": "下午 傍晚 午後 오후",
    "night": "晚上 深夜",
}
_PERIOD_OF = {word: kind for kind, words in _PERIODS.items() for word in words.split()}
DATE = r"(\d{1,4})[./年-] ?(\d{1,2})[./月-] ?(\d{1,4})[.日]?"
TIME = (
    rf"(?:({'|'.join(_PERIOD_OF)})\s?)?(\d{{1,2}})[:.](\d{{2}})(?:[:.](\d{{2}}))?"
    r"(?:\s?([AaPp])\.?\s?[Mm]\.?)?"
)
_NOON, _LAST_EARLY_AFTERNOON = 12, 4


class DateOrder(NamedTuple):
    """Whether days come before months, and whether that is known or only the usual."""

    day_first: bool = True
    is_certain: bool = False


@lru_cache(maxsize=4096)
def numbers_of(first: str, second: str, third: str) -> Numbers | None:
    """The three numbers of a date; None when no order makes a date of them."""
    numbers = (int(first), int(second), int(third))
    if len(first) not in (1, 2, 4) or len(third) not in (1, 2, 4):
        return None
    return numbers if any(day_of(numbers, first_is_day) for first_is_day in (True, False)) else None


def day_of(numbers: Numbers, day_first: bool) -> date | None:
    """The day that the numbers name; a year of four digits comes first or last, one of two digits
    last and in this century. None when there is no such day."""
    if numbers[0] > 31:
        year, month, day = numbers
    else:
        day, month, year = numbers if day_first else (numbers[1], numbers[0], numbers[2])
        year += 2000 if year < 100 else 0
    try:
        return date(year, month, day)
    except ValueError:
        return None


def clock_of(
    period: str | None, hour: str, minute: str, second: str | None, half: str | None
) -> int | None:
    """Seconds since midnight of what TIME's groups hold; None when there is no such time.

    `half` is the a or p of AM and PM, `period` a word such as 下午; hours above 12 win over both.
    """
    hours, minutes, seconds = int(hour), int(minute), int(second or 0)
    kind = _PERIOD_OF[period] if period else {"a": "am", "p": "pm"}.get((half or "").lower(), "")
    if hours <= _NOON:
        hours = _of_24(kind, hours)
    if hours >= 24 or minutes >= 60 or seconds > 60:
        return None
    return 3600 * hours + 60 * minutes + seconds


def _of_24(kind: str, hours: int) -> int:
    """An hour of a twelve-hour clock as one of 24; noon's own word reaches from 11 to 3."""
    if kind in ("am", "night") and hours == _NOON:
        return 0
    is_late = kind in ("pm", "night") or (kind == "noon" and hours < _LAST_EARLY_AFTERNOON)
    return hours + 12 if is_late and hours < _NOON else hours


def date_order(dates: Sequence[Numbers]) -> DateOrder:
    """Which order a file's dates are in: a value above 12 decides; else the order in which time
    goes back less often; else the day comes first, without certainty."""
    readings = {first: [day_of(numbers, first) for numbers in dates] for first in (True, False)}
    if readings[True] == readings[False]:
        return DateOrder(True, bool(dates))
    impossible = {first: sum(day is None for day in days) for first, days in readings.items()}
    back = {first: _steps_back(days) for first, days in readings.items()}
    costs = {first: (impossible[first], back[first]) for first in (True, False)}
    day_first = costs[True] <= costs[False]
    # Years of two digits could stand in front; then time would not run forward in this reading.
    is_certain = costs[True] != costs[False] and not any(costs[day_first])
    return DateOrder(day_first, is_certain)


def _steps_back(days: Sequence[date | None]) -> int:
    known = [day for day in days if day is not None]
    return sum(later < earlier for earlier, later in pairwise(known))


ISO_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d)(?::(\d\d))?")


def iso_day(text: object) -> str:
    """The day of an ISO 8601 time, "" where there is none."""
    found = ISO_TIME.match(text) if isinstance(text, str) else None
    if found is None or day_of((int(found[1]), int(found[2]), int(found[3])), True) is None:
        return ""
    return found[0][:10]


def iso_seconds(text: object) -> int | None:
    """Seconds of an ISO 8601 time since the year 1, zones left aside; None where there is none."""
    found = ISO_TIME.match(text) if isinstance(text, str) else None
    day = day_of((int(found[1]), int(found[2]), int(found[3])), True) if found else None
    clock = clock_of(None, found[4], found[5], found[6], None) if found else None
    return None if day is None or clock is None else SECONDS_A_DAY * day.toordinal() + clock
