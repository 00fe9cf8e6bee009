"""Multiple choice and minimal pairs: which answer a model finds likelier, and by how much."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from chatbench.conversation import Message
from chatbench.errors import DataError
from chatbench.evaluate.choices import (
    Choice,
    Outcome,
    choice_ids,
    is_choice_row,
    is_right,
    joined,
    measure_choices,
    read_choices,
    score_choices,
)
from chatbench.evaluate.run import evaluate
from chatbench.model.folder import OpenedModel, open_model
from chatbench.settings import EvaluateSettings
from chatbench.text.template import reply_prompt

ROWS = [
    {"query": "The shop opens at", "choices": ["nine", "nine in the morning", "tea"], "gold": 1},
    {"query": "架子上有", "choices": ["茶、书和纸", "雨"], "gold": "茶、书和纸"},
    {"query": "Tea is", "choices": ["(A) warm", "(B) a book"], "gold": "B", "topic": "tea"},
    {"good": "People come in from the rain.", "bad": "People rain in come the from."},
    {"sentence_good": "小店早上九点开门。", "sentence_bad": "门九开店小。"},
    {"messages": [{"role": "user", "content": "What does ink 3 cost?"}],
     "choices": ["The ink costs 3 yuan.", "No."], "gold": [0]},
]  # fmt: skip


@pytest.fixture(scope="module")
def opened(base_run: Path) -> OpenedModel:
    return open_model(base_run, torch.device("cpu"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "choices.jsonl", ROWS)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


@torch.no_grad()
def slow_nats(opened: OpenedModel, ids: list[int], begin: int) -> float:
    """-ln p of ids[begin:] alone in a row, in float64."""
    model = opened.model.double()
    chances = F.log_softmax(model.logits(model(torch.tensor([ids[:-1]])))[0], dim=-1)
    model.float()
    return -math.fsum(float(chances[at - 1, ids[at]]) for at in range(begin, len(ids)))


def test_rows_of_both_forms_are_read(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items, failed = read_choices(str(data))
    assert failed == 0
    assert [item.gold for item in items] == [1, 0, 1, 0, 0, 0]
    assert [item.is_pair for item in items] == [False, False, False, True, True, False]
    assert items[2].facets == (("topic", "tea"),)
    assert items[5].query == (Message("user", "What does ink 3 cost?"),)
    assert all(map(is_choice_row, ROWS))
    assert not is_choice_row({"prompt": "a", "completion": "b"})


@pytest.mark.parametrize(
    "row",
    [
        "{broken",
        "[]",
        '{"query": "q", "choices": ["a"], "gold": 0}',
        '{"query": "q", "choices": ["a", "b"], "gold": 2}',
        '{"query": "q", "choices": ["a", "b"], "gold": true}',
        '{"query": "q", "choices": ["a", "b"], "gold": "E"}',
        '{"query": "q", "choices": ["a", ""], "gold": 0}',
        '{"query": 3, "choices": ["a", "b"], "gold": 0}',
        '{"good": "a"}',
        '{"good": "a", "bad": ""}',
    ],
)
def test_rows_of_no_form_are_counted_and_named(
    tmp_path: Path, row: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n{row}\n", "utf-8")
    items, failed = read_choices(str(path))
    assert (len(items), failed) == (1, 1)
    assert "c.jsonl:2" in capsys.readouterr().err
    path.write_text(f"{row}\n", "utf-8")
    with pytest.raises(DataError, match="nothing to judge by"):
        read_choices(str(path))


def test_nats_are_those_of_each_choice_alone(opened: OpenedModel, data: Path) -> None:
    items, _ = read_choices(str(data))
    outcomes = score_choices(opened, items, 3)
    for item, outcome in zip(items, outcomes, strict=True):
        for choice, nats, size in zip(item.choices, outcome.nats, outcome.sizes, strict=True):
            ids, begin = choice_ids(opened, item.query, choice)
            assert nats == pytest.approx(slow_nats(opened, ids, begin), rel=1e-4)
            assert size == len(choice.encode())


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_neither_batch_nor_padding_matters(
    opened: OpenedModel, data: Path, rng: random.Random, batch_size: int
) -> None:
    items, _ = read_choices(str(data))
    shuffled = rng.sample(items, len(items))
    found = score_choices(opened, shuffled, batch_size)
    for item, outcome in zip(shuffled, found, strict=True):
        (alone,) = score_choices(opened, [item], 1)
        assert outcome.nats == pytest.approx(alone.nats, rel=1e-5)


def test_a_choice_begins_behind_its_query(opened: OpenedModel) -> None:
    tokenizer = opened.tokenizer
    ids, begin = choice_ids(opened, "The shop opens at", "nine")
    assert tokenizer.decode(ids[begin:]).strip() == "nine"
    assert tokenizer.decode(ids) == "The shop opens at nine"
    ids, begin = choice_ids(opened, "", "小店")
    assert begin == 1
    assert ids[0] == tokenizer.end_of_text
    asked = (Message("user", "茶?"),)
    ids, begin = choice_ids(opened, asked, "五元")
    assert ids[:begin] == reply_prompt(tokenizer, asked)
    assert ids[begin:] == [*tokenizer.encode("五元"), tokenizer.turn_end]


@pytest.mark.parametrize(
    ("query", "choice", "whole"),
    [
        ("at", "nine", "at nine"),
        ("at ", "nine", "at nine"),
        ("在", "九点", "在九点"),
        ("在", "nine", "在nine"),
        ("价格：", "5", "价格：5"),
        ("", "a", "a"),
    ],
)
def test_choices_are_joined_as_the_script_wants(query: str, choice: str, whole: str) -> None:
    assert joined(query, choice) == whole


def test_right_is_likelier_than_every_other() -> None:
    assert is_right(np.array([2.0, 1.0, 3.0]), 1)
    assert not is_right(np.array([1.0, 1.0]), 0)
    assert not is_right(np.array([2.0, 1.0]), 0)
    assert not is_right(np.array([math.nan, 1.0]), 0)
    assert not is_right(np.array([1.0, math.nan]), 0)


def test_accuracy_by_sum_and_by_byte_by_hand() -> None:
    items = [
        Choice("q", ("ab", "abcdef"), 1, False),
        Choice("q", ("a", "b", "c", "d"), 3, False),
        Choice("", ("long sentence", "x"), 0, True),
    ]
    outcomes = [
        Outcome(np.array([2.0, 3.0]), np.array([2.0, 6.0])),
        Outcome(np.array([1.0, 2.0, 3.0, 0.5]), np.ones(4)),
        Outcome(np.array([13.0, 2.0]), np.array([13.0, 1.0])),
    ]
    found = {each.name: each for each in measure_choices(items, outcomes)}
    assert {name: each.value for name, each in found.items()} == {
        "accuracy": 50.0, "accuracy_per_byte": 100.0, "pair_accuracy": 0.0,
        "pair_accuracy_per_byte": 100.0,
    }  # fmt: skip
    assert found["accuracy"].n == 2
    assert found["accuracy"].signature.endswith("chance:37.5")
    assert found["pair_accuracy"].n == 1


def test_evaluate_takes_such_a_file(base_run: Path, data: Path, tmp_path: Path) -> None:
    settings = EvaluateSettings(
        model=str(base_run), data=str(data), device="cpu", out=str(tmp_path / "ev"),
        baseline=[str(base_run)],
    )  # fmt: skip
    result = evaluate(settings)
    assert [score.name for score in result.scores] == [
        "accuracy", "accuracy_per_byte", "pair_accuracy", "pair_accuracy_per_byte"
    ]  # fmt: skip
    (beside,) = result.baselines
    assert beside.name == str(base_run)
    assert all(each.difference == 0 for each in beside.differences)
    lines = (tmp_path / "ev" / "samples.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    named = {score.name: score for score in result.scores}
    right = [row["right"] for row in rows if row["messages"]]
    assert named["accuracy"].value == pytest.approx(100 * sum(right) / len(right))
    assert rows[1]["reference"] == "茶、书和纸"
