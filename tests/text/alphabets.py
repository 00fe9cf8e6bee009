"""Random strings that visit every corner of the split pattern and of composition."""

from __future__ import annotations

import random
import unicodedata
from functools import cache

SPACES = [9, 10, 11, 12, 13, 28, 29, 30, 31, 32, 32, 0x85, 0xA0, 0x1680, 0x2003, 0x2028, 0x2029,
          0x202F, 0x3000, 0x200B, 0xFEFF]  # fmt: skip
CONTRACTIONS = [ord(c) for c in "aberstvldmTSVELDMR''''019 \n\r-,.<|>ſ"]


@cache
def assigned() -> list[int]:
    """Code points this Python knows, but surrogates."""
    return [c for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cs", "Cn")]


@cache
def composing() -> list[int]:
    """Code points that composition moves or changes, and conjoining jamo."""
    changed = [c for c in assigned() if unicodedata.combining(chr(c))]
    changed += [c for c in assigned() if unicodedata.normalize("NFC", chr(c)) != chr(c)]
    return [*changed, *range(0x1100, 0x1200), *(ord(c) for c in "aeiouAEIOUかはヘ")]


def mixed_text(rng: random.Random, longest: int = 40) -> str:
    """Scripts, spaces, contractions, marks and unassigned code points, thrown together."""
    kinds = (
        SPACES, CONTRACTIONS, composing(), range(0x4E00, 0x9FA6), assigned(),
        range(0xD800), range(0xE000, 0x110000),
    )  # fmt: skip
    chosen = rng.choices(kinds, weights=(15, 25, 20, 15, 20, 3, 2), k=rng.randrange(longest))
    return "".join(chr(rng.choice(kind)) for kind in chosen)


def bilingual_text(rng: random.Random, words: int = 40) -> str:
    """Prose-like text with repeated words of both languages."""
    vocabulary = (
        "the shop opens at nine", " don't", " they'll", "小店", "早上九点", "开门。", "，", " 2024",
        "\n", "  ", "é", "e\u0301", " ", "茶", "books", "!!!", "\t", "한국어",
    )  # fmt: skip
    return "".join(rng.choices(vocabulary, k=words))
