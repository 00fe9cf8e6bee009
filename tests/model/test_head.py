"""The head's loss in chunks is the loss of the whole, and never holds the whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from chatbench.model.head import chunk_rows, linear_cross_entropy, token_logprobs

Problem = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def problem(rng: random.Random) -> Callable[..., Problem]:
    """hidden (N, C), weight (V, C), bias (V,), targets (N,), weights (N,) with zeros."""

    def make(rows: int = 23, dtype: torch.dtype = torch.float64, vocab: int = 17) -> Problem:
        generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
        hidden = torch.randn(rows, 5, generator=generator, dtype=dtype).requires_grad_()
        weight = torch.randn(vocab, 5, generator=generator, dtype=dtype).requires_grad_()
        bias = torch.randn(vocab, generator=generator, dtype=dtype).requires_grad_()
        targets = torch.randint(0, vocab, (rows,), generator=generator)
        weights = torch.rand(rows, generator=generator, dtype=dtype) + 0.2
        weights[torch.rand(rows, generator=generator) < 0.4] = 0.0
        return hidden, weight, bias, targets, weights

    return make


def slow(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor | None,
    z_loss: float = 0.0,
) -> Tensor:  # fmt: skip
    logits = F.linear(hidden, weight, bias)
    losses = F.cross_entropy(logits, targets, reduction="none")
    losses = losses + z_loss * torch.logsumexp(logits, -1) ** 2
    return losses.sum() if weights is None else (losses * weights).sum()


def gradients(total: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total * 0.37, inputs)


@pytest.mark.parametrize("chunk", [1, 4, 7, 23, 100])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [True, False])
def test_loss_and_gradients_equal_cross_entropys(
    problem: Callable[..., Problem], chunk: int, z_loss: float, weighted: bool
) -> None:
    hidden, weight, bias, targets, drawn = problem()
    weights = drawn if weighted else None
    ours = linear_cross_entropy(
        hidden, weight, targets, weights, bias=bias, chunk=chunk, z_loss=z_loss
    )
    wanted = slow(hidden, weight, bias, targets, weights, z_loss)
    assert torch.allclose(ours.total, wanted, rtol=1e-12)
    for one, other in zip(
        gradients(ours.total, hidden, weight, bias),
        gradients(wanted, hidden, weight, bias),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_each_rows_loss_is_told_and_skipped_rows_are_zero(problem: Callable[..., Problem]) -> None:
    hidden, weight, bias, targets, weights = problem()
    found = linear_cross_entropy(hidden, weight, targets, weights, bias=bias, chunk=5, z_loss=0.1)
    logits = F.linear(hidden, weight, bias)
    each = F.cross_entropy(logits, targets, reduction="none")
    assert torch.allclose(found.nll, torch.where(weights > 0, each, 0.0), rtol=1e-12)
    assert torch.allclose(found.z, 0.1 * (weights * torch.logsumexp(logits, -1) ** 2).sum())
    assert not found.nll.requires_grad
    assert not found.z.requires_grad


def test_the_rows_that_count_may_be_named(problem: Callable[..., Problem]) -> None:
    hidden, weight, _, targets, weights = problem()
    rows = weights.nonzero().squeeze(1)
    named = linear_cross_entropy(hidden, weight, targets, weights, rows=rows, chunk=4)
    found = linear_cross_entropy(hidden, weight, targets, weights, chunk=4)
    assert torch.equal(named.total, found.total)
    for one, other in zip(
        gradients(named.total, hidden, weight), gradients(found.total, hidden, weight), strict=True
    ):
        assert torch.equal(one, other)


def test_nothing_that_counts_gives_nothing(problem: Callable[..., Problem]) -> None:
    hidden, weight, bias, targets, weights = problem()
    found = linear_cross_entropy(hidden, weight, targets, weights * 0, bias=bias, z_loss=0.1)
    assert float(found.total.detach()) == 0.0
    assert all(not g.any() for g in gradients(found.total, hidden, weight, bias))


def test_gradcheck(problem: Callable[..., Problem]) -> None:
    hidden, weight, bias, targets, weights = problem(rows=6, vocab=7)

    def total(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return linear_cross_entropy(h, w, targets, weights, bias=b, chunk=4, z_loss=0.05).total

    def logprobs(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return token_logprobs(h, w, targets, bias=b, chunk=4)

    assert torch.autograd.gradcheck(total, (hidden, weight, bias))
    assert torch.autograd.gradcheck(logprobs, (hidden, weight, bias))


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(problem: Callable[..., Problem], frozen: str) -> None:
    hidden, weight, bias, targets, weights = problem()
    inputs = {"hidden": hidden, "weight": weight, "bias": bias}
    inputs[frozen].requires_grad_(False)
    moving = [tensor for name, tensor in inputs.items() if name != frozen]
    found = linear_cross_entropy(hidden, weight, targets, weights, bias=bias, chunk=4)
    wanted = slow(hidden, weight, bias, targets, weights)
    for one, other in zip(gradients(found.total, *moving), gradients(wanted, *moving), strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 6, 50])
def test_logprobs_are_minus_the_loss_with_any_gradient(
    problem: Callable[..., Problem], chunk: int
) -> None:
    hidden, weight, bias, targets, weights = problem()
    found = token_logprobs(hidden, weight, targets, bias=bias, chunk=chunk)
    nll = linear_cross_entropy(hidden, weight, targets, bias=bias).nll
    assert torch.allclose(found, -nll, rtol=1e-12)
    wanted = -F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
    for one, other in zip(
        torch.autograd.grad((found.exp() * weights).sum(), (hidden, weight, bias)),
        torch.autograd.grad((wanted.exp() * weights).sum(), (hidden, weight, bias)),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_bfloat16_errs_no_more_than_the_plain_way(problem: Callable[..., Problem]) -> None:
    exact = problem(rows=300, vocab=211)
    hidden, weight = (t.detach().bfloat16().requires_grad_() for t in exact[:2])
    targets = exact[3]
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    truth = slow(wide[0], wide[1], None, targets, None)
    ours = linear_cross_entropy(hidden, weight, targets, chunk=64).total
    plain = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
    assert ours.dtype == torch.float32
    for exactly, mine, theirs in zip(
        gradients(truth, *wide),
        gradients(ours, hidden, weight),
        gradients(plain, hidden, weight),
        strict=True,
    ):
        assert mine.dtype == torch.bfloat16
        error, allowed = (float((g.double() - exactly).norm()) for g in (mine, theirs))
        assert error < 2 * allowed


class Largest(TorchDispatchMode):
    """The size in numbers of the largest tensor that any operation returns."""

    size = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.numel())
        return made


@pytest.mark.parametrize("function", ["loss", "logprobs"])
def test_no_tensor_is_as_large_as_the_logits(function: str) -> None:
    rows, width, vocab = 1024, 8, 4096
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = torch.randn(vocab, width, requires_grad=True)
    targets = torch.randint(0, vocab, (rows,))
    with Largest() as plain:
        F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum").backward()
    with Largest() as ours:
        if function == "loss":
            linear_cross_entropy(hidden, weight, targets).total.backward()
        else:
            token_logprobs(hidden, weight, targets).sum().backward()
    assert plain.size == rows * vocab
    assert ours.size == chunk_rows(weight) * vocab < rows * vocab


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_nothing_waits_for_the_host(problem: Callable[..., Problem]) -> None:
    hidden, weight, _, targets, weights = (t.detach().cuda() for t in problem(dtype=torch.float32))
    rows = weights.nonzero().squeeze(1)
    hidden.requires_grad_(), weight.requires_grad_()
    previous = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = linear_cross_entropy(hidden, weight, targets, weights, rows=rows, chunk=4)
        found.total.backward()
    finally:
        torch.cuda.set_sync_debug_mode(previous)
    wanted = slow(hidden, weight, None, targets, weights)
    assert torch.allclose(found.total, wanted, rtol=1e-5)
