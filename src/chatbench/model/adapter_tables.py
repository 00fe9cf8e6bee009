"""What an adapter from elsewhere, or one of ours, brings for the embedding and the head.

Either some rows of them (PEFT's trainable_token_indices), or all of them, because they learned as a
whole (modules_to_save) or got more entries before the adapter learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chatbench.errors import IntegrityError
from chatbench.model.adapter_file import Stored, table_names
from chatbench.model.reading import shown
from chatbench.model.rows import EMBEDDING, HEAD, put_rows, set_table, start_rows, untie
from chatbench.model.transformer import GPT, ModelConfig

_SAVED, _INDICES = "modules_to_save", "trainable_token_indices"


class Rows(NamedTuple):
    """The rows `ids`, sorted, of a table: numbers (n, C)."""

    ids: list[int]
    numbers: Tensor


class Tables(NamedTuple):
    """By our names: tables (V, C) that replace the base's, and rows that replace theirs. `apart`:
    the head is no longer one with the embedding."""

    whole: dict[str, Tensor]
    rows: dict[str, Rows]
    apart: bool


def read_tables(
    config: ModelConfig, stored: Stored, raw: Mapping[str, Any], folder: Path
) -> Tables:
    """What the adapter in `folder` brings for the tables of a model of this shape; `raw` is its
    config. Raises IntegrityError for what cannot belong to the model."""
    names = table_names(config)
    whole: dict[str, Tensor] = {}
    for hub, table in stored.tables.items():
        if hub not in names or table.shape[1] != config.hidden_size:
            raise IntegrityError(
                f"{folder} brings {shown(hub)} as numbers {tuple(table.shape)}, which fit nothing "
                "of the model"
            )
        whole[names[hub]] = table
    for said in raw.get(_SAVED) or ():
        if not any(hub.rpartition(".")[2] == said for hub in stored.tables):
            raise IntegrityError(f"{folder} lacks {shown(said)}, which its {_SAVED} names")
    sizes = {len(table) for table in whole.values()}
    missing = not config.tie_embeddings and len(whole) == 1 and sizes != {config.vocab_size}
    if len(sizes) > 1 or missing:
        raise IntegrityError(f"{folder} brings embedding and head of different sizes")
    size = sizes.pop() if sizes else config.vocab_size
    rows = _rows(config, stored, raw, folder, size)
    alone = EMBEDDING in whole and HEAD not in whole and bool(raw.get(_SAVED))
    apart = config.tie_embeddings and (
        _differ(whole.get(EMBEDDING), whole.get(HEAD))
        or (alone and not raw.get("ensure_weight_tying"))
        or _differ(*(rows[name].numbers if name in rows else None for name in (EMBEDDING, HEAD)))
    )
    return Tables(whole, rows, apart)


def _differ(embedding: Tensor | None, head: Tensor | None) -> bool:
    """Whether a head that is stored is another than the embedding."""
    return head is not None and (embedding is None or not torch.equal(embedding, head))


def _rows(
    config: ModelConfig, stored: Stored, raw: Mapping[str, Any], folder: Path, size: int
) -> dict[str, Rows]:
    said = raw.get(_INDICES) or {}
    names = table_names(config)
    embedding = next(iter(names))
    by_leaf = said if isinstance(said, dict) else {embedding.rpartition(".")[2]: said}
    found: dict[str, Rows] = {}
    for hub, numbers in stored.rows.items():
        leaf = hub.rpartition(".")[2]
        # A head that is one with the embedding has the same rows.
        ids = by_leaf.get(leaf, by_leaf.get(hub, said if leaf == HEAD else None))
        fits = isinstance(ids, list) and all(type(number) is int for number in ids)
        if hub not in names or not fits or numbers.shape != (len(ids or ()), config.hidden_size):
            raise IntegrityError(
                f"{folder} holds rows of {shown(hub)} that its {_INDICES} do not tell"
            )
        found[names[hub]] = _sorted(ids or [], numbers, size, folder)
    if len(found) < len(by_leaf) - config.tie_embeddings or (by_leaf and not found):
        raise IntegrityError(f"{folder} lacks rows that its {_INDICES} name")
    longest = max((rows.ids[-1] + 1 for rows in found.values()), default=0)
    both = EMBEDDING in found and (HEAD in found or config.tie_embeddings)
    if longest > size and not (both and len({tuple(r.ids) for r in found.values()}) == 1):
        raise IntegrityError(f"{folder} lacks rows of the embedding or of the head for new tokens")
    return found


def _sorted(ids: list[int], numbers: Tensor, size: int, folder: Path) -> Rows:
    """In the order of the ids. Those beyond the table of `size` must be all up to the last."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    ids = [ids[place] for place in order]
    beyond = [number for number in ids if number >= size]
    if not ids or ids[0] < 0 or len(set(ids)) < len(ids) or beyond != [
        *range(size, size + len(beyond))
    ]:  # fmt: skip
        raise IntegrityError(f"{folder}: {_INDICES} name rows twice, or leave some out")
    return Rows(ids, numbers[order])


def put_tables(model: GPT, tables: Tables) -> None:
    """Replace tables, and put the rows beside them; what replaces is as the model is."""
    if tables.apart:
        untie(model)
    like = model.model.embed_tokens.weight
    for name, table in sorted(tables.whole.items()):
        if name == EMBEDDING or not model.config.tie_embeddings:
            set_table(model, name, table.to(like, copy=True))
    size = model.config.vocab_size
    longest = max((rows.ids[-1] + 1 for rows in tables.rows.values()), default=0)
    if longest > size:
        start_rows(model, range(size, longest), size)
    for name, rows in sorted(tables.rows.items(), reverse=True):
        if name == EMBEDDING or not model.config.tie_embeddings:
            put_rows(model, name, rows.ids, rows.numbers.to(like, copy=True))
