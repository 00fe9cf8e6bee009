"""What the host learns of a step, and when: at once, or on CUDA one step late.

Asking a GPU for a number makes the host wait until all that was queued before is done, and the GPU
then waits for the host. A step later the number has long been there.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor


class Reading(NamedTuple):
    """Of step `step`: the summed loss, the weight it is to be divided by, the gradient norm.

    `refused`: the device did not take the step. `limit`: the largest norm it would have taken.
    `watched`: the warm-up was over.
    """

    step: int
    weight: float
    total: float
    norm: float
    refused: bool
    limit: float
    watched: bool


class _Sent(NamedTuple):
    step: int
    weight: float
    limit: float
    watched: bool
    values: Tensor
    arrived: torch.cuda.Event | None


class Readings:
    """Numbers on their way from the device, in the order of their steps."""

    def __init__(self, device: torch.device, *, late: bool | None = None) -> None:
        """`late`: keep the newest reading back until the next step (by default on CUDA)."""
        self.late = device.type == "cuda" if late is None else late
        self._sent: deque[_Sent] = deque()

    def put(
        self, step: int, weight: float, total: Tensor, norm: Tensor, refused: Tensor, limit: float,
        *, watched: bool,
    ) -> None:  # fmt: skip
        """Send total, norm and whether the step was refused, all (), on their way."""
        values = torch.stack((total, norm.to(total.dtype), refused.to(total.dtype)))
        arrived = None
        if values.device.type == "cuda":
            pinned = torch.empty(len(values), dtype=values.dtype, pin_memory=True)
            values = pinned.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._sent.append(_Sent(step, weight, limit, watched, values, arrived))

    def take(self, *, everything: bool = False) -> list[Reading]:
        """What there is to know, oldest first; `everything` waits for the newest step too."""
        kept = 1 if self.late and not everything else 0
        found = []
        while len(self._sent) > kept:
            sent = self._sent.popleft()
            if sent.arrived is not None:
                sent.arrived.synchronize()
            total, norm, refused = sent.values.tolist()
            found.append(
                Reading(
                    sent.step, sent.weight, total, norm, bool(refused), sent.limit, sent.watched
                )
            )
        return found
