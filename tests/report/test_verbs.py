"""report and runs as a person calls them: what is written, what is said, what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report.folders import write_evaluation, write_run
from report.pages import checked

from chatbench.cli import run as program
from chatbench.info import info
from chatbench.model.finding import find_model
from chatbench.report import making
from chatbench.report.making import leave_report


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHATBENCH_RUNS", raising=False)
    monkeypatch.setenv("TZ", "UTC")
    write_run(Path("runs/base"), age=50)
    write_run(Path("runs/小店"), base="runs/base", loss=5.0, steps=300)
    return tmp_path


Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], here: Path) -> Said:
    """Exit code, stdout and stderr of a command."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = program(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


# ---- report


def test_a_run_gets_its_page_and_a_table(said: Said) -> None:
    code, out, err = said("report", "runs/小店")
    assert (code, out) == (0, "runs/小店/report.html\n")
    checked(Path(out.strip()).read_text("utf-8"))
    assert [line.rstrip() for line in err.splitlines()] == [
        "                   小店",
        "bits per byte     0.358",
        "validation loss  0.9392",
        "training loss    0.8945",
        "steps               300",
        "tokens             614k",
        "time                30s",
        "parameters           22",
        "memory            320MB",
    ]


def test_several_runs_get_one_page_here(said: Said) -> None:
    code, out, err = said("report", "runs/base", "@小店")
    assert (code, out) == (0, "report.html\n")
    words = checked(Path("report.html").read_text("utf-8")).words
    assert "Settings that differ" in words
    assert "settings that differ" in err
    assert "train.steps" in err
    assert "optim" not in err


def test_a_folder_of_runs_means_all_of_them(said: Said) -> None:
    assert said("report", "runs", "-o", "all.html")[0] == 0
    assert "2 runs" in checked(Path("all.html").read_text("utf-8")).words


def test_json_is_all_of_stdout(said: Said) -> None:
    write_evaluation(Path("evaluation"))
    code, out, err = said("report", "@latest", "evaluation", "--json", "-o", "x.html")
    told = json.loads(out)
    assert code == 0
    assert told["report"] == "x.html"
    assert told["runs"][0]["name"] == "小店"
    assert told["runs"][0]["tokens"] == 300 * 2048
    assert told["evaluations"][0]["scores"][0]["name"] == "chrf"
    assert err == "@latest is runs/小店\n"


def test_an_evaluation_gets_its_page(said: Said) -> None:
    write_evaluation(Path("evaluation"))
    code, out, err = said("report", "evaluation")
    assert (code, out) == (0, "evaluation/report.html\n")
    assert re.search(r"chrf +61\.50 +55\.25 to 66\.00 +40", err)


def test_a_corpus_gets_the_page_it_has(said: Said, corpus_folder: Path, here: Path) -> None:
    assert said("report", str(corpus_folder), "-o", "corpus.html")[0] == 0
    assert (here / "corpus.html").read_bytes() == (corpus_folder / "report.html").read_bytes()
    code, _, err = said("report", str(corpus_folder), "runs/base")
    assert code == 2
    assert "report on it alone" in err


def test_a_folder_as_out_gets_the_page(said: Said) -> None:
    Path("pages").mkdir()
    assert said("report", "runs/base", "-o", "pages")[1] == "pages/report.html\n"


def test_only_reports_are_written_over(said: Said) -> None:
    assert said("report", "runs/base")[0] == said("report", "runs/base")[0] == 0
    Path("notes.html").write_text("mine")
    code, _, err = said("report", "runs/base", "-o", "notes.html")
    assert code == 2
    assert "notes.html is no report, so it is not replaced" in err
    assert Path("notes.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "nothing to report on; name a run: chatbench report @latest"),
        (("nowhere",), "nowhere does not exist; list your runs: chatbench runs"),
        (("empty",), "empty is no run, evaluation or corpus"),
        (("@latets",), "no run is called @latets"),
    ],
)
def test_what_has_no_page_is_refused(said: Said, arguments: tuple[str, ...], told: str) -> None:
    Path("empty").mkdir()
    code, out, err = said("report", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert told in err


def test_open_shows_the_page(said: Said, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: not shown.append(url))
    assert said("report", "runs/base", "--open")[0] == 0
    assert shown == [(here / "runs/base/report.html").as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert "no browser could be started" in said("report", "runs/base", "--open")[2]


def test_pictures_need_their_extra(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = said("report", "runs/base", "--png", "pictures")
    assert code == 2
    assert 'drawing PNG files needs matplotlib; pip install "chatbench[plot]"' in err
    assert not Path("pictures").exists()
    assert not Path("runs/base/report.html").exists()  # told before any work


def test_pictures_are_drawn(said: Said) -> None:
    pytest.importorskip("matplotlib")
    write_evaluation(Path("evaluation"))
    Path("runs/小店").rename("runs/_$x^{")  # no formula
    code, out, _ = said("report", "runs/base", "runs/_$x^{", "evaluation", "--png", "p", "--json")
    assert code == 0
    drawn = [Path(path) for path in json.loads(out)["pictures"]]
    assert {path.name for path in drawn} == {
        "loss.png", "bits_per_byte.png", "learning_rate.png", "grad_norm.png",
        "tokens_per_second.png", "confusion.png",
    }  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


# ---- the page that a run leaves


def test_training_leaves_a_page(base_run: Path) -> None:
    words = checked((base_run / "report.html").read_text("utf-8")).words
    assert "A model of" in words
    assert "pretrained" in words
    plan = json.loads((base_run / "plan.json").read_text())
    assert plan["steps"] == 12
    assert plan["learning_rate"] > 0


def test_a_page_that_fails_stops_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> str:
        raise ValueError("no such luck")

    monkeypatch.setattr(making, "render_run", broken)
    leave_report(Path("runs/base"))
    assert capsys.readouterr().err == "note: no report of runs/base: no such luck\n"
    assert not Path("runs/base/report.html").exists()


# ---- runs


def test_runs_are_listed(said: Said) -> None:
    assert said("runs", "tag", "runs/base", "客服")[:2] == (0, "runs/base\n")
    code, out, err = said("runs")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == [
        "name", "kind", "step", "val", "loss", "bits/byte", "parameters", "tokens", "when", "tags",
    ]  # fmt: skip
    when = r"2023-11-1\d \d\d:\d\d"
    assert re.fullmatch(rf"小店  sft +300 +0\.939 +0\.358 +22 +614k  {when}", lines[1])
    assert re.fullmatch(rf"base  pretrain +200 +1\.267 +0\.483 +22 +410k  {when}  客服", lines[2])


def test_runs_as_json(said: Said) -> None:
    listed = json.loads(said("runs", "runs", "--json")[1])
    assert [run["name"] for run in listed] == ["小店", "base"]
    assert listed[0]["val_loss"] == pytest.approx(0.9392, abs=1e-4)


def test_two_runs_are_compared(said: Said) -> None:
    code, out, _ = said("runs", "compare", "@base", "@小店")
    rows = {line.split("  ")[0]: line.split()[-2:] for line in out.splitlines()[1:]}
    assert code == 0
    assert rows["bits per byte"] == ["0.483", "0.358"]
    assert rows["train.steps"] == ["200", "300"]
    assert rows["objective"] == ["pretrain", "sft"]
    differing = json.loads(said("runs", "compare", "@base", "@小店", "--json")[1])["differences"]
    assert differing["train.steps"] == [200, 300]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("compare", "@base"), "two runs are compared at least"),
        (("compare", "@base", "nowhere"), "nowhere is no run"),
        (("tag", "runs/base"), "a run and a name are needed"),
        (("tag", "runs/base", "latest"), "cannot be a tag"),
        (("list", "x"), "runs does not know list"),
        (("nowhere",), "nowhere is no folder"),
        (("--remove",), "--remove goes with tag"),
    ],
)
def test_what_runs_refuses(said: Said, arguments: tuple[str, ...], told: str) -> None:
    code, out, err = said("runs", *arguments)
    assert (code, out) == (2, "")
    assert told in err


def test_no_runs_is_no_mistake(tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare").mkdir()
    monkeypatch.chdir(tmp_path / "bare")
    code, out, err = said("runs")
    assert (code, out) == (0, "")
    assert "no run in runs" in err


# ---- names where a model is asked for


def test_names_are_understood_where_a_model_is_asked_for(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_model(Path("@latest")) == Path("runs/小店/model")
    assert find_model(Path("@base")) == Path("runs/base/model")
    info("@base", as_json=True)
    assert json.loads(capsys.readouterr().out)["folder"] == "runs/base"


def test_a_finetune_notes_the_run_that_a_name_meant(
    base_run: Path, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chatbench.settings import FinetuneSettings, TrainSettings
    from chatbench.train.recipes import finetune

    monkeypatch.setenv("CHATBENCH_RUNS", str(base_run.parent))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs" / "bot"
    settings = FinetuneSettings(
        model="@base", data=[str(sources / "chats.jsonl")], out=str(out), dtype="float32",
        device="cpu", train=TrainSettings(steps=2, seq_len=48, tensorboard=False),
    )  # fmt: skip
    assert finetune(settings) == out
    assert f'model = "{base_run}"' in (out / "config.toml").read_text()
    assert "../" in re.findall(r'href="([^"#]*report\.html)"', (out / "report.html").read_text())[0]


def test_neither_verb_loads_torch(here: Path) -> None:
    code = (
        "import sys\nfrom chatbench.cli import run\n"
        "assert run(['runs']) == 0\nassert run(['report', 'runs/base']) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
