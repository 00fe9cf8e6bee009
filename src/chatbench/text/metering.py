"""What a stranger's template may spend and touch: sizes are checked before anything is built.

Every operation is charged by the size of what it reads and makes, so neither time nor memory can
grow beyond the allowance; the clock of the thread is a second limit.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import date
from typing import Any, TypeGuard

from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext, Undefined
from jinja2.utils import Namespace

LARGEST = 1_000_000  # characters, or four for each entry, of any one value
_ALLOWANCE, _ALLOWANCE_PER_TURN = 2_000_000, 20_000
_SECONDS, _SECONDS_PER_TURN = 0.5, 0.002  # of this thread's processor time
_CLOCK_EVERY = 64
# Below 2^61 - 1 no two numbers but -1 and -2 have one hash; the multiples of it all share theirs,
# and a set of them takes the square of its size.
_LARGEST_INTEGER_BITS = 60
_CALL, _LOOK, _TURN = 20, 2, 5
# A search may compare every character of one string with every one of another, some at once.
COMPARED_AT_ONCE = 64

# What a template that asks for today's date gets: ids depend on the conversation, not on the day.
FIXED_DATE = date(2024, 7, 26)

_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        (
            "capitalize", "casefold", "center", "count", "endswith", "find", "format", "index",
            "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "islower", "isnumeric",
            "isspace", "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition",
            "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition",
            "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title",
            "upper",
        )
    ),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")),
    tuple: frozenset(("count", "index")),
    LoopContext: frozenset(
        (
            "changed", "cycle", "depth", "depth0", "first", "index", "index0", "last", "length",
            "nextitem", "previtem", "revindex", "revindex0",
        )
    ),
}  # fmt: skip
_ITERABLE: tuple[type, ...] = (
    str, list, tuple, dict, range, type({}.keys()), type({}.values()), type({}.items()),
)  # fmt: skip
# A width in a conversion (`%9d`, `{:9}`, in the digits of any script) makes as many characters as
# it says, so only conversions that have none are let through.
_PLAIN_PERCENT = re.compile(r"%(?:%|(?:\([^()%]*\))?[-+ ]*[a-zA-Z])")
_WIDTH_OF_BRACES = re.compile(r"\{[^{}]*:[^{}]*[\d{]")
_DATE_FORMAT = re.compile(r"[%A-Za-z ,.:/年月日-]{0,100}")


class Overspent(SecurityError):
    """A template went beyond its allowance."""


class Meter:
    """The allowance of one rendering of `turns` messages."""

    def __init__(self, turns: int) -> None:
        self._left = _ALLOWANCE + turns * _ALLOWANCE_PER_TURN
        self._until = time.thread_time() + _SECONDS + turns * _SECONDS_PER_TURN
        self._charges = 0

    def charge(self, units: int) -> None:
        """Take `units` off. Raises Overspent."""
        self._left -= units
        self._charges += 1
        late = self._charges % _CLOCK_EVERY == 0 and time.thread_time() > self._until
        if self._left < 0 or late:
            raise Overspent("works longer than a chat template may")

    def fits(self, size: float) -> None:
        """Refuse to build what would be larger than any value may be. Raises Overspent."""
        if size > LARGEST:
            raise Overspent(f"wants to build a value of more than {LARGEST:,} characters")

    def admit(self, value: Any) -> Any:
        """`value`, when it is not too large. Raises Overspent."""
        self.charge(_LOOK + weigh(value))
        return value

    def iterate(self, value: Any) -> list[Any]:
        """The entries a loop goes over. Raises Overspent, TypeError, UndefinedError."""
        if isinstance(value, Undefined):
            return list(value)
        if not _can_loop(value):
            raise TypeError(f"a {type(value).__name__} is nothing to loop over")
        self.fits(len(value))
        self.charge(_TURN)
        return _Steps(self, value)

    def look(self) -> None:
        self.charge(_LOOK)

    def call(self) -> None:
        self.charge(_CALL)


class _Steps(list[Any]):
    """The entries of a loop, each charged when it is reached: a body may cost time and nothing
    else, and without charges nobody looks at the clock."""

    def __init__(self, meter: Meter, entries: Iterable[Any]) -> None:
        super().__init__(entries)
        self._meter = meter

    def __iter__(self) -> Iterator[Any]:
        for entry in super().__iter__():
            self._meter.charge(_TURN)
            yield entry


def weigh(value: Any) -> int:
    """Characters and entries of `value`, seen as a tree. Raises Overspent beyond LARGEST.

    What is shared counts as often as it is reached: printed, it would be written that often.
    """
    if isinstance(value, str):
        total, waiting = len(value), []
    else:
        total, waiting = 0, [value]
    while waiting or total > LARGEST:
        if total > LARGEST:
            raise Overspent(f"builds a value of more than {LARGEST:,} characters")
        found = waiting.pop()
        total += 4
        if isinstance(found, str | range):
            total += len(found)
        elif isinstance(found, dict):
            total += 8 * len(found)
            if total <= LARGEST:
                waiting += found.keys()
                waiting += found.values()
        elif _can_loop(found):
            total += 4 * len(found)
            if total <= LARGEST:
                waiting += found
        elif isinstance(found, int) and found.bit_length() > _LARGEST_INTEGER_BITS:
            raise Overspent("computes with huge numbers")
    return total


def _can_loop(value: object) -> TypeGuard[Collection[Any]]:
    return isinstance(value, _ITERABLE)


def check_attribute(owner: Any, name: str) -> None:
    """Raises SecurityError for an attribute that templates have no business with."""
    for kind, allowed in _METHODS.items():
        if isinstance(owner, kind):
            if name in allowed:
                return
            break
    raise SecurityError(f"asks for .{name} of a {type(owner).__name__}")


def check_method(meter: Meter, owner: Any, name: str, arguments: tuple[Any, ...]) -> None:
    """Whether a method's result stays small. Raises Overspent."""
    meter.charge(weigh(owner) + sum(map(weigh, arguments)))
    if not isinstance(owner, str) or not arguments:
        return
    first = arguments[0]
    if isinstance(first, str):
        meter.charge(len(owner) * len(first) // COMPARED_AT_ONCE)
    if name == "replace" and len(arguments) > 1:
        meter.fits(replaced_size(owner, first, arguments[1]))
    elif name == "join":
        entries = len(first) if _can_loop(first) else 0
        meter.fits(weigh(first) + len(owner) * entries)
    elif name in ("center", "ljust", "rjust") and isinstance(first, int):
        meter.fits(first)


def check_percent(meter: Meter, pattern: str, values: tuple[Any, ...]) -> None:
    """Whether `pattern % values` stays small. Raises Overspent."""
    if "%" in _PLAIN_PERCENT.sub("", pattern):
        raise Overspent("formats with a width")
    meter.fits(len(pattern) + pattern.count("%") * sum(map(weigh, values)) * 2)


def check_braces(meter: Meter, pattern: str, values: tuple[Any, ...]) -> None:
    """Whether `pattern.format(values)` stays small and within them. Raises SecurityError."""
    if _WIDTH_OF_BRACES.search(pattern):
        raise Overspent("formats with a width")
    if "." in pattern or "[" in pattern:
        raise SecurityError("reaches into values by a format")
    meter.fits(len(pattern) + pattern.count("{") * sum(map(weigh, values)) * 2)


def check_operation(meter: Meter, operator: str, left: Any, right: Any) -> None:
    """Whether `left operator right` stays small. Raises Overspent."""
    meter.look()
    if operator == "%" and isinstance(left, str):
        check_percent(meter, left, (right,))
    elif operator in ("*", "**"):
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            grown = bits + right.bit_length() if operator == "*" else bits * max(right, 0)
            if grown > _LARGEST_INTEGER_BITS:
                raise Overspent("computes with huge numbers")
        for many, times in ((left, right), (right, left)):
            if isinstance(many, str | list | tuple) and isinstance(times, int):
                meter.fits(weigh(many) * max(times, 0))
    elif operator == "+" and not isinstance(left, str):
        meter.charge(weigh(left) + weigh(right))


def replaced_size(text: str, old: Any, new: Any) -> int:
    """An upper bound of the characters of `text.replace(old, new)`."""
    if not isinstance(old, str) or not isinstance(new, str):
        return len(text)
    return len(text) + text.count(old) * len(new)


def fixed_date(pattern: str) -> str:
    """FIXED_DATE in this form. Raises Overspent for a pattern with widths."""
    if not isinstance(pattern, str) or not _DATE_FORMAT.fullmatch(pattern):
        raise Overspent("formats a date in an unusual way")
    return FIXED_DATE.strftime(pattern)


class Names(Namespace):
    """What `namespace()` makes: printed, it shows nothing of what it holds."""

    def __init__(*arguments: Any, **named: Any) -> None:
        self, *given = arguments
        names = dict(*given, **named)
        Namespace.__init__(self, {_checked_name(name): value for name, value in names.items()})

    def __setitem__(self, name: str, value: Any) -> None:
        Namespace.__setitem__(self, _checked_name(name), value)

    def __repr__(self) -> str:
        return "<namespace>"


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError("keeps a private name in a namespace")
    return name


def small_range(*borders: int) -> range:
    """`range`, as long as `weigh` admits."""
    return range(*borders)


def plain_dict(given: Mapping[str, Any] | None = None, **named: Any) -> dict[str, Any]:
    """`dict(...)` of a template."""
    return dict(given or {}, **named)
