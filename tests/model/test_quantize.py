"""Weights in few bits: codes within their bounds, products equal to those of the whole weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbench.errors import UsageError
from chatbench.model import quantize
from chatbench.model.lora import LoraConfig, add_adapter, merge
from chatbench.model.quantize import (
    FEW_ROWS,
    Kind,
    QuantizedLinear,
    TorchaoLinear,
    kernel_block,
    kernel_product,
    quantize_model,
    weight_bytes,
    whole_product,
)
from chatbench.model.rounding import quantize_groups, quantize_rows
from chatbench.model.transformer import GPT, ModelConfig

MakeConfig = Callable[..., ModelConfig]
MakeModel = Callable[[ModelConfig], GPT]
KINDS: tuple[Kind, ...] = ("int8", "int4")
BFLOAT16 = 2.0**-8  # unit roundoff


def within(found: Tensor, wanted: Tensor, bound: Tensor) -> None:
    """No entry is further from float64's than its own bound."""
    excess = (found.detach().double() - wanted).abs() - bound
    assert float(excess.max()) <= 0, f"beyond what rounding can do by {float(excess.max())}"


@pytest.fixture
def generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(1 << 32))


def heavy_tailed(generator: torch.Generator, rows: int, inputs: int) -> Tensor:
    """Weights with outliers, off centre, of very different size from row to row."""
    weight = torch.randn(rows, inputs, generator=generator)
    weight += 0.3 * torch.randn(rows, inputs, generator=generator).pow(3)
    return weight * torch.logspace(-3, 1, rows)[:, None] + 0.01


def layer(generator: torch.Generator, inputs: int, outputs: int, kind: Kind, group: int = 32,
          bias: bool = False) -> QuantizedLinear:  # fmt: skip
    linear = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.normal_(generator=generator)
    return QuantizedLinear(linear, kind, group)


def from_codes(x: QuantizedLinear) -> Tensor:
    """The weights by the formula of the format, one by one, in float64."""
    scales = x.scales.double()
    if x.kind == "int8":
        return x.codes.double() * scales[:, None]
    wanted = torch.empty(x.out_features, x.in_features, dtype=torch.float64)
    for n in range(x.out_features):
        block, at = divmod(n, x.block)
        half = x.block // 2
        for k in range(x.in_features):
            byte = int(x.codes[block, k, at % half])
            code = byte >> 4 if at >= half else byte & 15
            scale, zero = scales[k // x.group, n]
            wanted[n, k] = (code - 8) * scale + zero
    return wanted


def test_int8_moves_no_weight_by_more_than_half_a_scale(generator: torch.Generator) -> None:
    weight = heavy_tailed(generator, 33, 70)
    codes, scales = quantize_rows(weight)
    assert codes.dtype == torch.int8
    wide = scales.double()[:, None]
    moved = (codes.double() * wide - weight.double()).abs()
    assert bool((moved <= 0.5 * wide * (1 + 1e-6)).all())
    # The scale is as small as the row allows: its largest weight takes the largest code.
    assert bool((codes.abs().amax(1) >= 126).all())


def naive(weight: Tensor, group: int) -> Tensor:
    """Min-max by groups with scale and zero in bfloat16: what others begin and end with."""
    groups = weight.view(len(weight), -1, group)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15).clamp(min=1e-30).bfloat16().float()
    zero = (low + 8 * scale).bfloat16().float()
    codes = ((groups - zero) / scale + 8).round().clamp(0, 15)
    return ((codes - 8) * scale + zero).view_as(weight)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_is_nearer_than_the_plain_range_of_each_group(
    generator: torch.Generator, group: int
) -> None:
    weight = heavy_tailed(generator, 40, 256)
    codes, scales = quantize_groups(weight, group)
    assert int(codes.max()) <= 15
    scale, zero = (s.T[..., None].double() for s in scales.unbind(-1))
    ours = ((codes.view(40, -1, group).double() - 8) * scale + zero).view_as(weight)
    errors, plain = (
        (w.double() - weight.double()).square().view(40, -1, group).sum(-1)
        for w in (ours, naive(weight, group))
    )
    assert float(errors.sum()) < 0.93 * float(plain.sum())
    # The plain range is where the search begins.
    assert bool((errors <= plain * (1 + 1e-4) + 1e-12).all())


@pytest.mark.parametrize("kind", KINDS)
def test_constant_and_empty_rows_survive(kind: Kind) -> None:
    linear = nn.Linear(64, 4, bias=False)
    with torch.no_grad():
        for row, value in enumerate((0.0, 0.5, -3.0, 1e-20)):
            linear.weight[row] = value
    found = QuantizedLinear(linear, kind).weight
    torch.testing.assert_close(found, linear.weight.detach(), rtol=0.005, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 6), (64, 64), (96, 160), (128, 50)])
def test_whole_weights_are_those_of_the_format(
    generator: torch.Generator, kind: Kind, inputs: int, outputs: int
) -> None:
    found = layer(generator, inputs, outputs, kind)
    wanted = from_codes(found)
    torch.testing.assert_close(found.weight.double(), wanted, rtol=1e-6, atol=1e-6)
    half = outputs // 2 // found.block * found.block
    torch.testing.assert_close(
        found.whole(half, outputs, torch.float32), found.weight[half:], rtol=0, atol=0
    )
    # Rows that do not lie in one piece make bfloat16 products many times slower.
    assert found.whole(half, outputs, torch.bfloat16).is_contiguous()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 17, 40])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (160, 192), (32, 7 * 64), (96, 38)])
def test_products_are_those_of_the_whole_weights(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, kind: Kind, rows: int,
    inputs: int, outputs: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(quantize, "_PIECE", 5000)
    found = layer(generator, inputs, outputs, kind, bias=True)
    x = torch.randn(rows, inputs, generator=generator)
    wanted = F.linear(x.double(), found.weight.double())
    # What rounding can do at most, output by output: sums of magnitudes times the unit roundoff.
    magnitudes = F.linear(x.double().abs(), found.weight.double().abs())
    within(whole_product(x, found), wanted, (inputs + 2) * 2.0**-24 * magnitudes)
    if found._has_kernel(x.device):
        # bfloat16 activations, scales and results.
        within(kernel_product(x, found), wanted, 3 * BFLOAT16 * magnitudes)
    else:
        assert outputs % 64 or kernel_block() is None
    assert found.bias is not None
    bias = found.bias.detach().double()
    # The C extension rounds activations to 8 bits, by runs of 32.
    largest = x.double().abs().unflatten(1, (-1, 32)).amax(dim=2).repeat_interleave(32, dim=1)
    rounded = F.linear(largest / 254, found.weight.double().abs())
    bound = 4 * BFLOAT16 * (magnitudes + bias.abs()) + rounded
    within(found(x.view(1, rows, inputs))[0], wanted + bias, bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_is_the_row_in_a_batch(
    generator: torch.Generator, kind: Kind, dtype: torch.dtype
) -> None:
    found = layer(generator, 128, 192, kind)
    x = torch.randn(70, 128, generator=generator).to(dtype)
    together = found(x).double()
    weight = found.weight.double().abs()
    magnitudes = F.linear(x.double().abs(), weight)
    largest = x.double().abs().unflatten(1, (-1, 32)).amax(dim=2).repeat_interleave(32, dim=1)
    bound = 8 * BFLOAT16 * magnitudes + F.linear(largest / 254, weight)
    for few in (1, FEW_ROWS[kind], FEW_ROWS[kind] + 1):
        within(found(x[:few]), together[:few], bound[:few])


@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_take_the_kernel_where_it_pays_and_many_never(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    found = layer(generator, 64, 64, kind)
    taken: list[int] = []

    def kernel(x: Tensor, of: QuantizedLinear) -> Tensor:
        taken.append(len(x))
        return whole_product(x, of)

    monkeypatch.setattr(quantize.compiled, "serves", lambda x: False)
    monkeypatch.setattr(quantize, "kernel_product", kernel)
    monkeypatch.setattr(found, "_has_kernel", lambda device: True)
    for pays in (True, False):
        monkeypatch.setattr(quantize, "_kernel_pays", lambda kind, pays=pays: pays)
        for rows in (1, FEW_ROWS[kind], FEW_ROWS[kind] + 1):
            found(torch.randn(rows, 64, generator=generator))
    assert taken == [1, FEW_ROWS[kind]]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_kernel_the_results_are_the_same(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    linear = nn.Linear(64, 128, bias=False)
    with_kernel = QuantizedLinear(linear, kind)
    monkeypatch.setattr(quantize, "kernel_block", lambda: None)
    without = QuantizedLinear(linear, kind)
    assert torch.equal(with_kernel.weight, without.weight)
    monkeypatch.setattr(without, "_has_kernel", lambda device: False)
    monkeypatch.setattr(without, "_is_compiled", lambda: False)
    x = torch.randn(2, 64, generator=generator)
    torch.testing.assert_close(with_kernel(x), without(x), rtol=0, atol=0.1)
    assert torch.equal(without(x), whole_product(x, without))


@pytest.mark.parametrize("kind", KINDS)
def test_the_slope_of_the_input_is_that_of_the_whole_weights(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    monkeypatch.setattr(quantize, "_PIECE", 3000)
    found = layer(generator, 64, 96, kind, bias=True)
    x = torch.randn(2, 5, 64, generator=generator, requires_grad=True)
    slope = torch.randn(2, 5, 96, generator=generator)
    found(x).backward(slope)
    wanted = slope.double() @ found.weight.double()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), wanted, rtol=1e-5, atol=1e-4)


def test_shapes_that_cannot_be_packed_are_refused() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        QuantizedLinear(nn.Linear(48, 8), "int4")
    with pytest.raises(ValueError, match="pairs"):
        QuantizedLinear(nn.Linear(64, 7), "int4")


@pytest.fixture
def fitting(random_config: MakeConfig) -> Callable[..., ModelConfig]:
    """A model whose layers all have whole groups."""

    def make(**changes: Any) -> ModelConfig:
        return random_config(
            **{
                "n_layers": 2, "hidden_size": 64, "ffn_size": 160, "n_heads": 4, "n_kv_heads": 2,
                "head_dim": 16, **changes,
            }
        )  # fmt: skip

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_quantised_model_is_the_model_with_its_whole_weights(
    fitting: MakeConfig, random_model: MakeModel, generator: torch.Generator, kind: Kind, tied: bool
) -> None:
    model = random_model(fitting(tie_embeddings=tied))
    exact = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = quantize_model(model, kind)
    assert report.widened == []
    changed = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    assert len(changed) == 2 * 7 + 1
    assert {m.kind for n, m in changed.items() if n != "lm_head"} == {kind}
    assert changed["lm_head"].kind == "int8"
    table = model.model.embed_tokens.weight
    assert torch.equal(table, exact["model.embed_tokens.weight"])
    twin = GPT(model.config._replace(tie_embeddings=False))
    state = exact | {f"{name}.weight": module.weight for name, module in changed.items()}
    twin.load_state_dict(state)
    twin.eval()
    ids = torch.randint(model.config.vocab_size, (5, 9), generator=generator)
    with torch.no_grad():
        ours, theirs = (m.logits(m(ids)) for m in (model, twin))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize(("kind", "share"), [("int8", 0.26), ("int4", 0.17)])
def test_the_bytes_are_counted(
    fitting: MakeConfig, random_model: MakeModel, kind: Kind, share: float
) -> None:
    model = random_model(fitting(hidden_size=128, ffn_size=256))
    linear = sum(p.nbytes for n, p in model.named_parameters() if "proj" in n)
    whole = weight_bytes(model)
    held = {id(p): p.nbytes for p in model.parameters()} | {
        id(b): b.nbytes for b in model.buffers()
    }
    assert whole == sum(held.values())
    # A head that is one with the embedding is a copy of it from here on.
    tied = model.config.tie_embeddings
    head = model.lm_head.weight.nbytes
    report = quantize_model(model, kind)
    assert report[:2] == (whole, weight_bytes(model))
    left = report.bytes_after - (whole - linear - (0 if tied else head))
    assert left <= share * linear + 0.27 * head


def test_layers_that_do_not_fit_int4_take_int8_and_are_named(
    fitting: MakeConfig, random_model: MakeModel, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model(fitting(ffn_size=51))
    block = model.model.layers[0]
    before = block.mlp.down_proj.weight.detach().clone()
    report = quantize_model(model, "int4")
    assert report.widened == [
        f"model.layers.{n}.mlp.{part}_proj" for n in (0, 1) for part in ("gate", "up", "down")
    ]
    assert "6 layers take int8" in capsys.readouterr().err
    assert block.mlp.down_proj.kind == "int8"
    assert block.self_attn.q_proj.kind == "int4"
    torch.testing.assert_close(
        block.mlp.down_proj.weight, before, rtol=0, atol=0.005 * float(before.abs().max())
    )
    assert quantize_model(random_model(fitting(ffn_size=51)), "int8").widened == []


def test_another_kind_is_a_mistake(fitting: MakeConfig, random_model: MakeModel) -> None:
    with pytest.raises(UsageError, match="int3"):
        quantize_model(random_model(fitting()), "int3")


def test_groups_follow_the_width(fitting: MakeConfig, random_model: MakeModel) -> None:
    model = random_model(fitting(hidden_size=128, ffn_size=192))
    quantize_model(model, "int4", group=128)
    block = model.model.layers[0]
    assert block.self_attn.q_proj.group == 128
    assert block.mlp.down_proj.group == 64
    with pytest.raises(UsageError, match="groups of 48"):
        quantize_model(random_model(fitting()), "int4", group=48)


def test_a_merged_adapter_is_not_quantised_over(
    fitting: MakeConfig, random_model: MakeModel
) -> None:
    model = random_model(fitting())
    add_adapter(model, LoraConfig(), 0)
    merge(model)
    with pytest.raises(UsageError, match="merged"):
        quantize_model(model, "int8")


# ---- torchao, whose int8 weights compute on CPUs as well


@pytest.fixture
def unasked() -> Iterator[None]:
    """Nothing is remembered of torchao."""
    quantize._torchao_serves.cache_clear()
    yield
    quantize._torchao_serves.cache_clear()


@pytest.mark.usefixtures("unasked")
def test_torchao_multiplies_as_our_weights_do(
    generator: torch.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao")
    assert quantize._torchao_serves("int8", torch.device("cpu"), torch.float32)
    assert capsys.readouterr().err == ""
    linear = nn.Linear(96, 70)
    with torch.no_grad():
        linear.weight.copy_(heavy_tailed(generator, 70, 96))
    theirs = TorchaoLinear(linear, "int8")
    scale = linear.weight.detach().abs().amax(1, keepdim=True)
    assert bool(((theirs.weight - linear.weight).abs() <= scale / 127).all())
    x = torch.randn(2, 3, 96, generator=generator, requires_grad=True)
    wanted = F.linear(x, theirs.weight, linear.bias)
    torch.testing.assert_close(theirs(x), wanted, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), wanted, rtol=1e-4, atol=1e-4)
    slope = torch.randn(2, 3, 70, generator=generator)
    theirs(x).backward(slope)
    torch.testing.assert_close(x.grad, slope @ theirs.weight, rtol=1e-4, atol=1e-4)
    # A byte for each weight, a scale for each row, and the bias.
    assert weight_bytes(theirs) <= 70 * 96 + 2 * 4 * 70 + 70 * 4


@pytest.mark.usefixtures("unasked")
def test_torchao_that_fails_or_computes_otherwise_is_left_out_with_a_notice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: name)
    cpu = torch.device("cpu")

    def missing() -> None:
        raise ImportError("Requires something\nand more")

    monkeypatch.setattr(quantize, "_torchao", missing)
    assert not quantize._torchao_serves("int4", cpu, torch.bfloat16)
    assert "int4 (ImportError: Requires something)" in capsys.readouterr().err
    # Its int4 takes bfloat16 only, so nothing is to be said.
    assert not quantize._torchao_serves("int4", cpu, torch.float32)
    assert capsys.readouterr().err == ""

    class Doubled(QuantizedLinear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    monkeypatch.setattr(quantize, "TorchaoLinear", Doubled)
    assert not quantize._torchao_serves("int8", cpu, torch.float32)
    assert "100% away" in capsys.readouterr().err
    monkeypatch.setattr(quantize, "TorchaoLinear", QuantizedLinear)
    assert quantize._torchao_serves("int8", cpu, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_results_of_the_cpu(generator: torch.Generator, kind: Kind) -> None:
    found = layer(generator, 128, 192, kind, bias=True)
    x = torch.randn(70, 128, generator=generator)
    wanted = found(x)
    theirs = found.cuda()(x.cuda()).cpu()
    torch.testing.assert_close(theirs, wanted, rtol=0, atol=1e-3 * float(wanted.abs().max()))
