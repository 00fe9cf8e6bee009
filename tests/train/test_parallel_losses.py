"""Ranks that freeze, hosts that vanish, and launchers that start ranks again: slow to find out."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from train.parallel_runs import (
    Ranks,
    assert_same_course,
    codes,
    heard,
    lines_of,
    words,
)

from chatbench.train.checkpoint import checkpoints_of

pytestmark = pytest.mark.slow


def endless(corpus: Path, run: Path) -> list[str]:
    return words(corpus, run, "--steps", "100000", "--save-every", "50")


def assert_lost(replies: list[dict[str, Any]], survivor: int, lost: int) -> None:
    assert replies[survivor]["code"] == 8, heard(replies)
    assert replies[survivor]["seconds"] < 30
    last = replies[survivor]["err"].splitlines()[-1]
    assert last.startswith("error: rank")
    assert f"rank {lost}" in last
    assert " at step " in last


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_rank_ends_the_run(
    ranks: Ranks, corpus_folder: Path, tmp_path: Path, frozen: int
) -> None:
    run = tmp_path / "run"
    stop = {"rank": frozen, "signal": "STOP", "watch": str(run / "metrics.jsonl"), "lines": 15}
    replies = ranks(2, endless(corpus_folder, run), disturb=[stop])
    assert_lost(replies, 1 - frozen, frozen)
    assert checkpoints_of(run) or len(lines_of(run)) < 50


# -- two hosts -------------------------------------------------------------------------------------


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces, 10.77.0.1 and 10.77.0.2, and a wire between them."""
    names = [f"chatbench-{os.getpid()}-{number}" for number in (1, 2)]
    commands = [
        *(["ip", "netns", "add", name] for name in names),
        ["ip", "link", "add", "wire", "netns", names[0], "type", "veth",
         "peer", "name", "wire", "netns", names[1]],
        *(["ip", "-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "wire"]
          for number, name in enumerate(names, 1)),
        *(["ip", "-n", name, "link", "set", device, "up"]
          for name in names for device in ("lo", "wire")),
    ]  # fmt: skip
    try:
        for command in commands:
            try:
                subprocess.run(command, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no network namespaces here: {error}")
        yield names
    finally:
        for name in names:
            if shutil.which("ip"):
                subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_two_hosts_train_as_one_process(
    ranks: Ranks, hosts: list[str], corpus_folder: Path, alone: Path, tmp_path: Path
) -> None:
    """Without a folder that both see: each has its own corpus, and only rank 0 writes."""
    twin = shutil.copytree(corpus_folder, tmp_path / "there" / "corpus")
    run = tmp_path / "run"
    replies = ranks(
        2, [words(corpus_folder, run), words(twin, tmp_path / "there" / "run")],
        namespaces=hosts, master="10.77.0.1", interface="wire",
    )  # fmt: skip
    assert codes(replies) == [0, 0], heard(replies)
    assert_same_course(run, alone)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["corpus"]


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_a_host_that_vanishes_ends_the_run_on_both_sides(
    ranks: Ranks, hosts: list[str], corpus_folder: Path, alone: Path, tmp_path: Path, how: str,
    rng: random.Random,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    when = {"watch": str(run / "metrics.jsonl"), "lines": rng.randint(60, 90)}
    cut = when | {"shell": f"ip -n {hosts[1]} link set wire down"}
    # A host that loses power says no goodbye: the wire goes first.
    kill = when | {"rank": 1, "signal": "KILL"}
    replies = ranks(
        2, endless(corpus_folder, run), disturb=[cut, kill] if how == "killed" else [cut],
        namespaces=hosts, master="10.77.0.1", interface="wire",
    )  # fmt: skip
    assert_lost(replies, 0, 1)
    if how == "cut off":
        assert_lost(replies, 1, 0)
    assert checkpoints_of(run)


# -- torchrun --------------------------------------------------------------------------------------


def rank_of(number: int, launcher: int) -> int | None:
    """The process of a rank below a launcher."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == launcher and f"RANK={number}".encode() in environment:
            return int(entry.name)
    return None


def test_torchrun_starts_killed_ranks_again_and_they_go_on(
    corpus_folder: Path, alone: Path, tmp_path: Path
) -> None:
    for trial in range(6):
        run = tmp_path / f"run{trial}"
        if killed_under_torchrun(corpus_folder, run):
            assert_same_course(run, alone)
            return
    raise AssertionError("every run was over before a rank could be killed")


def killed_under_torchrun(corpus: Path, run: Path) -> bool:
    """Whether a rank was killed, after which the run went on to its end."""
    metrics = run / "metrics.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "--max-restarts", "1", "-m", "chatbench", *words(corpus, run)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    victim, killed = None, False
    while process.poll() is None and not killed:
        if victim is None:
            victim = rank_of(1, process.pid)
        elif metrics.exists() and metrics.read_bytes().count(b"\n") >= 6:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
                killed = True
        time.sleep(0.002)
    out, err = process.communicate(timeout=200)
    assert (process.returncode, out) == (0, f"{run}\n"), err
    # A rank may be killed after its last word; then nobody has to begin again.
    return killed and "continuing from" in err
