"""Finetunes of an adapter and of the last blocks: what they write, and how they go on."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.parallel_runs import Ranks, codes, heard

from chatbench.cli import run as program
from chatbench.errors import IntegrityError, UsageError
from chatbench.model.folder import open_model, read_provenance, stored_weights, write_model
from chatbench.model.lora import load_adapter, merged_weights
from chatbench.settings import FinetuneSettings, LoraSettings, TrainSettings
from chatbench.storage import new_folder
from chatbench.train.checkpoint import checkpoints_of
from chatbench.train.recipes import finetune
from conftest import sample_chats, write_jsonl

# peft and transformers age at different speeds.
pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning")
CPU = torch.device("cpu")
WHOLE_FILE, ADAPTER_FILE = "model.safetensors", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("chats") / "chats.jsonl", sample_chats())


def settings(base: Path, chats: Path, out: Path, **given: Any) -> FinetuneSettings:
    train = {"steps": 6, "save_every": 3, "eval_every": 3, "log_every": 1} | given.pop("train", {})
    return FinetuneSettings(
        model=str(base), data=[str(chats)], out=str(out), dtype="float32", device="cpu",
        train=TrainSettings(tensorboard=False, batch_tokens=96, patience=0, **train), **given,
    )  # fmt: skip


def lora(**changes: Any) -> LoraSettings:
    return LoraSettings(**{"rank": 4, "dropout": 0.2} | changes)


@pytest.fixture(scope="module")
def place(base_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the base run."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(base_run, folder / "base")
    return folder


@pytest.fixture(scope="module")
def bot(place: Path, chats: Path) -> Path:
    """A finished run of an adapter on place/base."""
    done = finetune(settings(place / "base", chats, place / "bot", lora=lora()))
    assert done is not None
    return done


def logits_of(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model = open_model(folder, CPU).model
    with torch.no_grad():
        return model.logits(model(ids))


@pytest.fixture
def ids(rng: random.Random) -> torch.Tensor:
    return torch.tensor([[rng.randrange(400) for _ in range(30)] for _ in range(2)])


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


# ---- what is written


def test_the_model_of_the_run_is_an_adapter_folder_and_it_learned(bot: Path, place: Path) -> None:
    names = {path.name for path in (bot / "model").iterdir()}
    assert {"adapter_config.json", ADAPTER_FILE, "tokenizer.json", "chatbench.json"} <= names
    assert not names & {WHOLE_FILE, "config.json"}
    said = json.loads((bot / "model" / "adapter_config.json").read_bytes())
    assert (said["r"], said["lora_alpha"], said["lora_dropout"]) == (4, 8, 0.2)
    assert said["base_model_name_or_path"] == str(place / "base" / "model")
    stored = load_file(bot / "model" / ADAPTER_FILE)
    assert len(stored) == 2 * 7 * 2
    assert all(bool(t.any()) for n, t in stored.items() if ".lora_B." in n)
    losses = [row["val_loss"] for row in rows_of(bot) if "val_loss" in row]
    assert losses[-1] < losses[0]


def test_a_checkpoint_is_small_holds_what_learned_and_can_be_opened(
    bot: Path, place: Path, ids: torch.Tensor
) -> None:
    newest = checkpoints_of(bot)[-1]
    learned = load_file(newest / "learned.safetensors")
    assert all(".lora_" in name for name in learned)
    whole = (checkpoints_of(place / "base")[-1] / "optimizer.safetensors").stat().st_size
    assert (newest / "optimizer.safetensors").stat().st_size < whole / 2
    assert not (newest / "model" / WHOLE_FILE).exists()
    # The last step is the best one here, so both are the same adapter.
    assert torch.equal(logits_of(newest, ids), logits_of(bot, ids))


def test_the_run_opens_as_its_base_with_its_adapter(
    bot: Path, place: Path, ids: torch.Tensor
) -> None:
    opened = open_model(bot, CPU)
    beside = open_model(place / "base", CPU).model
    plain = {name: w.clone() for name, w in stored_weights(beside).items()}
    load_adapter(beside, bot / "model")
    for name, weight in merged_weights(beside).items():
        assert torch.equal(weight, stored_weights(opened.model)[name])
    moved = [n for n, w in plain.items() if not torch.equal(w, stored_weights(opened.model)[n])]
    assert len(moved) == 7 * 2
    assert read_provenance(bot / "model")["base"] == str(place / "base" / "model")


def test_peft_opens_what_was_written_and_gives_the_same_logits(
    bot: Path, ids: torch.Tensor
) -> None:
    peft = pytest.importorskip("peft")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(bot / "model").eval()
    with torch.no_grad():
        wanted = theirs(ids).logits
    torch.testing.assert_close(
        logits_of(bot, ids), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max())
    )


def test_export_merges_it(bot: Path, tmp_path: Path, ids: torch.Tensor) -> None:
    code = program(["export", "-m", str(bot), "--to", "hf", "-o", str(tmp_path / "plain")])
    assert code == 0
    assert torch.equal(logits_of(tmp_path / "plain", ids), logits_of(bot, ids))


def test_info_and_chat_know_it(bot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program(["info", str(bot)]) == 0
    assert program(["info", str(bot / "model")]) == 0
    assert "LORA" in capsys.readouterr().out
    assert program(["chat", "-m", str(bot), "-p", "茶叶3号多少钱？", "--max-tokens", "3"]) == 0


def test_the_last_blocks_alone_move_and_the_rest_keeps_its_bits(
    place: Path, chats: Path, tmp_path: Path
) -> None:
    run = finetune(settings(place / "base", chats, tmp_path / "run", train_layers=1))
    assert run is not None
    base = load_file(place / "base" / "model" / WHOLE_FILE)
    for folder in (run / "model", checkpoints_of(run)[-1] / "model"):
        found = load_file(folder / WHOLE_FILE)
        moved = {name for name in base if not torch.equal(base[name], found[name])}
        assert moved <= {n for n in base if ".layers.1." in n or n == "model.norm.weight"}
        assert len(moved) >= 8


@pytest.mark.parametrize("kind", ["int8", pytest.param("int4", marks=pytest.mark.slow)])
def test_an_adapter_learns_over_quantised_weights(
    place: Path, chats: Path, tmp_path: Path, kind: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finetune(settings(place / "base", chats, tmp_path / "r", lora=lora(), quantize=kind))
    assert run is not None
    losses = [row["val_loss"] for row in rows_of(run) if "val_loss" in row]
    assert losses[-1] < losses[0]
    assert open_model(run, CPU).tokenizer.vocab_size == 400
    assert f"over weights in {kind}" in capsys.readouterr().err


# ---- its base


def test_the_base_may_move_along_or_be_linked_and_else_one_sentence_says_so(
    bot: Path, place: Path, tmp_path: Path, ids: torch.Tensor
) -> None:
    wanted = logits_of(bot, ids)
    shutil.copytree(place, tmp_path / "new")
    new, hidden = tmp_path / "new" / "bot", place.with_name("hidden")
    os.rename(place, hidden)
    try:
        assert torch.equal(logits_of(new, ids), wanted)
        os.rename(tmp_path / "new" / "base", tmp_path / "elsewhere")
        with pytest.raises(UsageError, match=r"is not here.*ln -s FOLDER .*model/base") as caught:
            open_model(new, CPU)
        assert "\n" not in str(caught.value)
        (new / "model" / "base").symlink_to(tmp_path / "elsewhere")
        assert torch.equal(logits_of(new, ids), wanted)
    finally:
        os.rename(hidden, place)


def other_model(folder: Path, like: Path) -> None:
    """The same shape with other weights, as a finished model folder."""
    opened = open_model(like, CPU)
    weights = {name: w + 0.01 for name, w in stored_weights(opened.model).items()}
    with new_folder(folder, "model", replace=True) as made:
        write_model(made, opened.model.config, weights, opened.tokenizer)


@pytest.mark.parametrize("part", [{"lora": lora()}, {"train_layers": 1}])
def test_a_base_that_became_another_one_is_refused(
    place: Path, chats: Path, tmp_path: Path, part: Any
) -> None:
    base, out = tmp_path / "base", tmp_path / "run"
    shutil.copytree(place / "base", base)
    assert finetune(settings(base, chats, out, train={"steps": 2}, **part)) == out
    other_model(base / "model", place / "base")
    if "lora" in part:
        with pytest.raises(IntegrityError, match="other weights") as caught:
            open_model(out, CPU)
        assert "\n" not in str(caught.value)
    with pytest.raises(IntegrityError, match=f"is not the model that {out} began with"):
        finetune(settings(base, chats, out, train={"steps": 4}, resume=True, **part))


def test_an_adapter_on_an_adapter_is_refused_with_the_way_out(
    bot: Path, chats: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"adapter already.*export -m"):
        finetune(settings(bot, chats, tmp_path / "run", lora=lora()))
    assert not (tmp_path / "run").exists()
    # All weights of the sum may learn.
    run = finetune(settings(bot, chats, tmp_path / "whole", train={"steps": 1}))
    assert run is not None
    assert (run / "model" / WHOLE_FILE).is_file()


def test_a_finished_run_that_is_asked_for_more_goes_on(
    bot: Path, place: Path, chats: Path, tmp_path: Path
) -> None:
    shutil.copytree(bot, tmp_path / "bot")
    run = finetune(settings(place / "base", chats, tmp_path / "bot", lora=lora(), resume=True,
                            train={"steps": 8}))  # fmt: skip
    assert run is not None
    assert rows_of(run)[-1]["step"] == 8
    with pytest.raises(IntegrityError, match=r"lora\.rank was 4, now 2"):
        finetune(settings(place / "base", chats, tmp_path / "bot", lora=lora(rank=2), resume=True))


# ---- ranks


QUICK = [("ddp", {"rank": 3}, "muon"), ("fsdp", {"rank": 3}, "adamw")]
MORE = [("ddp", {"rank": 3}, "adamw"), ("ddp", {"layers": 1}, "muon"),
        ("fsdp", {"layers": 1}, "muon")]  # fmt: skip


@pytest.mark.parametrize(
    ("parallel", "part", "optimizer"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)],
)
def test_two_ranks_learn_of_a_part_what_one_process_learns(
    ranks: Ranks, rng: random.Random, tmp_path: Path, parallel: str, part: Any, optimizer: str
) -> None:
    replies = ranks(2, call="same_as_one", data={
        "seed": rng.randrange(1 << 20), "tie": rng.random() < 0.5, "optimizer": optimizer,
        "steps": [0, 4], "rows": rng.randint(3, 9), "clip": rng.choice([0.0, 0.5]),
        "parallel": parallel, "dtype": "float64", "bound": 1e-7, "folder": str(tmp_path),
        "part": part,
    })  # fmt: skip
    assert codes(replies) == [0, 0], heard(replies)


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_ranks_write_the_adapter_that_one_process_writes(
    ranks: Ranks, place: Path, chats: Path, tmp_path: Path, parallel: str
) -> None:
    def words(out: str, *more: str) -> list[str]:
        sets = ("train.batch_tokens=96", "train.steps=5", "train.save_every=5", "dtype=float32",
                "train.tensorboard=false", "device=cpu", "train.micro_batch=1",
                "train.patience=0", "train.eval_every=5", "train.log_every=1",
                "optim.optimizer=adamw", *more)  # fmt: skip
        flags = [word for change in sets for word in ("--set", change)]
        return ["finetune", "-m", str(place / "base"), "-d", str(chats), "-o", str(tmp_path / out),
                "--lora-rank", "4", *flags]  # fmt: skip

    (alone,) = ranks(1, words("one"))
    assert alone["code"] == 0, alone["err"]
    replies = ranks(2, words("two", f"train.parallel={parallel}"))
    assert codes(replies) == [0, 0], heard(replies)
    one, two = (load_file(tmp_path / n / "model" / ADAPTER_FILE) for n in ("one", "two"))
    assert one.keys() == two.keys()
    one_log, two_log = (
        [row["loss"] for row in rows_of(tmp_path / n) if "loss" in row] for n in ("one", "two")
    )
    assert one_log == pytest.approx(two_log, rel=1e-5)
