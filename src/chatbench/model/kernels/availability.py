"""What there is to compute attention with on a machine, and why a kernel is not for a call."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from chatbench.model.kernels.kinds import DECODE_TOKENS, Kind
from chatbench.model.kernels.task import Task
from chatbench.model.kernels.varlen import prepare_varlen

TITLES = {
    "flash3": "FlashAttention-3",
    "varlen": "torch.nn.attention.varlen (FlashAttention-2)",
    "triton": "Triton decode attention",
    "products": "batched products",
    "documents": "document by document",
    "rows": "row by row",
    "reference": "float64 reference",
}
_HALF = (torch.bfloat16, torch.float16)


def products(kind: Kind) -> str:
    """Why batched products do not serve a kind of call, or ""."""
    if kind.packed:
        return "they know no documents"
    if kind.traced:
        return "compilers plan memory themselves"
    if kind.phase in ("decode, ragged rows", "decode, even rows", "prefill on a cache"):
        return "they take a cache of one row and few new tokens only"
    return ""


def documents(kind: Kind) -> str:
    """Why document by document does not serve a kind of call, or ""."""
    if not kind.packed:
        return "there is one document in a row"
    if kind.device != "cpu":
        return "many small kernels are slow on a GPU"
    return "lengths of documents are unknown while compiling" if kind.traced else ""


def rows(kind: Kind) -> str:
    """Why row by row does not serve a kind of call, or ""."""
    if kind.phase != "decode, ragged rows":
        return "rows do not differ in length"
    return "" if kind.device == "cpu" else "many small kernels are slow on a GPU"


def varlen(kind: Kind) -> str:
    """Why torch's varlen_attn does not serve a kind of call, or ""."""
    return _laid_end_to_end(kind) or prepare_varlen()


def flash3(kind: Kind) -> str:
    """Why FlashAttention-3 does not serve a kind of call, or ""."""
    if find_spec("flash_attn_interface") is None:
        return "package flash_attn_interface is not installed"
    fault = _laid_end_to_end(kind)
    if not fault and torch.cuda.get_device_capability(kind.ordinal)[0] != 9:
        return "this GPU is no Hopper"
    return fault


def _laid_end_to_end(kind: Kind) -> str:
    if kind.device != "cuda":
        return "needs a CUDA GPU"
    if kind.phase not in ("training", "prefill"):
        return "it takes no cache"
    if kind.dtype not in _HALF:
        return "it takes bfloat16 and float16 only"
    if kind.width > 256 or kind.width % 8:
        return "it takes head widths up to 256 that are multiples of 8"
    if torch.cuda.get_device_capability(kind.ordinal)[0] < 8:
        return "needs an Ampere GPU or a later one"
    return ""


def triton(kind: Kind) -> str:
    """Why the Triton kernel does not serve a kind of call, or ""."""
    if kind.device != "cuda":
        return "needs a CUDA GPU"
    if find_spec("triton") is None:
        return "package triton is not installed"
    if not kind.phase.startswith("decode"):
        return f"it takes up to {DECODE_TOKENS} new tokens on a cache"
    if kind.width > 256 or kind.dtype not in (*_HALF, torch.float32):
        return "it takes head widths up to 256 in float32, bfloat16 and float16"
    return ""


def reference(kind: Kind) -> str:
    """Why the reference does not serve a kind of call, or ""."""
    return "Apple's GPUs have no float64" if kind.device == "mps" else ""


def run_triton(task: Task) -> Tensor:
    """Decode attention over the whole cache, each row to its own length."""
    from chatbench.model.kernels.triton_decode import decode_attention

    assert task.reach is not None
    assert task.whole is not None
    lengths = task.reach.filled(task.q.shape[1])
    return decode_attention(
        task.q.contiguous(), *task.whole, lengths, scale=task.scale, window=task.window
    )


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    # Without that, products of bfloat16 lose by 1.3x to SDPA; with it they win by 1.2x to 3.5x.
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def libraries(device: torch.device) -> list[tuple[str, str]]:
    """(name, state) of what PyTorch's own attention stands on for a device."""
    if device.type != "cuda":
        return [("PyTorch", str(torch.__version__))]
    cudnn: Any = torch.backends.cudnn
    switches: Any = torch.backends.cuda
    facts = [("PyTorch", f"{torch.__version__}, CUDA {torch.version.cuda}")]
    facts += [("cuDNN", str(cudnn.version()) if cudnn.is_available() else "not available")]
    enabled = {
        "cuDNN": switches.cudnn_sdp_enabled(),
        "flash": switches.flash_sdp_enabled(),
        "memory-efficient": switches.mem_efficient_sdp_enabled(),
        "math": switches.math_sdp_enabled(),
    }
    facts += [("SDPA kernels enabled", ", ".join(name for name, on in enabled.items() if on))]
    return [*facts, ("SDPA takes for causal bfloat16", sdpa_takes(device))]


def sdpa_takes(device: torch.device) -> str:
    """The kernel that SDPA picks for a causal training call of heads of 64."""
    q = torch.zeros(1, 8, 1024, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    # In PyTorch's own order: its codes are the values of SDPBackend.
    code = torch._fused_sdp_choice(q, q, q, is_causal=True)
    return str(torch.nn.attention.SDPBackend(code)).rpartition(".")[2]
