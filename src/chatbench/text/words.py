"""Text as the words that metrics count: any script, unspaced ones by the character."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any

# Han, kana and their extensions: written without spaces between words.
_UNSPACED = (
    r"\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff"
)
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_UNSPACED_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
_OUTER_PUNCTUATION = re.compile(r"^\W+|\W+$")


def has_unspaced(text: str) -> bool:
    """Whether any character is of a script written without spaces."""
    return _UNSPACED_CHARACTER.search(text) is not None


def folded(text: str) -> str:
    """Without differences of case, width and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words(text: str) -> list[str]:
    """Lower-cased words; characters of unspaced scripts one by one; punctuation left out."""
    return list(_words(text))


@lru_cache(maxsize=1 << 16)
def _words(text: str) -> tuple[str, ...]:
    # Several metrics ask for the words of the same replies.
    plain = unicodedata.normalize("NFKC", text).casefold()
    if has_unspaced(plain):
        return tuple(_UNSPACED_WORD.findall(plain))
    tokens = (_OUTER_PUNCTUATION.sub("", w) for w in _word_tokenizer().tokenize(plain))
    return tuple(token for token in tokens if token)


@lru_cache(maxsize=1)
def _word_tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


def plain_words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits, and single unspaced characters; fast."""
    return _UNSPACED_WORD.findall(unicodedata.normalize("NFKC", text).lower())


def bare(text: str) -> list[str]:
    """The words; what has none, such as an emoji, stands for itself."""
    return words(text) or [folded(text)]


def script_of(text: str) -> str:
    """The script of most letters: han, kana, latin, cyrillic, ..., by the names of Unicode; kana
    wherever there is any beside Han; none when there are no letters."""
    counts: dict[str, int] = {}
    for character in text:
        if character.isalpha():
            name = _script(character)
            counts[name] = counts.get(name, 0) + 1
    if not counts:
        return "none"
    if "kana" in counts and "han" in counts:
        return "kana"
    return max(sorted(counts), key=lambda name: counts[name])


@lru_cache(maxsize=1 << 14)
def _script(character: str) -> str:
    first = unicodedata.name(character, "other").split()[0].split("-")[0].lower()
    names = {"cjk": "han", "ideographic": "han", "hiragana": "kana", "katakana": "kana"}
    return names.get(first, "latin" if first in ("fullwidth", "modifier") else first)
