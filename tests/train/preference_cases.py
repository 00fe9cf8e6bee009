"""Made-up preference pairs without a tokenizer, and what a slow twin says of them."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from chatbench.model.transformer import GPT, ModelConfig
from chatbench.settings import PreferenceSettings
from chatbench.train.preference import Preference, reply_logprobs
from chatbench.train.preference_rows import PairBatches, PairRows, find_pairs, with_reference

VOCABULARY = 37
START, USER, ASSISTANT, END, LINE = range(1, 6)
USER_TURN = (START, USER)


class Case(NamedTuple):
    """A prompt with its reply's opening, and two replies with their end of turn."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def said(rng: random.Random, most: int = 7) -> list[int]:
    return [rng.randrange(6, VOCABULARY) for _ in range(rng.randint(1, most))]


def turn(role: int, content: list[int]) -> list[int]:
    return [START, role, *content, END, LINE]


def drawn(rng: random.Random, turns: int = 3, most: int = 7) -> Case:
    """A conversation of up to so many turns before the one that is judged; replies differ."""
    prompt = turn(9, said(rng)) if rng.random() < 0.5 else []
    for _ in range(rng.randrange(turns)):
        prompt += turn(USER, said(rng)) + turn(ASSISTANT, said(rng))
    prompt += [*turn(USER, said(rng)), START, ASSISTANT]
    shared = said(rng, 2) if rng.random() < 0.3 else []
    chosen, rejected = ([*shared, *said(rng, most), END] for _ in range(2))
    if chosen == rejected:
        rejected = [*rejected[:-1], 6, END]
    return Case(prompt, chosen, rejected)


def learned(ids: list[int]) -> list[int]:
    """1 for the words of replies and their end of turn, as a template marks them."""
    weights, reply = [], False
    for place, token in enumerate(ids):
        if ids[place - 2 : place] == [START, ASSISTANT]:
            reply = True
        weights.append(int(reply))
        reply &= token != END
    return weights


class Split:
    """What find_pairs and PairRows ask of a TokenSplit."""

    def __init__(self, documents: list[tuple[list[int], list[int] | None]]) -> None:
        self._documents = documents

    def __len__(self) -> int:
        return len(self._documents)

    def ids(self, number: int) -> Any:
        return np.array(self._documents[number][0], np.uint16)

    def weights(self, number: int) -> Any:
        good, bad = self._documents[number]
        if good != bad:
            return np.array(learned(good), np.uint8)
        judged = learned(good)
        last = max(place for place in range(len(good)) if not judged[place] and any(judged[place:]))
        return np.array([*judged[:last], *[0] * (len(good) - last)], np.uint8)

    def rejected(self, number: int) -> Any:
        bad = self._documents[number][1]
        return bad and (np.array(bad, np.uint16), np.array(learned(bad), np.uint8))


def split_of(cases: list[Case]) -> Any:
    """Each case as a document with a rejected ending."""
    return Split([
        ([*case.prompt, *case.chosen, LINE], [*case.prompt, *case.rejected, LINE])
        for case in cases
    ])  # fmt: skip


def rows_of(cases: list[Case], row_len: int = 64) -> PairRows:
    split = split_of(cases)
    found = find_pairs(split, row_len // 2, USER_TURN)
    assert len(found.pairs) == len(cases)
    return PairRows(split, found.pairs, row_len, 0)


def model_of(seed: int) -> GPT:
    """Two layers of random weights in float64, zeros nowhere."""
    generator = torch.Generator().manual_seed(seed)
    made = GPT(ModelConfig(VOCABULARY, 2, 16, 2, 1, 8, 24, 64)).double()
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(0.1 + 0.3 * torch.randn(weight.shape, generator=generator).double())
    return made


def slow_logprob(model: GPT, prompt: list[int], reply: list[int]) -> Tensor:
    """log p(reply | prompt), one text alone."""
    ids = torch.tensor([*prompt, *reply])
    logp = model.logits(model(ids[None]))[0].log_softmax(-1)
    return sum((logp[at - 1, ids[at]] for at in range(len(prompt), len(ids))), torch.zeros(()))


def slow_reference(model: GPT, rows: PairRows, cases: list[Case]) -> Any:
    """What a judge would say, by number of pair."""
    with torch.no_grad():
        told = [
            [float(slow_logprob(model, case.prompt, reply)) for reply in case[1:]]
            for case in (cases[pair.chosen.document] for pair in rows.pairs)
        ]
    return np.array(told)


def preference(
    settings: PreferenceSettings, rows: PairRows, reference: Any, *, rows_per_step: int = 8,
    micro_batch: int = 8, rank: int = 0, ranks: int = 1,
) -> Preference:  # fmt: skip
    batches = PairBatches(rows, reference, rows_per_step, micro_batch, rank=rank, ranks=ranks)
    held = with_reference([rows.row(pairs) for pairs in rows.bins], reference)
    return Preference(settings, batches, [held])


def gradients(model: GPT, objective: Preference, step: int = 0) -> dict[str, Tensor]:
    """Of the mean over the pairs of a step."""
    model.zero_grad()
    batch = objective.batch(step)
    for part in batch.parts:
        (objective.loss(model, part).total / batch.weight).backward()  # type: ignore[no-untyped-call]
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def judged(model: GPT, rows: PairRows) -> Any:
    """What the fast path says of all pairs in one batch."""
    with torch.no_grad():
        empty = np.zeros((len(rows.pairs), 2))
        sums, _ = reply_logprobs(model, with_reference([rows.row(b) for b in rows.bins], empty))
    for line, pairs in zip(sums.numpy(), rows.bins, strict=True):
        empty[pairs] = line[: len(pairs)]
    return empty
