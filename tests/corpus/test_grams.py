"""Word and n-gram hashes against a plain Python twin, for any Unicode and any batch."""

from __future__ import annotations

import gzip
import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatbench.corpus.cleaning import grams
from chatbench.corpus.cleaning.grams import GramSet, mix, ngrams, shingles, spell, words
from conftest import CHINESE, ENGLISH, SHARED_DATA, sample_texts

TEXTS = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("aZ09 ,.\n茶書あカ한éé\u0301İßΣς\ud800️❤😀\U00020000"),
    ),
    max_size=60,
)
SINGLE = [
    (0x2E80, 0x2FE0), (0x3040, 0x3100), (0x31F0, 0x3200), (0x3400, 0x4DC0), (0x4E00, 0xA000),
    (0xAC00, 0xD7B0), (0xF900, 0xFB00), (0x20000, 0x32000),
]  # fmt: skip


def twin_words(text: str) -> list[str]:
    """Character by character."""
    found: list[str] = []
    open_word = False
    for c in unicodedata.normalize("NFC", text).lower():
        code = ord(c)
        is_word = (
            unicodedata.category(c)[0] in "LNM" and code < 0x32000 and not 0xFE00 <= code <= 0xFE0F
        )
        single = is_word and any(a <= code < b for a, b in SINGLE)
        if not is_word:
            open_word = False
        elif single or not open_word:
            found.append(c)
            open_word = not single
        else:
            found[-1] += c
    return found


def twin_hash(word: str) -> int:
    """The polynomial that the prefix sums compute, in Python integers."""
    base, total = 0x9E3779B97F4A7C15, 0
    for place, c in enumerate(word):
        total += twin_mix(ord(c) + 1) * pow(base, place, 1 << 64)
    return twin_mix(total)


def twin_mix(value: int) -> int:
    value &= (1 << 64) - 1
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value = (value ^ value >> 33) * factor % (1 << 64)
    return value ^ value >> 33


def twin_gram(hashes: list[int]) -> int:
    return twin_mix(sum(h * (twin_mix(n + 1) | 1) for n, h in enumerate(hashes)))


@settings(deadline=None, max_examples=300)
@given(st.lists(TEXTS, max_size=6))
@example(["İ i̇ I", "", " ", "ΑΣ ας"])
@example(["a\ud800b", "a b", "ab"])
def test_words_and_grams_are_what_the_twin_says(texts: list[str]) -> None:
    found = words(texts)
    assert len(found.starts) == len(texts) + 1
    for number, text in enumerate(texts):
        expected = [twin_hash(word) for word in twin_words(text)]
        assert found.of(number).tolist() == expected
        assert spell(text) == twin_words(text)
        assert spell(text, 1, 2) == twin_words(text)[1:3]
        for n in (1, 3):
            windows = [twin_gram(expected[i : i + n]) for i in range(len(expected) - n + 1)]
            assert ngrams(found, n).of(number).tolist() == windows
            if 0 < len(expected) < n:
                windows = [twin_gram(expected)]
            assert shingles(found, n).of(number).tolist() == windows
    owner = ngrams(found, 2).owner().tolist()
    assert owner == sorted(owner)


def test_words_are_those_that_people_see() -> None:
    assert spell("Don't stop: 3.5 km, 我爱北京 iPhone15！") == [
        "don", "t", "stop", "3", "5", "km", "我", "爱", "北", "京", "iphone15",
    ]  # fmt: skip
    assert spell("❤️ 茶\ufe00 cafe\u0301") == ["茶", "café"]
    assert spell("한국 カナ") == ["한", "국", "カ", "ナ"]


@pytest.mark.parametrize("block", [1, 2, 7, 64])
def test_neither_blocks_nor_batches_change_anything(
    block: int, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*sample_texts(40), "", "x" * 300, "茶" * 300, " " * 300, "ab " * 100]
    rng.shuffle(texts)
    whole = words(texts)
    monkeypatch.setattr(grams, "_BLOCK", block)
    again = words(texts)
    assert np.array_equal(whole.hashes, again.hashes)
    assert np.array_equal(whole.starts, again.starts)
    for number in range(len(texts)):
        assert np.array_equal(words(texts[number : number + 1]).hashes, whole.of(number))


def test_hashes_are_the_same_in_every_process() -> None:
    code = (
        "from chatbench.corpus.cleaning.grams import *;"
        f"print(ngrams(words([{ENGLISH!r}, {CHINESE!r}]), 2).hashes.tolist())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("0", "77")
    }  # fmt: skip
    assert outputs == {f"{ngrams(words([ENGLISH, CHINESE]), 2).hashes.tolist()}\n"}


def test_real_text_has_no_collisions() -> None:
    for folder in ("gutenberg-en", "gutenberg-zh"):
        files = sorted((SHARED_DATA / folder).glob("*.gz"))[:3]
        if not files:
            pytest.skip("needs the real data")
        texts = [gzip.decompress(path.read_bytes()).decode()[:300_000] for path in files]
        spelled = [spell(text) for text in texts]
        assert len(np.unique(words(texts).hashes)) == len({w for ws in spelled for w in ws})
        triples = {w for ws in spelled for w in zip(ws, ws[1:], ws[2:], strict=False)}
        assert len(np.unique(ngrams(words(texts), 3).hashes)) == len(triples)


def test_a_gram_set_finds_what_is_in_it_and_nothing_else(rng: random.Random) -> None:
    for size in (0, 1, 2, 500):
        inside = [rng.getrandbits(64) for _ in range(size)]
        found = GramSet(np.array(inside * 2, np.uint64))
        assert len(found) == size
        # Neighbours share the highest bits, so the filter lets them through.
        asked = [*inside, *(h ^ 1 for h in inside), *(rng.getrandbits(64) for _ in range(50))]
        rng.shuffle(asked)
        places, where = found.find(np.array(asked, np.uint64))
        assert places.tolist() == [n for n, h in enumerate(asked) if h in set(inside)]
        assert found.hashes[where].tolist() == [asked[n] for n in places]


def test_mixing_is_a_permutation_that_spreads_bits() -> None:
    values = np.arange(1 << 16, dtype=np.uint64)
    mixed = mix(values)
    assert len(np.unique(mixed)) == 1 << 16
    assert values[5] == 5, "the argument stays as it is"
    flipped = mixed ^ mix(values ^ np.uint64(1))
    bits = np.unpackbits(flipped.view(np.uint8)).mean()
    assert bits == pytest.approx(0.5, abs=0.01)
