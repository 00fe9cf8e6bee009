"""Learning from preferences: of two replies to a prompt the chosen one shall become likelier.

The model is its own judge of rewards: r = β·(log p(reply) - log p of it under the reference), where
the reference is the model that the run begins with (Rafailov et al. 2023, "Direct Preference
Optimization"). Legend: B rows, P pairs in a row, M tokens that count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbench import console
from chatbench.errors import DataError, IntegrityError
from chatbench.model.device import pick_dtype
from chatbench.model.head import token_logprobs
from chatbench.model.kernels.compiled import Linear
from chatbench.model.transformer import GPT
from chatbench.settings import PreferenceSettings
from chatbench.train.material import Given
from chatbench.train.objective import Batch, GlobalBatch, Loss
from chatbench.train.parallel import World
from chatbench.train.plan import Plan
from chatbench.train.preference_reference import Reference
from chatbench.train.preference_rows import (
    Found,
    PairBatches,
    PairRows,
    find_pairs,
    parted,
    with_reference,
)
from chatbench.train.preflight import check_conversations, check_ids

# Rows hold both sides of a pair, each of which may be as long as a row of other finetunes.
_SIDES = 2
# Of the usual rates of a finetune of all weights and of an adapter; with more, what nobody judged
# is spoilt before long.
_RATE, _ADAPTER_RATE = 0.1, 0.025
# By how many nats a token the first model may differ from the reference, which it is, when both are
# computed in other batches.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.25}


class Preference:
    """DPO and its relatives over pairs; the loss counts by pairs, not by tokens."""

    summed = ("pairs", "preferred", "reward_chosen", "reward_rejected")
    of_text = False
    on_policy = False

    def __init__(
        self, settings: PreferenceSettings, train: PairBatches, validation: list[Batch]
    ) -> None:
        self._settings = settings
        self._train = train
        self._validation = validation

    def batch(self, step: int) -> GlobalBatch:
        return self._train.batch(step)

    def validation(self) -> Iterator[Batch]:
        return iter(self._validation)

    def loss(self, model: GPT, batch: Batch) -> Loss:
        settings = self._settings
        logprobs, lengths = reply_logprobs(model, batch)
        # What a row lacks, and rows in which nothing counts.
        there = (lengths > 0).all(-1)
        gains = _gains(logprobs, lengths, batch, settings)
        losses = pair_losses(gains[..., 0] - gains[..., 1], settings)
        if settings.sft_weight:
            # Per token, as in "Iterative Reasoning Preference Optimization" (Pang et al. 2024).
            nats = -logprobs[..., 0] / lengths[..., 0].clamp(min=1)
            losses = losses + settings.sft_weight * nats
        total = torch.where(there, losses, 0.0).sum()
        rewards = settings.beta * gains.detach() * there[..., None]
        metrics = {
            "pairs": there.sum(),
            "preferred": (rewards[..., 0] > rewards[..., 1]).sum(),
            "reward_chosen": rewards[..., 0].sum(),
            "reward_rejected": rewards[..., 1].sum(),
        }
        # In training nobody asks for the weight, for which the host would wait for the device.
        weight = math.nan if torch.is_grad_enabled() else float(metrics["pairs"])
        return Loss(total, weight, metrics)

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        pairs = sums.get("pairs")
        if not pairs:
            return {}
        chosen, rejected = sums["reward_chosen"] / pairs, sums["reward_rejected"] / pairs
        return {
            "accuracy": sums["preferred"] / pairs,
            "reward_margin": chosen - rejected,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
        }

    @torch.no_grad()
    def check_start(self, model: GPT) -> None:
        """Whether the model that the run begins with is the reference: then the loss of the first
        batch is that of equal replies, log 2 for sigmoid. Raises IntegrityError."""
        weight = model.model.embed_tokens.weight
        batch = self.batch(0).parts[0].to(weight.device)
        logprobs, lengths = reply_logprobs(model, batch)
        assert batch.more is not None
        moved = (logprobs - batch.more["reference"]) * (lengths > 0)
        tokens = float(lengths.sum())
        apart = float(moved.abs().sum())
        if apart <= _ROUNDING[weight.dtype] * tokens:
            return
        gains = _gains(logprobs, lengths, batch, self._settings)
        losses = pair_losses(gains[..., 0] - gains[..., 1], self._settings)
        found = float(losses[(lengths > 0).all(-1)].mean())
        expected = float(pair_losses(torch.zeros(()), self._settings))
        raise IntegrityError(
            f"before the first step the loss is {found:.6f} and not {expected:.6f}: the reference "
            f"log-probabilities are {apart / tokens:.2g} nats a token away from those of the model "
            "that the run begins with",
            hint="remove the folder reference/ of the run; if that does not help, it is a bug",
        )


def _gains(logprobs: Tensor, lengths: Tensor, batch: Batch, settings: PreferenceSettings) -> Tensor:
    """By how much each reply has become likelier (B, P, 2); for IPO by token, or the squared loss
    would grow with the length of replies."""
    assert batch.more is not None
    gains = logprobs - batch.more["reference"]
    return gains / lengths.clamp(min=1) if settings.loss_type == "ipo" else gains


def pair_losses(margins: Tensor, settings: PreferenceSettings) -> Tensor:
    """The loss of each pair by its margin, the gain of the chosen reply less that of the rejected
    one, in nats and before β.

    sigmoid: -log σ(β·margin) (Rafailov et al. 2023), smoothed: labels are wrong with that
    probability (Mitchell 2023, "conservative DPO"); ipo: (margin - 1/2β)² (Azar et al. 2023);
    hinge: max(0, 1 - β·margin) (Zhao et al. 2023, "SLiC-HF").
    """
    beta, smoothing = settings.beta, settings.label_smoothing
    if settings.loss_type == "ipo":
        return (margins - 1 / (2 * beta)).square()
    if settings.loss_type == "hinge":
        return F.relu(1 - beta * margins)
    losses = -(1 - smoothing) * F.logsigmoid(beta * margins)
    return losses - smoothing * F.logsigmoid(-beta * margins) if smoothing else losses


def reply_logprobs(model: GPT, batch: Batch) -> tuple[Tensor, Tensor]:
    """Σ log p over the tokens of each reply, in nats and differentiable, and how many they are:
    both (B, P, 2), the last axis chosen and rejected; zero where a row has fewer pairs."""
    batch = batch.counted()
    assert batch.places is not None
    assert batch.packing is not None
    assert batch.more is not None
    rows, columns = batch.ids.shape
    sides = 2 * batch.more["reference"].shape[1]
    hidden = model(batch.ids, packing=batch.packing).flatten(0, 1)[batch.places]
    targets = batch.targets.flatten()[batch.places]
    found = _logprobs(model, hidden, targets)
    document = batch.packing.document.flatten()[batch.places]
    place = batch.places // columns * sides + document - 1
    sums = found.new_zeros(rows * sides).index_add(0, place, found)
    lengths = torch.zeros_like(sums).index_add(0, place, torch.ones_like(found))
    shape = (rows, sides // 2, 2)
    return sums.view(shape), lengths.view(shape)


def _logprobs(model: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    """log p(target) of hidden states (M, C): (M,)."""
    head = model.lm_head
    if type(head) in (nn.Linear, Linear):
        return token_logprobs(hidden, head.weight, targets, bias=head.bias)
    logits = model.logits(hidden)  # more than one matrix, such as one with an adapter
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(logits, targets, reduction="none")


class Pairs:
    """Pairs to learn from and pairs held out."""

    def __init__(self, given: Given, rows: PairRows, held: PairRows) -> None:
        self._given = given
        self._rows, self._held = rows, held
        self.row_len = rows.row_len
        self.rate = _RATE if given.settings.lora.rank is None else _ADAPTER_RATE

    def count(self) -> int:
        """Rows of an epoch."""
        return self._rows.count()

    def objective(self, plan: Plan, ranks: World) -> Preference:
        """Computes what the reference says of all pairs, or finds it in the run folder.

        Raises IntegrityError when what lies there is of another model.
        """
        given, settings = self._given, self._given.settings
        device = given.model.model.embed_tokens.weight.device
        reference = Reference(
            given.model, pick_dtype(settings.dtype, device), given.place,
            {"corpus": given.corpus.fingerprint, "seq_len": given.seq_len, "seed": settings.seed},
        )  # fmt: skip
        told = reference.of(
            {"train": self._rows, "val": self._held}, reply_logprobs, plan.micro_batch, ranks
        )
        train = PairBatches(
            self._rows, told["train"], plan.rows_per_step, plan.micro_batch, rank=ranks.rank,
            ranks=ranks.size,
        )  # fmt: skip
        count = min(self._held.count(), max(1, plan.eval_tokens // self.row_len))
        held = [self._held.row(self._held.pairs_of(0, number)) for number in range(count)]
        validation = [
            with_reference(held[begin : begin + plan.micro_batch], told["val"])
            for begin in range(0, count, plan.micro_batch)
        ]
        objective = Preference(settings.preference, train, validation)
        objective.check_start(reference.model)
        return objective


def preferences(given: Given) -> Pairs:
    """The pairs of a corpus; what is left out is told. Raises DataError when there is none,
    IntegrityError when they do not fit the model."""
    settings, corpus = given.settings, given.corpus
    check_ids(corpus, given.model.config.vocab_size)
    check_conversations(corpus)
    splits = {name: corpus.split(name) for name in ("train", "val")}
    user_turn = corpus.tokenizer.template.user_turn
    train, held = (find_pairs(split, given.seq_len, user_turn) for split in splits.values())
    if not train.pairs:
        hint = "--objective dpo learns from rows with prompt, chosen and rejected, or from good and"
        raise DataError(
            "the training split holds no preference pair" + _left_out([train], given.seq_len),
            hint="use a model with a longer context" if train.long
            else f"{hint} bad replies to one prompt",
        )  # fmt: skip
    pairs, kept, where = train.pairs, held.pairs, splits["val"]
    if not kept and corpus.manifest.info["settings"]["val_fraction"]:
        pairs, kept = parted(splits["train"], train.pairs, settings.seed)
        where = splits["train"]
    console.say(
        f"{'pairs:':<12}{len(pairs):,} to learn from, {len(kept):,} held out"
        + _left_out([train, held], given.seq_len)
    )
    if not kept:
        console.notice("no pair is held out, so nothing tells when to stop: more pairs would do")
    rows = (
        PairRows(split, each, _SIDES * given.seq_len, settings.seed)
        for split, each in ((splits["train"], pairs), (where, kept))
    )
    return Pairs(given, *rows)


def _left_out(found: list[Found], seq_len: int) -> str:
    """What of the corpus is not learned from, in words."""
    alone, none = "without a good one to the same prompt left out", "no pair left out"
    words = {
        "cut": ("without its oldest turns", "without their oldest turns"),
        "long": (f"of more than {seq_len} tokens left out",) * 2,
        "same": ("in which no reply differs left out",) * 2,
        "alone": (f"bad reply {alone}", f"bad replies {alone}"),
        "plain": (f"conversation or text that is {none}",
                  f"conversations or texts that are {none}"),
    }  # fmt: skip
    counts = {name: sum(getattr(each, name) for each in found) for name in words}
    said = [console.counted(count, *words[name]) for name, count in counts.items() if count]
    return "".join(f"; {each}" for each in said)
