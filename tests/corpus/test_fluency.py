"""Sentences come apart without loss, set phrases are found, and the n-gram model is a proper
distribution that agrees with NLTK's Kneser-Ney."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbench.conversation import exchange
from chatbench.corpus.cleaning.fluency import (
    NGramModel,
    Punkt,
    _flat,
    _KneserNey,
    collocations,
    percentile_threshold,
    sample,
    sentences,
    split_sentences,
    stage,
)
from chatbench.corpus.document import Document, Dropped
from chatbench.errors import IntegrityError
from conftest import CHINESE, ENGLISH, SHARED_DATA, sample_texts

NAMES = ("Reed", "Wood", "Lamb", "Frost", "Page", "Snow")
THINGS = ("tea", "rain", "paper", "a letter", "the window", "his chair", "her garden")
# Every thing stands before a full stop and elsewhere, the titles before one alone.
TITLES = [
    f"Dr. {name} and Mr. Hall spoke of {thing}. With {other} came Mrs. {name}. They liked {other}. "
    f"Then {thing} was all that Mr. {name} had"
    for number, name in enumerate(NAMES)
    for thing in THINGS
    for other in THINGS[number % 3 :: 2]
]


@pytest.fixture(scope="module")
def punkt() -> Punkt:
    return Punkt.train(TITLES)


@pytest.fixture(scope="module")
def model() -> NGramModel:
    return NGramModel.train(sample_texts(200))


# ---- sentences


def test_abbreviations_are_learned_from_the_text(punkt: Punkt) -> None:
    assert {"dr", "mr", "mrs"} <= set(punkt.abbreviations)
    assert not {"tea", "rain", "letter"} & set(punkt.abbreviations)
    text = "Mr. Snow sat by Dr. Page. He had tea.  Was it good? Yes!\n\nThe rain went on"
    assert split_sentences(text, punkt) == [
        "Mr. Snow sat by Dr. Page. ", "He had tea.  ", "Was it good? ", "Yes!\n\n",
        "The rain went on",
    ]  # fmt: skip
    assert len(split_sentences("Mr. Snow sat by Dr. Page.", Punkt())) == 3


def test_chinese_sentences_end_at_their_marks() -> None:
    text = (
        "小店九点开门。“请进！”他说。真的吗？！是的……我想是。圆周率是3.14，对吧？\n\n"
        "没有标点的一段\n\n“走……”他说"
    )
    assert split_sentences(text, Punkt()) == [
        "小店九点开门。", "“请进！”", "他说。", "真的吗？！", "是的……我想是。",
        "圆周率是3.14，对吧？\n\n",
        "没有标点的一段\n\n", "“走……”", "他说",
    ]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from('aB茶 .!?。！？…”"\n\u3000Mr3'), max_size=40))
def test_sentences_joined_are_the_text(text: str) -> None:
    parts = split_sentences(text, Punkt(abbreviations=("mr",)))
    assert "".join(parts) == text
    assert all(parts)


def test_parameters_survive_json_and_hash_seeds(punkt: Punkt) -> None:
    assert Punkt.from_json(punkt.to_json()) == punkt
    for damaged in (b"", b"[]", b'{"starters": 3}', punkt.to_json()[:-9], b"\xff"):
        with pytest.raises(IntegrityError, match="damaged"):
            Punkt.from_json(damaged)
    code = (
        "import hashlib, sys\nfrom chatbench.corpus.cleaning.fluency import *\n"
        "texts = sys.stdin.buffer.read().decode().split('|')\n"
        "found = Punkt.train(texts).to_json() + NGramModel.train(texts).to_bytes()\n"
        "found += repr(collocations(texts)).encode()\n"
        "print(hashlib.sha256(found).hexdigest())"
    )
    prints = {
        subprocess.run(
            [sys.executable, "-c", code], input="|".join([*TITLES, *sample_texts()]).encode(),
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(prints) == 1


def test_without_rules_they_are_trained_on_the_texts() -> None:
    found = sentences([*TITLES, CHINESE])
    assert found[0][:2] == ["Dr. Reed and Mr. Hall spoke of tea. ", "With tea came Mrs. Reed. "]
    assert "".join(found[-1]) == CHINESE
    assert sentences([]) == []


def test_a_sample_is_bounded_and_spread(rng: random.Random) -> None:
    texts = [str(n) * rng.randint(1, 60) for n in range(400)]
    assert sample(texts, 1 << 30) == texts
    some = sample(texts, 3_000)
    assert sum(map(len, some)) <= 3_000 + len(some)
    assert some == sample(texts, 3_000)
    assert {part[0] for part in some} > set("13579")
    assert sample([], 5) == []
    assert sum(map(len, sample(["x" * 10_000], 100))) <= 101


# ---- phrases


def test_english_phrases(rng: random.Random) -> None:
    words = ["tea", "paper", "rain", "shelf", "window", "letter", "morning", "table", "chair"]
    texts = []
    for _ in range(80):
        text = rng.choices(words, k=30)
        if rng.random() < 0.5:
            text[5:5] = ["humpty", "dumpty"]
        texts.append(" ".join(text) + " of the of the.")
    found = collocations(texts, 5)
    assert found[0] == ("humpty", "dumpty")
    assert ("of", "the") not in found


def test_chinese_phrases(rng: random.Random) -> None:
    single = "山水风云日月花鸟虫鱼草木金石土火"
    texts = []
    for _ in range(120):
        text = rng.choices(single, k=24)
        text[4:4] = "图书馆" if rng.random() < 0.5 else "老师"
        text[12:12] = "的了"
        texts.append("".join(text) + "。")
    found = collocations(texts, 4)
    assert found[0] == ("图", "书", "馆")
    assert ("老", "师") in found
    assert ("图", "书") not in found
    assert all(len(phrase) == 2 for phrase in collocations(texts, 4, "en"))
    assert collocations([]) == []


# ---- the n-gram model


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, "", "x", "\ud800 odd", "ключ 🔑\n\n\n  ∑"])
def test_every_text_has_finite_bits(model: NGramModel, text: str) -> None:
    bits = model.bits([text])
    assert bits.shape == (1,)
    assert np.isfinite(bits[0])
    assert (bits[0] > 0) == bool(text)
    size = len(text.encode("utf-8", "surrogatepass"))
    assert model.bits_per_byte(text) == pytest.approx(bits[0] / max(size, 1))


def test_known_text_costs_less_than_noise(model: NGramModel, rng: random.Random) -> None:
    letters = list(ENGLISH)
    rng.shuffle(letters)
    assert model.bits_per_byte(ENGLISH) < 1 < 3 < model.bits_per_byte("".join(letters))
    characters = list(CHINESE)
    rng.shuffle(characters)
    assert model.bits_per_byte(CHINESE) < 1 < model.bits_per_byte("".join(characters))


def test_all_symbols_sum_to_one_after_any_context(rng: random.Random) -> None:
    size = 12
    sequences = [[rng.randrange(9) for _ in range(rng.randrange(30))] for _ in range(20)]
    for counted in (_KneserNey.train(sequences, size), _KneserNey.train([], size)):
        for _ in range(30):
            context = [rng.randrange(size) for _ in range(rng.randrange(3))]
            after = [[*context, symbol] for symbol in range(size)]
            bits = counted.bits(after) - counted.bits([context])[0]
            assert np.exp2(-bits).sum() == pytest.approx(1)


def test_spellings_sum_to_one() -> None:
    # Over all strings of up to two bytes and the mass of those that go on.
    letters = NGramModel.train(["ab ba", "b"])._letters
    end = 256
    total = float(np.exp2(-letters.bits([[end]]))[0])
    one = np.exp2(-letters.bits([[first, end] for first in range(256)])).sum()
    longer = np.exp2(-letters.bits([[first] for first in range(256)])).sum()
    assert total + longer == pytest.approx(1)
    assert one < longer


def test_probabilities_are_those_of_nltk(rng: random.Random) -> None:
    from nltk.lm.counter import NgramCounter
    from nltk.lm.smoothing import KneserNey

    size = 8
    sequences = [[rng.randrange(7) for _ in range(25)] for _ in range(12)]
    ours = _KneserNey.train(sequences, size)
    padded = [["<s>", "<s>", *map(str, sequence)] for sequence in sequences]
    counter = NgramCounter(
        [tuple(words[at : at + n]) for at in range(2, len(words))] for words in padded for n in ()
    )
    for words in padded:
        grams = []
        for n in (1, 2, 3):
            grams += [tuple(words[at - n + 1 : at + 1]) for at in range(2, len(words))]
        counter.update([grams])

    def estimator(discount: float) -> KneserNey:
        vocabulary = [str(symbol) for symbol in range(size)]
        return KneserNey(vocabulary, counter, 3, discount=discount)

    types = {words[at] for words in padded for at in range(2, len(words))}
    pairs = {pair for words in padded for pair in pairwise(words[1:])}
    for _ in range(60):
        u, v, w = (str(rng.randrange(size)) for _ in range(3))
        before = sum(second == w for _, second in pairs)
        low = ours.one.discount
        expected = (max(before - low, 0) + low * len(types) / size) / len(pairs)
        for context, discount in (((v,), ours.two.discount), ((u, v), ours.three.discount)):
            if counter[context]:
                alpha, gamma = estimator(discount).alpha_gamma(w, context)
                expected = alpha + gamma * expected
        symbols, places, _ = _flat([[int(u), int(v), int(w)]], size)
        assert ours.probabilities(symbols, places)[2] == pytest.approx(expected)


def test_batches_have_no_borders(model: NGramModel, rng: random.Random) -> None:
    texts = [*sample_texts(20), "", "noise zxqv 茶叶囧", ENGLISH * 5]
    rng.shuffle(texts)
    together = model.bits(texts)
    assert together.tolist() == [float(model.bits([text])[0]) for text in texts]
    assert model.bits([]).shape == (0,)


def test_training_is_a_function_of_the_texts_and_bytes_are_the_model(model: NGramModel) -> None:
    again = NGramModel.train(sample_texts(200))
    data = model.to_bytes()
    assert again.to_bytes() == data
    read = NGramModel.from_bytes(data)
    texts = [ENGLISH, CHINESE, "unseen ünseen 囧"]
    assert read.bits(texts).tolist() == model.bits(texts).tolist()
    assert read.to_bytes() == data
    head = data.index(b"\n", 30)
    for damaged in (b"", b"{}", data[:-8], data[:-3], data[:head], data[:40] + b"\xff" + data[41:]):
        with pytest.raises(IntegrityError, match="damaged"):
            NGramModel.from_bytes(damaged)


def test_without_texts_all_bytes_are_alike() -> None:
    empty = NGramModel.train([])
    assert empty.bits_per_byte("tea 茶") > 8
    assert NGramModel.from_bytes(empty.to_bytes()).bits_per_byte("tea") == empty.bits_per_byte(
        "tea"
    )


# ---- the stage


def test_the_stage_drops_what_costs_too_much(model: NGramModel, rng: random.Random) -> None:
    noise = "".join(rng.choices("qzxvkj", k=200))
    documents = [
        Document("a", text=ENGLISH), Document("b", text=CHINESE), Document("c", text=noise),
        Document("d", text="qzxv"), Document("e", messages=exchange("tea?", noise)),
        Document("f", text=""),
    ]  # fmt: skip
    judge = stage(model, 2.5)
    done, counts = judge(documents)
    assert [done[n] is documents[n] for n in range(6)] == [True, True, False, True, False, True]
    assert isinstance(done[2], Dropped)
    assert done[2].reason == "fluency"
    assert done[2].detail == f"{model.bits_per_byte(noise):.3f} bits per byte"
    assert counts == {"fluency": 2}
    alone = [judge([document])[0][0] for document in documents]
    assert alone == done
    assert judge([]) == ([], {})
    assert msgspec.structs.asdict(judge)["threshold"] == 2.5  # type: ignore[type-var]


def test_a_percentile_leaves_out_at_most_its_share(rng: random.Random) -> None:
    for _ in range(50):
        scores = [round(rng.random(), 1) for _ in range(rng.randint(1, 40))]
        percentile = rng.uniform(0.1, 99.9)
        threshold = percentile_threshold(scores, percentile)
        above = sum(score > threshold for score in scores)
        assert above <= len(scores) * percentile / 100
        lower = [score for score in scores if score < threshold]
        if lower:
            assert sum(score > max(lower) for score in scores) > len(scores) * percentile / 100
    assert percentile_threshold([], 5) == float("inf")
    assert percentile_threshold([1.0, 3.0, 2.0, 4.0], 25) == 3.0


# ---- real data


@pytest.mark.parametrize(
    ("name", "most"),
    [("gutenberg-en/158-emma.txt.gz", 2.2), ("gutenberg-zh/23962-xiyouji.txt.gz", 2.6)],
)
def test_books_are_predicted_better_than_bytes(name: str, most: float, rng: random.Random) -> None:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip("no shared data")
    text = gzip.decompress(path.read_bytes()).decode("utf-8-sig").replace("\r", "")[5_000:400_000]
    pieces = [text[at : at + 2_000] for at in range(0, len(text), 2_000)]
    model = NGramModel.train(pieces[::2])
    fresh = pieces[1::2]
    size = sum(len(piece.encode()) for piece in fresh)
    assert 1 < model.bits(fresh).sum() / size < most
    mixed = ["".join(rng.sample(piece, len(piece))) for piece in fresh[:20]]
    for good, bad in zip(fresh, mixed, strict=False):
        assert model.bits_per_byte(good) < model.bits_per_byte(bad)
