"""A file of replies after any end: every id once, and nothing that is not ours is touched."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from chat.piping import GREEDY, asker

from chatbench.chat.lines import JsonLines
from chatbench.chat.replies import ReplyFile
from chatbench.errors import DataError, InUseError, UsageError
from chatbench.model.folder import OpenedModel, open_model


@pytest.fixture(scope="module")
def opened(base_run: Path) -> OpenedModel:
    return open_model(base_run, torch.device("cpu"))


def run_on(opened: OpenedModel, questions: Path, out: Path) -> tuple[int, JsonLines]:
    file = ReplyFile(out, resume=True)
    lines = JsonLines(asker(opened, GREEDY, 4), 4, file)
    stdin = os.open(questions, os.O_RDONLY)
    try:
        return lines.run(stdin), lines
    finally:
        os.close(stdin)
        file.close()


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def keys(path: Path) -> list[tuple[Any, int]]:
    return [(row["id"], row.get("index", 0)) for row in written(path)]


def some_questions(path: Path, rng: random.Random, count: int) -> Path:
    lines = [
        rng.choice([
            json.dumps({"id": f"问{n}", "prompt": f"茶 {n}"}, ensure_ascii=False),
            json.dumps({"prompt": f"tea {n}"}),
            json.dumps({"id": [n], "prompt": f"{n}", "n": 3}),
            json.dumps({"id": {"a": n}, "prompt": 5}),
            "no json",
            "",
        ])
        for n in range(count)
    ]  # fmt: skip
    path.write_text("\n".join(["no json", *lines]), encoding="utf-8")
    return path


def test_a_file_cut_anywhere_is_completed_to_the_same_ids(
    opened: OpenedModel, tmp_path: Path, rng: random.Random
) -> None:
    questions = some_questions(tmp_path / "q", rng, 30)
    code, lines = run_on(opened, questions, tmp_path / "whole")
    assert (code, lines.passed_over) == (3, 0)
    whole = (tmp_path / "whole").read_bytes()
    for _ in range(12):
        cut = tmp_path / "cut"
        cut.write_bytes(whole[: rng.randrange(len(whole) + 1)])
        code, lines = run_on(opened, questions, cut)
        assert code == 3, "those that failed before count"
        assert keys(cut) == keys(tmp_path / "whole")
        texts = [[row.get("text") for row in written(p)] for p in (cut, tmp_path / "whole")]
        assert texts[0] == texts[1]


def test_a_whole_file_is_left_alone(
    opened: OpenedModel, tmp_path: Path, rng: random.Random
) -> None:
    questions = some_questions(tmp_path / "q", rng, 12)
    _, first = run_on(opened, questions, tmp_path / "out")
    before = (tmp_path / "out").read_bytes()
    _, again = run_on(opened, questions, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == before
    assert (again.written, again.passed_over) == (0, first.written)


def test_an_id_that_is_there_twice_does_not_grow(opened: OpenedModel, tmp_path: Path) -> None:
    (tmp_path / "q").write_text('{"id": 1, "prompt": "a"}\n' * 3)
    run_on(opened, tmp_path / "q", tmp_path / "out")
    assert ["error" in row for row in written(tmp_path / "out")] == [False, True, True]
    code, _ = run_on(opened, tmp_path / "q", tmp_path / "out")
    assert code == 3
    assert len(written(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    "content",
    [b"my diary", "我的日记\n".encode(), b'{"text": "x"}\n', b"[1]\n", b'{"id": 1}\n{bad}\n'],
)
def test_a_file_of_something_else_is_not_touched(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "out").write_bytes(content)
    with pytest.raises(DataError, match="is not one of our replies"):
        ReplyFile(tmp_path / "out", resume=True)
    assert (tmp_path / "out").read_bytes() == content


def test_what_is_there_is_only_added_to_when_that_is_asked(tmp_path: Path) -> None:
    (tmp_path / "out").write_text('{"id": 1, "text": "a"}\n')
    with pytest.raises(UsageError, match="--resume"):
        ReplyFile(tmp_path / "out", resume=False)
    with pytest.raises(UsageError, match="is not a file"):
        ReplyFile(tmp_path, resume=True)
    assert not (tmp_path / "new").exists()
    ReplyFile(tmp_path / "new", resume=False).close()


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    first = ReplyFile(tmp_path / "out", resume=True)
    with pytest.raises(InUseError, match="another process"):
        ReplyFile(tmp_path / "out", resume=True)
    first.close()
    ReplyFile(tmp_path / "out", resume=True).close()


KILLED = """
import os, signal, sys
from chatbench.chat import replies
left = int(sys.argv.pop(1))

class Torn:
    "A file whose program dies in the middle of what it writes."
    def __init__(self, handle): self.handle = handle
    def __getattr__(self, name): return getattr(self.handle, name)
    def write(self, data):
        global left
        if len(data) > left:
            self.handle.write(data[:left])
            os.kill(os.getpid(), signal.SIGKILL)
        left -= len(data)
        return self.handle.write(data)

init = replies.ReplyFile.__init__
def torn(self, *given, **named):
    init(self, *given, **named)
    self._handle = Torn(self._handle)
replies.ReplyFile.__init__ = torn
from chatbench.cli import run
sys.exit(run(sys.argv[1:]))
"""


def test_killed_at_random_moments_and_resumed_no_id_is_lost_or_doubled(
    base_run: Path, tmp_path: Path, rng: random.Random
) -> None:
    """kill -9 after a random number of bytes, in a line or between two."""
    questions = some_questions(tmp_path / "q", rng, 25)
    out = tmp_path / "out"
    flags = ["chat", "-m", str(base_run), "--jsonl", "--max-tokens", "3", "--temp", "0",
             "-o", str(out), "--resume"]  # fmt: skip
    codes = []
    for limit in [*(rng.randrange(2, 400) for _ in range(3)), 1 << 40]:
        with open(questions, "rb") as stdin:
            done = subprocess.run(
                [sys.executable, "-c", KILLED, str(limit), *flags], stdin=stdin,
                capture_output=True,
            )  # fmt: skip
        codes.append(done.returncode)
    assert codes[:-1] == [-signal.SIGKILL] * 3
    assert codes[-1] == 3
    opened = open_model(base_run, torch.device("cpu"))
    run_on(opened, questions, tmp_path / "alone")
    assert keys(out) == keys(tmp_path / "alone")
