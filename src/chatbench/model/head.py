"""The output head and its loss, a few rows at a time, so that all logits are never held at once.

The logits of a training batch are by far its largest tensor (N·V against N·C). What the loss needs
of them is one number a row; what its gradient needs are two sums over rows, hidden's and the
weight's. Both are made from a chunk of rows while its logits are still warm, in the forward pass.
Legend: N rows, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from chatbench.model.kernels import passes

# Bytes of float32 logits in a chunk: on a CPU what its caches hold, found by measuring. Fewer rows
# than the smallest chunk lose more by passing over the summed gradient of the matrix again.
_CPU_CHUNK_BYTES = 4 << 20
_GPU_CHUNK_BYTES = 512 << 20
_SMALLEST_CHUNK = 128


class HeadLoss(NamedTuple):
    """`total` (): Σ weight·(nll + z_loss·log²Z), differentiable; `z` (): the part of it that is
    z-loss; `nll` (N,): each row's negative log-likelihood, 0 where a row was skipped. The last two
    are detached (`token_logprobs` is the differentiable one)."""

    total: Tensor
    z: Tensor
    nll: Tensor


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    rows: Tensor | None = None,
    chunk: int | None = None,
    z_loss: float = 0.0,
) -> HeadLoss:
    """Weighted cross-entropy of hidden·weightᵀ + bias, summed; in nats.

    hidden (N, C), weight (V, C), bias (V,), targets (N,) int64, weights (N,) float, None for ones.
    Rows of weight zero never meet the weight matrix. `rows` (M,) int64 says which rows count when
    the caller knows, each once (finding out makes the host wait for a GPU); weights elsewhere are
    not read.
    `chunk`: rows at a time, by default what suits the device. `z_loss`: factor of log²Z
    (Chowdhery et al. 2022, "PaLM", 5). Logits are computed in hidden's number format, everything
    after them in float32 (float64 for float64). Not differentiable twice.
    """
    if rows is None and weights is not None:
        rows = weights.nonzero().squeeze(1)
    if rows is not None and len(rows) == len(hidden):
        rows = None
    learning = torch.is_grad_enabled()
    total, z, nll = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, weights, rows, chunk or chunk_rows(weight), z_loss, learning
    )
    return HeadLoss(total, z, nll)


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """log p(target) of each row (N,), in nats, differentiable; the backward pass computes the
    logits again, chunk by chunk. Shapes as in `linear_cross_entropy`."""
    found: Tensor = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, chunk or chunk_rows(weight)
    )
    return found


def chunk_rows(weight: Tensor) -> int:
    """Rows whose logits are worth holding at once, by the device of `weight` (V, C)."""
    size = _CPU_CHUNK_BYTES if weight.device.type == "cpu" else _GPU_CHUNK_BYTES
    return max(_SMALLEST_CHUNK, size // (4 * weight.shape[0]))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(hidden, weight, bias)


def _places(count: int, rows: Tensor | None, chunk: int) -> Iterator[slice | Tensor]:
    """The rows of each chunk, as something to index with."""
    if rows is not None:
        yield from (part for part in torch.split(rows, chunk) if len(part))
    else:
        yield from (slice(at, min(at + chunk, count)) for at in range(0, count, chunk))


class _Sums:
    """Gradients summed over chunks: hidden's in place, the matrix's and bias's in float32."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, bool, bool],
        wide: torch.dtype, *, everywhere: bool,
    ) -> None:  # fmt: skip
        make = torch.empty_like if everywhere else torch.zeros_like
        self.hidden = make(hidden) if wanted[0] else None
        self.weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if wanted[2] and bias is not None else None
        self._matrix = weight

    def add(
        self, place: slice | Tensor, slope: Tensor, factor: Tensor | None, seen: Tensor
    ) -> None:
        """`slope` (n, V): d loss / d logits before each row's `factor` (n,); `seen` (n, C)."""
        if factor is not None and self.bias is not None:
            self.bias += factor @ slope
        elif self.bias is not None:
            self.bias += slope.sum(0)
        # The factor scales matrices of width C, V is many times wider.
        slope = slope.to(seen.dtype)
        if self.hidden is not None:
            back = slope @ self._matrix
            self.hidden[place] = back if factor is None else back * factor[:, None].to(back.dtype)
        if self.weight is not None:
            told = seen if factor is None else seen * factor[:, None].to(seen.dtype)
            if self.weight.dtype == slope.dtype:
                self.weight.addmm_(slope.T, told)
            else:
                self.weight += slope.T @ told

    def scaled(self, by: Tensor | None = None) -> tuple[Tensor | None, ...]:
        found = (self.hidden, self.weight, self.bias)
        return found if by is None else tuple(None if g is None else g * by for g in found)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
        weights: Tensor | None, rows: Tensor | None, chunk: int, z_loss: float, learning: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        wide = torch.promote_types(hidden.dtype, torch.float32)
        wanted = tuple(need and learning for need in ctx.needs_input_grad[:3])
        nll = torch.zeros(len(hidden), dtype=wide, device=hidden.device)
        log_z = torch.zeros_like(nll) if z_loss else None
        sums = _Sums(hidden, weight, bias, wanted, wide, everywhere=rows is None)  # type: ignore[arg-type]
        for place in _places(len(hidden), rows, chunk):
            seen = hidden[place]
            aim = targets[place][:, None]
            logits = _logits(seen, weight, bias)
            if any(wanted) and log_z is None and passes.softens(logits):
                slope = logits.to(wide)
                nll[place] = passes.slopes_(slope, targets[place])
            else:
                logp = torch.log_softmax(logits, -1, dtype=wide)
                hit = logp.gather(1, aim)
                nll[place] = -hit.squeeze(1)
                if log_z is not None:
                    log_z[place] = (logits.gather(1, aim).to(wide) - hit).squeeze(1)
                if not any(wanted):
                    continue
                slope = logp.exp_()
                if log_z is not None:
                    slope *= (1 + 2 * z_loss * log_z[place])[:, None]
                slope.scatter_add_(1, aim, slope.new_full((1, 1), -1.0).expand_as(aim))
                del logp
            del logits
            sums.add(place, slope, None if weights is None else weights[place].to(wide), seen)
            del slope
        z = nll.new_zeros(()) if log_z is None else z_loss * _weighted(log_z.square(), weights)
        ctx.sums = sums if any(wanted) else None
        ctx.types = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        total = _weighted(nll, weights) + z if z_loss else _weighted(nll, weights)
        ctx.mark_non_differentiable(z, nll)
        ctx.set_materialize_grads(False)
        return total, z, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *rest: None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 6
        if grad is None:
            return None, None, None, *nothing
        return *_cast(ctx.sums.scaled(grad), ctx.types), *nothing


def _weighted(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.sum() if weights is None else (values * weights).sum()


def _cast(gradients: tuple[Tensor | None, ...], types: Any) -> Iterator[Tensor | None]:
    for gradient, dtype in zip(gradients, types, strict=True):
        yield None if gradient is None else gradient.to(dtype)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        found = torch.zeros(len(hidden), dtype=wide, device=hidden.device)
        for place in _places(len(hidden), None, chunk):
            logits = _logits(hidden[place], weight, bias)
            logp = torch.log_softmax(logits, -1, dtype=wide)
            found[place] = logp.gather(1, targets[place][:, None]).squeeze(1)
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.chunk = chunk
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        sums = _Sums(hidden, weight, bias, wanted, grad.dtype, everywhere=True)
        for place in _places(len(hidden), None, ctx.chunk):
            seen, aim = hidden[place], targets[place][:, None]
            slope = torch.softmax(_logits(seen, weight, bias), -1, dtype=grad.dtype)
            slope.scatter_add_(1, aim, slope.new_full((1, 1), -1.0).expand_as(aim))
            sums.add(place, slope, -grad[place], seen)
        types = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return *_cast(sums.scaled(), types), None, None
