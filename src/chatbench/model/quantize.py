"""Weights in 8 or 4 bits; activations stay as they are.

int8: one scale for each output row, symmetric. int4: one scale and one zero for each group of
inputs of a row, found by a search that minimises the squared error of the weights. What is small
or precious stays exact: embeddings, norms, biases, adapters. A head that is one with the embeddings
becomes a copy of them in int8: every token reads all of it, and one row of them.

Few rows (a reply being written) go through the C extension (`kernels.compiled`), or without it
through the kernels that torch has for the CPU; the first round activations to 8 bits by runs of 32,
the second to bfloat16. Many rows (a prompt, likelihood) go through the weights made whole again,
some rows of the layer at a time; so does everything on other devices, where torchao is absent.
On CUDA with torchao installed its weights and kernels serve instead, after a comparison.
Legend: K inputs, N outputs, G group, M rows of activations.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbench import console
from chatbench.errors import UsageError
from chatbench.model.kernels import compiled
from chatbench.model.rounding import quantize_groups, quantize_rows
from chatbench.model.transformer import GPT

Kind = Literal["int8", "int4"]
GROUPS = (128, 64, 32)

# Above these rows the weights made whole are as fast as the kernels, or faster (measured by
# tests/bench/quantized_linear.py). Fixed bounds: results must not hang on a stopwatch.
FEW_ROWS = {"int8": 16, "int4": 32}
# Elements made whole at once: few enough to stay near the processor.
_PIECE = 1 << 19


class Quantization(NamedTuple):
    """What `quantize_model` did: bytes of all weights before and after, and the linear layers
    that took int8 as their shapes do not fit int4."""

    bytes_before: int
    bytes_after: int
    widened: list[str]


class QuantizedLinear(nn.Module):
    """A linear layer K → N with weights in 8 or 4 bits.

    `codes`: int8 (N, K), or for int4 two rows in each byte (N/block, K, block/2), the layout of
    torch's CPU kernel. `scales`: bfloat16 (N,), or (K/G, N, 2) with scale and zero.
    A weight is code·scale, or (code - 8)·scale + zero.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, kind: Kind, group: int = 32) -> None:
        """Raises ValueError when G does not divide K or N is odd (int4)."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind = kind
        self.group = group
        self.bias: nn.Parameter | None = linear.bias
        weight = linear.weight.detach()
        if kind == "int8":
            self.block = 1
            codes, scales = quantize_rows(weight)
        else:
            self.block = _block(self.out_features)
            wide, scales = quantize_groups(weight, group)
            codes = _pack(wide, self.block)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    @property
    def weight(self) -> Tensor:
        """The weights made whole (N, K), float32."""
        return self.whole(0, self.out_features, torch.float32)

    def whole(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        """Rows `begin` to `end`, multiples of the block, as numbers (end - begin, K)."""
        scales = self.scales.float()
        if self.kind == "int8":
            return (self.codes[begin:end].float() * scales[begin:end, None]).to(dtype)
        packed = self.codes[begin // self.block : end // self.block]
        # Turned while they are bytes, so that rows come out whole: products want them so.
        pairs = packed.transpose(1, 2).contiguous()
        blocks, half, inputs = pairs.shape
        wide = torch.empty(blocks, 2, half, inputs, dtype=torch.float32, device=packed.device)
        wide[:, 0] = pairs & 15
        wide[:, 1] = pairs >> 4
        step, zero = scales[:, begin:end].permute(2, 1, 0)[..., None].contiguous()
        grouped = wide.view(end - begin, -1, self.group)
        grouped.mul_(step).add_(zero - 8 * step)  # in two steps: torch.addcmul takes thrice as long
        return wide.view(end - begin, inputs).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) → (..., N)."""
        if compiled.serves(x) and self._is_compiled():
            return compiled_product(x, self)
        if torch.is_grad_enabled() and x.requires_grad:
            y: Tensor = _Product.apply(x.reshape(-1, self.in_features), self)  # type: ignore[no-untyped-call]
        else:
            y = self._product(x.reshape(-1, self.in_features))
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def _product(self, x: Tensor) -> Tensor:
        if len(x) <= FEW_ROWS[self.kind] and self._has_kernel(x.device) and _kernel_pays(self.kind):
            return kernel_product(x, self)
        return whole_product(x, self)

    def _is_compiled(self) -> bool:
        """Whether the C extension reads weights that lie like these."""
        return compiled.serves_codes(self.codes, self.scales, self.block)

    def _has_kernel(self, device: torch.device) -> bool:
        """Whether torch's kernels take this layer; they do not check shapes themselves."""
        if device.type != "cpu" or self.in_features % 32 or self.out_features % 64:
            return False
        return self.kind == "int8" or self.block == kernel_block()

    def extra_repr(self) -> str:
        size = f"{self.in_features}, {self.out_features}, {self.kind}"
        return f"{size}, group={self.group}" if self.kind == "int4" else size


class TorchaoLinear(QuantizedLinear):
    """The same layer with weights that torchao has quantised, multiplied by its kernels.

    `codes`: torchao's tensor, of the logical shape (N, K); there are no scales beside it.
    """

    def __init__(self, linear: nn.Linear, kind: Kind, group: int = 32) -> None:
        """Raises what torchao does for layers and devices that it does not serve."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind, self.group, self.block = kind, group, 1
        self.bias = linear.bias
        torchao = _torchao()
        if kind == "int8":
            settings = torchao.Int8WeightOnlyConfig(set_inductor_config=False)
        else:
            # The packing that torch's own CUDA kernel takes; the others need further packages.
            settings = torchao.Int4WeightOnlyConfig(
                group_size=group, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
            )
        holder = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        holder.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        torchao.quantize_(nn.Sequential(holder), settings)
        self.register_buffer("codes", holder.weight.detach())

    def whole(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        """Rows `begin` to `end` as numbers (end - begin, K)."""
        # Not every one of torchao's tensors can say its numbers, but all multiply.
        one = torch.eye(self.in_features, dtype=self.codes.dtype, device=self.codes.device)
        columns = [F.linear(part, self.codes)[:, begin:end] for part in torch.split(one, 1024)]
        return torch.cat(columns).T.to(dtype).contiguous()

    def _product(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.codes.dtype), self.codes).to(x.dtype)

    def _is_compiled(self) -> bool:
        return False


def _torchao() -> Any:
    """The module torchao.quantization. Raises ImportError."""
    # It speaks of each of its optional parts that is not there.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    return importlib.import_module("torchao.quantization")


@cache
def _torchao_serves(kind: Kind, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torchao is installed and its weights multiply as ours do, found by a probe; a notice
    says so when they do not."""
    if importlib.util.find_spec("torchao") is None or (kind, dtype) == ("int4", torch.float32):
        return False
    linear = nn.Linear(256, 128, bias=False, device="meta")
    numbers = torch.linspace(-3, 5, 128 * 256).sin().view(128, 256).to(device, dtype)
    linear.weight = nn.Parameter(numbers, requires_grad=False)
    x = torch.linspace(-5, 3, 7 * 256).cos().view(7, 256).to(device, dtype)
    try:
        theirs, ours = (made(linear, kind)(x) for made in (TorchaoLinear, QuantizedLinear))
        away = float((theirs - ours).float().norm() / ours.float().norm())
        why = "" if away < 0.05 else f"its products are {away:.0%} away"
    except Exception as error:  # a package of many versions, each with needs of its own
        why = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    if why:
        console.notice(f"torchao is not used for {kind} ({why}), chatbench's own kernels are")
    return not why


def compiled_product(x: Tensor, layer: QuantizedLinear) -> Tensor:
    """x (..., K) times the layer's weights, plus its bias, by the C extension: (..., N)."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return compiled.product(
        x.contiguous(), layer.codes, bias, scales=layer.scales, outputs=layer.out_features,
        block=layer.block, group=layer.group if layer.kind == "int4" else 0,
    )  # fmt: skip


def kernel_product(x: Tensor, layer: QuantizedLinear) -> Tensor:
    """x (M, K) times the layer's weights by torch's CPU kernel, (M, N) in x's dtype."""
    narrow, scales = x.to(torch.bfloat16), layer.scales.to(torch.bfloat16)
    if layer.kind == "int8":
        out = torch._weight_int8pack_mm(narrow, layer.codes, scales)
    else:
        codes = layer.codes.view(layer.out_features, -1)
        out = torch._weight_int4pack_mm_for_cpu(narrow, codes, layer.group, scales)
    return out.to(x.dtype)


def whole_product(x: Tensor, layer: QuantizedLinear) -> Tensor:
    """x (M, K) times the layer's weights made whole piece by piece, (M, N) in x's dtype."""
    out = x.new_empty(len(x), layer.out_features)
    for begin, end in _pieces(layer, x.device):
        out[:, begin:end] = F.linear(x, layer.whole(begin, end, x.dtype))
    return out


def _pieces(layer: QuantizedLinear, device: torch.device) -> list[tuple[int, int]]:
    rows = layer.out_features
    step = max(1, _PIECE // layer.in_features // layer.block) * layer.block
    if device.type != "cpu":
        step = rows
    return [(begin, min(rows, begin + step)) for begin in range(0, rows, step)]


class _Product(torch.autograd.Function):
    """The product with a gradient to its input; nothing of the weights is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return whole_product(x, layer)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        slope, layer = slopes[0], ctx.layer
        found = slope.new_zeros(len(slope), layer.in_features)
        for begin, end in _pieces(layer, slope.device):
            found += slope[:, begin:end] @ layer.whole(begin, end, slope.dtype)
        return found, None


def _pack(codes: Tensor, block: int) -> Tensor:
    """uint8 0…15 (N, K) → (N/block, K, block/2): low half-bytes hold the first half of a block."""
    first, second = codes.view(-1, 2, block // 2, codes.shape[1]).unbind(1)
    return (first | (second << 4)).transpose(1, 2).contiguous()


def _block(rows: int) -> int:
    """The kernel's block where it divides the rows, else the largest power of two to 64."""
    known = kernel_block()
    if known is not None and rows % known == 0:
        return known
    if rows % 2:
        raise ValueError(f"{rows} rows cannot be laid in pairs")
    return min(64, rows & -rows)


@lru_cache(maxsize=1)
def kernel_block() -> int | None:
    """Rows in a block of torch's int4 CPU kernel, which depend on the processor: found by packing
    a probe; None when the kernel is missing or lays weights otherwise."""
    codes = torch.arange(64 * 32).mul(7).remainder(16).view(64, 32)
    codes = (codes + torch.arange(64)[:, None]) % 16
    try:
        theirs = torch._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    except (AttributeError, RuntimeError):
        return None
    narrow = codes.to(torch.uint8)
    same = [b for b in (64, 32, 16) if torch.equal(_pack(narrow, b).view(-1), theirs.view(-1))]
    return same[0] if same else None


@lru_cache(maxsize=2)
def _kernel_pays(kind: Kind) -> bool:
    """Whether torch's kernel beats weights made whole at few rows on this processor. Without a
    vectorised kernel it loses clearly, with one it wins several times over."""
    # Not initialised: that would take numbers from torch's global generator.
    linear = nn.Linear(512, 512, bias=False, device="meta")
    linear.weight = nn.Parameter(torch.linspace(-1, 1, 512 * 512).view(512, 512))
    layer = QuantizedLinear(linear, kind)
    x = torch.ones(4, 512)
    products: tuple[Callable[[Tensor, QuantizedLinear], Tensor], ...]
    products = (kernel_product, whole_product)
    kernel, whole = (min(_seconds(product, x, layer) for _ in range(3)) for product in products)
    return kernel < whole


def _seconds(
    product: Callable[[Tensor, QuantizedLinear], Tensor], x: Tensor, layer: QuantizedLinear
) -> float:
    begin = time.perf_counter()
    product(x, layer)
    return time.perf_counter() - begin


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once."""
    tensors = (p for t in (*model.parameters(), *model.buffers()) for p in _parts(t))
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def _parts(tensor: Tensor) -> list[Tensor]:
    """The tensors that one consists of: itself, or those which torchao keeps inside of it."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names: list[str] = tensor.__tensor_flatten__()[0]
    return [part for name in names for part in _parts(getattr(tensor, name))]


@torch.no_grad()
def quantize_model(model: GPT, kind: str, group: int = 32, *, head: bool = True) -> Quantization:
    """Quantise the linear layers of the blocks in place, and with `head` that too (always to int8,
    as its errors reach every token). Adapters stay exact beside them.

    Where `group` does not divide K, the largest of 128, 64 and 32 that does is taken; a layer
    without any, or of an odd number of outputs, takes int8 and is named on stderr. `kind`: int8
    or int4. Raises UsageError for another kind, a group that no kernel knows, or when an adapter
    is merged.
    """
    if kind not in ("int8", "int4"):
        raise UsageError(f"weights cannot be quantised to {kind}", hint="use int8 or int4")
    if group not in GROUPS:
        raise UsageError(f"groups of {group} are not computed", hint="use 32, 64 or 128")
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise UsageError("an adapter is merged into the weights", hint="fold it, then quantise")
    before = weight_bytes(model)
    widened = []
    for name, linear in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]:
        of_head = name.partition(".")[0] == "lm_head"
        if of_head and not head:
            continue
        fitting = [g for g in (group, *GROUPS) if linear.in_features % g == 0]
        bits: Kind = "int8" if of_head or kind == "int8" else "int4"
        if bits == "int4" and (not fitting or linear.out_features % 2):
            widened.append(name)
            bits = "int8"
        owner, _, leaf = name.rpartition(".")
        weight = linear.weight
        serves = weight.device.type == "cuda" and _torchao_serves(bits, weight.device, weight.dtype)
        made = TorchaoLinear if serves else QuantizedLinear
        quantized = made(linear, bits, fitting[0] if fitting else group)
        setattr(model.get_submodule(owner), leaf, quantized.train(linear.training))
    if widened:
        console.notice(
            f"{len(widened)} layers take int8, their shapes do not fit int4: {widened[0]}"
            + (" and others" if len(widened) > 1 else "")
        )
    return Quantization(before, weight_bytes(model), widened)
