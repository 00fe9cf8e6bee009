"""Ranks, forked from one process for all tests, and the run of one that theirs must equal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from train.parallel_runs import Ranks, words


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Runs jobs as ranks.py describes them: `ranks(size, arguments, …)`; code, out, err of each."""
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("ranks.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(size: int, arguments: list[Any] | None = None, **job: Any) -> list[dict[str, Any]]:
        job |= {"size": size, **({} if arguments is None else {"arguments": arguments})}
        process.stdin.write(json.dumps(job) + "\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        replies: list[dict[str, Any]] = json.loads(process.stdout.readline())  # type: ignore[union-attr]
        return replies

    yield ask
    process.stdin.close()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="session")
def alone(ranks: Ranks, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run of `words` in one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    (done,) = ranks(1, words(corpus_folder, run))
    assert done["code"] == 0, done["err"]
    return run
