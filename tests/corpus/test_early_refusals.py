"""Settings that cannot be meant end in one sentence before any work, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from corpus.corpora import build

from chatbench.corpus.build import Build
from chatbench.errors import ExitCode, UsageError
from conftest import sample_texts, write_jsonl

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in sample_texts(20)])


EARLY: list[tuple[dict[str, Any], str]] = [
    ({"lang": ["en", "klingon"]}, "'klingon' is not a known language"),
    ({"lang": ["en,zg"]}, "--lang 'zg' is not a known language"),
    ({"lang": [" , "]}, "no language is given"),
    ({"block": ["nowhere.txt"]}, "nowhere.txt does not exist"),
    ({"screen": "nowhere"}, "nowhere"),
    ({"against": ["nowhere.jsonl"]}, "nowhere.jsonl does not exist"),
    ({"format": "docx"}, "--format docx is not known.*jsonl"),
    ({"encoding": "utf-9"}, "encoding 'utf-9' is not known"),
    ({"encoding": "base64"}, "encoding 'base64' is not known"),
    ({"format": "jsonl", "encoding": "utf-9"}, "encoding 'utf-9' is not known"),
    ({"map": ["usr=question"]}, "--map knows no part usr.*did you mean user"),
    ({"map": ["user"]}, "--map user is not PART=COLUMN"),
    ({"map": ["user=a", "user=b"]}, "--map names user twice"),
    ({"extend_vocab": True}, "--extend-vocab has no tokenizer to extend.*--tokenizer"),
    ({"val_fraction": 0.6, "test_fraction": 0.4}, "leave nothing to train on"),
    ({"val_fraction": 0.9, "test_fraction": 0.9}, "leave nothing to train on"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "what"), EARLY, ids=str)
def test_it_is_said_before_anything_is_read_or_written(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], given: dict[str, Any], what: str,
) -> None:  # fmt: skip
    def refuse(_: Build) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(Build, "run", refuse)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=what) as caught:
        build(tmp_path / "c", path, **given)
    assert caught.value.exit_code == ExitCode.USAGE == 2
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["a.jsonl"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"tokenizer": "nowhere"}, "nowhere does not exist"),
        ({"tokenizer": "base", "extend_vocab": True, "vocab_size": 270},
         "has 300 entries already, more than the 270 wanted; give --vocab-size above 300"),
    ],
    ids=["absent", "too large"],
)  # fmt: skip
def test_a_tokenizer_that_cannot_be_used_leaves_nothing(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    build(tmp_path / "base", path)
    with pytest.raises(UsageError, match=what):
        build(tmp_path / "c", path, **given)
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "base"]


@pytest.mark.parametrize(
    "arguments",
    [["--lang", "klingon"], ["--format", "docx"],
     ["--val-fraction", "0.5", "--test-fraction", "0.5"]],
    ids=" ".join,
)  # fmt: skip
def test_the_program_says_it_in_one_line_with_exit_2(
    tmp_path: Path, path: Path, cli: Cli, arguments: list[str]
) -> None:
    done = cli("preprocess", path, "-o", tmp_path / "c", *arguments)
    assert done.returncode == ExitCode.USAGE == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["a.jsonl"]
