"""Which texts are worth learning from: the published rules of Gopher, C4 and FineWeb, and what
they become where a character is a word."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import inf
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from chatbench.corpus.cleaning import grams
from chatbench.corpus.cleaning.language import languages
from chatbench.corpus.document import Counts, Document, Dropped

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class Rule(NamedTuple):
    """A document passes while `low` <= measure <= `high`; `dense` are the bounds for Chinese,
    Japanese and Korean. `prose` rules do not look at conversations."""

    reason: str
    measure: str
    low: float
    high: float
    dense: tuple[float, float]
    prose: bool
    source: str


# Gopher: Rae et al. 2021, sections A1.1 and table A1. C4: Raffel et al. 2020, section 2.2.
# FineWeb: Penedo et al. 2024, section 3.6. A bound that must be passed strictly is written a hair
# beyond the last value that passes.
#
# Left out: C4's brackets and "javascript" anywhere in a page (they reject all texts about
# programs), its word list (the user's own is --block), its end mark for every line (FineWeb shows
# that it costs more than it brings).
#
# Dense bounds: an English word is 1.6 Chinese characters (measured on parallel text), so 50 words
# are 80 characters, 30 letters 10, and n-grams of n words 1.6 n characters. Where English ends a
# sentence Chinese often has a comma: in abstracts of 200 characters one sentence is common.
_ABOVE = 1e-9
_SAME = (-inf, inf)
RULES = (
    Rule("too few words", "words", 50, inf, (80, inf), True, "Gopher"),
    Rule("too many words", "words", 0, 100_000, (0, 160_000), True, "Gopher"),
    # Dense: characters between two marks or spaces; real sets have 4 to 16, word lists 2 or 3.
    Rule("odd word length", "word length", 3, 10, (3, 40), True, "Gopher"),
    Rule("many symbols", "symbols", 0, 0.1, (0, 0.06), False, "Gopher"),
    Rule("bullet lines", "bullets", 0, 0.9, (0, 0.9), True, "Gopher"),
    Rule("ellipsis lines", "ellipses", 0, 0.3, (0, 0.3), True, "Gopher"),
    Rule("few letters", "letters", 0.8, 1, (0.8, 1), False, "Gopher"),
    Rule("few stop words", "stop words", 2, inf, (2, inf), True, "Gopher"),
    Rule("placeholder text", "placeholders", 0, 0, (0, 0), True, "C4"),
    Rule("notices", "notices", 0, 0.2, (0, 0.2), True, "C4, which cuts such lines"),
    Rule("too few sentences", "sentences", 3, inf, (1, inf), True, "C4"),
    Rule("few line ends", "line ends", 0.12 + _ABOVE, 1, (0.12 + _ABOVE, 1), True, "FineWeb"),
    Rule("short lines", "short lines", 0, 0.67 - _ABOVE, (0, 0.67 - _ABOVE), True, "FineWeb"),
    Rule("repeated lines", "line repeats", 0, 0.3, (0, 0.3), True, "Gopher"),
    Rule("repeated lines", "line repeat chars", 0, 0.1 - _ABOVE, (0, 0.1 - _ABOVE), True,
         "FineWeb; Gopher has 0.2"),
    Rule("repeated paragraphs", "paragraph repeats", 0, 0.3, (0, 0.3), True, "Gopher"),
    Rule("repeated paragraphs", "paragraph repeat chars", 0, 0.2, (0, 0.2), True, "Gopher"),
    *(Rule("one repeated phrase", f"top {n}-gram", 0, share, (0, share), False, "Gopher")
      for n, share in ((2, 0.20), (3, 0.18), (4, 0.16))),
    *(Rule("repeated phrases", f"repeated {n}-grams", 0, share, (0, share), False, "Gopher")
      for n, share in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))),
)  # fmt: skip
_CHARS_PER_WORD = 1.6
_SHORT_LINE, _SHORT_DENSE_LINE = 30, 10
_PLACE_BITS = 24
_LEAST_REPEATS = 0.10  # no repeated n-gram rule asks for less
_DENSE = ("zh", "ja", "ko")
_SPACED = ("latin", "cyrillic", "el", "ar", "he", "hi")

# Gopher's eight, then the commonest of other languages in Latin letters; two letters at least, so
# that letters struck at random seldom hold them.
_LATIN_STOPS = (
    "the be to of and that have with der die und ist nicht das ein zu les des est une que dans "
    "pour et los las del por una con es el di che il per non della um não para uma os do het een "
    "van dat niet och att det som en jest nie się na bir bu ve için yang dan untuk dengan không "
    "của là và je og ikke ei ja on se az egy hogy și nu este"
)
# The commonest characters of Chinese, simplified, traditional and classical.
_CHINESE_STOPS = "的一是不了在有和人这這个個我他也就与與为為之其以而"
_BULLETS = "•‣▪▫●○◦■□◆–*-·►▶※★→"
_CLOSERS = "\"'”’」』）)]》»*_ "
_ENDS = ".!?…。！？．"
_CODE_BLOCK = re.compile("^(```|~~~).*?^\\1", re.MULTILINE | re.DOTALL)
_PLACEHOLDERS = ("lorem ipsum", "占位文字", "此处填写内容", "這裡是文字內容")
_NOTICE = re.compile(
    "(?:enable|activate|requires?|without|turn on) javascript|javascript (?:is|to be|enabled|must)"
    "|uses? (?:of )?cookies|cookie policy|privacy policy|terms of (?:use|service)"
    "|(?:启用|开启|打开|禁用|啟用|開啟|停用)[^\n]{0,8}javascript|不支持[^\n]{0,6}(?:javascript|脚本)"
    "|使用[^\n]{0,4}cookies?|隐私(?:政策|条款)|隱私權?政策|用户协议|服务条款|服務條款|版权所有|版權所有"
)
_NOTICE_SIGNS = (
    "javascript", "cookie", "privacy", "terms of", "脚本", "隐私", "隱私", "协议", "条款", "條款",
    "版权", "版權",
)  # fmt: skip
_WRAPPED = 40  # mean length from which lines that end without a mark are lines of wrapped prose


def quality(documents: Sequence[Document]) -> tuple[list[Document | Dropped], Counts]:
    """Documents that keep to RULES; the others as Dropped("quality: " + the first rule broken).

    Conversations are judged by their joined contents, by the rules that are not about the shape
    of prose, and only from the size on that prose must have. The counts are by reason.
    """
    texts = [document.joined() for document in documents]
    verdicts = broken_rules(texts, [document.messages is None for document in documents])
    counts: Counts = Counter(reason for reason in verdicts if reason)
    done: list[Document | Dropped] = [
        document if reason is None else Dropped(reason)
        for document, reason in zip(documents, verdicts, strict=True)
    ]
    return done, counts


def broken_rules(texts: Sequence[str], prose: Sequence[bool]) -> list[str | None]:
    """For each text the reason of the first rule it breaks, or None; `prose` is False for a
    conversation. Fenced code blocks are not looked at."""
    bare = [_without_code(text.lower()) for text in texts]
    codes = languages(bare)
    verdicts: list[str | None] = [None] * len(texts)
    for dense in (False, True):
        chosen = [n for n, code in enumerate(codes) if (code.split("+")[0] in _DENSE) == dense]
        if not chosen:
            continue
        found = measures([bare[n] for n in chosen], [codes[n] for n in chosen], dense)
        is_prose = np.array([prose[n] for n in chosen])
        for n, reason in zip(chosen, _verdicts(found, is_prose, dense), strict=True):
            verdicts[n] = reason
    return verdicts


def _verdicts(found: dict[str, Floats], prose: Bools, dense: bool) -> list[str | None]:
    large = found["words"] >= (RULES[0].dense[0] if dense else RULES[0].low)
    first = np.full(len(prose), -1)
    for number, rule in enumerate(RULES):
        low, high = rule.dense if dense else (rule.low, rule.high)
        value = found[rule.measure]
        broken = ((value < low) | (value > high)) & (prose | (large & (not rule.prose)))
        first[broken & (first < 0)] = number
    return [None if n < 0 else f"quality: {RULES[n].reason}" for n in first.tolist()]


def _without_code(text: str) -> str:
    return _CODE_BLOCK.sub("", text) if "```" in text or "~~~" in text else text


def measures(texts: Sequence[str], codes: Sequence[str], dense: bool) -> dict[str, Floats]:
    """Every measure of RULES for lower-cased texts; arrays of one float for each text.

    `codes` are their languages; `dense` says that all are, or none is, in a script where a
    character is a word. A measure that does not apply to a text has a value that passes.
    """
    words = grams.words(texts)
    shape = _Characters(texts, words.starts)
    count = np.diff(words.starts).astype(float)
    several = np.maximum(count, 1)
    found = {
        "words": count,
        "symbols": np.array([_symbols(text) for text in texts]) / several,
        "sentences": shape.sentences,
        "letters": shape.lettered_words,
        "placeholders": np.array([any(p in t for p in _PLACEHOLDERS) for t in texts], float),
        "stop words": _stop_words(words, codes),
    }
    plain = np.array([code in (_DENSE if dense else _SPACED) for code in codes])
    length = shape.segment_length if dense else shape.word_length
    found["word length"] = np.where(plain, length, 5.0)
    lines = [_line_measures(text, dense) for text in texts]
    found.update({name: np.array([row[name] for row in lines]) for name in lines[0]})
    found.update(_repeats(texts, words, shape.lengths, dense))
    return found


def _symbols(text: str) -> int:
    """Hash signs and ellipses; a Chinese ellipsis is two characters."""
    dots = text.count("…") - text.count("……")
    return text.count("#") + dots + text.count("...")


class _Characters:
    """Measures that are sums over characters, for a whole batch at once. `lengths` are those of
    the words that grams.words hashes."""

    def __init__(self, texts: Sequence[str], starts: grams.Offsets) -> None:
        joined = "\n".join(texts) + "\n"
        points = np.frombuffer(joined.encode("utf-32-le", errors="surrogatepass"), np.uint32)
        ends = np.cumsum(np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts)))
        borders = np.concatenate([[0], ends])
        kind = grams._kinds()[points]  # not a table of our own: the words must be the same
        sort = _sorts()[points]
        change = np.flatnonzero(
            np.concatenate([[True], (kind[1:] != kind[:-1]) | (kind[1:] == _SINGLE)])
        )
        is_word = kind[change] > 0
        self.lengths = np.diff(np.append(change, len(points)))[is_word]
        letters = np.concatenate([[0], np.cumsum(sort == _LETTER)])
        ends_of = np.append(change[1:], len(points))
        lettered = (letters[ends_of] > letters[change])[is_word]
        count = np.maximum(np.diff(starts), 1)
        self.lettered_words = _sums(lettered, starts) / count
        chars = np.diff(np.concatenate([[0], np.cumsum(self.lengths)])[starts]).astype(float)
        self.word_length = chars / count
        inside = kind > 0
        segments = _sums(inside[:-1] & ~inside[1:], np.minimum(borders, len(points) - 1))
        self.segment_length = chars / np.maximum(segments, 1)
        self.sentences = _sums(_sentence_ends(sort, kind), np.minimum(borders, len(points) - 1))


_SINGLE = 2  # grams' kind of a character that is a word
_PLAIN, _LETTER, _SPACE, _MARK, _WIDE_MARK, _CLOSER = range(6)


def _sums(flags: Bools, starts: npt.NDArray[np.int64]) -> Floats:
    """How many are set from each start to the next."""
    return np.diff(np.concatenate([[0], np.cumsum(flags)])[starts]).astype(float)


def _sentence_ends(sort: npt.NDArray[np.uint8], kind: npt.NDArray[np.uint8]) -> Bools:
    """Whether a sentence ends at each character but the last: at 。！？… always, at .!? before
    white space or a closing quote or after a Chinese character; a run of marks ends one."""
    mark, wide = sort == _MARK, sort == _WIDE_MARK
    after = (sort[1:] == _SPACE) | (sort[1:] == _CLOSER)
    before = np.concatenate([[False], kind[:-1] == _SINGLE])[:-1]
    ends: Bools = (mark[:-1] & (after | before)) | (wide[:-1] & ~wide[1:])
    return ends


@cache
def _sorts() -> npt.NDArray[np.uint8]:
    table = np.zeros(0x110000, np.uint8)
    table[[c for c in range(0x32000) if unicodedata.category(chr(c))[0] == "L"]] = _LETTER
    table[[c for c in range(0x3001) if chr(c).isspace()]] = _SPACE
    for characters, sort in ((".!?", _MARK), ("。！？…．", _WIDE_MARK), ("\"'”’)]", _CLOSER)):
        table[[ord(c) for c in characters]] = sort
    return table


def _stop_words(words: grams.Grams, codes: Sequence[str]) -> Floats:
    """How many different stop words each text holds; without bound where we have no list."""
    stops = _stop_hashes()
    place = np.minimum(np.searchsorted(stops, words.hashes), len(stops) - 1)
    hit = stops[place] == words.hashes
    seen = np.zeros((len(codes), len(stops)), bool)
    seen[words.owner()[hit], place[hit]] = True
    known = np.array([bool({"zh", "latin"} & set(code.split("+"))) for code in codes])
    return np.where(known, seen.sum(axis=1).astype(float), inf)


@cache
def _stop_hashes() -> grams.Hashes:
    return np.unique(grams.words([_LATIN_STOPS, _CHINESE_STOPS]).hashes)


def _line_measures(text: str, dense: bool) -> dict[str, float]:
    """Shares of lines, and of characters in lines or paragraphs that came before."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    blocks = [block for block in map(str.strip, text.split("\n\n")) if block]
    total, chars = max(len(lines), 1), max(sum(map(len, lines)), 1)
    open_lines = [line for line in lines if not _ends_well(line)]
    line_ends = 1 - len(open_lines) / total
    units, width = lines, _WRAPPED / _CHARS_PER_WORD if dense else _WRAPPED
    if open_lines and sum(map(len, open_lines)) >= width * len(open_lines):
        units = blocks
        line_ends = max(line_ends, sum(map(_ends_well, blocks)) / max(len(blocks), 1))
    short = _SHORT_DENSE_LINE if dense else _SHORT_LINE
    notices = 0
    if any(sign in text for sign in _NOTICE_SIGNS):
        notices = sum(len(line) for line in lines if _NOTICE.search(line))
    return {
        "bullets": sum(line[0] in _BULLETS for line in lines) / total,
        "ellipses": sum(line.endswith(("...", "…")) for line in lines) / total,
        "notices": notices / chars,
        "line ends": line_ends,
        "short lines": sum(len(unit) < short for unit in units) / max(len(units), 1),
        **_seen_before("line", lines),
        **_seen_before("paragraph", blocks),
    }


def _ends_well(line: str) -> bool:
    return line.rstrip(_CLOSERS)[-1:] in _ENDS if line[-1] in _CLOSERS else line[-1] in _ENDS


def _seen_before(name: str, parts: list[str]) -> dict[str, float]:
    """Share of the parts, and of their characters, that repeat an earlier part."""
    total = max(sum(map(len, parts)), 1)
    extra = len(parts) - len(set(parts))
    chars = 0
    if extra:
        chars = sum(len(part) * (count - 1) for part, count in Counter(parts).items())
    return {f"{name} repeats": extra / max(len(parts), 1), f"{name} repeat chars": chars / total}


def _repeats(
    texts: Sequence[str], words: grams.Grams, lengths: npt.NDArray[np.int64], dense: bool
) -> dict[str, Floats]:
    """Shares of the characters of words in the commonest n-gram, and in n-grams seen before."""
    sums = np.concatenate([[0], np.cumsum(lengths)])
    chars = np.maximum(np.diff(sums[words.starts]), 1).astype(float)
    found = {f"top {n}-gram": _top_share(words, sums, _size(n, dense)) / chars for n in (2, 3, 4)}
    found["repeated 5-grams"] = share = _repeated(words, sums, _size(5, dense)) / chars
    # A longer n-gram repeats only where a shorter one does: most texts need no further look.
    rest = np.flatnonzero(share >= _LEAST_REPEATS)
    few = grams.words([texts[n] for n in rest.tolist()]) if len(rest) else None
    owned = np.isin(words.owner(), rest)
    few_sums = np.concatenate([[0], np.cumsum(lengths[owned])])
    for n in range(6, 11):
        found[f"repeated {n}-grams"] = np.zeros(len(texts))
        if few is not None:
            longer = _repeated(few, few_sums, _size(n, dense)) / chars[rest]
            found[f"repeated {n}-grams"][rest] = longer
    return found


def _size(n: int, dense: bool) -> int:
    return round(n * _CHARS_PER_WORD) if dense else n


class _Groups(NamedTuple):
    """Equal n-grams of one document side by side, in order of place: `first` says where a group
    begins, `position` is each n-gram's first word, `owner` its document."""

    first: Bools
    position: npt.NDArray[np.int64]
    owner: npt.NDArray[np.int64]


def _groups(words: grams.Grams, n: int) -> _Groups:
    found = grams.ngrams(words, n)
    total = len(found.hashes)
    # Sorting plain numbers is several times faster than sorting an index: 40 bits of the hash,
    # then the place. Which bits are taken must not depend on the other texts of the batch.
    bits = np.uint64(max(_PLACE_BITS, total.bit_length()))
    low = (np.uint64(1) << bits) - np.uint64(1)
    packed = np.sort((found.hashes & ~low) | np.arange(total, dtype=np.uint64))
    order = (packed & low).astype(np.int64)
    owner = found.owner()
    position = (np.arange(total) + (words.starts[:-1] - found.starts[:-1])[owner])[order]
    owner = owner[order]
    key = packed >> bits
    first = np.concatenate([[True], (key[1:] != key[:-1]) | (owner[1:] != owner[:-1])])[:total]
    return _Groups(first, position, owner)


def _top_share(words: grams.Grams, sums: npt.NDArray[np.int64], n: int) -> Floats:
    """Characters in all places of the n-gram that holds most, where it stands at least twice."""
    groups = _groups(words, n)
    top = np.zeros(len(words.starts) - 1)
    begins = np.flatnonzero(groups.first)
    counts = np.diff(np.append(begins, len(groups.owner)))
    begins, counts = begins[counts > 1], counts[counts > 1]
    where = groups.position[begins]
    np.maximum.at(top, groups.owner[begins], counts * (sums[where + n] - sums[where]))
    return top


def _repeated(words: grams.Grams, sums: npt.NDArray[np.int64], n: int) -> Floats:
    """Characters of words in n-grams that stood earlier in the document, each counted once."""
    groups = _groups(words, n)
    again = groups.position[~groups.first]
    change = np.zeros(len(words.hashes) + 1, np.int64)
    change[again] += 1  # no place stands twice in `again`
    change[again + n] -= 1
    covered = np.cumsum(change)[:-1] > 0
    kept = np.concatenate([[0], np.cumsum(np.diff(sums) * covered)])
    return np.diff(kept[words.starts]).astype(float)
