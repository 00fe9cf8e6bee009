"""What the first model of a run says of its pairs: computed once, kept in the run folder."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save_file
from torch import Tensor

from chatbench import console
from chatbench.errors import IntegrityError
from chatbench.model.device import dtype_name
from chatbench.model.transformer import GPT
from chatbench.storage import new_folder, remove_folder, verify
from chatbench.train.objective import Batch
from chatbench.train.parallel import World
from chatbench.train.preference_rows import Floats, PairRows, with_reference
from chatbench.train.run import CONFIG

KIND = "reference"
_TABLES = "logprobs.safetensors"

# A model and a batch of pairs: Σ log p of each reply, and its tokens, both (B, P, 2).
Judge = Callable[[GPT, Batch], tuple[Tensor, Tensor]]


class Reference:
    """The starting model as a judge; `facts` say of what, beside the model, its words are."""

    def __init__(
        self, model: GPT, dtype: torch.dtype, place: Path, facts: Mapping[str, str | int]
    ) -> None:
        """`model` is the one that will be trained, before the first step; `dtype`: what it will
        compute in; `place`: the run folder."""
        self._model, self._dtype = model, dtype
        self._begun = (place / CONFIG).is_file()
        self._folder = place / "reference"
        self._facts = dict(facts)

    @cached_property
    def model(self) -> GPT:
        """The model in the number format of the run."""
        weight = self._model.model.embed_tokens.weight
        same = weight.dtype == self._dtype
        return (self._model if same else copy.deepcopy(self._model).to(self._dtype)).eval()

    def of(
        self, rows: Mapping[str, PairRows], judge: Judge, micro_batch: int, ranks: World
    ) -> dict[str, Floats]:
        """Σ log p of the chosen and the rejected reply (N, 2) by number of pair, of each split.

        All ranks compute it together, unless rank 0 finds it in its run folder. Raises
        IntegrityError when a run began with another model, or other pairs.
        """
        told: dict[str, Floats] = {name: np.zeros((0, 2), np.float32) for name in rows}
        rows = {name: each for name, each in rows.items() if each.pairs}
        key = self._facts | {
            "model": _digest(self._model),
            "dtype": dtype_name(self._dtype),
            "pairs": {name: len(each.pairs) for name, each in rows.items()},
        }
        kept = self._kept(key) if ranks.first else None
        if ranks.same(kept is not None):
            handed = ranks.tensors(kept)
            return told | {name: handed[name].numpy() for name in sorted(rows)}
        for name, each in rows.items():
            told[name] = self._judged(each, judge, micro_batch, ranks)
        if ranks.first:
            tables = {name: torch.from_numpy(told[name]) for name in rows}
            with new_folder(self._folder, KIND, key, replace=True) as folder:
                save_file(tables, folder / _TABLES)
        return told

    def _kept(self, key: dict[str, Any]) -> dict[str, Tensor] | None:
        """What was computed when the run began, if it can be read."""
        if not self._folder.is_dir():
            return None
        try:
            info = verify(self._folder, KIND).info
        except IntegrityError as error:
            console.notice(f"{error}; it is computed again")
            remove_folder(self._folder)
            return None
        if info == key:
            return dict(load((self._folder / _TABLES).read_bytes()))
        if not self._begun:  # an attempt that never got as far as a run
            return None
        changed = ", ".join(name for name in key if info.get(name) != key[name])
        raise IntegrityError(
            f"{self._folder} was computed with another {changed} than this resume has",
            hint="go on with the model and the data that the run began with, or choose another "
            "--out",
        )

    @torch.no_grad()
    def _judged(self, rows: PairRows, judge: Judge, micro_batch: int, ranks: World) -> Floats:
        exact = self._dtype == torch.float64
        told: Floats = np.zeros((len(rows.pairs), 2), np.float64 if exact else np.float32)
        device = self.model.model.embed_tokens.weight.device
        with console.ProgressLine("reference", max(1, rows.count())) as progress:
            for begin, pairs in _groups(rows, micro_batch, ranks):
                made = [rows.row(each) for each in pairs]
                sums, _ = judge(self.model, with_reference(made, told).to(device))
                for line, each in zip(sums.cpu().numpy(), pairs, strict=True):
                    told[each] = line[: len(each)]
                ranks.pause("computing the reference")
                progress.update(begin, f"row {begin:,} of {rows.count():,}")
        # Every pair was another rank's zero.
        told[:] = np.asarray(ranks.sums(told.flatten().tolist())).reshape(told.shape)
        return told


def _groups(
    rows: PairRows, micro_batch: int, ranks: World
) -> Iterator[tuple[int, list[list[int]]]]:
    """Every ranks.size-th micro-batch, as pairs by row, with how many rows came before."""
    for begin in range(ranks.rank * micro_batch, rows.count(), ranks.size * micro_batch):
        yield begin, rows.bins[begin : begin + micro_batch]


def _digest(model: GPT) -> str:
    """SHA-256 of the weights, adapters among them."""
    total = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        total.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        total.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()
