"""What the model says of texts that were held out, measured by all ranks together."""

from __future__ import annotations

import math

import torch

from chatbench.model.transformer import GPT
from chatbench.train.objective import Objective
from chatbench.train.parallel import World


@torch.no_grad()
def validation(
    model: GPT, objective: Objective, world: World, rows: int, device: torch.device
) -> dict[str, float]:
    """`val_loss` (nats a token) and, where bytes are known, `val_bits_per_byte`, by batches of at
    most `rows` rows; nothing where nothing is held out."""
    total = weight = nats = size = 0.0
    parts = (part for batch in objective.validation() for part in batch.cut(rows))
    with world.whole("validating"):
        for batch in world.share(parts):
            loss = objective.loss(model, batch.to(device))
            total += float(loss.total)
            weight += loss.weight
            nats += loss.metrics["text_nats"]
            size += loss.metrics["text_bytes"]
    total, weight, nats, size = world.sums((total, weight, nats, size))
    if not weight:
        return {}
    values = {"val_loss": total / weight}
    if size:
        values["val_bits_per_byte"] = nats / size / math.log(2)
    return values
