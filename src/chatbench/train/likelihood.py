"""Weighted next-token likelihood: weights one in pretraining, the replies' in finetuning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbench.model.head import linear_cross_entropy
from chatbench.model.kernels.compiled import Linear
from chatbench.model.rows import RowsHead
from chatbench.model.transformer import GPT
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.batches import Batches, Rows, held_out
from chatbench.train.objective import Batch, GlobalBatch, Loss
from chatbench.train.parallel import World
from chatbench.train.plan import Plan


class Likelihood:
    """Cross-entropy over the tokens that count."""

    summed = ("text_nats", "text_bytes")
    of_text = True
    on_policy = False

    def __init__(
        self, train: Batches | None, validation: list[Batch], tokenizer: Tokenizer
    ) -> None:
        """Without `train` it only measures."""
        self._train = train
        self._bytes = torch.tensor([len(b) for b in tokenizer.token_bytes])
        self._validation = validation

    def batch(self, step: int) -> GlobalBatch:
        assert self._train is not None
        return self._train.batch(step)

    def validation(self) -> Iterator[Batch]:
        return iter(self._validation)

    def loss(self, model: GPT, batch: Batch) -> Loss:
        batch = batch.counted()
        assert batch.places is not None
        hidden = model(batch.ids, packing=batch.packing).flatten(0, 1)
        targets, weights = batch.targets.flatten(), batch.weights.flatten()
        head = model.lm_head
        if type(head) in (nn.Linear, Linear, RowsHead):
            # Only rows that count reach the head: on dialogues that is half of the largest product.
            loss = linear_cross_entropy(
                hidden, head.weight, targets, weights, bias=head.bias, rows=batch.places
            )
            total, losses = loss.total, loss.nll
        else:  # more than one matrix, such as one with an adapter
            total, losses = _whole(model, hidden, targets, weights)
        metrics: dict[str, float] = {}
        if not torch.is_grad_enabled():
            bytes_of = self._bytes[targets[batch.places].cpu()]
            spelled = bytes_of > 0  # control tokens stand for no text
            metrics["text_nats"] = float(losses[batch.places].cpu()[spelled].double().sum())
            metrics["text_bytes"] = float(bytes_of.sum())
        return Loss(total, batch.weight, metrics)

    def report(self, sums: Mapping[str, float]) -> dict[str, float]:
        size = sums.get("text_bytes")
        return {"bits_per_byte": sums["text_nats"] / size / math.log(2)} if size else {}


@dataclass(frozen=True)
class Texts:
    """Rows to learn from and rows held out."""

    rows: Rows
    held: Rows
    tokenizer: Tokenizer

    def count(self) -> int:
        """Rows of an epoch."""
        return self.rows.count()

    def objective(self, plan: Plan, ranks: World) -> Likelihood:
        batches = Batches(
            self.rows, plan.rows_per_step, plan.micro_batch, rank=ranks.rank, ranks=ranks.size
        )
        held = held_out(self.held, plan.micro_batch, plan.eval_tokens)
        return Likelihood(batches, held, self.tokenizer)


def _whole(model: GPT, hidden: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """All logits at once: the summed loss (), and every row's (N,)."""
    logits = model.logits(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (losses * weights).sum(), losses
