"""token_losses: every token once, with all the context that fits."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chatbench.engine.score import continuation_losses, token_losses
from chatbench.evaluate.tasks import Sums, likelihood_measured
from chatbench.model.transformer import GPT

Make = Callable[..., GPT]


def ids_of(rng: random.Random, model: GPT, tokens: int) -> list[int]:
    return [rng.randrange(model.config.vocab_size) for _ in range(tokens)]


def losses(
    model: GPT, sequences: list[list[int]], prefix: list[int], batch_size: int = 4
) -> list[Tensor]:
    return list(token_losses(model, sequences, prefix, batch_size))


def same(found: Tensor, wanted: Tensor) -> bool:
    """Equal but for the float32 in which the cross entropy is computed."""
    return found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def full(model: GPT, ids: list[int]) -> Tensor:
    """-ln p of ids[1:], all of them in one row of the model."""
    chances = F.log_softmax(model.logits(model(torch.tensor([ids[:-1]])))[0], dim=-1)
    return torch.stack([-row[target] for row, target in zip(chances, ids[1:], strict=True)])


def test_losses_are_those_worked_out_by_hand(make_chain: Make) -> None:
    follows = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.6, 0.3], [0.8, 0.15, 0.05]])
    model = make_chain(follows.log())
    without, empty, lone = losses(model, [[0, 1, 1, 2, 0], [], [2]], [])
    assert without.tolist() == pytest.approx(
        [0.0, -math.log(0.25), -math.log(0.6), -math.log(0.3), -math.log(0.8)], abs=1e-6
    )
    assert empty.tolist() == []
    assert lone.tolist() == [0.0]
    behind, empty, lone = losses(model, [[0, 1], [], [2]], [1])
    assert behind.tolist() == pytest.approx([-math.log(0.1), -math.log(0.25)], abs=1e-6)
    assert empty.tolist() == []
    assert lone.tolist() == pytest.approx([-math.log(0.3)], abs=1e-6)


def test_one_pass_scores_what_fits_the_context(make_model: Make, rng: random.Random) -> None:
    model = make_model(context=32)
    rows = [ids_of(rng, model, length) for length in (1, 2, 31, 32, 7, 20)]
    for row, found in zip(rows, losses(model, rows, [5]), strict=True):
        assert same(found, full(model, [5, *row]))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_the_batch_does_not_matter(make_model: Make, rng: random.Random, batch_size: int) -> None:
    model = make_model(context=16)
    rows = [ids_of(rng, model, length) for length in (3, 0, 50, 1, 16, 17, 120, 9, 0)]
    prefix = ids_of(rng, model, rng.randrange(3))
    found = losses(model, rows, prefix, batch_size)
    for row, together in zip(rows, found, strict=True):
        assert len(together) == len(row)
        (by_itself,) = losses(model, [row], prefix, 1)
        assert same(together, by_itself)


@pytest.mark.parametrize("context", [2, 3, 8, 9])
@pytest.mark.parametrize("prefixed", [0, 1, 4, 9])
def test_each_token_of_a_long_text_sees_half_a_context_at_least(
    make_model: Make, rng: random.Random, context: int, prefixed: int
) -> None:
    """Its loss is the loss behind some window of at least that many tokens, or behind all."""
    model = make_model(context=context)
    prefix, row = ids_of(rng, model, prefixed), ids_of(rng, model, 40)
    (found,) = losses(model, [row], prefix)
    ids = [*prefix, *row]
    for at in range(max(1, prefixed), len(ids)):
        fewest = min(at, context // 2)
        windows = [
            full(model, ids[at - n : at + 1])[-1:] for n in range(fewest, context + 1) if n <= at
        ]
        loss = found[at - prefixed, None]
        assert any(same(loss, window) for window in windows), at


def test_the_tokens_that_fit_see_everything_before_them(
    make_model: Make, rng: random.Random
) -> None:
    model = make_model(context=16)
    row = ids_of(rng, model, 60)
    (found,) = losses(model, [row], [3])
    assert same(found[:16], full(model, [3, *row[:16]]))


def test_the_prefix_is_context_and_not_scored(make_model: Make, rng: random.Random) -> None:
    model = make_model()
    prefix, row = ids_of(rng, model, 6), ids_of(rng, model, 10)
    (found,) = losses(model, [row], prefix)
    assert same(found, full(model, [*prefix, *row])[5:])


def test_results_come_while_sequences_are_still_read(make_model: Make, rng: random.Random) -> None:
    model, taken = make_model(context=16), []

    def rows() -> object:
        for number in range(50):
            taken.append(number)
            yield ids_of(rng, model, 5)

    next(token_losses(model, rows(), [1], 4))  # type: ignore[arg-type]
    assert len(taken) < 10


def test_losses_are_float64_and_need_no_gradient(make_model: Make) -> None:
    (found,) = losses(make_model(), [[1, 2, 3]], [])
    assert found.dtype == torch.float64
    assert not found.requires_grad


@pytest.mark.parametrize("stride", [1, 2, 5, 8, 100])
@pytest.mark.parametrize("asked", [None, 8, 3, 99])
def test_windows_of_any_stride_score_each_token_once_with_what_was_stated(
    make_model: Make, rng: random.Random, stride: int, asked: int | None
) -> None:
    model = make_model(context=8)
    prefix, row = ids_of(rng, model, rng.randrange(3)), ids_of(rng, model, 30)
    (found,) = token_losses(model, [row], prefix, 3, asked, stride)
    assert len(found) == len(row)
    context = min(asked or 8, 8)
    ids = [*prefix, *row]
    for at in range(max(1, len(prefix)), len(ids)):
        fewest = min(at, max(1, context - stride + 1))
        windows = [
            full(model, ids[at - n : at + 1])[-1:] for n in range(fewest, min(at, context) + 1)
        ]
        loss = found[at - len(prefix), None]
        assert any(same(loss, window) for window in windows), at
        if stride == 1:
            assert same(loss, windows[-1]), "moving by one, all see as much as there is"


def test_the_last_window_reaches_back_as_far_as_it_can(
    make_model: Make, rng: random.Random
) -> None:
    model = make_model(context=8)
    row = ids_of(rng, model, 18)
    (found,) = token_losses(model, [row], [], 1, None, 8)
    assert same(found[17:], full(model, row[9:])[-1:])


def test_perplexity_of_a_corpus_of_three_tokens_by_hand(make_chain: Make) -> None:
    follows = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.6, 0.3], [0.8, 0.15, 0.05]])
    rows = losses(make_chain(follows.log()), [[0, 1, 2], [1]], [0], 2)
    sums = [Sums(math.fsum(row.tolist()), len(row)) for row in rows]
    (perplexity,) = likelihood_measured(sums, "context:8")
    wanted = (0.5 * 0.25 * 0.3 * 0.25) ** (-1 / 4)
    assert perplexity.value == pytest.approx(wanted, rel=1e-6)
    assert perplexity.n == 4
    mean_of_means = (math.log(1 / (0.5 * 0.25 * 0.3)) / 3 + math.log(4)) / 2
    assert perplexity.value != pytest.approx(math.exp(mean_of_means), rel=1e-3)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_continuations_are_scored_behind_all_that_fits(
    make_model: Make, rng: random.Random, batch_size: int
) -> None:
    model = make_model(context=16)
    rows = [(ids_of(rng, model, n), begin) for n, begin in
            ((2, 1), (9, 4), (9, 8), (17, 16), (17, 1), (30, 25), (30, 10), (5, 5))]  # fmt: skip
    for (ids, begin), found in zip(rows, continuation_losses(model, rows, batch_size), strict=True):
        kept = ids[-17:]
        wanted = full(model, kept)[max(begin - len(ids) + len(kept), 1) - 1 :]
        assert same(found, wanted.double())
