"""Telephone numbers: candidates by shape and by the words before, checked by `phonenumbers`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from chatbench.corpus.cleaning.pii.found import Found, is_word

_S = "[- \xa0－–‐]"
_STARTS = re.compile(r"[(（]?[+＋]?[(（]?[0-9]+")
_INTERNATIONAL = re.compile(
    r"(?P<open>[(（])?(?:[+＋][ ]?|00(?=[1-9]))[(（]?"
    r"[0-9](?:[ \xa0.\-－–‐()（）/]{0,3}+[0-9]){6,16}"
)
# National shapes that are told without a word before them, and the regions whose numbers look so.
_SHAPES = {
    "CN": rf"1[3-9][0-9](?:(?P<m>{_S})|)[0-9]{{4}}(?(m)(?P=m))[0-9]{{4}}"
          rf"|86{_S}?1[3-9][0-9]{_S}?[0-9]{{4}}{_S}?[0-9]{{4}}"
          rf"|(?:[(（]0(?:10|2[0-9]|[3-9][0-9]{{2}})[)）]{_S}?|0(?:10|2[0-9]|[3-9][0-9]{{2}}){_S})"
          rf"[2-9][0-9]{{2,3}}{_S}?[0-9]{{4}}(?P<ext>(?:-|转|轉)[0-9]{{2,5}}(?![0-9]))?"
          r"|[48]00(?:[-－ ][0-9]{3}[-－ ][0-9]{4}|[-－](?:[0-9]{4}[-－ ][0-9]{3}|[0-9]{7}))",
    "US": r"(?:1[-. ])?(?:\([2-9][0-9]{2}\)[ -]{0,2}|[2-9][0-9]{2}[-./])[2-9][0-9]{2}[-.][0-9]{4}",
    "FR": r"0[1-9](?P<f>[ .-])[0-9]{2}(?P=f)[0-9]{2}(?P=f)[0-9]{2}(?P=f)[0-9]{2}",
    "GB": r"\(?0[0-9]{2,4}\)?[ -][0-9]{3,6}(?:[ -][0-9]{3,4})?",
    "JP": r"\(?0[0-9]{1,3}[-)][0-9]{2,4}-[0-9]{4}",
    "TW": r"\(?0[0-9]{1,2}[-)] ?[0-9]{3,4}-[0-9]{4}|09[0-9]{2}-[0-9]{3}-?[0-9]{3}",
    "AU": r"04[0-9]{2} [0-9]{3} [0-9]{3}|\(0[2378]\) [0-9]{4} [0-9]{4}",
    "DE": r"\(?0[1-9][0-9]{1,3}(?:[/-]|\)? )[0-9]{5,8}",
}  # fmt: skip
_NATIONAL = [(region, re.compile(shape)) for region, shape in _SHAPES.items()]
_ANY = re.compile(r"[(（]?[0-9](?:[ \xa0.\-－–‐()（）/]{0,3}+[0-9]){6,13}")
_GROUPS = re.compile(r"[0-9]+")
_IN_A_CELL = re.compile(r"[2-9][0-9]{2} [2-9][0-9]{2} [0-9]{4}")
_CELL_BORDERS = frozenset("\n\t|,;\"'*[]<>“”【】")
_NOT_DIGIT = re.compile(r"[^0-9]")
# Days, spans of years, amounts in thousands.
_DATE = re.compile(
    r"(?:18|19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:[0-2][0-9]|3[01])"
    r"|(?:[0-3]?[0-9][-./ ]){2}(?:18|19|20)[0-9]{2}"
    r"|(?:18|19|20)[0-9]{2}(?:[-./ ][0-3]?[0-9]){2}.*"
    r"|(?:1[5-9]|20)[0-9]{2} ?[-–/] ?(?:1[5-9]|20)[0-9]{2}"
    r"|[0-9]{1,3}(?:[ .][0-9]{3}){2,5}"
)

# Words that announce a telephone number, strongly or weakly, and words right before other numbers.
_STRONG = re.compile(
    r"(?<![a-z])(?:tel|telephone|phones?|mobile|mob|cell|cellphone|fax|whatsapp|sms|hotline|"
    r"landline|handy|telegram|wechat|my number|number at)(?![a-z])"
    r"|电话|電話|手机|手機|微信|热线|熱線|传真|傳真|座机|座機|联系方式|短信|致电|拨打|撥打|总机"
)
_WEAK = re.compile(
    r"(?<![a-z])(?:call|calling|ring|(?<![\"'])text|dial|contact|reach|reached|number is)(?![a-z])"
    r"|联系|聯絡|号码|號碼|客服|来电"
)
_NEVER = re.compile(
    r"(?:(?<![a-z])(?:orders?|invoice|tracking|ticket|ref|reference|account|is[bs]n|patent|sku|serial|"
    r"model|version|bug|population|area|timestamp|ts|id|item|doi|arxiv|part|pp|pages?|zip|pnr|flight|"
    r"imei|commit|parcel)|订单|訂單|单号|單號|编号|編號|发票|货号|型号|备案?|备|群号|qq|代码|邮编|账号|"
    r"帐号|帳號|卡号|工号|学号|流水|坐标|人口|身份证|序列)"
    r"(?:[ _-]?(?:number|no\.?|num|id|is|was|of|号码?|號碼?))*[\s\"':：#=.是为為]{0,4}\Z"
)
_LOCAL = re.compile(
    r"[2-9][0-9]{6,7}(?:-[0-9]{2,4})?|[2-9][0-9]{2}[-. ][0-9]{4}|[2-9][0-9]{3}[- ][0-9]{4}"
)
_LONG = re.compile(r"(?=(?:[^0-9]*[0-9]){9,12}\Z)[0-9]{1,4}(?:[ .-][0-9]{2,8}){2,4}")
_AFTER = re.compile(
    r"\s{0,2}[(（\[]\s?(?:微信|手机|电话|同号|cell|mobile|phone|fax|tel|home|work|office)",
    re.IGNORECASE,
)
_BETWEEN = re.compile(r" {1,2}| ?(?:[/、,，;；或和&]|or|and) ?")
_EXTENSION = re.compile(r"[ ]?(?:x|ext)", re.IGNORECASE)
_APART = re.compile(r"[0-9]{2}|[。！？]")
_BEFORE = 28
# What every number needs that stands alone, and words: so that tables of numbers cost little.
_LIKELY = re.compile(
    r"[(（+＋0]|1[3-9][0-9]|1[-. ][(2-9]|86|[2-9][0-9]{2}[-./ ][2-9][0-9]{2}[-. ]|[48]00[-－ ]"
)
_WORD = re.compile(r"[^\x00-@\[-`{-\xbf，；：（）。、－–]")
_AFTER_RUN = re.compile(r"\s{0,2}[(（\[]")


def phones(text: str, runs: Sequence[tuple[int, int]]) -> Iterator[Found]:
    """International numbers that are valid anywhere; national ones in the shapes of a dozen
    regions; digits without separators only after a word such as phone or 电话, except Chinese
    mobiles. What stands behind a word for orders, tickets, accounts and the like is none."""
    listed = -1
    for run_start, run_end in runs:
        place = run_start
        while place > 0 and run_start - place < 2 and text[place - 1] in "(（+＋":
            place -= 1
        while start := _STARTS.search(text, place, run_end):
            after_phone = listed >= 0 and start.start() - listed < 6
            follows = after_phone and _BETWEEN.fullmatch(text, listed, start.start()) is not None
            found = _phone_at(text, start.start(), run_end, follows)
            place = start.end()
            if found is not None:
                yield found
                listed = place = found.end


def _phone_at(text: str, start: int, run_end: int, follows: bool) -> Found | None:
    """The number whose first sign stands at `start`. `follows`: another one stands just before."""
    digit = start
    while text[digit] not in "0123456789":
        digit += 1
    before = text[max(0, start - _BEFORE) : start].lower()
    told = follows or _WORD.search(before) is not None
    if not (told or _LIKELY.match(text, start) or _AFTER_RUN.match(text, run_end)):
        return None
    firsts = [
        first
        for first in dict.fromkeys((start, min(start + 1, digit), digit))
        if follows or _is_clear_before(text, first, before)
    ]
    for first in firsts:
        end = _international(text, first, run_end, before, follows)
        if end:
            return Found("phone", first, end)
    if text[digit - 1 : digit] in ("+", "＋") or not firsts or _NEVER.search(before):
        return None
    for first in firsts:
        end = _national(text, first) or _announced(text, first, run_end, before, follows)
        if end and (first == digit or any(sign in text[first:end] for sign in ")）")):
            return Found("phone", first, end)
    return None


def _is_clear_before(text: str, start: int, before: str) -> bool:
    """Whether the number begins here rather than goes on: no letter, digit, amount, code before."""
    if start == 0:
        return True
    previous = text[start - 1]
    joined = previous in "-./_" and is_word(text, start - 2)
    if previous in "$￥¥€£#%" or (
        previous == "-" and text[start - 2 : start - 1] in (" ", "=", "(")
    ):
        return False
    if text[start] in "+＋" and previous in "-./":
        return True
    if is_word(text, start - 1) or joined:
        words = list(_STRONG.finditer(before))
        return bool(words) and words[-1].end() >= len(before.rstrip("-./_"))
    return True


def _is_clear_after(text: str, end: int) -> bool:
    if is_word(text, end):
        return _EXTENSION.match(text, end) is not None
    following = text[end : end + 2]
    return not (
        following[:1] in ("%", "°") or (following[:1] in ("-", ".") and following[1:].isdigit())
    )


def _international(text: str, start: int, run_end: int, before: str, follows: bool) -> int:
    """The end of a number with its country code at `start`, or 0. Behind a word for telephones
    the number need not be one that is in use, if its sign is +."""
    if text[start] not in "+＋0(（":
        return 0
    match = _INTERNATIONAL.match(text, start, run_end)
    if match is None or (match["open"] and not any(sign in match[0] for sign in ")）")):
        return 0
    announced = follows or _announces(_STRONG, before)
    plus = text[start] != "0"
    numbers = []
    for end in _ends(match):
        number = _NOT_DIGIT.sub("", text[start:end].replace("(0)", ""))
        if not plus:
            number = number[2:]
            if not (announced or number.startswith("86") or number != text[start + 2 : end]):
                continue
        if 8 <= len(number) <= 15 and _is_clear_after(text, end):
            numbers.append((end, number))
    for end, number in numbers:
        if _is_valid("+" + number, ""):
            return end
    if announced and plus and numbers and len(numbers[0][1]) >= 10:
        return numbers[0][0]
    return 0


def _ends(match: re.Match[str]) -> list[int]:
    """Where the number may end: after one of its groups of digits, from the seventh digit on; the
    longest number first. None for a chain of single digits, which is a code of another kind."""
    groups = [group.span() for group in _GROUPS.finditer(match.string, *match.span())]
    ends, count, single = [], 0, 0
    for start, end in groups:
        count += end - start
        single += end - start == 1
        if single > 2 or count > 15:
            break
        if count >= 7:
            ends.append(end)
    return ends[::-1]


def _national(text: str, start: int) -> int:
    for region, shape in _NATIONAL:
        match = shape.match(text, start)
        if match is None or not _is_clear_after(text, match.end()) or _DATE.fullmatch(match[0]):
            continue
        written = match[0].removesuffix(match.groupdict().get("ext") or "")
        number = _NOT_DIGIT.sub("", written)
        if region == "CN" and number.startswith("86"):
            number = number[2:]
        if _is_valid(number, region):
            return match.end()
    return _in_a_cell(text, start)


def _in_a_cell(text: str, start: int) -> int:
    """The end of a North American number in spaces that has a line or a table cell for itself."""
    match = _IN_A_CELL.match(text, start)
    if match is None:
        return 0
    before, after = (
        text[max(0, start - 4) : start].rstrip(" "),
        text[match.end() : match.end() + 4].lstrip(" "),
    )
    alone = (not before or before[-1] in _CELL_BORDERS) and (not after or after[0] in _CELL_BORDERS)
    return match.end() if alone and _is_valid(match[0].replace(" ", ""), "US") else 0


def _announced(text: str, start: int, run_end: int, before: str, follows: bool) -> int:
    """The end of a number in any grouping that a word before or after it announces, or 0."""
    match = _ANY.match(text, start, run_end)
    if match is None:
        return 0
    strong = follows or _announces(_STRONG, before) or _AFTER.match(text, match.end()) is not None
    if not (strong or _announces(_WEAK, before)):
        return 0
    for end in _ends(match):
        written = text[start:end]
        if _is_clear_after(text, end) and not _DATE.fullmatch(written):
            number = _NOT_DIGIT.sub("", written)
            if any(_is_valid(number, region) for region in _regions(number)):
                return end
            if _LOCAL.fullmatch(written) and (strong or not written.isdigit()):
                return end
            # Announced and grouped like a telephone number of a country that is not in the list.
            if end == match.end() and _LONG.fullmatch(written):
                return end
    return 0


def _announces(words: re.Pattern[str], before: str) -> bool:
    """Whether one of the words stands before, with no other number in between."""
    ends = [word.end() for word in words.finditer(before)]
    return bool(ends) and _APART.search(before, ends[-1]) is None


def _regions(number: str) -> tuple[str, ...]:
    if number[0] == "0":
        return ("CN", "GB", "FR", "JP", "TW", "AU", "DE") if 9 <= len(number) <= 12 else ()
    if len(number) == 10:
        return ("CN", "US", "IN") if number[0] in "48" else ("US", "IN")
    if len(number) == 9:
        return ("AU",)
    return ("CN", "US") if len(number) == 11 and number[0] == "1" else ()


@lru_cache(maxsize=8192)
def _is_valid(number: str, region: str) -> bool:
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, region or None))
    except phonenumbers.NumberParseException:
        return False
