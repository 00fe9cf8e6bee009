"""Input that is too long, too many, too deep or no file at all ends in a counted reason."""

from __future__ import annotations

import gzip
import json
import os
import random
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatbench.errors import ExitCode
from conftest import write_jsonl

TOPICS = ("tea", "paper", "ink", "rain", "book", "茶", "纸", "墨", "雨", "书")
ROWS = [{"text": f"row {n} about tea 第{n}行 {'and more ' * (n % 7)}"} for n in range(60)]

# A small process in between: the memory of one that forks counts as that of its children.
MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
sys.stderr.write(f"\\n{peak}")
sys.exit(code)
"""


def run(out: Path, *arguments: object, **options: Any) -> tuple[int, str, int]:
    """Exit code, stderr, and the largest resident memory of any of its processes in bytes."""
    command = [sys.executable, "-m", "chatbench", "preprocess", *map(str, arguments),
               "-o", str(out), "--vocab-size", "300", "--no-profile"]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", MEASURE, *command], capture_output=True, **options)
    complaint, _, peak = done.stderr.decode(errors="replace").rpartition("\n")
    return done.returncode, complaint, int(peak) * 1024


def ledger(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text())["info"]["ledger"]
    lost = sum(found["dropped"].values()) + sum(found["failed"].values())
    assert found["read"] == found["kept"] + lost
    return found


def test_a_tree_of_special_files_neither_blocks_nor_crashes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    write_jsonl(tree / "rows.jsonl", ROWS)
    os.mkfifo(tree / "pipe")
    (tree / "loop").symlink_to(tree, target_is_directory=True)
    (tree / "deep" / "up").symlink_to("..", target_is_directory=True)
    (tree / "dangling").symlink_to("nowhere")
    (tree / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(tree)  # a socket's path has to be short
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        code, complaint, _ = run(tmp_path / "corpus", tree)
    assert code == 0, complaint
    found = ledger(tmp_path / "corpus")
    assert found["kept"] == len(ROWS)
    assert found["failed"] == {"dangling link": 1, "not a regular file": 3}
    code, complaint, _ = run(tmp_path / "strict", tree, "--strict")
    assert code == ExitCode.DATA == 3, complaint
    assert not (tmp_path / "strict").exists()


def test_bombs_are_counted_and_take_no_memory(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    write_jsonl(tree / "rows.jsonl", ROWS)
    with gzip.open(tree / "bomb.gz", "wb", compresslevel=9) as handle:
        for _ in range(200):
            handle.write(bytes(1 << 20))
    with zipfile.ZipFile(tree / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("good.jsonl", "".join(json.dumps({"text": f"z {n}"}) + "\n" for n in "ab"))
        with archive.open("zeros.txt", "w") as member:
            for _ in range(200):
                member.write(b"a" * (1 << 20))
    code, complaint, memory = run(tmp_path / "corpus", tree, "--split-by", "document")
    assert code == 0, complaint
    found = ledger(tmp_path / "corpus")
    assert found["kept"] >= len(ROWS) + 2
    assert sum(found["failed"].values()) >= 1
    assert memory < 400e6


def long_line(size: int) -> Iterator[bytes]:
    yield b'{"text": "first"}\n{"text": "'
    for _ in range(size >> 20):
        yield b"ab cd \xe8\x8c\xb6" * ((1 << 20) // 9)
    yield b'"}\n{"text": "last"}\n'


def feed(pieces: Iterator[bytes], *arguments: object, out: Path) -> tuple[int, str, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # nothing but system calls on this side
        os.close(reading)
        for piece in pieces:
            while piece:
                piece = piece[os.write(writing, piece) :]
        os._exit(0)
    os.close(writing)
    try:
        return run(out, "-", *arguments, stdin=reading)
    finally:
        os.close(reading)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    "size", [100 << 20, pytest.param(2 << 30, marks=pytest.mark.slow)], ids=["100 MB", "2 GB"]
)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_line_without_end_is_one_failure_in_flat_memory(tmp_path: Path, size: int) -> None:
    code, complaint, memory = feed(long_line(size), out=tmp_path / "corpus")
    assert code == 0, complaint
    found = ledger(tmp_path / "corpus")
    assert (found["kept"], found["failed"]) == (2, {"line too long": 1})
    assert memory < 400e6


def test_many_tiny_files_go_through(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for folder in range(30):
        (tree / str(folder)).mkdir(parents=True)
        for number in range(100):
            (tree / str(folder) / f"{number}.txt").write_text(f"{folder} and {number}, 茶")
    code, complaint, _ = run(tmp_path / "corpus", tree)
    assert code == 0, complaint
    assert ledger(tmp_path / "corpus")["kept"] == 3000
    assert len((tmp_path / "corpus" / "sources.jsonl").read_bytes().splitlines()) == 3000


def test_stdin_is_read_once_and_whole(tmp_path: Path) -> None:
    data = "".join(json.dumps(row) + "\n" for row in ROWS)
    done = subprocess.run(
        [sys.executable, "-m", "chatbench", "preprocess", "-", "-o", str(tmp_path / "corpus"),
         "--vocab-size", "300", "--no-profile"],
        input=data.encode(), capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ledger(tmp_path / "corpus")["kept"] == len(ROWS)
    (source,) = (tmp_path / "corpus" / "sources.jsonl").read_bytes().splitlines()
    assert json.loads(source)["path"] == "stdin"
    assert sorted(os.listdir(tmp_path)) == ["corpus"]


def prose(path: Path, megabytes: float, rng: random.Random) -> None:
    words = [f"{a}{b}" for a in TOPICS for b in range(400)]
    with open(path, "w", encoding="utf-8") as handle:
        while handle.tell() < megabytes * 1e6:
            for _ in range(50):
                text = " ".join(rng.choices(words, k=rng.randint(50, 500)))
                handle.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


@pytest.mark.slow
def test_ten_times_the_input_takes_the_same_memory(tmp_path: Path, rng: random.Random) -> None:
    peaks = []
    for megabytes in (40, 400):
        prose(tmp_path / "in.jsonl", megabytes, rng)
        code, complaint, memory = run(
            tmp_path / f"{megabytes}", tmp_path / "in.jsonl", "--workers", "2", "--dedup", "near"
        )
        assert code == 0, complaint
        peaks.append(memory)
    print(f"peak resident memory: {peaks[0] / 1e6:.0f} MB, {peaks[1] / 1e6:.0f} MB")
    assert peaks[1] <= 1.1 * peaks[0]
