"""--require: conditions that an evaluation has to meet, and which of them it misses."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from chatbench.errors import MissedError, UsageError, did_you_mean
from chatbench.text.measuring import Score

ALIASES = {
    "bpb": "bits_per_byte",
    "ppl": "perplexity",
    "em": "exact_match",
    "f1": "token_f1",
    "rouge-1": "rouge1",
    "rouge-2": "rouge2",
    "rouge-l": "rougeL",
    "rougel": "rougeL",
    "rouge-lsum": "rougeLsum",
    "rougelsum": "rougeLsum",
    "chrf2": "chrf",
    "acc": "accuracy",
    "acc_norm": "accuracy_per_byte",
    "facts": "exact_fact_match",
    "distinct-1": "distinct1",
    "distinct-2": "distinct2",
    "self-bleu": "self_bleu",
    "rep": "repetition",
    "macro-f1": "macro_f1",
}
KNOWN = (
    "perplexity", "bits_per_byte", "perplexity_change", "perplexity_full", "exact_fact_match",
    "exact_match", "contains", "token_f1", "bleu", "chrf", "rouge1", "rouge2", "rougeL",
    "rougeLsum", "distinct1", "distinct2", "self_bleu", "repetition", "length_ratio",
    "verbatim_overlap", "verbatim_overlap_references", "accuracy", "accuracy_per_byte",
    "pair_accuracy", "pair_accuracy_per_byte", "macro_f1", "ece", "span_f1",
)  # fmt: skip
_FORM = re.compile(
    r"\s*([\w.\-]+)\s*(>=|<=|==|>|<|=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*"
)
_OWN_NAME = re.compile(r"(control|span|class|tag)[_.].+")


class Requirement(NamedTuple):
    """A metric, how it is to stand to a bound, and the condition as it was given."""

    name: str
    relation: str
    bound: float
    given: str

    def met_by(self, value: float) -> bool:
        """What is not a number meets nothing."""
        if math.isnan(value):
            return False
        return {
            ">=": value >= self.bound,
            "<=": value <= self.bound,
            ">": value > self.bound,
            "<": value < self.bound,
            "==": value == self.bound,
        }[self.relation]


def parse_requirements(conditions: Sequence[str]) -> list[Requirement]:
    """`chrf>=30` and its like; several may stand in one, parted by commas.

    Raises UsageError for what is no condition, and for metrics that there are not.
    """
    return [_parse(part) for given in conditions for part in given.split(",") if part.strip()]


def _parse(given: str) -> Requirement:
    found = _FORM.fullmatch(given)
    if found is None:
        raise UsageError(
            f"--require {given!r} is no condition", hint="such as --require 'chrf>=30'"
        )
    name = ALIASES.get(found[1].lower(), found[1])
    if name not in KNOWN and not _OWN_NAME.fullmatch(name):
        hint = did_you_mean(name, [*KNOWN, *ALIASES])
        raise UsageError(f"--require {given!r}: there is no metric {name}", hint=hint)
    relation = "==" if found[2] == "=" else found[2]
    return Requirement(name, relation, float(found[3]), given.strip())


def missed(requirements: Sequence[Requirement], scores: Sequence[Score]) -> list[str]:
    """What the scores do not meet, in words."""
    values = {score.name: score.value for score in scores}
    found = []
    for wanted in requirements:
        if wanted.name not in values:
            found.append(f"{wanted.given}: {wanted.name} was not measured on this data")
        elif not wanted.met_by(values[wanted.name]):
            found.append(f"{wanted.given}: {wanted.name} is {values[wanted.name]:.4g}")
    return found


def require_met(misses: Sequence[str]) -> None:
    """Raise MissedError naming every miss."""
    if misses:
        raise MissedError(f"{len(misses)} not met: {'; '.join(misses)}")
