"""Rows of new tokens: started at the mean, learned alone, PEFT's numbers both ways."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model.test_lora import close, hub_model, logits_of, peft_adapter
from safetensors.torch import load
from torch import Tensor, nn

from chatbench.errors import IntegrityError, UsageError
from chatbench.model.adapter import adapter_weights
from chatbench.model.lora import (
    LoraConfig,
    add_adapter,
    fold,
    load_adapter,
    merge,
    merged_weights,
    save_adapter,
    unmerge,
)
from chatbench.model.rows import learn_rows, learning_rows, start_rows, tables, weight_of
from chatbench.model.transformer import GPT, ModelConfig
from chatbench.model.weights import write_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]

MakeConfig = Callable[..., ModelConfig]
MakeModel = Callable[[ModelConfig], GPT]
ENTRIES = 61


@pytest.fixture
def generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(1 << 32))


@pytest.fixture(params=[True, False], ids=["tied", "own"])
def model(request: Any, random_config: MakeConfig, random_model: MakeModel) -> GPT:
    return random_model(random_config(n_layers=2, tie_embeddings=request.param))


def some_ids(model: GPT, rng: random.Random, always: list[int]) -> Tensor:
    """Random ids (2, 12) with those that matter among them."""
    ids = [[rng.randrange(model.config.vocab_size) for _ in range(12)] for _ in range(2)]
    for place, number in enumerate(always):
        ids[place % 2][1 + place] = number
    return torch.tensor(ids)


def chosen_rows(model: GPT, rng: random.Random) -> list[int]:
    return sorted(rng.sample(range(model.config.vocab_size), 3))


def stir(model: GPT, generator: torch.Generator) -> None:
    """A and B that matter, but do not blow up what rounding did before them."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.05, generator=generator)


def stir_rows(model: GPT, generator: torch.Generator) -> None:
    for _, table in learning_rows(model):
        nn.init.normal_(table.learned_rows, std=0.3, generator=generator)


# ---- where they begin


@pytest.mark.parametrize("beyond", [0, 2, 4])
def test_new_rows_are_the_mean_and_all_others_keep_their_bits(
    model: GPT, rng: random.Random, beyond: int
) -> None:
    """`beyond` of the four are behind the table, the others in rows that padded it."""
    size = model.config.vocab_size
    known = size - (4 - beyond)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = some_ids(model, rng, []) % known
    with torch.no_grad():
        hidden = model(ids)
        wanted = model.logits(hidden)[..., :known]
    start_rows(model, range(known, known + 4), known)
    assert model.config.vocab_size == size + beyond
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, old in before.items():
        new = after[name].detach()
        if name.removesuffix(".weight") not in tables(model):
            assert torch.equal(new, old)
            continue
        assert torch.equal(new[:known], old[:known])
        mean = old[:known].double().sum(0) / known
        torch.testing.assert_close(
            new[known:].double(), mean.expand(4, -1), rtol=0, atol=float(old.abs().max()) * 2**-23
        )
    with torch.no_grad():
        assert torch.equal(model(ids), hidden)
        close(model.logits(hidden)[..., :known], wanted)
        # The head of the mean gives the mean of the scores: no more than the best known token.
        assert (model.logits(hidden)[..., known] <= wanted.amax(-1) + 1e-5).all()
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == model.config.tie_embeddings


# ---- learning


def test_rows_give_the_numbers_and_the_gradients_of_a_whole_table(
    model: GPT, rng: random.Random, generator: torch.Generator
) -> None:
    rows = chosen_rows(model, rng)
    twin = copy.deepcopy(model).double()
    model.requires_grad_(False)
    learn_rows(model, rows)
    stir_rows(model, generator)
    model.double()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        f"{name}.learned_rows" for name in tables(model)
    }
    with torch.no_grad():
        for name, table in learning_rows(model):
            weight_of(twin.get_submodule(name))[rows] = table.learned_rows
    ids = some_ids(model, rng, rows)
    for each in (model, twin):
        logits = each.logits(each(ids))
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    close(model.logits(model(ids)), twin.logits(twin(ids)), 1e-12)
    for name in tables(twin):
        own = model.get_submodule(name).learned_rows.grad
        close(own, weight_of(twin.get_submodule(name)).grad[rows], 1e-10)
        close(model.get_submodule(name).weight, weight_of(twin.get_submodule(name)), 1e-12)


def test_fresh_rows_change_no_bit(model: GPT, rng: random.Random) -> None:
    rows = chosen_rows(model, rng)
    ids = some_ids(model, rng, rows)
    with torch.no_grad():
        hidden = model(ids)
        logits = model.logits(hidden)
        learn_rows(model, rows)
        assert torch.equal(model(ids), hidden)
        close(model.logits(hidden), logits)


def test_merging_keeps_the_logits_and_unmerging_restores_the_bits(
    model: GPT, rng: random.Random, generator: torch.Generator
) -> None:
    rows = chosen_rows(model, rng)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = some_ids(model, rng, rows)
    plain = logits_of(model, ids)
    add_adapter(model, LoraConfig(rank=2), 0)
    learn_rows(model, rows)
    stir(model, generator)
    stir_rows(model, generator)
    beside = logits_of(model, ids)
    for _, table in learning_rows(model):
        table.bypassed = True
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
    close(logits_of(model, ids), plain)
    stir(model, generator)
    for _, table in learning_rows(model):
        table.bypassed = False
    beside = logits_of(model, ids)
    merged = {name: weight.clone() for name, weight in merged_weights(model).items()}
    assert merged.keys() == base.keys()
    merge(model)
    merge(model)
    close(logits_of(model, ids), beside, 1e-4)
    unmerge(model)
    for name, parameter in model.named_parameters():
        if name.replace(".base.", ".") in base:
            assert torch.equal(parameter, base[name.replace(".base.", ".")])
    fold(model)
    assert dict(model.named_parameters()).keys() == base.keys()
    close(logits_of(model, ids), beside, 1e-4)
    for name in tables(model):
        assert torch.equal(merged[f"{name}.weight"], weight_of(model.get_submodule(name)))


def test_a_head_with_an_adapter_is_refused(
    random_config: MakeConfig, random_model: MakeModel
) -> None:
    model = random_model(random_config(n_layers=1, tie_embeddings=False))
    add_adapter(model, LoraConfig(targets=("lm_head", "q_proj")), 0)
    with pytest.raises(UsageError, match="leave lm_head out of --lora-targets"):
        learn_rows(model, [1])


# ---- peft


def both(family: str, tie: bool, rng: random.Random) -> tuple[Any, GPT]:
    while True:
        theirs, ours = hub_model(family, rng)
        if family == "gpt2" and not tie:
            theirs.lm_head.weight = nn.Parameter(torch.randn_like(theirs.lm_head.weight) * 0.2)
            theirs.config.tie_word_embeddings = False
            ours.config = ours.config._replace(tie_embeddings=False)
            ours.lm_head.weight = nn.Parameter(theirs.lm_head.weight.detach().clone())
        if ours.config.tie_embeddings == tie:
            return theirs, ours


CASES = [("llama", True), ("llama", False), ("gpt2", True), ("gpt2", False)]


@pytest.mark.parametrize("grown", [0, 3])
@pytest.mark.parametrize(("family", "tie"), CASES)
def test_our_rows_give_the_same_logits_in_peft(
    family: str, tie: bool, grown: int, rng: random.Random, generator: torch.Generator,
    tmp_path: Path,
) -> None:  # fmt: skip
    peft = pytest.importorskip("peft")
    theirs, ours = both(family, tie, rng)
    rows = [*rng.sample(range(ENTRIES), 2), *range(ENTRIES, ENTRIES + grown)]
    start_rows(ours, rows, ENTRIES)
    config = LoraConfig(rank=2)
    add_adapter(ours, config, 0)
    learn_rows(ours, rows)
    stir(ours, generator)
    stir_rows(ours, generator)
    save_adapter(tmp_path, ours, config, "some/base")
    if grown:
        theirs.resize_token_embeddings(ENTRIES + grown)
    wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    ids = some_ids(ours, rng, rows)
    with torch.no_grad():
        close(wrapped(ids).logits, logits_of(ours, ids), 1e-3)
    # And here, on the base as it was.
    again = both(family, tie, random.Random(rng.random()))[1]
    names = {n: p for n, p in merged_weights(ours).items() if ".layers." not in n}
    state = {n.replace(".base.", "."): p for n, p in ours.named_parameters()}
    for name, parameter in again.named_parameters():
        held = state[name].detach()
        parameter.data = held[:ENTRIES] if name in names and len(held) > ENTRIES else held
    load_adapter(again, tmp_path)
    assert adapter_weights(again).keys() == adapter_weights(ours).keys()
    assert again.config.vocab_size == ENTRIES + grown
    close(logits_of(again, ids), logits_of(ours, ids), 1e-3)
    fold(again)
    close(logits_of(again, ids), logits_of(ours, ids), 1e-3)


def peft_rows(family: str, tie: bool, kind: str) -> dict[str, Any]:
    """What peft is asked for, of the embedding and the head."""
    embedding = "wte" if family == "gpt2" else "embed_tokens"
    rows = [59, 3] if kind == "rows" else [ENTRIES + 1, ENTRIES, ENTRIES + 2]
    if kind in ("rows", "grown"):
        return {"trainable_token_indices": rows if tie else {embedding: rows, "lm_head": rows}}
    if kind == "one":
        return {"modules_to_save": [embedding]}
    return {"modules_to_save": [embedding, "lm_head"]}


@pytest.mark.parametrize("kind", ["rows", "grown", "whole", "one"])
@pytest.mark.parametrize(("family", "tie"), CASES)
def test_tables_and_rows_of_peft_give_pefts_logits(
    family: str, tie: bool, kind: str, rng: random.Random, tmp_path: Path
) -> None:
    theirs, ours = both(family, tie, rng)
    if kind == "grown":
        theirs.resize_token_embeddings(ENTRIES + 3)
    wrapped = peft_adapter(theirs, family, tmp_path, **peft_rows(family, tie, kind))
    for name, parameter in wrapped.named_parameters():
        if "trainable_tokens_delta" in name or "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(tmp_path, save_embedding_layers=kind == "grown")
    load_adapter(ours, tmp_path)
    ids = some_ids(ours, rng, [3, 59, ours.config.vocab_size - 1])
    with torch.no_grad():
        wanted = wrapped(ids).logits
    close(logits_of(ours, ids), wanted, 1e-3)
    fold(ours)
    close(logits_of(ours, ids), wanted, 1e-3)
    assert ours.config.vocab_size == ENTRIES + 3 * (kind == "grown")


@pytest.mark.parametrize(
    ("said", "rows", "named"),
    [
        ([3, 59], (2, 23), "rows of 'model.embed_tokens'"),
        ([3], (2, 24), "rows of 'model.embed_tokens'"),
        ([3, 3], (2, 24), "name rows twice, or leave some out"),
        ([3, 62], (2, 24), "name rows twice, or leave some out"),
        ([3, 1 << 62], (2, 24), "name rows twice, or leave some out"),
        ([-1, 3], (2, 24), "name rows twice, or leave some out"),
        (["3", 4], (2, 24), "rows of 'model.embed_tokens'"),
        ({"embed_tokens": [3, 4], "lm_head": [3, 4], "up_proj": [1]}, (2, 24), "lacks rows"),
        ("3", (2, 24), "trainable_token_indices of an unknown form"),
    ],
)
def test_rows_that_cannot_be_meant_are_refused(
    said: Any, rows: tuple[int, int], named: str, rng: random.Random, tmp_path: Path
) -> None:
    _, ours = both("llama", True, rng)
    add_adapter(ours, LoraConfig(), 0)
    save_adapter(tmp_path, ours, LoraConfig(), "base")
    fold(ours)
    path = tmp_path / "adapter_config.json"
    raw = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**raw, "trainable_token_indices": said}), "utf-8")
    key = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    held = load((tmp_path / "adapter_model.safetensors").read_bytes())
    write_weights(tmp_path, held | {key: torch.ones(rows)}, name="adapter_model.safetensors")
    with pytest.raises(IntegrityError, match=named) as caught:
        load_adapter(ours, tmp_path)
    assert "\n" not in str(caught.value)
    assert not adapter_weights(ours)
    assert ours.config.vocab_size == ENTRIES


@pytest.mark.parametrize(
    ("held", "named"),
    [
        ({"model.embed_tokens": (61, 23)}, "fit nothing of the model"),
        ({"deep.lm_head": (61, 24)}, "fit nothing of the model"),
        ({"model.embed_tokens": (62, 24)}, "different sizes"),
        ({"model.embed_tokens": (62, 24), "lm_head": (61, 24)}, "different sizes"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    held: dict[str, tuple[int, int]], named: str, rng: random.Random, tmp_path: Path
) -> None:
    _, ours = both("llama", False, rng)
    add_adapter(ours, LoraConfig(), 0)
    save_adapter(tmp_path, ours, LoraConfig(), "base")
    fold(ours)
    stored = load((tmp_path / "adapter_model.safetensors").read_bytes())
    stored |= {f"base_model.model.{hub}.weight": torch.ones(s) for hub, s in held.items()}
    write_weights(tmp_path, stored, name="adapter_model.safetensors")
    with pytest.raises(IntegrityError, match=named):
        load_adapter(ours, tmp_path)
    assert not adapter_weights(ours)
