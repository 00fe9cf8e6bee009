"""Texts with personal data at known places, and lookalikes, in English and Chinese.

Forms follow how people write: numbers grouped and not, glued to Chinese text, full-width, in
tables, JSON, logs and signatures. Written from the standards, knowing nothing of the finder.
"""

from __future__ import annotations

import base64
import json
import re
import string
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from corpus.pii_lookalikes import lookalike
from corpus.pii_sentences import (
    CONTEXTS,
    KEY_SENTENCES,
    PASSWORD_SENTENCES,
    PHONE_SENTENCES,
    SECRET_SENTENCES,
    SENTENCES,
)

KINDS = ("email", "phone", "resident id", "card", "iban", "ip", "key")
LANGUAGES = ("en", "zh")
WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


class Item(NamedTuple):
    kind: str
    start: int
    end: int


class Sample(NamedTuple):
    """A text and the personal data in it."""

    text: str
    items: tuple[Item, ...]


def samples(language: str, per_kind: int, rng: Random) -> list[Sample]:
    """Texts that hold `per_kind` items of each kind, and one to two lookalikes for each item."""
    order = [kind for kind in KINDS for _ in range(per_kind)]
    rng.shuffle(order)
    made = []
    while order:
        kinds = [order.pop() for _ in range(min(len(order), rng.choice((1, 1, 2, 3, 5))))]
        pieces = [planted(kind, language, rng) for kind in kinds]
        for _ in range(len(kinds) + rng.randrange(len(kinds) + 1)):
            pieces.insert(rng.randrange(len(pieces) + 1), lookalike(language, rng))
        made.append(_read_marks(_joined(pieces, language, rng)))
    return made


def _joined(pieces: list[str], language: str, rng: Random) -> str:
    """Chinese sentences follow each other without a space, where no Latin letters would meet."""
    gap = rng.choice((" ", "\n", "\n\n") if language == "en" else ("", "\n", "\n\n"))
    text = pieces[0]
    for piece in pieces[1:]:
        chinese = text[-1] > "\u2e7f" and text[-1] < "\ue000"
        text += (gap if gap or chinese else "\n") + piece
    return text


def _mark(kind: str, written: str) -> str:
    return f"\ue000{kind}\ue001{written}\ue002"


def _read_marks(marked: str) -> Sample:
    text, items, kind, start = "", [], "", 0
    for part in re.split("(\ue000[^\ue001]*\ue001|\ue002)", marked):
        if part.startswith("\ue000"):
            kind, start = part[1:-1], len(text)
        elif part == "\ue002":
            items.append(Item(kind, start, len(text)))
        else:
            text += part
    return Sample(text, tuple(items))


def planted(kind: str, language: str, rng: Random) -> str:
    """One marked item in a sentence, a row, a record or a signature."""
    if kind == "key":
        return _key(language, rng)
    if kind == "resident id" and rng.random() < 0.06:
        return _old_resident_id(language, rng)
    value = MAKERS[kind](language, rng)
    wide = value.translate(WIDE)
    chance = rng.random()
    if language == "zh" and chance < 0.06 and " " not in value:
        value = wide
    elif language == "zh" and chance < 0.10:
        value = value.replace("@", "＠").replace("-", "－")
    if kind == "phone" and re.fullmatch(r"[02-9]\d+|1[02]\d+", value):
        # A bare run of digits is a telephone number by its sentence alone.
        return rng.choice(PHONE_SENTENCES[language]).replace("{}", _mark(kind, value))
    templates = SENTENCES[language][kind] + (CONTEXTS[language] if rng.random() < 0.4 else ())
    return rng.choice(templates).replace("{}", _mark(kind, value))


# ---- values


def digits(rng: Random, count: int) -> str:
    return "".join(rng.choices(string.digits, k=count))


NAMES = (
    "anna", "j.smith", "mary-lou", "li.wei", "wang_fang", "Peter.Jones", "x", "bob", "zhangsan",
    "o'brien", "info", "sales", "chen", "lily+news", "K.Okafor",
)  # fmt: skip
HOSTS = (
    "gmail.com", "example.com", "163.com", "mail.example.co.uk", "uni-bonn.de", "foo.org",
    "126.com", "sina.com.cn", "pku.edu.cn", "acme.io", "firma.de", "outlook.com", "a-b.net",
    "dept.agency.gov", "startup.dev", "sub.t-online.de", "musée.fr", "protonmail.ch",
    "company.info", "shop.xyz",
)  # fmt: skip


def _email(language: str, rng: Random) -> str:
    first = rng.choice(NAMES)
    local = first + rng.choice(("", digits(rng, rng.randrange(1, 5)), f"_{digits(rng, 2)}"))
    if language == "zh" and rng.random() < 0.3:
        return f"{rng.randrange(10_000, 10**10)}@qq.com"
    host = rng.choice(HOSTS)
    written = f"{local}@{host}"
    chance = rng.random()
    if chance < 0.04:
        return written.upper()
    if chance < 0.07:
        return written.replace("@", " [at] ").replace(".", " [dot] ")
    if chance < 0.09:
        return written.replace("@", "(at)")
    if chance < 0.11 and language == "en":
        return written.replace("@", " at ").replace(".", " dot ")
    return written


AREAS = ("212", "415", "310", "617", "206", "713", "305", "404", "512", "702", "646", "416", "604")
LAND = ("010", "021", "020", "0755", "0571", "028", "0512", "027", "029", "0532", "0591", "0731")
MOBILES = (
    "130", "131", "135", "136", "137", "138", "139", "150", "151", "158", "159", "170", "176",
    "177", "180", "183", "186", "187", "188", "189", "191", "198", "199", "166",
)  # fmt: skip


def _chinese_mobile(rng: Random) -> str:
    head, one, two = rng.choice(MOBILES), digits(rng, 4), digits(rng, 4)
    return rng.choice((f"{head}{one}{two}",) * 5 + (f"{head} {one} {two}", f"{head}-{one}-{two}",
                      f"+86 {head}{one}{two}", f"+86{head}{one}{two}", f"+86-{head}-{one}-{two}",
                      f"(+86) {head} {one} {two}", f"0086{head}{one}{two}", f"86-{head}{one}{two}",
                      f"（+86）{head}{one}{two}"))  # fmt: skip


def _chinese_landline(rng: Random) -> str:
    code = rng.choice(LAND)
    number = rng.choice("68") + digits(rng, 7)
    if rng.random() < 0.15:
        service = digits(rng, 6)
        return rng.choice(
            (f"400-8{service[:2]}-{service[2:]}", f"4008{service}", f"400 820 {service[:4]}")
        )
    return rng.choice((f"{code}-{number}", f"{code}-{number[:4]}-{number[4:]}", f"({code}){number}",
                       f"（{code}）{number}", f"{code} {number}", f"{code}{number}", number,
                       f"+86 {code[1:]} {number[:4]} {number[4:]}"))  # fmt: skip


def _american(rng: Random) -> str:
    area, middle, last = rng.choice(AREAS), rng.choice("3456789") + digits(rng, 2), digits(rng, 4)
    if middle.endswith("11"):
        middle = middle[0] + "23"  # such as 911: no exchange is called so
    return rng.choice((f"({area}) {middle}-{last}", f"{area}-{middle}-{last}",
                       f"{area}-{middle}-{last}", f"{area}.{middle}.{last}",
                       f"{area}{middle}{last}",
                       f"+1 {area} {middle} {last}", f"+1-{area}-{middle}-{last}",
                       f"1-{area}-{middle}-{last}", f"+1 ({area}) {middle}-{last}",
                       f"({area}){middle}-{last}", f"{area} {middle} {last}",
                       f"{area}/{middle}-{last}", f"+1{area}{middle}{last}"))  # fmt: skip


def _foreign(rng: Random) -> str:
    a, b, c, d, e = (digits(rng, 2) for _ in range(5))
    return rng.choice((
        f"020 7{a}{b[0]} {c}{d}", f"+44 20 7{a}{b[0]} {c}{d}", f"+44 (0)20 7{a}{b[0]} {c}{d}",
        f"0161 4{a} {b}{c}", f"079{a[0]}{rng.choice('1235')} {b}{c}{d}", f"+44 7520 {a}{b}{c}",
        f"030 2{a}{b}{c}", f"+49 30 2{a}{b}{c}", f"+49 171 {a}{b}{c}{d[0]}", f"089/3{a}{b}{c}",
        f"06 12 {a} {b} {c}", f"01.42.{a}.{b}.{c}", f"+33 6 12 {a} {b} {c}", f"+33612{a}{b}{c}",
        f"03-3{a}{b[0]}-{c}{d}", f"090-1{a}{b[0]}-{c}{d}", f"+81-3-3{a}{b[0]}-{c}{d}",
        f"+852 9{a}{b[0]} {c}{d}", f"+852-2{a}{b[0]}-{c}{d}", f"0912-3{a}-{b}{c[0]}",
        f"02-27{a}-{b}{c}", f"+886 912 3{a} {b}{c[0]}", f"+91 98{a}{b[0]} {c}{d}{e[0]}",
        f"0412 3{a} {b}{c[0]}", f"+61 2 9{a}{b[0]} {c}{d}", f"(02) 9{a}{b[0]} {c}{d}",
        f"+41 44 2{a} {b} {c}", f"+34 612 3{a} {b}{c[0]}", f"+39 06 698 {a}{b}{c[0]}",
        f"+65 9{a}{b[0]} {c}{d}", f"+55 11 9{a}{b}-{c}{d}"[:17], f"+82 10-2{a}{b[0]}-{c}{d}",
    ))  # fmt: skip


def _phone(language: str, rng: Random) -> str:
    """Foreign and landline forms that phonenumbers does not know as valid are drawn again."""
    chance = rng.random()
    if language == "zh":
        maker = (
            _chinese_mobile if chance < 0.65 else _chinese_landline if chance < 0.9 else _foreign
        )
    else:
        maker = _american if chance < 0.55 else _foreign if chance < 0.9 else _chinese_mobile
    return maker(rng)


REGIONS = (
    "110101", "110105", "310101", "310115", "440305", "440106", "510104", "330106", "320102",
    "420106", "610113", "430103", "370202", "350203", "210102", "500101",
)  # fmt: skip


def _birth(rng: Random) -> tuple[int, int, int]:
    return rng.randrange(1935, 2016), rng.randrange(1, 13), rng.randrange(1, 29)


def resident_id(rng: Random) -> str:
    """GB 11643-1999: region, birth date, serial, ISO 7064 MOD 11-2 check character."""
    year, month, day = _birth(rng)
    body = f"{rng.choice(REGIONS)}{year}{month:02}{day:02}{digits(rng, 3)}"
    weights = [pow(2, 17 - place, 11) for place in range(17)]
    total = sum(int(digit) * weight for digit, weight in zip(body, weights, strict=True))
    return body + "10X98765432"[total % 11]


def _resident_id(language: str, rng: Random) -> str:
    number = resident_id(rng)
    return rng.choice((number,) * 6 + (number.lower(), f"{number[:6]} {number[6:14]} {number[14:]}",
                                       f"{number[:6]}-{number[6:14]}-{number[14:]}"))  # fmt: skip


def _old_resident_id(language: str, rng: Random) -> str:
    year, month, day = _birth(rng)
    number = f"{rng.choice(REGIONS)}{year % 100:02}{month:02}{day:02}{digits(rng, 3)}"
    sentence = {"en": "His old ID card number was {}.", "zh": "旧身份证号码是{}，十五位。"}[
        language
    ]
    return sentence.replace("{}", _mark("resident id", number))


def luhn(body: str) -> str:
    """The check digit of ISO/IEC 7812-1 for the digits before it."""
    doubled = [int(d) * (2 - place % 2) for place, d in enumerate(reversed(body))]
    return str(-sum(value // 10 + value % 10 for value in doubled) % 10)


ISSUERS = (
    ("4", 16), ("4", 16), ("4", 16), ("51", 16), ("53", 16), ("55", 16), ("2221", 16),
    ("2720", 16), ("34", 15), ("37", 15), ("6011", 16), ("65", 16), ("3528", 16), ("3589", 16),
    ("622202", 19), ("621700", 19), ("622848", 19), ("625800", 16), ("622588", 16), ("4", 13),
)  # fmt: skip
UNIONPAY = (("622202", 19), ("621700", 19), ("622588", 16))


def _card(language: str, rng: Random) -> str:
    prefix, length = rng.choice(ISSUERS + (UNIONPAY * 4 if language == "zh" else ()))
    body = prefix + digits(rng, length - 1 - len(prefix))
    number = body + luhn(body)
    if length == 15:
        groups = [number[:4], number[4:10], number[10:]]
    else:
        groups = [number[place : place + 4] for place in range(0, length, 4)]
    return rng.choice(("", " ", " ", "-")).join(groups)


BANKS = {"DE": "n" * 18, "GB": "aaaa" + "n" * 14, "FR": "n" * 10 + "c" * 11 + "n" * 2,
         "ES": "n" * 20, "IT": "a" + "n" * 10 + "c" * 12, "NL": "aaaa" + "n" * 10,
         "CH": "n" * 5 + "c" * 12, "AT": "n" * 16, "BE": "n" * 12, "PL": "n" * 24, "SE": "n" * 20,
         "NO": "n" * 11, "DK": "n" * 14, "PT": "n" * 21, "IE": "aaaa" + "n" * 14, "FI": "n" * 14,
         "SA": "nn" + "c" * 18, "AE": "n" * 19, "TR": "n" * 16 + "n" * 6}  # fmt: skip
ALPHABETS = {"n": string.digits, "a": string.ascii_uppercase, "c": string.digits * 3 + "ABCDEFXYZ"}


def _iban(language: str, rng: Random) -> str:
    """ISO 13616 with the check digits of ISO 7064 MOD 97-10."""
    country = rng.choice(list(BANKS))
    bank = "".join(rng.choice(ALPHABETS[letter]) for letter in BANKS[country])
    check = 98 - int("".join(str(int(c, 36)) for c in bank + country + "00")) % 97
    number = f"{country}{check:02}{bank}"
    grouped = " ".join(number[place : place + 4] for place in range(0, len(number), 4))
    return rng.choice((number, number, grouped, grouped, grouped, grouped.replace(" ", "-")))


def _ip(language: str, rng: Random) -> str:
    if rng.random() < 0.25:
        head = rng.choice(("2001:4860", "2a02:8109", "2408:8207", "240e:3a1", "fe80:", "fd12:3456"))
        words = [f"{rng.randrange(1, 1 << 16):x}" for _ in range(6)]
        if head == "fe80:" or rng.random() < 0.5:
            address = f"{head.rstrip(':')}::{':'.join(words[: rng.randrange(2, 5)])}"
        else:
            address = ":".join([head, *words])
        return address.upper() if rng.random() < 0.1 else address
    chance = rng.random()
    last = ".".join(str(rng.randrange(256)) for _ in range(2))
    if chance < 0.2:
        return rng.choice((f"192.168.{last}", f"10.{rng.randrange(256)}.{last}", f"172.18.{last}"))
    head = rng.choice(
        (8, 24, 47, 52, 66, 81, 101, 114, 119, 123, 142, 175, 183, 202, 211, 218, 220)
    )
    return f"{head}.{rng.randrange(256)}.{last}"


MAKERS: dict[str, Callable[[str, Random], str]] = {
    "email": _email, "phone": _phone, "resident id": _resident_id, "card": _card, "iban": _iban,
    "ip": _ip,
}  # fmt: skip


# ---- keys bring their own sentence, for the name before a password is part of the form

LETTERS = string.ascii_letters + string.digits


def _letters(rng: Random, count: int, alphabet: str = LETTERS) -> str:
    return "".join(rng.choices(alphabet, k=count))


def _jwt(rng: Random) -> str:
    parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": digits(rng, 8), "name": _letters(rng, 6)})
    halves = [base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts]
    return ".".join([*halves, _letters(rng, 43, LETTERS + "-_")])


def _pem(rng: Random) -> str:
    name = rng.choice(("RSA PRIVATE KEY", "PRIVATE KEY", "OPENSSH PRIVATE KEY", "EC PRIVATE KEY"))
    lines = [_letters(rng, 64, LETTERS + "+/") for _ in range(rng.randrange(3, 9))]
    return "\n".join([f"-----BEGIN {name}-----", *lines, f"-----END {name}-----"])


def published_key(rng: Random) -> str:
    """A random key of a form whose prefix its issuer has published."""
    return rng.choice((
        lambda: "AKIA" + _letters(rng, 16, string.ascii_uppercase + "234567"),
        lambda: "ASIA" + _letters(rng, 16, string.ascii_uppercase + "234567"),
        lambda: rng.choice(("ghp_", "gho_", "ghs_")) + _letters(rng, 36),
        lambda: "github_pat_" + _letters(rng, 22) + "_" + _letters(rng, 59),
        lambda: "glpat-" + _letters(rng, 20, LETTERS + "-_"),
        lambda: f"xox{rng.choice('abp')}-{digits(rng, 12)}-{digits(rng, 12)}-{_letters(rng, 24)}",
        lambda: "AIza" + _letters(rng, 35, LETTERS + "-_"),
        lambda: "sk-" + _letters(rng, 48),
        lambda: "sk-proj-" + _letters(rng, 80, LETTERS + "-_"),
        lambda: "sk-ant-api03-" + _letters(rng, 93, LETTERS + "-_") + "AA",
        lambda: rng.choice(("sk_live_", "rk_live_")) + _letters(rng, 24),
        lambda: "hf_" + _letters(rng, 34, string.ascii_letters),
        lambda: "npm_" + _letters(rng, 36),
        lambda: "pypi-AgEIcHlwaS5vcmc" + _letters(rng, 120, LETTERS + "-_"),
        lambda: f"SG.{_letters(rng, 22)}.{_letters(rng, 43)}",
        lambda: "SK" + _letters(rng, 32, "0123456789abcdef"),
        lambda: _jwt(rng),
        lambda: _pem(rng),
        lambda: _pem(rng),
    ))()  # fmt: skip


WORDS = ("sunny", "Dragon", "letmein", "Qwerty", "hunter", "iloveyou", "Zhang", "P@ss")


def _password(rng: Random) -> str:
    """Mostly words with digits, some of them random, some of them words alone."""
    word = rng.choice(WORDS)
    return rng.choice((
        word + digits(rng, rng.randrange(2, 5)),
        word.title() + digits(rng, 4) + rng.choice("!@#$*"),
        _letters(rng, rng.randrange(8, 20), LETTERS + "!#%*-_") + "7q",
        f"{word}@{digits(rng, 4)}",
        _letters(rng, 24),
        digits(rng, 3) + word + "X",
        word + ("house" if rng.random() < 0.3 else "99"),
    ))  # fmt: skip


def _key(language: str, rng: Random) -> str:
    if rng.random() < 0.5:
        value = _mark("key", published_key(rng))
        return rng.choice(KEY_SENTENCES[language]).replace("{}", value)
    if rng.random() < 0.15:
        user, host = rng.choice(("admin", "root", "deploy")), rng.choice(("db.local:5432", "h.io"))
        secret = _letters(rng, 10)
        scheme = rng.choice(("https", "postgres", "mysql", "redis", "mongodb+srv", "ftp"))
        url = f"{scheme}://{_mark('key', f'{user}:{secret}')}@{host}/data"
        return {"en": f"It connects to {url} now.", "zh": f"连接串是{url}。"}[language]
    secret = _letters(rng, rng.choice((20, 32, 40)))
    if rng.random() < 0.4:
        return rng.choice(SECRET_SENTENCES[language]).replace("{}", _mark("key", secret))
    value = _mark("key", _password(rng))
    return rng.choice(PASSWORD_SENTENCES[language]).replace("{}", value)
