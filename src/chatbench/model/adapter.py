"""Low-rank adapters (Hu et al. 2021): small trainable matrices beside frozen linear layers.

An adapted layer computes base(x) + scale·(x·Aᵀ)·Bᵀ. `lora.py` reads and writes adapters.
Legend: K inputs, N outputs, r rank.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbench.errors import UsageError
from chatbench.model.quantize import QuantizedLinear
from chatbench.model.rows import LEARNED, LearnedRows, fold_rows, learning_rows
from chatbench.model.transformer import GPT

Linear = nn.Linear | QuantizedLinear


class LoraConfig(NamedTuple):
    """Shape of a new adapter.

    `targets`: "all" linear layers of the blocks, or ends of module names ("q_proj",
    "mlp.down_proj", "layers.0.self_attn.v_proj"). `rslora` scales by alpha/√rank instead of
    alpha/rank (Kalajdzievski 2023), which keeps large ranks useful.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all"
    rslora: bool = False

    def check(self) -> LoraConfig:
        """Itself, or UsageError when the numbers make no adapter."""
        if self.rank < 1:
            raise UsageError(f"the rank of an adapter is {self.rank}, it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"the dropout of an adapter is {self.dropout}, not within [0, 1)")
        if not math.isfinite(self.alpha):
            raise UsageError(f"the alpha of an adapter is {self.alpha}, not a number")
        return self

    def scale(self, rank: int | None = None) -> float:
        """What B·A is multiplied by."""
        rank = rank or self.rank
        return self.alpha / (math.sqrt(rank) if self.rslora else rank)


class LoraLinear(nn.Module):
    """`base` (K → N, a Linear or a quantised one) with A (r, K) and B (N, r) beside it.

    `weight` is what the layer amounts to, (N, K), for those who multiply by it themselves.
    """

    def __init__(self, base: Linear, a: nn.Parameter, b: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.base = base
        self.lora_A = a
        self.lora_B = b
        self.scale = scale
        self.dropout = 0.0
        self.draw = 0
        """Says which inputs `dropout` leaves out; `redrawing` sets it."""
        self._kept: Tensor | None = None

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def weight(self) -> Tensor:
        weight = self.base.weight
        return weight if self.merged else weight + self.delta().to(weight.dtype)

    @property
    def merged(self) -> bool:
        return self._kept is not None

    def delta(self) -> Tensor:
        """scale·B·A (N, K) in float32."""
        return self.scale * (self.lora_B.float() @ self.lora_A.float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) → (..., N)."""
        y: Tensor = self.base(x)
        if self.merged:
            return y
        x = x.to(self.lora_A.dtype)
        if self.dropout and self.training and torch.is_grad_enabled():
            x = x * _kept_inputs(x, self.dropout, self.draw)
        return y + (F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale).to(y.dtype)

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapter to the base weight, whose own bits are kept."""
        if self.merged:
            return
        assert isinstance(self.base, nn.Linear)
        kept = self.base.weight.data
        self.base.weight.data = (kept.float() + self.delta()).to(kept.dtype)
        self._kept = kept

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the kept base weight back, bit for bit."""
        if self._kept is not None:
            assert isinstance(self.base, nn.Linear)
            self.base.weight.data = self._kept.to(self.base.weight.device)
            self._kept = None


def _kept_inputs(x: Tensor, rate: float, draw: int) -> Tensor:
    """1 / (1 - rate) with probability 1 - rate, else 0, in the shape of x: a function of `draw`.
    A generator of its own, so that passes computed twice or again after a crash draw the same."""
    generator = torch.Generator(x.device).manual_seed(draw)
    kept = torch.empty_like(x, requires_grad=False).bernoulli_(1 - rate, generator=generator)
    return kept.div_(1 - rate)


def redrawing(model: nn.Module, seed: int, rank: int) -> Callable[[int, int], None]:
    """What a run calls before each micro-batch with its step and its number there: from then on
    dropout draws by (seed, rank, step, number) and the layer, nothing else."""
    layers = [(name, layer) for name, layer in adapted(model) if layer.dropout]

    def redraw(step: int, number: int) -> None:
        for name, layer in layers:
            said = f"{seed} {rank} {step} {number} {name}".encode()
            layer.draw = int.from_bytes(hashlib.blake2b(said, digest_size=4).digest(), "little")

    return redraw


def adaptable(model: GPT) -> dict[str, Linear]:
    """Linear layers that an adapter may sit beside, by our name: those of the blocks, and the
    output head where it is not the embedding."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            found[name] = module.base
        elif isinstance(module, nn.Linear | QuantizedLinear) and not name.endswith(".base"):
            found[name] = module
    if model.config.tie_embeddings:
        found.pop("lm_head", None)
    return found


def adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The adapted layers with their names, sorted."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, LoraLinear)}
    yield from sorted(found.items())


def put_adapter(model: GPT, name: str, a: nn.Parameter, b: nn.Parameter, scale: float) -> None:
    """Set A and B beside the linear layer `name`. Raises UsageError when it has an adapter."""
    parent = model.get_submodule(name.rpartition(".")[0])
    leaf = name.rpartition(".")[2]
    base = getattr(parent, leaf)
    if isinstance(base, LoraLinear):
        raise UsageError(f"{name} has an adapter already", hint="merge that one first")
    setattr(parent, leaf, LoraLinear(base, a, b, scale).train(parent.training))


def add_adapter(model: GPT, config: LoraConfig, seed: int) -> None:
    """Put a fresh adapter into the model; from then on only its matrices learn.

    A is uniform within ±1/√K, B is zero, so nothing changes yet. Raises UsageError when a target
    names no layer.
    """
    config.check()
    generator = torch.Generator().manual_seed(seed)
    like = model.model.embed_tokens.weight
    layers = adaptable(model)
    names = _targeted(layers, config.targets)
    model.requires_grad_(False)
    for name in names:
        layer = layers[name]
        reach = 1 / math.sqrt(layer.in_features)
        a = torch.empty(config.rank, layer.in_features)
        a.uniform_(-reach, reach, generator=generator)
        b = torch.zeros(layer.out_features, config.rank)
        put_adapter(model, name, nn.Parameter(a.to(like)), nn.Parameter(b.to(like)), config.scale())
    for _, adapter in adapted(model):
        adapter.dropout = config.dropout


def _targeted(layers: dict[str, Linear], targets: str | tuple[str, ...]) -> list[str]:
    if targets == "all":
        return sorted(name for name in layers if name != "lm_head")
    wanted = (targets,) if isinstance(targets, str) else targets
    chosen: set[str] = set()
    for target in wanted:
        hit = {n for n in layers if n == target or n.endswith(f".{target}")}
        if not hit:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise UsageError(f"no linear layer is called {target}", hint=f"known: {known}, or all")
        chosen |= hit
    if not chosen:
        raise UsageError("an adapter without target layers learns nothing", hint="use all")
    return sorted(chosen)


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """A and B of every adapted layer by our names: "….q_proj.lora_A", "….q_proj.lora_B"; and the
    rows that learn beside them, "….embed_tokens.learned_rows"; what is tied once."""
    found = {}
    for name, module in adapted(model):
        found[f"{name}.lora_A"] = module.lora_A.detach()
        found[f"{name}.lora_B"] = module.lora_B.detach()
    learned = {n: p.detach() for n, p in model.named_parameters() if n.endswith(f".{LEARNED}")}
    return found | learned


def _is_of_adapter(name: str) -> bool:
    return name.rpartition(".")[2] in ("lora_A", "lora_B", LEARNED)


def merge(model: nn.Module) -> None:
    """Add the adapter to the weights, for full speed. Raises UsageError on quantised weights."""
    if any(isinstance(module.base, QuantizedLinear) for _, module in adapted(model)):
        raise UsageError(
            "an adapter cannot be merged into quantised weights",
            hint="merge it first and quantise then",
        )
    for _, module in adapted(model):
        module.merge()
    for _, rows in learning_rows(model):
        rows.merge()


def unmerge(model: nn.Module) -> None:
    """Take the adapter out again: the base weights have the bits they had before `merge`."""
    for _, module in adapted(model):
        module.unmerge()
    # Last in, first out: tables that are one keep each other's bits.
    for _, rows in reversed(list(learning_rows(model))):
        rows.unmerge()


def fold(model: GPT) -> None:
    """Merge for good: the layers are plain linear layers afterwards, everything may learn.

    Raises UsageError on quantised weights.
    """
    merge(model)
    for name, module in list(adapted(model)):
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], module.base)
    fold_rows(model)
    model.requires_grad_(True)


@torch.no_grad()
def merged_weights(model: GPT) -> dict[str, Tensor]:
    """All parameters by the names of a model without adapter, the adapter added, tied ones once.

    Raises UsageError when the base is quantised. The model stays as it is.
    """
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise UsageError(
            "quantised weights cannot be written as a model folder",
            hint="open the model without --quantize",
        )
    wrapped: dict[str, LoraLinear | LearnedRows]
    wrapped = {**dict(adapted(model)), **dict(learning_rows(model))}
    found = {}
    for name, parameter in sorted(model.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        if _is_of_adapter(name):
            continue
        layer = wrapped.get(owner.removesuffix(".base"))
        if layer is None:
            found[name] = parameter.detach()
        else:
            plain = f"{owner.removesuffix('.base')}.{leaf}"
            found[plain] = (layer.weight if leaf == "weight" else parameter).detach()
    return found
