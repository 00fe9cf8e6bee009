"""What the model says of texts that were held out, measured by all ranks together."""

from __future__ import annotations

import torch

from chatbench.model.transformer import GPT
from chatbench.train.objective import Objective
from chatbench.train.parallel import World


@torch.no_grad()
def validation(
    model: GPT, objective: Objective, world: World, rows: int, device: torch.device
) -> dict[str, float]:
    """`val_loss`, the mean, and what the objective reports besides (`val_...`), by batches of at
    most `rows` rows; nothing where nothing is held out."""
    total = weight = 0.0
    sums = dict.fromkeys(objective.summed, 0.0)
    parts = (part for batch in objective.validation() for part in batch.cut(rows))
    with world.whole("validating"):
        for batch in world.share(parts):
            loss = objective.loss(model, batch.to(device))
            total += float(loss.total)
            weight += loss.weight
            for name, value in loss.metrics.items():
                sums[name] += float(value)
    total, weight, *summed = world.sums((total, weight, *sums.values()))
    if not weight:
        return {}
    reported = objective.report(dict(zip(sums, summed, strict=True)))
    return {"val_loss": total / weight} | {f"val_{k}": v for k, v in reported.items()}
