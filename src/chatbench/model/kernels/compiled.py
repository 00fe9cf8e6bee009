"""Linear layers at few rows, by the C extension where there is one.

A reply being written multiplies one row, or one for each conversation, with every weight: its
speed is that of reading them. Each row is computed by itself and each output summed in one fixed
order, so that a row's numbers depend neither on the other rows nor on the number of threads.
Weights of 8 and 4 bits meet activations rounded to 8 bits by runs of 32 inputs (an error of about
half a percent of a product, twice that of bfloat16). A run that holds a number which is not finite
makes all outputs of its row nan.
Legend: M rows of activations, K inputs, N outputs, G group.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbench.errors import UsageError

__all__ = [
    "FEW_ROWS",
    "FORCE",
    "KINDS",
    "Linear",
    "check_codes",
    "extension",
    "linear",
    "product",
    "serves",
    "serves_codes",
    "why_not",
]

FORCE = "CHATBENCH_LINEAR"
# Up to here the extension is faster than torch at every kind of weight (measured on a processor
# with AVX2). A fixed bound: results must not hang on a stopwatch.
FEW_ROWS = 16
KINDS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
_PLAIN = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8,
           "int4": torch.uint8}  # fmt: skip
# Rows of int4 weights that the extension computes together.
_STRIP = 32


@cache
def _extension() -> ModuleType | None:
    try:
        from chatbench.model.kernels import _decode
    except ImportError:
        return None
    _decode.share_threads(openmp_threads())
    return _decode


def extension() -> Any:
    """The extension's module, where `why_not` has nothing against it."""
    found = _extension()
    assert found is not None
    return found


def openmp_threads() -> int:
    """Address of GOMP_parallel in the OpenMP library that torch has loaded; 0 when it is another
    one, or not to be found."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        paths = {line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line}
        if len(paths) != 1:
            return 0
        library = ctypes.CDLL(paths.pop(), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):
        return 0


@cache
def why_not() -> str:
    """Why the extension does not compute on this machine, or "" when it does.

    CHATBENCH_LINEAR, read once, may say "compiled" or "torch". Raises UsageError for other names.
    """
    forced = os.environ.get(FORCE, "")
    if forced not in ("", "compiled", "torch"):
        raise UsageError(f"{FORCE}={forced} names no kernel", hint="known: compiled, torch")
    if forced == "torch":
        return f"not asked for by {FORCE}"
    extension = _extension()
    if extension is None:
        return "not built: no C compiler was there when chatbench was installed"
    # In plain C it is a twin for tests, which torch outruns.
    vectors, faults = extension.vectors()
    return "" if vectors else faults or "of no use to a processor without AVX2 or NEON"


def serves(x: Tensor) -> bool:
    """Whether x (..., K) is for the extension: few rows of float32 or bfloat16 on a CPU, whose
    gradient nobody wants."""
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return False
    if type(x) is not Tensor or not x.is_cpu or x.dtype not in _PLAIN:
        return False
    return 0 < x.numel() <= FEW_ROWS * x.shape[-1] and not why_not()


def serves_codes(codes: Tensor, scales: Tensor, block: int) -> bool:
    """Whether quantised weights lie as the extension reads them (`block` 1: int8)."""
    here = codes.is_cpu and codes.is_contiguous() and scales.is_contiguous()
    return here and scales.dtype == torch.bfloat16 and (block == 1 or block % _STRIP == 0)


def product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, scales: Tensor | None = None,
    outputs: int | None = None, block: int = 1, group: int = 0, threads: int | None = None,
    fast: bool = True,
) -> Tensor:  # fmt: skip
    """x (..., K) times weights (N, K) plus bias (N,): (..., N) in x's number format.

    Plain weights have x's format. With `scales` they are codes as in `QuantizedLinear`: int8, or
    int4 when there is a `group`, and then `outputs` says N. `fast`: vector instructions where the
    processor has them. Raises ValueError for what does not belong together, or is not contiguous
    or not on the CPU: the extension reads what it is told.
    """
    inputs = x.shape[-1]
    count = len(weight) if outputs is None else outputs
    told = _PLAIN.get(x.dtype, "") if scales is None else "int4" if group else "int8"
    _check_weight(weight, told, count, inputs)
    if not (x.is_cpu and x.is_contiguous() and weight.is_cpu and weight.is_contiguous()):
        raise ValueError("activations and weights lie apart")
    if scales is not None:
        check_codes(weight, scales, count, inputs, group)
    if bias is not None and (bias.dtype != x.dtype or bias.numel() != count or not bias.is_cpu):
        raise ValueError("this is not the bias of the layer")
    out = x.new_empty(*x.shape[:-1], count)
    extension().product(
        KINDS[told], x.data_ptr(), weight.data_ptr(), 0 if scales is None else scales.data_ptr(),
        0 if bias is None else bias.data_ptr(), out.data_ptr(), x.numel() // max(1, inputs), count,
        inputs, block, group, x.dtype == torch.bfloat16,
        torch.get_num_threads() if threads is None else threads, fast,
    )  # fmt: skip
    return out


def _check_weight(weight: Tensor, told: str, outputs: int, inputs: int) -> None:
    held = 2 * weight.numel() if told == "int4" else weight.numel()
    if not told or held != outputs * inputs or weight.dtype != _STORED[told]:
        raise ValueError(f"weights {tuple(weight.shape)} are no {outputs} by {inputs} of {told}")


def check_codes(codes: Tensor, scales: Tensor, outputs: int, inputs: int, group: int) -> None:
    """Raise ValueError unless these are the int8 weights, or with a `group` the int4 ones, of a
    layer K → N."""
    _check_weight(codes, "int4" if group else "int8", outputs, inputs)
    wanted = 2 * outputs * (inputs // group) if group else outputs
    there = scales.is_cpu and scales.is_contiguous() and scales.dtype == torch.bfloat16
    if not there or scales.numel() != wanted:
        raise ValueError(f"{wanted} scales in bfloat16 are needed")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, by the extension where it serves: x (..., K), weight (N, K) → (..., N)."""
    if torch.is_grad_enabled() or not serves(x) or x.dtype != weight.dtype:
        return F.linear(x, weight, bias)
    if not (weight.is_cpu and weight.is_contiguous()):
        return F.linear(x, weight, bias)
    return product(x.contiguous(), weight, bias)


class Linear(nn.Linear):
    """nn.Linear, by `linear`; under gradients exactly as torch computes it."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) → (..., N)."""
        return linear(x, self.weight, self.bias)


def describe_linear() -> list[tuple[str, str, str, str]]:
    """What multiplies few rows with each kind of weight on the CPU, and what takes the whole step
    of a reply: the fields of `Choice`."""
    fault = why_not()
    if fault:
        reason = f"the C extension is {fault}"
        return [
            ("linear, few rows", "all weights", "torch", reason),
            ("whole step", "one token a row", "torch", reason),
        ]
    vectors, faults = extension().vectors()
    shape = f"up to {FEW_ROWS} rows"
    reason = f"reads weights at the speed of memory, {vectors}"
    if faults:
        reason += f"; not used: {faults}"
    lines = [("linear, few rows", f"{kind}, {shape}", "compiled", reason) for kind in KINDS]
    step = f"one call for each token, {vectors}; adapters and other number formats: torch"
    return [*lines, ("whole step", f"one token a row, {shape}", "compiled", step)]
