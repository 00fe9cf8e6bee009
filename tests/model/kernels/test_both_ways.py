"""Attention that looks ahead as well, against loops over tokens and the float64 definition."""

from __future__ import annotations

import random

import pytest
from model.kernels.cases import (
    assert_close_to,
    cut,
    loop_attention,
    noise_from,
    pack,
    with_gradients,
)
from torch import Tensor

from chatbench.model.attention import AttentionSpec, attention, reference_attention
from chatbench.model.kernels.both_ways import both_ways
from chatbench.model.kernels.task import Task

BOTH_WAYS = AttentionSpec(causal=False)


def qkv(rng: random.Random, tokens: int, group: int) -> list[Tensor]:
    noise = noise_from(rng)
    return [noise(2, tokens, heads, 16) for heads in (2 * group, 2, 2)]


@pytest.mark.parametrize("group", [1, 2])
def test_a_token_sees_the_whole_of_its_document(rng: random.Random, group: int) -> None:
    q, k, v = qkv(rng, 13, group)
    rows = [cut(rng, 13), cut(rng, 13)[::-1]]
    packing = pack(rows)
    document = packing.document.tolist()
    for given, seen in (
        (None, lambda b, t, s: True),
        (packing, lambda b, t, s: document[b][t] == document[b][s]),
    ):
        wanted = loop_attention(q, k, v, 0.25, seen)
        spec = AttentionSpec(scale=0.25, causal=False)
        assert_close_to(attention(q, k, v, spec, given).double(), wanted)
        assert_close_to(reference_attention(q, k, v, spec, given), wanted)


@pytest.mark.parametrize("tokens", [1, 40, 400])
def test_gradients_are_those_of_the_definition(rng: random.Random, tokens: int) -> None:
    leaves = qkv(rng, tokens, rng.choice((1, 2)))
    upstream = noise_from(rng)(*leaves[0].shape)
    for packing in (None, pack([cut(rng, tokens), cut(rng, tokens)[::-1]])):
        exact = with_gradients(
            lambda *x, p=packing: reference_attention(*x, BOTH_WAYS, p), leaves, upstream
        )
        found = with_gradients(lambda *x, p=packing: attention(*x, BOTH_WAYS, p), leaves, upstream)
        for ours, wanted in zip(found, exact, strict=True):
            assert_close_to(ours, wanted)


def test_where_documents_are_not_taken_apart_a_mask_does_it(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v = qkv(rng, 30, 2)
    packing = pack([cut(rng, 30), cut(rng, 30)])
    task = Task(q, k, v, None, 0.25, packing)
    apart = both_ways(task)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    assert_close_to(both_ways(task), apart)


def test_a_packing_serves_both_directions(rng: random.Random) -> None:
    q, k, v = qkv(rng, 400, 1)
    packing = pack([cut(rng, 400), cut(rng, 400)])
    for spec in (AttentionSpec(), BOTH_WAYS, AttentionSpec()):
        wanted = reference_attention(q, k, v, spec, packing)
        assert_close_to(attention(q, k, v, spec, packing).double(), wanted)
