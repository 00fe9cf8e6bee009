"""What lies in an adapter's file, by PEFT's names: pairs of matrices, and what it holds of tables.

The names inside are the hub's. Where a family's hub layout fuses layers that are apart here
(GPT-2's c_attn holds queries, keys and values), one hub adapter is several of ours.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from chatbench.errors import IntegrityError
from chatbench.model.reading import shown
from chatbench.model.rows import EMBEDDING, HEAD
from chatbench.model.transformer import ModelConfig
from chatbench.model.weights import read_file

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
# model_type → (path of the blocks, hub layer → ours in the order of the hub's rows, whether the
# hub's weights lie as (K, N)). Families that are not here have our names.
RENAMED: dict[str, tuple[str, dict[str, tuple[str, ...]], bool]] = {
    "gpt2": (
        "transformer.h",
        {
            "attn.c_attn": _QKV,
            "attn.c_proj": ("self_attn.o_proj",),
            "mlp.c_fc": ("mlp.up_proj",),
            "mlp.c_proj": ("mlp.down_proj",),
        },
        True,
    ),
}
# What the embedding is called there; the head has one name everywhere.
_EMBEDDINGS = {"gpt2": "transformer.wte"}
# The last parts of those names.
TABLES = frozenset({"embed_tokens", "wte", "lm_head"})
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_ROWS_KEY = re.compile(
    r"base_model\.model\.(.+)\.token_adapter\.trainable_tokens_delta(?:\.default)?"
)
# PEFT repeats a head beside its adapter, and writes tables down whole that learned or grew.
_BASE_KEY = re.compile(r"base_model\.model\.(.+)\.base_layer\.weight")
_TABLE_KEY = re.compile(
    r"base_model\.model\.((?:.+\.)?(?:embed_tokens|wte|lm_head))"
    r"(?:\.token_adapter\.base_layer|\.modules_to_save(?:\.default)?)?\.weight"
)


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


class Stored(NamedTuple):
    """By hub layer: A (r, K) and B (N, r), base weights (N, K) that stand beside them, the rows
    (n, C) that learned of a table, and tables (V, C) that are there whole."""

    pairs: dict[str, Pair]
    bases: dict[str, Tensor]
    rows: dict[str, Tensor]
    tables: dict[str, Tensor]


def table_names(config: ModelConfig) -> dict[str, str]:
    """Our names of the embedding and the head by the hub's."""
    return {_EMBEDDINGS.get(config.model_type, EMBEDDING): EMBEDDING, HEAD: HEAD}


def hub_layers(config: ModelConfig, names: list[str]) -> dict[str, tuple[str, ...]]:
    """Hub name of every linear layer → our names it consists of, in the order of its rows.

    `names` are our linear layers; the output head has the same name everywhere.
    """
    if config.model_type not in RENAMED:
        return {name: (name,) for name in names}
    blocks, layers, _ = RENAMED[config.model_type]
    found: dict[str, tuple[str, ...]]
    found = {name: (name,) for name in names if not name.startswith("model.layers.")}
    for number in range(config.n_layers):
        for hub, ours in layers.items():
            found[f"{blocks}.{number}.{hub}"] = tuple(f"model.layers.{number}.{o}" for o in ours)
    return found


def read_stored(path: Path) -> Stored:
    """What an adapter's file holds. Raises IntegrityError."""
    try:
        weights = read_file(path).read()
    except FileNotFoundError:
        raise IntegrityError(
            f"{path.parent} has no {path.name}", hint="other forms of adapters are not read"
        ) from None
    halves: dict[str, dict[str, Tensor]] = {}
    stored = Stored({}, {}, {}, {})
    for key, weight in weights.items():
        pair = _KEY.fullmatch(key)
        if weight.ndim == 2 and pair is not None:
            halves.setdefault(pair[1], {})[pair[2]] = weight
        elif weight.ndim != 2 or not _is_single(stored, key, weight):
            raise IntegrityError(f"{path} holds {shown(key)}, which chatbench does not compute")
    for hub, half in sorted(halves.items()):
        if len(half) < 2:
            raise IntegrityError(f"{path} lacks one of the two matrices of {shown(hub)}")
        stored.pairs[hub] = Pair(half["A"], half["B"])
    if not stored.pairs:
        raise IntegrityError(f"{path} holds no adapter, but {shown(min(weights, default=''))}")
    return stored


def _is_single(stored: Stored, key: str, weight: Tensor) -> bool:
    """Whether this is rows, a table or a base weight; then it is put where it belongs."""
    for pattern, kind in (
        (_ROWS_KEY, stored.rows),
        (_TABLE_KEY, stored.tables),
        (_BASE_KEY, stored.bases),
    ):
        found = pattern.fullmatch(key)
        if found is not None:
            kind[found[1]] = weight
            return True
    return False
