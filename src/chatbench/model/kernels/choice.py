"""Which kernel computes attention: chosen once for each kind of call, tried out, remembered."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from chatbench import console
from chatbench.errors import UsageError
from chatbench.model.kernels import availability
from chatbench.model.kernels.compiled import describe_linear
from chatbench.model.kernels.documents import by_document
from chatbench.model.kernels.fused import row_by_row, sdpa_attention
from chatbench.model.kernels.kinds import Kind, Phase, Size, kind_of
from chatbench.model.kernels.products import products_attention, products_decode
from chatbench.model.kernels.reference import reference_kernel
from chatbench.model.kernels.selftest import fault_of
from chatbench.model.kernels.task import Task
from chatbench.model.kernels.varlen import flash3_attention, varlen_attention

FORCE = "CHATBENCH_ATTENTION"
_log = logging.getLogger("chatbench")


class Backend(NamedTuple):
    """`unfit` says why a kind of call is not for it, or "". What is not `trusted` is tried out on
    a small case before its first use."""

    run: Callable[[Task], Tensor]
    unfit: Callable[[Kind], str]
    trusted: bool = True


class Choice(NamedTuple):
    """One line of `describe_choices`; phase "not used" tells of what is not."""

    phase: str
    shape: str
    backend: str
    reason: str


def _any(kind: Kind) -> str:
    return ""


def _run_products(task: Task) -> Tensor:
    if task.reach is None or task.k.shape[1] == task.q.shape[1]:
        return products_attention(task)
    return products_decode(task)


BACKENDS: dict[str, Backend] = {
    "sdpa": Backend(sdpa_attention, _any),
    "products": Backend(_run_products, availability.products),
    "documents": Backend(lambda task: by_document(task, compute), availability.documents),
    "rows": Backend(lambda task: row_by_row(task, compute), availability.rows),
    "varlen": Backend(varlen_attention, availability.varlen, trusted=False),
    "flash3": Backend(flash3_attention, availability.flash3, trusted=False),
    "triton": Backend(availability.run_triton, availability.triton, trusted=False),
    "reference": Backend(reference_kernel, availability.reference),
}
_chosen: dict[tuple[Kind, str], Choice] = {}
_broken: dict[tuple[str, Kind], str] = {}


def compute(task: Task) -> Tensor:
    """Attention by the kernel chosen for this kind of call."""
    kind = kind_of(task)
    return BACKENDS[_choose(*kind)].run(task)


def _choose(*parts: object) -> str:
    """The name of a backend. Takes a Kind apart, for compilers see through plain constants only."""
    kind = Kind(*parts)  # type: ignore[arg-type]
    key = (kind, os.environ.get(FORCE, ""))
    if key not in _chosen:
        _chosen[key] = _decide(kind, key[1])
        heads = f"heads of {kind.width}, {kind.group} on a key-value head"
        _log.debug("attention on %s: %s (%s)", kind.device, " · ".join(_chosen[key]), heads)
    return _chosen[key].backend


# What torch.compiler.assume_constant_result sets. Calling that would load the whole compiler, as
# long a wait again as torch itself, in programs that compile nothing.
_choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _decide(kind: Kind, forced: str) -> Choice:
    if forced and forced not in BACKENDS:
        raise UsageError(
            f"{FORCE}={forced} names no kernel", hint=f"known: {', '.join(sorted(BACKENDS))}"
        )
    wishes = [(forced, f"asked for by {FORCE}")] if forced else []
    for name, reason in [*wishes, *_candidates(kind)]:
        fault = BACKENDS[name].unfit(kind) or _tried_out(name, kind)
        if not fault:
            return Choice(kind.phase, kind.describe(), name, reason)
        _log.debug("attention: %s · %s not used: %s", kind.phase, name, fault)
    raise AssertionError("sdpa takes every call")


def _tried_out(name: str, kind: Kind) -> str:
    """ "" or what is wrong with the kernel; said once for each kernel."""
    backend = BACKENDS[name]
    if backend.trusted:
        return ""
    if (name, kind) not in _broken:
        fault = fault_of(backend.run, kind)
        if fault and not any(known and other == name for (other, _), known in _broken.items()):
            console.notice(f"attention kernel {name} failed its test and is not used ({fault})")
        _broken[name, kind] = fault
    return _broken[name, kind]


def _candidates(kind: Kind) -> Iterator[tuple[str, str]]:
    """Backends in the order of preference, each with the reason."""
    if kind.device == "cuda":
        yield from _on_cuda(kind)
    elif kind.device == "cpu":
        yield from _on_cpu(kind)
    yield "sdpa", _why_sdpa(kind)


def _on_cuda(kind: Kind) -> Iterator[tuple[str, str]]:
    if kind.phase in ("training", "prefill") and (kind.packed or kind.window != "none"):
        yield "flash3", "FlashAttention-3 is the fastest with documents and windows"
        yield "varlen", "FlashAttention over documents laid end to end, no mask"
    elif kind.phase == "decode, ragged rows":
        yield "triton", "reads each row to its own length, split over the whole GPU"


def _on_cpu(kind: Kind) -> Iterator[tuple[str, str]]:
    quick = kind.dtype != torch.bfloat16 or availability.fast_bfloat16()
    if kind.phase in ("training", "prefill"):
        if kind.packed and kind.size != "small":
            yield "documents", "each document by itself: its own square instead of the row's"
        elif kind.packed:
            return
        elif kind.size == "medium" and quick and kind.phase == "training":
            yield "products", "keeping the probabilities beats SDPA's backward pass"
        elif kind.window == "narrow" and quick:
            yield "products", "skips what lies outside the window"
    elif kind.phase.startswith("decode") and kind.size == "large":
        if kind.phase == "decode, ragged rows":
            yield "rows", "each row over its own tokens only"
        elif kind.phase == "decode, one row" and kind.group > 1:
            yield "products", "reads each key once for all heads that share it"


def _why_sdpa(kind: Kind) -> str:
    if kind.packed or kind.phase in ("prefill on a cache", "decode, ragged rows"):
        return "PyTorch's fused kernel, with a mask"
    return "PyTorch's fused kernel"


def describe_choices(device: torch.device) -> list[Choice]:
    """What computes each phase on this device, and what else there is and why it is not used.

    Phases are asked for with a common shape: heads of 64, two to a key-value head, bfloat16 on
    CUDA and float32 elsewhere.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    index = torch.cuda.current_device() if device.type == "cuda" else device.index
    usual: list[tuple[Phase, Size, bool, str]] = [
        ("training", "small", False, "none"),
        ("training", "medium", False, "none"),
        ("training", "large", False, "none"),
        ("training", "small", True, "none"),
        ("training", "medium", True, "none"),
        ("training", "medium", False, "narrow"),
        ("prefill", "medium", False, "none"),
        ("prefill", "medium", True, "none"),
        ("prefill on a cache", "large", False, "none"),
        ("decode, one row", "small", False, "none"),
        ("decode, one row", "large", False, "none"),
        ("decode, even rows", "large", False, "none"),
        ("decode, ragged rows", "small", False, "none"),
        ("decode, ragged rows", "large", False, "none"),
    ]  # fmt: skip
    lines = []
    for phase, size, packed, window in usual:
        kind = Kind(device.type, index, phase, size, dtype, 64, 2, packed, window, False)
        _choose(*kind)
        lines.append(_chosen[kind, os.environ.get(FORCE, "")])
    used = {line.backend for line in lines}
    if device.type == "cpu":
        lines += [Choice(*fields) for fields in describe_linear()]
    for name, title in availability.TITLES.items():
        if name not in used:
            lines.append(Choice("not used", "", title, _why_not(name, device, dtype, index)))
    return lines + [Choice("library", "", *fact) for fact in availability.libraries(device)]


def _why_not(name: str, device: torch.device, dtype: torch.dtype, index: int | None) -> str:
    """The first reason that stands against a backend where it would do best."""
    faults = {fault for (other, _), fault in _broken.items() if other == name and fault}
    if faults:
        return f"failed its test: {min(faults)}"
    phase: Phase = "decode, ragged rows" if name in ("triton", "rows") else "training"
    packed = name in ("varlen", "flash3", "documents")
    kind = Kind(device.type, index, phase, "medium", dtype, 64, 2, packed, "none", False)
    return BACKENDS[name].unfit(kind) or "another one is preferred in every phase here"
