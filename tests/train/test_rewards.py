"""What replies are worth: golden rows of each reward, and what is no reward."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from chatbench.corpus.build import preprocess
from chatbench.corpus.cleaning.screen_training import train_on
from chatbench.corpus.shards import open_corpus
from chatbench.errors import DataError, UsageError, UserError
from chatbench.settings import FinetuneSettings, GrpoSettings, PreprocessSettings
from chatbench.text.metrics import METRICS
from chatbench.train.prompts import check_rewards
from chatbench.train.rewards import (
    RULES,
    Exchange,
    Reward,
    Weighted,
    parse_rewards,
    reward,
    total,
)
from chatbench.train.rollouts import Tasks
from chatbench.train.tag_reward import TagRewards


def no_tags(column: str) -> object:
    raise AssertionError("no tag was asked for")


def worth(spelled: str, reply: str, reference: str = "") -> float:
    (one,) = parse_rewards([spelled], no_tags)  # type: ignore[arg-type]
    return one.worth(Exchange("", reply, reference))


@pytest.mark.parametrize(
    ("spelled", "reply", "reference", "expected"),
    [
        ("exact_match", "Seven.", "seven", 1.0),
        ("exact_match", "七", "七。", 1.0),
        ("exact_match", "seventeen", "seven", 0.0),
        ("exact_match", "", "seven", 0.0),
        ("contains", "It is seven yuan.", "seven", 1.0),
        ("contains", "一共是十七元", "七", 1.0),
        ("contains", "seventeen", "seven", 0.0),
        ("contains:9:30", "We open at 9:30.", "", 1.0),
        ("contains:9:30", "We open at 19:30.", "", 0.0),
        ("contains:茶", "喝茶吧", "", 1.0),
        ("f1", "the tea costs", "the tea", 0.8),
        ("token_f1", "茶叶", "茶", 2 / 3),
        ("chrf", "tea", "tea", 1.0),
        ("chrf", "茶", "水", 0.0),
        ("bleu", "the tea costs five yuan", "the tea costs five yuan", 1.0),
        ("rouge", "a b", "a c", 0.5),
        ("rouge:rouge2", "a b", "a c", 0.0),
        ("rouge:rougeL", "茶很好", "茶不好", 2 / 3),
        ("length:2-3", "one two", "", 1.0),
        ("length:2-3", "一二三", "", 1.0),
        ("length:2-3", "one", "", 0.5),
        ("length:2-3", "", "", 0.0),
        ("length:2-3", "a b c d", "", 2 / 3),
        ("length:2-3", "一 二 三 四 五 六 七", "", 0.0),
        (r"regex:^\d+$", "42", "", 1.0),
        (r"regex:^\d+$", "42 yuan", "", 0.0),
        ("regex:[一-龥]{2}", "好的", "", 1.0),
    ],
)
def test_golden_rows(spelled: str, reply: str, reference: str, expected: float) -> None:
    assert worth(spelled, reply, reference) == pytest.approx(expected, abs=1e-12)


def test_every_metric_of_single_replies_is_a_reward_between_zero_and_one(
    rng: random.Random,
) -> None:
    pieces = ["tea ", "five ", "茶", "五元", "。", " ", "Yes. ", "!"]
    for name in sorted({*METRICS} - {"exact_fact_match", "self_bleu", "length_ratio"}):
        judge = reward(name)
        for _ in range(20):
            reply, reference = ("".join(rng.choices(pieces, k=rng.randint(0, 6))) for _ in "ab")
            assert 0.0 <= judge(Exchange("", reply, reference)) <= 1.0 + 1e-9, name


def test_weights_and_arguments_are_read_and_names_stay_apart() -> None:
    given = ["exact_match*2", "regex:a*b*-0.5", "length:1-5", "regex:c*1", "contains:3*.25"]
    found = parse_rewards(given, no_tags)  # type: ignore[arg-type]
    assert [(each.name, each.weight) for each in found] == [
        ("exact_match", 2.0), ("regex", -0.5), ("length", 1.0), ("regex#2", 1.0), ("contains", 0.25)
    ]  # fmt: skip
    assert found[1].worth(Exchange("", "aab", "")) == 1.0
    assert found[3].worth(Exchange("", "aab", "")) == 0.0


def test_several_rewards_add_up_by_weight(rng: random.Random) -> None:
    worths = [rng.random() for _ in range(5)]
    weights = [rng.uniform(-2, 2) for _ in worths]
    rewards = [Weighted(str(n), weight, reward("exact_match")) for n, weight in enumerate(weights)]
    slow = sum(weight * own for weight, own in zip(weights, worths, strict=True))
    assert total(rewards, worths) == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize(
    ("spelled", "told"),
    [
        ("exactmatch", "did you mean exact_match"),
        ("self_bleu", "there is no reward self_bleu"),
        ("length", "no range"),
        ("length:5-2", "no range"),
        ("length:0-0", "no range"),
        ("regex:(", "no regular expression"),
        ("regex", "no pattern"),
        ("rouge:rouge9", "no part rouge9"),
        ("", "is no reward"),
        ("screen:nowhere", "not a folder"),
    ],
)
def test_what_is_no_reward_is_refused_in_one_line(spelled: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_rewards([spelled], no_tags)  # type: ignore[arg-type]
    assert told in f"{refused.value} {refused.value.hint}"
    assert "\n" not in str(refused.value)


def test_without_any_reward_one_is_asked_for() -> None:
    with pytest.raises(UsageError, match="nothing says what a reply is worth"):
        parse_rewards([], no_tags)  # type: ignore[arg-type]


def test_every_rule_has_a_golden_row() -> None:
    assert {*RULES} == {"contains", "length", "regex", "screen"}


def test_a_screen_says_how_good_a_reply_is(tmp_path: Path) -> None:
    rows = [(f"a kind word number {n} 你好朋友{n}", False) for n in range(40)]
    rows += [(f"you stupid fool number {n} 笨蛋{n}", True) for n in range(40)]
    made, _ = train_on(rows)  # type: ignore[arg-type]
    made.save(tmp_path / "screen")
    spelled = f"screen:{tmp_path / 'screen'}"
    for good, bad in (("a kind word", "you stupid fool"), ("你好朋友", "笨蛋")):
        assert worth(spelled, good) > 0.5 > worth(spelled, bad)
    for text in ("a kind word", "笨蛋"):
        assert worth(spelled, text) == 1.0 - float(made.judge([text])[0])
    with pytest.raises(UsageError, match="knows no category rude"):
        worth(f"{spelled}#rude", "hello")


def styled(tmp_path: Path, styles: tuple[str, ...]) -> Path:
    """A corpus whose replies are in the style of their tag."""
    said = {"polite": "Certainly, with pleasure, dear guest {}.", "粗鲁": "没空，自己看着办吧{}！"}
    rows = [
        {"prompt": f"Question {n} 问题", "completion": said[style].format(n), "style": style}
        for n in range(60)
        for style in styles
    ]
    data = tmp_path / "styles.jsonl"
    data.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return preprocess(
        PreprocessSettings(
            inputs=[str(data)], out=str(tmp_path / "corpus"), vocab_size=400, tag_column=["style"]
        )
    )


def test_a_tag_is_obeyed_or_not(tmp_path: Path) -> None:
    corpus = open_corpus(styled(tmp_path, ("polite", "粗鲁")))
    of_tag = TagRewards(corpus.tags(), Tasks(corpus.split("train"), corpus.tokenizer, 1000))
    judge = of_tag("style")
    kind, rude = "With pleasure, dear guest.", "自己看着办吧！"
    for value, right, wrong in (("polite", kind, rude), ("粗鲁", rude, kind)):
        prompt = f"system\nstyle: {value}\nuser\nQuestion 茶\nassistant"
        assert judge(Exchange(prompt, right, "")) > 0.8
        assert judge(Exchange(prompt, wrong, "")) < 0.2
        assert judge(Exchange(prompt, "", "")) == 0.0
    assert judge(Exchange("user\nno tag", kind, "")) == 0.0
    with pytest.raises(UsageError, match="no tag 'mood'"):
        of_tag("mood")


def test_a_tag_of_one_value_cannot_be_judged(tmp_path: Path) -> None:
    corpus = open_corpus(styled(tmp_path, ("polite",)))
    of_tag = TagRewards(corpus.tags(), Tasks(corpus.split("train"), corpus.tokenizer, 1000))
    with pytest.raises(DataError, match="fewer than two values"):
        of_tag("style")


def test_a_tag_may_be_written_with_spaces() -> None:
    asked: list[str] = []

    def of_tag(column: str) -> Reward:
        asked.append(column)
        return lambda exchange: 0.0

    assert [each.weight for each in parse_rewards(["tag: 语气 ", "tag:style *2"], of_tag)] == [1, 2]
    assert asked == ["语气", "style"]


def test_data_that_are_not_there_are_not_said_to_lack_a_tag(tmp_path: Path) -> None:
    given = FinetuneSettings(
        model="m", data=[str(tmp_path / "没有")], out="o", objective="grpo",
        grpo=GrpoSettings(reward=["tag:语气"]),
    )  # fmt: skip
    check_rewards(given)
    (tmp_path / "没有").mkdir()
    with pytest.raises(UsageError, match="the data have no tag '语气'"):
        check_rewards(given)
