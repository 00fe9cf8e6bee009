"""Likelihood of given tokens: every token is scored once, with as much context as fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from chatbench.model.transformer import GPT


class _Window(NamedTuple):
    sequence: int
    inputs: list[int]
    targets: list[int]
    scored_from: int


@torch.inference_mode()
def token_losses(
    model: GPT, sequences: Iterable[Sequence[int]], prefix: Sequence[int], batch_size: int
) -> Iterator[Tensor]:
    """-ln p of each token of each sequence, float64 (length,), given the tokens before it.

    With an empty `prefix` the first token has nothing to follow from and scores 0. Sequences
    longer than the context are read in windows; after the first, each scores its second half.
    The result does not depend on the batch but for rounding.
    """
    context = model.config.context
    pending: list[_Window] = []
    results: dict[int, list[Tensor]] = {}
    lengths: list[int] = []
    done = 0
    for number, sequence in enumerate(sequences):
        lengths.append(len(sequence))
        results[number] = []
        pending += _windows(number, [*prefix, *sequence], len(prefix), context)
        while len(pending) >= batch_size:
            _score(model, pending[:batch_size], results)
            del pending[:batch_size]
        waiting = pending[0].sequence if pending else number + 1
        while done < waiting:
            yield _joined(results.pop(done), lengths[done])
            done += 1
    for begin in range(0, len(pending), batch_size):
        _score(model, pending[begin : begin + batch_size], results)
    for number in range(done, len(lengths)):
        yield _joined(results.pop(number), lengths[number])


def _windows(number: int, ids: list[int], skipped: int, context: int) -> Iterator[_Window]:
    scored = max(1, skipped)
    while scored < len(ids):
        begin = max(0, scored - context // 2) if scored > context - 1 else 0
        end = min(len(ids) - 1, begin + context)
        yield _Window(number, ids[begin:end], ids[begin + 1 : end + 1], scored - begin - 1)
        scored = end + 1


def _score(model: GPT, windows: list[_Window], results: dict[int, list[Tensor]]) -> None:
    device = model.model.embed_tokens.weight.device
    width = max(len(w.inputs) for w in windows)
    inputs = torch.tensor(
        [w.inputs + [0] * (width - len(w.inputs)) for w in windows], device=device
    )
    hidden = model(inputs)
    for row, window in zip(hidden, windows, strict=True):
        length = len(window.inputs)
        logits = model.logits(row[window.scored_from : length]).float()
        targets = torch.tensor(window.targets[window.scored_from :], device=device)
        losses = F.cross_entropy(logits, targets, reduction="none")
        results[window.sequence].append(losses.cpu().double())


def _joined(parts: list[Tensor], length: int) -> Tensor:
    losses = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
    return F.pad(losses, (length - len(losses), 0))
