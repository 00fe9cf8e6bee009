"""Figures of classification, beside formulas written out row by row."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chatbench.corpus.labelled import Labelled
from chatbench.errors import DataError, UsageError
from chatbench.evaluate import classes as subject
from chatbench.evaluate.classes import (
    BINS,
    Verdicts,
    bin_of,
    class_measured,
    classes_of,
    confused,
    confusion,
)
from chatbench.evaluate.run import Evaluation, evaluate
from chatbench.evaluate.showing import text_of
from chatbench.model.folder import open_model, stored_weights, write_model
from chatbench.settings import EvaluateSettings
from chatbench.storage import new_folder

LABELS = ["card", "退款", "loan", "never"]


@pytest.fixture
def found(rng: random.Random) -> Verdicts:
    count = rng.randint(1, 300)
    wanted = [rng.randrange(3) for _ in range(count)]
    given = [w if rng.random() < 0.6 else rng.randrange(3) for w in wanted]
    sure = [rng.choice((rng.random(), 1.0, 1 / 15, 7 / 15)) or 1.0 for _ in range(count)]
    rows = [Labelled(f"text {n}", LABELS[w]) for n, w in enumerate(wanted)]
    return Verdicts(rows, LABELS, np.array(wanted), np.array(given), np.array(sure), 0)


def by_name(found: Verdicts) -> dict[str, float]:
    return {measured.name: measured.value for measured in class_measured(found)}


def test_accuracy_and_f1_by_hand(found: Verdicts) -> None:
    wanted, given = found.wanted.tolist(), found.given.tolist()
    pairs = list(zip(wanted, given, strict=True))
    scores = []
    for figures, label in zip(classes_of(found).by_class, range(4), strict=True):
        hit = sum(w == g == label for w, g in pairs)
        there, named = wanted.count(label), given.count(label)
        precision, recall = hit / named if named else 0.0, hit / there if there else 0.0
        both = precision + recall
        f1 = 2 * precision * recall / both if both else 0.0
        assert figures.label == LABELS[label]
        assert (figures.rows, figures.given) == (there, named)
        assert figures.precision == pytest.approx(100 * precision, abs=1e-9)
        assert figures.recall == pytest.approx(100 * recall, abs=1e-9)
        assert figures.f1 == pytest.approx(100 * f1, abs=1e-9)
        if there or named:  # as scikit-learn chooses the labels of a macro average
            scores.append(f1)
    values = by_name(found)
    right = sum(w == g for w, g in pairs)
    assert values["accuracy"] == pytest.approx(100 * right / len(pairs), abs=1e-9)
    assert values["macro_f1"] == pytest.approx(100 * sum(scores) / len(scores), abs=1e-9)


def test_confusion_counts_pairs(found: Verdicts) -> None:
    table = classes_of(found).confusion
    for i in range(4):
        for j in range(4):
            count = sum((w, g) == (i, j) for w, g in zip(found.wanted, found.given, strict=True))
            assert table[i][j] == count
    assert confusion(found.wanted, found.given, 4).sum() == len(found.rows)
    worst = confused(classes_of(found))
    assert worst == sorted(worst, key=lambda each: (-each[2], each[:2]))
    assert all(one != other and count for one, other, count in worst)


def test_calibration_error_by_hand(found: Verdicts) -> None:
    bins: dict[int, list[tuple[float, bool]]] = {}
    for sure, w, g in zip(found.confidence.tolist(), found.wanted, found.given, strict=True):
        place = next(b for b in range(BINS) if sure <= (b + 1) / BINS or b == BINS - 1)
        bins.setdefault(place, []).append((sure, bool(w == g)))
    total = 0.0
    for place, shown in enumerate(classes_of(found).calibration):
        rows = bins.get(place, [])
        assert shown.rows == len(rows)
        if rows:
            confidence = sum(sure for sure, _ in rows) / len(rows)
            accuracy = sum(right for _, right in rows) / len(rows)
            assert shown.confidence == pytest.approx(confidence, abs=1e-9)
            assert shown.accuracy == pytest.approx(accuracy, abs=1e-9)
            total += len(rows) / len(found.rows) * abs(confidence - accuracy)
    assert by_name(found)["ece"] == pytest.approx(100 * total, abs=1e-9)


def test_edges_of_bins_belong_below() -> None:
    edges = np.array([1 / 15, 2 / 15, 14 / 15, 1.0, 1e-9, math.nextafter(1 / 15, 1)])
    assert bin_of(edges).tolist() == [0, 1, 13, 14, 0, 1]


def test_a_sure_model_that_is_right_half_of_the_time_is_half_off() -> None:
    rows = [Labelled(str(n), "a") for n in range(10)]
    wanted, given = np.zeros(10, np.int64), np.arange(10) % 2
    found = Verdicts(rows, ["a", "b"], wanted, given, np.ones(10), 0)
    values = by_name(found)
    assert values["ece"] == pytest.approx(50.0)
    assert values["accuracy"] == pytest.approx(50.0)


def test_sums_of_very_many_numbers_are_held_in_runs(
    found: Verdicts, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = by_name(found)
    monkeypatch.setattr(subject, "_LARGEST_TABLE", 5 * 12)
    again = {each.name: each for each in class_measured(found)}
    assert again["macro_f1"].value == pytest.approx(before["macro_f1"], abs=1e-9)
    assert len(again["macro_f1"].sums) <= 5
    assert again["macro_f1"].of_parts == (len(found.rows) == len(again["macro_f1"].sums))


# ---- the verb


@pytest.fixture
def classifier(base_run: Path, tmp_path: Path) -> Path:
    """A folder of a classifier with a random head."""
    opened = open_model(base_run, torch.device("cpu"))
    opened.model.become_classifier(("card", "loan", "退款"))
    with torch.no_grad():
        opened.model.score.weight.normal_()
    folder = tmp_path / "classifier"
    with new_folder(folder, "model") as place:
        write_model(place, opened.model.config, stored_weights(opened.model), opened.tokenizer)
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    rows = ["Frage,Klasse", "where is my card,card", "退款呢,退款", "a loan,loan", ",card",
            "a strange one,stranger", "the card,card"]  # fmt: skip
    path.write_text("\n".join(rows) + "\n", "utf-8-sig")
    return path


def settings(model: Path, data: Path, **changes: Any) -> EvaluateSettings:
    return EvaluateSettings(
        model=str(model), data=str(data), device="cpu", map=["text=Frage", "label=Klasse"],
        **changes,
    )  # fmt: skip


def test_a_classifier_is_judged_and_kept(
    classifier: Path, table: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    result = evaluate(settings(classifier, table, out=str(out)))
    told = " ".join(capfd.readouterr().err.split())
    assert "1 rows have labels that the model does not know" in told
    assert "empty text" in told
    assert result.failed == 1
    assert result.classes is not None
    assert result.classes.labels == ["card", "loan", "退款", "stranger"]
    assert sum(map(sum, result.classes.confusion)) == 5
    assert not any(row[3] for row in result.classes.confusion)
    scores = {score.name: score for score in result.scores}
    assert set(scores) == {"accuracy", "macro_f1", "ece"}
    assert all(score.n == 5 for score in scores.values())
    right = sum(result.classes.confusion[n][n] for n in range(4))
    assert scores["accuracy"].value == pytest.approx(20 * right)
    stored = json.loads((out / "results.json").read_text("utf-8"))
    assert stored["classes"]["confusion"] == result.classes.confusion
    assert len(stored["classes"]["calibration"]) == BINS
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text("utf-8").splitlines()]
    assert [row["reference"] for row in rows] == ["card", "退款", "loan", "stranger", "card"]
    shown = "\n".join(text_of(result))
    assert "accuracy" in shown
    assert ("taken for" in shown) == (right < 5)


def test_the_same_command_gives_the_same_file(classifier: Path, table: Path) -> None:
    assert evaluate(settings(classifier, table)) == evaluate(settings(classifier, table))


def test_a_chat_model_chooses_among_labels(base_run: Path, table: Path) -> None:
    asked = evaluate(settings(base_run, table, choice=["card", "退款", "loan"]))
    assert asked.classes is not None
    assert asked.classes.labels == ["card", "退款", "loan", "stranger"]
    from_data = evaluate(settings(base_run, table, choice=["auto"]))
    assert from_data.classes is not None
    assert from_data.classes.labels == ["card", "loan", "stranger", "退款"]


def test_a_classifier_is_compared_with_choices_and_required(
    classifier: Path, base_run: Path, table: Path
) -> None:
    asked = settings(classifier, table, baseline=[str(classifier)], require=["accuracy>=101"])
    result: Evaluation = evaluate(asked)
    assert {d.name: d.difference for d in result.baselines[0].differences}["accuracy"] == 0.0
    assert len(result.missed) == 1


def test_what_cannot_be_judged_is_one_sentence(
    classifier: Path, base_run: Path, table: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="takes no --choice"):
        evaluate(settings(classifier, table, choice=["a", "b"]))
    with pytest.raises(UsageError, match="corpus folder"):
        evaluate(settings(classifier, corpus_folder))
    prose = tmp_path / "prose.txt"
    prose.write_text("No labels here.\n", "utf-8")
    with pytest.raises(DataError, match="no text with a label"):
        evaluate(settings(classifier, prose))
    one = tmp_path / "one.csv"
    one.write_text("Frage,Klasse\na,x\nb,x\n", "utf-8")
    with pytest.raises(UsageError, match="one label only"):
        evaluate(settings(base_run, one, choice=["auto"]))
