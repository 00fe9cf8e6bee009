"""Classification: cross-entropy over the classes of each text, one text one vote.

All weights learn, or, where they stay as they are (`--train-layers 0`), the head alone: then what
the head sees of each text is computed once and never again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from chatbench import console
from chatbench.engine.classes import text_states
from chatbench.errors import UsageError
from chatbench.model.head import linear_cross_entropy
from chatbench.model.pooling import pooled
from chatbench.model.transformer import GPT
from chatbench.train.batches import Batches, Ints, Row, held_out, pack, permutation
from chatbench.train.labelled import Examples, LabelledTexts
from chatbench.train.material import Given
from chatbench.train.objective import Batch, GlobalBatch, Loss
from chatbench.train.parallel import World
from chatbench.train.plan import Plan

# Texts of which the hidden states are computed at once.
_AT_ONCE = 32
_HIDDEN = "hidden"


class _Source(Protocol):
    """What makes the batch of a step."""

    def batch(self, step: int) -> GlobalBatch: ...


class Classes:
    """Cross-entropy over the classes. A batch's `weights` are one at the last token of each text,
    where `targets` is its class; with `more["hidden"]` (B, C) the trunk has been run already."""

    of_text = False
    on_policy = False

    def __init__(self, train: _Source, validation: list[Batch], labels: int) -> None:
        self._train = train
        self._validation = validation
        self._labels = labels
        self.summed = ("right", *(f"{kind} {n}" for n in range(labels) for kind in _COUNTED))

    def batch(self, step: int) -> GlobalBatch:
        return self._train.batch(step)

    def validation(self) -> Iterator[Batch]:
        return iter(self._validation)

    def loss(self, model: GPT, batch: Batch) -> Loss:
        batch = batch.counted()
        assert batch.places is not None
        ends = batch.places
        weight = model.head.get_parameter("weight")
        if batch.more:
            states = batch.more[_HIDDEN][ends].to(weight.dtype)
        else:
            assert batch.packing is not None
            hidden = model(batch.ids, packing=batch.packing)
            lengths = batch.packing.position.flatten()[ends] + 1
            states = pooled(hidden, ends, lengths, model.config.pooling)
        targets, weights = batch.targets.flatten()[ends], batch.weights.flatten()[ends]
        loss = linear_cross_entropy(states, weight, targets, weights)
        metrics: dict[str, float | Tensor] = {}
        if not torch.is_grad_enabled():
            metrics = self._counts(model.logits(states).argmax(-1).cpu(), targets.cpu())
        return Loss(loss.total, batch.weight, metrics)

    def _counts(self, found: Tensor, wanted: Tensor) -> dict[str, float | Tensor]:
        """Of each class: how often it was rightly found, found, and there."""
        counts = {"right": float((found == wanted).sum())}
        by_class = (found[found == wanted], found, wanted)
        for kind, each in zip(_COUNTED, by_class, strict=True):
            for number, count in enumerate(each.bincount(minlength=self._labels).tolist()):
                if count:
                    counts[f"{kind} {number}"] = float(count)
        return dict(counts)

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Accuracy, and F1 averaged over the classes that are there or were found."""
        total = sum(sums.get(f"there {n}", 0.0) for n in range(self._labels))
        if not total:
            return {}
        scores = []
        for number in range(self._labels):
            hit, found, there = (sums.get(f"{kind} {number}", 0.0) for kind in _COUNTED)
            if found + there:
                scores.append(2 * hit / (found + there))
        return {"accuracy": sums["right"] / total, "macro_f1": sum(scores) / len(scores)}


_COUNTED = ("hit", "found", "there")


class TextRows:
    """Whole texts, best fit, apart from each other; the last token of each counts."""

    isolated = True

    def __init__(
        self, examples: Examples, seq_len: int, seed: int, token_dropout: float = 0.0
    ) -> None:
        """Of each text a share of `token_dropout` is left out, drawn anew in each epoch."""
        self._examples = examples
        self._dropout = token_dropout
        self._seed = seed
        self._seq_len = seq_len
        shuffled = permutation(seed, -1 & 0xFFFFFFFF, len(examples.ids)).tolist()
        bins = pack([len(examples.ids[number]) for number in shuffled], seq_len)
        self._bins = [[shuffled[place] for place in each] for each in bins]
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(seed, epoch, len(self._bins)))

    def count(self) -> int:
        return len(self._bins)

    def _texts(self, epoch: int, number: int) -> list[int]:
        return self._bins[int(self._order(epoch)[number])]

    def weight(self, epoch: int, number: int) -> float:
        return float(len(self._texts(epoch, number)))

    def row(self, epoch: int, number: int) -> Row:
        ids, targets, document, position = (np.zeros(self._seq_len, np.int64) for _ in range(4))
        weights = np.zeros(self._seq_len, np.float32)
        at = 0
        random = np.random.Generator(np.random.PCG64([self._seed, epoch, number]))
        for name, which in enumerate(self._texts(epoch, number), 1):
            text = thinned(self._examples.ids[which], self._dropout, random)
            place = slice(at, at + len(text))
            ids[place], document[place], position[place] = text, name, np.arange(len(text))
            at += len(text)
            targets[at - 1], weights[at - 1] = self._examples.labels[which], 1.0
        return Row(ids, targets, weights, document, position)


def thinned(ids: Sequence[int], share: float, random: np.random.Generator) -> Sequence[int]:
    """Ids without about a `share` of them, but with one at least: as many words name a class, none
    of them shall be learned in place of all others (word deletion, Wei & Zou 2019)."""
    if not share:
        return ids
    stays = random.random(len(ids)) >= share
    left = [each for each, kept in zip(ids, stays, strict=True) if kept]
    return left or [int(random.choice(ids))]


class StateBatches:
    """Texts whose hidden states are known: rows of one place each, in a new order each epoch."""

    def __init__(
        self, states: Tensor, labels: Ints, per_step: int, micro_batch: int, seed: int, *,
        rank: int = 0, ranks: int = 1,
    ) -> None:  # fmt: skip
        """`states` (N, C) on the host."""
        self._states, self._labels = states, torch.from_numpy(np.asarray(labels))
        self._per_step, self._micro = per_step, micro_batch
        self._rank, self._ranks = rank, ranks
        self._order = lru_cache(maxsize=2)(lambda epoch: permutation(seed, epoch, len(labels)))

    def batch(self, step: int) -> GlobalBatch:
        """Texts step·R .. of the endless sequence of epochs; rank r takes r, r + ranks, …. A rank
        that lacks one takes the first, which then counts for nothing."""
        first = step * self._per_step
        numbers = [
            int(self._order(index // len(self._labels))[index % len(self._labels)])
            for index in range(first, first + self._per_step)
        ]
        own = numbers[self._rank :: self._ranks]
        lacking = -(-self._per_step // self._ranks) - len(own)
        weights = torch.ones(len(own) + lacking, 1)
        weights[len(own) :] = 0.0
        chosen = torch.tensor(own + numbers[:1] * lacking)
        whole = of_states(self._states[chosen], self._labels[chosen], weights)
        return GlobalBatch(whole.cut(self._micro), float(self._per_step), self._per_step)


def of_states(states: Tensor, labels: Tensor, weights: Tensor) -> Batch:
    """Hidden states (N, C) with their classes (N,) and weights (N, 1) as one batch."""
    nothing = torch.zeros(len(states), 1, dtype=torch.int64)
    return Batch(nothing, labels[:, None], weights, None, more={_HIDDEN: states})


class LabelledMaterial:
    """Labelled texts, and a model that learns to tell their labels apart."""

    def __init__(self, given: Given) -> None:
        assert isinstance(given.corpus, LabelledTexts)
        self._seed = given.settings.seed
        self._model, self._seq_len = given.model, given.seq_len
        self._train, self._val = (
            given.corpus.examples(name, given.seq_len) for name in ("train", "val")
        )
        cut = self._train.cut + self._val.cut
        if cut:
            console.notice(
                f"{cut} texts are longer than {given.seq_len} tokens: a quarter of what is read of "
                "them is their beginning, the rest their end"
            )
        self._frozen = given.settings.train_layers == 0
        head = given.settings.head
        self._states = [
            text_states(given.model, each.ids, _AT_ONCE, head.pooling).clone()
            if self._frozen else None
            for each in (self._train, self._val)
        ]  # fmt: skip
        # Weights that stay as they are have learned to look back only.
        both_ways = head.pooling == "mean" and given.settings.train_layers is None
        given.model.become_classifier(given.corpus.labels, head.pooling, causal=not both_ways)
        self._rows = TextRows(self._train, given.seq_len, self._seed, head.token_dropout)
        self.row_len = 1 if self._frozen else given.seq_len
        self.epochs, self.batch_tokens = (50.0, 256) if self._frozen else (5.0, 1024)
        # Of the usual rate: a head over states that stay is a logistic regression.
        self.rate = 20.0 if self._frozen else 1.0

    def count(self) -> int:
        """Rows of an epoch: texts where only their states are needed."""
        return len(self._train.ids) if self._frozen else self._rows.count()

    def objective(self, plan: Plan, ranks: World) -> Classes:
        labels = len(self._model.config.labels)
        states, held_states = (each if each is None else each.cpu() for each in self._states)
        if states is None or held_states is None:
            batches = Batches(
                self._rows, plan.rows_per_step, plan.micro_batch, rank=ranks.rank, ranks=ranks.size
            )
            rows = TextRows(self._val, self._seq_len, self._seed)
            return Classes(batches, held_out(rows, plan.micro_batch, plan.eval_tokens), labels)
        known = StateBatches(
            states, self._train.labels, plan.rows_per_step, plan.micro_batch, self._seed,
            rank=ranks.rank, ranks=ranks.size,
        )  # fmt: skip
        whole = of_states(held_states, torch.from_numpy(self._val.labels),
                          torch.ones(len(self._val.ids), 1))  # fmt: skip
        held = whole.cut(plan.micro_batch) if len(self._val.ids) else []
        return Classes(known, held, labels)


def classes(given: Given) -> LabelledMaterial:
    """Texts with labels. Raises UsageError for settings that mean replies or adapters."""
    settings = given.settings
    for name, asked in (
        ("--lora-rank", settings.lora.rank is not None),
        ("--quantize", settings.quantize != "none"),
    ):  # fmt: skip
        if asked:
            raise UsageError(
                f"{name} is not there for --objective classify",
                hint="leave it out; --train-layers 0 learns the head alone",
            )
    return LabelledMaterial(given)
