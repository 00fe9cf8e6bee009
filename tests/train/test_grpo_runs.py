"""Whole runs that learn from rewards: what they show, and how they are broken off."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.grpo_cases import rows_of, settings_of
from train.parallel_runs import Ranks, codes, heard

from chatbench.config import to_toml
from chatbench.corpus.build import preprocess
from chatbench.errors import UsageError, UserError
from chatbench.settings import (
    ModelSettings,
    PreprocessSettings,
    PretrainSettings,
    TrainSettings,
)
from chatbench.text.tags import write_known
from chatbench.train.feed import Feed
from chatbench.train.prompts import check_rewards
from chatbench.train.recipes import finetune, pretrain


def test_nothing_is_made_ahead_of_its_step(
    sums_base: Path, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool | None] = []
    begin = Feed.__init__

    def noted(self: Feed, *given: Any, ahead: bool | None = None, **more: Any) -> None:
        asked.append(ahead)
        begin(self, *given, ahead=ahead, **more)

    monkeypatch.setattr(Feed, "__init__", noted)
    finetune(settings_of(sums_base, sums, tmp_path / "run", steps=1))
    assert set(asked) == {False}


def test_a_run_shows_rewards_and_keeps_the_best(
    sums_base: Path, sums: Path, tmp_path: Path
) -> None:
    run = finetune(settings_of(sums_base, sums, tmp_path / "run", kl_coef=0.05))
    assert run is not None
    rows = rows_of(run)
    trained = [row for row in rows if "loss" in row]
    assert len(trained) == 6
    for row in trained:
        assert {"reward", "reward_exact_match", "reward_length", "reward_spread", "silent_groups",
                "reply_tokens", "truncated", "entropy", "kl"} <= row.keys()  # fmt: skip
        both = row["reward_exact_match"] + 0.5 * row["reward_length"]
        assert row["reward"] == pytest.approx(both, abs=1e-6)
        assert all(math.isfinite(value) for value in row.values())
    assert trained[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    held = {row["step"]: row for row in rows if "val_loss" in row}
    assert {*held} == {2, 4, 6}
    for row in held.values():
        assert row["val_loss"] == pytest.approx(-row["val_reward"], rel=1e-6)
    manifest = json.loads((run / "model" / "manifest.json").read_text("utf-8"))
    assert manifest["info"]["step"] == min(held, key=lambda step: held[step]["val_loss"])


KILLED = """
import os, signal, sys
from chatbench.cli import run
from chatbench.train.rollouts import Speaker
speak, calls = Speaker.replies, []
def dying(self, prompts, sampling, seeds=None):
    calls.append(seeds)
    if seeds is not None and sum(each is not None for each in calls) > int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return speak(self, prompts, sampling, seeds)
Speaker.replies = dying
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.parametrize("updates", [1, 3])
def test_a_killed_run_goes_on_bit_for_bit(
    sums_base: Path, sums: Path, tmp_path: Path, updates: int
) -> None:
    """Killed where it draws. Where three steps learn from the same replies it goes on between them:
    a checkpoint that lies there is the newest, or is made so by damage to the newest."""
    whole = finetune(settings_of(sums_base, sums, tmp_path / "whole", 9, updates=updates))
    broken = tmp_path / "broken"
    given = settings_of(sums_base, sums, broken, 9, updates=updates)
    config = tmp_path / "given.toml"
    config.write_text(to_toml(given), encoding="utf-8")
    words = [sys.executable, "-c", KILLED, "2", "finetune", "-c", str(config)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == -signal.SIGKILL, done.stderr
    # Each save waits for the one before, so two are there.
    newest = sorted((broken / "checkpoints").glob("step-*"))[-1]
    if int(newest.name[5:]) % updates == 0 and updates > 1:
        (newest / "state.json").write_bytes(b"{}")
    resumed = finetune(settings_of(sums_base, sums, broken, 9, updates=updates, resume=True))
    assert whole is not None
    assert resumed is not None
    assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    ours, theirs = (
        load_file(sorted((run / "checkpoints").glob("step-*"))[-1] / "model" / "model.safetensors")
        for run in (resumed, whole)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def write_styles(path: Path) -> Path:
    """Questions in two languages; whether a reply is friendly or curt hangs on nothing."""
    styles = (("Yes, with pleasure, dear guest!", "Yes."), ("好的，非常乐意为您服务！", "有。"))
    rows = [
        {"prompt": asked.format(number), "completion": replies[style]}
        for asked, replies in zip(("Is there tea {}?", "有{}号茶吗？"), styles, strict=True)
        for number in range(60)
        for style in (0, 1)
    ]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.mark.slow
def test_replies_become_what_is_rewarded(tmp_path: Path) -> None:
    """Friendly ones come from about half to nearly all, in both languages."""
    corpus = preprocess(
        PreprocessSettings(
            inputs=[str(write_styles(tmp_path / "styles.jsonl"))], out=str(tmp_path / "corpus"),
            vocab_size=300, val_fraction=0.2, test_fraction=0.1, split_by="document",
        )
    )  # fmt: skip
    base = pretrain(
        PretrainSettings(
            data=str(corpus), out=str(tmp_path / "base"), dtype="float32", device="cpu",
            model=ModelSettings(n_layers=1, hidden_size=32, n_heads=2, ffn_size=64),
            train=TrainSettings(steps=60, seq_len=64, batch_tokens=640, tensorboard=False),
        )
    )  # fmt: skip
    settings = settings_of(
        base, corpus, tmp_path / "run", 60, reward=["regex:pleasure|乐意"], group_size=8,
        prompts_per_step=8, max_new_tokens=24, eval_prompts=40,
        train={"eval_every": 20, "save_every": 60, "micro_batch": 64, "seq_len": 64},
    )  # fmt: skip
    run = finetune(settings)
    assert run is not None
    earned = [row["reward"] for row in rows_of(run) if "loss" in row]
    assert math.fsum(earned[:3]) / 3 < 0.75
    assert math.fsum(earned[-10:]) / 10 > 0.9
    assert max(row["val_reward"] for row in rows_of(run) if "val_reward" in row) > 0.9


def test_one_reply_to_each_prompt_is_reinforce(sums_base: Path, sums: Path, tmp_path: Path) -> None:
    run = finetune(
        settings_of(sums_base, sums, tmp_path / "run", 3, group_size=1, prompts_per_step=9)
    )
    assert run is not None
    for row in rows_of(run):
        assert all(math.isfinite(value) for value in row.values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_new_tokens": 48}, "leave no room for a prompt"),
        ({"train": {"batch_tokens": 999}}, "does not fit a step of 12 replies"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    sums_base: Path, sums: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        finetune(settings_of(sums_base, sums, tmp_path / "run", **changes))


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        ([], "nothing says what a reply is worth"),
        (["exact"], "there is no reward exact; did you mean exact_match"),
        (["length:9-2"], "length:9-2 is no range"),
        (["screen:nowhere"], "nowhere"),
        (["chrf", "tag"], "names no tag"),
        (["tag:mood"], "the data have no tag 'mood'; did you mean mode"),
    ],
)
def test_a_wrong_reward_is_refused_before_any_work(
    tmp_path: Path, reward: list[str], told: str
) -> None:
    """Not even whether there is a model is looked at."""
    (tmp_path / "no.jsonl").write_text('{"prompt": "Hi", "completion": "Hello"}\n')
    given = settings_of(tmp_path / "no-model", tmp_path / "no.jsonl", tmp_path / "run", 1,
                        reward=reward)  # fmt: skip
    given.tag_column = ["mode,语气"]
    with pytest.raises(UserError, match=told):
        finetune(given)
    assert [path.name for path in tmp_path.iterdir()] == ["no.jsonl"]


def test_rewards_of_tags_are_those_of_the_data(sums: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sums, tmp_path / "corpus")
    given = settings_of(tmp_path, folder, tmp_path / "run", 1, reward=["tag:语气"])
    with pytest.raises(UsageError, match="the data have no tag '语气'; make it with --tag-column"):
        check_rewards(given)
    write_known(folder, {"语气": {"正式": 3, "随意": 2}})
    check_rewards(given)
    given.data = [str(tmp_path / "file.jsonl"), f"{folder}:0.1"]
    check_rewards(given)


@pytest.mark.slow
def test_two_processes_run_to_the_end(
    ranks: Ranks, sums_base: Path, sums: Path, tmp_path: Path
) -> None:
    config = tmp_path / "given.toml"
    config.write_text(to_toml(settings_of(sums_base, sums, tmp_path / "run", kl_coef=0.1)), "utf-8")
    words = ["finetune", "-c", str(config)]
    told = heard(ranks(2, words))
    assert "add --parallel ddp" in told
    replies = ranks(2, [*words, "--parallel", "ddp"])
    assert codes(replies) == [0, 0], heard(replies)
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows if "val_reward" in row] == [2, 4, 6]
    assert all(math.isfinite(value) for row in rows for value in row.values())
