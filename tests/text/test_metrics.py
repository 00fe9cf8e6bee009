"""Every score is the published one, in Chinese as in English."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chatbench.text.metrics import (
    METRICS,
    Judged,
    Score,
    bleu,
    chrf,
    contains_fact,
    distinct,
    exact_fact_match,
    exact_match,
    fact_hit,
    rouge,
    score_all,
    words,
)
from conftest import SHARED_DATA

GOLDEN = SHARED_DATA / "metric-reference"
ENGLISH = ["the", "tea", "shop", "opens", "at", "nine", "Rain", "U.S.", "it's", "12", ",", "."]
CHINESE = list("小店早上九点开门茶书纸雨，。")


def pairs_of(replies: Sequence[str], references: Sequence[str]) -> list[Judged]:
    return [Judged(reply, reference) for reply, reference in zip(replies, references, strict=True)]


def sentences(rng: random.Random, vocabulary: list[str], join: str, count: int = 12) -> list[str]:
    return [join.join(rng.choices(vocabulary, k=rng.randrange(5, 15))) for _ in range(count)]


def values(scores: Sequence[Score]) -> dict[str, float]:
    return {score.name: score.value for score in scores}


# ---- against the libraries, called directly


@pytest.mark.parametrize(
    ("vocabulary", "join", "tok"), [(ENGLISH, " ", "13a"), (CHINESE, "", "zh")], ids=["en", "zh"]
)
def test_bleu_and_chrf_are_sacrebleus(
    rng: random.Random, vocabulary: list[str], join: str, tok: str
) -> None:
    import sacrebleu
    from sacrebleu.metrics import BLEU, CHRF

    replies, references = (sentences(rng, vocabulary, join) for _ in range(2))
    pairs = pairs_of(replies, references)
    (ours,) = bleu(pairs)
    metric = BLEU(tokenize=tok)
    # The same numbers in another order of operations: a few roundings apart.
    wanted = metric.corpus_score(replies, [references]).score
    assert ours.value == pytest.approx(wanted, rel=1e-12)
    wanted = sacrebleu.corpus_bleu(replies, [references], tokenize=tok).score
    assert ours.value == pytest.approx(wanted, rel=1e-12)
    assert ours.signature == str(metric.get_signature())
    assert f"tok:{tok}" in ours.signature
    assert f"version:{sacrebleu.__version__}" in ours.signature
    (ours,) = chrf(pairs)
    metric = CHRF()
    wanted = metric.corpus_score(replies, [references]).score
    assert ours.value == pytest.approx(wanted, rel=1e-12)
    assert ours.signature == str(metric.get_signature())
    assert ours.n == len(replies)


def test_rouge_is_rouge_scores_on_english(rng: random.Random) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    replies, references = (sentences(rng, ENGLISH, " ") for _ in range(2))
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(kinds)
    single = [scorer.score(ref, reply) for ref, reply in zip(references, replies, strict=True)]
    for score in rouge(pairs_of(replies, references)):
        mean = 100 * sum(each[score.name].fmeasure for each in single) / len(single)
        assert score.value == pytest.approx(mean, abs=1e-9)
        assert score.signature.startswith("f1|mean|tok:default|rouge-score:")


def test_the_signature_of_rouge_says_when_a_reply_is_chinese() -> None:
    assert "cjk-char" in rouge([Judged("小店", "the shop")])[0].signature


# ---- golden values

golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden rows are not here")


@pytest.fixture
def expected() -> Any:
    return json.loads((GOLDEN / "expected.json").read_text())


def lines_of(archive: Path, name: str) -> list[str]:
    with zipfile.ZipFile(archive) as opened:
        return opened.read(f"wmt15_eval/{name}").decode().splitlines()


@golden
def test_golden_wmt15(expected: Any) -> None:
    replies, references = (
        lines_of(GOLDEN / "wmt15_eval.zip", f"newstest-2015-100sents.en-ru.{name}.ru")
        for name in ("google", "ref")
    )
    pairs = pairs_of(replies, references)
    assert len(pairs) == 100
    wanted = expected["wmt15_en_ru_100"]
    assert bleu(pairs)[0].value == pytest.approx(wanted["bleu"], abs=1e-4)
    assert chrf(pairs)[0].value == pytest.approx(wanted["chrf2"], abs=1e-4)


@golden
def test_golden_chinese(expected: Any) -> None:
    rows = (GOLDEN / "zh_two_references.tsv").read_text("utf-8").splitlines()
    _, replies, references = zip(*(row.split("\t") for row in rows), strict=True)
    pairs = pairs_of(replies, references)
    wanted = expected["zh_two_references"]["zh"]
    assert bleu(pairs)[0].value == pytest.approx(wanted["bleu"], abs=1e-4)
    assert chrf(pairs)[0].value == pytest.approx(wanted["chrf2"], abs=1e-4)


@golden
def test_golden_rouge(expected: Any) -> None:
    rows = json.loads((GOLDEN / "rouge_pairs.json").read_text())
    wanted = expected["rouge_pairs"]["plain"]
    for score in rouge(pairs_of([r["hyp"] for r in rows], [r["ref"] for r in rows])):
        assert score.value == pytest.approx(100 * wanted[score.name]["fmeasure"], abs=1e-4)


# ---- Chinese


def test_identical_chinese_scores_100_in_every_overlap_metric(rng: random.Random) -> None:
    same = [line + "小店开门" for line in sentences(rng, CHINESE, "")]
    found = values(score_all(pairs_of(same, same)))
    for name in ("bleu", "chrf", "rouge1", "rouge2", "rougeL", "exact_match"):
        assert found[name] == pytest.approx(100), name


def test_partly_matching_chinese_scores_between_nothing_and_everything() -> None:
    found = values(score_all([Judged("小店早上九点开门", "小店晚上九点才开门")]))
    for name in ("bleu", "chrf", "rouge1", "rouge2", "rougeL"):
        assert 10 < found[name] < 100, name
    assert found["exact_match"] == 0


def test_rouge_of_chinese_by_hand() -> None:
    found = values(rouge([Judged("九点开门", "九点关门")]))
    wanted = {"rouge1": 75.0, "rouge2": 100 / 3, "rougeL": 75.0, "rougeLsum": 75.0}
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Tea, please!", ["the", "tea", "please"]),
        ("９：３０", ["9:30"]),
        ("小店 Open 24 hours。", ["小", "店", "open", "24", "hours"]),
        ("カフェへ", ["カ", "フ", "ェ", "へ"]),
        ("?!", []),
        ("", []),
    ],
)
def test_words_by_hand(text: str, expected: list[str]) -> None:
    assert words(text) == expected


# ---- distinct, exact match


def test_distinct_by_hand() -> None:
    pairs = pairs_of(["a b a b", "a b", "茶茶书"], ["x"] * 3)
    one, two = distinct(pairs)
    # a b 茶 书 of 9 words; ab ba 茶茶 茶书 of 3 + 1 + 2 pairs.
    assert (one.name, one.value, one.n) == ("distinct1", pytest.approx(100 * 4 / 9), 3)
    assert (two.name, two.value) == ("distinct2", pytest.approx(100 * 4 / 6))
    assert two.signature.startswith("ngrams:6|")


@pytest.mark.parametrize(
    ("reply", "reference", "same"),
    [
        ("Yes.", "yes", True),
        ("９点 开门！", "9点开门", True),
        ("yes", "no", False),
        ("", "", True),
        ("", "!", False),
        ("👍", "👎", False),
        ("👍", " 👍 ", True),
    ],
)
def test_exact_match_by_hand(reply: str, reference: str, same: bool) -> None:
    assert exact_match([Judged(reply, reference)])[0].value == 100 * same


# ---- facts


@pytest.mark.parametrize(
    ("text", "fact", "there"),
    [
        ("We open at 9:30.", "9:30", True),
        ("We open at 19:30", "9:30", False),
        ("We open at 9:305", "9:30", False),
        ("Open 9:30, 18:45", "18:45", True),
        ("营业时间：9：30，晚上关门", "9:30", True),
        ("早上9:30开门", "9:30", True),
        ("on the team", "tea", False),
        ("Tea!", "tea", True),
        ("8.12 yuan", "12 yuan", False),
        ("12.5", "12", False),
        ("It costs 12.", "12", True),
        ("12 YUAN", "12  yuan", True),
        ("十二元", "十二元", True),
        ("a.b", "a+b", False),
    ],
)
def test_a_fact_stands_in_a_text_as_a_whole(text: str, fact: str, there: bool) -> None:
    assert contains_fact(text, fact) is there


def test_a_reply_is_right_with_all_its_facts_and_no_foreign_one() -> None:
    hours = ("9:30", "18:45")
    reference = "Open from 9:30 to 18:45."
    rows = [
        (Judged("From 9:30 to 18:45, I think", reference, hours), True),
        (Judged("From 9:30", reference, hours), False),
        (Judged("From 9:30 to 18:45, for 12 yuan", reference, hours), False),
        (Judged("From 9:30 to 18:45, for 13 yuan", reference, hours), True),
        (Judged("12 yuan", "It costs 12 yuan.", ("12 yuan",)), True),
        (Judged("", reference, hours), False),
        (Judged("12 yuan at 9:30", "At 9:30 it costs 12 yuan.", ("12 yuan",)), True),
    ]
    known = sorted({fact for pair, _ in rows for fact in pair.facts})
    assert [fact_hit(pair, known) for pair, _ in rows] == [right for _, right in rows]
    (score,) = exact_fact_match([*(pair for pair, _ in rows), Judged("no facts", "none")])
    assert score.value == pytest.approx(100 * sum(right for _, right in rows) / len(rows))
    assert score.n == len(rows), "rows without facts do not count"
    assert score.signature.startswith("known-facts:3|")


# ---- edges


def test_an_empty_reply_scores_nothing_and_breaks_nothing() -> None:
    for reference in ("the tea shop opens", "小店早上九点开门"):
        found = values(score_all([Judged("", reference, ("tea",))]))
        assert set(found) == {
            "bleu", "chrf", "rouge1", "rouge2", "rougeL", "rougeLsum", "distinct1", "distinct2",
            "exact_match", "exact_fact_match", "contains", "token_f1", "length_ratio",
        }  # fmt: skip
        assert set(found.values()) == {0.0}


def test_no_replies_have_no_scores_and_no_facts_no_fact_score() -> None:
    assert score_all([]) == []
    assert "exact_fact_match" not in values(score_all([Judged("a", "a")]))


def test_every_score_says_over_how_many_and_how(rng: random.Random) -> None:
    pairs = [Judged(text, text, ("tea",)) for text in sentences(rng, ENGLISH, " ", 7)]
    for name, metric in METRICS.items():
        for score in metric(pairs):
            assert score.n == 7, name
            assert score.signature, name
            assert 0 <= score.value <= 100.0001, name


def test_punctuation_inside_a_reply_does_not_count() -> None:
    pair = Judged("We close at 6! See you soon.", "We close at 6. See you soon.")
    assert exact_match([pair])[0].value == 100
    assert words("We open at 9. Bye.") == ["we", "open", "at", "9", "bye"]


def test_facts_end_where_numbers_end() -> None:
    assert not contains_fact("it costs 1,200 yuan", "200 yuan")
    assert not contains_fact("十八元", "八元")
    assert contains_fact("一共八元。", "八元")


@pytest.mark.parametrize("text", ["Чай стоит пять рублей", "차는 오천 원입니다", "café très bon"])
def test_identical_text_of_any_script_scores_100(text: str) -> None:
    assert [score.value for score in rouge([Judged(text, text)])] == pytest.approx([100] * 4)
