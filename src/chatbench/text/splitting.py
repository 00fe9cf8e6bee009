"""Text → words: Qwen2's split pattern, its character classes, and composition (NFC).

Everything is taken from the `tokenizers` package itself, whose Unicode tables are neither this
Python's nor gigatoken's: its classes are newer, its composition is that of Unicode 9.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING

from tokenizers import Regex, normalizers

from chatbench.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# The published Qwen2 split pattern (tokenizer.json of Qwen2), letter for letter: llama.cpp knows
# it as pre-tokenizer "qwen2".
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OTHER, LETTER, NUMBER, SPACE, LINE_END = range(5)
CODE_POINTS = 0x110000

# Where gigatoken (Unicode 17), `tokenizers` and this Python may differ, measured over all code
# points: characters that compose or reorder in a Unicode newer than 9, and scripts added since,
_NEWER_COMPOSITION = (
    (0x7FD, 0x7FD), (0x897, 0x89F), (0x8CA, 0x8D3), (0x9FE, 0x9FE), (0xC3C, 0xC3C),
    (0xD3B, 0xD3C), (0xEBA, 0xEBA), (0x1715, 0x1715), (0x1ABF, 0x1AFF), (0x1DF6, 0x1DFA),
    (0xA82C, 0xA82C), (0x10D24, 0x11FFF), (0x16100, 0x16FFF), (0x1E08F, 0x1E6FF),
)  # fmt: skip
# and letters newer than Unicode 16.
_NEWER_LETTERS = (
    (0x10940, 0x1095F), (0x187F8, 0x187FF), (0x18D09, 0x18DFF), (0x2B73A, 0x2B73F),
    (0x2CEA2, 0x2CEAF), (0x323B0, 0x3FFFF),
)  # fmt: skip
_SURROGATES = (0xD800, 0xDFFF)
# Beyond these, Unicode assigns no letter, number or space.
_CLASSED = ((0, 0xD800), (0xE000, 0x40000), (0xE0000, 0xE1000))


@cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (Radford et al. 2019, released encoder)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    stand_ins = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return stand_ins | {chr(0x100 + shift): byte for shift, byte in enumerate(others)}


@cache
def character_classes() -> npt.NDArray[np.uint8]:
    """The class of every code point, (0x110000,), as the regex engine of `tokenizers` sees it."""
    import numpy as np

    table = np.zeros(CODE_POINTS, np.uint8)
    points = "".join(chr(c) for first, end in _CLASSED for c in range(first, end))
    for number, others in ((LETTER, r"\P{L}"), (NUMBER, r"\P{N}"), (SPACE, r"\S")):
        members = normalizers.Replace(Regex(others), "").normalize_str(points)
        table[np.frombuffer(members.encode("utf-32-le"), np.uint32)] = number
    table[[0x0A, 0x0D]] = LINE_END
    return table


@cache
def split_pattern() -> re.Pattern[str]:
    """QWEN2_PATTERN for Python's own engine, which has no \\p."""
    letter, number = _ranges(LETTER), _ranges(NUMBER)
    space = _ranges(SPACE) + r"\r\n"
    return re.compile(
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n{letter}{number}]?[{letter}]+|[{number}]"
        rf"| ?[^{space}{letter}{number}]+[\r\n]*|[{space}]*[\r\n]+|[{space}]+(?![^{space}])"
        rf"|[{space}]+"
    )


def _ranges(number: int) -> str:
    import numpy as np

    points = np.flatnonzero(character_classes() == number)
    breaks = np.flatnonzero(np.diff(points) != 1)
    firsts = points[np.concatenate([[0], breaks + 1])]
    lasts = points[np.concatenate([breaks, [len(points) - 1]])]
    return "".join(
        f"\\U{first:08x}-\\U{last:08x}" for first, last in zip(firsts, lasts, strict=True)
    )


def _doubtful_ranges() -> tuple[tuple[int, int], ...]:
    return (*_NEWER_COMPOSITION, *_NEWER_LETTERS, _SURROGATES)


@cache
def _marked() -> npt.NDArray[np.uint8]:
    import numpy as np

    marks = np.zeros(CODE_POINTS, np.uint8)
    for first, last in _doubtful_ranges():
        marks[first : last + 1] = 1
    return marks


@cache
def _doubtful() -> re.Pattern[str]:
    spans = (f"\\U{first:08x}-\\U{last:08x}" for first, last in _doubtful_ranges())
    return re.compile("[" + "".join(spans) + "]")


def is_doubtful(text: str) -> bool:
    """Whether `text` may be composed or split differently under another version of Unicode, or
    holds a lone surrogate."""
    if text.isascii():
        return False
    try:
        from chatbench.text._bpe import first_marked
    except ImportError:
        return _doubtful().search(text) is not None
    return first_marked(text, _marked()) >= 0


def composed(text: str) -> str:
    """`text` in NFC, exactly as `tokenizers` composes it. Raises DataError for lone surrogates."""
    if text.isascii():
        return text
    if is_doubtful(text):
        refuse_surrogates(text)
        return str(normalizers.NFC().normalize_str(text))
    return unicodedata.normalize("NFC", text)


def refuse_surrogates(text: str) -> None:
    """Raises DataError when `text` holds half a character, which no encoding can carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise DataError(
            f"a text holds half a character (lone surrogate U+{code:04X}) at {error.start}: "
            f"{text[max(0, error.start - 20) : error.start + 20]!a}",
            hint="leave it out or write U+FFFD in its place",
        ) from error
