"""What a training step will hold at its peak, counted from the shape and from one small pass."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn

from chatbench.model.head import chunk_rows, linear_cross_entropy
from chatbench.model.kernels.passes import why_not
from chatbench.model.transformer import GPT, ModelConfig
from chatbench.train.adapting import WHOLE, Adaptation

# Matrices of one shape that Muon holds at once while it turns them: directions, the stack, two
# iterates, and products.
_TURNING = 5
# Logits, their logarithms and the slopes made of them.
_LOGIT_TABLES = 3
# Gradients that a block's backward pass holds at once, in parts of what it kept: by torch's own
# operations, and by fused passes, which put many in the place of what they read. Measured.
_INNER, _INNER_FUSED = 1.5, 0.6


class Memory(NamedTuple):
    """Bytes at the peak of a step; `passing` is what exists only while it is computed."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    passing: int

    @property
    def peak(self) -> int:
        return sum(self)


class Kept(NamedTuple):
    """Bytes that one row leaves behind for the backward pass: in all blocks, and in one."""

    row: int
    block: int


def predict(
    config: ModelConfig, rows: int, seq_len: int, kept: Kept, dtype: torch.dtype, *, muon: bool,
    adaptation: Adaptation = WHOLE,
) -> Memory:  # fmt: skip
    """The peak of a step on micro-batches of `rows` rows of `seq_len` tokens."""
    with torch.device("meta"):
        model = GPT(config)
    adaptation.apply(model, quantize=False)
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    frozen = sum(
        adaptation.frozen_bytes(name, p, dtype.itemsize)
        for name, p in model.named_parameters() if not p.requires_grad
    )  # fmt: skip
    parameters = sum(shape.numel() for shape in shapes.values())
    turned = [
        shape for name, shape in shapes.items()
        if muon and len(shape) == 2 and "embed_" not in name and "lm_head" not in name
    ]  # fmt: skip
    momenta = sum(shape.numel() for shape in turned)
    together = Counter(turned)
    largest = max((shape.numel() * count for shape, count in together.items()), default=0)
    narrow = dtype != torch.float32
    # The table's gradient, once from each of its two uses.
    tables = 2 * (model.lm_head.weight.requires_grad and 4 * config.vocab_size * config.hidden_size)
    logits = 4 * _LOGIT_TABLES * config.vocab_size * min(rows * seq_len, _chunk(config))
    activations = rows * kept.row
    # Gradients of a block's inner values.
    inner = _INNER_FUSED if why_not() == "" else _INNER
    backward = activations + round(rows * kept.block * inner) + tables + logits
    turning = _TURNING * dtype.itemsize * largest
    return Memory(
        weights=parameters * (4 + (dtype.itemsize if narrow else 0)) + round(frozen),
        gradients=parameters * (4 + (dtype.itemsize if narrow else 0)),
        optimizer=4 * momenta + 8 * (parameters - momenta),
        activations=activations,
        # Activations are gone when the optimiser begins.
        passing=max(backward, turning) - activations,
    )


def _chunk(config: ModelConfig) -> int:
    return chunk_rows(torch.empty(config.vocab_size, 1, device="cpu"))


def kept_by_a_row(
    config: ModelConfig, seq_len: int, dtype: torch.dtype, adaptation: Adaptation = WHOLE
) -> Kept:
    """Counted on the CPU in a model of the first one and two blocks; every block keeps as much,
    but those below the first one that learns keep nothing."""
    counted = adaptation if adaptation.layers is None else WHOLE
    one, two = (_saved(config._replace(n_layers=n), seq_len, dtype, counted) for n in (1, 2))
    keeping = config.n_layers if adaptation.layers is None else adaptation.layers
    return Kept(max(one - (two - one), one + (keeping - 1) * (two - one)), two - one)


def _saved(config: ModelConfig, seq_len: int, dtype: torch.dtype, adaptation: Adaptation) -> int:
    """Bytes of everything that autograd saves in the forward pass of one row, weights apart."""
    model = GPT(config).to(dtype).train()
    adaptation.shallow(config.n_layers).apply(model, quantize=False)
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known:
            found[place] = tensor  # held, so that no other storage takes its place
        return tensor

    ids = torch.zeros(1, seq_len, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model(ids).flatten(0, 1)
        head = nn.Parameter(model.lm_head.weight.detach())
        known.add(head.untyped_storage().data_ptr())
        linear_cross_entropy(hidden, head, ids.flatten())
    kept = {place: t.untyped_storage().nbytes() for place, t in found.items()}
    # The head keeps the gradient of what it was given, beside what it saved.
    return int(sum(kept.values()) + hidden.numel() * hidden.element_size())
