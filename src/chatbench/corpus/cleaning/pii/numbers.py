"""Numbers with check digits: Chinese resident ids, payment cards, IBANs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import date
from functools import cache

from chatbench.corpus.cleaning.pii.found import Found, is_word

_LEFT = r"(?<![0-9A-Za-z_])(?<![0-9][-.])(?<![A-Za-z]-)"
_RIGHT = r"(?![0-9A-Za-z_])(?![-.][0-9])"
_RESIDENT = re.compile(
    _LEFT + r"[1-9][0-9]{5}([ -]?)(?:18|19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])"
    r"\1[0-9]{3}[0-9Xx]" + _RIGHT
)
_OLD_RESIDENT = re.compile(
    _LEFT + r"[1-8][0-9]{5}[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])[0-9]{3}" + _RIGHT
)
_IDENTITY = re.compile(r"身份证|身份證|identity|\bID\b|\bID[_ ]?(?:card|number|no)", re.IGNORECASE)
_CARD = re.compile(
    _LEFT + r"(?:[0-9]{13,19}|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{1,4}(\1[0-9]{1,3})?"
    r"|[0-9]{4}([ -])[0-9]{6}\3[0-9]{5}|[0-9]{6}[ -][0-9]{10,13})" + _RIGHT
)
_SEPARATORS = str.maketrans("", "", " -")
_NO_CARD = re.compile(
    r"(?:order|invoice|tracking|ticket|isbn|serial|timestamp|parcel|reference|trade|transaction|imei"
    r"|订单|单号|運單|运单|编号|流水|发票|备案|货号|交易号|快递|序列号)"
    r"(?: ?(?:number|no\.?|num|id|号|is|was|=|#))*[\"':：#=. 为是]{0,4}\Z",
    re.IGNORECASE,
)
_CARD_WORD = re.compile(r"card|visa|卡", re.IGNORECASE)


def resident_ids(text: str, runs: Sequence[tuple[int, int]]) -> Iterator[Found]:
    """GB 11643: 18 characters with a known region, a date and a right check character; the
    15 digits used until 2013 only near a word for identity cards."""
    for start, end in runs:
        if end - start < 15:
            continue
        # The check character X is no digit, so the run may end before it.
        edge = min(end + 2, len(text))
        for match in _RESIDENT.finditer(text, start, edge):
            if _is_resident(match[0].translate(_SEPARATORS).upper()):
                yield Found("resident id", *match.span())
        for match in _OLD_RESIDENT.finditer(text, start, edge):
            if _IDENTITY.search(text[max(0, match.start() - 24) : match.start()]):
                yield Found("resident id", *match.span())


def _is_resident(number: str) -> bool:
    """Not stdnum's own verdict: that wants the region's code to be older than the person, yet
    codes were given out from 1984 on, to the living of every age."""
    from stdnum import numdb
    from stdnum.cn import ric

    try:
        date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    if ric.calc_check_digit(number) != number[-1]:
        return False
    return any(known for _, known in numdb.get("cn/loc").info(number[:6]))


def cards(text: str, runs: Sequence[tuple[int, int]]) -> Iterator[Found]:
    """13 to 19 digits of a known issuer with a right Luhn digit (ISO/IEC 7812)."""
    for run_start, run_end in runs:
        if run_end - run_start < 13:
            continue
        for match in _CARD.finditer(text, run_start, min(run_end + 2, len(text))):
            start, end = match.span()
            if not _is_card(match[0]) and match[2]:
                # The last group may be the three digits of the back side.
                end = match.start(2)
            written = text[start:end]
            before = text[max(0, start - 24) : start]
            if not _is_card(written) or (written.isdigit() and _NO_CARD.search(before)):
                continue
            if len(written) > 13 or _CARD_WORD.search(before):
                yield Found("card", start, end)


def _is_card(written: str) -> bool:
    from stdnum import luhn

    number = written.translate(_SEPARATORS)
    return _has_issuer(number) and luhn.is_valid(number)


def _has_issuer(number: str) -> bool:
    """Visa, Mastercard, American Express, Discover, JCB and UnionPay, by their ranges."""
    length, first = len(number), int(number[:4])
    if number[0] == "4":
        return length in (13, 16, 19)
    if 5100 <= first < 5600 or 2221 <= first <= 2720:
        return length == 16
    if 3400 <= first < 3500 or 3700 <= first < 3800:
        return length == 15
    others = first == 6011 or 6440 <= first < 6600 or 3528 <= first <= 3589 or 6200 <= first < 6300
    return others and 16 <= length <= 19


# ISO 13616 registry: the length of an IBAN, and the countries that have it.
_REGISTRY = """
    15:NO 16:BE 18:DK,FI,FO,GL,NL,FK,SD 19:MK,SI 20:AT,BA,EE,KZ,LT,LU,XK,MN 21:CH,HR,LI,LV
    22:BG,BH,CR,DE,GB,GE,IE,ME,RS,VA 23:AE,GI,IL,IQ,TL,OM,SO 24:AD,CZ,ES,MD,PK,SA,SE,SK,TN,VG,RO
    25:LY,PT,ST 26:IS,TR 27:BI,DJ,FR,GR,IT,MC,MR,SM 28:AL,AZ,BY,CY,DO,GT,HU,LB,NI,PL,SV
    29:BR,EG,PS,QA,UA 30:JO,KW,MU,YE 31:MT,SC 32:LC 33:RU
"""
_LENGTHS = {
    country: int(entry[:2]) for entry in _REGISTRY.split() for country in entry[3:].split(",")
}


def ibans(text: str, runs: Sequence[tuple[int, int]]) -> Iterator[Found]:
    """Account numbers of ISO 13616 in capitals, in groups of four or in one, with right digits."""
    for run, _ in runs:
        start = run - 2
        length = _LENGTHS.get(text[start:run], 0) if start >= 0 else 0
        if not length or is_word(text, start - 1):
            continue
        match = _iban_of(length).match(text, start)
        if match is not None and _is_iban(match[0]):
            yield Found("iban", *match.span())


@cache
def _iban_of(length: int) -> re.Pattern[str]:
    groups, rest = divmod(length - 4, 4)
    last = f"[ -]?[A-Z0-9]{{{rest}}}" if rest else ""
    return re.compile(
        rf"[A-Z]{{2}}[0-9]{{2}}(?:[ -]?[A-Z0-9]{{4}}){{{groups}}}{last}(?![A-Za-z0-9_])"
    )


def _is_iban(written: str) -> bool:
    from stdnum import iban

    number = written.translate(_SEPARATORS)
    # The remainder alone rejects nearly all lookalikes, at a tenth of the price of the library.
    if int("".join(str(int(letter, 36)) for letter in number[4:] + number[:4])) % 97 != 1:
        return False
    return bool(iban.is_valid(number, check_country=False))
