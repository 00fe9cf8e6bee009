"""What -d names: files and corpus folders, whole or as a share, and how settings hold it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatbench import cli
from chatbench.config import resolve, to_toml
from chatbench.corpus.mixture import Mixture
from chatbench.corpus.shards import open_corpus
from chatbench.errors import ExitCode, IntegrityError, UsageError
from chatbench.settings import FinetuneSettings, TrainSettings
from chatbench.train import checkpoint
from chatbench.train.dialogues import Source, sources_of
from chatbench.train.recipes import finetune
from chatbench.train.run import Run
from conftest import sample_chats, write_jsonl


def tuned(base: Path, data: Any, out: Path, **train: Any) -> FinetuneSettings:
    return FinetuneSettings(
        model=str(base), data=data, out=str(out), dtype="float32", device="cpu",
        train=TrainSettings(batch_tokens=96, tensorboard=False, **{"steps": 2} | train),
    )  # fmt: skip


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("new.jsonl", ("new.jsonl", None)),
        ("old/:0.1", ("old/", 0.1)),
        ("旧的/:0.25", ("旧的/", 0.25)),
        ("old:1e-3", ("old", 0.001)),
        ("a:b.jsonl", ("a:b.jsonl", None)),
        ("old:0.5:0.1", ("old:0.5", 0.1)),
        (":0.1", (":0.1", None)),
        ("old:", ("old:", None)),
    ],
)
def test_a_share_stands_behind_the_last_colon(text: str, wanted: tuple[str, float | None]) -> None:
    assert sources_of(["new", text])[1] == Source(*wanted)


def test_a_path_that_ends_like_a_share_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old:0.1").touch()
    assert sources_of(["old:0.1", "old:0.1:0.2"]) == [Source("old:0.1"), Source("old:0.1", 0.2)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "data is empty"),
        (["a:0.5"], "no data is named that is learned whole"),
        (["a:0.5", "b:0.2"], "no data is named that is learned whole"),
        (["a", "b:0.7", "c:0.3"], "the shares add up to 1"),
        (["a", "b:1.5"], "1.5 is no share"),
        (["a", "b:0"], "0 is no share"),
        (["a", "b:-0.1"], "-0.1 is no share"),
        (["a", "b:nan"], "nan is no share"),
    ],
)
def test_shares_that_cannot_be_are_refused(data: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sources_of(data)


# -- settings --------------------------------------------------------------------------------------


def test_settings_take_one_place_or_several(tmp_path: Path) -> None:
    several = ["new.jsonl", "旧的/:0.1"]
    for given, wanted in (('"new.jsonl"', ["new.jsonl"]), (json.dumps(several), several)):
        file = tmp_path / "tune.toml"
        file.write_text(f'model = "m"\nout = "o"\ndata = {given}\n', "utf-8")
        found = resolve(FinetuneSettings, config_file=file, environ={}).settings
        assert found.data == wanted
        file.write_text(to_toml(found), "utf-8")
        assert resolve(FinetuneSettings, config_file=file, environ={}).settings == found
        environ = {"CHATBENCH_DATA": given, "CHATBENCH_MODEL": "m", "CHATBENCH_OUT": "o"}
        assert resolve(FinetuneSettings, environ=environ).settings.data == wanted
    for bare in ("new.jsonl", "2024", "a b.jsonl", "true"):
        environ = {"CHATBENCH_DATA": bare, "CHATBENCH_MODEL": "m", "CHATBENCH_OUT": "o"}
        assert resolve(FinetuneSettings, environ=environ).settings.data == [bare]
        asked = ["model=m", "out=o", f"data={bare}"]
        assert resolve(FinetuneSettings, overrides=asked, environ={}).settings.data == [bare]
    assert FinetuneSettings(model="m", data="d", out="o").data == ["d"]  # type: ignore[arg-type]


def test_the_command_line_repeats_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["finetune", "-m", "m", "-o", "o", "-d", "新.jsonl", "-d", "old/:0.1", "--train-on",
             "last", "--probe", "old/", "--print-config"]  # fmt: skip
    assert cli.run(words) == 0
    shown = capsys.readouterr().out
    assert "新.jsonl" in shown
    assert "old/:0.1" in shown
    assert 'train_on = "last"  # flag' in shown
    assert 'probe = "old/"  # flag' in shown


# -- what is opened --------------------------------------------------------------------------------


def test_files_and_folders_mix_and_a_resume_takes_them_over(
    base_run: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [
        str(write_jsonl(tmp_path / "一.jsonl", sample_chats(20))),
        str(write_jsonl(tmp_path / "two.jsonl", sample_chats(45)[20:])),
        f"{corpus_folder}:0.3",
    ]
    run = finetune(tuned(base_run, data, tmp_path / "run"))
    assert run is not None
    made = [open_corpus(run / name) for name in ("corpus", "corpus-2")]
    noted = json.loads((run / "model" / "config.json").read_text())["chatbench"]["corpus"]
    whole = {corpus.fingerprint for corpus in made}
    assert noted not in whole
    assert "texts and pieces hold no reply" not in capsys.readouterr().err  # replayed texts count
    again = tuned(base_run, data, tmp_path / "run", steps=4)
    again.resume = True
    assert finetune(again) == run
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 4
    other = tuned(base_run, data[:2], tmp_path / "run", steps=6)
    other.resume = True
    with pytest.raises(IntegrityError, match="data was"):
        finetune(other)


def test_too_little_to_replay_is_told(
    base_run: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_jsonl(tmp_path / "few.jsonl", sample_chats(3))
    finetune(tuned(base_run, [str(corpus_folder), f"{few}:0.9"], tmp_path / "run"))
    assert "has too few tokens for a share of 0.9" in " ".join(capsys.readouterr().err.split())


def test_what_a_share_leaves_out_is_not_what_is_validated(
    base_run: Path, corpus_folder: Path, tmp_path: Path, rng: random.Random
) -> None:
    from chatbench.model.folder import open_model
    from chatbench.train.dialogues import open_dialogues

    chats = write_jsonl(tmp_path / "chats.jsonl", sample_chats(30))
    settings = tuned(base_run, [str(chats), f"{corpus_folder}:0.2"], tmp_path / "run")
    settings.seed = rng.randrange(1000)
    _, tokenizer, base = open_model(base_run, "cpu")  # type: ignore[arg-type]
    mixture = open_dialogues(settings, tokenizer, base, tmp_path)
    assert isinstance(mixture, Mixture)
    alone = open_corpus(tmp_path / "corpus").split("val")
    held = mixture.split("val")
    assert [held.ids(n).tolist() for n in range(len(held))] == [
        alone.ids(n).tolist() for n in range(len(alone))
    ]


def test_mistakes_in_data_are_one_line(
    base_run: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    done = cli("finetune", "-m", base_run, "-d", "a:0.5", "-o", tmp_path / "run")
    assert done.returncode == ExitCode.USAGE, done.stderr
    assert "learned whole" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


# -- more after stopping early ---------------------------------------------------------------------


def test_a_run_that_stopped_early_goes_on_when_more_is_asked_for(
    base_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from chatbench.train import loop

    data = str(write_jsonl(tmp_path / "chats.jsonl", sample_chats(60)))
    real = loop.validation

    def worse(model: Any, objective: Any, world: Any, *rest: Any) -> dict[str, float]:
        worse.calls += 1  # type: ignore[attr-defined]
        return real(model, objective, world, *rest) | {"val_loss": float(worse.calls)}  # type: ignore[attr-defined]

    worse.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(loop, "validation", worse)
    length = {"steps": 20, "eval_every": 1, "patience": 2}
    run = finetune(tuned(base_run, [data], tmp_path / "run", **length))
    assert run is not None
    assert "stopped early" in capsys.readouterr().err
    assert checkpoint.load_newest(run).state.step == 3  # type: ignore[union-attr]
    more = tuned(base_run, [data], tmp_path / "run", **length | {"steps": 30})
    more.resume = True
    finetune(more)
    # As many validations more, counted anew.
    assert checkpoint.load_newest(run).state.step == 5  # type: ignore[union-attr]
    assert finetune(more) == run
    assert checkpoint.load_newest(run).state.step == 5  # type: ignore[union-attr]


def test_an_end_that_was_not_written_yet_is_still_the_end(tmp_path: Path) -> None:
    """Killed between its last checkpoint and its model, a run that stopped early stops again."""
    state = checkpoint.TrainState(step=7, stale=3)
    Run(tmp_path, finished=False)._forgive(state)
    assert state.stale == 3
