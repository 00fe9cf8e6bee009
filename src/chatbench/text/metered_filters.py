"""The filters and tests of a stranger's template, charged by what they read and make."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from itertools import islice
from typing import TYPE_CHECKING, Any

from jinja2 import filters as jinja_filters
from jinja2 import pass_environment

from chatbench.text.metering import (
    COMPARED_AT_ONCE,
    LARGEST,
    Overspent,
    check_percent,
    replaced_size,
    weigh,
)

if TYPE_CHECKING:
    from chatbench.text.sandbox import Sandbox

_LONGEST_PRECISION = 30


@pass_environment
def _replace(env: Sandbox, text: Any, old: Any, new: Any, count: int = -1) -> str:
    env.meter.fits(replaced_size(str(text), old, new))
    return str(text).replace(old, new, -1 if count is None else count)


@pass_environment
def _join(env: Sandbox, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    entries = list(value)
    if attribute is not None:
        entries = list(map(jinja_filters.make_attrgetter(env, attribute), entries))
    env.meter.fits(2 * weigh(entries) + len(str(d)) * len(entries))
    return str(d).join(map(str, entries))


@pass_environment
def _center(env: Sandbox, text: Any, width: int = 80) -> str:
    env.meter.fits(width)
    return str(text).center(width)


@pass_environment
def _indent(env: Sandbox, text: Any, width: int | str = 4, first: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * min(width, LARGEST)
    lines = str(text).split("\n")
    env.meter.fits(len(str(text)) + len(margin) * len(lines))
    # As Jinja does: empty lines, and the first unless asked for, get no margin.
    body = [line and margin + line for line in lines[1:]]
    return "\n".join([margin + lines[0] if first else lines[0], *body])


@pass_environment
def _format(env: Sandbox, text: str, *values: Any, **named: Any) -> str:
    check_percent(env.meter, str(text), (*values, named))
    return str(text) % (named or values)


@pass_environment
def _trim(env: Sandbox, value: Any, chars: str | None = None) -> str:
    env.meter.charge(len(str(value)) * len(chars or "") // COMPARED_AT_ONCE)
    return str(value).strip(chars)


@pass_environment
def _round(env: Sandbox, value: float, precision: int = 0, method: Any = "common") -> float:
    if abs(precision) > _LONGEST_PRECISION:
        raise Overspent("computes with huge numbers")
    return jinja_filters.do_round(value, precision, method)


@pass_environment
def _sum(env: Sandbox, value: Any, attribute: str | int | None = None, start: float = 0) -> Any:
    entries = list(value)
    if attribute is not None:
        entries = list(map(jinja_filters.make_attrgetter(env, attribute), entries))
    if not all(isinstance(entry, int | float) for entry in (start, *entries)):
        raise TypeError("sum adds numbers only")
    return sum(entries, start)


@pass_environment
def _tojson(
    env: Sandbox,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates want it: nothing escaped for HTML."""
    if (isinstance(indent, int) and indent > 16) or len(str(indent)) + len(str(separators)) > 64:
        raise Overspent("writes JSON with huge gaps")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


# Left out: what depends on chance, marks HTML as safe, or grows without a bound of its own.
_FROM_JINJA = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "groupby", "int",
    "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "reverse", "select", "selectattr", "sort", "string", "title", "unique", "upper",
    "wordcount",
)  # fmt: skip
_OWN: dict[str, Callable[..., Any]] = {
    "center": _center,
    "format": _format,
    "indent": _indent,
    "join": _join,
    "replace": _replace,
    "round": _round,
    "sum": _sum,
    "tojson": _tojson,
    "trim": _trim,
}
# What these say of a value takes no longer for a large one.
_GLANCING_FILTERS = frozenset(("count", "length"))
_GLANCING_TESTS = frozenset(
    (
        "boolean", "defined", "false", "float", "integer", "iterable", "mapping", "none", "number",
        "sameas", "sequence", "string", "true", "undefined",
    )
)  # fmt: skip
_NO_TESTS = ("callable", "escaped", "filter", "test")


def metered_filters(env: Sandbox) -> dict[str, Callable[..., Any]]:
    """The filters of a template in `env`, charged by what they read and make."""
    known = {name: jinja_filters.FILTERS[name] for name in _FROM_JINJA} | _OWN
    return {n: _metered(env, function, n in _GLANCING_FILTERS) for n, function in known.items()}


def metered_tests(env: Sandbox, known: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the tests `known` that a template in `env` may ask, charged by what they read."""
    return {
        name: _metered(env, test, name in _GLANCING_TESTS)
        for name, test in known.items()
        if name not in _NO_TESTS
    }


def _metered(env: Sandbox, function: Callable[..., Any], glances: bool) -> Callable[..., Any]:
    # Jinja hands its context, or the like, to functions that carry this mark.
    skipped = int(hasattr(function, "jinja_pass_arg"))

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        env.meter.call()
        if not glances:
            env.meter.charge(sum(map(weigh, arguments[skipped:])) + weigh(named))
        made = function(*arguments, **named)
        if isinstance(made, Iterator):
            made = list(islice(made, LARGEST))
        return env.meter.admit(made)

    return call
