"""Keys and values of the rows being generated, kept dense: rows 0..n-1 are always the live ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chatbench.model.attention import LayerCache, Reach
from chatbench.model.transformer import ModelConfig

_FIRST_CAPACITY = 128


class Saved(NamedTuple):
    """Keys and values of one row, for each layer (tokens, K, D)."""

    keys: list[Tensor]
    values: list[Tensor]


class KVCache:
    """Per layer (rows, capacity, K, D) for keys and for values; capacity grows by doubling."""

    def __init__(
        self, config: ModelConfig, rows: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._config = config
        self._device = device
        self._dtype = dtype
        self._rows = rows
        size = torch.empty((), dtype=dtype).element_size()
        self.token_bytes = 2 * config.n_layers * config.n_kv_heads * config.head_dim * size
        self.lengths = [0] * rows
        self.capacity = min(_FIRST_CAPACITY, config.context)
        self._keys = [self._empty() for _ in range(config.n_layers)]
        self._values = [self._empty() for _ in range(config.n_layers)]

    def _empty(self) -> Tensor:
        c = self._config
        shape = (self._rows, self.capacity, c.n_kv_heads, c.head_dim)
        return torch.zeros(shape, device=self._device, dtype=self._dtype)

    def reserve(self, tokens: int) -> None:
        """Make room for rows of this many tokens."""
        if tokens <= self.capacity:
            return
        old = self.capacity
        self.capacity = min(max(2 * old, tokens), self._config.context)
        for store in (self._keys, self._values):
            for number, kept in enumerate(store):
                store[number] = self._empty()
                store[number][:, :old] = kept

    def layers(self, first: int, count: int) -> list[LayerCache]:
        """Views on rows first..first+count-1, for `attention` to append to."""
        rows = slice(first, first + count)
        held = self.lengths[rows]
        lengths = torch.tensor(held, device=self._device)
        reach = Reach(lengths, max(held), held)
        return [
            LayerCache(k[rows], v[rows], lengths, reach.longest, reach)
            for k, v in zip(self._keys, self._values, strict=True)
        ]

    def stores(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the first rows to their full capacity, for each layer: (count,
        capacity, K, D). They are the cache's until `capacity` changes."""
        return [(k[:count], v[:count]) for k, v in zip(self._keys, self._values, strict=True)]

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        self.copy(source, target, self.lengths[source])

    def saved(self, row: int, tokens: int) -> Saved:
        """A copy of the beginning of one row."""
        return Saved(
            [k[row, :tokens].clone() for k in self._keys],
            [v[row, :tokens].clone() for v in self._values],
        )

    def restore(self, row: int, saved: Saved, tokens: int) -> None:
        """Begin a row with what was saved."""
        self.reserve(tokens)
        for stores, kept in ((self._keys, saved.keys), (self._values, saved.values)):
            for store, piece in zip(stores, kept, strict=True):
                store[row, :tokens] = piece[:tokens]
        self.lengths[row] = tokens

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Begin one row with the beginning of another."""
        for store in (*self._keys, *self._values):
            store[target, :tokens] = store[source, :tokens]
        self.lengths[target] = tokens
