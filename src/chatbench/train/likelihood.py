"""Weighted next-token likelihood: weights one in pretraining, the replies' in finetuning."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from chatbench.model.transformer import GPT
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.batches import Batches
from chatbench.train.objective import Batch, GlobalBatch, Loss


class Likelihood:
    """Cross-entropy over the tokens that count."""

    def __init__(self, train: Batches, validation: list[Batch], tokenizer: Tokenizer) -> None:
        self._train = train
        self._bytes = torch.tensor([len(b) for b in tokenizer.token_bytes])
        self._validation = validation

    def batch(self, step: int) -> GlobalBatch:
        return self._train.batch(step)

    def validation(self) -> Iterator[Batch]:
        return iter(self._validation)

    def loss(self, model: GPT, batch: Batch) -> Loss:
        hidden = model(batch.ids, packing=batch.packing)
        # Only rows that count reach the head: on dialogues that is half of the largest product.
        counted = batch.weights.flatten().nonzero().squeeze(1)
        logits = model.logits(hidden.flatten(0, 1)[counted])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(logits, batch.targets.flatten()[counted], reduction="none")
        weights = batch.weights.flatten()[counted]
        metrics = {}
        if not torch.is_grad_enabled():
            bytes_of = self._bytes[batch.targets.flatten()[counted].cpu()]
            spelled = bytes_of.to(losses.device) > 0  # control tokens stand for no text
            metrics["text_nats"] = float(losses[spelled].double().sum())
            metrics["text_bytes"] = float(bytes_of.sum())
        return Loss((losses * weights).sum(), float(weights.sum()), metrics)
