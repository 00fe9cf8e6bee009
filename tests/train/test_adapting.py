"""What learns when not everything does: which weights, by what steps, at what cost."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from chatbench.config import resolve, to_toml
from chatbench.errors import UsageError
from chatbench.model.adapter import LoraLinear, _kept_inputs, adapted, redrawing
from chatbench.model.quantize import QuantizedLinear, quantize_model
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.settings import FinetuneSettings, LoraSettings, OptimSettings
from chatbench.train.adapting import WHOLE, Adaptation, LoraConfig, adaptation_of
from chatbench.train.compiling import run_twice
from chatbench.train.memory import kept_by_a_row, predict
from chatbench.train.meters import computed_share
from chatbench.train.optimizer import Optimizers

CPU = torch.device("cpu")


def config(**changes: Any) -> ModelConfig:
    given = ModelConfig(61, 3, 32, 2, 1, 16, 64, 32, tie_embeddings=True)
    return given._replace(**changes)


def model_of(rng: random.Random, **changes: Any) -> GPT:
    """Weights that all matter, zeroed projections included."""
    model = GPT(config(**changes))
    initialise(model, rng.randrange(1 << 20))
    generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    return model.train()


def stir(model: GPT, rng: random.Random) -> None:
    """A and B that matter."""
    generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
    with torch.no_grad():
        for _, layer in adapted(model):
            layer.lora_A.normal_(std=0.2, generator=generator)
            layer.lora_B.normal_(std=0.2, generator=generator)


def ids_of(rng: random.Random, rows: int = 3, columns: int = 20) -> Tensor:
    return torch.tensor([[rng.randrange(61) for _ in range(columns)] for _ in range(rows)])


def learning(model: GPT) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def settings(**given: Any) -> FinetuneSettings:
    return FinetuneSettings(model="m", data=["d"], out="o", **given)


# ---- what the settings say


def test_without_a_rank_everything_learns() -> None:
    assert adaptation_of(settings()) == WHOLE
    assert adaptation_of(settings()).is_whole


def test_the_flags_of_an_adapter_reach_its_shape() -> None:
    flags = {"model": "m", "data": ["d"], "out": "o", "lora.rank": 4, "lora.rslora": True,
             "lora.targets": ["q_proj,v_proj", "down_proj"], "lora.dropout": 0.25}  # fmt: skip
    found = resolve(FinetuneSettings, flags=flags, environ={}).settings
    lora = adaptation_of(found).lora
    assert lora == LoraConfig(4, 8.0, 0.25, ("q_proj", "v_proj", "down_proj"), True)
    assert "[lora]\nrank = 4\n" in to_toml(found)
    assert adaptation_of(settings(lora=LoraSettings(rank=2, alpha=5.0))).lora == LoraConfig(2, 5.0)


def test_the_command_line_has_them_under_their_usual_names(cli: Callable[..., Any]) -> None:
    done = cli("finetune", "-m", "m", "-d", "d", "-o", "o", "--lora-r", "3", "--lora-alpha", "7",
               "--lora-target-modules", "q_proj", "--use-rslora", "--print-config")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line in ("rank = 3  # flag", "alpha = 7.0  # flag", "rslora = true  # flag"):
        assert line in done.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lora": LoraSettings(rank=4), "train_layers": 2}, "exclude each other"),
        ({"train_layers": 0}, "nothing to learn but a classifier's head"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        adaptation_of(settings(**given))


# ---- which weights


@pytest.mark.parametrize("tie", [True, False])
def test_the_last_blocks_and_the_norm_learn(rng: random.Random, tie: bool) -> None:
    model = model_of(rng, tie_embeddings=tie)
    Adaptation(layers=2).apply(model)
    blocks = {name.split(".")[2] for name in learning(model) if ".layers." in name}
    assert blocks == {"1", "2"}
    rest = {name for name in learning(model) if ".layers." not in name}
    assert rest == {"model.norm.weight"}
    with pytest.raises(UsageError, match=r"--train-layers 4 is more than the 3 blocks"):
        Adaptation(layers=4).apply(model)
    Adaptation(layers=0).apply(model)
    assert not learning(model)


def test_a_head_of_its_own_beside_the_trunk_always_learns(rng: random.Random) -> None:
    model = model_of(rng)
    model.score = torch.nn.Linear(32, 5)
    Adaptation(layers=0).apply(model)
    assert learning(model) == {"score.weight", "score.bias"}


CASES = [
    Adaptation(lora=LoraConfig(4)), Adaptation(lora=LoraConfig(4), quantize="int8"),
    Adaptation(lora=LoraConfig(4), quantize="int4"), Adaptation(layers=1),
    Adaptation(lora=LoraConfig(4), rows=(7, 60)),
]  # fmt: skip


@pytest.mark.parametrize("adaptation", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_only_what_learns_moves_and_is_remembered(
    rng: random.Random, adaptation: Adaptation, dtype: torch.dtype, optimizer: Any
) -> None:
    model = model_of(rng)
    adaptation.apply(model)
    stir(model, rng)
    names = learning(model)
    optimizers = Optimizers(model, OptimSettings(optimizer=optimizer), 1e-2, dtype)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    before |= {name: b.clone() for name, b in model.named_buffers()}
    assert {p.dtype for p in model.parameters()} == {dtype}
    ids = ids_of(rng)
    for _ in range(2):
        model.logits(model(ids)).float().square().mean().backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == names
        optimizers.collect_gradients()
        optimizers.step(1.0)
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    assert {name for name in before if not torch.equal(before[name], after[name])} == names
    assert optimizers.masters.keys() == names
    assert {master.dtype for master in optimizers.masters.values()} == {torch.float32}
    assert {key.split("/")[0] for key in optimizers.state()} == names


def test_quantised_weights_leave_the_head_exact(rng: random.Random) -> None:
    model = model_of(rng)
    Adaptation(lora=LoraConfig(2), quantize="int8").apply(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    bases = {type(layer.base) for _, layer in adapted(model)}
    assert bases == {QuantizedLinear}


@pytest.mark.parametrize("kind", ["none", "int8", "int4"])
def test_a_fresh_adapter_over_any_weights_changes_no_bit(rng: random.Random, kind: Any) -> None:
    seed, ids = rng.randrange(1 << 30), ids_of(rng)
    plain, with_it = (model_of(random.Random(seed)) for _ in range(2))
    Adaptation(lora=LoraConfig(2), quantize=kind).apply(with_it)
    if kind != "none":
        quantize_model(plain, kind, head=False)
    with torch.no_grad():
        assert torch.equal(with_it.logits(with_it(ids)), plain.logits(plain(ids)))


def test_an_adapter_costs_the_backward_pass_of_no_frozen_weight(rng: random.Random) -> None:
    """Products of the forward pass once, and once more for what they were given; a finetune of
    all weights computes a third one for each."""
    seed, ids = rng.randrange(1 << 30), ids_of(rng, 4, 32)
    counted = {}
    for name, adaptation in (("all", WHOLE), ("adapter", CASES[0]), ("last", CASES[3])):
        model = model_of(random.Random(seed))
        adaptation.apply(model)
        with FlopCounterMode(display=False) as counter:
            loss = model.logits(model(ids)).square().mean()
            forward = counter.get_total_flops()
            loss.backward()
        counted[name] = (forward, counter.get_total_flops() - forward)
    assert counted["all"][1] > 1.8 * counted["all"][0]
    added = counted["adapter"][0] - counted["all"][0]
    # Two for the adapter's own matrices; the first layers need no gradient of their input.
    assert counted["adapter"][1] <= counted["all"][0] + 2 * added
    assert counted["last"][1] < 0.6 * counted["all"][1]


@pytest.mark.parametrize("kind", ["none", "int8"])
def test_only_what_is_computed_counts_as_work(rng: random.Random, kind: Any) -> None:
    model = model_of(rng)
    assert computed_share(model) == 1.0
    Adaptation(lora=LoraConfig(2), quantize=kind).apply(model)
    # Forward and to the input: two passes of three.
    assert computed_share(model) == pytest.approx(2 / 3, rel=1e-12)
    last = model_of(rng, tie_embeddings=False)
    Adaptation(layers=1).apply(last)
    block = sum(p.numel() for p in last.model.layers[0].parameters() if p.ndim == 2)
    head = last.lm_head.weight.numel()
    wanted = (2 * block + 2 * block + 6 * block + 4 * head) / (18 * block + 6 * head)
    assert computed_share(last) == pytest.approx(wanted, rel=1e-12)


# ---- dropout


def gradients(model: GPT, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model.logits(model(ids)).square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_left_out_is_a_function_of_seed_rank_step_and_micro_batch(
    rng: random.Random,
) -> None:
    model, ids = model_of(rng), ids_of(rng)
    Adaptation(lora=LoraConfig(3, dropout=0.4)).apply(model)
    stir(model, rng)
    seed, step = rng.randrange(1 << 40), rng.randrange(1 << 20)

    def drawn(seed: int, rank: int, step: int, number: int) -> dict[str, Tensor]:
        redrawing(model, seed, rank)(step, number)
        return gradients(model, ids)

    first = drawn(seed, 0, step, 1)
    torch.manual_seed(rng.randrange(1 << 30))  # of no consequence
    assert same(first, drawn(seed, 0, step, 1))
    others = [(seed + 1, 0, step, 1), (seed, 1, step, 1), (seed, 0, step + 1, 1),
              (seed, 0, step, 2)]  # fmt: skip
    for other in others:
        assert not same(first, drawn(*other))


def test_a_block_computed_twice_draws_the_same(rng: random.Random) -> None:
    model, ids = model_of(rng), ids_of(rng)
    Adaptation(lora=LoraConfig(3, dropout=0.4)).apply(model)
    stir(model, rng)
    redrawing(model, 1, 0)(5, 2)
    once = gradients(model, ids)
    model.block_runner = run_twice
    assert same(once, gradients(model, ids))


def test_dropout_takes_the_share_it_says_and_keeps_the_mean(rng: random.Random) -> None:
    rate, count = rng.choice([0.1, 0.5]), 1 << 20
    kept = _kept_inputs(torch.zeros(count // 64, 64), rate, rng.randrange(1 << 32))
    assert set(kept.unique().tolist()) <= {0.0, float(torch.tensor(1.0).div_(1 - rate))}
    # Six deviations of a binomial: by chance twice in a thousand million.
    away = abs(int((kept == 0).sum()) - rate * count)
    assert away < 6 * math.sqrt(count * rate * (1 - rate))


def test_nothing_is_left_out_where_no_gradient_is_wanted(rng: random.Random) -> None:
    model, ids = model_of(rng), ids_of(rng)
    Adaptation(lora=LoraConfig(3, dropout=0.5)).apply(model)
    stir(model, rng)
    redrawing(model, 0, 0)(1, 1)
    with torch.no_grad():
        training, judged = model(ids), model.eval()(ids)
    assert torch.equal(training, judged)
    redrawing(model.train(), 0, 0)(1, 1)
    draws = [layer.draw for _, layer in adapted(model)]
    # With 21 draws of 32 bits two are the same once in twenty million.
    assert len(set(draws)) == len(draws) == 21
    away = (model(ids) - judged).detach().abs().max()
    # Far beyond rounding: half of all inputs of adapters that matter are gone.
    assert float(away) > 1e-3


# ---- merged = beside


@pytest.mark.parametrize("rslora", [False, True])
def test_merged_is_beside_within_what_rounding_can_do(rng: random.Random, rslora: bool) -> None:
    generator = torch.Generator().manual_seed(rng.randrange(1 << 32))
    inputs, outputs, rank, rows = (rng.randint(2, n) for n in (70, 70, 9, 30))
    base = torch.nn.Linear(inputs, outputs, bias=False).double()
    a, b = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank)
    scale = LoraConfig(rank, 3.0, rslora=rslora).scale()
    layer = LoraLinear(base, torch.nn.Parameter(a.double()), torch.nn.Parameter(b.double()), scale)
    x = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        beside = layer(x)
        layer.merge()
        merged = layer(x)
    size = x.abs() @ (base.weight.abs() + scale * (b.double().abs() @ a.double().abs())).T
    # B·A is computed in float32; everything else in float64.
    single, double = 2.0**-24, 2.0**-53
    bound = (rank + 2) * single * size + 4 * (inputs + rank + 4) * double * size
    assert bool(((beside - merged).abs() <= bound).all())


# ---- memory


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("adaptation", [WHOLE, *CASES])
def test_what_an_optimiser_holds_is_foretold_to_the_byte(
    rng: random.Random, adaptation: Adaptation, optimizer: Any
) -> None:
    model, ids = model_of(rng), ids_of(rng)
    adaptation.apply(model)
    optimizers = Optimizers(model, OptimSettings(optimizer=optimizer), 1e-3, torch.float32)
    model.logits(model(ids)).square().mean().backward()
    optimizers.collect_gradients()
    gradients = sum(g.nbytes for g in optimizers.gradients())
    optimizers.step(1.0)
    held = sum(t.nbytes for key, t in optimizers.state().items() if not key.endswith("/step"))
    kept = kept_by_a_row(config(), 32, torch.float32, adaptation)
    told = predict(
        config(), 2, 32, kept, torch.float32, muon=optimizer == "muon", adaptation=adaptation
    )
    assert (told.gradients, told.optimizer) == (gradients, held)
    whole = predict(config(), 2, 32, kept, torch.float32, muon=optimizer == "muon")
    if not adaptation.is_whole:
        assert told.peak < whole.peak
    if adaptation.quantize == "none":
        assert told.weights == sum(p.nbytes for p in model.parameters())
    else:
        assert told.weights < whole.weights


def test_blocks_below_the_first_that_learns_keep_nothing(rng: random.Random) -> None:
    shape = config(n_layers=4)
    whole, last = (
        kept_by_a_row(shape, 32, torch.float32, a) for a in (WHOLE, Adaptation(layers=1))
    )
    assert last.row == whole.row - 3 * whole.block
