"""The C extension for few rows: the numbers of float64, whatever the threads and the company."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbench.errors import UsageError
from chatbench.model import quantize
from chatbench.model.kernels import compiled
from chatbench.model.quantize import QuantizedLinear, compiled_product

_decode = pytest.importorskip("chatbench.model.kernels._decode")
KINDS = ("float32", "bfloat16", "int8", "int4")
# Inputs and outputs that are no multiples of what is computed at once.
ODD = ((1, 1), (7, 3), (8, 4), (31, 5), (33, 66), (100, 13), (257, 9), (768, 37))
FITTING = ((32, 32), (96, 64), (256, 160))


@pytest.fixture
def generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(1 << 32))


class Case:
    """Weights of one kind with a bias, and how the extension is asked for their product."""

    def __init__(self, kind: str, inputs: int, outputs: int, generator: torch.Generator) -> None:
        layer = nn.Linear(inputs, outputs)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_(generator=generator)
        self.dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
        self.bias = layer.bias.detach().to(self.dtype)
        self.quantised = None
        self.weight = layer.weight.detach().to(self.dtype)
        if kind in ("int8", "int4"):
            fitting = [g for g in (128, 64, 32) if inputs % g == 0]
            self.quantised = QuantizedLinear(layer, kind, fitting[-1] if fitting else 32)  # type: ignore[arg-type]
            self.weight = self.quantised.weight

    def product(self, x: Tensor, *, threads: int = 1, fast: bool = True) -> Tensor:
        if self.quantised is None:
            return compiled.product(x, self.weight, self.bias, threads=threads, fast=fast)
        q = self.quantised
        group = q.group if q.kind == "int4" else 0
        return compiled.product(
            x, q.codes, self.bias.to(x.dtype), scales=q.scales, outputs=q.out_features,
            block=q.block, group=group, threads=threads, fast=fast,
        )  # fmt: skip


def rounded(x: Tensor) -> Tensor:
    """x (M, K) as the codes for quantised weights say it, in float64: runs of 32, 8 bits. The codes
    are found in float32, or one between two codes would fall to the other side now and then."""
    wanted = x.double().clone()
    for run in wanted.split(32, dim=1):
        single = run.float()
        most = single.abs().amax(1, keepdim=True)
        inverse = torch.where(most > 0, 127 / most, torch.zeros_like(most))
        scaled = single * inverse
        codes = (scaled + torch.full_like(scaled, 0.5).copysign(scaled)).trunc()
        run.copy_(codes.double() * (most / 127).double())
    return wanted


def cases(kind: str) -> tuple[tuple[int, int], ...]:
    return FITTING if kind == "int4" else ODD + FITTING


@pytest.mark.parametrize("fast", [True, False], ids=["vectors", "scalar"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_float64(
    generator: torch.Generator, kind: str, fast: bool
) -> None:  # fmt: skip
    for inputs, outputs in cases(kind):
        case = Case(kind, inputs, outputs, generator)
        x = torch.randn(3, inputs, generator=generator).to(case.dtype)
        seen = x.double() if case.quantised is None else rounded(x)
        wanted = seen @ case.weight.double().T + case.bias.double()
        sizes = seen.abs() @ case.weight.double().abs().T + case.bias.double().abs()
        # bfloat16 results have 8 bits. A code on the border of two may fall to either of them.
        loose = 1 / 256 if kind == "bfloat16" else 1e-6
        off = (case.product(x, fast=fast).double() - wanted).abs()
        border = 0.0
        if case.quantised is not None:
            border = float(x.abs().max() / 127 * case.weight.abs().max()) * 1e-3
        assert bool((off <= loose * sizes + border).all()), (inputs, outputs)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_rounded_activations_cost_half_a_percent(generator: torch.Generator, kind: str) -> None:
    case = Case(kind, 512, 256, generator)
    x = torch.randn(4, 512, generator=generator)
    wanted = x.double() @ case.weight.double().T + case.bias.double()
    off = (case.product(x).double() - wanted).norm() / wanted.norm()
    assert 0 < float(off) < 0.008


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_bits_alone_in_company_and_with_any_threads(
    generator: torch.Generator, rng: random.Random, kind: str
) -> None:
    inputs, outputs = (256, 1024) if kind == "int4" else (250, 1023)
    case = Case(kind, inputs, outputs, generator)
    x = torch.randn(compiled.FEW_ROWS, inputs, generator=generator).to(case.dtype)
    alone = torch.cat([case.product(row[None]) for row in x])
    for rows in (1, 2, 3, rng.randrange(4, 16), 16):
        for threads in (1, 2, 3, 7):
            assert torch.equal(case.product(x[:rows], threads=threads), alone[:rows])
    _decode.share_threads(0)  # threads of our own
    try:
        for _ in range(20):
            assert torch.equal(case.product(x, threads=rng.randrange(2, 6)), alone)
    finally:
        _decode.share_threads(compiled.openmp_threads())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("fast", [True, False])
def test_what_is_not_finite_is_not_hidden_and_stays_in_its_row(
    generator: torch.Generator, rng: random.Random, kind: str, bad: float, fast: bool
) -> None:
    case = Case(kind, 96, 64, generator)
    x = torch.randn(3, 96, generator=generator).to(case.dtype)
    clean = case.product(x, fast=fast)
    x[1, rng.randrange(96)] = bad
    found = case.product(x, fast=fast)
    assert not bool(found[1].isfinite().any())
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
    zeros = torch.zeros_like(x)
    assert torch.equal(case.product(zeros, fast=fast), case.bias.expand(3, -1))
    tiny = torch.full_like(x, 1e-42)
    assert bool(case.product(tiny, fast=fast).isfinite().all())


def test_numbers_at_the_ends_of_their_range(generator: torch.Generator) -> None:
    case = Case("int4", 128, 64, generator)
    assert case.quantised is not None
    # The largest codes and activations at once: sums of 16 bits may not overflow.
    case.quantised.codes.fill_(255)
    x = torch.ones(2, 128)
    x[1] = -3e30
    wanted = x.double() @ case.quantised.weight.double().T
    found = case.product(x).double() - case.bias.double()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    case = Case("int8", 128, 64, generator)
    assert case.quantised is not None
    case.quantised.codes.fill_(-127)
    wanted = x.double() @ case.quantised.weight.double().T
    found = case.product(x).double() - case.bias.double()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_blocks_and_groups_of_every_size(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, block: int, group: int
) -> None:
    monkeypatch.setattr(quantize, "_block", lambda rows: block)
    layer = nn.Linear(256, 192, bias=False)
    found = QuantizedLinear(layer, "int4", group)
    assert found.block == block
    x = torch.randn(2, 256, generator=generator)
    wanted = rounded(x) @ found.weight.double().T
    for dtype in (torch.float32, torch.bfloat16):
        y = compiled_product(x.to(dtype), found)
        assert y.dtype == dtype
        # bfloat16 rounds activations before, results after.
        loose = 1e-4 if dtype == torch.float32 else 0.06
        torch.testing.assert_close(y.double(), wanted, rtol=0, atol=loose * float(wanted.std()))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rows of every product that the extension computed, with vectors or without."""
    taken: list[int] = []
    product = compiled.product

    def noting(x: Tensor, *arguments: object, **options: object) -> Tensor:
        taken.append(x.numel() // x.shape[-1])
        return product(x, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(compiled, "product", noting)
    monkeypatch.setattr(compiled, "why_not", lambda: "")
    return taken  # type: ignore[return-value]


def test_only_few_rows_without_gradients_are_taken(
    generator: torch.Generator, asked: list[int]
) -> None:
    layer = compiled.Linear(40, 24)
    few = compiled.FEW_ROWS
    for shape in ((40,), (1, 1, 40), (2, 3, 40), (few, 40), (few + 1, 40), (0, 40)):
        x = torch.randn(shape, generator=generator)
        wanted = F.linear(x, layer.weight, layer.bias)
        assert torch.equal(layer(x), wanted)  # under gradients: torch itself
        with torch.no_grad():
            y = layer(x)
            assert y.shape == wanted.shape
            torch.testing.assert_close(y, wanted)
    assert asked == [1, 1, 6, few]
    with torch.no_grad():
        x = torch.randn(40, 2, generator=generator)
        torch.testing.assert_close(layer(x.T), F.linear(x.T, layer.weight, layer.bias))
        double = compiled.Linear(40, 24).double()
        double(torch.zeros(1, 40, dtype=torch.float64))
    assert asked == [1, 1, 6, few, 2]


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_layers_take_it_too(
    generator: torch.Generator, asked: list[int], kind: str
) -> None:
    layer = QuantizedLinear(nn.Linear(64, 96), kind)  # type: ignore[arg-type]
    x = torch.randn(2, 5, 64, generator=generator)
    y = layer(x)
    wanted = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(y, wanted, rtol=0, atol=0.05 * float(wanted.detach().std()))
    layer(torch.randn(17, 64, generator=generator))
    layer(x.clone().requires_grad_())
    assert asked == [10]


def test_weights_that_do_not_belong_are_refused(generator: torch.Generator) -> None:
    x, weight = torch.zeros(2, 64), torch.zeros(5, 64)
    with pytest.raises(ValueError, match="no 5 by 64"):
        compiled.product(x, weight.bfloat16())
    with pytest.raises(ValueError, match="no 5 by 63"):
        compiled.product(torch.zeros(2, 63), weight)
    with pytest.raises(ValueError, match="apart"):
        compiled.product(torch.zeros(64, 2).T, weight)
    with pytest.raises(ValueError, match="bias"):
        compiled.product(x, weight, torch.zeros(4))
    with pytest.raises(ValueError, match="5 scales"):
        compiled.product(x, weight.to(torch.int8), scales=torch.zeros(4, dtype=torch.bfloat16))
    q = QuantizedLinear(nn.Linear(64, 64), "int4")
    with pytest.raises(ValueError, match="belong together"):
        compiled.product(x, q.codes, scales=q.scales, outputs=64, block=3, group=32)


def test_several_threads_may_multiply_at_once(generator: torch.Generator) -> None:
    case = Case("int8", 512, 1024, generator)
    xs = [torch.randn(2, 512, generator=generator) for _ in range(4)]
    wanted = [case.product(x) for x in xs]
    wrong: list[int] = []

    def work(number: int) -> None:
        found = [case.product(xs[number], threads=2) for _ in range(50)]
        wrong.extend(number for y in found if not torch.equal(y, wanted[number]))

    for address in (0, compiled.openmp_threads()):
        _decode.share_threads(address)
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


FORKING = """
import os, torch
from chatbench.model.kernels import compiled
w, x = torch.randn(1024, 512), torch.randn(1, 512)
for shared in (True, False):
    if not shared:
        compiled._extension().share_threads(0)
    wanted = compiled.product(x, w, threads=3)
    child = os.fork()
    if not child:
        same = all(torch.equal(compiled.product(x, w, threads=3), wanted) for _ in range(20))
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(compiled.product(x, w, threads=3), wanted)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_it_survives_a_fork_and_the_end_of_the_process() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKING]
    assert subprocess.run(command, timeout=60).returncode == 0


@pytest.fixture
def unasked() -> Iterator[None]:
    """Nothing is remembered of what there is."""
    remembering = (compiled.why_not, compiled._extension)  # tests put others in their place
    for found in remembering:
        found.cache_clear()
    yield
    for found in remembering:
        found.cache_clear()


@pytest.mark.usefixtures("unasked")
def test_what_computes_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = compiled.describe_linear()
    if _decode.vectors()[0]:
        assert [line[2] for line in lines] == ["compiled"] * 5
        assert all(kind in line[1] for kind, line in zip(KINDS, lines, strict=False))
        assert lines[4][0] == "whole step"
    compiled.why_not.cache_clear()
    monkeypatch.setenv(compiled.FORCE, "torch")
    for line in compiled.describe_linear():
        assert line[2:] == ("torch", "the C extension is not asked for by CHATBENCH_LINEAR")
    assert not compiled.serves(torch.zeros(1, 4))
    compiled.why_not.cache_clear()
    monkeypatch.setenv(compiled.FORCE, "fast")
    with pytest.raises(UsageError, match="names no kernel"):
        compiled.why_not()
    monkeypatch.delenv(compiled.FORCE)
    monkeypatch.setattr(compiled, "_extension", lambda: None)
    assert "not built" in compiled.describe_linear()[0][3]
    layer = compiled.Linear(8, 4)
    with torch.no_grad():
        x = torch.ones(1, 8)
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
