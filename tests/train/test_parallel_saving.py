"""Ranks that hold parts of the parameters write them together, or leave what was there before."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest
from safetensors.torch import load_file
from train.parallel_runs import (
    Ranks,
    assert_same_course,
    codes,
    heard,
    lines_of,
    words,
)

from chatbench.errors import UsageError
from chatbench.model.finding import find_model
from chatbench.storage import read_manifest, verify
from chatbench.train.checkpoint import KIND, checkpoint_of, checkpoints_of, load_newest
from chatbench.train.parts import Parts

CLOCKS = ("state.json", "manifest.json", "timings.jsonl", "environment.json", "plan.json",
          "report.html")  # fmt: skip
QUICK = [(1, "midst")]


def spread(corpus: Path, run: Path, *more: str) -> list[str]:
    return words(corpus, run, "--parallel", "fsdp", *more)


@pytest.fixture(scope="module")
def undisturbed(
    ranks: Ranks, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("spread") / "run"
    replies = ranks(2, spread(corpus_folder, run))
    assert codes(replies) == [0, 0], heard(replies)
    return run


def contents(run: Path) -> dict[str, bytes]:
    """But for what tells the time, or the folder's name."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name not in (*CLOCKS, ".lock", "config.toml")
    }


def test_what_is_kept_and_finished_is_what_one_process_keeps(
    undisturbed: Path, alone: Path
) -> None:
    """The finished model is the step by validation that its checkpoint holds, to the bit."""
    assert_same_course(undisturbed, alone)
    steps, theirs = ([p.name for p in checkpoints_of(run)] for run in (undisturbed, alone))
    assert steps == theirs
    ours, other = (read_manifest(run / "model") for run in (undisturbed, alone))
    assert ours is not None
    assert other is not None
    assert ours.info == other.info
    assert sorted(ours.files) == sorted(other.files)
    held = Parts(checkpoint_of(undisturbed, ours.info["step"]) / "sharded").chosen(memory=False)
    finished = load_file(undisturbed / "model" / "model.safetensors")
    assert held.keys() == finished.keys()
    assert all(held[name].equal(finished[name]) for name in held)


def test_a_damaged_part_is_passed_over(
    ranks: Ranks, corpus_folder: Path, alone: Path, tmp_path: Path, rng: random.Random
) -> None:
    """By one process that goes on where two ranks stopped."""
    run = tmp_path / "run"
    replies = ranks(2, spread(corpus_folder, run, "--steps", "17"))
    assert codes(replies) == [0, 0], heard(replies)
    restored = load_newest(run)
    assert restored is not None
    assert restored.state.step == 17
    part = rng.choice(sorted((restored.path / "sharded").iterdir()))
    data = bytearray(part.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    part.write_bytes(data)
    (done,) = ranks(1, words(corpus_folder, run, "--resume", "--steps", "24"))
    assert done["code"] == 0, done["err"]
    assert "does not match its checksum" in done["err"]
    assert "trying the checkpoint before it" in done["err"]
    assert "continuing from" in done["err"]


@pytest.mark.parametrize(
    ("lost", "moment"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in product((0, 1), ("before", "midst", "after"))
    ],
)
def test_a_rank_that_is_killed_while_it_saves_leaves_the_checkpoint_before(
    ranks: Ranks, corpus_folder: Path, undisturbed: Path, tmp_path: Path, rng: random.Random,
    lost: int, moment: str,
) -> None:  # fmt: skip
    """And the run goes on to the very bytes of one that nobody disturbed. With the fifth it ends:
    no step shows who is missing, only silence."""
    run = tmp_path / "run"
    replies = ranks(2, call="dies_while_saving", data={
        "lost": lost, "moment": moment, "save": 5 if moment == "before" else rng.randint(2, 4),
        "arguments": spread(corpus_folder, run),
    })  # fmt: skip
    assert codes(replies) == ([-9, 8] if lost == 0 else [8, -9]), heard(replies)
    there = checkpoints_of(run)
    assert there
    for path in there:
        verify(path, KIND)
    with pytest.raises(UsageError, match=r"parts of a model.*--resume"):
        find_model(run)
    replies = ranks(2, spread(corpus_folder, run, "--resume"))
    assert codes(replies) == [0, 0], heard(replies)
    assert contents(run) == contents(undisturbed)


@pytest.mark.parametrize("full", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_rank_without_room_ends_the_run_and_says_where(
    ranks: Ranks, corpus_folder: Path, tmp_path: Path, full: int
) -> None:
    run = tmp_path / "run"
    data = {"full": full, "largest": 20_000, "arguments": spread(corpus_folder, run)}
    replies = ranks(2, call="has_no_room", data=data)
    assert codes(replies) == [5, 5], heard(replies)
    last = replies[0]["err"].splitlines()[-1]
    assert last.startswith("error: rank 1 at step " if full else "error: cannot write ")
    assert f"shard-0000{full + 1}-model" in last
    assert "File too large" in last
    assert not checkpoints_of(run)


def test_ranks_that_do_not_share_the_folder_are_refused_before_they_train(
    ranks: Ranks, corpus_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run 运行"
    data = {"arguments": spread(corpus_folder, run)}
    replies = ranks(2, call="sees_another_folder", data=data)
    assert codes(replies) == [5, 5], heard(replies)
    last = replies[0]["err"].splitlines()[-1]
    assert f"rank 1 does not see {run}" in last
    assert "--parallel ddp" in last
    assert not (run / "metrics.jsonl").exists() or lines_of(run) == []
