"""--require: what is met, what is missed, and what is no requirement."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatbench.errors import MissedError, UsageError
from chatbench.evaluate.gate import ALIASES, KNOWN, missed, parse_requirements, require_met
from chatbench.evaluate.run import evaluate
from chatbench.settings import EvaluateSettings
from chatbench.text.measuring import Score
from chatbench.text.metrics import Judged, measure_all

CHRF = [Score("chrf", 30.0, 5, "s"), Score("bits_per_byte", 1.25, 9, "s")]


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        ("chrf>=30", True),
        ("chrf > 30", False),
        ("chrf<30.5", True),
        (" chrf <= 3e1 ", True),
        ("chrf==30", True),
        ("chrF>=31", None),
        ("chrf2>=31", False),
        ("bpb<=1.2", False),
        ("bpb<=1.2,chrf>=30", False),
        ("bits_per_byte < 1.3, chrf >= 1", True),
        ("bleu>=0", False),
    ],
)
def test_conditions(condition: str, met: bool | None) -> None:
    if met is None:
        with pytest.raises(UsageError, match="no metric"):
            parse_requirements([condition])
    else:
        assert (missed(parse_requirements([condition]), CHRF) == []) is met


@pytest.mark.parametrize("relation", [">=", "<=", ">", "<", "=="])
def test_what_is_not_a_number_meets_nothing(relation: str) -> None:
    wanted = parse_requirements([f"chrf{relation}0"])
    assert missed(wanted, [Score("chrf", math.nan, 1, "s")])


def test_every_miss_is_named_with_its_value() -> None:
    misses = missed(parse_requirements(["chrf>=50", "bpb<=1", "rouge-l>3"]), CHRF)
    assert misses == [
        "chrf>=50: chrf is 30",
        "bpb<=1: bits_per_byte is 1.25",
        "rouge-l>3: rougeL was not measured on this data",
    ]
    with pytest.raises(MissedError) as caught:
        require_met(misses)
    assert caught.value.exit_code == 9
    assert all(miss in str(caught.value) for miss in misses)
    require_met([])


@pytest.mark.parametrize("condition", ["chrf", "chrf>=", ">=3", "chrf>=x", "chrf!=3", "chrf=>3"])
def test_what_is_no_condition_is_refused(condition: str) -> None:
    with pytest.raises(UsageError, match="no condition"):
        parse_requirements([condition])


def test_a_slip_of_the_pen_is_told() -> None:
    with pytest.raises(UsageError, match="did you mean rougeLsum"):
        parse_requirements(["rougeLsumm>3"])


def test_every_metric_can_be_required() -> None:
    pairs = [Judged("a b c d 茶", "a b c d e", ("a",))] * 2
    assert {measured.name for measured in measure_all(pairs)} <= set(KNOWN)
    assert set(ALIASES.values()) <= set(KNOWN)


def test_the_program_ends_with_9_and_prints_the_scores_all_the_same(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    data = tmp_path / "replies.jsonl"
    rows = [
        {"reply": "茶卖五元。", "reference": "茶卖六元。"},
        {"reply": "at 9", "reference": "at 9"},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    done = cli("evaluate", "-d", data, "--json", "--require", "chrf>=99", "--require", "em>=50")
    assert done.returncode == 9, done.stderr
    assert "chrf>=99" in done.stderr
    assert "em>=50" not in done.stderr
    assert json.loads(done.stdout)["missed"][0].startswith("chrf>=99")
    met = evaluate(EvaluateSettings(data=str(data), require=["em>=50"]))
    assert met.missed == []
