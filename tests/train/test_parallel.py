"""Several ranks train as one process does, speak with one voice, and end together."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from train.parallel_runs import (
    Ranks,
    assert_same_course,
    codes,
    disturbed,
    heard,
    lines_of,
    words,
)

from chatbench.storage import FolderLock
from conftest import sample_chats, write_jsonl

PARTS = [f"sharded/shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)]
QUICK = [("ddp", "muon", 2), ("fsdp", "muon", 3), ("fsdp", "adamw", 2), ("ddp", "adamw", 4)]


# -- the arithmetic --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parallel", "optimizer", "size"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in product(("ddp", "fsdp"), ("muon", "adamw"), (2, 3, 4))
    ],
)
def test_ranks_learn_what_one_process_learns(
    ranks: Ranks, rng: random.Random, tmp_path: Path, parallel: str, optimizer: str, size: int
) -> None:
    """Also from each other's checkpoints. In float64, where a rounding error of 1e-16 would have
    to be divided by a gradient 1e-9 as large as usual to reach the bound."""
    replies = ranks(size, call="same_as_one", data={
        "seed": rng.randrange(1 << 20), "tie": rng.random() < 0.5, "optimizer": optimizer,
        "steps": [0, 4], "rows": rng.randint(size + 1, 9), "clip": rng.choice([0.0, 0.5]),
        "parallel": parallel, "dtype": "float64", "bound": 1e-7, "folder": str(tmp_path),
    })  # fmt: skip
    assert codes(replies) == [0] * size, heard(replies)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_gradients_in_bfloat16_are_summed_in_float32(
    ranks: Ranks, rng: random.Random, tmp_path: Path, parallel: str
) -> None:
    """Row by row they are the same bits on any rank; sums in bfloat16 would be off by 1e-3."""
    replies = ranks(2, call="same_sums_as_one", data={
        "seed": rng.randrange(1 << 20), "tie": True, "optimizer": "muon", "steps": [0, 1],
        "rows": 8, "cut": 1, "clip": 0.0, "parallel": parallel, "dtype": "bfloat16", "bound": 1e-4,
        "folder": str(tmp_path),
    })  # fmt: skip
    assert codes(replies) == [0, 0], heard(replies)


# -- the program -----------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_give_the_run_of_one_and_rank_0_alone_speaks(
    ranks: Ranks, corpus_folder: Path, alone: Path, tmp_path: Path, parallel: str
) -> None:
    run = tmp_path / "run"
    replies = ranks(2, words(corpus_folder, run, "--parallel", parallel))
    assert codes(replies) == [0, 0], heard(replies)
    assert replies[0]["out"] == f"{run}\n"
    assert (replies[1]["out"], replies[1]["err"]) == ("", "")
    assert_same_course(run, alone)
    assert lines_of(run, "samples") == lines_of(alone, "samples")
    ours, theirs = (
        {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
        for place in (run, alone)
    )
    if parallel == "fsdp":
        steps = sorted(path.name for path in (alone / "checkpoints").iterdir())
        theirs = {name for name in theirs if not name.startswith("checkpoints")}
        theirs |= {
            f"checkpoints/{step}/{name}"
            for step, name in product(steps, ("manifest.json", "state.json", *PARTS))
        }
    assert ours == theirs


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("ddp", 2), ("auto", 1)),
        (("auto", 1), ("fsdp", 2)),
        pytest.param(("auto", 1), ("ddp", 2), marks=pytest.mark.slow),
        pytest.param(("ddp", 3), ("fsdp", 2), marks=pytest.mark.slow),
        pytest.param(("fsdp", 2), ("auto", 1), marks=pytest.mark.slow),
        pytest.param(("fsdp", 2), ("fsdp", 3), marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_with_another_number_of_ranks(
    ranks: Ranks, corpus_folder: Path, alone: Path, tmp_path: Path, rng: random.Random,
    before: tuple[str, int], after: tuple[str, int],
) -> None:  # fmt: skip
    """A signal that reaches one rank only stops them all, after the same step."""
    run = tmp_path / "run"
    stop = {"signal": "TERM", "watch": str(run / "metrics.jsonl"), "lines": rng.randint(1, 12)}
    parallel, size = before
    first = words(corpus_folder, run, "--parallel", parallel)
    replies = disturbed(ranks, size, run, first, disturb=[stop | {"rank": size - 1}])
    assert codes(replies) == [75] * size, heard(replies)
    last = replies[0]["err"].splitlines()[-1]
    assert last.startswith("error: stopped at step ")
    assert f"saved in {run}" in last
    assert all(reply["err"] == "" for reply in replies[1:])
    parallel, size = after
    replies = ranks(size, words(corpus_folder, run, "--resume", "--parallel", parallel))
    assert codes(replies) == [0] * size, heard(replies)
    assert_same_course(run, alone)


def test_two_ranks_finetune_as_one(ranks: Ranks, base_run: Path, tmp_path: Path) -> None:
    """Conversations packed into rows that are not all full, from a file that each rank prepares."""
    data = write_jsonl(tmp_path / "chats.jsonl", sample_chats(30))
    changes = ("train.log_every=1", "train.batch_tokens=144", "train.tensorboard=false",
               "dtype=float32", "optim.learning_rate=0.0005")  # fmt: skip
    sets = [word for each in changes for word in ("--set", each)]

    def tune(size: int) -> Path:
        out = tmp_path / f"{size}"
        arguments = ["finetune", "-m", str(base_run), "-d", str(data), "-o", str(out)]
        replies = ranks(size, [*arguments, "--steps", "8", *sets])
        assert codes(replies) == [0] * size, heard(replies)
        return out

    assert_same_course(tune(2), tune(1))


# -- refusals --------------------------------------------------------------------------------------


def test_other_settings_on_a_rank_are_refused_by_name(
    ranks: Ranks, corpus_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    replies = ranks(2, [words(corpus_folder, run), words(corpus_folder, run, "--seed", "7")])
    assert codes(replies) == [2, 2], heard(replies)
    assert replies[0]["err"].splitlines() == [
        "error: rank 1 was started with other settings: --seed is 7, on rank 0 0; "
        "give every rank the same command"
    ]
    assert replies[1]["err"] == ""
    assert not run.exists()


def test_another_corpus_on_a_rank_is_refused(
    ranks: Ranks, corpus_folder: Path, sources: Path, tmp_path: Path
) -> None:
    (made,) = ranks(1, ["preprocess", str(sources / "texts.jsonl"), "-o", str(tmp_path / "other"),
                        "--vocab-size", "400"])  # fmt: skip
    assert made["code"] == 0, made["err"]
    run = tmp_path / "run"
    replies = ranks(2, [words(corpus_folder, run), words(tmp_path / "other", run)])
    assert codes(replies) == [4, 4], heard(replies)
    assert "rank 1 does not fit to rank 0: the corpus is " in replies[0]["err"]
    assert not run.exists()


def test_another_program_on_a_rank_is_refused(ranks: Ranks) -> None:
    replies = ranks(2, call="meets_another_program")
    assert codes(replies) == [0, 0], heard(replies)


def test_a_rank_without_the_corpus_says_so_and_all_end(
    ranks: Ranks, corpus_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    replies = ranks(2, [words(corpus_folder, run), words(tmp_path / "no 语料", run)])
    assert codes(replies) == [replies[1]["code"]] * 2
    assert 0 < replies[0]["code"] < 8
    assert "no 语料" in replies[1]["err"]
    assert "error: rank 1 at step 0: " in replies[0]["err"]
    assert "no 语料" in replies[0]["err"]


def test_a_run_folder_in_use_is_left_alone_by_all_ranks(
    ranks: Ranks, corpus_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with FolderLock(run):
        replies = ranks(2, words(corpus_folder, run))
    assert codes(replies) == [6, 6], heard(replies)
    assert "is in use by process" in replies[0]["err"]
    assert replies[1]["err"] == ""


# -- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_when_a_rank_is_killed_the_others_end_and_the_run_can_go_on(
    ranks: Ranks, corpus_folder: Path, alone: Path, tmp_path: Path, rng: random.Random, lost: int
) -> None:
    run = tmp_path / "run"
    kill = {"rank": lost, "signal": "KILL", "watch": str(run / "metrics.jsonl"),
            "lines": rng.randint(6, 20)}  # fmt: skip
    replies = disturbed(ranks, 2, run, words(corpus_folder, run), disturb=[kill])
    assert replies[lost]["code"] == -9
    survivor = replies[1 - lost]
    assert survivor["code"] == 8, heard(replies)
    last = survivor["err"].splitlines()[-1]
    assert last.startswith("error: rank")
    assert f"rank {lost}" in last
    assert " at step " in last
    assert "--resume" in last
    (ended,) = ranks(1, words(corpus_folder, run, "--resume"))
    assert ended["code"] == 0, ended["err"]
    assert_same_course(run, alone)


def test_nothing_of_torch_distributed_is_loaded_for_one_process() -> None:
    code = (
        "import chatbench.train.recipes, sys; from chatbench.train.parallel import world\n"
        "with world(None, 'auto') as ranks: assert ranks.size == 1\n"
        "loaded = [n for n in sys.modules if n.startswith(('torch.distributed.fsdp',"
        " 'chatbench.train.parallel_'))]\n"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
