"""Runs are found, named and told apart; a name that means nothing is refused with a hint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from report.folders import best_bits, write_run

from chatbench.errors import UsageError
from chatbench.runs import (
    best_validation,
    find_runs,
    holds_model,
    is_run,
    named,
    short_name,
    tag,
    tags_of,
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with three runs on the same data; the newest is the worst."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHATBENCH_RUNS", raising=False)
    write_run(Path("runs/old"), loss=5.0, age=300)
    write_run(Path("runs/demo/小店"), loss=4.0, age=200)
    write_run(Path("runs/new"), loss=6.0, age=100)
    return tmp_path


def test_runs_are_found_newest_first(here: Path) -> None:
    assert [short_name(run) for run in find_runs()] == ["new", "demo/小店", "old"]
    assert find_runs([Path("runs/demo")]) == [Path("runs/demo/小店")]
    assert find_runs([Path("nowhere")]) == []


def test_nothing_inside_a_run_or_hidden_is_a_run(here: Path) -> None:
    write_run(Path("runs/old/model/inside"))
    write_run(Path("runs/.hidden/run"))
    write_run(Path("runs/a/b/c/d/deep"))
    (Path("runs") / "round").symlink_to(".")
    assert len(find_runs()) == 3
    (Path("runs") / "empty").mkdir()
    (Path("runs") / "empty" / "config.toml").touch()
    assert not is_run(Path("runs/empty"))


def test_a_second_place_is_looked_at(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(here / "elsewhere" / "other", age=0)
    monkeypatch.setenv("CHATBENCH_RUNS", str(here / "elsewhere"))
    assert short_name(find_runs()[0]) == "other"
    monkeypatch.setenv("CHATBENCH_RUNS", "runs")
    assert len(find_runs()) == 3  # each once


def test_paths_stay_paths(here: Path) -> None:
    assert named("runs/old") == Path("runs/old")
    assert named("no/such/place") == Path("no/such/place")
    Path("@odd").mkdir()
    assert named("@odd") == Path("@odd")


def test_latest(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert named("@latest") == Path("runs/new")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "@latest is runs/new\n")
    assert named("@latest", but=Path("runs/new")) == Path("runs/demo/小店")


def test_latest_with_a_model(here: Path) -> None:
    begun = write_run(Path("runs/begun"), finished=False)
    assert named("@latest", model=True) == begun  # its checkpoint can be talked to
    for path in sorted(begun.glob("checkpoints/**/*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert not holds_model(begun)
    assert named("@latest", model=True) == Path("runs/new")
    assert named("@latest") == begun


def test_best_is_the_lowest_on_the_same_data(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(Path("runs/easy"), loss=1.0, fingerprint="cd" * 32, age=400)
    write_run(Path("runs/bot"), base="runs/old", loss=0.5, age=500)
    assert named("@best") == Path("runs/demo/小店")
    assert capsys.readouterr().err == (
        f"@best is runs/demo/小店: {best_bits(200, 4.0):.4f} bits per byte, the best of 3 on the"
        " same data\n"
    )


def test_best_by_loss_where_bits_are_unknown(here: Path) -> None:
    log = Path("runs/old/metrics.jsonl")
    stamp = log.stat().st_mtime
    log.write_text('{"step":3,"val_loss":0.25}\n{"step":9,"val_loss":0.5}\n')
    os.utime(log, (stamp, stamp))
    assert best_validation(Path("runs/old")) == {"step": 3, "val_loss": 0.25}
    assert named("@best") == Path("runs/old")


def test_folders_and_tags_are_names(here: Path) -> None:
    assert named("@old") == Path("runs/old")
    assert named("@demo/小店") == named("@小店") == Path("runs/demo/小店")
    tag(Path("runs/new"), "客服-v1.2")
    assert named("@客服-v1.2") == Path("runs/new")
    assert tags_of(Path("runs/new")) == ["客服-v1.2"]


def test_a_tag_belongs_to_one_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tag(Path("runs/new"), "prod")
    tag(Path("runs/new"), "@prod")
    assert tags_of(Path("runs/new")) == ["prod"]
    tag(Path("runs/old"), "prod")
    assert capsys.readouterr().err == "@prod was runs/new until now\n"
    assert named("@prod") == Path("runs/old")
    assert tags_of(Path("runs/new")) == []
    tag(Path("runs/old"), "prod", remove=True)
    with pytest.raises(UsageError, match="no run is called @prod"):
        named("@prod")
    with pytest.raises(UsageError, match="runs/old has no tag prod") as refused:
        tag(Path("runs/old"), "prod", remove=True)
    assert refused.value.hint == "it has none"


def test_a_tag_goes_before_a_folder(here: Path) -> None:
    tag(Path("runs/new"), "old")
    assert named("@old") == Path("runs/new")


@pytest.mark.parametrize("name", ["latest", "best", "", "a b", "a/b", "-x", ".x", "a\n", "x" * 65])
def test_some_names_are_no_tags(here: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a tag"):
        tag(Path("runs/old"), name)


def test_only_runs_are_tagged(here: Path) -> None:
    with pytest.raises(UsageError, match="runs/demo is no run"):
        tag(Path("runs/demo"), "x")


def test_a_name_of_two_runs_is_refused(here: Path) -> None:
    write_run(Path("runs/other/小店"))
    with pytest.raises(UsageError, match="could be runs/demo/小店 or runs/other/小店; give the"):
        named("@小店")


def test_an_unknown_name_gets_the_nearest(here: Path) -> None:
    with pytest.raises(UsageError, match=r"no run is called @odl; did you mean old\?"):
        named("@odl")


def test_no_runs_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHATBENCH_RUNS", "elsewhere")
    with pytest.raises(UsageError, match="there is no run in runs or elsewhere"):
        named("@latest")


def test_no_validation_at_all(here: Path) -> None:
    for run in find_runs():
        (run / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError, match="no run has a validation yet"):
        named("@best")
