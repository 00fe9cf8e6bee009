"""Text that came through wrong hands: mojibake, controls, invisible characters, line ends.

Quotes, ligatures, HTML entities, full-width forms and the choice of words are the author's and
stay. Repairing what is repaired changes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import NamedTuple

from chatbench.corpus.document import Counts, Document, Dropped
from chatbench.errors import UsageError

MOJIBAKE, CONTROL, INVISIBLE = "mojibake", "control characters", "invisible characters"
LINE_ENDS, COMPOSITION, SPACE = "line ends", "composition", "white space"

_ASCII_CONTROLS = bytes(c for c in range(128) if (c < 32 and c not in b"\n\t") or c == 127)
_SPACES = " \t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000"
_STRIPPED = " \t\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u202f\u205f\u3000"
_HIDDEN = "\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffc"
_JOINERS = "\u200c\u200d"
_TAGS = "\U000e0000-\U000e007f"
# Form feed and vertical tab end a line in UAX 14; without that, two pages' words would grow
# together.
_LINE_END = re.compile("[\v\f\x85\u2028\u2029]|\r\n?")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f-\x9f]|\x1b(?:\\[[0-9;:?]*[@-~])?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BLANK_LINES = re.compile(r"(\A|\n)\n{3,}")
_PICTOGRAPH = (
    "\xa9\xae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25a0-\u27bf\u2934\u2935"
    "\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
# Scripts in which the two joiners choose the shape of a letter: Arabic, Hebrew's neighbours,
# the scripts of India, Sri Lanka, Tibet, Burma, Cambodia, Mongolia and their extensions.
_JOINING = (
    "\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\u1b00-\u1b7f\ua840-\ua8ff"
    "\ufb50-\ufdff\ufe70-\ufefc\U00010a00-\U00010aff\U00011000-\U000119ff\U0001e900-\U0001e95f"
)
_FLAG = "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"
_HIDING = re.compile(f"[{_HIDDEN}]+")
_JOINED_OR_TAGGED = re.compile(
    f"(?P<flag>{_FLAG})|[{_TAGS}]"
    f"|(?<![{_JOINING}])\u200c"
    f"|(?<![{_JOINING}{_PICTOGRAPH}\ufe0f])\u200d"
    f"|(?<=[{_PICTOGRAPH}\ufe0f])\u200d(?![{_PICTOGRAPH}])"
)
# One class of characters alone is searched ten times faster than the patterns above.
_ANY_LINE_END = re.compile("[\r\v\f\x85\u2028\u2029]")
_ANY_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_ANY_JOINER_OR_TAG = re.compile(f"[{_JOINERS}{_TAGS}]")
_ANYTHING_ODD = re.compile(
    f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029{_HIDDEN}{_JOINERS}{_TAGS}\ud800-\udfff]"
)
_TRAILING = re.compile(f"\n(?<=[{_SPACES}]\n)")


def ready() -> None:
    """Raise UsageError when the package that finds mojibake is absent."""
    if find_spec("ftfy") is None:
        raise UsageError("repairing text needs ftfy", hint="pip install ftfy, or give --no-repair")


def repair(documents: Sequence[Document]) -> tuple[list[Document | Dropped], Counts]:
    """Each document with its texts mended, and how many documents had which kind of fault.

    Kinds: "mojibake" (also surrogates), "control characters", "invisible characters", "line
    ends", "composition" (not NFC), "white space". Nothing is dropped. Raises UsageError without
    ftfy, as `ready` does.
    """
    counts: Counts = Counter()
    done: list[Document | Dropped] = []
    for document in documents:
        if all(map(_is_clean, _all_texts(document))):
            done.append(document)
            continue
        found: set[str] = set()
        done.append(document.mapped(partial(_mended, found=found)))
        counts.update(sorted(found))
    return done, counts


def mended(text: str) -> tuple[str, list[str]]:
    """The text as `repair` leaves it, and the sorted kinds of what was wrong."""
    found: set[str] = set()
    return _mended(text, found), sorted(found)


def _all_texts(document: Document) -> list[str]:
    if document.messages is None:
        return [document.text or ""]
    return [m.content for m in (*document.messages, *(document.rejected or ()))]


def _is_clean(text: str) -> bool:
    """Whether no step would change the text; most text is, so this is the path that counts."""
    if "\n\n\n" in text and _BLANK_LINES.search(text):
        return False
    if text.isascii():
        # Deleting characters from bytes is five times faster than searching for a class of them.
        return not (
            text[-1:] in (" ", "\t")
            or _TRAILING.search(text)
            or len(text.encode().translate(None, _ASCII_CONTROLS)) != len(text)
        )
    return not (
        text[-1:] in _STRIPPED
        or _ANYTHING_ODD.search(text)
        or _TRAILING.search(text)
        or _too_many_marks(text)
        or not unicodedata.is_normalized("NFC", text)
        or _mojibake_finder().suspects(text)
    )


def _mended(text: str, found: set[str]) -> str:
    """Every step in turn until none changes anything: what one step removes can be what kept
    the next from seeing a fault."""
    for _ in range(_MOST_ROUNDS):
        before = text
        for step, kind in _STEPS:
            changed = step(text)
            if changed != text:
                found.add(kind)
                text = changed
        if text == before or _is_clean(text):
            break
    return text


def _join_surrogates(text: str) -> str:
    """Pairs become the character they stand for; what is left alone goes."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")


def _fix_mojibake(text: str) -> str:
    return text if text.isascii() else _mojibake_finder().fixed(text)


def _end_lines(text: str) -> str:
    return _LINE_END.sub("\n", text) if _ANY_LINE_END.search(text) else text


def _drop_controls(text: str) -> str:
    return _CONTROL.sub("", text) if _ANY_CONTROL.search(text) else text


def _drop_invisible(text: str) -> str:
    if text.isascii():
        return text
    text = _HIDING.sub("", text)
    if _ANY_JOINER_OR_TAG.search(text):
        text = _JOINED_OR_TAGGED.sub(lambda m: m["flag"] or "", text)
    return text


def _compose(text: str) -> str:
    if text.isascii():
        return text
    if _too_many_marks(text):
        text = _stacked_marks()[1].sub(r"\1", text)
    return unicodedata.normalize("NFC", text)


def _too_many_marks(text: str) -> bool:
    coarse, exact = _stacked_marks()
    return coarse.search(text) is not None and exact.search(text) is not None


@cache
def _stacked_marks() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """More than 30 combining marks on one letter: no language needs them (UAX 15, Stream-Safe
    Text), and normalising takes quadratic time in their number. The first pattern is quick, as
    it takes everything beyond U+FFFF for marks."""
    marks = [c for c in range(0x300, 0x1F000) if unicodedata.combining(chr(c))]
    starts = [c for c in marks if not unicodedata.combining(chr(c - 1))]
    ends = [c for c in marks if not unicodedata.combining(chr(c + 1))]
    ranges = [f"{chr(a)}-{chr(b)}" for a, b in zip(starts, ends, strict=True)]
    exact, low = "".join(ranges), "".join(r for r in ranges if r[0] <= "\uffff")
    return (
        re.compile(f"[{low}\U00010000-\U0001efff]{{31}}"),
        re.compile(f"([{exact}]{{30}})[{exact}]+"),
    )


def _trim(text: str) -> str:
    """Without spaces at the ends of lines; a pattern for them would take quadratic time."""
    if text[-1:] in _STRIPPED or _TRAILING.search(text):
        text = "\n".join(line.rstrip(_STRIPPED) for line in text.split("\n"))
    return _BLANK_LINES.sub(r"\1\n\n", text) if "\n\n\n" in text else text


_STEPS: tuple[tuple[Callable[[str], str], str], ...] = (
    (_join_surrogates, MOJIBAKE),
    (_fix_mojibake, MOJIBAKE),
    (_end_lines, LINE_ENDS),
    (_drop_controls, CONTROL),
    (_drop_invisible, INVISIBLE),
    (_compose, COMPOSITION),
    (_trim, SPACE),
)


# Two or three are common; a bound, in case two steps should ever undo each other.
_MOST_ROUNDS = 50
# No rule of ftfy.badness spans more characters than this.
_REACH = 8


class _MojibakeFinder(NamedTuple):
    """Looks at single lines, so that a fault in one does not touch the next, and lets ftfy judge
    only those lines that hold a pair of characters its rules could ever match."""

    rare: re.Pattern[str]
    pair: re.Pattern[str]
    is_bad: Callable[[str], bool]
    fix: Callable[[str], str]

    def suspects(self, text: str) -> bool:
        return self.rare.search(text) is not None and self.fixed(text) != text

    def fixed(self, text: str) -> str:
        if not self.rare.search(text):
            return text
        pieces, done, place = [], 0, 0
        while found := self.pair.search(text, place):
            place = found.end()
            start = text.rfind("\n", 0, found.start()) + 1
            around = text[max(start, found.start() - _REACH) : place + _REACH]
            if "\x85" not in around and not self.is_bad(around):
                continue
            place = text.find("\n", found.start()) + 1 or len(text)
            line = text[start:place]
            # U+0085 alone is a line end; among mojibake it is Windows' ellipsis.
            if self.is_bad(line.replace("\x85", "")):
                pieces += [text[done:start], self.fix(line)]
                done = place
        return "".join([*pieces, text[done:]])


@cache
def _mojibake_finder() -> _MojibakeFinder:
    """Raises UsageError without ftfy.

    Every rule of ftfy.badness asks for a C1 control, for one of four letters, for two neighbours
    beyond ASCII of which one is of a rare category, or for Greek or Cyrillic capitals around a
    sign: `rare` and `pair` are that condition, and cost a twentieth of the rules.
    """
    ready()
    import ftfy
    from ftfy.badness import MOJIBAKE_CATEGORIES as kinds
    from ftfy.badness import is_bad

    categories = (
        "c1", "bad", "law", "currency", "numeric", "upper_accented", "lower_accented", "box",
    )  # fmt: skip
    rare = "".join(kinds[name] for name in categories) + "ŒœÂÃàâÄ×√≈°"
    capitals = "ВГРСΒΓΞΟ"
    config = ftfy.TextFixerConfig(explain=False)
    return _MojibakeFinder(
        re.compile(f"[{rare}Ђ{capitals}]"),
        re.compile(
            f"[^\x00-\x7f](?:(?<=[{rare}])[^\x00-\x7f]|[{rare}Ђ]|(?<=[\x80-\x9fŒœÂÃ])"
            f"|(?<=[{capitals}])[^\x00-\x7f][{capitals}])"
        ),
        is_bad,
        lambda line: ftfy.fix_encoding(line, config),
    )
