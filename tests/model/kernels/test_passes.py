"""The passes of a training step in C: numbers and gradients of torch's operations in float64."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chatbench.errors import UsageError
from chatbench.model.attention import attention, rotate
from chatbench.model.head import linear_cross_entropy
from chatbench.model.kernels import passes
from chatbench.model.transformer import GPT, ModelConfig, initialise

_train = pytest.importorskip("chatbench.model.kernels._train")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
WIDTHS = (1, 7, 8, 24, 65, 384)
# Half a unit in the last place of what is stored, and a few of float32 for what is computed.
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
EPS = 2.0**-23


@pytest.fixture
def generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(1 << 32))


@pytest.fixture(params=[True, False], ids=["vectors", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With and without vector instructions."""
    run = passes._run
    fast = bool(request.param)
    monkeypatch.setattr(passes, "_run", lambda *a, **k: run(*a, **{**k, "fast": fast}))
    return fast


def noise(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def both(
    ours: Callable[..., Tensor], exact: Callable[..., Tensor], leaves: Sequence[Tensor],
    upstream: Tensor,
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """Output and gradients of ours in the leaves' format, of `exact` in float64."""
    pairs = []
    for call, dtype in ((ours, leaves[0].dtype), (exact, torch.float64)):
        own = [x.detach().to(dtype).requires_grad_() for x in leaves]
        out = call(*own)
        pairs.append([out.detach(), *torch.autograd.grad(out, own, upstream.to(dtype))])
    return list(zip(*pairs, strict=True))


def assert_within(found: Tensor, exact: Tensor, size: Tensor | float, terms: float) -> None:
    """Off by the rounding of the result and by `terms` roundings of float32 of `size`."""
    bound = ROUNDING[found.dtype] * exact.abs() + terms * EPS * torch.as_tensor(size)
    off = (found.double() - exact).abs()
    assert bool((off <= bound).all()), float((off - bound).max())


@DTYPES
@pytest.mark.parametrize("width", WIDTHS)
def test_rms_norm(generator: torch.Generator, dtype: torch.dtype, width: int, way: bool) -> None:
    x, g = noise(generator, dtype, 2, 35, width), noise(generator, dtype, 2, 35, width)
    weight = noise(generator, dtype, width)
    pairs = both(
        lambda x, w: passes.rms_norm(x, w, 1e-6),
        lambda x, w: F.rms_norm(x, (width,), w, 1e-6),
        (x, weight), g,
    )  # fmt: skip
    (out, exact), (dx, exact_dx), (dw, exact_dw) = pairs
    wide, told = x.double(), g.double() * weight.double()
    scale = 1 / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    # A sum of W squares or products is off by at most W roundings of its magnitudes.
    terms = width + 8
    assert_within(out, exact, exact.abs(), terms)
    along = (told * wide * scale).abs().mean(-1, keepdim=True)
    assert_within(dx, exact_dx, scale * (told.abs() + (wide * scale).abs() * along), 3 * terms)
    summed = (g.double() * wide * scale).abs().sum((0, 1))
    assert_within(dw, exact_dw, summed, terms + 70)


@DTYPES
def test_swiglu(generator: torch.Generator, dtype: torch.dtype, way: bool) -> None:
    gate = noise(generator, dtype, 3, 1237) * 6
    gate[0, :4] = torch.tensor([0.0, 90.0, -90.0, -300.0], dtype=dtype)
    up, g = noise(generator, dtype, 3, 1237), noise(generator, dtype, 3, 1237)
    pairs = both(passes.swiglu, lambda a, b: F.silu(a) * b, (gate, up), g)
    (out, exact), (da, exact_da), (db, exact_db) = pairs
    # The power has a few units; what is tiny may become 0 or 1e-38 times it.
    tiny = 1e-26
    assert_within(out, exact, exact.abs() + tiny, 16)
    assert_within(db, exact_db, exact_db.abs() + tiny, 16)
    x, told = gate.double(), (g.double() * up.double()).abs()
    open_ = torch.sigmoid(x)
    assert_within(da, exact_da, told * open_ * (1 + x.abs()) + tiny, 24)


@DTYPES
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("width", [2, 6, 20, 32, 64])
def test_heads_are_normed_and_turned(
    generator: torch.Generator, rng: random.Random, dtype: torch.dtype, normed: bool, width: int,
    way: bool,
) -> None:  # fmt: skip
    rows, tokens, heads = 3, rng.randrange(1, 14), rng.randrange(1, 5)
    positions = rng.choice((1, rows))
    angle = torch.randn(positions, tokens, 1, width // 2, generator=generator) * 9
    cos, sin = (torch.cat((f(angle), f(angle)), -1).to(dtype) for f in (torch.cos, torch.sin))
    x = noise(generator, dtype, rows, tokens, heads, width)
    g = noise(generator, dtype, rows, heads, tokens, width).transpose(1, 2)
    weight = noise(generator, dtype, width)

    def exact(x: Tensor, w: Tensor | None = None) -> Tensor:
        x = x if w is None else F.rms_norm(x, (width,), w, 1e-6)
        return rotate(x, cos.double(), sin.double())

    def ours(x: Tensor, w: Tensor | None = None) -> Tensor:
        return passes.turn(x, w, 1e-6, cos, sin)

    pairs = both(ours, exact, (x, weight) if normed else (x,), g)
    assert pairs[0][0].transpose(1, 2).is_contiguous()
    terms = width + 16
    # Turning mixes two numbers of a head, so magnitudes are those of the head's largest.
    for found, wanted in pairs[:2]:
        size = wanted.abs().amax(-1, keepdim=True)
        if found is pairs[1][0] and normed:
            wide = x.double()
            scale = 1 / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            told = (2 * g.double().abs().amax(-1, keepdim=True)) * weight.double().abs().max()
            size = scale * told * (1 + (wide * scale).abs().amax(-1, keepdim=True) ** 2)
        elif found is pairs[0][0]:
            size = exact_size(x, weight if normed else None)
        else:
            size = 2 * g.double().abs().amax(-1, keepdim=True)
        assert_within(found, wanted, size, 3 * terms)
    if normed:
        found, wanted = pairs[2]
        wide = x.double()
        scale = 1 / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        size = ((2 * g.double().abs().amax(-1, keepdim=True)) * (wide * scale).abs()).sum((0, 1, 2))
        assert_within(found, wanted, size, rows * tokens * heads + terms)


def exact_size(x: Tensor, weight: Tensor | None) -> Tensor:
    """The largest number of a head before it is turned, twice."""
    x = x.double()
    if weight is not None:
        x = F.rms_norm(x, (x.shape[-1],), weight.double(), 1e-6)
    return 2 * x.abs().amax(-1, keepdim=True)


def test_softmax_of_a_tile_of_attention(
    generator: torch.Generator, rng: random.Random, way: bool
) -> None:
    tokens, group, before = rng.randrange(1, 20), rng.randrange(1, 4), rng.randrange(0, 30)
    scores = torch.randn(5, tokens * group, before + tokens, generator=generator) * 8
    query = torch.arange(tokens).repeat_interleave(group)[:, None]
    hidden = torch.arange(before + tokens) > before + query
    exact = scores.double().masked_fill(hidden, -torch.inf).softmax(-1)
    passes.attend_(scores, tokens, group, before)
    # exp of a difference is off by the rounding of the difference, here below 128.
    assert_within(scores, exact, exact + 1e-30, 128 + before + tokens)
    assert bool((scores[hidden.expand_as(scores)] == 0).all())


@pytest.mark.parametrize("vocabulary", [1, 9, 64, 1003])
def test_slopes_of_the_cross_entropy(
    generator: torch.Generator, vocabulary: int, way: bool
) -> None:
    logits = torch.randn(17, vocabulary, generator=generator) * 8
    targets = torch.randint(vocabulary, (17,), generator=generator)
    wide = logits.double().requires_grad_()
    exact = F.cross_entropy(wide, targets, reduction="none")
    (slope,) = torch.autograd.grad(exact.sum(), wide)
    losses = passes.slopes_(logits, targets)
    assert_within(losses, exact.detach(), 128.0, 4 + vocabulary / 64)
    assert_within(logits, slope, slope.abs() + F.one_hot(targets, vocabulary), 136 + vocabulary)


def test_targets_outside_the_vocabulary_are_refused() -> None:
    for wrong in (-1, 4):
        with pytest.raises(IndexError, match="vocabulary of 4"):
            passes.slopes_(torch.zeros(2, 4), torch.tensor([0, wrong]))


def test_what_is_not_finite_stays_so(way: bool) -> None:
    for bad in (torch.nan, torch.inf):
        x = torch.ones(2, 40)
        x[1, 39] = bad
        x.requires_grad_()
        normed = passes.rms_norm(x, torch.ones(40), 1e-6)
        gated = passes.swiglu(x, torch.ones(2, 40))
        losses = passes.slopes_(x.detach().clone(), torch.tensor([3, 3]))
        for found in (normed[:, 39], gated[:, 39], losses):
            assert bool(found[0].isfinite())
            assert not bool(found[1].isfinite())


CONFIG = ModelConfig(300, 2, 64, 4, 2, 16, 128, 48)


def gradients(threads: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        generator = torch.Generator().manual_seed(seed)
        x = noise(generator, dtype, 4, 300, 4, 32).requires_grad_()
        weight = noise(generator, dtype, 32).requires_grad_()
        wide = noise(generator, dtype, 1200, 128).requires_grad_()
        scale = noise(generator, dtype, 128).requires_grad_()
        angle = torch.randn(1, 300, 1, 16, generator=generator).repeat(1, 1, 1, 2)
        turned = passes.turn(x, weight, 1e-6, angle.cos().to(dtype), angle.sin().to(dtype))
        normed = passes.rms_norm(wide, scale, 1e-6)
        gated = passes.swiglu(normed, wide)
        total = turned.sum(dtype=torch.float32) + (gated * gated).sum(dtype=torch.float32)
        return [turned, gated, *torch.autograd.grad(total, (x, weight, wide, scale))]
    finally:
        torch.set_num_threads(before)


@DTYPES
def test_any_number_of_threads_gives_the_same_bits(rng: random.Random, dtype: torch.dtype) -> None:
    seed = rng.randrange(1 << 32)
    alone = gradients(1, dtype, seed)
    for threads in (2, 3):
        for a, b in zip(alone, gradients(threads, dtype, seed), strict=True):
            assert torch.equal(a, b)


def model_gradients(model: GPT, ids: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    hidden = model(ids).flatten(0, 1)
    loss = linear_cross_entropy(hidden, model.lm_head.weight, targets.flatten()).total
    loss.backward()
    found = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach().double(), found


def test_a_step_of_a_model_is_that_of_torch(
    generator: torch.Generator, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = GPT(CONFIG).train()
    initialise(model, rng.randrange(1000))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.05
    ids = torch.randint(300, (3, 41), generator=generator)
    calls: list[str] = []
    run = passes._run
    monkeypatch.setattr(
        passes, "_run", lambda name, *a, **k: (calls.append(name), run(name, *a, **k))
    )
    ours = model_gradients(model, ids[:, :-1], ids[:, 1:])
    assert {"norm", "norm_back", "gate", "gate_back", "turn", "turn_back", "slope"} <= set(calls)
    monkeypatch.setattr(passes, "why_not", lambda: "for a test")
    calls.clear()
    exact = model_gradients(model.double(), ids[:, :-1], ids[:, 1:])
    assert not calls
    torch.testing.assert_close(ours[0], exact[0], rtol=1e-5, atol=0)
    for name, wanted in exact[1].items():
        # Hundreds of roundings of float32 over two blocks, of numbers as large as the largest.
        off = float((ours[1][name] - wanted).norm())
        assert off <= 1e-4 * float(wanted.norm()), name


def test_products_use_the_softmax(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATBENCH_ATTENTION", "products")
    calls: list[str] = []
    run = passes._run
    monkeypatch.setattr(
        passes, "_run", lambda name, *a, **k: (calls.append(name), run(name, *a, **k))
    )
    q = torch.randn(2, 40, 4, 8, generator=generator, requires_grad=True)
    attention(q, q, q).sum().backward()
    assert calls
    assert set(calls) == {"attend"}


def test_only_training_on_a_cpu_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(3, 4, requires_grad=True)
    assert passes.serves(x) == (passes.why_not() == "")
    assert not passes.serves(x.detach())
    assert not passes.serves(x.double())
    assert not passes.serves(x, x.detach().bfloat16())
    assert not passes.serves(torch.ones(0, 4, requires_grad=True))
    with torch.no_grad():
        assert not passes.serves(x)
    meta = torch.ones(3, 4, device="meta", requires_grad=True)
    assert not passes.serves(meta)
    monkeypatch.setattr(passes, "why_not", lambda: "for a test")
    assert not passes.serves(x)


def test_the_environment_names_the_way(tmp_path: object) -> None:
    code = "from chatbench.model.kernels import passes; print(bool(passes.why_not()))"
    for value, expected in (("torch", "True"), ("compiled", str(bool(passes.why_not())))):
        environment = {**os.environ, passes.FORCE: value}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert done.stdout.strip() == expected, done.stderr


def test_an_unknown_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(passes.FORCE, "magic")
    passes.why_not.cache_clear()
    try:
        with pytest.raises(UsageError, match="magic names no way"):
            passes.why_not()
    finally:
        passes.why_not.cache_clear()


def test_the_extension_refuses_what_does_not_belong_together() -> None:
    nowhere = (0,) * 13
    for number, sizes in ((99, (1,) * 7), (4, (1, 3, 1, 1, 1, 1, 1)), (6, (1, 4, 2, 1, 1, 1, 3))):
        with pytest.raises(ValueError, match="belong together"):
            _train.run(number, 0, 1, True, 0, 1, nowhere, sizes, 0.0, *((0, 0, 0),) * 3)
