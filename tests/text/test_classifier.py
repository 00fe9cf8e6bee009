"""The classifier of replies tells styles apart in any script, and says the same in any company."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from evaluate.styled import styles

from chatbench.text import classifier
from chatbench.text.classifier import learn


def labelled(count: int, seed: int) -> tuple[list[str], list[str]]:
    rows = styles.dialogues(count, seed)
    tags = [row.get("style") or row["语气"] for row in rows]
    return [row["messages"][-1]["content"] for row in rows], tags


def test_styles_of_both_languages_are_told_apart(rng: random.Random) -> None:
    """Every reply holds a sentence that no other style has, so a miss is a rare word at most."""
    judge = learn(*labelled(400, rng.randrange(1 << 30)))
    assert judge.labels == ("casual", "formal", "正式", "随意")
    texts, labels = labelled(200, rng.randrange(1 << 30))
    hits = sum(a == b for a, b in zip(judge.told(texts), labels, strict=True))
    assert hits >= 180


def test_probabilities_add_up_and_do_not_hang_on_the_batch(rng: random.Random) -> None:
    judge = learn(*labelled(100, 1))
    texts = [*labelled(30, rng.randrange(1 << 30))[0], "", "\x00", "zzz qqq", "🫖"]
    rng.shuffle(texts)
    shares = judge.probabilities(texts)
    assert shares.shape == (34, 4)
    assert (shares > 0).all()
    for row in shares.tolist():
        assert abs(math.fsum(row) - 1) <= 8 * np.finfo(np.float64).eps
    for number, text in enumerate(texts):
        assert judge.probabilities([text])[0].tolist() == shares[number].tolist()
    assert judge.told(texts) == [judge.labels[row.argmax()] for row in shares]
    assert judge.probabilities([]).shape == (0, 4)
    assert judge.told([]) == []


def test_learning_is_the_same_each_time(rng: random.Random) -> None:
    seed = rng.randrange(1 << 30)
    texts = labelled(20, 2)[0]
    one, other = (learn(*labelled(60, seed)).probabilities(texts) for _ in range(2))
    assert np.array_equal(one, other)


def test_of_one_label_there_is_nothing_to_tell() -> None:
    judge = learn(["a", "b"], ["茶", "茶"])
    assert judge.told(["c", ""]) == ["茶", "茶"]
    assert judge.probabilities(["c"]).tolist() == [[1.0]]


def test_rare_labels_weigh_as_much_as_frequent_ones() -> None:
    texts = ["good morning to you"] * 95 + ["早上好呀"] * 5
    judge = learn(texts, ["en"] * 95 + ["zh"] * 5)
    assert judge.told(["good morning", "早上好"]) == ["en", "zh"]


def test_of_many_texts_an_even_choice_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "MOST_TEXTS", 10)
    texts, labels = labelled(95, 3)
    some = learn(texts[::10], labels[::10])
    assert np.array_equal(learn(texts, labels).probabilities(texts), some.probabilities(texts))
