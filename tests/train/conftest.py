"""Ranks and forks, made by one process for all tests, and the run of one that theirs must equal."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from train.parallel_runs import Ranks, words

from conftest import ROOT


@contextmanager
def asked(program: str) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """A program of this folder that answers each line of JSON with one."""
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name(program)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(job: dict[str, Any]) -> Any:
        process.stdin.write(json.dumps(job) + "\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        return json.loads(process.stdout.readline())  # type: ignore[union-attr]

    yield ask
    process.stdin.close()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Runs jobs as ranks.py describes them: `ranks(size, arguments, …)`; code, out, err of each."""
    with asked("ranks.py") as ask:
        yield lambda size, arguments=None, **job: ask(
            job | {"size": size} | ({} if arguments is None else {"arguments": arguments})
        )


@pytest.fixture(scope="module")
def forks() -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs the program in forks: `forks(arguments, signal=..., watch=...)` gives code and words."""
    with asked("forks.py") as ask:
        yield lambda arguments, **job: ask({"arguments": arguments, **job})


@pytest.fixture(scope="session")
def alone(ranks: Ranks, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run of `words` in one process."""
    run = tmp_path_factory.mktemp("alone") / "run"
    (done,) = ranks(1, words(corpus_folder, run))
    assert done["code"] == 0, done["err"]
    return run


@pytest.fixture(scope="session")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of sums up to three, in both languages."""
    from chatbench.corpus.build import preprocess
    from chatbench.settings import PreprocessSettings

    place = tmp_path_factory.mktemp("sums")
    example = runpy.run_path(str(ROOT / "examples" / "arithmetic.py"))
    data = example["write_sums"](place / "sums.jsonl", 3)
    return preprocess(
        PreprocessSettings(
            inputs=[str(data)], out=str(place / "corpus"), vocab_size=300, val_fraction=0.2,
            test_fraction=0.1, split_by="document",
        )
    )  # fmt: skip


@pytest.fixture(scope="session")
def sums_base(
    sums: Path, tiny_settings: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model that has seen a little of them."""
    from chatbench.settings import ModelSettings
    from chatbench.train.recipes import pretrain

    settings = tiny_settings(sums, tmp_path_factory.mktemp("sums-base") / "run", steps=40)
    settings.model = ModelSettings(n_layers=1, hidden_size=32, n_heads=2, ffn_size=64)
    settings.train.batch_tokens = 480
    return pretrain(settings)
