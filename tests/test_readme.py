"""What the README tells people to type works as written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, sample_chats, sample_texts, write_jsonl

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.S | re.M)
# The first limit reached ends a run, so a few steps stand in for the minutes that are written.
QUICK = {
    "CHATBENCH_TRAIN_STEPS": "4",
    "CHATBENCH_MODEL_N_LAYERS": "1",
    "CHATBENCH_MODEL_HIDDEN_SIZE": "32",
    "CHATBENCH_MODEL_N_HEADS": "2",
    "CHATBENCH_SAMPLING_MAX_TOKENS": "8",
}


WHATSAPP = [
    f"[{day:02d}/11/2026, 09:{minute:02d}:00] {name}: {text} {day}\n"
    for day in range(1, 21)
    for minute, name, text in (
        (1, "Ben", "Do you have tea? Call me at +44 20 7946 0018"),
        (2, "Anna", "Yes, green and black, until"),
        (3, "Ben", "Thanks!"),
    )
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a person's own files in it."""
    place = tmp_path_factory.mktemp("desk")
    (place / "my-texts").mkdir()
    for number, text in enumerate(sample_texts(40)):
        (place / "my-texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    write_jsonl(place / "my-chats.jsonl", sample_chats())
    export = place / "export"
    export.mkdir()
    (export / "_chat.txt").write_text("".join(WHATSAPP), encoding="utf-8")
    questions = "问题,答案\n" + "".join(f"第{n}个问题是什么？,第{n}个答案。\n" for n in range(30))
    (export / "faq.csv").write_bytes(questions.encode("gb18030"))
    with zipfile.ZipFile(export / "rest.zip", "w") as archive:
        archive.writestr("page.html", "<html><body><p>We open at nine.</p></body></html>")
        archive.writestr("old.jsonl", '{"prompt": "Hi", "completion": "Hello!"}\n{"broken\n')
    return place


def test_the_readme_has_blocks_to_run() -> None:
    assert len(BLOCKS) == 8
    assert sum(block.count("chatbench ") for block in BLOCKS) >= 20


def test_the_blocks_run_one_after_another(desk: Path) -> None:
    binaries = str(Path(sys.executable).parent)
    environment = {**os.environ, **QUICK, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    for block in BLOCKS:
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", block], cwd=desk, env=environment,
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    check_pipes(desk)
    rows = map(json.loads, (desk / "my-corpus" / "sources.jsonl").read_bytes().splitlines())
    (questions,) = (row for row in rows if row["path"] == "export/faq.csv")
    assert questions["read"] == 30
    assert not questions["failed"]
    assert questions["kept"] + sum(questions["dropped"].values()) == 30


def check_pipes(desk: Path) -> None:
    """What the section "In pipes" left behind is what it says."""

    def read(name: str) -> Any:
        return json.loads((desk / name).read_bytes())

    assert (desk / "reply.txt").read_text(encoding="utf-8").endswith("\n")
    reply = read("reply.json")
    assert len(reply["logprobs"]["content"]) == reply["usage"]["completion_tokens"]
    assert all(len(token["top_logprobs"]) == 2 for token in reply["logprobs"]["content"])
    assert read("seven.json")["seed"] == 7
    assert len(read("stories.json")) == 2
    judged = read("judged.json")
    assert judged["text"] == max(judged["choices"], key=lambda name: judged["choices"][name])
    assert sum(judged["choices"].values()) == pytest.approx(1.0, abs=1e-5)
    assert isinstance(read("price.json")["price"], int)
    assert isinstance(read("any.json"), dict)
    for name, ids in (("replies.jsonl", [1, 2]), ("answers.jsonl", ["q1", "q2", "q3", "q4"])):
        rows = [json.loads(line) for line in (desk / name).read_bytes().splitlines()]
        assert [row["id"] for row in rows] == ids
        assert all("text" in row for row in rows)


def test_every_flag_the_readme_names_exists() -> None:
    from chatbench.config import leaves
    from chatbench.settings import (
        ChatSettings,
        ClassifySettings,
        DemoSettings,
        EvaluateSettings,
        ExportSettings,
        FinetuneSettings,
        PreprocessSettings,
        PretrainSettings,
        ReportSettings,
        ScreenSettings,
    )

    every = (ChatSettings, DemoSettings, EvaluateSettings, FinetuneSettings, PreprocessSettings,
             PretrainSettings, ScreenSettings, ExportSettings, ClassifySettings,
             ReportSettings)  # fmt: skip
    known = {"--set", "--config", "--print-config", "--help", "--version", "--kernels"}
    for settings in every:
        for leaf in leaves(settings):
            known.update(f"--{no}{leaf.name.rstrip('_').replace('_', '-')}" for no in ("", "no-"))
            if leaf.meta is not None and leaf.meta.extra is not None:
                known.update(leaf.meta.extra["names"])
    # The launchers of several processes have flags of their own.
    known.add("--max-restarts")
    ours = README.replace(README.split("\n## Several GPUs or machines")[1].split("```")[1], "")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", ours))
    named = {name.replace("_", "-") for name in named}
    assert named <= known, named - known
