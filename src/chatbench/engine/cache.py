"""Keys and values of the rows being generated, kept dense: rows 0..n-1 are always the live ones."""

from __future__ import annotations

import torch
from torch import Tensor

from chatbench.model.attention import LayerCache, Reach
from chatbench.model.transformer import ModelConfig

_FIRST_CAPACITY = 128


class KVCache:
    """Per layer (rows, capacity, K, D) for keys and for values; capacity grows by doubling."""

    def __init__(
        self, config: ModelConfig, rows: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._config = config
        self._device = device
        self._dtype = dtype
        self._rows = rows
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

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        length = self.lengths[source]
        for store in (*self._keys, *self._values):
            store[target, :length] = store[source, :length]
        self.lengths[target] = length
