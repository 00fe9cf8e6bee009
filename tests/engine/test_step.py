"""The whole step in C: the numbers of float64, the same bits with any threads and company."""

from __future__ import annotations

import copy
import random
import threading

import pytest
import torch
from engine.step_cases import CPU, by_torch, cache_of, copied, drawn, families, fitting, model_of
from torch import Tensor, nn

from chatbench.engine.cache import KVCache
from chatbench.engine.engine import Engine, Request
from chatbench.engine.step import Stepper
from chatbench.model.kernels import compiled
from chatbench.model.lora import LoraConfig, add_adapter
from chatbench.model.quantize import QuantizedLinear, quantize_model
from chatbench.model.transformer import GPT, ModelConfig
from chatbench.settings import SamplingSettings
from chatbench.text.tokenizer import Tokenizer

_decode = pytest.importorskip("chatbench.model.kernels._decode")
FAMILIES = sorted(families.FAMILIES)
KINDS = ("float32", "bfloat16", "int8", "int4")


@pytest.fixture(autouse=True)
def _anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """With vectors or without, and whatever the environment asks for."""
    monkeypatch.setattr(compiled, "why_not", lambda: "")


@pytest.fixture
def generator(rng: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(1 << 32))


def lengths_of(rng: random.Random, context: int) -> list[int]:
    """Rows of none, of one, beside the borders of looks and of capacity, and any."""
    borders = [0, 1, 127, 128, 255, 256, 257, 511, 512]
    found = [*rng.sample(borders, 2), rng.randrange(700)]
    if rng.random() < 0.2:  # as many looks as there are, and one place more
        found.append(rng.choice((4095, 4096, 4097)))
    return [min(length, context - 1) for length in found]


@torch.no_grad()
def sensitivity(
    model: GPT, cache: KVCache, ids: list[int], size: float, generator: torch.Generator
) -> float:
    """How far logits move when every number goes up or down by `size` of itself: the most of three
    tries, in float64."""
    wanted = by_torch(model, copied(cache, model, torch.float64), ids)
    most = 0.0
    for _ in range(3):
        other, held = copy.deepcopy(model), copied(cache, model, torch.float64)
        stores = [store for pair in held.stores(len(ids)) for store in pair]
        for numbers in (*other.parameters(), *stores):
            signs = torch.rand(numbers.shape, generator=generator).sub(0.5).sign()
            numbers.mul_(1 + size * signs)
        most = max(most, float((by_torch(other, held, ids) - wanted).abs().max()))
    return most


@pytest.mark.parametrize("fast", [True, False], ids=["vectors", "scalar"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_float64(
    rng: random.Random, generator: torch.Generator, family: str, kind: str, fast: bool
) -> None:
    model = model_of(kind, family, rng, generator)
    lengths = lengths_of(rng, model.config.context)
    cache = cache_of(model, lengths, generator)
    ids = [rng.randrange(model.config.vocab_size) for _ in lengths]
    exact = copy.deepcopy(model).double()
    held = copied(cache, model, torch.float64)
    # Results of float32 are some units in the last place away; bfloat16 rounds the new key and
    # value, which is less than rounding everything.
    unit, factor = (2.0**-24, 200) if kind == "float32" else (2.0**-8, 8)
    allowed = factor * sensitivity(exact, cache, ids, unit, generator)
    wanted = by_torch(exact, held, ids)
    stepper = Stepper(model, cache, threads=rng.choice((1, 2, 3)))
    assert stepper.fault == ""
    found = stepper.next(ids, fast)
    assert found is not None
    assert found.dtype == torch.float32
    assert float((found.double() - wanted).abs().max()) <= allowed
    # What was appended, and nothing else was touched.
    for ours, theirs in zip(cache.stores(len(ids)), held.stores(len(ids)), strict=True):
        for store, other in zip(ours, theirs, strict=True):
            for row, length in enumerate(lengths):
                assert torch.equal(store[row, :length].double(), other[row, :length])
                assert torch.equal(store[row, length + 1 :].double(), other[row, length + 1 :])
                new = other[row, length].abs().max() + 1
                off = (store[row, length].double() - other[row, length]).abs().max()
                assert float(off) <= 2**14 * unit * float(new)


def rounded(x: Tensor) -> Tensor:
    """x (..., K) as activations of 8 bits say it, by runs of 32."""
    wanted = x.clone()
    for run in wanted.split(32, dim=-1):
        step = run.abs().amax(-1, keepdim=True) / 127
        run.copy_((run / step.clamp(min=1e-300)).round() * step)
    return wanted


class Rounding(nn.Module):
    """What the extension means by a quantised layer, in float64."""

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        self.matrix = layer.weight.double()
        self.bias = None if layer.bias is None else layer.bias.double()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(rounded(x), self.matrix, self.bias)


def exact_twin(model: GPT) -> GPT:
    twin = copy.deepcopy(model)
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, QuantizedLinear):
            owner, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(owner), leaf, Rounding(layer))
    return twin.double()


@pytest.mark.parametrize("fast", [True, False], ids=["vectors", "scalar"])
@pytest.mark.parametrize("kind", ["int8", "int4", "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_logits_are_those_of_rounded_activations(
    rng: random.Random, generator: torch.Generator, family: str, kind: str, fast: bool
) -> None:
    model = model_of("int4" if kind == "mixed" else kind, family, rng, generator)
    if kind == "mixed":
        mix(model, rng)
    cache = cache_of(model, lengths_of(rng, model.config.context), generator)
    ids = [rng.randrange(model.config.vocab_size) for _ in cache.lengths]
    wanted = by_torch(exact_twin(model), copied(cache, model, torch.float64), ids)
    found = Stepper(model, cache, threads=rng.choice((1, 2, 3))).next(ids, fast)
    assert found is not None
    # Where rounding differs in the last bit a code may fall to its neighbour: thousandths. A wrong
    # weight, scale or place gives as much again as there is.
    off = (found.double() - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert float(off.max()) < 0.2


def mix(model: GPT, rng: random.Random) -> None:
    """Some layers int8, some exact."""
    for block in model.model.layers:
        for part, names in ((block.self_attn, ("q_proj", "v_proj")), (block.mlp, ("up_proj",))):
            for name in names:
                layer = getattr(part, name)
                plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
                plain.weight = nn.Parameter(layer.weight, requires_grad=False)
                plain.bias = layer.bias
                made = QuantizedLinear(plain, "int8") if rng.random() < 0.7 else plain
                setattr(part, name, made)


@pytest.mark.parametrize("fast", [True, False], ids=["vectors", "scalar"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_alone_in_company_and_with_any_threads(
    rng: random.Random, generator: torch.Generator, kind: str, fast: bool
) -> None:
    model = model_of(kind, rng.choice(FAMILIES), rng, generator)
    lengths = [rng.choice((0, 5, 130, 255, 256, 300, 600)) for _ in range(compiled.FEW_ROWS)]
    cache = cache_of(model, lengths, generator)
    ids = [rng.randrange(model.config.vocab_size) for _ in lengths]
    alone = []
    for row, number in enumerate(ids):
        single = KVCache(model.config, 1, CPU, model.model.embed_tokens.weight.dtype)
        single.reserve(lengths[row] + 1)
        for ours, theirs in zip(cache.stores(16), single.stores(1), strict=True):
            for store, other in zip(ours, theirs, strict=True):
                other[0, : lengths[row]] = store[row, : lengths[row]]
        single.lengths[0] = lengths[row]
        alone.append(Stepper(model, single, threads=1).next([number], fast))
    wanted = torch.cat([row for row in alone if row is not None])
    try:
        for address in (compiled.openmp_threads(), 0):
            _decode.share_threads(address)
            for rows in (1, 2, rng.randrange(3, 16), 16):
                for threads in (1, 2, 5):
                    found = Stepper(model, cache, threads).next(ids[:rows], fast)
                    assert found is not None
                    assert torch.equal(found, wanted[:rows])
    finally:
        _decode.share_threads(compiled.openmp_threads())
    assert Stepper(model, cache).next([0] * 17) is None


def test_what_is_not_finite_stays_in_its_row(
    rng: random.Random, generator: torch.Generator
) -> None:
    for kind in KINDS:
        model = model_of(kind, rng.choice(FAMILIES), rng, generator)
        cache = cache_of(model, [40, 40, 40], generator)
        clean = Stepper(model, cache).next([1, 2, 3])
        assert clean is not None
        assert bool(clean.isfinite().all())
        cache.stores(3)[0][rng.randrange(2)][1, rng.randrange(40), 0] = float("nan")
        found = Stepper(model, cache).next([1, 2, 3])
        assert found is not None
        assert torch.equal(found[[0, 2]], clean[[0, 2]])
        assert not bool(found[1].isfinite().any())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_replies_are_those_of_torch(
    rng: random.Random, generator: torch.Generator, tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch, family: str, kind: str,
) -> None:  # fmt: skip
    config = ModelConfig(**{**families.FAMILIES[family](rng), "model_type": family}).check()
    config = fitting(config, rng)._replace(vocab_size=tokenizer.vocab_size, context=256)
    model = drawn(config, generator)
    if kind == "bfloat16":
        model.bfloat16()
    elif kind != "float32":
        quantize_model(model, kind)
    monkeypatch.setattr(tokenizer, "stops", frozenset())
    sampling = SamplingSettings(temperature=0.0, max_tokens=64, speculate="off", logprobs=20)
    size = tokenizer.vocab_size
    prompts = [[rng.randrange(size) for _ in range(rng.randrange(1, 150))] for _ in range(3)]
    requests = [Request(ids, sampling) for ids in prompts]
    engine = Engine(model, tokenizer, max_rows=3)
    ours = engine.complete(requests)
    assert engine._stepper is not None
    assert engine._stepper.fault == ""
    monkeypatch.setattr(Stepper, "next", lambda self, ids, fast=True: None)
    theirs = Engine(model, tokenizer, max_rows=3).complete(requests)
    # Where two tokens are about as likely, rounding may choose; from there on replies differ.
    near = 1e-3 if kind == "float32" else 0.5
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine.ids) == len(other.ids) == 64
        at = next((i for i in range(64) if mine.ids[i] != other.ids[i]), None)
        if at is not None:
            assert other.logprobs is not None
            likely = {number: logprob for number, _, logprob in other.logprobs[at].top}
            assert likely[other.ids[at]] - likely[mine.ids[at]] < near


def test_why_a_model_is_not_for_it(
    rng: random.Random, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("float32", "llama", rng, generator)

    def fault(changed: GPT) -> str:
        dtype = changed.model.embed_tokens.weight.dtype
        stepper = Stepper(changed, KVCache(changed.config, 1, CPU, dtype))
        assert (stepper.next([0]) is None) == bool(stepper.fault)
        return stepper.fault

    assert fault(model) == ""
    assert "float64" in fault(copy.deepcopy(model).double())
    adapted = copy.deepcopy(model)
    add_adapter(adapted, LoraConfig(rank=2, alpha=4), seed=0)
    assert "adapter" in fault(adapted)
    odd = copy.deepcopy(model)
    odd.model.layers[0].mlp.down_proj = nn.Identity()
    assert "Identity" in fault(odd)
    slanted = copy.deepcopy(model)
    weight = slanted.lm_head.weight
    slanted.lm_head.weight = nn.Parameter(weight.detach().T.contiguous().T)
    assert "lie otherwise" in fault(slanted)
    pairs = drawn(fitting(model.config, rng)._replace(ffn_size=66), generator)
    quantize_model(pairs, "int4")
    assert "int4" in fault(pairs)
    assert fault(model_of("int4", "llama", rng, generator)) == ""
    monkeypatch.setattr(compiled, "why_not", lambda: "not asked for")
    assert fault(model) == "not asked for"


def test_what_does_not_fit_is_refused(rng: random.Random, generator: torch.Generator) -> None:
    model = model_of("float32", "mistral", rng, generator)
    cache = cache_of(model, [3], generator)
    stepper = Stepper(model, cache)
    for ids in ([-1], [model.config.vocab_size]):
        with pytest.raises(ValueError, match="no token"):
            stepper.next(ids)
    cache.lengths[0] = cache.capacity
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(cache, "reserve", lambda tokens: None)
        with pytest.raises(ValueError, match="longer than its place"):
            stepper.next([1])


def test_several_engines_may_step_at_once(rng: random.Random, generator: torch.Generator) -> None:
    models = [model_of(kind, rng.choice(FAMILIES), rng, generator) for kind in KINDS]
    caches = [cache_of(model, [50, 300], generator) for model in models]
    wanted = [Stepper(m, c, 1).next([1, 2]) for m, c in zip(models, caches, strict=True)]
    wrong: list[int] = []

    def work(number: int) -> None:
        stepper = Stepper(models[number], caches[number], 3)
        for _ in range(30):
            found = stepper.next([1, 2])
            if not torch.equal(found, wanted[number]):  # type: ignore[arg-type]
                wrong.append(number)

    for address in (0, compiled.openmp_threads()):
        _decode.share_threads(address)
        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(models))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
