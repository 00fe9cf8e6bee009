"""Every kernel against the float64 reference: output and gradients."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from model.kernels.cases import assert_close_to, cut, filled_cache, noise_from, pack, with_gradients
from torch import Tensor

from chatbench.model.attention import (
    AttentionSpec,
    LayerCache,
    Packing,
    attention,
    reference_attention,
)
from chatbench.model.kernels.choice import BACKENDS
from chatbench.model.kernels.documents import regroup
from chatbench.model.kernels.products import products_attention
from chatbench.model.kernels.task import Task

TOKENS = (1, 7, 128, 257)
GROUPS = (1, 2, 4, 8)
WIDTHS = (16, 64, 80, 128)
GRID = list(product(TOKENS, GROUPS, WIDTHS))
Only = Callable[[str], Any]


def heads_of(group: int) -> tuple[int, int, int]:
    """Heads of q, k and v."""
    kv = 1 if group == 8 else 2
    return group * kv, kv, kv


def hidden(rng: random.Random, tokens: int) -> Iterator[tuple[AttentionSpec, Packing | None]]:
    """Plain, with a window, with documents, with both."""
    window = rng.choice((1, 2, 5, 40, 300))
    packing = pack([cut(rng, tokens), cut(rng, tokens)[::-1]])
    yield AttentionSpec(), None
    yield AttentionSpec(window, rng.uniform(0.05, 0.3)), None
    yield AttentionSpec(), packing
    yield AttentionSpec(window), packing


@pytest.mark.parametrize(("tokens", "group", "width"), GRID)
def test_rows_without_a_cache(
    rng: random.Random, only: Only, tokens: int, group: int, width: int
) -> None:
    noise = noise_from(rng)
    leaves = [noise(2, tokens, heads, width) for heads in heads_of(group)]
    upstream = noise(2, tokens, heads_of(group)[0], width)
    for spec, packing in hidden(rng, tokens):
        exact = with_gradients(
            lambda *x, s=spec, p=packing: reference_attention(*x, s, p), leaves, upstream
        )
        for name in ("sdpa", "documents" if packing else "products"):
            with only(name):
                found = with_gradients(
                    lambda *x, s=spec, p=packing: attention(*x, s, p), leaves, upstream
                )
            for ours, wanted in zip(found, exact, strict=True):
                assert_close_to(ours, wanted)


def size(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("name", ["sdpa", "products", "documents"])
def test_bfloat16_is_as_near_as_the_plain_operation(
    rng: random.Random, only: Only, name: str, group: int
) -> None:
    noise, width = noise_from(rng), rng.choice(WIDTHS)
    leaves = [noise(2, 129, heads, width).bfloat16() for heads in heads_of(group)]
    upstream = noise(2, 129, heads_of(group)[0], width).bfloat16()
    packing = pack([cut(rng, 129), cut(rng, 129)]) if name == "documents" else None
    mask = packing.mask(None) if packing else torch.ones(129, 129, dtype=torch.bool).tril()

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
        scores = torch.einsum("bthd,bshd->bhts", q, k) * width**-0.5
        chances = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return torch.einsum("bhts,bshd->bthd", chances, v)

    with only(name):
        ours = with_gradients(lambda *x: attention(*x, packing=packing), leaves, upstream)
    rough = with_gradients(plain, leaves, upstream)
    exact = with_gradients(plain, [x.double() for x in leaves], upstream)
    for found, near, wanted in zip(ours, rough, exact, strict=True):
        rounding = max(1.0, size(wanted)) * 2**-8
        assert size(found - wanted) <= 2 * size(near - wanted) + rounding


@pytest.mark.parametrize("window", [None, 1, 2, 6])
@pytest.mark.parametrize(("tokens", "block"), [(1, 4), (7, 3), (8, 4), (5, 9)])
@pytest.mark.parametrize("group", [1, 3])
def test_products_have_the_gradient_of_what_they_compute(
    rng: random.Random, tokens: int, block: int, window: int | None, group: int
) -> None:
    noise = noise_from(rng)
    leaves = [noise(2, tokens, n, 2).double().requires_grad_() for n in (2 * group, 2, 2)]

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return products_attention(Task(q, k, v, window, 0.7), block)

    assert torch.autograd.gradcheck(call, leaves, fast_mode=tokens > 5)
    exact = reference_attention(*leaves, AttentionSpec(window, 0.7))
    torch.testing.assert_close(call(*leaves), exact)
    with torch.no_grad():
        torch.testing.assert_close(call(*leaves), exact)


LENGTHS = {"one": [70], "empty": [0], "even": [33, 33], "ragged": [41, 0, 80, 1]}


@pytest.mark.parametrize("rows", LENGTHS)
@pytest.mark.parametrize(("group", "width"), [(1, 64), (2, 80), (4, 16), (8, 128)])
def test_tokens_after_a_cache(
    rng: random.Random, only: Only, rows: str, group: int, width: int
) -> None:
    """Lengths of 0, and one that the new tokens fill to the last place."""
    lengths = LENGTHS[rows]
    for new, window in product((1, 3, 20), (None, 1, 30)):
        noise = noise_from(rng)
        cache = filled_cache(noise, lengths, max(lengths) + new, heads_of(group)[1], width)
        task = [noise(len(lengths), new, heads, width) for heads in heads_of(group)]
        spec = AttentionSpec(window, rng.uniform(0.1, 0.3))
        exact = reference_attention(*task, spec, cache=cache)
        names = {"ragged": ["rows"], "one": ["products"]}.get(rows, []) if new < 20 else []
        for name in ["sdpa", "reference", *names]:
            copy = cache._replace(keys=cache.keys.clone(), values=cache.values.clone())
            with only(name):
                found = attention(*task, spec, cache=copy)
            assert_close_to(found.double(), exact)


@pytest.mark.parametrize("name", ["sdpa", "products", "reference"])
@pytest.mark.parametrize("window", [None, 1, 25])
def test_a_decoded_row_is_the_last_row_of_the_whole(
    rng: random.Random, only: Only, name: str, window: int | None
) -> None:
    noise, spec = noise_from(rng), AttentionSpec(window)
    q, k, v = (noise(1, 90, heads, 16) for heads in (8, 2, 2))
    whole = attention(q, k, v, spec)[:, -1:]
    cache = filled_cache(noise, [89], 95, 2, 16)
    cache.keys[:, :89], cache.values[:, :89] = k[:, :89], v[:, :89]
    with only(name):
        last = attention(q[:, -1:], k[:, -1:], v[:, -1:], spec, cache=cache)
    torch.testing.assert_close(last, whole, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 3, 200])
@pytest.mark.parametrize("group", [1, 4])
def test_any_split_into_prefill_and_decoding_gives_the_whole(
    rng: random.Random, window: int | None, group: int
) -> None:
    """Far enough for every kernel that the CPU has for decoding."""
    noise, spec, tokens = noise_from(rng), AttentionSpec(window), 320
    q, k, v = (noise(1, tokens, heads, 16).double() for heads in heads_of(group))
    store = torch.zeros(2, 1, tokens, heads_of(group)[1], 16, dtype=torch.float64)
    parts, at = [], 0
    while at < tokens:
        end = min(tokens, at + rng.choice((1, 1, 4, 17, 90)))
        cache = LayerCache(store[0], store[1], torch.tensor([at]), at)
        parts.append(attention(q[:, at:end], k[:, at:end], v[:, at:end], spec, cache=cache))
        at = end
    exact = reference_attention(q, k, v, spec)
    torch.testing.assert_close(torch.cat(parts, 1), exact, atol=1e-6, rtol=1e-6)


def test_regrouping_finds_every_token_once(rng: random.Random) -> None:
    rows = [cut(rng, 90), cut(rng, 90)[::-1], [90], [45, 45]]
    plan = regroup(pack(rows))
    tokens = torch.arange(4 * 90)
    assert torch.equal(plan.gather[plan.scatter], tokens)
    assert sorted([*plan.scatter.tolist(), *plan.padding.tolist()]) == list(range(len(plan.gather)))
    assert sum(n * length for n, length in plan.shapes) == len(plan.gather)
    assert sum(n for n, _ in plan.shapes) == sum(map(len, rows))
    assert len(plan.gather) <= 4 / 3 * 360


def test_boundaries_made_while_scoring_serve_training(rng: random.Random, only: Only) -> None:
    noise, packing = noise_from(rng), pack([cut(rng, 60), cut(rng, 60)])
    for name in ("documents", "sdpa"):
        q, k, v = (noise(2, 60, 2, 16).requires_grad_() for _ in range(3))
        with torch.inference_mode(), only(name):
            scored = attention(q, k, v, packing=packing)
        with only(name):
            learned = attention(q, k, v, packing=packing)
            learned.sum().backward()
        assert q.grad is not None
        torch.testing.assert_close(learned.detach(), scored.clone())


def ends_laid_out(
    q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, window: tuple[int, int],
    scale: float, most: int,
) -> Tensor:  # fmt: skip
    """What FlashAttention over rows laid end to end promises: documents from starts, `window`
    tokens to the left and right of each."""
    assert q_ends.dtype == torch.int32
    assert torch.equal(q_ends, k_ends)
    assert int(q_ends[-1]) == len(q)
    out = torch.zeros_like(q)
    for begin, end in zip(q_ends.tolist(), q_ends.tolist()[1:], strict=False):
        assert end - begin <= most
        at = torch.arange(end - begin)
        gap = at - at[:, None]
        left, right = (x if x >= 0 else len(q) for x in window)
        mask = (gap <= right) & (gap >= -left)
        parts = (x[None, begin:end].transpose(1, 2) for x in (q, k, v))
        done = torch.nn.functional.scaled_dot_product_attention(
            *parts, attn_mask=mask, scale=scale, enable_gqa=True
        )
        out[begin:end] = done[0].transpose(0, 1)
    return out


@pytest.mark.parametrize("door", ["varlen", "flash3"])
def test_documents_laid_end_to_end(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    """Our side of kernels that run on GPUs only, with a stand-in that keeps their promise."""
    from chatbench.model.kernels import varlen

    def stand_in(
        q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, x: int, y: int, **options: Any
    ) -> Any:
        assert x == y
        scale = options.get("scale", options.get("softmax_scale"))
        left, right = options["window_size"]
        right = 0 if options.get("causal") else right
        out = ends_laid_out(q, k, v, a, b, (left, right), scale, x)
        return (out, None) if "causal" in options else out

    def rows(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        ends = torch.arange(len(q) + 1, dtype=torch.int32) * q.shape[1]
        flat = (x.flatten(0, 1) for x in (q, k, v))
        return stand_in(*flat, ends, ends, q.shape[1], q.shape[1], **options)[0].view_as(q)

    package = type("flash_attn_interface", (), {})
    package.flash_attn_varlen_func, package.flash_attn_func = stand_in, rows
    monkeypatch.setitem(__import__("sys").modules, "flash_attn_interface", package)
    monkeypatch.setattr(varlen, "_varlen", {"call": stand_in, "grouped": {"enable_gqa": True}})
    noise = noise_from(rng)
    q, k, v = (noise(2, 70, heads, 16) for heads in (4, 2, 2))
    for spec, packing in hidden(rng, 70):
        found = BACKENDS[door].run(Task(q, k, v, spec.window, spec.scale or 0.25, packing))
        exact = reference_attention(q, k, v, AttentionSpec(spec.window, spec.scale), packing)
        assert_close_to(found.double(), exact)


def test_the_triton_kernel_is_given_lengths_that_count_the_new_tokens(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chatbench.model.kernels import triton_decode

    monkeypatch.setattr(triton_decode, "decode_attention", triton_decode.decode_attention_torch)
    monkeypatch.setitem(
        BACKENDS, "triton", BACKENDS["triton"]._replace(unfit=lambda kind: "", trusted=True)
    )
    monkeypatch.setenv("CHATBENCH_ATTENTION", "triton")
    noise = noise_from(rng)
    for new, window in product((1, 4), (None, 7)):
        cache = filled_cache(noise, [3, 0, 61], 80, 2, 16)
        task, spec = [noise(3, new, heads, 16) for heads in (4, 2, 2)], AttentionSpec(window, 0.2)
        exact = reference_attention(*task, spec, cache=cache)
        found = attention(*task, spec, cache=cache)
        assert_close_to(found.double(), exact)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["sdpa", "varlen", "flash3", "triton"])
def test_on_a_gpu(rng: random.Random, only: Only, name: str, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no accelerator here")
    noise, far = noise_from(rng), torch.device("cuda")
    allowed = 2e-2 if dtype == torch.bfloat16 else 2e-3
    q, k, v = (noise(3, 300, heads, 64).to(far, dtype) for heads in (8, 2, 2))
    packing = pack([cut(rng, 300) for _ in range(3)]).to(far)
    cache = filled_cache(noise, [120, 0, 299], 600, 2, 64)
    cache = LayerCache(*(x.to(far, dtype) for x in cache[:2]), cache.lengths.to(far), 299)
    for spec in (AttentionSpec(), AttentionSpec(33)):
        calls: list[tuple[int, dict[str, Any]]] = [
            (300, {"packing": packing}),
            (1, {"cache": cache}),
        ]
        for tokens, place in calls:
            inputs = [x[:, :tokens].contiguous() for x in (q, k, v)]
            exact = reference_attention(*inputs, spec, **place)
            try:
                with only(name):
                    found = attention(*inputs, spec, **place)
            except AssertionError as error:
                if "was not used" not in str(error):
                    raise
                continue
            assert size(found.double() - exact) <= allowed * size(exact)
