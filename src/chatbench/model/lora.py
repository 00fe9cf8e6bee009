"""Adapters in PEFT's format, both ways: adapter_config.json and adapter_model.safetensors.

New control tokens go with their adapter as the rows of embedding and head that they learned.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from chatbench.errors import IntegrityError, UsageError
from chatbench.model.adapter import (
    LoraConfig,
    LoraLinear,
    adaptable,
    adapted,
    adapter_weights,
    add_adapter,
    fold,
    merge,
    merged_weights,
    put_adapter,
    unmerge,
)
from chatbench.model.adapter_file import (
    RENAMED,
    TABLES,
    Pair,
    hub_layers,
    read_stored,
    table_names,
)
from chatbench.model.adapter_tables import put_tables, read_tables
from chatbench.model.finding import ADAPTER_CONFIG, ADAPTER_WEIGHTS, NOTES
from chatbench.model.reading import read_object, shown
from chatbench.model.rows import LEARNED, learning_rows, put_rows, tables
from chatbench.model.transformer import GPT, ModelConfig
from chatbench.model.weights import Deferred, write_weights
from chatbench.storage import write_json
from chatbench.text.tokenizer import Tokenizer

__all__ = [
    "Base",
    "LoraConfig",
    "LoraLinear",
    "adapter_weights",
    "add_adapter",
    "fold",
    "hub_layers",
    "load_adapter",
    "merge",
    "merged_weights",
    "read_adapter_config",
    "save_adapter",
    "unmerge",
    "write_adapter",
]

_PLAIN_NAME = re.compile(r"\^?[\w.]+")
_LARGEST_CONFIG = 1_000_000
# Initialisations after which PEFT's adapter belongs to a changed base model.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_REFUSED = {
    "use_dora": "DoRA", "use_qalora": "QA-LoRA", "lora_bias": "biases on LoRA",
}  # fmt: skip
# What changes no number, or is read here. Anything else that is set would change some.
_KNOWN = frozenset({
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path",
    "revision", "inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "bias",
    "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "fan_in_fan_out", "init_lora_weights", "megatron_config", "megatron_core",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size",
    "runtime_config", "ensure_weight_tying", "modules_to_save", "trainable_token_indices",
})  # fmt: skip


class Base(NamedTuple):
    """The model that an adapter belongs to: what peft finds it by, a path or the hub's owner/name
    with a revision; its folder; and the digest of its weights."""

    name: str
    revision: str | None
    folder: Path
    digest: str


def read_adapter_config(folder: Path) -> tuple[LoraConfig, dict[str, Any]]:
    """adapter_config.json in our words, and as it stands.

    Raises IntegrityError for what is damaged, is no LoRA, or asks for what we do not compute.
    """
    path = folder / ADAPTER_CONFIG
    try:
        raw = read_object(path, _LARGEST_CONFIG)
    except FileNotFoundError:
        raise IntegrityError(f"{folder} has no {ADAPTER_CONFIG}") from None
    kind = raw.get("peft_type")
    asked = [what for key, what in _REFUSED.items() if raw.get(key)]
    asked += [shown(key) for key in sorted(raw.keys() - _REFUSED.keys() - _KNOWN) if raw[key]]
    if kind != "LORA":
        asked = [f"the method {shown(kind)}"]
    if raw.get("bias", "none") != "none":
        asked.append(f"trained biases (bias {shown(raw['bias'])})")
    if raw.get("init_lora_weights") not in _PLAIN_STARTS:
        asked.append(f"a base changed by init_lora_weights {shown(raw['init_lora_weights'])}")
    saved = raw.get("modules_to_save") or []
    if not (isinstance(saved, list) and TABLES.issuperset(map(str, saved))):
        asked.append(f"whole trained modules (modules_to_save {shown(str(saved))})")
    if not isinstance(raw.get("trainable_token_indices") or {}, list | dict):
        asked.append("trainable_token_indices of an unknown form")
    if asked:
        raise IntegrityError(
            f"{path} asks for {asked[0]}, which chatbench does not compute",
            hint="merge it into its base with peft, and open the result",
        )
    try:
        targets = raw.get("target_modules") or "all"
        config = LoraConfig(
            rank=int(raw["r"]),
            alpha=float(raw["lora_alpha"]),
            dropout=float(raw.get("lora_dropout") or 0.0),
            targets=tuple(targets) if isinstance(targets, list) else "all",
            rslora=bool(raw.get("use_rslora")),
        ).check()
        for key in ("rank_pattern", "alpha_pattern"):
            if not isinstance(raw.get(key) or {}, dict):
                raise ValueError(f"{key} is no table")
    except (KeyError, TypeError, ValueError, OverflowError, UsageError) as error:
        raise IntegrityError(f"{path} does not describe an adapter: {error}") from error
    return config, raw


def load_adapter(model: GPT, folder: Path) -> LoraConfig:
    """Put the adapter of a PEFT folder beside the model's layers; only its matrices learn then, and
    its rows of embedding and head. Where it brings those whole, they replace the model's, which may
    get more entries.

    Returns its shape, as `save_adapter` takes it. Raises IntegrityError when it is damaged, not
    supported, or belongs to another model.
    """
    config, raw = read_adapter_config(folder)
    layers = adaptable(model)
    fused = hub_layers(model.config, list(layers))
    stored = read_stored(folder / ADAPTER_WEIGHTS)
    pairs, bases = stored.pairs, stored.bases
    brought = read_tables(model.config, stored, raw, folder)
    for hub, pair in pairs.items():
        if not all(name in layers for name in fused.get(hub, (hub,))):
            raise IntegrityError(
                f"{folder} adapts {shown(hub)}, which the model does not have", hint=_base_hint(raw)
            )
        rank = _pattern(raw.get("rank_pattern"), hub, config.rank)
        ours = fused[hub]
        rows = [layers[name].out_features for name in ours]
        wanted = (rank, layers[ours[0]].in_features), (sum(rows), rank)
        if (tuple(pair.a.shape), tuple(pair.b.shape)) != wanted:
            raise IntegrityError(
                f"{folder}: {hub} has matrices {tuple(pair.a.shape)} and {tuple(pair.b.shape)}, "
                f"the model wants {wanted[0]} and {wanted[1]}",
                hint=_base_hint(raw),
            )
    for hub, other in bases.items():
        held = layers[hub].weight if hub in layers else None
        if held is None or not torch.equal(other.to(held), held):
            raise IntegrityError(
                f"{folder} brings weights of its own for {shown(hub)}, which differ from the"
                " model's", hint=_base_hint(raw),
            )  # fmt: skip
    model.requires_grad_(False)
    like = model.model.embed_tokens.weight
    for hub, pair in pairs.items():
        ours = fused[hub]
        alpha = _pattern(raw.get("alpha_pattern"), hub, config.alpha)
        scale = config._replace(alpha=alpha).scale(pair.a.shape[0])
        # One A for all parts: it learns by the sum of their gradients, as the fused one does.
        a = nn.Parameter(pair.a.to(like, copy=True))
        parts = torch.split(pair.b, [layers[name].out_features for name in ours])
        for name, b in zip(ours, parts, strict=True):
            put_adapter(model, name, a, nn.Parameter(b.to(like, copy=True)), scale)
    for _, adapter in adapted(model):
        adapter.dropout = config.dropout
    put_tables(model, brought)
    return config


def _base_hint(raw: dict[str, Any]) -> str:
    base = raw.get("base_model_name_or_path")
    return f"it was trained on {shown(base) if base else 'another model'}"


def _pattern(patterns: Any, hub: str, default: Any) -> Any:
    """The first entry of rank_pattern or alpha_pattern whose key is `hub` or an end of it.

    PEFT takes the keys as regular expressions; only names are taken here, as an expression from
    a stranger's file can run for ever. Raises IntegrityError.
    """
    for key, value in (patterns or {}).items():
        if not _PLAIN_NAME.fullmatch(key):
            raise IntegrityError(
                f"{ADAPTER_CONFIG} has the pattern {shown(key)}, only names are read"
            )
        if type(value) not in (int, float) or not value >= 0:
            raise IntegrityError(f"{ADAPTER_CONFIG} says {shown(str(value))} for {key}")
        name = key.lstrip("^")
        if hub == name or (hub.endswith(f".{name}") and not key.startswith("^")):
            return value
    return default


def write_adapter(
    folder: Path, config: ModelConfig, weights: Mapping[str, Tensor | Deferred],
    tokenizer: Tokenizer, provenance: dict[str, Any], *, lora: LoraConfig, base: Base,
    rows: Sequence[int] = (),
) -> None:  # fmt: skip
    """Fill a folder so that `open_model` and peft open the adapter `weights` (by the names of
    `adapter_weights`) on its base. `rows`: ids of the embedding's rows that learned with it."""
    # A model without memory: what is written of one is its adapter.
    with torch.device("meta"):
        model = GPT(config)
    held = {n: w.read() if isinstance(w, Deferred) else w for n, w in weights.items()}
    for name in sorted(n.removesuffix(".lora_A") for n in held if n.endswith(".lora_A")):
        a, b = (nn.Parameter(held[f"{name}.lora_{half}"].cpu()) for half in "AB")
        put_adapter(model, name, a, b, lora.scale())
    for name in tables(model) if rows else ():
        put_rows(model, name, rows, held[f"{name}.{LEARNED}"].cpu())
    save_adapter(folder, model, lora, base.name, base.revision)
    # The conversations it was trained on have the form that this tokenizer gives them.
    tokenizer.save(folder, config.context)
    notes = {
        "base": os.path.relpath(base.folder.absolute(), folder.absolute()),
        "digest": base.digest,
        "chatbench": provenance,
    }
    write_json(folder / NOTES, notes)


@torch.no_grad()
def save_adapter(
    folder: Path, model: GPT, config: LoraConfig, base_name: str, revision: str | None = None
) -> None:
    """Write the model's adapter as PEFT does, so that peft and `load_adapter` open it.

    `base_name`: where the base model is found, a path or a hub name.
    """
    folder.mkdir(exist_ok=True)
    layers = dict(adapted(model))
    assert layers, "the model has no adapter"
    names = list(adaptable(model))
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    hubs = hub_layers(model.config, names)
    chosen = {hub: ours for hub, ours in hubs.items() if any(name in layers for name in ours)}
    for hub, ours in chosen.items():
        pair, scale = _fuse([(layers.get(n), adaptable(model)[n].out_features) for n in ours])
        rank = pair.a.shape[0]
        alpha = scale * (math.sqrt(rank) if config.rslora else rank)
        if rank != config.rank:
            ranks[hub] = rank
        if not math.isclose(alpha, config.alpha, rel_tol=1e-12):
            alphas[hub] = alpha
        for which, matrix in zip("AB", pair, strict=True):
            tensors[f"base_model.model.{hub}.lora_{which}.weight"] = matrix.detach()
    rows, indices = _learned_rows(model)
    tensors |= rows
    renamed = RENAMED.get(model.config.model_type)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "revision": revision,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": _short_names(list(chosen), list(hubs)),
        "use_rslora": config.rslora,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "bias": "none",
        "fan_in_fan_out": renamed is not None and renamed[2],
        "init_lora_weights": True,
        "modules_to_save": None,
        "trainable_token_indices": indices,
        "inference_mode": True,
    }
    write_json(folder / ADAPTER_CONFIG, settings)
    write_weights(folder, tensors, name=ADAPTER_WEIGHTS)


def _learned_rows(model: GPT) -> tuple[dict[str, Tensor], list[int] | dict[str, list[int]] | None]:
    """The rows that learn by PEFT's names, and its trainable_token_indices: a list where the head
    is one with the embedding."""
    hubs = {ours: hub for hub, ours in table_names(model.config).items()}
    learned = {n: m for n, m in learning_rows(model) if n in tables(model)}
    tensors = {
        f"base_model.model.{hubs[name]}.token_adapter.trainable_tokens_delta":
        module.learned_rows.detach() for name, module in learned.items()
    }  # fmt: skip
    ids = {hubs[name].rpartition(".")[2]: module.ids.tolist() for name, module in learned.items()}
    if not ids:
        return {}, None
    return tensors, next(iter(ids.values())) if model.config.tie_embeddings else ids


def _fuse(parts: list[tuple[LoraLinear | None, int]]) -> tuple[Pair, float]:
    """One adapter of the hub's layer from those of its parts (adapter or None, rows).

    Parts of one A keep it. Others are stacked: A one above the other, B as blocks, which is the
    same product at the sum of the ranks.
    """
    present = [part for part, _ in parts if part is not None]
    first = present[0]
    scale = max((part.scale for part in present), key=abs)
    same = [torch.equal(part.lora_A, first.lora_A) for part in present]
    if all(same) and all(part.scale == scale for part in present):
        bs = [
            first.lora_B.new_zeros(rows, first.lora_A.shape[0]) if part is None else part.lora_B
            for part, rows in parts
        ]
        return Pair(first.lora_A.detach().clone(), torch.cat(bs)), scale
    a = torch.cat([part.lora_A for part in present])
    b = a.new_zeros(sum(rows for _, rows in parts), a.shape[0])
    row = column = 0
    for part, rows in parts:
        if part is not None:
            rank = part.lora_A.shape[0]
            b[row : row + rows, column : column + rank] = part.lora_B * (
                part.scale / scale if scale else 1.0
            )
            column += rank
        row += rows
    return Pair(a, b), scale


def _short_names(chosen: list[str], all_names: list[str]) -> list[str]:
    """Last parts of the names where these choose the same layers, else whole names."""
    short = {name.rpartition(".")[2] for name in chosen}
    meant = {name for name in all_names if name.rpartition(".")[2] in short}
    return sorted(short if meant == set(chosen) else chosen)
