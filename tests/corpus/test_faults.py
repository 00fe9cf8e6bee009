"""A run that is killed at any moment leaves nothing that the next one would notice."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chatbench.corpus.build import preprocess
from chatbench.corpus.shards import KIND
from chatbench.errors import ExitCode
from chatbench.settings import PreprocessSettings
from chatbench.storage import LOCK, remove_folder, verify
from conftest import sample_chats, sample_texts, write_jsonl

KILLS = 20
VOCABULARY = 450


def files_of(folder: Path) -> dict[str, bytes]:
    """All but the lock, which outlives a kill in the moment after the last rename."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != LOCK
    }


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_jsonl(folder / "texts.jsonl", [{"text": text} for text in sample_texts(500)])
    write_jsonl(folder / "chats.jsonl", [*sample_chats(500), {"unknown": 1}])
    return folder


def started(rows: Path, out: Path, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "chatbench", "preprocess", rows, "-o", out,
         "--vocab-size", str(VOCABULARY), "--no-profile"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def test_kill_9_at_any_moment_changes_no_byte_of_what_the_next_run_makes(
    tmp_path: Path, rows: Path, rng: random.Random
) -> None:
    begin = time.monotonic()
    with started(rows, tmp_path / "undisturbed") as child:
        _, complaint = child.communicate()
        assert child.returncode == 0, complaint
    duration = time.monotonic() - begin
    whole = files_of(tmp_path / "undisturbed")
    home = tmp_path / "home"
    home.mkdir()
    for number in range(KILLS):
        out = home / f"corpus{number % 3}"
        with started(rows, out) as child:
            time.sleep(rng.uniform(0.2, max(duration, 0.3)))
            child.kill()
            child.communicate()
        assert child.returncode in (-signal.SIGKILL, 0)
        if out.exists():
            verify(out, KIND)
        else:
            settings = PreprocessSettings(
                inputs=[str(rows)], out=str(out), vocab_size=VOCABULARY, profile=False
            )
            preprocess(settings)
        assert files_of(out) == whole
        assert os.listdir(home) == [out.name]
        remove_folder(out)


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.STOPPED)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_an_interruption_leaves_finished_parts_at_most_and_the_next_run_goes_on(
    tmp_path: Path, rows: Path, sent: signal.Signals, code: ExitCode
) -> None:
    with started(rows, tmp_path / "corpus") as child:
        while not (tmp_path / ".corpus.parts" / "key").exists():
            assert child.poll() is None, "it ended before it was interrupted"
            time.sleep(0.005)
        child.send_signal(sent)
        out, complaint = child.communicate()
    assert child.returncode == code, complaint
    assert out == b""
    assert os.listdir(tmp_path) in ([], [".corpus.parts"])
    with started(rows, tmp_path / "corpus") as child:
        _, complaint = child.communicate()
    assert child.returncode == 0, complaint
    assert os.listdir(tmp_path) == ["corpus"]


def test_two_at_once_for_one_folder_exclude_each_other(tmp_path: Path, rows: Path) -> None:
    with started(rows, tmp_path / "corpus") as first, started(rows, tmp_path / "corpus") as second:
        ends = [child.communicate() for child in (first, second)]
    codes = sorted((first.returncode, second.returncode))
    assert codes[0] == 0, ends
    assert codes[1] in (ExitCode.IN_USE, ExitCode.USAGE), ends
    verify(tmp_path / "corpus", KIND)
    assert os.listdir(tmp_path) == ["corpus"]


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(tmp_path: Path, rows: Path) -> None:
    for size in (0, 2_000, 60_000):

        def limit(size: int = size) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        with started(rows, tmp_path / "corpus", preexec_fn=limit) as child:
            out, complaint = child.communicate()
        assert child.returncode == ExitCode.ENVIRONMENT == 5, complaint
        assert out == b""
        last = complaint.decode().splitlines()[-1]
        assert last.startswith(f"error: cannot write {tmp_path / 'corpus'}")
        assert "File too large" in last
        assert b"Traceback" not in complaint
        assert os.listdir(tmp_path) == []
