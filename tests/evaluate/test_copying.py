"""Verbatim overlap: the longest run of words that stands in the training text."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from chatbench.evaluate import copying
from chatbench.evaluate.copying import longest_runs, verbatim_overlap
from chatbench.text.measuring import Judged
from chatbench.text.words import plain_words


def slowly(text: Sequence[str], train: Sequence[str]) -> int:
    documents = [plain_words(document) for document in train]
    return max(
        (
            end - begin
            for begin in range(len(text))
            for end in range(begin + 1, len(text) + 1)
            for words in documents
            if any(
                words[at : at + end - begin] == list(text[begin:end]) for at in range(len(words))
            )
        ),
        default=0,
    )


@pytest.mark.parametrize("at_once", [1, 5, 1 << 20])
def test_runs_are_those_of_comparing_every_place(
    rng: random.Random, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_WORDS_AT_ONCE", at_once)
    texts = [rng.choices(["tea", "茶", "a", "书"], k=rng.randrange(8)) for _ in range(12)]
    train = [
        " ".join(rng.choices(["tea", "茶", "a", "rain"], k=rng.randrange(9))) for _ in range(6)
    ]
    found, read = longest_runs(texts, train)
    assert found == [slowly(text, train) for text in texts]
    assert read == sum(map(len, train))


def test_a_run_does_not_go_on_from_one_text_to_the_next() -> None:
    assert longest_runs([["a", "b", "c"], ["c", "a"]], ["x a b", "c a"])[0] == [2, 2]
    assert longest_runs([["a"], ["b", "a"]], ["a b"])[0] == [1, 1]


def test_nothing_has_nothing_in_common() -> None:
    assert longest_runs([], ["a"])[0] == []
    assert longest_runs([[], ["a"]], [])[0] == [0, 0]


def test_the_share_by_hand_in_both_languages() -> None:
    train = ["The shop opens at nine in the morning.", "小店早上九点开门。"]
    pairs = [Judged("It opens at nine, sir!", "no"), Judged("书店早上九点开", "早上")]
    ours, references = verbatim_overlap(pairs, train)
    assert ours.value == pytest.approx(100 * (3 + 6) / (5 + 7))
    assert references.value == pytest.approx(100 * 2 / 3)
    assert f"train-characters:{sum(map(len, train))}" in ours.signature
    assert (ours.n, len(ours.sums)) == (2, 2)


def test_no_more_is_read_than_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_MOST_CHARACTERS", 5)
    assert longest_runs([["b", "c"]], ["a b c d", "b c"]) == ([2], 5)
