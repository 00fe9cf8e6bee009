"""The GPT: equal to transformers' Qwen3, and true to its own promises."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chatbench.errors import UsageError
from chatbench.model.architectures import qwen3
from chatbench.model.attention import Packing
from chatbench.model.transformer import GPT, ModelConfig, initialise

transformers = pytest.importorskip("transformers")

Make = Callable[..., ModelConfig]
Build = Callable[[ModelConfig], GPT]
SPELLINGS = [(tied, theta) for tied in (True, False) for theta in (10_000.0, 1_000_000.0)]


def twin_of(model: GPT) -> Any:
    """transformers' own Qwen3 with the same weights, under the same names."""
    config = transformers.Qwen3Config(**qwen3.write(model.config), attn_implementation="eager")
    twin = transformers.Qwen3ForCausalLM(config)
    missing, unexpected = twin.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert not unexpected
    return twin.eval()


def ids_of(rng: random.Random, config: ModelConfig, rows: int, tokens: int) -> Tensor:
    return torch.tensor([[rng.randrange(config.vocab_size) for _ in range(tokens)]] * rows)


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.fixture(params=SPELLINGS, ids=lambda s: f"{'tied' if s[0] else 'untied'}-{s[1]:g}")
def model(request: pytest.FixtureRequest, random_config: Make, random_model: Build) -> GPT:
    tied, theta = request.param
    return random_model(random_config(tie_embeddings=tied, rope_theta=theta))


@torch.no_grad()
def test_logits_equal_transformers_at_near_and_far_positions(
    model: GPT, rng: random.Random
) -> None:
    places = [0, 1, 2, 100, 101, 300, *sorted(rng.sample(range(301, 2000), 5)), 4999, 5000]
    position = torch.tensor([places])
    ids = ids_of(rng, model.config, 1, len(places))
    ours = model.logits(model(ids, Packing(torch.zeros_like(position), position)))
    # Said outright, for transformers would take jumps in the positions for packed documents.
    causal = torch.full((len(places), len(places)), -torch.inf).triu(1)[None, None]
    theirs = twin_of(model)(ids, position_ids=position, attention_mask=causal).logits
    assert largest(ours, theirs) < 1e-4


@torch.no_grad()
def test_logits_equal_transformers_on_a_row_longer_than_100(model: GPT, rng: random.Random) -> None:
    ids = ids_of(rng, model.config, 2, 120)
    assert largest(model.logits(model(ids)), twin_of(model)(ids).logits) < 1e-4


def test_loss_and_every_gradient_equal_transformers(model: GPT, rng: random.Random) -> None:
    ids = ids_of(rng, model.config, 2, 40)
    logits = model.logits(model(ids))
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    twin = twin_of(model)
    theirs = twin(ids, labels=ids).loss
    theirs.backward()
    torch.testing.assert_close(loss, theirs, atol=1e-5, rtol=0)
    expected = {name: p.grad for name, p in twin.named_parameters()}
    found = {name: p.grad for name, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3, msg=name)


@torch.no_grad()
def test_packed_documents_compute_what_each_computes_alone(
    random_config: Make, random_model: Build, rng: random.Random
) -> None:
    model = random_model(random_config()).double()
    lengths = [5, 1, rng.randrange(2, 30), 1]
    documents = [ids_of(rng, model.config, 1, length) for length in lengths]
    number = [[n for n, length in enumerate(lengths) for _ in range(length)]]
    place = [[at for length in lengths for at in range(length)]]
    packed = model(torch.cat(documents, 1), Packing(torch.tensor(number), torch.tensor(place)))
    alone = torch.cat([model(document) for document in documents], 1)
    torch.testing.assert_close(packed, alone)


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


@torch.no_grad()
def test_a_fresh_model_is_the_identity_between_embedding_and_norm(
    random_config: Make, rng: random.Random
) -> None:
    model = GPT(random_config())
    initialise(model, seed=rng.randrange(100))
    ids = ids_of(rng, model.config, 1, 9)
    assert torch.equal(model(ids), model.model.norm(model.model.embed_tokens(ids)))


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


@pytest.mark.parametrize(
    ("change", "word"),
    [({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads"), ({"head_dim": 7}, "head_dim")],
)
def test_numbers_that_do_not_fit_together_are_named(
    random_config: Make, change: dict[str, int], word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        GPT(random_config(**change))
