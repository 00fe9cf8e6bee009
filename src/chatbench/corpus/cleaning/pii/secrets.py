"""Keys and passwords: published prefixes, private key blocks, assignments, URLs with both."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from chatbench.corpus.cleaning.pii.found import Found, is_word, places

# What stands first → the whole key, after the issuers' own documentation. Repeats are bounded, so
# that each anchor costs a constant.
_PUBLISHED = {
    anchor: re.compile(form)
    for anchor, form in {
        "AKIA": r"AKIA[A-Z0-9]{16}(?![A-Za-z0-9])",
        "ASIA": r"ASIA[A-Z0-9]{16}(?![A-Za-z0-9])",
        "AIza": r"AIza[A-Za-z0-9_-]{35}",
        "eyJ": r"eyJ[A-Za-z0-9_-]{8,2000}\.[A-Za-z0-9_-]{8,4000}(?:\.[A-Za-z0-9_-]{10,1000})?",
        "SG.": r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{30,64}",
        "SK": r"SK[0-9a-f]{32}(?![A-Za-z0-9])",
    }.items()
}
# Keys whose prefix ends in - or _: by the two characters before it, the length of the prefix and
# the whole key. One look for the sign spares many for prefixes.
_GITHUB = (3, re.compile(r"gh[opsur]_[A-Za-z0-9]{36,255}"))
_SLACK = (4, re.compile(r"xox[abeoprs]-[A-Za-z0-9-]{10,250}"))
_SIGNED = {
    "_": {
        "hp": _GITHUB, "ho": _GITHUB, "hs": _GITHUB, "hu": _GITHUB, "hr": _GITHUB,
        "at": (10, re.compile(r"github_pat_[A-Za-z0-9_]{50,255}")),
        "sk": (2, re.compile(r"sk_(?:live|test)_[A-Za-z0-9]{16,250}")),
        "rk": (2, re.compile(r"rk_(?:live|test)_[A-Za-z0-9]{16,250}")),
        "hf": (2, re.compile(r"hf_[A-Za-z0-9]{30,60}")),
        "pm": (3, re.compile(r"npm_[A-Za-z0-9]{36}")),
    },
    "-": {
        "sk": (2, re.compile(r"sk-[A-Za-z0-9_-]{20,250}")),
        "at": (5, re.compile(r"glpat-[A-Za-z0-9_-]{20,300}")),
        "pi": (4, re.compile(r"pypi-A[A-Za-z0-9_-]{50,400}")),
        **{f"x{kind}": _SLACK for kind in "abeoprs"},
    },
}  # fmt: skip
_CAPITALS = ("AKIA", "ASIA")
_BLOCK = re.compile(r"-----BEGIN ((?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?)-----")
_BASE64_LINES = re.compile(r"(?:(?:\s|\\[nr]){1,4}[A-Za-z0-9+/=]{16,80})*+")
_BLOCK_REACH = 20_000

# The names that stand before a secret, in small letters.
_LATIN_NAMES = ("passw", "passphr", "pwd", "secret", "token", "bearer ")
_KEY_NAMES = ("api_key", "api-key", "api key", "apikey")
_CHINESE_NAMES = ("密码", "密碼", "口令", "密钥", "密鑰", "令牌")
_WEAK_NAMES = ("passw", "passphr", "pwd", "密码", "密碼", "口令")
_OPEN = r"[\"'“‘`「]{0,2}"
_VALUE = r"(?P<value>[!#$%&*+\-./0-9:=?@A-Z^_a-z|~]{6,200})"
_GIVEN = (
    r"(?:[\"'”’\]」]{0,2}[ \t]{0,3}(?::=|=>|->|[:=：＝])[ \t]{0,3}"
    r"|[ ](?:is|was|-|–)[ ]{1,2}|[ ]{0,2}(?:是|为|為)[ ]{0,2})"
)
_LATIN_ASSIGNMENT = re.compile(
    r"(?:password|passwd|passphrase|pwd|secret|token|api[ _-]?key)(?![a-z])"
    r"(?:[_-]?[a-z]{1,12}){0,3}"
    + _GIVEN + _OPEN + _VALUE,
    re.IGNORECASE,
)  # fmt: skip
_BEARER = re.compile(r"[Bb]earer (?P<value>[A-Za-z0-9._~+/=-]{20,500})")
_CHINESE_ASSIGNMENT = re.compile(
    r"(?:密码|密碼|口令|密钥|密鑰|令牌)(?:" + _GIVEN + "|[ ]{0,2})" + _OPEN + _VALUE
)
_NEXT_FIELD = re.compile("&[A-Za-z_]{1,40}[=;]")
_URL = re.compile(
    r"://(?P<pair>[^\s:/@?#\"'<>\[\]{}$]{0,64}:(?P<word>[^\s/@\"'<>\[\]{}$]{1,128}))@[^\s/@:\"'<>]"
)
_NO_PASSWORD = (
    "password",
    "passwd",
    "pass",
    "pwd",
    "secret",
    "token",
    "xxx",
    "xxxx",
    "****",
    "***",
)
_NO_SECRET = ("sha256", "sha512", "sha224", "sha384", "base64", "oauth2", "argon2", "argon2id")


def secrets(text: str) -> Iterator[Found]:
    """Keys by form, passwords and tokens by the name before them and their shape. Of a URL both
    the user and the password are covered."""
    yield from _signed(text)
    yield from _published(text)
    yield from _blocks(text)
    yield from _assigned(text)
    for place in places(text, "://"):
        match = _URL.match(text, place)
        if match is not None and match["word"].lower() not in _NO_PASSWORD:
            yield Found("key", *match.span("pair"))


def _signed(text: str) -> Iterator[Found]:
    for sign, forms in _SIGNED.items():
        for place in places(text, sign):
            entry = forms.get(text[place - 2 : place]) if place >= 2 else None
            if entry is not None and place >= entry[0]:
                yield from _key_at(text, place - entry[0], place + 1, entry[1])


def _published(text: str) -> Iterator[Found]:
    for anchor, form in _PUBLISHED.items():
        for place in places(text, anchor):
            yield from _key_at(text, place, place + len(anchor), form)


def _key_at(text: str, start: int, body: int, form: re.Pattern[str]) -> Iterator[Found]:
    """The key at `start`, whose random part begins at `body`, unless it goes on to the left."""
    if is_word(text, start - 1) or text[max(0, start - 1) : start] == "-":
        return
    match = form.match(text, start)
    if match and (text[start:body] in _CAPITALS or _is_mixed(text[body : match.end()])):
        yield Found("key", *match.span())


def _blocks(text: str) -> Iterator[Found]:
    done = 0
    for place in places(text, "-----BEGIN "):
        match = _BLOCK.match(text, place)
        if match is None or place < done:
            continue
        last = f"-----END {match[1]}-----"
        end = text.find(last, match.end(), match.end() + _BLOCK_REACH)
        if end >= 0:
            done = end + len(last)
        else:
            lines = _BASE64_LINES.match(text, match.end(), match.end() + _BLOCK_REACH)
            done = lines.end() if lines else match.end()
            if done == match.end():
                continue
        yield Found("key", place, done)


def _assigned(text: str) -> Iterator[Found]:
    small = text.lower()
    if len(small) != len(text):
        small = text
    names = [name for name in _LATIN_NAMES if name in small]
    if "key" in small:
        names += [name for name in _KEY_NAMES if name in small]
    if not text.isascii():
        names += [name for name in _CHINESE_NAMES if name in small]
    for name in names:
        form = _LATIN_ASSIGNMENT if name.isascii() else _CHINESE_ASSIGNMENT
        for place in places(small, name):
            match = (_BEARER if name == "bearer " else form).match(text, place)
            if match is None:
                continue
            value = _NEXT_FIELD.split(match["value"], maxsplit=1)[0].rstrip(".:?")
            end = match.start("value") + len(value)
            shaped = _is_password(value) if name in _WEAK_NAMES else _is_token(value)
            # What a bracket follows is a call or an index.
            if shaped and text[end : end + 1] not in ("(", "[", "{") and not _is_code(value):
                yield Found("key", match.start("value"), end)


def _is_password(value: str) -> bool:
    """Letters with digits, six and more digits, or capitals, small letters and signs together."""
    if not 6 <= len(value) <= 64:
        return False
    lower = any(c.islower() for c in value)
    upper = any(c.isupper() for c in value)
    digit = any(c.isdigit() for c in value)
    sign = any(c in "!#$%&*+?@^~|-_" for c in value)
    return (digit and (lower or upper)) or value.isdigit() or (lower and upper and sign)


def _is_token(value: str) -> bool:
    # Names of classes and files are mixed, too, but hardly as long without a digit.
    drawn = any(c.isdigit() for c in value) or len(value) >= 24
    return drawn and len(value) >= 12 and _is_mixed(value)


def _is_mixed(value: str) -> bool:
    """Two of small letters, capitals and digits, and over 2.5 bits a character (Shannon) within."""
    kinds = (any(c.islower() for c in value), any(c.isupper() for c in value))
    if sum(kinds) + any(c.isdigit() for c in value) < 2:
        return False
    total = len(value)
    return -sum(n / total * math.log2(n / total) for n in Counter(value).values()) > 2.5


_CODE = re.compile(
    r"[A-Za-z_]+(?:[._][A-Za-z_]+)+|https?:.*|[./~].*/.*|\$[A-Za-z_]+|%[A-Za-z_]+%|\*+|x{4,}|.*\.\.\."
    r"|[^@]*\.(?:html?|md|py|js|json|toml|ya?ml|txt|rs)(?:#.*)?"
    r"|.*(?:[-_/.#][a-z]{3,}){3}.*|[^@]+@[^@]+\.[A-Za-z]{2,10}"
)


def _is_code(value: str) -> bool:
    """Whether it is a name, a path, words in a row, an address or a gap to fill, no secret."""
    return value.lower() in _NO_SECRET or _CODE.fullmatch(value) is not None
