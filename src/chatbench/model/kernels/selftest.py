"""A kernel proves itself on a small random case of the kind it is wanted for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from chatbench.model.kernels.kinds import Kind
from chatbench.model.kernels.reference import reference_kernel
from chatbench.model.kernels.task import Packing, Reach, Task, lasting

_TOKENS = 150
_HELD = (5, 0, 290)
_DOCUMENTS = (1, 70, 3, 76)
_KV_HEADS = 2
# Root of the mean square of the error beside that of the exact result. One wrong token in the
# window, or one seen in another document, gives several times as much.
_ALLOWED = {torch.float32: 2e-3, torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float64: 1e-9}


def fault_of(run: Callable[[Task], Tensor], kind: Kind) -> str:
    """What is wrong with a kernel for this kind of call, in words; "" when it is right."""
    try:
        with lasting(), torch.enable_grad():
            task = small_case(kind)
            error = _worst_error(run, task, gradients=kind.phase == "training")
    # A kernel can fail in any way: missing compilers, drivers, unsupported shapes.
    except Exception as caught:
        return f"{type(caught).__name__}: {' '.join(str(caught).split())[:120]}"
    allowed = _ALLOWED.get(kind.dtype, 2e-2)
    return "" if error <= allowed else f"off by {error:.2g}, {allowed:.2g} is allowed"


def small_case(kind: Kind) -> Task:
    """A random task of this kind; the same one each time."""
    device = kind.place
    generator = torch.Generator().manual_seed(20)
    window = {"none": None, "wide": _TOKENS - 20, "narrow": 9}[kind.window]
    scale = kind.width**-0.5

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, kind.dtype)

    heads = _KV_HEADS * kind.group
    if kind.phase in ("training", "prefill"):
        q, k, v = (drawn(2, _TOKENS, n, kind.width) for n in (heads, _KV_HEADS, _KV_HEADS))
        packing = _two_rows(device) if kind.packed else None
        return Task(q, k, v, window, scale, packing)
    held = {"decode, ragged rows": _HELD, "decode, even rows": (33, 33)}.get(kind.phase, (33,))
    new = 1 if kind.phase.startswith("decode") else 20
    longest = max(held)
    whole = (drawn(len(held), longest + 40, _KV_HEADS, kind.width) for _ in range(2))
    keys, values = whole
    reach = Reach(torch.tensor(held, device=device), longest, held)
    seen = slice(0, longest + new)
    q = drawn(len(held), new, heads, kind.width)
    return Task(q, keys[:, seen], values[:, seen], window, scale, None, reach, (keys, values))


def _two_rows(device: torch.device) -> Packing:
    lengths = (_DOCUMENTS, _DOCUMENTS[::-1])
    document = [[name for name, n in enumerate(row) for _ in range(n)] for row in lengths]
    position = [[at for n in row for at in range(n)] for row in lengths]
    return Packing(torch.tensor(document), torch.tensor(position)).to(device)


def _worst_error(run: Callable[[Task], Tensor], task: Task, gradients: bool) -> float:
    """Of the output and, if asked, the gradients of q, k and v: the largest relative error."""
    found, wanted = (_results(call, task, gradients) for call in (run, reference_kernel))
    pairs = zip(found, wanted, strict=True)
    # Not a number compares as false, so it must not pass as small.
    errors = [float((a - b).square().mean().sqrt() / b.square().mean().sqrt()) for a, b in pairs]
    return max(errors) if all(error == error for error in errors) else float("inf")


def _results(call: Callable[[Task], Tensor], task: Task, gradients: bool) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_(gradients) for x in (task.q, task.k, task.v)]
    out = call(task._replace(q=leaves[0], k=leaves[1], v=leaves[2]))
    if not gradients:
        return [out.double()]
    upstream = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
    found = torch.autograd.grad(out, leaves, upstream.to(out.dtype))
    return [x.detach().double() for x in (out, *found)]
