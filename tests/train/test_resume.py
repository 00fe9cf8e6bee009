"""However a run is broken off, going on with it gives the bytes of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatbench import cli
from chatbench.corpus.build import preprocess
from chatbench.corpus.shards import open_corpus
from chatbench.settings import PreprocessSettings
from chatbench.train.checkpoint import checkpoints_of
from conftest import sample_chats, write_jsonl

Forks = Callable[..., dict[str, Any]]
KILLS = 20


def words(corpus: Path, out: Path, *more: str) -> list[str]:
    """A run of 60 steps whose saves, validations and samples fall on different steps."""
    changes = (
        "model.n_layers=1", "model.hidden_size=16", "model.n_heads=1", "model.ffn_size=32",
        "train.seq_len=32", "train.batch_tokens=64", "train.eval_tokens=200",
        "train.log_every=3", "train.eval_every=25", "train.sample_every=29", "train.save_every=7",
        "train.steps=60", "train.tensorboard=false", "dtype=float32", "device=cpu",
        # So fast that an early validation is the best.
        "optim.learning_rate=0.048125",
    )  # fmt: skip
    sets = [word for change in changes for word in ("--set", change)]
    return ["pretrain", "-d", str(corpus), "-o", str(out), *sets, *more]


def contents(run: Path) -> dict[str, bytes]:
    """Everything in a run folder that must not depend on what happened to it."""
    clocked = {"timings.jsonl", "environment.json", "state.json", "manifest.json", "config.toml",
               "plan.json", "report.html"}  # fmt: skip
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in clocked and ".tmp-" not in path.name
    } | {".lock": b""}


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same(run: Path, undisturbed: Path) -> None:
    ours, theirs = contents(run), contents(undisturbed)
    assert ours.keys() == theirs.keys()
    for wanted in ("model/model.safetensors", "metrics.jsonl", "samples.jsonl"):
        assert wanted in ours
    assert [name for name in ours if ours[name] != theirs[name]] == []


@pytest.fixture(scope="module")
def whole(
    forks: Forks, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, float]:
    """An undisturbed run, and the seconds it took."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = forks(words(corpus_folder, run))
    assert (done["code"], done["out"]) == (0, f"{run}\n"), done["err"]
    # It met every trouble that there is.
    skipped = [row["step"] for row in rows_of(run) if "skipped" in row]
    assert skipped == [12, 31, 41]
    assert "1 row is computed at once" in done["err"]
    assert [path.name[-2:] for path in checkpoints_of(run)] == ["25", "56", "60"]
    best = checkpoints_of(run)[0] / "model" / "model.safetensors"
    assert (run / "model" / "model.safetensors").read_bytes() == best.read_bytes()
    return run, done["seconds"]


def go_on(forks: Forks, corpus: Path, run: Path, **job: Any) -> dict[str, Any]:
    return forks(words(corpus, run, "--resume"), **job)


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("TERM", 75), ("INT", 130)])
def test_a_stopped_run_says_how_to_go_on_and_then_ends_the_same(
    forks: Forks, corpus_folder: Path, whole: tuple[Path, float], tmp_path: Path, name: str,
    code: int, rng: random.Random,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    stopped = forks(
        words(corpus_folder, run),
        signal=name, watch=str(run / "metrics.jsonl"), lines=rng.randint(1, 10),
    )  # fmt: skip
    assert stopped["code"] == code, stopped["err"]
    assert stopped["out"] == ""
    last = stopped["err"].splitlines()[-1]
    assert last.startswith("error: stopped at step ")
    assert f"saved in {run}" in last
    assert "--resume" in last
    step = int(last.split("step ")[1].split(",")[0])
    assert checkpoints_of(run)[-1].name == f"step-{step:08d}"
    ended = go_on(forks, corpus_folder, run)
    assert (ended["code"], ended["out"]) == (0, f"{run}\n"), ended["err"]
    assert_same(run, whole[0])


def test_the_run_folder_alone_is_enough_to_go_on(
    forks: Forks, corpus_folder: Path, whole: tuple[Path, float], tmp_path: Path
) -> None:
    """--resume reads the run's own config.toml, also after the folder was moved."""
    run, moved = tmp_path / "run", tmp_path / "elsewhere" / "moved"
    watch = {"watch": str(run / "metrics.jsonl"), "lines": 3}
    assert forks(words(corpus_folder, run), signal="TERM", **watch)["code"] == 75
    moved.parent.mkdir()
    run.rename(moved)
    ended = forks(["pretrain", "-o", str(moved), "--resume"])
    assert ended["code"] == 0, ended["err"]
    assert_same(moved, whole[0])


def test_resume_on_a_finished_run_prints_its_folder(
    whole: tuple[Path, float], corpus_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(whole[0])
    assert cli.run(words(corpus_folder, whole[0], "--resume")) == 0
    assert capsys.readouterr().out == f"{whole[0]}\n"
    assert contents(whole[0]) == before


def test_a_stopped_finetune_ends_the_same(
    forks: Forks, base_run: Path, tmp_path: Path, rng: random.Random
) -> None:
    data = write_jsonl(tmp_path / "chats.jsonl", sample_chats(30))

    def tune(out: Path, **job: Any) -> dict[str, Any]:
        sets = ("train.log_every=1", "train.batch_tokens=96", "train.tensorboard=false",
                "dtype=float32", "train.save_every=3")  # fmt: skip
        return forks(
            ["finetune", "-m", str(base_run), "-d", str(data), "-o", str(out), "--steps", "12",
             *(word for each in sets for word in ("--set", each)), *job.pop("more", ())],
            **job,
        )  # fmt: skip

    assert tune(tmp_path / "whole")["code"] == 0
    run = tmp_path / "run"
    watch = {"watch": str(run / "metrics.jsonl"), "lines": rng.randint(1, 6)}
    assert tune(run, signal="TERM", **watch)["code"] == 75
    ended = tune(run, more=["--resume"])
    assert ended["code"] == 0, ended["err"]
    # The corpus made on the way notes where it lies.
    for name in ("model/model.safetensors", "metrics.jsonl", "samples.jsonl"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# -- kill -9 ---------------------------------------------------------------------------------------


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """Where many small syncs cost little: what a killed process wrote is there either way."""
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    ) as folder:
        yield Path(folder)


def test_a_run_killed_at_any_moment_ends_the_same(
    forks: Forks, corpus_folder: Path, whole: tuple[Path, float], in_memory: Path,
    rng: random.Random,
) -> None:  # fmt: skip
    """Every seventh step is a save, so many of the moments fall into one."""
    undisturbed, seconds = whole
    killed = 0
    for trial in range(KILLS):
        run = in_memory / f"run{trial}"
        moment = {"lines": trial, "after": rng.uniform(0, 1.5 * seconds / KILLS)}
        broken = forks(
            words(corpus_folder, run), signal="KILL", watch=str(run / "metrics.jsonl"), **moment
        )
        killed += broken["code"] == -9
        ended = go_on(forks, corpus_folder, run)
        assert ended["code"] == 0, (moment, ended["err"])
        assert_same(run, undisturbed)
        shutil.rmtree(run)
    assert killed > KILLS // 2


def test_a_run_killed_twice_in_a_row_ends_the_same(
    forks: Forks, corpus_folder: Path, whole: tuple[Path, float], in_memory: Path,
    rng: random.Random,
) -> None:  # fmt: skip
    undisturbed, seconds = whole
    for trial in range(3):
        run = in_memory / f"run{trial}"
        watch = str(run / "metrics.jsonl")
        for lines in (rng.randrange(12), rng.randrange(12, 20)):
            after = rng.uniform(0, seconds / KILLS)
            go_on(forks, corpus_folder, run, signal="KILL", watch=watch, lines=lines, after=after)
        ended = go_on(forks, corpus_folder, run)
        assert ended["code"] == 0, ended["err"]
        assert_same(run, undisturbed)


def test_a_run_killed_before_its_last_word_does_not_repeat_itself(
    forks: Forks, corpus_folder: Path, whole: tuple[Path, float], tmp_path: Path
) -> None:
    """The last checkpoint is there, the finished model is not."""
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    shutil.rmtree(run / "model")
    ended = go_on(forks, corpus_folder, run)
    assert ended["code"] == 0, ended["err"]
    assert_same(run, whole[0])


# -- damage and change -----------------------------------------------------------------------------


@pytest.fixture
def stopped(forks: Forks, corpus_folder: Path, tmp_path: Path) -> Path:
    """A run stopped after its 21st step or later, with at least two checkpoints."""
    run = tmp_path / "stopped"
    watch = {"watch": str(run / "metrics.jsonl"), "lines": 5}
    assert forks(words(corpus_folder, run), signal="TERM", **watch)["code"] == 75
    assert len(checkpoints_of(run)) == 2
    return run


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["model/model.safetensors", "optimizer.safetensors", "state.json",
                                  "manifest.json"])  # fmt: skip
def test_a_damaged_checkpoint_is_passed_over_with_a_notice(
    forks: Forks, corpus_folder: Path, whole: tuple[Path, float], stopped: Path, name: str,
    rng: random.Random,
) -> None:  # fmt: skip
    newest = checkpoints_of(stopped)[-1]
    if name == "manifest.json":
        (newest / name).write_bytes((newest / name).read_bytes()[:-20])
    else:
        flip(newest / name, rng)
    ended = go_on(forks, corpus_folder, stopped)
    assert ended["code"] == 0, ended["err"]
    notices = [line for line in ended["err"].splitlines() if line.startswith("note: ")]
    assert any(str(newest) in line and "the checkpoint before it" in line for line in notices)
    assert_same(stopped, whole[0])


def test_when_every_checkpoint_is_damaged_nothing_is_begun_anew(
    corpus_folder: Path, stopped: Path, rng: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in checkpoints_of(stopped):
        flip(path / "optimizer.safetensors", rng)
    before = contents(stopped)
    assert cli.run(words(corpus_folder, stopped, "--resume")) == 4
    assert "does not match its checksum" in capsys.readouterr().err.splitlines()[-1]
    assert contents(stopped) == before


def test_a_changed_setting_is_refused_by_name_with_both_values(
    corpus_folder: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(stopped)
    changed = words(corpus_folder, stopped, "--resume", "--seed", "7", "--weight-decay", "0.25")
    assert cli.run(changed) == 4
    last = capsys.readouterr().err.splitlines()[-1]
    assert "seed was 0, now 7" in last
    assert "optim.weight_decay was 0.1, now 0.25" in last
    assert contents(stopped) == before


def test_settings_that_change_no_number_may_change(
    forks: Forks, corpus_folder: Path, whole: tuple[Path, float], stopped: Path
) -> None:
    ended = forks(words(corpus_folder, stopped, "--resume", "--keep", "1", "--save-every", "100"))
    assert ended["code"] == 0, ended["err"]
    # The best, and one more.
    assert [path.name[-2:] for path in checkpoints_of(stopped)] == ["25", "60"]
    for name in ("model/model.safetensors", "metrics.jsonl"):
        assert (stopped / name).read_bytes() == (whole[0] / name).read_bytes()


def test_a_changed_corpus_is_refused(
    forks: Forks, sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, run = tmp_path / "corpus", tmp_path / "run"

    def made(seen: Path) -> None:
        preprocess(
            PreprocessSettings(inputs=[str(seen)], out=str(corpus), vocab_size=400, overwrite=True)
        )

    made(sources)
    watch = {"watch": str(run / "metrics.jsonl"), "lines": 2}
    assert forks(words(corpus, run), signal="TERM", **watch)["code"] == 75
    made(sources / "texts.jsonl")
    assert cli.run(words(corpus, run, "--resume")) == 4
    last = capsys.readouterr().err.splitlines()[-1]
    assert str(corpus) in last
    assert "is not the data" in last
    # Made from other texts, its vocabulary is another one as well.
    tokenizers = [open_corpus(corpus).tokenizer.digest, state_of(run)["tokenizer"]]
    assert all(digest[:12] in last for digest in tokenizers)


def test_the_digests_of_a_changed_corpus_are_named(
    forks: Forks, sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tokenizer stays, the texts do not."""
    corpus, run = tmp_path / "corpus", tmp_path / "run"
    preprocess(PreprocessSettings(inputs=[str(sources)], out=str(corpus), vocab_size=400))
    watch = {"watch": str(run / "metrics.jsonl"), "lines": 2}
    assert forks(words(corpus, run), signal="TERM", **watch)["code"] == 75
    preprocess(
        PreprocessSettings(
            inputs=[str(sources / "texts.jsonl")], out=str(corpus), overwrite=True,
            tokenizer=str(corpus / "tokenizer"),
        )
    )  # fmt: skip
    assert cli.run(words(corpus, run, "--resume")) == 4
    last = capsys.readouterr().err.splitlines()[-1]
    digests = [open_corpus(corpus).fingerprint, state_of(run)["fingerprint"]]
    assert all(digest[:12] in last for digest in digests)


def state_of(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoints_of(run)[-1] / "state.json").read_text())
    return state


def test_a_full_disk_leaves_the_old_state_and_is_no_end(
    forks: Forks, corpus_folder: Path, whole: tuple[Path, float], stopped: Path
) -> None:
    """No file may become as large as the weights are."""
    before = {path.name: contents(path) for path in checkpoints_of(stopped)}
    size = (checkpoints_of(stopped)[0] / "model" / "model.safetensors").stat().st_size
    full = go_on(forks, corpus_folder, stopped, largest=size - 1)
    assert full["code"] == 5, full["err"]
    last = full["err"].splitlines()[-1]
    assert last.startswith("error: cannot write ")
    assert "make room" in last
    assert "Traceback" not in full["err"]
    assert {path.name: contents(path) for path in checkpoints_of(stopped)} == before
    ended = go_on(forks, corpus_folder, stopped)
    assert ended["code"] == 0, ended["err"]
    assert_same(stopped, whole[0])


def test_a_run_in_use_is_refused_before_torch_is_loaded(corpus_folder: Path, stopped: Path) -> None:
    code = """
import sys
from pathlib import Path
from chatbench.cli import run
from chatbench.storage import FolderLock
with FolderLock(Path(sys.argv[1])):
    assert run(sys.argv[2:]) == 6
assert "torch" not in sys.modules
"""
    arguments = [str(stopped), *words(corpus_folder, stopped, "--resume")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{stopped} is in use by process" in done.stderr


# -- more of a finished run ------------------------------------------------------------------------


def test_a_finished_run_goes_on_when_more_is_asked_for(
    forks: Forks, corpus_folder: Path, whole: tuple[Path, float], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    longer = ["pretrain", "-o", str(run), "--resume", "--steps", "75"]
    watch = {"watch": str(run / "metrics.jsonl"), "lines": len(rows_of(run)) + 2}
    broken = forks(longer, signal="KILL", **watch)
    assert broken["code"] == -9
    assert "steps was 60, now 75" in broken["err"]
    # What was finished is there until something better is.
    assert (run / "model" / "model.safetensors").is_file()
    ended = forks(["pretrain", "-o", str(run), "--resume"])
    assert ended["code"] == 0, ended["err"]
    steps = [row["step"] for row in rows_of(run) if "learning_rate" in row]
    assert steps == list(range(3, 76, 3))
    before = rows_of(whole[0])
    assert rows_of(run)[: len(before)] == before
    again = forks(["pretrain", "-o", str(run), "--resume"])
    assert (again["code"], again["out"]) == (0, f"{run}\n")
    assert "is finished already" in again["err"]


def test_less_than_what_was_done_changes_nothing(
    corpus_folder: Path, whole: tuple[Path, float], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole[0], run)
    assert cli.run(words(corpus_folder, run, "--resume", "--steps", "50")) == 0
    assert contents(run) == contents(whole[0])
