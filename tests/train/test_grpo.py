"""Learning from rewards: the loss and its gradient are those of the papers, on any ranks."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from train.grpo_cases import gradients, grpo_of, model_of, move

from chatbench.corpus.shards import Corpus, open_corpus
from chatbench.model.transformer import GPT
from chatbench.train.grpo import Grpo
from chatbench.train.parallel import SOLO, Solo
from chatbench.train.rollouts import Reply, Rollouts, Shelf


@pytest.fixture(scope="module")
def corpus(sums: Path) -> Corpus:
    return open_corpus(sums)


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
