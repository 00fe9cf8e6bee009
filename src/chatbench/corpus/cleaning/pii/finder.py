"""All finders together: overlaps settled, placeholders put in, finds counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from chatbench.corpus.cleaning.pii.found import Found, digit_runs, narrowed, require_checks
from chatbench.corpus.cleaning.pii.network import emails, ipv4, ipv6
from chatbench.corpus.cleaning.pii.numbers import cards, ibans, resident_ids
from chatbench.corpus.cleaning.pii.phones import phones
from chatbench.corpus.cleaning.pii.secrets import secrets
from chatbench.corpus.document import Counts, Document, Dropped, Stage

PLACEHOLDERS = {
    "key": "[KEY]", "email": "[EMAIL]", "iban": "[IBAN]", "resident id": "[ID_NUMBER]",
    "card": "[CARD]", "ip": "[IP]", "phone": "[PHONE]",
}  # fmt: skip
# Where two finds overlap, the one whose form says more stays: a password beats the e-mail address
# that its URL seems to hold, a check digit beats a telephone number.
_RANK = {kind: rank for rank, kind in enumerate(PLACEHOLDERS)}


# What every find holds, or the name before it; for turns of chats, where looking for each anchor
# by itself would cost more than the text is worth.
_SIGN = re.compile(
    r"[0-9０-９@＠_]|://|sk-|xox|pat-|pypi-|A[KS]IA|AIza|eyJ|SG\.|-----B|[(\[]at[)\]]| dot |"
    r"密|口令|令牌|(?i:passw|passphr|pwd|secret|token|bearer|api.?key)"
)
_SHORT = 400


def find(text: str) -> list[Found]:
    """Personal data in `text`, by place, never overlapping. The same text gives the same finds
    on every machine. UsageError without the packages `phonenumbers` and `python-stdnum`."""
    require_checks()
    return [] if len(text) < _SHORT and not _SIGN.search(text) else _look(text)


def _look(text: str) -> list[Found]:
    plain = narrowed(text)
    finds = [*secrets(plain), *emails(plain), *ipv6(plain)]
    runs = digit_runs(plain)
    if runs:
        finds += ibans(plain, runs)
        runs = [(start, end) for start, end in runs if end - start >= 7]
        for finder in (ipv4, resident_ids, cards, phones):
            finds += finder(plain, runs)
    return _settled(finds, len(text)) if finds else []


def masked(text: str) -> tuple[str, Counts]:
    """The text with placeholders, and how many finds there were of each kind. Masking the result
    again changes nothing."""
    counts: Counts = Counter()
    while finds := find(text):
        pieces, done = [], 0
        for kind, start, end in finds:
            pieces += [text[done:start], PLACEHOLDERS[kind]]
            done = end
            counts[kind] += 1
        # A number may have stood too close to a masked one to be told, so look again. Each round
        # takes away text that is no placeholder, so this ends.
        text = "".join([*pieces, text[done:]])
    return text, counts


def scrub(mode: Literal["flag", "mask"]) -> Stage:
    """A stage that counts personal data in every text of a document, and with "mask" replaces it.

    Counts are by kind: "email", "phone", "resident id", "card", "iban", "ip", "key". What it
    cannot see is listed in the package's docstring. UsageError when a package is missing.
    """
    require_checks()

    def stage(documents: Sequence[Document]) -> tuple[list[Document | Dropped], Counts]:
        counts: Counts = Counter()
        done: list[Document | Dropped] = []

        def change(text: str) -> str:
            scrubbed, found = masked(text)
            counts.update(found)
            return scrubbed

        for document in documents:
            scrubbed = document.mapped(change)
            done.append(scrubbed if mode == "mask" else document)
        return done, counts

    return stage


def _settled(finds: list[Found], length: int) -> list[Found]:
    """Greedy choice by rank, then length, then place; what overlaps a chosen find is left out."""
    taken = bytearray(length)
    chosen = []
    for found in sorted(finds, key=lambda f: (_RANK[f.kind], f.start - f.end, f.start)):
        if taken.find(1, found.start, found.end) < 0:
            taken[found.start : found.end] = b"\1" * (found.end - found.start)
            chosen.append(found)
    return sorted(chosen, key=lambda found: found.start)
