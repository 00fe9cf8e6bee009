"""choose and its filters against a slow sorted twin in float64."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from chatbench.engine.sampling import choose, choose_rows, likely_tokens
from chatbench.errors import IntegrityError
from chatbench.settings import SamplingSettings

DRAWS = 20_000


def sampling(**changes: Any) -> SamplingSettings:
    """Plain sampling, no filter on."""
    return SamplingSettings(**{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **changes})


def generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(1 << 40))


def draw(rng: random.Random, size: int, spread: float = 6.0) -> Tensor:
    """Distinct scores from -spread to spread, for which of two equals is kept is open."""
    steps = rng.sample(range(-(1 << 15), 1 << 15), size)
    return torch.tensor(steps) / (1 << 15) * spread


def chances(scores: list[float]) -> list[float]:
    mass = [math.exp(score - max(scores)) for score in scores]
    return [m / math.fsum(mass) for m in mass]


def kept_by_sorting(scores: Tensor, settings: SamplingSettings) -> set[int]:
    """The filters as their papers say them, one after the other, in Python floats."""
    values = scores.double().tolist()
    ids = sorted(range(len(values)), key=lambda i: -values[i])
    ids = ids[: settings.top_k or len(ids)]
    if settings.top_p < 1:
        reached, count = 0.0, 0
        for chance in chances([values[i] for i in ids]):
            if reached >= settings.top_p:
                break
            reached, count = reached + chance, count + 1
        ids = ids[:count]
    found = chances([values[i] for i in ids])
    return {i for i, chance in zip(ids, found, strict=True) if chance >= settings.min_p * found[0]}


def test_the_filters_keep_exactly_what_sorting_keeps(rng: random.Random) -> None:
    for _ in range(300):
        scores = draw(rng, rng.choice((1, 2, 5, 400)))
        settings = sampling(
            top_k=rng.choice((0, 1, 3, 50, 1000)),
            top_p=rng.choice((1.0, rng.uniform(0.01, 1.0), 1e-9, 0.999)),
            min_p=rng.choice((0.0, rng.random(), 0.999)),
        )
        kept, ids = likely_tokens(scores, settings)
        assert set(ids.tolist()) == kept_by_sorting(scores, settings)
        assert torch.equal(kept, scores[ids])
        if len(kept) < len(scores) or settings.top_k or settings.top_p < 1:
            assert kept.tolist() == sorted(kept.tolist(), reverse=True)


def test_the_nucleus_ends_as_soon_as_its_mass_is_reached() -> None:
    for top_p, count in ((0.25, 1), (0.26, 2), (0.5, 2), (0.99, 4)):
        _, ids = likely_tokens(torch.zeros(4), sampling(top_p=top_p))
        assert len(ids) == count


def test_temperature_zero_takes_the_likeliest_whatever_else_is_set(rng: random.Random) -> None:
    for _ in range(50):
        scores = draw(rng, 40)
        settings = sampling(temperature=0, top_k=rng.randrange(9), top_p=rng.uniform(0.01, 1))
        assert choose(scores, settings, generator(rng)) == int(scores.argmax())


def chi_square(counts: list[int], expected: list[float]) -> float:
    return sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_draws_follow_the_distribution(rng: random.Random, temperature: float) -> None:
    scores = torch.tensor([0.7, -0.2, 1.3, 0.0, -1.1, 0.4, -0.6, 1.0])
    settings, source = sampling(temperature=temperature), generator(rng)
    counts = [0] * len(scores)
    for _ in range(DRAWS):
        counts[choose(scores, settings, source)] += 1
    expected = [DRAWS * c for c in chances((scores / temperature).tolist())]
    # Seven degrees of freedom: above 50 once in a hundred million runs.
    assert chi_square(counts, expected) < 50


def test_filtered_draws_follow_the_renormalised_distribution(rng: random.Random) -> None:
    scores = torch.tensor([0.7, -0.2, 1.3, 0.0, -1.1, 0.4, -0.6, 1.0])
    settings, source = sampling(top_k=4, top_p=0.9), generator(rng)
    kept = sorted(kept_by_sorting(scores, settings))
    assert 1 < len(kept) <= 4
    counts = [0] * len(scores)
    for _ in range(DRAWS):
        counts[choose(scores, settings, source)] += 1
    assert sum(counts[i] for i in kept) == DRAWS
    expected = [DRAWS * c for c in chances([float(scores[i]) for i in kept])]
    assert chi_square([counts[i] for i in kept], expected) < 50


def test_a_seed_fixes_the_draws_and_another_changes_them(rng: random.Random) -> None:
    scores, seed = draw(rng, 200, 0.5), rng.randrange(1 << 40)

    def drawn(number: int) -> list[int]:
        source = torch.Generator().manual_seed(number)
        return [choose(scores, sampling(), source) for _ in range(30)]

    assert drawn(seed) == drawn(seed)
    assert drawn(seed) != drawn(seed + 1)


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_scores() -> None:
    greedy = sampling(temperature=0, repetition_penalty=2.0)
    source = torch.Generator()
    # 3 becomes 1.5, and -1 becomes -2.
    assert choose(torch.tensor([3.0, 1.6]), greedy, source, torch.tensor([0])) == 1
    assert choose(torch.tensor([3.0, 1.4]), greedy, source, torch.tensor([0])) == 0
    assert choose(torch.tensor([-1.0, -1.9]), greedy, source, torch.tensor([0])) == 1
    assert choose(torch.tensor([-1.0, -2.1]), greedy, source, torch.tensor([0])) == 0


def test_the_penalty_spares_what_was_not_seen_and_the_scores_given(rng: random.Random) -> None:
    scores = draw(rng, 30)
    before = scores.clone()
    greedy = sampling(temperature=0, repetition_penalty=1.5)
    for seen in (None, torch.tensor([], dtype=torch.long)):
        assert choose(scores, greedy, generator(rng), seen) == int(scores.argmax())
    choose(scores, greedy, generator(rng), torch.arange(30))
    assert torch.equal(scores, before)


def test_the_penalty_comes_before_the_filters() -> None:
    settings = sampling(top_k=1, repetition_penalty=4.0)
    scores = torch.tensor([2.0, 1.0])
    assert choose(scores, settings, torch.Generator(), torch.tensor([0])) == 1


def test_half_precision_logits_are_sampled_in_full(rng: random.Random) -> None:
    scores, seed = draw(rng, 300).bfloat16(), rng.randrange(1 << 40)
    drawn = [
        choose(given, sampling(), torch.Generator().manual_seed(seed))
        for given in (scores, scores.float())
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    "own",
    [
        {"temperature": 0.0}, {"top_k": 20}, {"top_k": 280}, {}, {"top_p": 0.9}, {"min_p": 0.1},
        {"top_k": 20, "top_p": 0.5},
    ],
)  # fmt: skip
@pytest.mark.parametrize("odd", [math.nan, math.inf, None])
def test_scores_that_are_no_numbers_are_a_fault_of_the_model(
    rng: random.Random, own: dict[str, Any], odd: float | None
) -> None:
    """One such score, or none that is allowed; beside a row that is well."""
    scores = torch.stack([draw(rng, 300), draw(rng, 300)])
    settings, made = [sampling(**own)] * 2, [generator(rng), generator(rng)]
    assert max(choose_rows(scores, settings, made)) < 300
    if odd is None:
        scores[1] = -math.inf
    else:
        scores[1, rng.randrange(300)] = odd
    with pytest.raises(IntegrityError, match="no finite numbers"):
        choose_rows(scores, settings, made)
