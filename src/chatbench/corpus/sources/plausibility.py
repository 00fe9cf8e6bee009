"""How likely a decoded text is, in bits: what tells one legacy encoding from another.

The right decoding of some bytes is the shortest description of them: frequent letters and
characters cost little, rare ones and impossible neighbours much. The costs are round numbers close
to -log2 of the usual frequencies; they need to rank decodings, not to compress.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache

_SAMPLE_BYTES = 6000
# Of two equally likely decodings the earlier one wins. The Windows code pages come before the
# standards they extend.
CANDIDATES = (
    "utf-8", "gb18030", "cp950", "big5hkscs", "cp932", "euc_jp", "cp949", "euc_kr", "cp1252",
    "cp1251", "koi8-r", "cp1250", "iso8859-2", "cp1254", "iso8859-9", "cp1253", "iso8859-7",
    "cp1255", "cp1256", "cp1257", "iso8859-13", "cp1258", "cp874", "iso8859-5", "cp866",
    "mac_cyrillic", "koi8-u", "iso8859-15", "iso8859-1", "utf-16-le", "utf-16-be",
)  # fmt: skip
WIDE = ("utf-16-le", "utf-16-be")
# Bits by which a candidate has to be better, because it is rarer in the world. Without zero bytes
# UTF-16 is a rare thing, and any two bytes are some character of it.
_HANDICAP = {
    **dict.fromkeys(CANDIDATES[CANDIDATES.index("koi8-r") :], 3.0), "cp949": 6.0, "euc_kr": 6.0,
    "euc_jp": 5.0, "mac_cyrillic": 9.0, "cp866": 6.0, **dict.fromkeys(WIDE, 60.0),
}  # fmt: skip
# Scripts whose texts do not scatter single letters over lines of Latin ones; bits for each byte of
# them in lines where fewer than one letter in ten is theirs.
_OTHER_SCRIPTS = frozenset(
    ("cp1251", "koi8-r", "koi8-u", "iso8859-5", "cp866", "mac_cyrillic", "cp1253", "iso8859-7",
     "cp1255", "cp1256", "cp874")
)  # fmt: skip
_TWO_BYTES = frozenset(("gb18030", "cp950", "big5hkscs", "euc_jp", "cp949", "euc_kr"))
_SCATTERED = 6.0
# Bits a byte from which bytes are no text; the change lets a few rare characters stand alone.
_WORST, _WORST_IF_WIDE, _SMALL_CHANGE = 9.0, 6.5, 64.0
ASCII, UNDECODED, CONTROL, _HALF_CHARACTER = 5.0, 40.0, 25.0, 15.0
PLAIN_CONTROLS = "\t\n\r\f\v\b\x1b"
_FREQUENT_HAN = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然"
    "家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把"
    "机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果"
    "加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔"
    "更别打女变四神总何电数安少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展"
    "马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉格望觉术领共"
    "确传师观清今切院让识候带导争运请问谢爱吃喝吗呢吧啊谁哪"
    "這個們來為國說時會對爾於著過發後裡裏種經麼學現當沒動還進樣開從實軍無長與機關點業將兩間問應戰頭體見產話給門東聲"
    "員論處義幾認條氣題變總電數報結務場計資區隊統決馬書則聽達強難權設記類據邊張該規覺術領確傳師觀讓識帶導爭運愛萬車"
    "錢買賣寫讀語請謝歡雖離願嗎誰號飛魚鳥曰也矣乎者焉"
    "円午百先川千半男校土木車何毎母火右友左休父雨聞読会社発立京言田持野思始終広住町料止送転研究足楽店病質待試族銀"
    "早映親験英医仕味写字答夜音注帰古歌図週室歩風紙黒花春青館屋走秋夏駅洋旅服曜飲肉鳥茶漢実戦関対経済変動権参議選"
)
_FREQUENT_HANGUL = (
    "이다는을에의가한고로하기지도를은사자리나인어서대시정수그일만아스해보있것부제들라전구성주원과조여상장선신소비유문없"
    "게미연안세국경오동마관진방되모무우공화할학개민실현위치용물생심재양회당교내중분발간법체명계금통산적와으니습까요안녕"
)
_FREQUENT_KANA = "のいにはをたがでてとしれさあなりるうもこかまらっすつそけおくよだわせ"
_CJK_MARKS = "，。、！？：；“”‘’（）《》「」『』…—·\u3000〈〉【】・ー～〜"
_RARE_LATIN_MARKS = "‚ƒ†‡‰ˆ˜™‹›¢¥¶¼½¾±×÷¨¯¸ªº¹²³µ"
_LATIN_MARKS = "“”‘’–—…«»°§·©®€£¿¡\xa0„•´№"
# Alphabets without case trouble, most frequent letter first.
_ALPHABETS = (
    "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфёъіїєґў",
    "αοιετσνηυρπκμλςωδγάίόέήχύθώφβξζψϊϋΐΰ",
    "יוהלאתרמבשנעםדחקפןגצטזסכךףץ",
    "اليمونرتبةعدسفهكقحجأشصطخإىءغذضزثئظآؤ،",
    "านรอกเงมยลวดทสตะปบคหจพชขใไโผซธณศษแญภฝถฉฐฟฎฏฆฌฑฒำุูิีึืั่้็์๊๋ๆฯ",
)
# What each Latin alphabet adds to ASCII, most frequent letter first; combining marks after a base.
_LATIN = (
    "éèàêçùîôâûïëœ", "üäöß", "óíáéñúü", "ãçéáóõíêúâôà", "èàùòìé", "äöåøæé", "ëéïöü",
    "ąęłóśżćńź", "íáéěýřžšůčúňťďó", "áéöóőüíúű", "ăîâşţșț", "čćžšđ", "áíéýžščúľôťňäďĺŕ",
    "ıüşğöçİâîû", "äõüöšž", "āīēšūņļģķžč", "ėšųįąūžčę", "þðíáæéóöúý",
    "đ\u0301\u0300ươêâ\u0323ô\u0309\u0303ăàáíìúùòóéèý",
)  # fmt: skip
_OUTSIDE_LANGUAGE, _NEW_SCRIPT = 12.0, 8.0


def likeliest(head: bytes, candidates: tuple[str, ...]) -> str | None:
    """The candidate codec whose decoding of `head` costs least; None when that costs more than text
    does."""
    bits, _, best = min(_bids(head, candidates))
    size = min(len(head), _SAMPLE_BYTES)
    worst = _WORST_IF_WIDE * size if best in WIDE else _WORST * size + _SMALL_CHANGE
    return best if bits <= worst else None


def _bids(head: bytes, candidates: tuple[str, ...]) -> Iterator[tuple[float, int, str]]:
    telling = _telling(head)
    high = sum(byte > 0x7F for byte in telling)
    latin = len(_LATIN_LETTERS.findall(telling))
    longest = max(map(len, _HIGH_BYTES.findall(telling)), default=0)
    for place, codec in enumerate(candidates):
        shown = head[:_SAMPLE_BYTES] if codec in WIDE else telling
        bits = cost(tolerant(shown, codec)) * (len(telling) or 1) / (len(shown) or 1)
        # Half a character at the end: the head is cut there, or the decoding is wrong.
        bits += _HALF_CHARACTER if _ends_inside(shown, codec) else 0.0
        bits += 0.0 if decodes(head, codec) else 40.0
        scattered = codec in _OTHER_SCRIPTS or (codec in _TWO_BYTES and longest <= 2)
        if scattered and 10 * high < latin:
            bits += _SCATTERED * high
        yield bits + (0.0 if b"\0" in head else _HANDICAP.get(codec, 0.0)), place, codec


def _telling(head: bytes) -> bytes:
    """The lines of the head that are not ASCII, as many as a judgement needs."""
    if b"\0" in head:
        return head[:_SAMPLE_BYTES]
    found: list[bytes] = []
    size = 0
    for line in head.splitlines(keepends=True):
        if not line.isascii():
            found.append(line)
            size += len(line)
            if size >= _SAMPLE_BYTES:
                break
    return b"".join(found)[:_SAMPLE_BYTES]


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Each byte that does not decode as a lone surrogate, which no decoding of text gives."""
    assert isinstance(error, UnicodeDecodeError)
    bad = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + byte) for byte in bad), error.end


_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_LATIN_LETTERS = re.compile(rb"[A-Za-z]")
codecs.register_error("chatbench.mark", _mark)
MARKED = re.compile("[\ud800-\udfff]")


def tolerant(head: bytes, codec: str) -> str:
    """The text with a lone surrogate for each bad byte; half a character at the end is left out."""
    return codecs.getincrementaldecoder(codec)("chatbench.mark").decode(head)


def decodes(head: bytes, codec: str) -> bool:
    """Whether all of it decodes; half a character at the end is allowed."""
    try:
        codecs.getincrementaldecoder(codec)("strict").decode(head)
    except (UnicodeDecodeError, UnicodeError):
        return False
    return True


def _ends_inside(head: bytes, codec: str) -> bool:
    decoder = codecs.getincrementaldecoder(codec)("chatbench.mark")
    decoder.decode(head)
    return bool(decoder.decode(b"", True))


def cost(text: str) -> float:
    """Bits that describing `text` takes; lone surrogates stand for bytes that did not decode."""
    total = 0.0
    accents: Counter[str] = Counter()
    scripts: set[int] = set()
    # Pairs, because a letter is likely or not by what stands before it.
    for (before, char), count in Counter(zip("\n" + text, text, strict=False)).items():
        total += count * (_fixed(char) + _after(before, char))
        if _is_latin(char):
            accents[char] += count
        elif char in _scripts():
            scripts.add(_scripts()[char])
    return (
        total
        + _NEW_SCRIPT * len(scripts)
        + (min(_in_language(accents, rank) for rank in range(len(_LATIN))))
    )


def _in_language(accents: Counter[str], language: int) -> float:
    known = _latin_costs(language)
    total = 0.25 * language if accents else 0.0
    for char, count in accents.items():
        total += count * known.get(char, _OUTSIDE_LANGUAGE)
    return total


@cache
def _latin_costs(language: int) -> dict[str, float]:
    costs: dict[str, float] = {}
    for rank, letter in enumerate(_LATIN[language]):
        costs[letter] = min(costs.get(letter, 99.0), 3.5 + 0.35 * rank)
        if len(letter.upper()) == 1 and letter.upper() != letter:
            costs.setdefault(letter.upper(), 6.5 + 0.35 * rank)
    return costs


@cache
def _is_latin(char: str) -> bool:
    if char < "\x80":
        return False
    return "\u0300" <= char < "\u0370" or (char.isalpha() and (char < "\u0250"))


@cache
def _after(before: str, char: str) -> float:
    """What the neighbour adds: capitals inside words and changes of script inside words."""
    if not (char.isalpha() and before.isalpha()):
        return 0.0
    if char < "\x80" and before < "\x80":
        return 0.0
    bits = 0.0
    if char >= "\x80" and char.isupper():
        bits = 8.0 if before.islower() else -2.5
    if _is_latin(char):
        bits += 3.0 if before >= "\x80" else 0.0
    if (before < "\x80") != (char < "\x80") and max(before, char) >= "\u2e80":
        bits += 2.0
    # Chinese, Japanese and Korean stand beside Latin words without a space; other scripts do not.
    if max(before, char) < "\u2e80" and (before < "\u0250") != (char < "\u0250"):
        bits += 8.0
    return bits


@cache
def _fixed(char: str) -> float:
    """Bits of a character by itself; accented Latin letters are judged by language instead."""
    if char < "\x80":
        return ASCII if char >= " " or char in PLAIN_CONTROLS else CONTROL
    if _is_latin(char):
        return 0.0
    known = _tables().get(char)
    if known is not None:
        return known
    if char.lower() != char and char.lower() in _tables():
        return _tables()[char.lower()] + 3.0
    return _by_block(char)


def _by_block(char: str) -> float:
    kind = unicodedata.category(char)
    point = ord(char)
    if kind == "Cs":
        return UNDECODED
    if kind in ("Cc", "Co", "Cn") or char == "\ufffd":
        return CONTROL
    if 0x3040 <= point < 0x3100:
        return 6.0
    if 0x3100 <= point < 0x3200:
        return 14.0
    if 0xFF61 <= point < 0xFFA0:
        return 11.0
    if 0xFF00 <= point < 0xFF61:
        return 10.0
    if 0x3400 <= point < 0xA000 or 0xF900 <= point < 0xFB00 or point >= 0x20000:
        return 20.0
    if 0xAC00 <= point < 0xD7B0:
        return 17.0
    if kind[0] in "LM":
        return 10.5
    return 13.0


@cache
def _scripts() -> dict[str, int]:
    return {
        letter: number
        for number, alphabet in enumerate(_ALPHABETS)
        for letter in alphabet + alphabet.upper()
    }


@cache
def _tables() -> dict[str, float]:
    """Characters with a known cost. The first levels of the national sets hold what is in use."""
    costs: dict[str, float] = {}
    for codec, leads, trails, bits in (
        ("gb2312", range(0xD8, 0xF8), range(0xA1, 0xFF), 16.0),
        ("big5", range(0xC9, 0xFA), (*range(0x40, 0x7F), *range(0xA1, 0xFF)), 16.0),
        ("euc_jp", range(0xD0, 0xF5), range(0xA1, 0xFF), 16.0),
        ("euc_kr", range(0xB0, 0xC9), range(0xA1, 0xFF), 11.0),
        ("big5", range(0xA4, 0xC7), (*range(0x40, 0x7F), *range(0xA1, 0xFF)), 13.0),
        ("euc_jp", range(0xB0, 0xD0), range(0xA1, 0xFF), 12.5),
        ("gb2312", range(0xB0, 0xD8), range(0xA1, 0xFF), 12.5),
    ):
        for lead in leads:
            # One by one: a decoder that skips an undefined pair may lose step with the others.
            level = "".join(bytes((lead, trail)).decode(codec, "ignore") for trail in trails)
            costs.update(dict.fromkeys(level, bits))
    costs = {char: bits for char, bits in costs.items() if char >= "\u2e80"}
    for alphabet in _ALPHABETS:
        costs.update((letter, 3.0 + 0.15 * rank) for rank, letter in enumerate(alphabet))
    costs.update(dict.fromkeys(_FREQUENT_HAN, 7.0))
    costs.update(dict.fromkeys(_FREQUENT_HANGUL, 6.5))
    costs.update(dict.fromkeys(_RARE_LATIN_MARKS, 10.0))
    costs.update(dict.fromkeys(_LATIN_MARKS, 7.0))
    costs.update((kana, 4.0 + 0.06 * rank) for rank, kana in enumerate(_FREQUENT_KANA))
    costs.update(dict.fromkeys(_CJK_MARKS, 6.0))
    return costs
