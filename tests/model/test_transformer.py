"""The GPT, true to its own promises; test_families.py holds it to transformers' numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from chatbench.errors import UsageError
from chatbench.model.attention import Packing
from chatbench.model.transformer import GPT, ModelConfig, initialise

Make = Callable[..., ModelConfig]
Build = Callable[[ModelConfig], GPT]


def ids_of(rng: random.Random, config: ModelConfig, rows: int, tokens: int) -> Tensor:
    return torch.tensor([[rng.randrange(config.vocab_size) for _ in range(tokens)]] * rows)


@torch.no_grad()
def test_changing_the_first_document_leaves_the_second_bitwise(
    random_config: Make, random_model: Build, rng: random.Random
) -> None:
    model = random_model(random_config())
    ids = ids_of(rng, model.config, 1, 30)
    at = rng.randrange(1, 29)
    document = (torch.arange(30) >= at).long()[None]
    packing = Packing(document, torch.cat((torch.arange(at), torch.arange(30 - at)))[None])
    before = model(ids, packing)
    ids[:, :at] = (ids[:, :at] + 1) % model.config.vocab_size
    after = model(ids, packing)
    assert torch.equal(before[:, at:], after[:, at:])
    assert not torch.equal(before[:, :at], after[:, :at])


def test_tied_embeddings_are_one_parameter_and_counted_once(random_config: Make) -> None:
    tied, untied = (GPT(random_config(tie_embeddings=tie)) for tie in (True, False))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    both = GPT(untied.config._replace(tie_embeddings=True))
    table = untied.config.vocab_size * untied.config.hidden_size
    assert untied.parameter_count() - both.parameter_count() == table


def test_training_a_tied_model_moves_both_ends(random_config: Make, random_model: Build) -> None:
    model = random_model(random_config(tie_embeddings=True))
    model.logits(model(torch.tensor([[1, 2]]))).sum().backward()
    with torch.no_grad():
        model.model.embed_tokens.weight -= 0.1 * model.model.embed_tokens.weight.grad
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def matrices(model: GPT) -> Iterator[Tensor]:
    return (p for p in model.parameters() if p.ndim > 1 and p.any())


def test_weights_are_a_function_of_the_seed(random_config: Make, rng: random.Random) -> None:
    config, seed = random_config(), rng.randrange(1000)
    models = [GPT(config) for _ in range(3)]
    for model, chosen in zip(models, (seed, seed, seed + 1), strict=True):
        initialise(model, chosen)
    first, again, other = models
    assert all(torch.equal(a, b) for a, b in zip(matrices(first), matrices(again), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(matrices(first), matrices(other), strict=True))


@torch.no_grad()
def test_learned_positions_end_where_the_context_does(
    random_family: Make, random_model: Build, rng: random.Random
) -> None:
    model = random_model(random_family("gpt2", context=12))
    assert model(ids_of(rng, model.config, 1, 12)).shape[1] == 12
    with pytest.raises(IndexError):
        model(ids_of(rng, model.config, 1, 13))


@pytest.mark.parametrize(
    ("change", "word"),
    [({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads"), ({"head_dim": 7}, "head_dim")],
)
def test_numbers_that_do_not_fit_together_are_named(
    random_config: Make, change: dict[str, int], word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        GPT(random_config(**change))
