"""What a config.json asks for beyond the keys that a family reads: harmless, or refused by name."""

from __future__ import annotations

import re
from typing import Any

from chatbench.errors import IntegrityError

# Known to leave the computation of logits alone, though their names look as if they might not.
_HARMLESS = frozenset({
    "chunk_size_feed_forward", "max_window_layers", "output_attentions",
})  # fmt: skip
# Dropout works in training only, and ours has none; kernels compute the same; ids of tokens are for
# those who make prompts.
_HARMLESS_KINDS = re.compile(r"drop|flash|implementation|_token_ids?$|_token_index$", re.IGNORECASE)
# Words of keys by which families are known to change what is computed.
_SUSPECT = re.compile(
    r"""expert|moe|rout(er|ing|ed)|sliding|window|chunk|softcap|capping|vision|visual|image|audio
    |video|cross|encoder|alibi|multiplier|scal(e|ing)|mup|rope|rotary|position|partial|bias|norm
    |activation|act_fn|_act$|layer_type|block_type|pattern|parallel_(attn|residual)|residual|mamba|ssm|conv|recurr
    |quant|lora|adapter|mask|clip|gat(e|ing)|embed|logit|mlp|ffn|head|mtp|nextn|per_layer
    |interleav|attention|attn|hybrid|memory|mixture|dense|sink|sparse|skip|shared""",
    re.IGNORECASE | re.VERBOSE,
)
_SHOWN_CHARACTERS = 80


def refuse(condition: object, feature: str) -> None:
    """Raise IntegrityError, naming the feature, when the condition holds."""
    if condition:
        raise IntegrityError(f"config.json asks for {feature}, which chatbench does not compute")


def refuse_unknown(raw: dict[str, Any], read: frozenset[str]) -> None:
    """Refuse every key that is set, not among the `read`, and may change what is computed.

    Keys that are false, empty, zero or null ask for nothing. Raises IntegrityError.
    """
    for key, value in raw.items():
        if not value or key in read or key in _HARMLESS or _HARMLESS_KINDS.search(key):
            continue
        refuse(_SUSPECT.search(key), _shown(key, value))


def _shown(key: str, value: object) -> str:
    shown = f"{key} {value}" if isinstance(value, str | int | float) else key
    return shown[:_SHOWN_CHARACTERS]


def refuse_sliding_layers(raw: dict[str, Any]) -> None:
    """Layers that see a window only, as Qwen's configs spell it. Raises IntegrityError."""
    refuse(raw.get("use_sliding_window"), "use_sliding_window")
    others = {str(kind) for kind in raw.get("layer_types") or ()} - {"full_attention"}
    refuse(others, f"layer_types {', '.join(sorted(others))}")
