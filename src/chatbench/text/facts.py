"""Whether a reply says the right facts, each as a whole, and no wrong ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from chatbench.text.measuring import Judged, Measured, ratio, table
from chatbench.text.words import folded

_CHINESE_NUMERALS = "〇零一二两三四五六七八九十百千万亿"


def exact_fact_match(pairs: Sequence[Judged]) -> list[Measured]:
    """Share of replies with the right facts: all of their own, and none that belong elsewhere.

    The facts of all rows together are the known facts; a reply is right when the known facts it
    contains are exactly those that its reference contains, its own facts among them.
    """
    known = known_facts(pairs)
    rows = [(fact_hit(pair, known), 1) if pair.facts else (0, 0) for pair in pairs]
    sums = table(rows) if rows else np.zeros((0, 2))
    signature = f"known-facts:{len(known)}|nfkc|casefold"
    asked = sum(bool(pair.facts) for pair in pairs)
    return [Measured("exact_fact_match", sums, ratio(100.0), asked, signature)]


def known_facts(pairs: Sequence[Judged]) -> list[str]:
    """Every fact that any of the rows asks for."""
    return sorted({fact for pair in pairs for fact in pair.facts})


def fact_hit(pair: Judged, known: Sequence[str]) -> bool:
    """Whether one reply has the right facts and no wrong ones."""
    wanted = {fact for fact in known if contains_fact(pair.reference, fact)} | set(pair.facts)
    return wanted == {fact for fact in known if contains_fact(pair.reply, fact)}


def contains_fact(text: str, fact: str) -> bool:
    """Whether `fact` stands in `text` as a whole: "9:30" is not in "19:30", "tea" not in "team",
    "12 yuan" not in "8.12 yuan"."""
    return _fact_pattern(fact).search(folded(text)) is not None


@lru_cache(maxsize=4096)
def _fact_pattern(fact: str) -> re.Pattern[str]:
    plain = folded(fact)
    before = after = ""
    if re.match(r"[0-9a-z]", plain):
        before = r"(?<![0-9a-z])" + (r"(?<![0-9][.:,])" if plain[0].isdigit() else "")
    elif plain[:1] in _CHINESE_NUMERALS:
        before = f"(?<![{_CHINESE_NUMERALS}])"
    if re.search(r"[0-9a-z]$", plain):
        after = r"(?![0-9a-z])" + (r"(?![.:,][0-9])" if plain[-1].isdigit() else "")
    elif plain[-1:] in _CHINESE_NUMERALS:
        after = f"(?![{_CHINESE_NUMERALS}])"
    return re.compile(before + re.escape(plain) + after)
