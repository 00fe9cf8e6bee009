"""What the finders of personal data share: the result, full-width folding, anchors, digit runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from chatbench.errors import UsageError

DIGITS = "0123456789"
_WIDE_SIGNS = "０１２３４５６７８９＠－"
_WIDE = re.compile("[！-～]+")
_NARROW = {
    code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code) not in "，！？；（）："
}
# At most three separators between digits; possessive, so that no input makes it go back.
_RUN = re.compile(r"[0-9](?:[ \xa0.\-－–‐()（）/]{0,3}+[0-9])++")


class Found(NamedTuple):
    """text[start:end] is personal data of this kind."""

    kind: str
    start: int
    end: int


@cache
def require_checks() -> None:
    """UsageError when the packages that check numbers are not installed."""
    for module, name in (("phonenumbers", "phonenumbers"), ("stdnum", "python-stdnum")):
        try:
            __import__(module)
        except ImportError:
            raise UsageError(
                f"finding personal data needs {name}", hint='pip install "chatbench[data]"'
            ) from None


def narrowed(text: str) -> str:
    """The text with full-width digits, letters and signs as ASCII, character for character."""
    if text.isascii() or not any(sign in text for sign in _WIDE_SIGNS):
        return text
    return _WIDE.sub(lambda match: match[0].translate(_NARROW), text)


def places(text: str, literal: str) -> Iterator[int]:
    """Where `literal` stands, from left to right."""
    place = text.find(literal)
    while place >= 0:
        yield place
        place = text.find(literal, place + 1)


def digit_runs(text: str) -> list[tuple[int, int]]:
    """Maximal stretches of two and more digits with the separators that numbers are grouped by."""
    if not any(digit in text for digit in DIGITS):
        return []
    return [match.span() for match in _RUN.finditer(text)]


def is_word(text: str, place: int) -> bool:
    """Whether an ASCII letter, digit or underscore stands at `place`; False outside the text."""
    if not 0 <= place < len(text):
        return False
    character = text[place]
    return character.isascii() and (character.isalnum() or character == "_")
