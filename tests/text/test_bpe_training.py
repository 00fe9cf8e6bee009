"""Counting and learning, each against a slower way and against the trainer of `tokenizers`."""

from __future__ import annotations

import json
import random
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from text.alphabets import bilingual_text, mixed_text
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from chatbench.errors import DataError, IntegrityError
from chatbench.text import bpe_training
from chatbench.text.bpe_training import (
    LONGEST_WORD,
    WordCounts,
    count_in_runs,
    count_words,
    learn_merges,
    learn_slowly,
    load_word_counts,
    merge_word_counts,
    pack_words,
)
from chatbench.text.splitting import QWEN2_PATTERN, byte_alphabet
from chatbench.text.tokenizer import train_tokenizer
from conftest import SHARED_DATA

ENTRIES = [bytes([byte]) for _, byte in sorted(byte_alphabet().items())]
NONE = np.zeros((0, 3), np.uint32)


def without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    import chatbench.text

    monkeypatch.delattr(chatbench.text, "_bpe", raising=False)
    monkeypatch.setitem(sys.modules, "chatbench.text._bpe", None)


@pytest.fixture(params=["extension", "python"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything is tested with the extension and without it."""
    if request.param == "python":
        without_extension(monkeypatch)
    else:
        pytest.importorskip("chatbench.text._bpe")
    return str(request.param)


def trained_by_tokenizers(texts: list[str], vocab_size: int) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    return backend


# ---- counting


def test_words_are_counted_as_tokenizers_splits_them(either: str, rng: random.Random) -> None:
    texts = [mixed_text(rng) for _ in range(3000)]
    backend = trained_by_tokenizers([], 256)
    alphabet = byte_alphabet()
    expected: Counter[bytes] = Counter()
    for text in texts:
        normal = backend.normalizer.normalize_str(text)
        pieces = backend.pre_tokenizer.pre_tokenize_str(normal)
        expected.update(bytes(alphabet[c] for c in piece) for piece, _ in pieces)
    assert dict(count_words(texts).items()) == expected


def test_long_words_are_counted_in_pieces_cut_between_characters(either: str) -> None:
    text = "茶" * 3000 + "\n" + "a" * 10_000
    counted = dict(count_words([text]).items())
    whole, rest = divmod(LONGEST_WORD, 3)[0] * 3, 9000 % (LONGEST_WORD // 3 * 3)
    assert counted == {
        ("茶" * (whole // 3)).encode(): 2,
        ("茶" * (rest // 3)).encode(): 1,
        b"\n": 1,
        b"a" * LONGEST_WORD: 2,
        b"a" * (10_000 - 2 * LONGEST_WORD): 1,
    }


def test_half_characters_are_no_words(either: str) -> None:
    with pytest.raises(DataError, match="lone surrogate"):
        count_words(["good", "bad \ud800"])


def test_counts_are_the_same_whatever_the_parts(
    either: str, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [bilingual_text(rng) + mixed_text(rng) for _ in range(200)]
    whole = count_words(texts)
    assert list(whole.items()) == sorted(whole.items())
    rng.shuffle(texts)
    parts = [count_words(texts[:20]), count_words([]), count_words(texts[20:])]
    for held in (10, 100, 1 << 20):
        merged = merge_word_counts(parts, most_held=held)
        assert list(merged.items()) == list(whole.items())
    monkeypatch.setattr(bpe_training, "MOST_HELD", 50)
    assert sum(1 for _ in count_in_runs(texts)) > 3
    assert list(count_words(texts).items()) == list(whole.items())


def test_too_many_words_are_cut_down_by_count_then_by_checksum(
    either: str, rng: random.Random
) -> None:
    words = {f"词{n}".encode(): rng.choice((1, 1, 1, 2, 3, 9)) for n in range(4000)}
    names = list(words)
    rng.shuffle(names)
    parts = [pack_words({w: words[w] for w in names[i::3]}) for i in range(3)]
    found = [
        dict(merge_word_counts(p, most_words=2500, most_held=held).items())
        for p in (parts, parts[::-1], [pack_words(words)])
        for held in (300, 1 << 20)
    ]
    assert all(kept == found[0] for kept in found)
    kept = found[0]
    twice = {word: n for word, n in words.items() if n >= 2}
    ones = sorted((w for w in words if words[w] == 1), key=zlib.crc32)
    chosen = [w for w in ones if w in kept]
    assert {w: n for w, n in kept.items() if n >= 2} == twice
    assert chosen == ones[: len(chosen)], "those with the smallest checksums"
    assert abs(len(kept) - 2500) < 250


def test_counts_survive_a_file_and_damage_is_named(tmp_path: Path, rng: random.Random) -> None:
    counted = count_words([bilingual_text(rng), "x"])
    path = tmp_path / "words"
    counted.save(path)
    assert list(load_word_counts(path).items()) == list(counted.items())
    data = path.read_bytes()
    for size in (0, 1, 20, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(IntegrityError, match="not a complete file of word counts"):
            load_word_counts(path)
    path.write_bytes(b"x" * len(data))
    with pytest.raises(IntegrityError):
        load_word_counts(path)
    empty = count_words([])
    empty.save(path)
    assert load_word_counts(path).size() == 0


# ---- learning


def random_words(rng: random.Random) -> WordCounts:
    """Few letters and small counts, so that ties and entries spelled in two ways abound."""
    letters = rng.choice(("ab", "abc", "abcdefgh", "茶书abé"))
    counts = Counter(
        "".join(rng.choices(letters, k=rng.randrange(1, 14))).encode()
        for _ in range(rng.randrange(1, 60))
    )
    return pack_words({word: n * rng.randrange(1, 4) for word, n in counts.items()})


def test_merges_equal_those_of_the_slow_learner(rng: random.Random) -> None:
    pytest.importorskip("chatbench.text._bpe")
    for _ in range(200):
        words, wanted = random_words(rng), rng.randrange(120)
        for unique in (False, True):
            fast = learn_merges(words, ENTRIES, NONE, wanted, unique)
            slow = learn_slowly(words, ENTRIES, NONE, wanted, unique)
            assert fast.tolist() == slow.tolist(), (dict(words.items()), wanted, unique)


def test_learning_in_two_goes_equals_learning_in_one(rng: random.Random) -> None:
    pytest.importorskip("chatbench.text._bpe")
    for _ in range(200):
        words, wanted = random_words(rng), rng.randrange(2, 60)
        whole = learn_merges(words, ENTRIES, NONE, wanted, unique=True)
        for learn in (learn_merges, learn_slowly):
            entries = list(ENTRIES)
            first = whole[: len(whole) // 2]
            for left, right, _ in first.tolist():
                entries.append(entries[left] + entries[right])
            rest = learn(words, entries, first, wanted - len(first), True)
            assert rest.tolist() == whole[len(first) :].tolist()


def test_the_tokenizer_is_the_one_that_tokenizers_trains(either: str, rng: random.Random) -> None:
    for _ in range(12):
        texts = [bilingual_text(rng) + mixed_text(rng) for _ in range(rng.randrange(1, 40))]
        texts += ["".join(rng.choices("ab ", k=40)) for _ in range(10)]
        size = rng.randrange(256, 1200)
        ours = json.loads(train_tokenizer(texts, size + 3).to_bytes())
        theirs = json.loads(trained_by_tokenizers(texts, size).to_str())
        assert ours["model"] == theirs["model"]
        assert ours["pre_tokenizer"] == theirs["pre_tokenizer"]
        assert ours["normalizer"] == theirs["normalizer"]


def test_order_of_texts_does_not_matter(either: str, rng: random.Random) -> None:
    texts = [bilingual_text(rng) for _ in range(50)]
    first = train_tokenizer(texts, 500).to_bytes()
    rng.shuffle(texts)
    assert train_tokenizer(iter(texts), 500).to_bytes() == first


@pytest.mark.parametrize("folder", ["docs-zh", "tinyshakespeare"])
def test_real_text_gives_the_merges_of_tokenizers(folder: str) -> None:
    import gzip

    files = sorted((SHARED_DATA / folder).glob("*.*")) if SHARED_DATA.is_dir() else []
    texts = [
        (gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes()).decode()[
            :600_000
        ]
        for p in files
        if p.name != "SOURCE.md"
    ][:2]
    if not texts:
        pytest.skip("no shared data")
    ours = json.loads(train_tokenizer(texts, 2003).to_bytes())["model"]
    assert ours == json.loads(trained_by_tokenizers(texts, 2000).to_str())["model"]


def test_what_does_not_belong_together_is_refused_by_the_extension() -> None:
    _bpe = pytest.importorskip("chatbench.text._bpe")
    one = np.ones(1, np.uint32)
    lengths, content = np.ones(256, np.uint32), b"".join(ENTRIES)
    count = np.ones(1, np.int64)
    bad = [
        (one * 2, count, b"a", lengths, content, NONE, 1),
        (one, count[:0], b"a", lengths, content, NONE, 1),
        (one, count, b"a", lengths[1:], content[1:], NONE, 1),
        (one, count, b"a", lengths, content, np.array([[1, 2, 256]], np.uint32), 1),
        (one, count, b"a", lengths, content, NONE, -1),
    ]
    for arguments in bad:
        with pytest.raises(ValueError):
            _bpe.learn(*arguments, False)
    with pytest.raises(ValueError):
        _bpe.Counter(b"short", 4096)
    with pytest.raises(ValueError):
        _bpe.first_marked("a", b"short")
    with pytest.raises(TypeError):
        _bpe.Counter(bytes(0x110000), 4096).add(b"a")
