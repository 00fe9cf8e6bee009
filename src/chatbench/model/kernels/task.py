"""What attention is asked for: the words that callers and kernels share.

Legend: B rows, T new tokens, S tokens in reach, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The list of documents is padded to a multiple of this many, so that few shapes occur.
_STARTS = 64


class AttentionSpec(NamedTuple):
    """`window`: a token sees itself and the window - 1 tokens before it; None sees all of them.

    `scale` multiplies q·k; None is 1/√D. Where it is not `causal`, a token sees all of its
    document, what comes after it too; then there is no window and no cache.
    """

    window: int | None = None
    scale: float | None = None
    causal: bool = True


class Packing:
    """Several documents in one row that cannot see each other.

    `document` (B, T): equal neighbours belong together. `position` (B, T): place in the document.
    Masks and boundaries are made once, by the first layer that asks.
    """

    def __init__(self, document: Tensor, position: Tensor, starts: Tensor | None = None) -> None:
        self.document = document
        self.position = position
        self._starts = starts
        self._lengths: list[list[int]] | None = None
        self._masks: dict[int | None, Tensor] = {}
        self.regroupings: dict[float, Any] = {}  # kept here by `documents`

    def map(self, change: Callable[[Tensor], Tensor]) -> Packing:
        """The same documents with every tensor changed, as by `Tensor.pin_memory`."""
        starts = None if self._starts is None else change(self._starts)
        return Packing(change(self.document), change(self.position), starts)

    def to(self, device: torch.device) -> Packing:
        """On that device; boundaries are counted first, where it costs no synchronisation."""
        if device == self.document.device:
            return self
        if self.document.device.type == "cpu":
            self.starts()
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def _opens(self) -> Tensor:
        """(B, T) bool: the first token of each document."""
        opens = torch.ones_like(self.document, dtype=torch.bool)
        opens[:, 1:] = self.document[:, 1:] != self.document[:, :-1]
        return opens

    def starts(self) -> Tensor:
        """Where documents begin in the rows laid end to end, then B·T until the length is a
        multiple of 64 and one: (N + 1,) int32."""
        if self._starts is None:
            with lasting():
                found = self._opens().flatten().nonzero().squeeze(1).to(torch.int32)
                padded = -(-len(found) // _STARTS) * _STARTS + 1
                starts = found.new_full((padded,), self.document.numel())
                starts[: len(found)] = found
                self._starts = starts
        return self._starts

    def lengths(self) -> list[list[int]]:
        """Lengths of the documents of each row, on the host."""
        if self._lengths is None:
            tokens = self.document.shape[1]
            rows = [row.nonzero().squeeze(1).tolist() for row in self._opens()]
            self._lengths = [
                [end - begin for begin, end in zip(row, [*row[1:], tokens], strict=True)]
                for row in rows
            ]
        return self._lengths

    def together(self) -> Tensor:
        """(B, 1, T, T) bool: which tokens are of one document."""
        run = self._opens().cumsum(1)
        return run[:, None, :, None] == run[:, None, None, :]

    def mask(self, window: int | None) -> Tensor:
        """(B, 1, T, T) bool: what each token sees."""
        if window in self._masks:
            return self._masks[window]
        with lasting():
            tokens = self.document.shape[1]
            same = self.together()
            made = same & causal_mask(tokens, tokens, window, same.device)
        # Compilers make equal things once by themselves, and cannot keep one from within a block
        # that is run twice.
        if not torch.compiler.is_compiling():
            self._masks[window] = made
        return made


class Reach:
    """How far each row of a cache reaches: made once for a forward, shared by its layers.

    `lengths` (B,): tokens each row already holds. `longest`: the largest of them, on the host.
    `held`: all of them on the host, where the caller has them.
    """

    def __init__(self, lengths: Tensor, longest: int, held: Sequence[int] | None = None) -> None:
        self.lengths = lengths
        self.longest = longest
        if held is None and lengths.device.type == "cpu":
            held = lengths.tolist()
        self._held = list(held) if held is not None else None
        self._at: dict[int, Tensor] = {}
        self._filled: dict[int, Tensor] = {}
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    @property
    def even(self) -> bool:
        """Whether all rows are known to hold the same number of tokens."""
        rows = len(self.lengths)
        known = self._held is not None and min(self._held) == self.longest
        return rows == 1 or self.longest == 0 or known

    @property
    def held(self) -> list[int]:
        """`lengths` on the host; asks the device when the caller did not say."""
        if self._held is None:
            self._held = self.lengths.tolist()
        return self._held

    def at(self, new: int) -> Tensor:
        """(B, T): places of new tokens in the cache."""
        if new not in self._at:
            offsets = torch.arange(new, device=self.lengths.device)
            self._at[new] = self.lengths[:, None] + offsets
        return self._at[new]

    def filled(self, new: int) -> Tensor:
        """(B,): tokens of each row once the new ones are there."""
        if new not in self._filled:
            self._filled[new] = self.lengths + new
        return self._filled[new]

    def mask(self, new: int, window: int | None) -> Tensor:
        """(B, 1, T, S) bool, or (1, 1, T, S) for even rows: what each new token sees of the
        S = longest + T places."""
        key = (new, window)
        if key not in self._masks:
            place = torch.arange(self.longest + new, device=self.lengths.device)
            at = self.at(new)[: 1 if self.even else None, :, None]
            seen = place <= at
            if window is not None:
                seen &= place > at - window
            self._masks[key] = seen[:, None]
        return self._masks[key]


class LayerCache(NamedTuple):
    """One layer's keys and values of B rows, (B, capacity, K, D), written in place.

    `lengths` and `longest` as in `Reach`; layers that share a `reach` share its masks.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    longest: int
    reach: Reach | None = None


class Task(NamedTuple):
    """One call of `attention`, its new tokens already in the cache.

    q (B, T, H, D); k, v (B, S, K, D): all that is in reach, which is the new tokens when there is
    no cache. `whole` holds keys and values of the cache to its full capacity.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    window: int | None
    scale: float
    packing: Packing | None = None
    reach: Reach | None = None
    whole: tuple[Tensor, Tensor] | None = None


def lasting() -> AbstractContextManager[object]:
    """For tensors that outlive the call: those made in inference mode cannot serve training."""
    # Asked in this order because compilers cannot see through the second question.
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return nullcontext()
    return torch.inference_mode(False)


def causal_mask(new: int, reach: int, window: int | None, device: torch.device) -> Tensor:
    """(T, S) bool: the last T of S tokens, each with itself and what comes before it."""
    seen = torch.ones(new, reach, dtype=torch.bool, device=device).tril_(reach - new)
    if window is not None:
        seen &= torch.ones_like(seen).triu_(reach - new - window + 1)
    return seen
