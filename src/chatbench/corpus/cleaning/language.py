"""Which language a text is in: by script for all, by py3langid where scripts are shared."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from chatbench.corpus.document import Counts, Document, Dropped, Stage
from chatbench.errors import UsageError

NONE, MIXED = "none", "mixed"
SCRIPTS = ("zh", "ja", "ko", "ar", "he", "th", "hi", "el", "cyrillic", "latin")
# Languages that share a script, in the codes of ISO 639-1; py3langid knows each of them. The
# small ones that it takes for their big neighbours are left out.
SHARING = {
    "latin": (
        "ca", "cs", "da", "de", "en", "es", "et", "fi", "fr", "hr", "hu", "id", "is", "it",
        "lt", "lv", "ms", "nl", "no", "pl", "pt", "ro", "sk", "sl", "sq", "sv", "sw", "tl", "tr",
        "vi",
    ),
    "cyrillic": ("be", "bg", "kk", "mk", "mn", "ru", "sr", "uk"),
}  # fmt: skip
_SCRIPT_OF = {code: script for script, codes in SHARING.items() for code in codes}
CODES = (*SCRIPTS, *_SCRIPT_OF, MIXED, NONE)

_MAJORITY = 0.6  # a script with less of the units does not name the text
_KANA_SHARE = 0.1  # of Han and kana: a Chinese text may quote a Japanese name, not more
_ROUNDING = 1e-9  # a text at one of these borders must not fall to the side of its rounding
_TWO_SCRIPTS = 0.9  # two scripts that hold this much together name a mixed text
_MIN_LETTERS = 20  # below, py3langid guesses
_JUDGED_CHARS = 500  # four times as many changed one verdict of 1,578 real texts

_HAN, _KANA, _OTHER = 1, 2, 11
_NAMES = ("", "zh", "ja", "ko", "ar", "he", "th", "hi", "el", "cyrillic", "latin", "other")
_UNICODE_NAMES = {
    "CJK": _HAN, "BOPOMOFO": _HAN, "HIRAGANA": _KANA, "KATAKANA": _KANA, "HANGUL": 3, "ARABIC": 4,
    "HEBREW": 5, "THAI": 6, "DEVANAGARI": 7, "GREEK": 8, "CYRILLIC": 9, "LATIN": 10,
    "FULLWIDTH": 10,
}  # fmt: skip
# A Han character weighs as much as a word, so that terms and code in Latin letters do not outvote
# the Chinese around them: letters of a mean word, for the scripts in the order of _NAMES.
_LETTERS_PER_WORD = np.array([1, 1, 2, 2, 5, 5, 5, 5, 5, 5, 5, 5], float)


def languages(texts: Sequence[str]) -> list[str]:
    """For each text one of SCRIPTS, "none" without letters, or, where no script has 60 % of the
    words, the two largest as in "zh+latin" or "mixed".

    A word is a Han character, two kana or Hangul syllables, or five letters.
    """
    shares = _shares(texts)
    kana = shares[:, _KANA] >= _KANA_SHARE * (shares[:, _HAN] + shares[:, _KANA]) - _ROUNDING
    japanese = kana & (shares[:, _KANA] > 0)
    shares[japanese, _KANA] += shares[japanese, _HAN]
    shares[japanese, _HAN] = 0
    shares[~japanese, _HAN] += shares[~japanese, _KANA]
    shares[~japanese, _KANA] = 0
    first = shares.argmax(axis=1)
    top = shares[np.arange(len(shares)), first]
    return [
        _NAMES[name] if share >= _MAJORITY - _ROUNDING and name != _OTHER else _mixture(row)
        for name, share, row in zip(first.tolist(), top.tolist(), shares, strict=True)
    ]


def keep(wanted: Sequence[str]) -> Stage:
    """A stage that drops documents in other languages, with Dropped("language", what was found),
    and counts the documents of each language.

    `wanted` holds codes of CODES. A mixed text passes when one of its scripts is wanted; a text
    of fewer than 20 letters when any language of its script is. Raises UsageError for an unknown
    code, or when only py3langid could tell a wanted language and is absent.
    """
    codes = [code.strip().lower() for code in wanted]
    if not codes:
        raise UsageError("no language is given", hint="name some, such as en,zh")
    for code in codes:
        if code not in CODES:
            raise UsageError(
                f"--lang {code!r} is not a known language", hint=f"known: {', '.join(CODES)}"
            )
    exact = sorted({_SCRIPT_OF[code] for code in codes if code in _SCRIPT_OF} - set(codes))
    if exact and find_spec("py3langid") is None:
        needy = [code for code in codes if code in _SCRIPT_OF]
        raise UsageError(
            f"telling {', '.join(needy)} from its neighbours needs py3langid",
            hint='pip install "chatbench[data]"',
        )
    return _Keep(tuple(codes), tuple(exact))


class _Keep(msgspec.Struct, frozen=True):
    """The stage that `keep` makes. `exact` are the scripts whose languages have to be told
    apart. Holds plain values only, so that it can be sent to worker processes."""

    wanted: tuple[str, ...]
    exact: tuple[str, ...]

    def __call__(self, documents: Sequence[Document]) -> tuple[list[Document | Dropped], Counts]:
        texts = [document.joined() for document in documents]
        counts: Counts = Counter()
        done: list[Document | Dropped] = []
        for document, text, script in zip(documents, texts, languages(texts), strict=True):
            found = _closer(text, script) if script in self.exact else script
            counts[found] += 1
            done.append(document if self._passes(found) else Dropped("language", found))
        return done, counts

    def _passes(self, found: str) -> bool:
        if found in self.wanted or _SCRIPT_OF.get(found) in self.wanted:
            return True
        # What is left of "latin" here is too short to be told; of "zh+latin", too mixed.
        scripts = {_SCRIPT_OF.get(code, code) for code in self.wanted}
        return any(part in scripts for part in found.split("+"))


def _mixture(row: npt.NDArray[np.float64]) -> str:
    if row.sum() == 0:
        return NONE
    (second, first) = (int(n) for n in np.argsort(row, kind="stable")[-2:])
    if _OTHER in (first, second) or row[first] + row[second] < _TWO_SCRIPTS - _ROUNDING:
        return MIXED
    return "+".join(_NAMES[n] for n in sorted((first, second)))


def _shares(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """(texts, scripts): the share of each script in the words of each text; a row of zeros
    without letters. One text of a batch never bears on another."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    data = "".join(texts).encode("utf-32-le", errors="surrogatepass")
    kinds = _table()[np.frombuffer(data, np.uint32)]
    width = len(_NAMES)
    ends = np.cumsum(lengths)
    words = np.empty((len(texts), width))
    for row, (start, end) in enumerate(zip((ends - lengths).tolist(), ends.tolist(), strict=True)):
        words[row] = np.bincount(kinds[start:end], minlength=width)
    words /= _LETTERS_PER_WORD
    words[:, 0] = 0
    totals = words.sum(axis=1, keepdims=True)
    shares: npt.NDArray[np.float64] = words / np.where(totals > 0, totals, 1)
    return shares


_BIG_BLOCKS = ((0x3400, 0x4DC0), (0x4E00, 0x9FFD), (0xAC00, 0xD7A4), (0x20000, 0x2A6DE))


@cache
def _table() -> npt.NDArray[np.uint8]:
    """The script of each code point, an index into _NAMES; 0 for what is no letter."""
    table = np.zeros(sys.maxunicode + 1, np.uint8)
    for start, end in _BIG_BLOCKS:  # letters of one script from end to end
        table[start:end] = _UNICODE_NAMES[unicodedata.name(chr(start)).split()[0]]
    for point in np.flatnonzero(table[:0x32000] == 0).tolist():
        if unicodedata.category(chr(point))[0] == "L":
            first, _, rest = unicodedata.name(chr(point), "OTHER").partition(" ")
            table[point] = _UNICODE_NAMES.get(first, _OTHER)
            if first == "HALFWIDTH":
                table[point] = 3 if rest.startswith("HANGUL") else _KANA
            elif first in ("MICRO", "FEMININE", "MASCULINE"):
                table[point] = 0
    table[0x30FC] = table[0xFF70] = 0  # the long mark also stands for a dash
    return table


_URL = re.compile(r"https?://\S+|www\.\S+|\S+@\S+")


def _closer(text: str, script: str) -> str:
    """The language of a text whose script several share; the script when the text is short."""
    head = " ".join(_URL.sub(" ", text[: 4 * _JUDGED_CHARS]).split())[:_JUDGED_CHARS]
    if sum(map(str.isalpha, head)) < _MIN_LETTERS:
        return script
    language: str = _identifier(script).classify(head)[0]
    return language


@cache
def _identifier(script: str) -> Any:
    """py3langid's classifier for the languages of one script; half a second to load."""
    langid = import_module("py3langid.langid")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    identifier.set_languages(SHARING[script])
    return identifier
