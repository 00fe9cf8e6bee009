"""What lies between the products of a training step, in one walk through memory each, by the C
extension where there is one: RMSNorm, SwiGLU, rotary positions with the norm of heads, the softmax
of attention and of the head, and their gradients.

torch computes a norm in five walks and a rotation in six. Numbers are float32 or bfloat16 in memory
and float32 between. Results do not depend on the number of threads. Where the extension does not
serve, `serves` says so and the caller takes torch's own operations, which are the definition.
Legend: B rows, T tokens, H heads, D head width, C width, N rows of logits, V vocabulary.
"""

from __future__ import annotations

import os
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from chatbench.errors import UsageError
from chatbench.model.kernels.compiled import openmp_threads

FORCE = "CHATBENCH_PASSES"
MOST_HEAD = 512  # as in the extension
_BLOCK_ROWS = 32  # as in the extension
_KINDS = {torch.float32: 0, torch.bfloat16: 1}
# Numbers that a thread takes at once.
_PIECE = 8192
_NO_STRIDES = (0, 0, 0)
_ADDRESSES = ("x", "second", "upstream", "weight", "out", "out_second", "scale", "shares", "sum",
              "cosine", "sine", "targets", "losses")  # fmt: skip
_SIZES = ("rows", "width", "tokens", "heads", "position_rows", "group", "before")


@cache
def _extension() -> ModuleType | None:
    try:
        from chatbench.model.kernels import _train
    except ImportError:
        return None
    _train.share_threads(openmp_threads())
    return _train


@cache
def why_not() -> str:
    """Why the extension does not compute on this machine, or "" when it does.

    CHATBENCH_PASSES, read once, may say "compiled" or "torch". Raises UsageError for other names.
    """
    forced = os.environ.get(FORCE, "")
    if forced not in ("", "compiled", "torch"):
        raise UsageError(f"{FORCE}={forced} names no way", hint="known: compiled, torch")
    if forced == "torch":
        return f"not asked for by {FORCE}"
    extension = _extension()
    if extension is None:
        return "not built: no C compiler was there when chatbench was installed"
    return "" if extension.vectors() else "of no use to a processor without AVX2"


def serves(*tensors: Tensor) -> bool:
    """Whether a step of training with these is for the extension: numbers of one format that it
    knows, on a CPU, and a gradient is wanted."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    first = tensors[0]
    if not first.is_cpu or first.dtype not in _KINDS or not first.numel():
        return False
    if not any(x.requires_grad for x in tensors) or any(x.dtype != first.dtype for x in tensors):
        return False
    # Other types are quantised weights, or tracers that see through torch's operations only.
    if any(type(x) not in (Tensor, torch.nn.Parameter) for x in tensors):
        return False
    return not why_not()


def _run(
    name: str, count: int, piece: int, kind: torch.dtype, *, eps: float = 0.0,
    at: tuple[int, ...] = _NO_STRIDES, to: tuple[int, ...] = _NO_STRIDES,
    back: tuple[int, ...] = _NO_STRIDES, fast: bool = True, threads: int | None = None,
    **given: Any,
) -> None:  # fmt: skip
    extension = _extension()
    assert extension is not None
    places = tuple(0 if given.get(n) is None else given[n].data_ptr() for n in _ADDRESSES)
    sizes = tuple(given.get(n, 0) for n in _SIZES)
    threads = torch.get_num_threads() if threads is None else threads
    extension.run(
        extension.PASSES.index(name), _KINDS[kind], threads, fast, count, max(1, piece), places,
        sizes, eps, at, to, back,
    )  # fmt: skip


def _blocks(rows: int) -> int:
    return -(-rows // _BLOCK_ROWS)


# ---- RMSNorm


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., C) over the root of its mean square, times weight (C,) (Zhang & Sennrich 2019)."""
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        out = torch.empty_like(x)
        scale = x.new_empty(rows, dtype=torch.float32)
        _run("norm", rows, _PIECE // width, x.dtype, eps=eps, x=x, weight=weight, out=out,
             scale=scale, rows=rows, width=width)  # fmt: skip
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        rows, width = len(scale), x.shape[-1]
        out = torch.empty_like(x)
        shares = scale.new_empty(_blocks(rows), width)
        total = scale.new_empty(width)
        _run("norm_back", _blocks(rows), 1, x.dtype, x=x, weight=weight, out=out, scale=scale,
             upstream=upstream.contiguous(), shares=shares, sum=total, rows=rows,
             width=width)  # fmt: skip
        return out, total.to(weight.dtype), None


# ---- SwiGLU


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, both of one shape (Shazeer 2020)."""
    out: Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        out = torch.empty_like(gate)
        _run("gate", gate.numel(), _PIECE, gate.dtype, x=gate, second=up, out=out)
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        of_gate, of_up = torch.empty_like(gate), torch.empty_like(up)
        _run("gate_back", gate.numel(), _PIECE, gate.dtype, x=gate, second=up, out=of_gate,
             out_second=of_up, upstream=upstream.contiguous())  # fmt: skip
        return of_gate, of_up


# ---- heads


class _Layout(NamedTuple):
    """How the heads of x (B, T, H, D) lie, and where their positions are."""

    rows: int
    tokens: int
    heads: int
    width: int
    position_rows: int

    @property
    def sizes(self) -> dict[str, Any]:
        """As the extension wants them."""
        count = self.rows * self.tokens * self.heads
        return {"rows": count, "width": self.width, "tokens": self.tokens, "heads": self.heads,
                "position_rows": self.position_rows}  # fmt: skip


def turns(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor) -> bool:
    """Whether `turn` takes these; shapes as there."""
    if not serves(x) or x.shape[-1] % 2 or x.shape[-1] > MOST_HEAD:
        return False
    return all(p.dtype == x.dtype for p in (weight, cos, sin) if p is not None)


def turn(x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """The heads of x (B, T, H, D), normed by `weight` (D,) unless it is None, then turned by their
    positions: cos and sin (B or 1, T, 1, D), whose halves are equal.

    The result (B, T, H, D) lies in memory as (B, H, T, D), as attention wants it.
    """
    out: Tensor = _Turn.apply(x, weight, eps, cos, sin)  # type: ignore[no-untyped-call]
    return out


def _in_heads(x: Tensor) -> Tensor:
    """x with a contiguous head."""
    return x if x.stride(-1) == 1 else x.contiguous()


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, eps: float, cos: Tensor, sin: Tensor
    ) -> Tensor:
        x, cos, sin = _in_heads(x), cos.contiguous(), sin.contiguous()
        rows, tokens, heads, width = x.shape
        layout = _Layout(rows, tokens, heads, width, len(cos))
        out = x.new_empty(rows, heads, tokens, width).transpose(1, 2)
        scale = None
        if weight is not None:
            weight = weight.contiguous()
            scale = x.new_empty(rows * tokens * heads, dtype=torch.float32)
        _run("turn", rows * tokens * heads, _PIECE // width, x.dtype, eps=eps, x=x, weight=weight,
             out=out, scale=scale, cosine=cos, sine=sin, at=x.stride()[:3], to=out.stride()[:3],
             **layout.sizes)  # fmt: skip
        ctx.save_for_backward(x, weight, scale, cos, sin)
        ctx.layout = layout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, cos, sin = ctx.saved_tensors
        upstream = _in_heads(upstream)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        blocks = _blocks(x.numel() // x.shape[-1])
        shares = total = None
        if weight is not None:
            shares = scale.new_empty(blocks, x.shape[-1])
            total = scale.new_empty(x.shape[-1])
        _run("turn_back", blocks, 2, x.dtype, x=x, weight=weight, out=out, scale=scale,
             cosine=cos, sine=sin, upstream=upstream, shares=shares, sum=total, at=x.stride()[:3],
             back=upstream.stride()[:3], **ctx.layout.sizes)  # fmt: skip
        return out, None if total is None else total.to(weight.dtype), None, None, None


# ---- softmax


def softens(x: Tensor) -> bool:
    """Whether a softmax over numbers like those of x is for the extension, inside a function that
    makes its gradient itself."""
    if torch.compiler.is_compiling() or type(x) is not Tensor or not x.is_cpu:
        return False
    return x.dtype in _KINDS and x.numel() > 0 and not why_not()


def attend_(scores: Tensor, tokens: int, group: int, before: int) -> None:
    """In place of scores (matrices, tokens·group, before + tokens), float32 and contiguous: the
    softmax over what each query sees, the `before` keys and those of the tile up to its own."""
    rows, width = scores.shape[0] * scores.shape[1], scores.shape[2]
    assert scores.is_contiguous()
    assert scores.dtype == torch.float32
    assert (scores.shape[1], width) == (tokens * group, before + tokens)
    _run("attend", rows, _PIECE // width, scores.dtype, out=scores, rows=rows, width=width,
         tokens=tokens, group=group, before=before)  # fmt: skip


def slopes_(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) (N,) of logits (N, V), both float32 and contiguous; targets (N,) int64. In
    place of the logits comes their gradient: softmax, less one at the target. Raises IndexError for
    targets outside the vocabulary."""
    rows, width = logits.shape
    assert logits.is_contiguous()
    assert logits.dtype == torch.float32
    assert targets.shape == (rows,)
    assert targets.dtype == torch.int64
    targets = targets.contiguous()
    losses = logits.new_empty(rows)
    _run("slope", rows, _PIECE // width, logits.dtype, out=logits, targets=targets, losses=losses,
         rows=rows, width=width)  # fmt: skip
    return losses
