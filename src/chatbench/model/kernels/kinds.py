"""Kinds of calls: what one kernel is chosen for."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from chatbench.model.kernels.task import Task

Phase = Literal[
    "training",
    "prefill",
    "prefill on a cache",
    "decode, one row",
    "decode, even rows",
    "decode, ragged rows",
]
Size = Literal["small", "medium", "large"]

# New tokens up to which a call on a cache counts as decoding.
DECODE_TOKENS = 16
# Tokens from which products beat SDPA: with narrow heads, with wide ones, and with grouped heads
# or bfloat16 units; tokens to which they do, and bytes of probabilities that a call may keep.
NARROW_FROM, WIDE_FROM, SOON_FROM, PRODUCTS_TO = 512, 256, 128, 1024
WIDE = 128
PRODUCTS_BYTES = 1 << 28
# Packed rows from which taking documents apart repays the copies.
PACKED_FROM = 320
# From this reach on, reading each key once for its group, or each row apart, repays its overhead.
FAR = 768


class Kind(NamedTuple):
    """A class of calls that one kernel serves. `device` and `ordinal` name the device.

    `size`: of T without a cache, of S with one. `group`: query heads on a key-value head.
    `window`: "none", "wide" or, where half of T tokens or less is seen, "narrow". `traced`: under
    torch.compile.
    """

    device: str
    ordinal: int | None
    phase: Phase
    size: Size
    dtype: torch.dtype
    width: int
    group: int
    packed: bool
    window: str
    traced: bool

    @property
    def place(self) -> torch.device:
        """The device."""
        return torch.device(
            self.device if self.ordinal is None else f"{self.device}:{self.ordinal}"
        )

    def describe(self) -> str:
        """Size, what is hidden and number format, in words."""
        if self.phase in ("training", "prefill"):
            least = _least(self.packed, self.group, self.width, self.dtype)
            sizes = {
                "small": f"under {least} tokens",
                "medium": f"{least} to {PRODUCTS_TO} tokens",
                "large": f"over {PRODUCTS_TO} tokens, or very many rows",
            }
        else:
            sizes = {"small": f"reach under {FAR}", "large": f"reach from {FAR} on"}
        words = [sizes[self.size]]
        words += ["packed documents"] if self.packed else []
        words += [f"{self.window} window"] if self.window != "none" else []
        words += [str(self.dtype).removeprefix("torch.")]
        return ", ".join(words)


def kind_of(task: Task) -> Kind:
    """The kind of a call, from shapes and what the host knows; the device is not asked."""
    rows, new, heads, width = task.q.shape
    group = heads // task.k.shape[2]
    phase: Phase
    size: Size
    if task.reach is not None and task.reach.longest > 0:
        size = "small" if task.k.shape[1] < FAR else "large"
        if new > DECODE_TOKENS:
            phase = "prefill on a cache"
        elif task.reach.even:
            phase = "decode, one row" if rows == 1 else "decode, even rows"
        else:
            phase = "decode, ragged rows"
    else:
        learning = torch.is_grad_enabled() and any(
            x.requires_grad for x in (task.q, task.k, task.v)
        )
        phase = "training" if learning else "prefill"
        kept = rows * heads * new * new // 2 * task.q.element_size()
        fits = new <= PRODUCTS_TO and kept <= PRODUCTS_BYTES
        least = _least(task.packing is not None, group, width, task.q.dtype)
        size = "small" if new < least else "medium" if fits else "large"
    window = "none" if task.window is None else "wide" if 2 * task.window > new else "narrow"
    return Kind(
        task.q.device.type, task.q.device.index, phase, size, task.q.dtype, width,
        group, task.packing is not None, window,
        torch.compiler.is_compiling(),
    )  # fmt: skip


def _least(packed: bool, group: int, width: int, dtype: torch.dtype) -> int:
    """Tokens from which a row is no longer small."""
    if packed:
        return PACKED_FROM
    if group > 1 or dtype == torch.bfloat16:
        return SOON_FROM
    return WIDE_FROM if width >= WIDE else NARROW_FROM
