"""Rotary positions in config.json, in the spellings of transformers 4 and 5.

4: `rope_theta` beside `rope_scaling {rope_type or type, factor, ...}`; 5: everything in
`rope_parameters`. `rope_scaling` wins where both are, as it does there.
"""

from __future__ import annotations

from typing import Any

import msgspec

from chatbench.errors import IntegrityError
from chatbench.model.architectures.refusals import refuse
from chatbench.model.config import ModelConfig, RopeScaling

ROPE_KEYS = frozenset({
    "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
    "original_max_position_embeddings", "rotary_emb_base",
})  # fmt: skip
_KINDS = ("linear", "dynamic", "yarn", "llama3")
_SPELLINGS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
_DETAILS = {
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
}
_KNOWN = _SPELLINGS.union(
    {"factor", "original_max_position_embeddings", "truncate", "finetuned"}, *_DETAILS.values()
)


def read_rope(raw: dict[str, Any]) -> dict[str, Any]:
    """The fields `rope_theta` and `rope` of a ModelConfig.

    Raises IntegrityError for kinds that are not computed, msgspec.ValidationError for wrong types.
    """
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise IntegrityError(f"config.json does not describe rotary positions: {str(rope)[:40]!r}")
    nested = [name for name, value in rope.items() if isinstance(value, dict)]
    refuse(nested, f"rope_parameters that differ between layers ({', '.join(nested)})")
    for part in (rope.get("partial_rotary_factor"), raw.get("partial_rotary_factor")):
        refuse(part not in (None, 1), f"partial_rotary_factor {part}")
    unknown = [name for name, value in rope.items() if value and name not in _KNOWN]
    refuse(unknown, f"{', '.join(unknown)} in its rotary positions")
    theta = rope.get("rope_theta") or raw.get("rope_theta") or 10_000.0
    # The name that some carry over from Megatron beside the one that counts.
    base = raw.get("rotary_emb_base") or theta
    refuse(base != theta, f"rotary_emb_base {base} beside rope_theta {theta}")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return {"rope_theta": theta, "rope": None}
    refuse(kind not in _KINDS, f"rope_type {kind}")
    return {"rope_theta": theta, "rope": _read_scaling(kind, rope, raw)}


def _read_scaling(kind: str, rope: dict[str, Any], raw: dict[str, Any]) -> RopeScaling:
    fields: dict[str, Any] = {"kind": kind, "factor": rope.get("factor")}
    fields |= {name: rope[name] for name in _DETAILS.get(kind, ()) if name in rope}
    if kind in _DETAILS:
        original = (
            raw.get("original_max_position_embeddings")
            or rope.get("original_max_position_embeddings")
            or raw.get("max_position_embeddings")
        )
        fields["original_context"] = msgspec.convert(original, int)
    if kind == "yarn":
        fields["truncate"] = bool(rope.get("truncate", True))
        if fields["factor"] is None:
            context = msgspec.convert(raw.get("max_position_embeddings"), int)
            fields["factor"] = context / max(1, fields["original_context"])
    if fields["factor"] is None:
        raise IntegrityError(f"config.json does not say the factor of its rope_type {kind}")
    # As a tuple, or the types would not be looked at.
    return msgspec.convert(tuple(RopeScaling(**fields)), RopeScaling)


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """The keys of config.json, so that transformers 4 and 5 each find their own."""
    theta = {"rope_theta": config.rope_theta}
    rope = config.rope
    if rope is None:
        return {**theta, "rope_parameters": {"rope_type": "default", **theta}}
    scaling: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind in _DETAILS:
        scaling["original_max_position_embeddings"] = rope.original_context
    found = {name: getattr(rope, name) for name in _DETAILS.get(rope.kind, ())}
    scaling |= {name: value for name, value in found.items() if value is not None}
    if rope.kind == "yarn" and not rope.truncate:
        scaling["truncate"] = False
    return {**theta, "rope_scaling": scaling, "rope_parameters": {**scaling, **theta}}
