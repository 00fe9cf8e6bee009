"""Overlap and variety against slow twins: the libraries, and sums over every pair."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from chatbench.text.measuring import Judged, Measured, influence, ratio, table
from chatbench.text.metrics import METRICS, OF_THE_WHOLE, measure_all
from chatbench.text.overlap import (
    bleu,
    bleu_of,
    bleu_tokenizer,
    chrf,
    contains,
    holds,
    rouge,
    rouge_words,
    token_f1,
)
from chatbench.text.variety import distinct, length_ratio, repetition, self_bleu
from chatbench.text.words import script_of, words

ENGLISH = ["the", "tea", "shop", "opens", "at", "nine", "Rain", "it's", "12", ",", "."]
CHINESE = list("小店早上九点开门茶书纸雨，。")


def sentence(rng: random.Random, longest: int = 14) -> str:
    """Either language, sometimes of several lines, sometimes empty."""
    vocabulary, join = rng.choice([(ENGLISH, " "), (CHINESE, "")])
    lines = [
        join.join(rng.choices(vocabulary, k=rng.randrange(longest)))
        for _ in range(rng.choice([1, 1, 1, 2, 3]))
    ]
    return "\n".join(lines)


def some_pairs(rng: random.Random, count: int = 20) -> list[Judged]:
    return [Judged(sentence(rng), sentence(rng)) for _ in range(count)]


def by_name(found: Sequence[Measured]) -> dict[str, float]:
    return {each.name: each.value for each in found}


# ---- against the libraries


@pytest.mark.parametrize("tok", ["13a", "zh", "char"])
def test_sums_of_every_pair_are_sacrebleus(rng: random.Random, tok: str) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    letters = {"13a": "Tea at nine, no? ", "zh": "小店早上九点，a b ", "char": "お茶はねえか？ "}[
        tok
    ]
    made = [
        Judged(*("".join(rng.choices(letters, k=rng.randrange(25))) for _ in range(2)))
        for _ in range(15)
    ]
    # Not all of them are without letters of the script.
    pairs = [*made, *[Judged(letters, letters)] * 16]
    assert bleu_tokenizer([pair.reference for pair in [Judged("", letters)]]) == tok
    (ours,), metric = bleu(pairs), BLEU(tokenize=tok)
    assert f"tok:{tok}|" in ours.signature
    replies, references = [p.reply for p in pairs], [p.reference for p in pairs]
    wanted = metric.corpus_score(replies, [references])
    assert ours.value == pytest.approx(wanted.score, rel=1e-12)
    for pair, sums in zip(pairs, ours.sums, strict=True):
        one = metric.corpus_score([pair.reply], [[pair.reference]])
        assert sums.tolist() == [one.sys_len, one.ref_len, *one.counts, *one.totals]
        assert float(bleu_of(sums)) == pytest.approx(one.score, rel=1e-12)
    for pair, sums in zip(pairs, chrf(pairs)[0].sums, strict=True):
        single = CHRF().corpus_score([pair.reply], [[pair.reference]]).score
        found = chrf([pair])[0]
        assert found.value == pytest.approx(single, rel=1e-12, abs=1e-12)
        assert found.sums[0].tolist() == sums.tolist()


def test_rouge_of_every_pair_is_rouge_scores(rng: random.Random) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    class Tokens:
        def tokenize(self, text: str) -> list[str]:
            return rouge_words(text, True)

    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    plain, any_script = RougeScorer(kinds), RougeScorer(kinds, tokenizer=Tokens())
    pairs = some_pairs(rng, 40)
    found = rouge(pairs)
    for number, pair in enumerate(pairs):
        scorer = plain if (pair.reply + pair.reference).isascii() else any_script
        wanted = scorer.score(pair.reference, pair.reply)
        for kind, measured in zip(kinds, found, strict=True):
            assert measured.sums[number, 0] == pytest.approx(wanted[kind].fmeasure, abs=1e-12)


@pytest.mark.parametrize(
    ("references", "tok"),
    [
        (["Tea.", "Чай"], "13a"),
        (["Tea.", "Tea.", "茶"], "zh"),
        (["お茶です", "茶"], "zh"),
        (["お茶です", "コーヒー", "茶"], "char"),
        (["ชา", "ชาเย็น"], "char"),
        ([], "13a"),
    ],
)
def test_the_tokenizer_follows_the_script(references: list[str], tok: str) -> None:
    assert bleu_tokenizer(references) == tok


# ---- words in common


@pytest.mark.parametrize(
    ("reply", "reference", "f1"),
    [
        ("the tea shop", "a tea shop", 2 * 2 / 6),
        ("茶卖五元", "茶五元。", 2 * 3 / 7),
        ("Tea tea", "tea", 2 / 3),
        ("", "tea", 0.0),
        ("", "", 1.0),
        ("👍", "👎", 0.0),
    ],
)
def test_token_f1_by_hand(reply: str, reference: str, f1: float) -> None:
    assert by_name(token_f1([Judged(reply, reference)]))["token_f1"] == pytest.approx(100 * f1)


@pytest.mark.parametrize(
    ("reply", "reference", "there"),
    [
        ("We open at NINE, I think.", "at nine", True),
        ("We open at nineteen.", "at nine", False),
        ("茶卖五元。", "五元", True),
        ("茶卖十五元。", "卖五元", False),
        ("ab c", "a", False),
        ("a", "a b", False),
    ],
)
def test_contains_by_hand(reply: str, reference: str, there: bool) -> None:
    assert contains([Judged(reply, reference)])[0].value == 100 * there


def test_holding_is_a_run_of_whole_words(rng: random.Random) -> None:
    for _ in range(200):
        said, wanted = (rng.choices("ab", k=rng.randrange(n)) for n in (8, 4))
        size = len(wanted)
        slow = any(said[at : at + size] == wanted for at in range(len(said) - size + 1))
        if wanted:
            assert holds(said, wanted) == slow


# ---- variety


def test_self_bleu_is_the_mean_against_all_others(rng: random.Random) -> None:
    from sacrebleu.metrics import BLEU

    pairs = some_pairs(rng, 9)
    texts = [" ".join(words(pair.reply)) for pair in pairs]
    metric = BLEU(tokenize="none")
    wanted = [
        metric.corpus_score([text], [[other] for other in texts[:at] + texts[at + 1 :]]).score
        for at, text in enumerate(texts)
    ]
    found = self_bleu(pairs)[0].value
    assert found == pytest.approx(sum(wanted) / len(wanted), rel=1e-12, abs=1e-12)
    assert self_bleu(pairs[:1]) == []
    assert self_bleu([Judged("小店九点开门", "")] * 3)[0].value == pytest.approx(100)


def test_distinct_and_its_influence_are_those_of_leaving_one_out(rng: random.Random) -> None:
    pairs = some_pairs(rng, 12)

    def plainly(replies: Sequence[Judged], order: int) -> float:
        grams = [
            tuple(tokens[at : at + order])
            for tokens in (words(reply.reply) for reply in replies)
            for at in range(len(tokens) - order + 1)
        ]
        return 100 * len(set(grams)) / len(grams) if grams else 0.0

    for order, measured in zip((1, 2), distinct(pairs), strict=True):
        value = plainly(pairs, order)
        without = [plainly(pairs[:n] + pairs[n + 1 :], order) for n in range(len(pairs))]
        assert measured.value == pytest.approx(value, rel=1e-9, abs=1e-9)
        wanted = influence(value, np.array(without))
        assert measured.sums == pytest.approx(wanted, rel=1e-9, abs=1e-7)


def test_repetition_counts_what_was_said_before() -> None:
    # a b c d, b c d a, c d a b, d a b c, and the first of them again.
    (found,) = repetition([Judged("a b c d a b c d", ""), Judged("早上九点开", "")])
    assert found.value == pytest.approx(100 * 1 / (5 + 2))
    assert repetition([Judged("a b c d", "")])[0].value == 0.0
    assert repetition([Judged("short", "")]) == []


def test_length_ratio_is_one_of_sums() -> None:
    pairs = [Judged("a b c d", "a"), Judged("茶", "茶五元")]
    assert length_ratio(pairs)[0].value == pytest.approx(5 / 4)
    assert length_ratio([Judged("a", "")]) == []


@pytest.mark.parametrize(
    ("text", "script"),
    [("茶 tea", "latin"), ("茶叶 a", "han"), ("お茶", "kana"), ("Чай", "cyrillic"), ("12!", "none"),
     ("ＡＢ", "latin"), ("ชา", "thai")],
)  # fmt: skip
def test_the_script_is_that_of_most_letters(text: str, script: str) -> None:
    assert script_of(text) == script


# ---- parts add up


def test_a_metric_of_parts_is_the_sum_of_its_parts(rng: random.Random) -> None:
    pairs = [Judged(p.reply, p.reference, ("tea",)) for p in some_pairs(rng, 12)]
    for name, metric in METRICS.items():
        for whole in metric(pairs):
            assert whole.of_parts == (name not in OF_THE_WHOLE), name
            if not whole.of_parts:
                continue
            assert len(whole.sums) == len(pairs)
            halves = [m for half in (pairs[:5], pairs[5:]) for m in metric(half)]
            parts = [m.sums.sum(axis=0) for m in halves if m.name == whole.name]
            # Which facts there are is known of the whole only.
            if len(parts) == 2 and name != "exact_fact_match":
                value = float(whole.value_of(parts[0] + parts[1]))
                assert value == pytest.approx(whole.value, rel=1e-9, nan_ok=True)


def test_values_of_many_totals_are_those_of_each(rng: random.Random) -> None:
    for measured in measure_all(some_pairs(rng, 10)):
        stacked = measured.value_of(measured.sums)
        for row, value in zip(measured.sums, stacked, strict=True):
            assert float(measured.value_of(row)) == pytest.approx(value, nan_ok=True)


def test_a_ratio_over_nothing_is_no_number() -> None:
    assert np.isnan(ratio()(table([(1, 0)]))).all()


def test_identical_replies_have_everything_in_common(rng: random.Random) -> None:
    texts = [sentence(rng) + "小店早上开门" for _ in range(5)]
    found = by_name(measure_all([Judged(text, text) for text in texts]))
    for name in ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum", "token_f1", "contains"):
        assert found[name] == pytest.approx(100), name
    assert found["length_ratio"] == pytest.approx(1)


Slow = Callable[[Sequence[str], Sequence[str]], int]


def test_the_longest_common_subsequence_is_that_of_the_table(rng: random.Random) -> None:
    from chatbench.text.overlap import _common_length

    def slow(a: Sequence[str], b: Sequence[str]) -> int:
        lengths: Counter[tuple[int, int]] = Counter()
        for i, x in enumerate(a, 1):
            for j, y in enumerate(b, 1):
                longer = max(lengths[i - 1, j], lengths[i, j - 1])
                lengths[i, j] = lengths[i - 1, j - 1] + 1 if x == y else longer
        return lengths[len(a), len(b)]

    for _ in range(100):
        a, b = (rng.choices("abc", k=rng.randrange(12)) for _ in range(2))
        assert _common_length(a, b) == slow(a, b)
