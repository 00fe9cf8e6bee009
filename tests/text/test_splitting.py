"""The classes, the pattern and the composition of `tokenizers`, found again outside it."""

from __future__ import annotations

import random
import unicodedata

import numpy as np
import pytest
from text.alphabets import assigned, composing, mixed_text
from tokenizers import Regex, normalizers
from tokenizers.pre_tokenizers import Split

from chatbench.errors import DataError
from chatbench.text import splitting
from chatbench.text.splitting import (
    CODE_POINTS,
    LETTER,
    LINE_END,
    NUMBER,
    QWEN2_PATTERN,
    SPACE,
    character_classes,
    composed,
    is_doubtful,
    split_pattern,
)


def test_the_classes_of_all_code_points_are_those_of_tokenizers() -> None:
    points = "".join(chr(c) for c in range(CODE_POINTS) if not 0xD800 <= c < 0xE000)
    table = character_classes()
    for others, numbers in ((r"\P{L}", [LETTER]), (r"\P{N}", [NUMBER]), (r"\S", [SPACE, LINE_END])):
        members = normalizers.Replace(Regex(others), "").normalize_str(points)
        assert [ord(c) for c in members] == np.flatnonzero(np.isin(table, numbers)).tolist()
    assert np.flatnonzero(table == LINE_END).tolist() == [10, 13]


def test_the_classes_agree_with_unicodedata_on_what_both_know() -> None:
    table = character_classes()
    for code in assigned():
        kind = unicodedata.category(chr(code))[0]
        assert (table[code] == LETTER) == (kind == "L"), hex(code)
        assert (table[code] == NUMBER) == (kind == "N"), hex(code)


def test_words_are_the_pieces_tokenizers_makes(rng: random.Random) -> None:
    theirs = Split(Regex(QWEN2_PATTERN), behavior="isolated")
    for _ in range(5000):
        text = mixed_text(rng)
        expected = [piece for piece, _ in theirs.pre_tokenize_str(text)]
        assert split_pattern().findall(text) == expected, ascii(text)


def test_composition_is_that_of_tokenizers(rng: random.Random) -> None:
    newer = [c for a, b in splitting._NEWER_COMPOSITION for c in range(a, b + 1)]
    theirs = normalizers.NFC()
    for code in {*composing(), *newer}:
        c = chr(code)
        for text in (c, f"{c}\u0334\u0301", f"a\u0345{c}", f"a\u0301{c}\u0334", c + c):
            assert composed(text) == theirs.normalize_str(text), hex(code)
    for _ in range(5000):
        text = mixed_text(rng)
        assert composed(text) == theirs.normalize_str(text), ascii(text)


def test_doubt_is_the_same_with_and_without_the_extension(rng: random.Random) -> None:
    pytest.importorskip("chatbench.text._bpe")
    doubtful = 0
    for _ in range(5000):
        text = mixed_text(rng)
        expected = splitting._doubtful().search(text) is not None
        assert is_doubtful(text) == expected, ascii(text)
        doubtful += expected
    assert 100 < doubtful < 4900
    assert is_doubtful("a\ud83db")
    assert not is_doubtful("茶a")


def test_half_characters_are_refused_by_name() -> None:
    with pytest.raises(DataError, match=r"lone surrogate U\+D83D\) at 2: '\\u8336a\\ud83d'"):
        composed("茶a\ud83d")
