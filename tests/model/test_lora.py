"""Adapters: nothing at first, exact when merged, and PEFT's own numbers both ways."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbench.errors import IntegrityError, UsageError
from chatbench.model.adapter import adapted
from chatbench.model.architectures import ARCHITECTURES
from chatbench.model.lora import (
    LoraConfig,
    LoraLinear,
    adapter_weights,
    add_adapter,
    fold,
    load_adapter,
    merge,
    merged_weights,
    save_adapter,
    unmerge,
)
from chatbench.model.quantize import QuantizedLinear, quantize_model
from chatbench.model.transformer import GPT, ModelConfig
from chatbench.model.weights import write_weights

# peft and transformers age at different speeds.
pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning")

MakeConfig = Callable[..., ModelConfig]
MakeModel = Callable[[ModelConfig], GPT]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
TARGETS = {
    "mistral": ["o_proj", "up_proj"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["k_proj", "o_proj", "gate_proj", "up_proj"],
    "qwen3": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


@pytest.fixture
def generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(1 << 32))


@pytest.fixture
def model(random_config: MakeConfig, random_model: MakeModel) -> GPT:
    return random_model(random_config(n_layers=2))


def stir(model: nn.Module, generator: torch.Generator) -> None:
    """Random A and B, large enough to matter."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3, generator=generator)


def some_ids(model: GPT, generator: torch.Generator) -> Tensor:
    return torch.randint(model.config.vocab_size, (2, 9), generator=generator)


def logits_of(model: GPT, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(model(ids))


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        ours, theirs, rtol=0, atol=tolerance * float(theirs.detach().abs().max())
    )


@pytest.mark.parametrize("rslora", [False, True])
def test_a_layer_adds_its_scaled_product(generator: torch.Generator, rslora: bool) -> None:
    config = LoraConfig(rank=4, alpha=6.0, rslora=rslora)
    base = nn.Linear(10, 7)
    a, b = torch.randn(4, 10, generator=generator), torch.randn(7, 4, generator=generator)
    layer = LoraLinear(base, nn.Parameter(a), nn.Parameter(b), config.scale())
    x = torch.randn(3, 2, 10, generator=generator)
    scale = 6.0 / (2.0 if rslora else 4.0)
    weight = base.weight.double() + scale * b.double() @ a.double()
    wanted = F.linear(x.double(), weight, base.bias.double())
    close(layer(x).double(), wanted, 1e-6)
    close(layer.weight.double(), weight, 1e-6)


def test_a_fresh_adapter_changes_nothing_and_alone_learns(
    model: GPT, generator: torch.Generator
) -> None:
    ids = some_ids(model, generator)
    before = logits_of(model, ids)
    add_adapter(model, LoraConfig(rank=3, dropout=0.5), seed=5)
    assert torch.equal(logits_of(model, ids), before)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == adapter_weights(model).keys()
    assert len(learning) == 2 * 7 * model.config.n_layers
    model.logits(model(ids)).sum().backward()
    for name, parameter in model.named_parameters():
        # B is zero, so A cannot learn yet; B does.
        assert (parameter.grad is not None) == ("lora_" in name)
        if name.endswith("lora_B"):
            assert parameter.grad is not None
            assert parameter.grad.any()


def test_the_seed_decides_and_a_stays_within_its_bound(
    random_config: MakeConfig, random_model: MakeModel
) -> None:
    config = random_config(n_layers=1)
    found = []
    for seed in (1, 1, 2):
        model = random_model(config)
        add_adapter(model, LoraConfig(), seed)
        found.append(adapter_weights(model))
    name = "model.layers.0.mlp.down_proj.lora_A"
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    assert not torch.equal(found[0][name], found[2][name])
    assert 0.5 < float(found[0][name].abs().max()) * config.ffn_size**0.5 <= 1


@pytest.mark.parametrize(
    ("targets", "count"),
    [("all", 14), (("q_proj", "v_proj"), 4), (("mlp.down_proj",), 2), ("o_proj", 2),
     (("layers.1.self_attn.k_proj",), 1)],
)  # fmt: skip
def test_targets_choose_layers(model: GPT, targets: Any, count: int) -> None:
    add_adapter(model, LoraConfig(targets=targets), 0)
    assert len(dict(adapted(model))) == count


def test_mistakes_are_named(model: GPT) -> None:
    with pytest.raises(UsageError, match=r"no linear layer is called c_attn.*q_proj"):
        add_adapter(model, LoraConfig(targets=("c_attn",)), 0)
    with pytest.raises(UsageError, match="rank"):
        add_adapter(model, LoraConfig(rank=0), 0)
    with pytest.raises(UsageError, match="dropout"):
        add_adapter(model, LoraConfig(dropout=1.0), 0)
    add_adapter(model, LoraConfig(targets=("q_proj",)), 0)
    with pytest.raises(UsageError, match="has an adapter already"):
        add_adapter(model, LoraConfig(targets=("q_proj",)), 0)


def test_a_tied_head_takes_no_adapter_and_an_own_one_does(
    random_config: MakeConfig, random_model: MakeModel, generator: torch.Generator
) -> None:
    tied, own = (random_model(random_config(tie_embeddings=tie)) for tie in (True, False))
    with pytest.raises(UsageError, match="no linear layer is called lm_head"):
        add_adapter(tied, LoraConfig(targets=("lm_head",)), 0)
    add_adapter(own, LoraConfig(targets=("lm_head", "q_proj")), 0)
    stir(own, generator)
    hidden = torch.randn(4, own.config.hidden_size, generator=generator)
    close(own.logits(hidden), F.linear(hidden, own.lm_head.weight))


def test_dropout_acts_in_training_only(model: GPT, generator: torch.Generator) -> None:
    add_adapter(model, LoraConfig(dropout=0.5), 0)
    stir(model, generator)
    ids = some_ids(model, generator)
    assert torch.equal(logits_of(model, ids), logits_of(model.train(), ids))
    learning = model.logits(model(ids))
    assert not torch.equal(learning, logits_of(model, ids))
    # Where nobody wants a gradient nothing is left out, so that validations are comparable.
    close(model.eval().logits(model(ids)).detach(), logits_of(model, ids))


def test_merging_keeps_the_logits_and_unmerging_restores_the_bits(
    model: GPT, generator: torch.Generator
) -> None:
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = some_ids(model, generator)
    plain = logits_of(model, ids)
    add_adapter(model, LoraConfig(rank=5, alpha=7), 0)
    stir(model, generator)
    beside = logits_of(model, ids)
    assert float((beside - plain).abs().max()) > 0.01 * float(plain.abs().max())
    merged = merged_weights(model)
    merge(model)
    merge(model)
    close(logits_of(model, ids), beside)
    assert merged_weights(model).keys() == merged.keys() == base.keys()
    for name, weight in merged_weights(model).items():
        assert torch.equal(weight, merged[name])
    twin = GPT(model.config)
    twin.load_state_dict(merged, strict=not model.config.tie_embeddings)
    close(logits_of(twin.eval(), ids), beside)
    unmerge(model)
    assert torch.equal(logits_of(model, ids), beside)
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, base[name.replace(".base.", ".")])


def test_folding_leaves_a_plain_model(model: GPT, generator: torch.Generator) -> None:
    names = [name for name, _ in model.named_parameters()]
    add_adapter(model, LoraConfig(), 0)
    stir(model, generator)
    ids = some_ids(model, generator)
    beside = logits_of(model, ids)
    fold(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(p.requires_grad for p in model.parameters())
    close(logits_of(model, ids), beside)


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("first", ["adapter", "quantise"])
def test_an_adapter_learns_beside_quantised_weights(
    random_config: MakeConfig, random_model: MakeModel, generator: torch.Generator,
    kind: Any, first: str,
) -> None:  # fmt: skip
    config = random_config(hidden_size=32, ffn_size=64, n_heads=2, n_kv_heads=2, head_dim=16)
    # The quantised head is a copy of what it was one with.
    model, twin = random_model(config), GPT(config._replace(tie_embeddings=False)).eval()
    if first == "adapter":
        add_adapter(model, LoraConfig(), 1)
        quantize_model(model, kind)
    else:
        quantize_model(model, kind)
        add_adapter(model, LoraConfig(), 1)
    stir(model, generator)
    # The twin holds the same weights, made whole.
    state = {n: p.detach() for n, p in model.named_parameters() if "lora_" not in n}
    state |= {
        f"{name.removesuffix('.base')}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }
    twin.load_state_dict(state)
    add_adapter(twin, LoraConfig(), 1)
    for ours, theirs in zip(adapted(model), adapted(twin), strict=True):
        theirs[1].lora_A.data.copy_(ours[1].lora_A.data)
        theirs[1].lora_B.data.copy_(ours[1].lora_B.data)
    ids = torch.randint(config.vocab_size, (8, 9), generator=generator)
    for each in (model, twin):
        each.logits(each(ids)).square().mean().backward()
    theirs = dict(twin.named_parameters())
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            close(parameter.grad, theirs[name].grad, 1e-4)
    with pytest.raises(UsageError, match="quantised"):
        merge(model)
    with pytest.raises(UsageError, match="quantised"):
        merged_weights(model)


def hub_model(family: str, rng: random.Random) -> tuple[Any, GPT]:
    """A tiny random model of transformers, and ours with the same weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(rng.randrange(1 << 32))
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=61, n_positions=64, n_embd=24, n_layer=2, n_head=3,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
    else:
        heads = {"head_dim": 8} if family == "qwen3" else {}
        config = transformers.AutoConfig.for_model(
            family, vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            tie_word_embeddings=rng.random() < 0.5, **heads,
        )  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in theirs.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    architecture = ARCHITECTURES[family]
    ours_config = architecture.read(json.loads(config.to_json_string(use_diff=False))).check()
    state = {n: p.detach().clone() for n, p in theirs.named_parameters()}
    ours = GPT(ours_config)
    ours.load_state_dict(
        architecture.from_hub(state, ours_config), strict=not ours_config.tie_embeddings
    )
    return theirs, ours.eval()


def peft_adapter(theirs: Any, family: str, folder: Path, **changes: Any) -> Any:
    """A random adapter made and saved by peft."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        **{
            "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6, "lora_dropout": 0.0,
            "target_modules": TARGETS[family], "fan_in_fan_out": family == "gpt2", **changes,
        }
    )  # fmt: skip
    wrapped = peft.get_peft_model(theirs, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_peft_gives_pefts_logits_and_goes_back(
    family: str, rslora: bool, rng: random.Random, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    theirs, ours = hub_model(family, rng)
    wrapped = peft_adapter(theirs, family, tmp_path / "theirs", use_rslora=rslora)
    ids = torch.randint(61, (2, 11))
    with torch.no_grad():
        wanted = wrapped(ids).logits
    config = load_adapter(ours, tmp_path / "theirs")
    assert config[:3] == (4, 6.0, 0.0)
    assert config.rslora == rslora
    close(logits_of(ours, ids), wanted)
    # And the way back: nothing is stacked, as the parts of a fused layer share their A.
    save_adapter(tmp_path / "ours", ours, config, "base")
    sizes = {
        (tmp_path / d / "adapter_model.safetensors").stat().st_size for d in ("theirs", "ours")
    }
    assert max(sizes) - min(sizes) < 200
    again = peft.PeftModel.from_pretrained(wrapped.unload(), tmp_path / "ours").eval()
    with torch.no_grad():
        close(again(ids).logits, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_our_adapter_gives_the_same_logits_in_peft(
    family: str, rng: random.Random, generator: torch.Generator, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    theirs, ours = hub_model(family, rng)
    targets = rng.choice(["all", ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")])
    config = LoraConfig(
        rank=3, alpha=rng.choice([4, 2.5]), targets=targets, rslora=rng.random() < 0.5
    )
    add_adapter(ours, config, 0)
    stir(ours, generator)
    ids = torch.randint(61, (2, 11))
    save_adapter(tmp_path / "ours", ours, config, "some/base")
    wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    assert wrapped.peft_config["default"].base_model_name_or_path == "some/base"
    with torch.no_grad():
        close(wrapped(ids).logits, logits_of(ours, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_and_steps_are_pefts(family: str, rng: random.Random, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    theirs, ours = hub_model(family, rng)
    wrapped = peft_adapter(theirs, family, tmp_path / "start")
    config = load_adapter(ours, tmp_path / "start")
    both = [
        torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=0.05)
        for each in (ours, wrapped)
    ]
    for _ in range(3):
        ids = torch.randint(61, (2, 11))
        for each, optimizer in zip((ours, wrapped), both, strict=True):
            optimizer.zero_grad()
            logits = ours.logits(ours(ids)) if each is ours else wrapped(ids).logits
            F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        for hub, a, b in _pairs_of(ours):
            layer = wrapped.base_model.model.get_submodule(hub)
            close(a, layer.lora_A["default"].weight.grad, 1e-4)
            close(b, layer.lora_B["default"].weight.grad, 1e-4)
        for optimizer in both:
            optimizer.step()
    save_adapter(tmp_path / "ours", ours, config, "base")
    wrapped.save_pretrained(tmp_path / "theirs")
    from safetensors.torch import load_file

    mine, other = (
        load_file(tmp_path / d / "adapter_model.safetensors") for d in ("ours", "theirs")
    )
    assert mine.keys() == other.keys()
    for key in mine:
        close(mine[key], other[key], 1e-4)


def _pairs_of(ours: GPT) -> list[tuple[str, Tensor, Tensor]]:
    """Gradients of A and B by hub layer; those of a fused layer's B one above the other."""
    from chatbench.model.lora import hub_layers

    layers = dict(adapted(ours))
    found = []
    for hub, parts in hub_layers(ours.config, list(layers)).items():
        present = [layers[name] for name in parts if name in layers]
        if present:
            gradients = [part.lora_B.grad for part in present]
            found.append((hub, present[0].lora_A.grad, torch.cat(gradients)))
    return found


def test_ranks_and_alphas_of_single_layers_are_read_and_written(
    rng: random.Random, tmp_path: Path
) -> None:
    theirs, ours = hub_model("llama", rng)
    wrapped = peft_adapter(
        theirs, "llama", tmp_path / "theirs",
        rank_pattern={"v_proj": 7, "layers.1.self_attn.q_proj": 2},
        alpha_pattern={"down_proj": 20, "v_proj": 3},
    )  # fmt: skip
    ids = torch.randint(61, (2, 11))
    config = load_adapter(ours, tmp_path / "theirs")
    with torch.no_grad():
        close(logits_of(ours, ids), wrapped(ids).logits)
    save_adapter(tmp_path / "ours", ours, config, "base")
    raw = json.loads((tmp_path / "ours" / "adapter_config.json").read_text("utf-8"))
    assert raw["rank_pattern"] == {
        "model.layers.0.self_attn.v_proj": 7, "model.layers.1.self_attn.v_proj": 7,
        "model.layers.1.self_attn.q_proj": 2,
    }  # fmt: skip
    assert raw["target_modules"] == sorted(TARGETS["llama"])
    twin = GPT(ours.config).eval()
    twin.load_state_dict(merged_weights(ours), strict=not ours.config.tie_embeddings)
    base = GPT(ours.config).eval()
    base.load_state_dict(
        {n.replace(".base.", "."): p for n, p in ours.named_parameters() if "lora_" not in n},
        strict=not ours.config.tie_embeddings,
    )
    load_adapter(base, tmp_path / "ours")
    close(logits_of(base, ids), logits_of(twin, ids))


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers")
def test_a_head_that_peft_repeats_beside_its_adapter_must_be_the_models(
    rng: random.Random, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    theirs, _ = hub_model("llama", rng)
    while theirs.config.tie_word_embeddings:
        theirs, _ = hub_model("llama", rng)
    ours = GPT(
        ARCHITECTURES["llama"].read(json.loads(theirs.config.to_json_string(use_diff=False)))
    )
    ours.load_state_dict(theirs.state_dict())
    ours.eval()
    wrapped = peft_adapter(theirs, "llama", tmp_path, target_modules=["q_proj", "lm_head"],
                           alpha_pattern={"layers.0.self_attn.q_proj": 0})  # fmt: skip
    ids = torch.randint(61, (2, 11))
    load_adapter(ours, tmp_path)
    with torch.no_grad():
        close(logits_of(ours, ids), wrapped(ids).logits)
    fold(ours)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.lm_head.base_layer.weight" in stored
    # Now the head is another one than the adapter was trained beside.
    with pytest.raises(IntegrityError, match=r"weights of its own for 'lm_head'"):
        load_adapter(ours, tmp_path)
    assert not adapter_weights(ours)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_adapter_of_weight_zero_is_saved_and_read(
    family: str, rng: random.Random, generator: torch.Generator, tmp_path: Path
) -> None:
    _, ours = hub_model(family, rng)
    ids = torch.randint(61, (2, 11))
    before = logits_of(ours, ids)
    config = LoraConfig(rank=2, alpha=0.0)
    add_adapter(ours, config, 0)
    stir(ours, generator)
    assert torch.equal(logits_of(ours, ids), before)
    save_adapter(tmp_path / "ours", ours, config, "base")
    fold(ours)
    assert load_adapter(ours, tmp_path / "ours").alpha == 0
    assert torch.equal(logits_of(ours, ids), before)


@pytest.fixture
def saved(model: GPT, generator: torch.Generator, tmp_path: Path) -> Path:
    """An adapter of `model` as a folder."""
    import copy

    adapted_model = copy.deepcopy(model)
    config = LoraConfig(rank=2, targets=("q_proj",))
    add_adapter(adapted_model, config, 0)
    stir(adapted_model, generator)
    save_adapter(tmp_path / "adapter", adapted_model, config, "茶/模型")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "trained biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": {"embed_tokens": [1]}}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"use_something_new": {"how": "虚"}}, "use_something_new"),
        ({"r": None}, "does not describe"),
        ({"rank_pattern": {"(a+)+$": 3}}, "only names are read"),
        ({"alpha_pattern": {"q_proj": "large"}}, "'large' for q_proj"),
        ({"rank_pattern": [3]}, "rank_pattern is no table"),
        ({"lora_dropout": 1.5}, "dropout of an adapter is 1.5"),
        ({"r": 0}, "rank of an adapter is 0"),
        ({"lora_alpha": "inf"}, "alpha of an adapter is inf"),
        ({"r": 3}, r"matrices \(2, .* the model wants \(3, .*trained on '茶/模型'"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    saved: Path, model: GPT, changes: dict[str, Any], named: str
) -> None:
    path = saved / "adapter_config.json"
    raw = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**raw, **changes}), "utf-8")
    with pytest.raises(IntegrityError, match=named) as caught:
        load_adapter(model, saved)
    assert "\n" not in str(caught.value)
    assert not adapter_weights(model)


def test_damaged_and_foreign_adapters_are_refused(
    saved: Path, model: GPT, random_config: MakeConfig, random_model: MakeModel
) -> None:
    other = random_model(random_config(hidden_size=model.config.hidden_size + 2))
    with pytest.raises(IntegrityError, match="the model wants"):
        load_adapter(other, saved)
    shallow = random_model(model.config._replace(n_layers=1))
    with pytest.raises(IntegrityError, match=r"adapts 'model.layers.1.*does not have"):
        load_adapter(shallow, saved)
    weights = saved / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    with pytest.raises(IntegrityError, match="damaged"):
        load_adapter(model, saved)
    weights.unlink()
    with pytest.raises(IntegrityError, match=r"has no adapter_model.safetensors"):
        load_adapter(model, saved)
    (saved / "adapter_config.json").unlink()
    with pytest.raises(IntegrityError, match=r"has no adapter_config.json"):
        load_adapter(model, saved)


@pytest.mark.parametrize(
    ("key", "shape", "named"),
    [
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", (2, 5), "lacks one"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", (2, 5), "lora_embedding_A"),
        ("base_model.model.lm_head.weight", (2, 5), "lm_head.weight"),
    ],
)
def test_files_that_hold_more_or_less_than_pairs_are_refused(
    saved: Path, model: GPT, key: str, shape: tuple[int, int], named: str
) -> None:
    write_weights(saved, {key: torch.ones(shape)}, name="adapter_model.safetensors")
    with pytest.raises(IntegrityError, match=named):
        load_adapter(model, saved)
