"""Control accuracy: who learned what from where, which replies count, and what stands beside."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpus.corpora import build, fates, numbered
from evaluate.styled import styles
from text.foreign import BUILDERS, write_tokenizer

from chatbench.conversation import Message
from chatbench.corpus.build import preprocess
from chatbench.evaluate.control import (
    Told,
    control_measured,
    tags_of,
    taught_by,
    under_every_value,
)
from chatbench.evaluate.run import evaluate
from chatbench.evaluate.tasks import Question
from chatbench.evaluate.training import Training
from chatbench.settings import EvaluateSettings, PreprocessSettings
from chatbench.text.tags import Known, known_in
from conftest import write_jsonl

KNOWN: Known = {"style": {"casual": 1, "formal": 1}, "语气": {"正式": 1, "随意": 1}}


def told(count: int, seed: int) -> list[Told]:
    return [
        Told(row["messages"][-1]["content"], {c: row[c] for c in KNOWN if c in row})
        for row in styles.dialogues(count, seed)
    ]


def swapped(each: Told) -> Told:
    """The same reply, said under the other value."""
    ((column, value),) = each.tags.items()
    return Told(each.reply, {column: next(v for v in KNOWN[column] if v != value)})


def test_obedience_is_the_share_of_replies_that_bear_their_tag(rng: random.Random) -> None:
    taught = told(400, 1)
    written = told(120, 2)
    obeys = [rng.random() < 0.6 for _ in written]
    said = [each if ok else swapped(each) for each, ok in zip(written, obeys, strict=True)]
    found = {m.name: m for m in control_measured(taught, said, written)}
    for column, values in KNOWN.items():
        mine = [n for n, each in enumerate(said) if column in each.tags]
        assert found[f"control_judge.{column}"].value == 100.0, "this judge makes no mistakes"
        expected = 100 * sum(obeys[n] for n in mine) / len(mine)
        assert found[f"control.{column}"].value == pytest.approx(expected, abs=1e-9)
        assert found[f"control.{column}"].n == len(mine)
        parts = [found[f"control.{column}={value}"] for value in values]
        assert sum(part.n for part in parts) == len(mine)
        hits = sum(part.sums[:, 0].sum() for part in parts)
        assert hits == found[f"control.{column}"].sums[:, 0].sum()
        signature = found[f"control.{column}"].signature
        assert "judge:char-ngrams|logistic|taught:" in signature
        assert "values:2" in signature
    assert len({m.name for m in found.values()}) == len(found) == 12


def test_an_empty_reply_obeys_nothing() -> None:
    said = [Told(" \n", {"style": value}) for value in ("formal", "casual")]
    found = {m.name: m.value for m in control_measured(told(200, 1), said, [])}
    assert found["control.style"] == 0.0
    assert "control_judge.style" not in found


def test_what_cannot_be_told_apart_is_left_out() -> None:
    taught = [Told(f"tea {n}", {"style": "formal", "id": str(n)}) for n in range(40)]
    assert control_measured(taught, taught, taught) == []
    few = [*taught, *[Told("茶", {"style": "casual"})] * 7]
    assert control_measured(few, few, few) == []
    assert control_measured([*few, few[-1]], few, few) != []


@pytest.mark.parametrize(
    ("kind", "template"),
    [(None, None), ("zephyr", "zephyr"), ("mistral", "mistral"), ("gpt2", "plain"),
     ("llama3", "llama3")],
)  # fmt: skip
def test_replies_and_tags_are_read_back_from_a_corpus(
    tmp_path: Path, kind: str | None, template: str | None
) -> None:
    rows = styles.dialogues(120, 5)
    for n, row in enumerate(rows):
        if n % 3 == 0:
            row["messages"].insert(0, {"role": "system", "content": "Be kind. 友善。"})
        if n % 7 == 0:
            del row["style" if "style" in row else "语气"]
    path = numbered(tmp_path / "a.jsonl", rows)
    given: dict[str, Any] = {}
    if kind is not None:
        folder = write_tokenizer(tmp_path / kind, BUILDERS[kind]())
        given = {"tokenizer": str(folder), "template": template}
    corpus = build(tmp_path / "c", path, tag_column=list(KNOWN), split_by="document", **given)
    found = taught_by(Training(corpus.folder), corpus.tags())
    wanted = [
        (row["messages"][-1]["content"], {c: row[c] for c in KNOWN if c in row})
        for row, fate in zip(rows, fates(corpus, len(rows)), strict=True)
        if fate == "train"
    ]
    assert Counter((reply, tuple(tags.items())) for reply, tags in found) == Counter(
        (reply, tuple(tags.items())) for reply, tags in wanted if tags
    )
    from_file = taught_by(Training(path), KNOWN)
    assert len(from_file) == sum(any(c in row for c in KNOWN) for row in rows)


def test_each_question_is_asked_under_each_other_value(rng: random.Random) -> None:
    known: Known = {"style": {"a": 1, "b": 1, "c": 1}, "语气": {"正式": 1, "随意": 1}}
    for system in ("style: b", "Be kind.\nstyle: no\n\nstyle: b\n语气: 正式", "Be kind", ""):
        turns = (Message("system", system), Message("user", "茶?"))
        question = Question(turns if system else turns[1:], "reply", ("fact",))
        tags = tags_of(question, known)
        others = under_every_value([question], known)
        found = [tags_of(other, known) for other in others]
        assert found == [
            {**tags, column: value}
            for column in tags
            for value in known[column]
            if value != tags[column]
        ]
        for other in others:
            assert other.messages[1:] == question.messages[1:]
            assert (other.reference, other.facts) == ("reply", ("fact",))
            assert len(other.messages[0].content) == len(system)
            assert other.messages[0].content.startswith(system.partition("style: b")[0])


# ---- the verb


ROWS = [
    {"messages": [{"role": "user", "content": f"{word} {n}?"},
                  {"role": "assistant", "content": "yes yes" if n % 2 else "不不"}],
     "s": "y" if n % 2 else "n"}
    for n in range(60) for word in ("tea", "茶")
]  # fmt: skip


@pytest.fixture(scope="module")
def taught(base_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model that has learned a tag, and the corpus it learned it from."""
    run = tmp_path_factory.mktemp("taught")
    shutil.copytree(base_run / "model", run / "model")
    (run / "model" / "manifest.json").unlink()
    path = write_jsonl(run / "rows.jsonl", ROWS)
    corpus = preprocess(
        PreprocessSettings(
            inputs=[str(path)], out=str(run / "corpus"), tag_column=["s"], profile=False,
            tokenizer=str(base_run / "model"), val_fraction=0.1, test_fraction=0.2, workers=1,
            split_by="document",
        )
    )  # fmt: skip
    config = json.loads((run / "model" / "config.json").read_text("utf-8"))
    config["chatbench"]["tags"] = json.loads((corpus / "tags.json").read_text("utf-8"))
    (run / "model" / "config.json").write_text(json.dumps(config), "utf-8")
    assert known_in(config["chatbench"]) == {"s": {"n": 60, "y": 60}}
    return run


Scores = Callable[..., dict[str, Any]]


@pytest.fixture
def scores(taught: Path) -> Scores:
    def of(**given: Any) -> dict[str, Any]:
        settings = EvaluateSettings(
            **{"model": str(taught / "model"), "data": str(taught / "corpus"), "device": "cpu",
               "max_tokens": 3, **given}
        )  # fmt: skip
        return {score.name: score for score in evaluate(settings).scores}

    return of


def test_evaluate_reports_control_where_the_test_set_has_tags(scores: Scores) -> None:
    found = scores()
    assert found["control_judge.s"].value == 100.0
    assert found["control.s"].n == found["control_judge.s"].n > 10
    assert 0 <= found["control.s"].value <= 100
    assert found["control.s"].low is not None
    assert "asked:own-value" in found["control.s"].signature
    assert not any("control" in name for name in scores(control="off"))
    every = scores(control="every")
    assert every["control.s"].n == 2 * found["control.s"].n
    assert every["control.s=y"].n == every["control.s=n"].n
    assert "asked:every-value" in every["control.s"].signature


def test_a_file_of_rows_is_asked_under_its_tags(
    scores: Scores, taught: Path, tmp_path: Path
) -> None:
    tagged = write_jsonl(tmp_path / "tagged.jsonl", ROWS[:20])
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"messages": r["messages"]} for r in ROWS[:20]])
    found, without = scores(data=str(tagged)), scores(data=str(bare))
    assert found["control.s"].n == 20
    assert not any("control" in name for name in without)
    assert found["perplexity"].value != without["perplexity"].value, "the tag is read"
    assert found["perplexity"].n == without["perplexity"].n
