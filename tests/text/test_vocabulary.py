"""Adding entries changes no old id; fertility counts what it says it counts."""

from __future__ import annotations

import json
import random
import sys
import unicodedata
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
from text.alphabets import bilingual_text, mixed_text
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from chatbench.errors import UsageError
from chatbench.text.fast_encoding import FastEncoder
from chatbench.text.template import END_OF_TEXT, TURN_END, TURN_START
from chatbench.text.tokenizer import CONTROL_TOKENS, Tokenizer, open_tokenizer, train_tokenizer
from chatbench.text.vocabulary import Fertility, count_for, extend_tokenizer, fertility
from conftest import ENGLISH, sample_texts

NEW_TEXTS = [
    "深度学习的注意力机制让模型同时看到整句话。梯度下降法更新权重。",
    "Gradient descent updates the weights; attention heads attend to tokens.",
] * 20


@pytest.fixture(scope="module")
def base() -> Tokenizer:
    return train_tokenizer(sample_texts(), 400)


@pytest.fixture(scope="module")
def extended(base: Tokenizer) -> Tokenizer:
    return extend_tokenizer(base, NEW_TEXTS, 480)


def merges_of(tokenizer: Tokenizer) -> list[list[str]]:
    return list(json.loads(tokenizer.to_bytes())["model"]["merges"])


def test_old_entries_merges_and_control_tokens_stay(base: Tokenizer, extended: Tokenizer) -> None:
    assert extended.vocab_size == 480
    assert extended.token_bytes[: base.vocab_size] == base.token_bytes
    assert extended.control_ids == base.control_ids
    assert (extended.end_of_text, extended.turn_start, extended.turn_end) == (
        base.end_of_text, base.turn_start, base.turn_end
    )  # fmt: skip
    old = merges_of(base)
    assert merges_of(extended)[: len(old)] == old
    assert len(set(map(tuple, merges_of(extended)))) == len(old) + 80
    contents = [c for n, c in enumerate(extended.token_bytes) if n not in extended.control_ids]
    assert len(set(contents)) == len(contents), "nothing is spelled twice"


def test_every_added_entry_is_reached_by_its_own_text(base: Tokenizer, extended: Tokenizer) -> None:
    whole = 0
    for number in range(base.vocab_size, extended.vocab_size):
        try:
            text = extended.token_bytes[number].decode()
        except UnicodeDecodeError:
            continue
        assert extended.encode(text) == [number]
        whole += 1
    assert whole > 25


def test_half_characters_among_the_added_entries_are_reached_too(base: Tokenizer) -> None:
    # Three characters that begin with the same two bytes, which therefore become one entry.
    texts = ["\u4f80 \u4f81 \u4f82 \u4f83"] * 5
    bigger = extend_tokenizer(base, texts, base.vocab_size + 2)
    added = bigger.token_bytes[base.vocab_size :]
    assert b"\xe4\xbe" in {content.removeprefix(b" ") for content in added}
    assert set(range(base.vocab_size, bigger.vocab_size)) & set(bigger.encode("\u4f84 \u4f85"))


def test_text_comes_back_and_takes_fewer_tokens(
    base: Tokenizer, extended: Tokenizer, rng: random.Random
) -> None:
    for _ in range(500):
        text = mixed_text(rng)
        assert extended.decode(extended.encode(text)) == base.decode(base.encode(text))
    for text in NEW_TEXTS[:2]:
        assert extended.decode(extended.encode(text)) == text
        assert len(extended.encode(text)) * 2 < len(base.encode(text))


def test_words_that_hold_no_new_merge_keep_their_ids(
    base: Tokenizer, extended: Tokenizer, rng: random.Random
) -> None:
    new = {tuple(merge) for merge in merges_of(extended)[len(merges_of(base)) :]}
    spelled = {number: token for token, number in extended._backend.get_vocab().items()}
    same = 0
    for _ in range(500):
        ids = base.encode(bilingual_text(rng, 3))
        tokens = [spelled[number] for number in ids]
        if not new & set(pairwise(tokens)):
            assert extended.encode(base.decode(ids)) == ids
            same += 1
    assert same > 20


def test_extending_is_learning_on(rng: random.Random) -> None:
    texts = [bilingual_text(rng) for _ in range(60)]
    half, whole = train_tokenizer(texts, 290), train_tokenizer(texts, 320)
    grown = extend_tokenizer(half, texts, 320)
    assert merges_of(grown) == merges_of(whole)


def test_the_extension_module_and_python_extend_alike(
    base: Tokenizer, extended: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import chatbench.text

    pytest.importorskip("chatbench.text._bpe")
    monkeypatch.delattr(chatbench.text, "_bpe", raising=False)
    monkeypatch.setitem(sys.modules, "chatbench.text._bpe", None)
    assert extend_tokenizer(base, NEW_TEXTS, 480).to_bytes() == extended.to_bytes()


def test_extending_twice_and_by_nothing(base: Tokenizer, extended: Tokenizer) -> None:
    assert extend_tokenizer(base, NEW_TEXTS, base.vocab_size).digest != extended.digest
    again = extend_tokenizer(extended, [ENGLISH, "量子计算机正在变得更快。" * 3], 490)
    assert again.vocab_size == 490
    assert again.token_bytes[:480] == extended.token_bytes
    assert again.control_ids == base.control_ids
    few = extend_tokenizer(base, ["xyzxyz"], 10_000)
    assert base.vocab_size < few.vocab_size < base.vocab_size + 6
    counted = count_for(base, NEW_TEXTS)
    assert extend_tokenizer(base, counted, 480).to_bytes() == extended.to_bytes()


def test_every_program_reads_it_with_the_same_ids(
    extended: Tokenizer, tmp_path: Path, rng: random.Random, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer

        extended.save(tmp_path)
        theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    opened = open_tokenizer(tmp_path)
    assert opened.digest == extended.digest
    assert theirs.convert_tokens_to_ids(list(CONTROL_TOKENS)) == [
        extended.end_of_text, extended.turn_start, extended.turn_end
    ]  # fmt: skip
    assert len(theirs) == extended.vocab_size
    texts = [*NEW_TEXTS[:2], *(mixed_text(rng) for _ in range(100))]
    expected = [extended.encode(text) for text in texts]
    assert [opened.encode(text) for text in texts] == expected
    assert [theirs.encode(text, add_special_tokens=False) for text in texts] == expected
    marked = f"{TURN_START}user\n茶{TURN_END}{END_OF_TEXT}"
    ids = theirs.encode(marked, add_special_tokens=False)
    assert [n for n in ids if n in extended.control_ids] == [
        extended.turn_start, extended.turn_end, extended.end_of_text
    ]  # fmt: skip
    assert not extended.control_ids & set(extended.encode(marked))
    pytest.importorskip("gigatoken")
    encoder = FastEncoder(extended._text_only, worth_building=0)
    for text, ids in zip([*texts, marked], [*expected, extended.encode(marked)], strict=True):
        assert encoder.encode([text])[0].tolist() == ids
    assert encoder.reason is None
    assert "holes" not in capfd.readouterr().out


def other_split() -> Tokenizer:
    """A byte-level BPE with GPT-2's split and no composition, as foreign models have."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    from tokenizers.trainers import BpeTrainer

    trainer = BpeTrainer(
        vocab_size=300, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(sample_texts(), trainer=trainer)
    backend.add_special_tokens(list(CONTROL_TOKENS))
    return Tokenizer(backend)


def test_another_split_is_kept(rng: random.Random) -> None:
    base = other_split()
    words = dict(count_for(base, ["in 2024 e\u0301"] * 3).items())
    assert words == {b"in": 3, b" 2024": 3, b" e": 3, "\u0301".encode(): 3}
    grown = extend_tokenizer(base, ["in 2024 小店"] * 9, base.vocab_size + 14)
    assert b" 2024" in grown.token_bytes
    text = bilingual_text(rng)
    assert grown.decode(grown.encode(text)) == text


def test_what_cannot_be_extended_is_said(base: Tokenizer) -> None:
    with pytest.raises(UsageError, match="has 400 entries already, more than the 300 wanted"):
        extend_tokenizer(base, NEW_TEXTS, 300)
    content = json.loads(base.to_bytes())
    for change in ({"byte_fallback": True}, {"ignore_merges": True}, {"unk_token": "a"}):
        other = Tokenizer(
            Backend.from_str(json.dumps(content | {"model": content["model"] | change}))
        )
        with pytest.raises(UsageError, match="only byte-level BPE"):
            extend_tokenizer(other, NEW_TEXTS, 600)


# ---- fertility


def test_fertility_by_hand() -> None:
    tokenizer = train_tokenizer(["茶"] * 5 + [" the"] * 5, 256 + 3 + 5)
    texts = {"en": [" the the teapot"], "zh": ["茶茶书，茶"], "none": []}
    en, zh, none = fertility(tokenizer, texts)
    # " the" is one token; " teapot" holds no entry but bytes.
    assert (en.language, en.texts, en.bytes, en.characters, en.words) == ("en", 1, 15, 15, 3)
    assert en.tokens == 2 + len(tokenizer.encode(" teapot")) == 9
    assert en.worst_words == (("teapot", 7),)
    # 书 is three bytes without an entry, and so is the comma.
    assert (zh.texts, zh.bytes, zh.characters, zh.words, zh.tokens) == (1, 15, 5, 4, 9)
    assert zh.worst_words == (("书", 3),)
    assert zh.bytes_per_token == 15 / 9
    assert zh.tokens_per_word == 9 / 4
    assert zh.vocabulary_use == 7 / (tokenizer.vocab_size - 3)
    assert none == Fertility("none", 0, 0, 0, 0, 0, 0, tokenizer.vocab_size - 3)
    assert (none.bytes_per_token, none.tokens_per_word, none.vocabulary_use) == (0, 0, 0)


def test_words_of_many_scripts_are_counted(base: Tokenizer) -> None:
    def words(text: str) -> int:
        return fertility(base, {"": [text]})[0].words

    assert words("हिन्दी में लिखा") == 3
    assert words("GPT茶4 e\u0301te\u0301") == 4
    assert words("한국어 문장") == 2
    assert words("日本の テキスト") == 7
    assert words("...，。!? \n") == 0


def test_fertility_agrees_with_encoding_each_text(base: Tokenizer, rng: random.Random) -> None:
    texts = [bilingual_text(rng) for _ in range(30)]
    (row,) = fertility(base, {"mixed": texts})
    ids = [number for text in texts for number in base.encode(text)]
    assert (row.tokens, row.entries_seen) == (len(ids), len(set(ids)))
    assert row.bytes == sum(len(text.encode()) for text in texts)
    assert row.characters == sum(map(len, texts))
    pieces = [n for _, n in row.worst_words]
    assert pieces == sorted(pieces, reverse=True)
    for word, n in row.worst_words:
        spaced = (
            word if any(unicodedata.name(c, "").startswith("CJK") for c in word) else f" {word}"
        )
        assert len(base.encode(spaced)) == n > 1
