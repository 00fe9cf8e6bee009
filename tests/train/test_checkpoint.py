"""Checkpoints of every family: hub names on disk, our names in memory, the same step after."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from chatbench.model.architectures import ARCHITECTURES
from chatbench.model.folder import open_model
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.settings import OptimSettings
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.checkpoint import TrainState, load_newest, save
from chatbench.train.optimizer import Optimizers

CPU = torch.device("cpu")


def config_of(name: str, vocab_size: int) -> ModelConfig:
    """A small model that the family can express: read from what every config.json must say."""
    raw = {
        "vocab_size": vocab_size, "hidden_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 64, "tie_word_embeddings": False,
    }  # fmt: skip
    if name == "gpt2":
        own = {"n_inner": 40}
    else:
        own = {"num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 40}
    return ARCHITECTURES[name].read({**raw, **own})


def move(model: GPT, optimizers: Optimizers, ids: torch.Tensor) -> None:
    scores = model.logits(model(ids))
    F.cross_entropy(scores[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimizers.collect_gradients()
    optimizers.step(1.0)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_a_restored_run_takes_the_same_step(
    tokenizer: Tokenizer, rng: random.Random, tmp_path: Path, name: str, optimizer: str
) -> None:
    config = config_of(name, tokenizer.vocab_size)
    ids = torch.tensor([[rng.randrange(config.vocab_size) for _ in range(16)]] * 2)
    settings = OptimSettings(optimizer=optimizer)
    model, fresh = GPT(config), GPT(config)
    initialise(model, rng.randrange(100))
    kept = Optimizers(model, settings, 1e-2, torch.float32)
    move(model, kept, ids)
    weights = {key: p.detach() for key, p in kept.masters.items()}
    place = save(tmp_path, TrainState(step=1), config, weights, kept.state(), tokenizer, {}, keep=1)
    restored = load_newest(tmp_path)
    assert restored is not None
    assert restored.weights.keys() == weights.keys()
    again = Optimizers(fresh, settings, 1e-2, torch.float32)
    again.load(restored.weights, restored.optimizer)
    move(model, kept, ids)
    move(fresh, again, ids)
    for key, master in kept.masters.items():
        assert torch.equal(master, again.masters[key]), key
    opened = open_model(place / "model", CPU).model
    assert opened.config == config
    for key, weight in opened.named_parameters():
        assert torch.equal(weight, restored.weights[key]), key


def test_learned_positions_and_biases_are_neither_orthogonalised_nor_decayed() -> None:
    model = GPT(config_of("gpt2", 50))
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizers = Optimizers(model, OptimSettings(weight_decay=0.5), 1e-2, torch.float32)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizers.step(1.0)
    moments = {key.split("/")[0] for key in optimizers.state() if key.endswith("momentum_buffer")}
    assert moments == {
        f"model.layers.{layer}.{part}.weight"
        for layer in range(2)
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                     "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    }  # fmt: skip
    # Without a gradient only decay moves a weight.
    for key, weight in model.named_parameters():
        assert torch.equal(weight, before[key]) == (key not in moments), key
