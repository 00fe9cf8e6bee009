"""Shared fixtures: tiny, made in process, offline."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A shell that starts the tests behind an `&` makes them, and all they start, ignore SIGINT.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tiny tensors lose by a second thread, above all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = Path(os.environ.get("CHATBENCH_TEST_DATA") or ROOT.parent / "shared" / "data")

ENGLISH = (
    "The shop opens at nine in the morning.\n\nTea, books and paper stand on the shelves. "
    "People come in from the rain, drink something warm and stay for an hour.\n"
)
CHINESE = "小店早上九点开门。\n\n架子上有茶、书和纸。人们从雨里进来，喝点热的，再坐上一个小时。\n"
TOPICS = ("tea", "paper", "books", "ink", "rain", "茶叶", "信纸", "墨水", "雨伞", "书架")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"a test tried to connect to {address}")

    if os.environ.get("CHATBENCH_ALLOW_SOCKETS") != "1":
        monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("CHATBENCH_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("CHATBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def rng() -> random.Random:
    """Fresh inputs each run; the seed is printed when a test fails."""
    seed = int(os.environ.get("CHATBENCH_TEST_SEED") or random.randrange(1 << 32))
    print(f"CHATBENCH_TEST_SEED={seed}")
    return random.Random(seed)


def sample_texts(count: int = 60) -> list[str]:
    """Distinct small texts in both languages."""
    return [
        f"{ENGLISH if n % 2 else CHINESE}\n{TOPICS[n % len(TOPICS)]} number {n} 第{n}号。"
        for n in range(count)
    ]


def sample_chats(count: int = 60) -> list[dict[str, Any]]:
    """Distinct small conversations in both languages, one and two exchanges."""
    rows = []
    for n in range(count):
        topic = TOPICS[n % len(TOPICS)]
        asked, told = (
            (f"What does {topic} {n} cost?", f"The {topic} costs {n} yuan.")
            if n % 2
            else (f"{topic}{n}号多少钱？", f"{topic}卖{n}元。")
        )
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
        if n % 3 == 0:
            messages += [
                {"role": "user", "content": "Thanks 谢谢"},
                {"role": "assistant", "content": "You are welcome! 不客气！"},
            ]
        rows.append({"messages": messages})
    return rows


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts.jsonl and chats.jsonl."""
    folder = tmp_path_factory.mktemp("sources")
    write_jsonl(folder / "texts.jsonl", [{"text": text} for text in sample_texts()])
    write_jsonl(folder / "chats.jsonl", sample_chats())
    return folder


@pytest.fixture(scope="session")
def corpus_folder(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preprocessed corpus of texts and conversations, vocabulary 400."""
    from chatbench.corpus.build import preprocess
    from chatbench.settings import PreprocessSettings

    out = tmp_path_factory.mktemp("corpus") / "corpus"
    return preprocess(
        PreprocessSettings(
            inputs=[str(sources)],
            out=str(out),
            vocab_size=400,
            val_fraction=0.15,
            test_fraction=0.15,
        )
    )


@pytest.fixture(scope="session")
def tokenizer(corpus_folder: Path) -> Any:
    from chatbench.text.tokenizer import open_tokenizer

    return open_tokenizer(corpus_folder / "tokenizer")


@pytest.fixture(scope="session")
def tiny_settings() -> Callable[..., Any]:
    """PretrainSettings of a model of 2 layers × 32, made for speed."""
    from chatbench.settings import ModelSettings, PretrainSettings, TrainSettings

    def make(data: Path, out: Path, steps: int = 12, **train: Any) -> PretrainSettings:
        return PretrainSettings(
            data=str(data), out=str(out), dtype="float32", device="cpu",
            model=ModelSettings(n_layers=2, hidden_size=32, n_heads=2, ffn_size=64),
            train=TrainSettings(
                steps=steps, seq_len=48, batch_tokens=192, tensorboard=False, **train
            ),
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def base_run(
    corpus_folder: Path, tiny_settings: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished tiny pretraining run."""
    from chatbench.train.recipes import pretrain

    return pretrain(tiny_settings(corpus_folder, tmp_path_factory.mktemp("run") / "base"))


def chatbench(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program as a person would, in its own process."""
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        [sys.executable, "-m", "chatbench", *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", **{"timeout": 240, **options},
    )  # fmt: skip


@pytest.fixture
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    return chatbench


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Show the measured precision and recall on planted personal data under the results."""
    passed = terminalreporter.stats.get("passed", [])
    tables = {
        name: json.loads(value)
        for report in passed
        for name, value in getattr(report, "user_properties", [])
        if name.startswith("pii_")
    }
    if not tables:
        return
    terminalreporter.write_sep("-", "planted personal data: precision / recall")
    for name, table in sorted(tables.items()):
        for kind, (planted, _, precision, recall) in sorted(table.items()):
            language = name.removeprefix("pii_")
            terminalreporter.write_line(
                f"{language}  {kind:<12} {precision:.3f} / {recall:.3f} of {planted:,}"
            )
