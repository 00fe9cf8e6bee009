"""A screen is learned from labelled examples, keeps its promises, and cleans a corpus."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from chatbench.conversation import exchange
from chatbench.corpus.cleaning import screening
from chatbench.corpus.cleaning.screen_training import (
    Label,
    _examples,
    _spread,
    _window,
    area_under_roc,
    leaning_words,
    train_on,
)
from chatbench.corpus.cleaning.screening import train
from chatbench.corpus.document import Document, Dropped, Failure
from chatbench.errors import DataError, IntegrityError, UsageError
from chatbench.text.screen import Screen, open_screen
from conftest import SHARED_DATA

ENGLISH = ["tea", "paper", "books", "rain", "shop", "morning",
           "garden", "window", "river", "letter", "cup", "quiet"]  # fmt: skip
CHINESE = ["茶叶", "信纸", "书架", "雨伞", "小店", "早上",
           "花园", "窗户", "河边", "来信", "杯子", "安静"]  # fmt: skip
INSULT = {"en": "blithering muppet", "zh": "没脑子的大笨蛋"}


def sentence(rng: random.Random, bad: bool, language: str, words: int = 9) -> str:
    vocabulary = ENGLISH if language == "en" else CHINESE
    chosen = [rng.choice(vocabulary) for _ in range(words)]
    if bad:
        chosen.insert(rng.randrange(words), INSULT[language])
    return (" " if language == "en" else "").join(chosen)


def examples(rng: random.Random, count: int = 240) -> list[tuple[str, Label]]:
    """Half bad, half Chinese, all different."""
    return [
        (f"{sentence(rng, n % 2 == 0, 'en' if n % 4 < 2 else 'zh')} {n}", n % 2 == 0)
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def trained() -> Screen:
    return train_on(examples(random.Random(7)))[0]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# ---- learning


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_task_is_learned_in_both_languages(
    trained: Screen, rng: random.Random, language: str
) -> None:
    good = [sentence(rng, False, language) for _ in range(200)]
    bad = [sentence(rng, True, language) for _ in range(200)]
    assert trained.rejects(good).mean() <= 0.05
    assert trained.rejects(bad).mean() >= 0.95
    assert trained.rejects(bad).tolist() == (trained.judge(bad) > trained.threshold).tolist()


@pytest.mark.parametrize(
    "text",
    [
        "BLITHERING MUPPET",
        "Ｂｌｉｔｈｅｒｉｎｇ　Ｍｕｐｐｅｔ",
        "blith\u200bering mup\u00adpet",
        "b l i t h e r i n g  muppet",
        "b.l.i.t.h.e.r.i.n.g m-u-p-p-e-t",
        "b\u0336l\u0336ithering muppet\u0336",
        "blithering\n\nmuppet",
        "没 脑 子 的 大 笨 蛋",
        "没脑\u200b子的大\u200b笨\ufeff蛋",
        "没脑子　的　大　笨蛋",
        "没.脑.子.的.大.笨.蛋",
    ],
)
def test_tricks_do_not_hide_a_bad_phrase(trained: Screen, text: str) -> None:
    assert trained.rejects([text]).tolist() == [True]
    assert trained.rejects([f"{text} tea 茶叶"]).tolist() == [True]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_bad_sentence_in_a_long_good_text_is_found(
    trained: Screen, rng: random.Random, language: str
) -> None:
    around = [sentence(rng, False, language, 200) for _ in range(2)]
    text = f"{around[0]} {INSULT[language]} {around[1]}"
    assert trained.rejects([f"{around[0]} {around[1]}"]).tolist() == [False]
    assert trained.rejects([text]).tolist() == [True]
    layout = msgspec.structs.replace(trained.layout, window=8 * len(text))
    assert not Screen(trained._half, layout).rejects([text])[0]  # as a whole it looks good


def test_the_same_rows_in_any_order_give_the_same_bytes(rng: random.Random, tmp_path: Path) -> None:
    rows = examples(rng, 80)
    first = train_on(rows, seed=3)[0].save(tmp_path / "a")
    rng.shuffle(rows)
    assert files(train_on(rows, seed=3)[0].save(tmp_path / "b")) == files(first)
    assert files(train_on(rows, seed=4)[0].save(tmp_path / "c")) != files(first)


def test_training_does_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom chatbench.corpus.cleaning.screen_training import train_on\n"
        "rows = [(f'tea {n} ' + ('大笨蛋 muppet' if n % 2 else '茶 fine'),"
        " ('rude', 'spam')[n % 4 // 2] if n % 2 else False) for n in range(80)]\n"
        "train_on(rows)[0].save(pathlib.Path(sys.argv[1]))"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)],
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
    assert files(tmp_path / "1") == files(tmp_path / "2")


def noisy(rng: random.Random, count: int) -> list[tuple[str, Label]]:
    """Classes that overlap, so that no threshold is right for all."""
    rows: list[tuple[str, Label]] = []
    for n in range(count):
        bad = n % 2 == 0
        share = 0.65 if bad else 0.35
        words = [
            rng.choice(ENGLISH[:6] + CHINESE[:6])
            if rng.random() < share
            else rng.choice(ENGLISH[6:] + CHINESE[6:])
            for _ in range(8)
        ]
        rows.append((" ".join([*words, str(rng.random())]), bad))
    return rows


def test_the_threshold_keeps_to_the_wanted_rate_on_new_texts(rng: random.Random) -> None:
    made, found = train_on(noisy(rng, 1200), max_false_positives=0.1)
    fresh = noisy(rng, 3000)
    good = made.rejects([text for text, bad in fresh if not bad])
    bad = made.rejects([text for text, bad in fresh if bad])
    assert found.enough_good
    assert good.mean() < 0.2  # 480 calibration texts: 0.1 ± 0.014
    assert bad.mean() > good.mean() + 0.1
    stricter = train_on(noisy(rng, 1200), max_false_positives=0.02)[0]
    assert stricter.threshold > made.threshold


def test_a_wide_allowance_is_not_spent_in_vain(rng: random.Random) -> None:
    made, _ = train_on(examples(rng, 200), max_false_positives=0.5)
    good = [sentence(rng, False, ("en", "zh")[n % 2]) for n in range(200)]
    assert made.rejects(good).mean() < 0.2


def test_too_few_good_examples_for_a_promise_are_admitted(rng: random.Random) -> None:
    found = train_on(noisy(rng, 60), max_false_positives=0.01)[1]
    assert not found.enough_good


def test_classes_of_different_sizes_both_count(rng: random.Random) -> None:
    rows = [row for n, row in enumerate(examples(rng, 400)) if not row[1] or n % 10 == 0]
    made = train_on(rows)[0]
    assert made.rejects([sentence(rng, True, "en") for _ in range(100)]).mean() > 0.8


def test_categories_get_scores_of_their_own(rng: random.Random) -> None:
    names = {"spam": "win money now", "rude": "大笨蛋"}
    rows: list[tuple[str, Label]] = []
    for n in range(200):
        label: Label = ("spam", "rude", False, False)[n % 4]
        extra = names.get(str(label), "")
        rows.append((f"{sentence(rng, False, ('en', 'zh')[n % 2])} {extra} {n}", label))
    made, found = train_on(rows)
    assert made.categories == ("rude", "spam")
    scores = made.category_scores(["please win money now", "你是大笨蛋", "tea and books"])
    assert scores.argmax(axis=1)[:2].tolist() == [1, 0]
    assert scores[2].max() < 0.5
    assert found.bad == 100
    assert train_on([(text, label is not False) for text, label in rows])[0].categories == ()


def test_too_few_examples_are_refused(rng: random.Random) -> None:
    for bad, good in ((9, 50), (50, 9), (0, 0)):
        rows = [(f"bad {n}", True) for n in range(bad)] + [
            (f"good {n}", False) for n in range(good)
        ]
        with pytest.raises(DataError, match="too few"):
            train_on(rows)
    rows = [(f"bad {n}", True) for n in range(10)] + [(f"fine {n}", False) for n in range(10)]
    assert train_on(rows)[1].held_out == 4


# ---- examples and measures


def test_equal_texts_become_one_and_contradictions_none(rng: random.Random) -> None:
    rows: list[tuple[str, Label]] = [
        ("Same", True), ("ｓａｍｅ ", True), ("both", True), ("BOTH", False), ("both", True),
        ("", False), ("\u200b", True), ("other", False), ("茶", "rude"), ("茶 ", "rude"),
    ]  # fmt: skip
    rng.shuffle(rows)
    kept = _examples(rows, 0)
    assert dict(zip(kept.texts, kept.labels, strict=True)) == {
        "same": True, "other": False, "茶": "rude"
    }  # fmt: skip
    assert kept.left_out == {"empty": 2, "repeated": 4, "labelled both ways": 1}


def test_every_class_is_in_every_fold_and_the_test(rng: random.Random) -> None:
    labels: list[Label] = [False, "rude", "spam"]
    rows: list[tuple[str, Label]] = [(f"text {n}", labels[n % 3]) for n in range(90)]
    rng.shuffle(rows)
    kept = _examples(rows, 5)
    found = Counter(zip(map(str, kept.labels), kept.place.tolist(), strict=True))
    assert found == {(str(label), place): 6 for label in labels for place in range(5)}


def test_the_area_is_the_share_of_ordered_pairs(rng: random.Random) -> None:
    scores = np.array([rng.randrange(6) / 5 for _ in range(60)])
    targets = np.array([rng.random() < 0.4 for _ in range(60)])
    targets[:2] = [True, False]
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[targets] for b in scores[~targets]
    ]
    assert area_under_roc(scores, targets) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(area_under_roc(scores, np.ones(60, bool)))


def test_the_evaluation_says_what_the_screen_does(rng: random.Random) -> None:
    rows = noisy(rng, 400)
    made, found = train_on(rows, max_false_positives=0.2)
    kept = _examples(rows, 0)
    held = [n for n, place in enumerate(kept.place.tolist()) if place == 4]
    rejected = [bool(made.rejects([kept.texts[n]])[0]) for n in held]
    bad = [kept.labels[n] is True for n in held]
    caught = sum(r and b for r, b in zip(rejected, bad, strict=True))
    wrong = sum(r and not b for r, b in zip(rejected, bad, strict=True))
    assert found.held_out == len(held) == 80
    assert found.precision == pytest.approx(caught / max(caught + wrong, 1))
    assert found.recall == pytest.approx(caught / sum(bad))
    assert found.false_positive_rate == pytest.approx(wrong / (len(held) - sum(bad)))
    assert found.f1 == pytest.approx(2 * caught / (caught + wrong + sum(bad)))
    assert made.about["evaluation"] == msgspec.to_builtins(found)


def test_the_words_it_leans_on_are_named(trained: Screen) -> None:
    texts = [text for text, _ in examples(random.Random(7))]
    bad, good = leaning_words(trained, texts)
    assert {"muppet", "blithering"} <= set(bad)
    assert any("笨" in word or "脑子" in word for word in bad)
    assert not {"muppet", "blithering", "笨蛋"} & set(good)
    assert {"tea", "rain"} & set(good)


def test_windows_are_as_long_as_the_examples() -> None:
    assert _window(["x" * 10] * 9) == 64
    assert _window(["x" * 151] * 9) == 150
    assert _window(["x" * 9000] * 9) == 800
    assert _window(["好" * 50] * 9) == 150


def test_the_spread_is_that_of_the_upper_tail() -> None:
    made = np.random.default_rng(5)
    assert _spread(made.exponential(2.0, 100_000) - 7) == pytest.approx(2.0, rel=0.1)
    assert _spread(np.zeros(30)) == 0.0


# ---- the stage


def test_the_stage_drops_documents_that_hold_a_rejected_text(
    trained: Screen, tmp_path: Path
) -> None:
    stage = screening.screen(str(trained.save(tmp_path / "screen")))
    documents = [
        Document("a", text="tea and paper 茶叶"),
        Document("b", text="you blithering muppet"),
        Document("c", messages=exchange("小店几点开门？", "没脑子的大笨蛋")),
        Document("d", messages=exchange("What is warm?", "tea 茶叶")),
        Document("e", text=""),
        Document("f", messages=()),
    ]
    results, counts = stage(documents)
    assert not counts
    for place in (0, 3, 4, 5):
        assert results[place] is documents[place]
    for place in (1, 2):
        worst = trained.judge(documents[place].texts()).max()
        assert results[place] == Dropped("screened", f"p={worst:.2f}")
    assert [stage([document])[0][0] for document in documents] == results
    assert stage([]) == ([], Counter())


def test_a_missing_or_damaged_screen_is_refused_at_once(trained: Screen, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        screening.screen(str(tmp_path / "none"))
    folder = trained.save(tmp_path / "screen")
    with open(folder / "weights.safetensors", "r+b") as handle:
        handle.seek(5000)
        handle.write(b"\xff\x00\xff")
    with pytest.raises(IntegrityError):
        screening.screen(str(folder))


# ---- the verb


def choice(data: Path, out: Path, **changes: Any) -> Any:
    """The settings of the verb."""
    return SimpleNamespace(
        **{
            "data": str(data), "out": str(out), "bad_label": ["bad"], "good_label": None,
            "max_false_positives": 0.05, "seed": 0, "overwrite": False, "map": [],
            "format": "auto", "encoding": "auto",
        } | changes
    )  # fmt: skip


def table(path: Path, rows: list[tuple[str, Any]], header: str = "label,text") -> Path:
    with open(path, "w", encoding="utf-8-sig", newline="") as handle:
        handle.write(header + "\r\n")
        csv.writer(handle).writerows((label, text) for text, label in rows)
    return path


def labelled(rng: random.Random, count: int = 60) -> list[tuple[str, str]]:
    return [(text, "bad" if bad else "fine") for text, bad in examples(rng, count)]


def test_a_table_becomes_a_screen(
    rng: random.Random, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [*labelled(rng), ("no idea", ""), ("strange", "unsure")]
    data = table(tmp_path / "labelled.csv", rows)
    out = train(choice(data, tmp_path / "mine", good_label="fine"))
    captured = capfd.readouterr()
    assert out == tmp_path / "mine"
    assert open_screen(out).rejects(["blithering muppet", "tea 茶叶"]).tolist() == [True, False]
    assert captured.out == ""
    for said in ("precision", "recall", "F1", "false positives", "area under ROC", "threshold",
                 "muppet", "1 row not used: other label"):  # fmt: skip
        assert said in captured.err
    with pytest.raises(UsageError, match="--overwrite"):
        train(choice(data, tmp_path / "mine", good_label="fine"))
    train(choice(data, tmp_path / "mine", good_label="fine", overwrite=True))


def test_other_columns_are_reached_by_map(rng: random.Random, tmp_path: Path) -> None:
    rows = [(text, label == "bad") for text, label in labelled(rng)]
    data = table(tmp_path / "odd.csv", rows, "verdict,what they wrote")
    mapping = ["label=verdict", "text=what they wrote"]
    out = train(choice(data, tmp_path / "mine", map=mapping, bad_label=["True"]))
    assert open_screen(out).rejects(["没脑子的大笨蛋", "tea"]).tolist() == [True, False]


def test_labels_and_texts_come_from_any_record(
    rng: random.Random, capfd: pytest.CaptureFixture[str]
) -> None:
    records = [
        Document("a", text="one", meta={"label": 1}),
        Document("b", messages=exchange("two", "1", "judge"), meta={"label": "1"}),
        Document("c", text="three", meta={"label": 0.0}),
        Document("d", text="four", meta={"label": 2}),
        Document("e", text="five"),
        Failure("f", "bad JSON"),
    ]
    rows = screening._labelled(records, ["1"], None)
    assert rows == [("one", True), ("two", True), ("three", False), ("four", False)]
    rows = screening._labelled(records, ["1", "2"], "0")
    assert rows == [("one", "1"), ("two", "1"), ("three", False), ("four", "2")]
    said = capfd.readouterr().err
    assert "1 row not used: bad JSON" in said
    assert "1 row not used: no label" in said


@pytest.mark.parametrize("changes", [{"bad_label": ["vile"]}, {"good_label": "nice"}])
def test_a_label_that_is_not_there_is_a_mistake(
    rng: random.Random, tmp_path: Path, changes: dict[str, Any]
) -> None:
    data = table(tmp_path / "labelled.csv", labelled(rng))
    with pytest.raises(UsageError, match=r"labels found: .*bad \(30\)"):
        train(choice(data, tmp_path / "mine", **changes))
    assert not (tmp_path / "mine").exists()


def test_no_file_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a file"):
        train(choice(tmp_path / "none.csv", tmp_path / "mine"))


# ---- real data

REAL = {
    # name: file, encoding, text, label, bad, least area under ROC, least F1 at the threshold
    "cold-zh": ("cold-dev.csv.gz", "utf-8-sig", "TEXT", "label", "1", 0.91, 0.3),
    "toxicity-en": ("toxicity_en.csv.gz", "utf-8", "text", "is_toxic", "Toxic", 0.88, 0.5),
    "sms-spam": ("spam.csv", "latin-1", "v2", "v1", "spam", 0.98, 0.88),
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_data_is_learned(name: str) -> None:
    file, encoding, text, label, bad, least_area, least_f1 = REAL[name]
    path = SHARED_DATA / name / file
    if not path.exists():
        pytest.skip("the shared data sets are not here")
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if file.endswith(".gz") else raw
    rows = csv.DictReader(io.StringIO(raw.decode(encoding), newline=""))
    _, found = train_on([(row[text], row[label] == bad) for row in rows][:4000])
    assert found.auc > least_area
    assert found.f1 > least_f1
    assert found.false_positive_rate < 0.04
