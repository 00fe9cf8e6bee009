"""A model that names classes instead of tokens, as config.json says it: transformers'
`<Family>ForSequenceClassification`, with a matrix `score` on the last token's hidden state, or,
where `classifier_pooling` says mean (a word of ModernBERT's), one on the mean over all tokens.
With `use_bidirectional_attention` (Gemma's) each token sees the whole text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

from chatbench.errors import IntegrityError, UserError
from chatbench.model.config import Pooling
from chatbench.model.finding import CONFIG, LARGEST_CONFIG, find_model
from chatbench.model.reading import read_object

SUFFIX = "ForSequenceClassification"
_PLAIN_SUFFIXES = ("ForCausalLM", "LMHeadModel")
_POOLING, _BOTH_WAYS = "classifier_pooling", "use_bidirectional_attention"
_MOST = 1 << 20


def labels_of(path: str | Path) -> tuple[str, ...]:
    """The classes of the classifier that a model or run folder holds; () for everything else."""
    try:
        return read_labels(read_object(find_model(Path(path)) / CONFIG, LARGEST_CONFIG))
    except (OSError, UserError):
        return ()  # whoever opens it will say what is wrong


def read_labels(raw: dict[str, Any]) -> tuple[str, ...]:
    """The classes in the order of the head's rows; () for a model of text.

    Numbers that stand beside a language model (every config may have them) mean nothing. Raises
    IntegrityError for classes that are not numbered from 0 on, or that are no classes.
    """
    named = raw.get("architectures")
    if not isinstance(named, list) or not any(str(name).endswith(SUFFIX) for name in named):
        return ()
    kind = raw.get("problem_type")
    if kind not in (None, "single_label_classification"):
        raise IntegrityError(
            f"config.json asks for {str(kind)[:80]}, which chatbench does not compute",
            hint="one label for each text is what is known here",
        )
    # What transformers assumes where nothing is said.
    table = raw.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})
    if not isinstance(table, dict) or not 2 <= len(table) <= _MOST:
        raise IntegrityError("config.json has no id2label of two classes or more")
    found = [table.get(str(number)) for number in range(len(table))]
    labels = [label for label in found if isinstance(label, str)]
    if len(labels) < len(found) or len(set(labels)) < len(labels):
        raise IntegrityError(
            "id2label of config.json does not name its classes 0, 1, 2 …, each once"
        )
    return tuple(labels)


def read_pooling(raw: dict[str, Any]) -> Pooling:
    """What the head of classes sees; where nothing is said, as for a model of text, the last token.

    Raises IntegrityError for words that mean something else.
    """
    said = raw.get(_POOLING, "last") if read_labels(raw) else "last"
    for known in get_args(Pooling):
        if said == known:
            return cast(Pooling, known)
    raise IntegrityError(
        f"config.json has {_POOLING} {str(said)[:80]}, which chatbench does not compute",
        hint=f"known: {', '.join(get_args(Pooling))}",
    )


def read_head(raw: dict[str, Any]) -> dict[str, Any]:
    """The fields of a ModelConfig that say what is told apart, and by what. Raises IntegrityError
    for what cannot be meant."""
    return {
        "labels": read_labels(raw), "pooling": read_pooling(raw), "causal": read_causal(raw)
    }  # fmt: skip


def of_trunk(raw: dict[str, Any]) -> dict[str, Any]:
    """What config.json says of everything but a head of classes."""
    if not read_labels(raw):
        return raw
    return {key: value for key, value in raw.items() if key not in (_POOLING, _BOTH_WAYS)}


def read_causal(raw: dict[str, Any]) -> bool:
    """Whether a token of a classifier sees only what comes before it; all other models do so.

    Raises IntegrityError.
    """
    said = raw.get(_BOTH_WAYS, False) if read_labels(raw) else False
    if not isinstance(said, bool):
        raise IntegrityError(f"config.json has {_BOTH_WAYS} {str(said)[:80]}, not true or false")
    return not said


def write_labels(
    raw: dict[str, Any],
    labels: tuple[str, ...],
    pooling: Pooling = "last",
    *,
    causal: bool = True,
) -> dict[str, Any]:
    """config.json of the same trunk with a head of classes; itself where there are none."""
    if not labels:
        return raw
    (plain,) = raw["architectures"]
    family = plain
    for suffix in _PLAIN_SUFFIXES:
        family = family.removesuffix(suffix)
    return {
        **raw,
        "architectures": [family + SUFFIX],
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": "single_label_classification",
        **({} if pooling == "last" else {_POOLING: pooling}),
        **({} if causal else {_BOTH_WAYS: True}),
    }
