"""`finetune --objective dpo` as a person runs it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from train.parallel_runs import Ranks, codes, heard, lines_of

from chatbench import cli
from chatbench.chat.preferences import Judged, record
from chatbench.conversation import Message
from conftest import TOPICS, write_jsonl


def pairs(count: int = 60) -> list[dict[str, Any]]:
    """Short questions in both languages: prices are preferred to being sent away."""
    rows = []
    for n in range(count):
        topic = TOPICS[n % len(TOPICS)]
        english, chinese = (
            (f"{topic} {n}?", f"{n} yuan.", "Go on."), (f"{topic}{n}？", f"{n}元。", "走。")
        )  # fmt: skip
        asked, good, bad = english if n % 2 else chinese
        rows.append({"prompt": asked, "chosen": good, "rejected": bad})
    return rows


@pytest.fixture(scope="module")
def preferred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", pairs())


def words(base: Path, data: Path, out: Path, *more: str) -> list[str]:
    changes = (
        "train.steps=12", "train.log_every=1", "train.eval_every=4", "train.sample_every=6",
        "train.save_every=3", "train.tensorboard=false", "train.batch_tokens=384",
        "dtype=float32", "device=cpu", "optim.learning_rate=0.001",
    )  # fmt: skip
    sets = [word for change in changes for word in ("--set", change)]
    return ["finetune", "--objective", "dpo", "-m", str(base), "-d", str(data), "-o", str(out),
            *sets, *more]  # fmt: skip


@pytest.fixture(scope="module")
def whole(
    ranks: Ranks, base_run: Path, preferred: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("whole") / "run"
    (done,) = ranks(1, words(base_run, preferred, run))
    assert (done["code"], done["out"]) == (0, f"{run}\n"), done["err"]
    return run, done["err"]


def test_a_run_begins_at_log_2_and_learns_what_is_preferred(whole: tuple[Path, str]) -> None:
    run, said = whole
    rows = lines_of(run)
    trained = [row for row in rows if "loss" in row]
    assert math.isclose(trained[0]["loss"], math.log(2), abs_tol=1e-4)
    assert trained[-1]["loss"] < 0.6
    assert trained[-1]["reward_margin"] > 0.2 > 1e-3 > abs(trained[0]["reward_margin"])
    judged = [row for row in rows if "val_loss" in row]
    assert judged[-1]["val_accuracy"] == 1.0
    assert judged[-1]["val_loss"] < judged[0]["val_loss"] < math.log(2)
    assert {"val_reward_margin", "val_reward_chosen", "val_reward_rejected"} <= judged[-1].keys()
    assert "held out" in said
    assert "accuracy 100.0%" in said
    assert (run / "samples.jsonl").read_text("utf-8").count("\n") >= 2
    told = load_file(run / "reference" / "logprobs.safetensors")
    assert {name: t.shape[1] for name, t in told.items()} == {"train": 2, "val": 2}


def test_a_killed_run_goes_on_bit_for_bit_and_does_not_ask_the_reference_again(
    ranks: Ranks, base_run: Path, preferred: Path, whole: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for _ in range(6):
        kill = {"rank": 0, "signal": "KILL", "watch": str(run / "metrics.jsonl"), "lines": 8}
        (killed,) = ranks(1, words(base_run, preferred, run), disturb=[kill])
        if killed["code"]:
            break
        shutil.rmtree(run)
    assert killed["code"] == -9
    table = run / "reference" / "logprobs.safetensors"
    before = table.stat().st_mtime_ns
    (ended,) = ranks(1, words(base_run, preferred, run, "--resume"))
    assert ended["code"] == 0, ended["err"]
    assert table.stat().st_mtime_ns == before
    for name in ("metrics.jsonl", "samples.jsonl", "model/model.safetensors"):
        assert (run / name).read_bytes() == (whole[0] / name).read_bytes(), name


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_learn_what_one_does(
    ranks: Ranks, base_run: Path, preferred: Path, whole: tuple[Path, str], tmp_path: Path,
    parallel: str,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    replies = ranks(2, words(base_run, preferred, run, "--parallel", parallel))
    assert codes(replies) == [0, 0], heard(replies)
    ours, alone = lines_of(run), lines_of(whole[0])
    assert [sorted(line) for line in ours] == [sorted(line) for line in alone]
    for one, other in zip(ours, alone, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-3)
    assert load_file(run / "reference" / "logprobs.safetensors")["train"].shape[0] > 30


def test_the_micro_batch_changes_memory_and_not_the_run(
    base_run: Path, preferred: Path, whole: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert cli.run(words(base_run, preferred, run, "--micro-batch", "1")) == 0
    for one, other in zip(lines_of(run), lines_of(whole[0]), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-3)


def test_what_good_and_bad_wrote_is_learned_from(
    base_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pairs, replies judged alone, and what a person said in other chats to the same prompt."""
    path = tmp_path / "preferences.jsonl"
    for row in pairs(16):
        record(path, Judged([Message("user", row["prompt"])], [row["chosen"]], [row["rejected"]]))
    record(path, Judged([Message("user", "ink 99?")], [], ["Go on."]))
    record(path, Judged([Message("user", "书架98？")], ["98元。"], []))
    run = tmp_path / "run"
    assert cli.run(words(base_run, path, run)) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "1 bad reply without a good one to the same prompt left out" in said
    assert "1 conversation or text that is no pair left out" in said
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("val_accuracy" in row for row in rows)


def test_a_single_pair_is_learned_from(
    base_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = write_jsonl(tmp_path / "few.jsonl", pairs(1)), tmp_path / "run"
    assert cli.run(words(base_run, data, run)) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "no pair is held out" in said, said
    assert not any("val_loss" in row for row in lines_of(run))


def test_data_without_pairs_is_refused(
    base_run: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(words(base_run, corpus_folder, tmp_path / "run")) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert "holds no preference pair" in last
    assert "chosen and rejected" in last
    assert not (tmp_path / "run").exists()


def test_settings_that_do_not_go_together_are_refused(
    base_run: Path, preferred: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--loss-type", "ipo", "--label-smoothing", "0.1")
    assert cli.run(words(base_run, preferred, tmp_path / "run", *more)) == 2
    assert "--label-smoothing does not go with --loss-type ipo" in capsys.readouterr().err


def test_a_dry_run_tells_the_plan_and_leaves_nothing(
    base_run: Path, preferred: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert cli.run(words(base_run, preferred, out, "--dry-run")) == 0
    said = capsys.readouterr().err
    assert "pairs:" in said
    assert "peak rate" in said
    assert not out.exists()


def test_the_usual_rate_is_a_tenth_of_that_of_other_finetunes(
    base_run: Path, preferred: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = []
    for objective in ("sft", "dpo"):
        arguments = ["finetune", "--objective", objective, "-m", str(base_run), "-d",
                     str(preferred), "-o", str(tmp_path / objective), "--dry-run"]  # fmt: skip
        assert cli.run(arguments) == 0
        rates.append(float(capsys.readouterr().err.split("peak rate ")[1].split()[0]))
    assert rates[1] == pytest.approx(rates[0] / 10, rel=1e-2)


def test_an_adapter_learns_preferences_over_its_base(
    base_run: Path, preferred: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ("--lora-rank", "4", "--learning-rate", "0.01")
    assert cli.run(words(base_run, preferred, run, *more)) == 0
    trained = [row for row in lines_of(run) if "loss" in row]
    assert math.isclose(trained[0]["loss"], math.log(2), abs_tol=1e-4)
    assert trained[-1]["reward_margin"] > 0.05
    assert (run / "model" / "adapter_model.safetensors").is_file()
    table = run / "reference" / "logprobs.safetensors"
    before = table.stat().st_mtime_ns
    assert cli.run(words(base_run, preferred, run, *more, "--resume", "--steps", "14")) == 0
    assert table.stat().st_mtime_ns == before
    assert lines_of(run)[-1]["step"] == 14


def test_in_half_precision_it_begins_at_log_2_as_well(
    base_run: Path, preferred: Path, tmp_path: Path
) -> None:
    """The reference is computed in the format of the run, so rounding cancels but for its own."""
    run = tmp_path / "run"
    assert cli.run(words(base_run, preferred, run, "--dtype", "bfloat16", "--steps", "4")) == 0
    trained = [row for row in lines_of(run) if "loss" in row]
    assert math.isclose(trained[0]["loss"], math.log(2), abs_tol=0.02)
    assert trained[-1]["loss"] < trained[0]["loss"]


def test_pairs_of_long_replies_need_a_longer_context(
    base_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "Ink?", "chosen": "ink " * 60, "rejected": "墨水" * 60}
    data = write_jsonl(tmp_path / "long.jsonl", [row])
    assert cli.run(words(base_run, data, tmp_path / "run")) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert "1 of more than 48 tokens left out" in last
    assert "a model with a longer context" in last
