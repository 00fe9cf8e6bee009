"""Learning from rewards: the loss and its gradient, what is drawn, and runs that are broken off."""

from __future__ import annotations

import json
import math
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from train.parallel_runs import Ranks, codes, heard

from chatbench.config import to_toml
from chatbench.conversation import Message
from chatbench.corpus.build import preprocess
from chatbench.corpus.shards import Corpus, open_corpus
from chatbench.engine.engine import Engine, Request
from chatbench.errors import IntegrityError, UsageError
from chatbench.model.transformer import GPT, ModelConfig
from chatbench.settings import (
    FinetuneSettings,
    GrpoSettings,
    ModelSettings,
    OptimSettings,
    PreprocessSettings,
    PretrainSettings,
    SamplingSettings,
    TrainSettings,
)
from chatbench.text.template import reply_prompt
from chatbench.train.feed import Feed
from chatbench.train.grpo import Grpo
from chatbench.train.objective import GlobalBatch
from chatbench.train.parallel import SOLO, Solo, World
from chatbench.train.recipes import finetune, pretrain
from chatbench.train.rewards import parse_rewards
from chatbench.train.rollouts import Reply, Rollouts, Shelf, Speaker, Tasks, seed_of
from conftest import ROOT

EXAMPLE = runpy.run_path(str(ROOT / "examples" / "arithmetic.py"))
ROOM = 40


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of sums up to three, in both languages."""
    place = tmp_path_factory.mktemp("sums")
    data = EXAMPLE["write_sums"](place / "sums.jsonl", 3)
    return preprocess(
        PreprocessSettings(
            inputs=[str(data)], out=str(place / "corpus"), vocab_size=300, val_fraction=0.2,
            test_fraction=0.1, split_by="document",
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def corpus(sums: Path) -> Corpus:
    return open_corpus(sums)


@pytest.fixture(scope="module")
def base(sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has seen a little of them."""
    return pretrain(
        PretrainSettings(
            data=str(sums), out=str(tmp_path_factory.mktemp("base") / "run"), dtype="float32",
            device="cpu",
            model=ModelSettings(n_layers=1, hidden_size=32, n_heads=2, ffn_size=64),
            train=TrainSettings(steps=40, seq_len=48, batch_tokens=480, tensorboard=False),
        )
    )  # fmt: skip


def model_of(rng: random.Random, corpus: Corpus) -> GPT:
    """A model in float64 whose blocks do something, and which ends its replies now and then."""
    model = GPT(ModelConfig(corpus.tokenizer.vocab_size, 2, 16, 2, 1, 8, 32, 64)).double()
    generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


def move(model: GPT, rng: random.Random, far: float) -> None:
    """Other weights, in place."""
    generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.empty_like(parameter).normal_(0.0, far, generator=generator)
            parameter.add_(noise)


def grpo_of(
    model: GPT, corpus: Corpus, rewards: Sequence[str] = ("chrf", "length:2-4*0.5"), rows: int = 3,
    seed: int = 0, shelf: Shelf | None = None, ranks: World = SOLO, **settings: Any,
) -> Grpo:  # fmt: skip
    tasks, held = (Tasks(corpus.split(name), corpus.tokenizer, ROOM) for name in ("train", "val"))
    chosen = {"group_size": 3, "prompts_per_step": 4, "max_new_tokens": 6} | settings
    return Grpo(
        model, Speaker(model, corpus.tokenizer), tasks, held,
        parse_rewards(list(rewards), lambda column: lambda exchange: 0.0),
        GrpoSettings(reward=list(rewards), **chosen), rows=rows, seed=seed, shelf=shelf,
        ranks=ranks,
    )  # fmt: skip


def gradients(objective: Grpo, model: GPT, batch: GlobalBatch) -> dict[str, Tensor]:
    """Of one step, as the loop sums them."""
    model.zero_grad()
    for part in batch.parts:
        (objective.loss(model, part).total / batch.weight).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def slow_loss(
    model: GPT, start: GPT | None, before: GPT | None, objective: Grpo, rollouts: Rollouts
) -> tuple[Tensor, float]:
    """The same reply by reply, from the papers: DAPO's mean over tokens of Shao et al.'s terms. And
    the share of tokens that learn nothing more."""
    settings, group = objective._settings, objective._settings.group_size
    weights = [each.weight for each in objective._rewards]
    worth = [sum(w * r for w, r in zip(weights, own, strict=True)) for own in rollouts.worths]
    whole, count, stopped = torch.zeros((), dtype=torch.float64), 0, 0
    high = settings.clip_range_high or settings.clip_range
    for n, reply in enumerate(rollouts.replies):
        own = torch.tensor(worth[n - n % group :][:group], dtype=torch.float64)
        gain = own[n % group] - own.mean()
        if settings.scale_rewards == "group":
            gain = gain / own.std() if float(own.max()) > float(own.min()) else own[0] * 0
        prompt = objective._tasks[rollouts.tasks[n // group]].ids
        now = slow_logprobs(model, prompt, reply.ids, settings.temperature)
        then = now.detach()
        if before is not None:
            then = slow_logprobs(before, prompt, reply.ids, settings.temperature).detach()
        ratio = torch.exp(now - then)
        cut = torch.clamp(ratio, 1 - settings.clip_range, 1 + high)
        terms = -torch.min(ratio * gain, cut * gain)
        stopped += int((cut * gain < ratio * gain - 1e-12).sum())
        if start is not None:
            delta = slow_logprobs(start, prompt, reply.ids, settings.temperature).detach() - now
            terms = terms + settings.kl_coef * (torch.exp(delta) - delta - 1)
        whole, count = whole + terms.sum(), count + len(reply.ids)
    return whole / count, stopped / count


def slow_logprobs(model: GPT, prompt: list[int], reply: list[int], temperature: float) -> Tensor:
    ids = [*prompt, *reply]
    scores = model.logits(model(torch.tensor([ids[:-1]])))[0] / temperature
    chosen = scores.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    return chosen[len(prompt) - 1 :]


def assert_close(ours: dict[str, Tensor], slow: dict[str, Tensor]) -> None:
    """Float64 sums of at most some ten thousand terms, which together are far less than 10^4 times
    what is left of them: 10^4 · 10^4 · 2^-53."""
    assert ours.keys() == slow.keys()
    size = max(float(value.abs().max()) for value in slow.values())
    for name, value in slow.items():
        assert float((ours[name] - value).abs().max()) <= 1e-8 * size + 1e-12, name


# ---- the loss


@pytest.mark.parametrize("scale", ["none", "group"])
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_loss_and_gradient_are_those_of_the_papers(
    rng: random.Random, corpus: Corpus, scale: str, kl: float
) -> None:
    model, start = model_of(rng, corpus), model_of(rng, corpus)
    start.load_state_dict(model.state_dict())
    objective = grpo_of(
        model, corpus, scale_rewards=scale, kl_coef=kl, temperature=rng.uniform(0.5, 1.5),
        seed=rng.randrange(1 << 40),
    )  # fmt: skip
    move(model, rng, 0.02)
    batch = objective.batch(0)
    assert objective._drawn is not None
    ours = gradients(objective, model, batch)
    totals = [objective.loss(model, part).total.detach() for part in batch.parts]
    value = float(sum(totals)) / batch.weight
    model.zero_grad()
    slow, _ = slow_loss(model, start if kl else None, None, objective, objective._drawn[1])
    slow.backward()
    theirs = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert_close(ours, theirs)
    assert value == pytest.approx(float(slow.detach()), rel=1e-8, abs=1e-10)


def test_later_steps_on_the_same_replies_are_clipped_like_the_papers(
    rng: random.Random, corpus: Corpus, tmp_path: Path
) -> None:
    model, before = model_of(rng, corpus), model_of(rng, corpus)
    before.load_state_dict(model.state_dict())
    objective = grpo_of(
        model, corpus, updates=3, shelf=Shelf(tmp_path, 3), clip_range=0.01, clip_range_high=0.015,
        seed=rng.randrange(1 << 40),
    )  # fmt: skip
    first = objective.batch(3)
    assert all(part.more is not None and "before" not in part.more for part in first.parts)
    move(model, rng, 0.02)
    batch = objective.batch(4)
    assert objective._drawn is not None
    assert batch.weight == first.weight
    ours = gradients(objective, model, batch)
    model.zero_grad()
    slow, stopped = slow_loss(model, None, before, objective, objective._drawn[1])
    slow.backward()
    theirs = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert_close(ours, theirs)
    sums: dict[str, float] = {}
    for part in batch.parts:
        for name, each in objective.loss(model, part).metrics.items():
            sums[name] = sums.get(name, 0.0) + float(each)
    assert objective.report(sums)["clipped"] == pytest.approx(stopped, abs=1e-9)


def test_the_gradient_is_the_same_under_any_micro_batch(rng: random.Random, corpus: Corpus) -> None:
    model, seed = model_of(rng, corpus), rng.randrange(1 << 40)
    found = []
    for rows, cut in ((12, 12), (12, 5), (5, 5), (1, 1)):
        objective = grpo_of(model, corpus, rows=rows, seed=seed, kl_coef=0.1)
        batch = objective.batch(7).cut(cut)
        sums: dict[str, float] = {}
        for part in batch.parts:
            for name, value in objective.loss(model, part).metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        found.append((gradients(objective, model, batch), objective.report(sums), batch.weight))
    for ours, report, weight in found[1:]:
        assert weight == found[0][2]
        assert report == pytest.approx(found[0][1], rel=1e-9, abs=1e-9)
        assert_close(ours, found[0][0])


def test_groups_of_equal_rewards_teach_exactly_nothing(rng: random.Random, corpus: Corpus) -> None:
    model = model_of(rng, corpus)
    for settings in ({}, {"group_size": 1}, {"scale_rewards": "group"}):
        objective = grpo_of(model, corpus, ["regex:^*0.1", "regex:^*0.7"], **settings)  # type: ignore[arg-type]
        batch = objective.batch(rng.randrange(100))
        assert all(not bool(grad.any()) for grad in gradients(objective, model, batch).values())
        told = objective.report(
            {n: float(v) for n, v in objective.loss(model, batch.parts[0]).metrics.items()}
        )
        assert told["silent_groups"] == 1.0
        assert told["reward_spread"] == 0.0


def test_empty_replies_are_an_end_that_is_learned(rng: random.Random, corpus: Corpus) -> None:
    """Every reply ends at once: one drawn token each, finite numbers everywhere."""
    model = model_of(rng, corpus)
    objective = grpo_of(model, corpus)
    end = corpus.tokenizer.turn_end
    assert end is not None
    objective._speaker.replies = (  # type: ignore[method-assign]
        lambda prompts, sampling, seeds=None: [Reply([end], "", False) for _ in prompts]
    )
    batch = objective.batch(0)
    assert batch.weight == 12
    ours = gradients(objective, model, batch)
    assert all(bool(grad.isfinite().all()) and not bool(grad.any()) for grad in ours.values())
    (first, *_) = objective.validation()
    held = objective.loss(model, first)
    assert math.isfinite(float(held.total))
    assert objective.report(held.metrics)["reply_tokens"] == 1.0  # type: ignore[arg-type]


# ---- several ranks


class Pair(Solo):
    """One of two ranks that run as threads of one process."""

    size = 2

    def __init__(self, rank: int, meeting: threading.Barrier, told: dict[int, Sequence[float]]):
        self.rank, self._meeting, self._told = rank, meeting, told

    def sums(self, values: Sequence[float]) -> list[float]:
        self._told[self.rank] = values
        self._meeting.wait(60)
        both = [sum(pair) for pair in zip(self._told[0], self._told[1], strict=True)]
        self._meeting.wait(60)
        return both


@pytest.mark.parametrize("group", [1, 3])
def test_two_ranks_learn_what_one_learns(rng: random.Random, corpus: Corpus, group: int) -> None:
    seed, step = rng.randrange(1 << 40), rng.randrange(20)
    model = model_of(rng, corpus)
    twins = [model, *(GPT(model.config).double() for _ in "ab")]
    for twin in twins[1:]:
        twin.load_state_dict(model.state_dict())
    meeting, told = threading.Barrier(2), {}  # type: ignore[var-annotated]
    worlds = [SOLO, Pair(0, meeting, told), Pair(1, meeting, told)]
    objectives = [
        grpo_of(twin, corpus, seed=seed, group_size=group, ranks=world)
        for twin, world in zip(twins, worlds, strict=True)
    ]
    whole = objectives[0].batch(step)
    with ThreadPoolExecutor(2) as threads:
        shares = list(threads.map(lambda objective: objective.batch(step), objectives[1:]))
    assert [(s.weight, s.tokens) for s in shares] == [(whole.weight, whole.tokens)] * 2
    assert len(shares[0].parts) == len(shares[1].parts)
    parts = [gradients(*each) for each in zip(objectives[1:], twins[1:], shares, strict=True)]
    both = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    assert_close(both, gradients(objectives[0], model, whole))


@pytest.mark.slow
def test_two_processes_run_to_the_end(ranks: Ranks, base: Path, sums: Path, tmp_path: Path) -> None:
    config = tmp_path / "given.toml"
    config.write_text(to_toml(settings_of(base, sums, tmp_path / "run", kl_coef=0.1)), "utf-8")
    words = ["finetune", "-c", str(config)]
    told = heard(ranks(2, words))
    assert "add --parallel ddp" in told
    replies = ranks(2, [*words, "--parallel", "ddp"])
    assert codes(replies) == [0, 0], heard(replies)
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows if "val_reward" in row] == [2, 4, 6]
    assert all(math.isfinite(value) for row in rows for value in row.values())


# ---- what is drawn


def test_prompts_are_the_conversations_without_their_last_reply(corpus: Corpus) -> None:
    held = Tasks(corpus.split("val"), corpus.tokenizer, ROOM)
    rows = [row["messages"] for row in corpus.rows("val")]
    assert len(held) == len(rows) > 5
    for number, row in enumerate(rows):
        messages = [Message(m["role"], m["content"]) for m in row]
        task = held[number]
        assert task.ids == reply_prompt(corpus.tokenizer, messages[:-1])
        assert task.reference == messages[-1].content
        assert messages[0].content in task.prompt
    assert held.longest == max(len(held[n].ids) for n in range(len(held)))
    short = Tasks(corpus.split("val"), corpus.tokenizer, held.longest - 1)
    assert 0 < short.skipped == len(held) - len(short)


def test_of_several_replies_the_last_is_the_reference(corpus_folder: Path) -> None:
    corpus = open_corpus(corpus_folder)
    rows = [row["messages"] for row in corpus.rows("val") if "messages" in row]
    tasks = Tasks(corpus.split("val"), corpus.tokenizer, 1000)
    found = {(tasks[n].prompt.count("user"), tasks[n].reference) for n in range(len(tasks))}
    assert found == {(len(row) // 2, row[-1]["content"]) for row in rows}
    assert {count for count, _ in found} == {1, 2}


def test_replies_come_with_the_token_that_ended_them(rng: random.Random, corpus: Corpus) -> None:
    model = model_of(rng, corpus)
    speaker = Speaker(model, corpus.tokenizer)
    prompts = [[rng.randrange(250) for _ in range(5)] for _ in range(60)]
    sampling = SamplingSettings(temperature=1.5, top_k=0, top_p=1.0, max_tokens=60 // 2)
    replies = speaker.replies(prompts, sampling, list(range(60)))
    done = Engine(model, corpus.tokenizer, 4).complete(
        Request(p, SamplingSettings(temperature=1.5, top_k=0, top_p=1.0, max_tokens=30, seed=n))
        for n, p in enumerate(prompts)
    )
    for reply, other in zip(replies, done, strict=True):
        ended = other.finish_reason == "stop"
        assert reply.truncated == (not ended)
        assert reply.ids[: len(other.ids)] == other.ids
        assert len(reply.ids) == len(other.ids) + ended
        assert not ended or reply.ids[-1] in corpus.tokenizer.stops


def test_replies_follow_the_weights(rng: random.Random, corpus: Corpus) -> None:
    """A speaker that spoke before says what a fresh one says after the weights have moved."""
    model = model_of(rng, corpus)
    objective = grpo_of(model, corpus)
    objective.batch(0)
    move(model, rng, 0.1)
    objective.batch(1)
    fresh = grpo_of(model, corpus)
    fresh.batch(1)
    assert objective._drawn == fresh._drawn


def test_a_step_is_drawn_once_and_by_its_number(rng: random.Random, corpus: Corpus) -> None:
    model = model_of(rng, corpus)
    objective = grpo_of(model, corpus)
    calls = []
    speak = objective._speaker.replies

    def counted(*given: Any) -> list[Reply]:
        calls.append(given[2])
        return speak(*given)

    objective._speaker.replies = counted  # type: ignore[method-assign]
    first = objective.batch(0)
    again = objective.batch(0)
    assert len(calls) == 1
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first.parts, again.parts, strict=True))
    objective.batch(1)
    assert len(set(calls[0] + calls[1])) == 24
    epoch = -(-len(objective._tasks) // 4)
    seen = []
    for step in range(epoch):
        objective.batch(step)
        assert objective._drawn is not None
        seen += objective._drawn[1].tasks
    assert set(seen) == set(range(len(objective._tasks)))


def test_seeds_are_a_function_of_run_set_prompt_and_sample(rng: random.Random) -> None:
    places = {(a, b, c, d) for a in range(3) for b in range(3) for c in range(3) for d in range(3)}
    seeds = {place: seed_of(*place) for place in places}
    assert len(set(seeds.values())) == len(places)
    assert all(0 <= seed < 2**62 for seed in seeds.values())
    place = rng.choice(sorted(places))
    assert seed_of(*place) == seeds[place]


def test_nothing_is_made_ahead_of_its_step(
    base: Path, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool | None] = []
    begin = Feed.__init__

    def noted(self: Feed, *given: Any, ahead: bool | None = None, **more: Any) -> None:
        asked.append(ahead)
        begin(self, *given, ahead=ahead, **more)

    monkeypatch.setattr(Feed, "__init__", noted)
    finetune(settings_of(base, sums, tmp_path / "run", steps=1))
    assert set(asked) == {False}


# ---- replies that several steps learn from


def rollouts_of(rng: random.Random) -> Rollouts:
    replies = [Reply([rng.randrange(300), 2], "七", bool(rng.randrange(2))) for _ in range(4)]
    logprobs = [[rng.uniform(-9, 0), -0.0] for _ in replies]
    return Rollouts([3, 1], replies, [[rng.random()] for _ in replies], logprobs, None)


def test_kept_replies_come_back_bit_for_bit(rng: random.Random, tmp_path: Path) -> None:
    shelf, kept = Shelf(tmp_path, 2), rollouts_of(rng)
    shelf.put(5, kept)
    assert shelf.get(5) == kept
    with pytest.raises(IntegrityError, match="missing"):
        shelf.get(6)
    (place,) = (tmp_path / "rollouts").glob("set-*/rollouts.json")
    place.write_bytes(place.read_bytes().replace(b"3", b"4", 1))
    with pytest.raises(IntegrityError):
        shelf.get(5)


def test_kept_is_what_a_checkpoint_may_ask_for(rng: random.Random, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, 3)
    for number in range(4):
        shelf.put(number, rollouts_of(rng))
    names = {path.name for path in (tmp_path / "rollouts").iterdir()}
    assert names == {f"set-{n:08d}" for n in range(4)}  # a checkpoint may be on its way
    for step in (4, 10):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    shelf.put(4, rollouts_of(rng))
    names = {path.name for path in (tmp_path / "rollouts").iterdir()}
    assert names == {f"set-{n:08d}" for n in (1, 3, 4)}


# ---- whole runs


def settings_of(
    base: Path, sums: Path, out: Path, steps: int = 6, *, resume: bool = False,
    train: dict[str, Any] | None = None, **grpo: Any,
) -> FinetuneSettings:  # fmt: skip
    chosen = {
        "reward": ["exact_match", "length:1-2*0.5"], "group_size": 3, "prompts_per_step": 4,
        "max_new_tokens": 6, "eval_prompts": 8,
    }  # fmt: skip
    return FinetuneSettings(
        model=str(base), data=[str(sums)], out=str(out), objective="grpo", dtype="float32",
        device="cpu", resume=resume, grpo=GrpoSettings(**chosen | grpo),
        optim=OptimSettings(learning_rate=0.002),
        train=TrainSettings(
            **{"steps": steps, "tensorboard": False, "log_every": 1, "eval_every": 2,
               "save_every": 1, "micro_batch": 5} | (train or {})
        ),
    )  # fmt: skip


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def test_a_run_shows_rewards_and_keeps_the_best(base: Path, sums: Path, tmp_path: Path) -> None:
    run = finetune(settings_of(base, sums, tmp_path / "run", kl_coef=0.05))
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
    base: Path, sums: Path, tmp_path: Path, updates: int
) -> None:
    """Killed where it draws. Where three steps learn from the same replies it goes on between them:
    a checkpoint that lies there is the newest, or is made so by damage to the newest."""
    whole = finetune(settings_of(base, sums, tmp_path / "whole", 9, updates=updates))
    broken = tmp_path / "broken"
    given = settings_of(base, sums, broken, 9, updates=updates)
    config = tmp_path / "given.toml"
    config.write_text(to_toml(given), encoding="utf-8")
    words = [sys.executable, "-c", KILLED, "2", "finetune", "-c", str(config)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ})
    assert done.returncode == -signal.SIGKILL, done.stderr
    # Each save waits for the one before, so two are there.
    newest = sorted((broken / "checkpoints").glob("step-*"))[-1]
    if int(newest.name[5:]) % updates == 0 and updates > 1:
        (newest / "state.json").write_bytes(b"{}")
    resumed = finetune(settings_of(base, sums, broken, 9, updates=updates, resume=True))
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


def test_one_reply_to_each_prompt_is_reinforce(base: Path, sums: Path, tmp_path: Path) -> None:
    run = finetune(settings_of(base, sums, tmp_path / "run", 3, group_size=1, prompts_per_step=9))
    assert run is not None
    for row in rows_of(run):
        assert all(math.isfinite(value) for value in row.values())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reward": []}, "nothing says what a reply is worth"),
        ({"reward": ["exact"]}, "there is no reward exact"),
        ({"max_new_tokens": 48}, "leave no room for a prompt"),
        ({"train": {"batch_tokens": 999}}, "does not fit a step of 12 replies"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    base: Path, sums: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        finetune(settings_of(base, sums, tmp_path / "run", **changes))
