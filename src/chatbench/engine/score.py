"""Likelihood of given tokens: every token is scored once, with as much context as fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from chatbench.model.transformer import GPT

_LOGITS_AT_ONCE = 1 << 24


class _Window(NamedTuple):
    sequence: int
    inputs: list[int]
    targets: list[int]
    scored_from: int


@torch.inference_mode()
def token_losses(
    model: GPT,
    sequences: Iterable[Sequence[int]],
    prefix: Sequence[int],
    batch_size: int,
    context: int | None = None,
    stride: int | None = None,
) -> Iterator[Tensor]:
    """-ln p of each token of each sequence, float64 (length,), given the tokens before it.

    With an empty `prefix` the first token has nothing to follow from and scores 0. Sequences
    longer than `context` (the model's, unless fewer are asked for) are read in windows; after the
    first, each scores `stride` tokens (half the context), the last one what is left, with as much
    before them as fits. The result does not depend on the batch but for rounding.
    """
    context = min(context or model.config.context, model.config.context)
    stride = min(stride or usual_stride(context), context)
    pending: list[_Window] = []
    results: dict[int, list[Tensor]] = {}
    lengths: list[int] = []
    done = 0
    for number, sequence in enumerate(sequences):
        lengths.append(len(sequence))
        results[number] = []
        pending += _windows(number, [*prefix, *sequence], len(prefix), context, stride)
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


@torch.inference_mode()
def continuation_losses(
    model: GPT, sequences: Sequence[tuple[Sequence[int], int]], batch_size: int
) -> list[Tensor]:
    """For each (ids, begin) -ln p of ids[begin:], float64, each given all before it.

    `begin` is at least 1. What is longer than the context loses its beginning. Rows of like length
    are computed together; the result does not depend on the company but for rounding.
    """
    context = model.config.context
    windows = []
    for number, (ids, begin) in enumerate(sequences):
        cut = max(0, len(ids) - 1 - context)
        kept = list(ids[cut:])
        windows.append(_Window(number, kept[:-1], kept[1:], max(begin - cut, 1) - 1))
    windows.sort(key=lambda window: -len(window.inputs))
    results: dict[int, list[Tensor]] = {number: [] for number in range(len(sequences))}
    for at in range(0, len(windows), batch_size):
        _score(model, windows[at : at + batch_size], results)
    return [results[number][0] for number in range(len(sequences))]


def usual_stride(context: int) -> int:
    """Tokens that a window after the first scores when nothing is asked for."""
    return context - context // 2 + 1 if context > 1 else 1


def _windows(
    number: int, ids: list[int], skipped: int, context: int, stride: int
) -> Iterator[_Window]:
    scored = max(1, skipped)
    while scored < len(ids):
        begin = 0 if scored < context else scored - 1 - (context - stride)
        end = min(len(ids) - 1, begin + context)
        begin = max(0, end - context)
        yield _Window(number, ids[begin:end], ids[begin + 1 : end + 1], scored - begin - 1)
        scored = end + 1


def _score(model: GPT, windows: list[_Window], results: dict[int, list[Tensor]]) -> None:
    device = model.model.embed_tokens.weight.device
    width = max(len(w.inputs) for w in windows)
    inputs = torch.tensor(
        [w.inputs + [0] * (width - len(w.inputs)) for w in windows], device=device
    )
    hidden = model(inputs)
    # Only what is scored reaches the head, the largest product of a small model.
    kept = torch.cat(
        [row[w.scored_from : len(w.inputs)] for row, w in zip(hidden, windows, strict=True)]
    )
    wanted = [target for w in windows for target in w.targets[w.scored_from :]]
    targets = torch.tensor(wanted, dtype=torch.long, device=device)
    step = max(1, _LOGITS_AT_ONCE // model.config.vocab_size)
    losses = [
        F.cross_entropy(
            model.logits(kept[at : at + step]).float(), targets[at : at + step], reduction="none"
        )
        for at in range(0, len(kept), step)
    ]
    joined = torch.cat([*losses, kept.new_zeros(0, dtype=torch.float32)]).cpu().double()
    at = 0
    for window in windows:
        end = at + len(window.inputs) - window.scored_from
        results[window.sequence].append(joined[at:end])
        at = end


def _joined(parts: list[Tensor], length: int) -> Tensor:
    losses = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
    return F.pad(losses, (length - len(losses), 0))
