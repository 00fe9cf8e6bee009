"""Rows of the embedding and of the output head that learn while the rest of them stays.

New control tokens need no more: beside an adapter only their rows move. What learns are the rows
themselves, not what is added to them, as peft has it (trainable_token_indices).
Legend: V entries, C width, n rows that learn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbench.errors import UsageError
from chatbench.model.transformer import GPT

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
LEARNED = "learned_rows"


class LearnedRows(nn.Module):
    """What both kinds share: `base` with a weight (V, C), whose rows `ids` (n,) give way to
    `learned_rows` (n, C) unless they are merged, or `bypassed` because the base is asked for."""

    ids: Tensor

    def __init__(self, base: nn.Module, ids: Sequence[int], rows: nn.Parameter) -> None:
        super().__init__()
        self.base = base
        self.learned_rows = rows
        self.bypassed = False
        self.register_buffer("ids", torch.tensor(sorted(ids), device=rows.device), persistent=False)
        self._kept: Tensor | None = None

    @property
    def frozen(self) -> Tensor:
        """The base's own weight (V, C)."""
        return weight_of(self.base)

    @property
    def weight(self) -> Tensor:
        """What the table amounts to (V, C), for those who read it themselves."""
        if self.plain:
            return self.frozen
        return self.frozen.index_copy(0, self.ids, self.learned_rows.to(self.frozen.dtype))

    @property
    def plain(self) -> bool:
        """Whether the base alone is the table."""
        return self.bypassed or self.merged

    @property
    def merged(self) -> bool:
        return self._kept is not None

    @torch.no_grad()
    def merge(self) -> None:
        """Put the rows into the base, whose own bits are kept."""
        if not self.merged:
            kept = self.frozen[self.ids]
            self.frozen[self.ids] = self.learned_rows.to(kept.dtype)
            self._kept = kept

    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the base's own rows back, bit for bit."""
        if self._kept is not None:
            self.frozen[self.ids] = self._kept.to(self.frozen)
            self._kept = None


class RowsEmbedding(LearnedRows):
    """An embedding of which some rows learn."""

    def forward(self, ids: Tensor) -> Tensor:
        """(...) → (..., C)."""
        x: Tensor = self.base(ids)
        if self.plain:
            return x
        place = torch.searchsorted(self.ids, ids.contiguous()).clamp(max=len(self.ids) - 1)
        own = F.embedding(place, self.learned_rows.to(x.dtype))
        return torch.where((self.ids[place] == ids)[..., None], own, x)


class RowsHead(LearnedRows):
    """An output head of which some rows learn."""

    bias = None

    @property
    def out_features(self) -> int:
        return len(self.frozen)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) → (..., V). Only the columns of the rows that learn cost a gradient of them."""
        y: Tensor = self.base(x)
        if self.plain:
            return y
        return y.index_copy(-1, self.ids, F.linear(x, self.learned_rows.to(x.dtype)))


def tables(model: GPT) -> dict[str, nn.Module]:
    """The embedding, and the head where it is another matrix, by our names."""
    found = {EMBEDDING: model.get_submodule(EMBEDDING)}
    if not (model.config.tie_embeddings or model.config.labels):
        found[HEAD] = model.get_submodule(HEAD)
    return found


def learning_rows(model: nn.Module) -> Iterator[tuple[str, LearnedRows]]:
    """The tables of which rows learn, with their names."""
    yield from ((name, m) for name, m in model.named_modules() if isinstance(m, LearnedRows))


@torch.no_grad()
def start_rows(model: GPT, ids: Sequence[int], known: int) -> None:
    """Give the rows `ids` of the embedding and of the head the mean of the first `known` ones; a
    table that has no such rows gets them, all others keep their bits.

    With the mean a new token is never likelier than the known ones are together, so nothing the
    model does changes much (Hewitt 2021). Noise around it is left out: what a token stands beside
    tells it from the others within a step, and without it the start needs no seed.
    """
    size = max(model.config.vocab_size, *(number + 1 for number in ids))
    for name, module in tables(model).items():
        old = weight_of(module)
        mean = old[:known].double().mean(0).to(old)
        weight = old
        if len(old) < size:
            weight = torch.cat([old, mean.expand(size - len(old), -1)])
        weight[torch.tensor(sorted(ids), device=old.device)] = mean
        set_table(model, name, weight)


@torch.no_grad()
def set_table(model: GPT, name: str, weight: Tensor) -> None:
    """Put the weight (V, C) in the place of a table's; the config follows the number of entries."""
    module = model.get_submodule(name)
    old = weight_of(module)
    if weight is not old:
        module.weight = nn.Parameter(weight.detach(), requires_grad=old.requires_grad)
    setattr(module, "num_embeddings" if name == EMBEDDING else "out_features", len(weight))
    model.config = model.config._replace(vocab_size=len(weight))
    if name == EMBEDDING and model.config.tie_embeddings and not model.config.labels:
        model.lm_head.out_features = len(weight)
        model.tie()


def untie(model: GPT) -> None:
    """Make the head a matrix of its own, equal to the embedding for now."""
    model.config = model.config._replace(tie_embeddings=False)
    head = model.lm_head.weight
    model.lm_head.weight = nn.Parameter(head.detach().clone(), requires_grad=head.requires_grad)


def learn_rows(model: GPT, ids: Sequence[int]) -> None:
    """Let these rows of the embedding and of the head learn, beginning as they are; the rest of
    both stays. Raises UsageError when the head has an adapter, which would move the same rows."""
    chosen = torch.tensor(sorted(ids), device=model.model.embed_tokens.weight.device)
    found = tables(model)
    if not all(type(module.weight) is nn.Parameter for module in found.values()):
        raise UsageError(
            "the output head cannot have an adapter where new control tokens learn their rows",
            hint="leave lm_head out of --lora-targets",
        )
    for name, module in found.items():
        put_rows(model, name, ids, weight_of(module).detach()[chosen].clone())


def put_rows(model: GPT, name: str, ids: Sequence[int], numbers: Tensor) -> None:
    """Let `numbers` (n, C) learn in the place of the rows `ids`, in their sorted order, of one
    table; a head that is one with the embedding follows it."""
    module = model.get_submodule(name)
    weight_of(module).requires_grad_(False)
    learned = nn.Parameter(numbers)
    if name == HEAD:
        model.lm_head = _head(model, ids, learned)
        return
    model.model.embed_tokens = RowsEmbedding(module, ids, learned).train(module.training)  # type: ignore[assignment]
    if HEAD not in tables(model) and not model.config.labels:
        model.lm_head = _head(model, ids, learned)


def _head(model: GPT, ids: Sequence[int], learned: nn.Parameter) -> Any:
    return RowsHead(model.lm_head, ids, learned).train(model.lm_head.training)


def weight_of(module: nn.Module) -> Tensor:
    """The matrix (V, C) of a table."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def fold_rows(model: GPT) -> None:
    """Merge for good: the tables are plain ones afterwards."""
    for name, module in list(learning_rows(model)):
        module.merge()
        setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], module.base)
