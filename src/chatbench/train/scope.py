"""Which settings of finetune say something in which run: what is given and would be passed over is
refused, before any work."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from chatbench.config import Leaf, environment_name, leaves
from chatbench.errors import UsageError
from chatbench.settings import FinetuneSettings

_REPLIES = ("sft", "dpo", "grpo")
# Settings, or groups of them, and the objectives that look at them; the others are for all.
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "map": ("classify",),
    "template": _REPLIES,
    "train_on": ("sft",),
    "tag_column": _REPLIES,
    "tag_dropout": ("sft",),
    "val_fraction": _REPLIES,
    "test_fraction": _REPLIES,
    "probe": _REPLIES,
    "train.prompts": _REPLIES,
    "preference": ("dpo",),
    "grpo": ("grpo",),
    "head": ("classify",),
    "lora": _REPLIES,
    "quantize": _REPLIES,
}
# What says something only together with another setting.
_OF_ADAPTERS = ("lora", "quantize")
# What is not the default and yet what happens anyhow.
_ANYHOW: dict[str, Any] = {"tag_dropout": 0.0}


def check_scope(settings: FinetuneSettings) -> None:
    """Raises UsageError for settings that this run would not look at; as long as they are what they
    are by default, nobody can have meant anything by them."""
    given = [leaf for leaf in leaves(FinetuneSettings) if _is_given(leaf, settings)]
    for leaf in given:
        objectives = _of(leaf, OBJECTIVES)
        if objectives is not None and settings.objective not in objectives:
            same = [other for other in given if _of(other, OBJECTIVES) == objectives]
            raise UsageError(
                f"{_listed(same)} of --objective {_either(objectives)}, and this is "
                f"{settings.objective}",
                hint=f"leave {_them(same)} out, or choose --objective {objectives[0]}",
            )
    beside = [leaf for leaf in given if _of(leaf, dict.fromkeys(_OF_ADAPTERS, True))]
    if beside and settings.lora.rank is None:
        raise UsageError(
            f"{_listed(beside)} of adapters, and none is trained", hint="add --lora-rank 8"
        )
    preference = settings.preference
    if preference.label_smoothing and preference.loss_type != "sigmoid":
        raise UsageError(
            f"--label-smoothing does not go with --loss-type {preference.loss_type}",
            hint="leave one of them out",
        )


def _is_given(leaf: Leaf, settings: FinetuneSettings) -> bool:
    value = leaf.of(settings)
    said = leaf.default is not msgspec.NODEFAULT and value != leaf.default
    return said and not (leaf.key in _ANYHOW and value == _ANYHOW[leaf.key])


def _of(leaf: Leaf, table: dict[str, Any]) -> Any:
    """What a table says of a setting or of its group."""
    return table.get(leaf.key, table.get(leaf.key.rpartition(".")[0]))


def _either(names: tuple[str, ...]) -> str:
    """`sft, dpo or grpo`."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _spelled(leaf: Leaf) -> str:
    """How it was given: other verbs may have been meant by a variable that stands for all."""
    variable = environment_name(leaf.key)
    return variable if variable in os.environ else leaf.spelled


def _listed(given: list[Leaf]) -> str:
    names = ", ".join(map(_spelled, given))
    return f"{names} {'is' if len(given) == 1 else 'are'}"


def _them(given: list[Leaf]) -> str:
    return "it" if len(given) == 1 else "them"
