"""From a command to a plan that is told, written down, and taken over by a resume."""

from __future__ import annotations

import math
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbench.config import resolve
from chatbench.corpus.shards import open_corpus
from chatbench.errors import IntegrityError
from chatbench.settings import (
    FinetuneSettings,
    ModelSettings,
    OptimSettings,
    PretrainSettings,
    TrainSettings,
)
from chatbench.settings.base import replace
from chatbench.train import planning, recipes
from chatbench.train.forecast import difficulty
from chatbench.train.meters import flops_per_token
from chatbench.train.plan import make_plan
from chatbench.train.planning import (
    amount_of,
    chosen_shape,
    costs,
    expected_tokens,
    fitting_micro_batch,
    settled,
    smallest_vocabulary,
)
from chatbench.train.probe import Timing
from chatbench.train.recipes import finetune, pretrain
from conftest import sample_chats, write_jsonl

Make = Callable[..., PretrainSettings]
CPU = torch.device("cpu")


def open_settings(data: Path, out: Path, **train: Any) -> PretrainSettings:
    return PretrainSettings(
        data=str(data), out=str(out), dtype="float32", device="cpu",
        train=TrainSettings(tensorboard=False, **train),
    )  # fmt: skip


def everything_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


# -- the corpus ----------------------------------------------------------------------------------


def test_the_trigram_of_a_corpus_beats_chance_and_more_text_helps(corpus_folder: Path) -> None:
    corpus = open_corpus(corpus_folder)
    found = difficulty(corpus)
    assert found is not None
    assert 0 < found.trigram < found.uniform
    assert found.power > 0
    assert found.tokens == found.unique == corpus.split("train").tokens
    assert found.vocabulary == corpus.tokenizer.vocab_size


def test_scripts_of_many_characters_keep_a_larger_vocabulary(corpus_folder: Path) -> None:
    class Spelt:
        def __init__(self, texts: list[str]) -> None:
            self.token_bytes = [text.encode() for text in texts]

    assert smallest_vocabulary(Spelt(["the", "a", "é", "книга"])) == 512  # type: ignore[arg-type]
    assert smallest_vocabulary(Spelt(["的", "茶", "the", "了"])) == 2048  # type: ignore[arg-type]


# -- the amount ----------------------------------------------------------------------------------


def test_any_length_is_an_amount() -> None:
    def tokens(**train: Any) -> float | None:
        return amount_of(TrainSettings(**train), 1000, time.monotonic()).tokens

    assert tokens(tokens=700) == 700
    assert tokens(epochs=3) == 3000
    assert tokens(steps=10, batch_tokens=64) == 640
    assert tokens(steps=10, epochs=0.1) == 100
    assert tokens(minutes=1, steps=10) is None


def test_time_that_has_passed_is_not_planned_with(rng: random.Random) -> None:
    minutes, spent = rng.uniform(1, 100), rng.uniform(0, 30)
    seconds = amount_of(TrainSettings(minutes=minutes), 1, time.monotonic() - spent).seconds
    assert seconds is not None
    assert 0.1 * 60 * minutes <= seconds <= max(0.1 * 60 * minutes, 60 * minutes - spent)


# -- the shape -----------------------------------------------------------------------------------


def test_for_an_amount_of_text_the_choice_is_a_function_of_the_corpus(
    corpus_folder: Path, tmp_path: Path
) -> None:
    corpus = open_corpus(corpus_folder)

    def chosen() -> tuple[Any, PretrainSettings]:
        settings = open_settings(corpus_folder, tmp_path, tokens=50_000)
        hard = difficulty(corpus)
        return chosen_shape(settings, corpus, hard, CPU, torch.float32, 0.0), settings

    (config, settings), (again, _) = chosen(), chosen()
    assert config == again
    model = settings.model
    assert (model.n_layers, model.hidden_size) == (config.n_layers, config.hidden_size)
    assert settings.train.seq_len == config.context
    assert settings.train.batch_tokens is not None


def test_what_is_given_is_not_chosen(corpus_folder: Path, tmp_path: Path) -> None:
    corpus = open_corpus(corpus_folder)
    settings = open_settings(corpus_folder, tmp_path, tokens=50_000, seq_len=40, batch_tokens=80)
    config = chosen_shape(settings, corpus, None, CPU, torch.float32, 0.0)
    assert config.context == settings.train.seq_len == 40
    assert settings.train.batch_tokens == 80
    sized = open_settings(corpus_folder, tmp_path, tokens=50_000)
    sized.model = ModelSettings(size="small")
    assert chosen_shape(sized, corpus, None, CPU, torch.float32, 0.0).hidden_size == 384
    assert sized.model == ModelSettings(size="small")


# -- what it will take ---------------------------------------------------------------------------


def test_validation_of_a_short_run_is_a_small_part_of_it(rng: random.Random) -> None:
    minutes = rng.uniform(0.2, 500)
    train = TrainSettings(minutes=minutes)
    plan = make_plan(train, OptimSettings(), seq_len=64, batch_tokens=2048, rows_per_epoch=10**6)
    timing = Timing(math.exp(rng.uniform(math.log(1e-6), math.log(1e-4))), 0.001)
    made = settled(plan, train, cost_of(timing), time.monotonic())
    assert made.step_seconds == timing.step(2048)
    steps = 60 * minutes / timing.step(2048)
    # Between the two readings of the clock some of the time was over.
    fewest, most = (max(1, min(plan.eval_every, int(count) // 4)) for count in (0.9 * steps, steps))
    assert fewest <= made.eval_every <= most
    assert made.eval_every == train.eval_every
    assert made.eval_tokens == train.eval_tokens
    looks = steps / made.eval_every
    # A forward pass is a third of a step; below some thousand tokens a loss says too little.
    spent = looks * made.eval_tokens * timing.token / 3
    assert spent <= 0.05 * 60 * minutes * max(1.0, looks / 5) or made.eval_tokens == 8192


def cost_of(timing: Timing) -> Any:
    from chatbench.train.memory import Memory
    from chatbench.train.planning import Costs

    return Costs(timing, Memory(0, 0, 0, 0, 0))


def test_a_run_of_steps_chooses_nothing_by_the_clock() -> None:
    train = TrainSettings(steps=100)
    plan = make_plan(train, OptimSettings(), seq_len=64, batch_tokens=2048, rows_per_epoch=10**6)
    made = settled(plan, train, cost_of(Timing(1e-5, 0.1)), time.monotonic())
    assert train == TrainSettings(steps=100)
    assert made.seconds == 100 * made.step_seconds  # type: ignore[operator]
    assert expected_tokens(made) == 100 * 2048


def test_rows_at_once_are_cut_to_what_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    from chatbench.model.config import ModelConfig
    from chatbench.train import planning
    from chatbench.train.memory import predict

    config = ModelConfig(300, 2, 64, 1, 1, 64, 128, 128)
    train = TrainSettings(steps=3, micro_batch=None)
    plan = make_plan(train, OptimSettings(), seq_len=128, batch_tokens=4096, rows_per_epoch=10**6)
    assert plan.micro_batch == 32

    def fitting(free: int | None, **given: Any) -> int:
        monkeypatch.setattr(planning, "free_memory", lambda device: free)
        return fitting_micro_batch(
            config, plan, TrainSettings(**given), OptimSettings(), CPU, torch.float32,
            measure=False,
        )  # fmt: skip

    assert fitting(None) == fitting(10**12) == 32
    kept = planning.Kept(planning.activation_bytes(config, 128, torch.float32), 0)
    eight = predict(config, 8, 128, kept, torch.float32, muon=True).peak
    assert fitting(eight) == 8
    assert fitting(1) == 1
    assert fitting(1, micro_batch=32) == 32


def test_costs_of_a_shape_too_large_to_try_are_reckoned(monkeypatch: pytest.MonkeyPatch) -> None:
    from chatbench.model.config import ModelConfig

    config = ModelConfig(300, 2, 64, 1, 1, 64, 128, 32)
    train = TrainSettings(steps=3)
    plan = make_plan(train, OptimSettings(), seq_len=32, batch_tokens=64, rows_per_epoch=10**6)
    tried = costs(config, plan, OptimSettings(), CPU, torch.float32)
    monkeypatch.setattr(planning, "_LARGEST_MEASURED", 1)
    monkeypatch.setattr(planning, "Probe", None)
    monkeypatch.setattr(planning, "peak_flops", lambda dtype, device: 1e10)
    told = costs(config, plan, OptimSettings(), CPU, torch.float32)
    assert told.memory.weights == tried.memory.weights
    assert told.timing.token == flops_per_token(config, 32) / (0.35 * 1e10)


# -- the verbs -----------------------------------------------------------------------------------


def test_a_dry_run_tells_everything_and_writes_nothing(
    corpus_folder: Path, base_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = open_settings(corpus_folder, tmp_path / "run", minutes=0.1)
    settings.dry_run = True
    before = everything_below(tmp_path)
    assert pretrain(settings) is None
    told = capsys.readouterr()
    assert told.out == ""
    words = "layers ×|without the embedding|epochs|tokens a parameter|FLOPs|rows of"
    for word in f"{words}|B of tensors at the peak|bits per byte|trigrams|0.1 minutes".split("|"):
        assert word in told.err, word
    chats = write_jsonl(tmp_path / "chats.jsonl", sample_chats())
    before = everything_below(tmp_path)
    tuning = FinetuneSettings(
        model=str(base_run), data=str(chats), out=str(tmp_path / "bot"), device="cpu",
        dtype="float32", dry_run=True,
    )  # fmt: skip
    assert finetune(tuning) is None
    assert everything_below(tmp_path) == before
    assert "3 epochs" in capsys.readouterr().err


def test_a_dry_run_on_the_command_line_ends_well_and_says_nothing_on_stdout(
    corpus_folder: Path, tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = cli("pretrain", "-d", corpus_folder, "-o", tmp_path / "run", "--steps", "3",
               "--device", "cpu", "--dry-run")  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert "layers ×" in done.stderr
    assert everything_below(tmp_path) == []


def test_a_resume_that_measures_otherwise_is_not_refused(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is slower than at the start, and another number of rows is the fastest."""
    limits = {"minutes": 30.0, "steps": 2, "seq_len": 16, "batch_tokens": 64}
    settings = open_settings(corpus_folder, tmp_path / "run", **limits)
    settings.model = ModelSettings(n_layers=1, hidden_size=16, n_heads=1)
    run = pretrain(settings)
    assert run is not None
    stored = resolve(PretrainSettings, config_file=run / "config.toml", environ={}).settings
    assert stored.train.micro_batch
    assert stored.train.eval_every
    assert stored.train.eval_tokens
    resumed = replace(settings)
    resumed.resume = True
    resumed.train.steps = 3
    monkeypatch.setattr(planning, "best_micro_batch", lambda *_: 1)
    slow = cost_of(Timing(100.0, 1.0))
    monkeypatch.setattr(recipes, "costs", lambda *_: slow)
    assert pretrain(resumed) == run


def test_a_resume_with_less_memory_is_not_refused(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = open_settings(corpus_folder, tmp_path / "run", steps=2, seq_len=16, batch_tokens=64)
    settings.model = ModelSettings(n_layers=1, hidden_size=16, n_heads=1)
    run = pretrain(settings)
    assert run is not None
    monkeypatch.setattr(recipes, "fitting_micro_batch", lambda *_, **__: 1)
    settings.resume, settings.train.steps = True, 3
    assert pretrain(settings) == run


def test_a_resume_with_other_settings_is_refused_before_anything_is_measured(
    corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = open_settings(corpus_folder, tmp_path / "run", steps=2, seq_len=16, batch_tokens=64)
    settings.model = ModelSettings(n_layers=1, hidden_size=16, n_heads=1)
    assert pretrain(settings) is not None
    monkeypatch.setattr(recipes, "costs", None)
    settings.resume, settings.train.steps, settings.optim.learning_rate = True, 3, 0.1
    with pytest.raises(IntegrityError, match=r"learning_rate was None, now 0\.1"):
        pretrain(settings)


def test_what_was_chosen_is_stored_and_a_resume_takes_it_over(
    corpus_folder: Path, tmp_path: Path
) -> None:
    settings = open_settings(corpus_folder, tmp_path / "run", minutes=0.02)
    run = pretrain(settings)
    assert run is not None
    stored = resolve(PretrainSettings, config_file=run / "config.toml", environ={}).settings
    assert stored.model.n_layers
    assert stored.train.seq_len
    assert stored.train.batch_tokens
    assert settings == open_settings(corpus_folder, tmp_path / "run", minutes=0.02)
    settings.resume = True
    settings.train.minutes = 0.04
    assert pretrain(settings) == run
    again = resolve(PretrainSettings, config_file=run / "config.toml", environ={}).settings
    assert again.model == stored.model
    assert again.train.batch_tokens == stored.train.batch_tokens
