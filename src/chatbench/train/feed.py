"""Batches on their way to the device: on CUDA the next one is made while this one is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from chatbench.train.objective import Batch, GlobalBatch

Prepare = Callable[[Batch], Batch]


class Feed:
    """Global batches by step, on the host; one step ahead in a thread where `ahead`.

    Batches are a function of the step alone, so who makes them and when changes nothing; those that
    hang on the weights as well must not be made `ahead`. `prepare` is applied to each micro-batch,
    in the thread. On a machine with CUDA tensors lie in pinned memory, from where they are copied
    while the GPU computes.
    """

    def __init__(
        self,
        make: Callable[[int], GlobalBatch],
        device: torch.device,
        prepare: Prepare | None = None,
        *,
        ahead: bool | None = None,
    ) -> None:
        self._make = make
        self._prepare = prepare
        self._pin = device.type == "cuda"
        ahead = self._pin if ahead is None else ahead
        self._thread = ThreadPoolExecutor(1, "batches") if ahead else None
        self._coming: tuple[int, Future[GlobalBatch]] | None = None

    def batch(self, step: int) -> GlobalBatch:
        """The batch of a step; raises what making it raised."""
        if self._thread is None:
            return self._ready(step)
        coming = self._coming
        if coming is None or coming[0] != step:
            coming = (step, self._thread.submit(self._ready, step))
        batch = coming[1].result()
        self._coming = (step + 1, self._thread.submit(self._ready, step + 1))
        return batch

    def _ready(self, step: int) -> GlobalBatch:
        batch = self._make(step)
        parts = batch.parts
        if self._prepare is not None:
            parts = [self._prepare(part) for part in parts]
        if self._pin:
            parts = [part.pinned() for part in parts]
        return batch._replace(parts=parts)

    def close(self) -> None:
        """Wait for the thread; the batch that nobody asked for is dropped."""
        self._coming = None
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
