"""Metrics on strings: replies and references in, tables of sums out, each with n and signature.

BLEU and chrF are sacrebleu's and ROUGE is rouge-score's to the last digit, computed from sums of
each item; ROUGE also knows scripts written without spaces, in which every character is a word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chatbench.text.facts import contains_fact, exact_fact_match, fact_hit, known_facts
from chatbench.text.measuring import Judged, Measured, Score
from chatbench.text.overlap import bleu, chrf, contains, exact_match, rouge, token_f1
from chatbench.text.spans import span_f1
from chatbench.text.variety import distinct, length_ratio, repetition, self_bleu
from chatbench.text.words import has_unspaced, words

METRICS: dict[str, Callable[[Sequence[Judged]], list[Measured]]] = {
    "exact_fact_match": exact_fact_match,
    "exact_match": exact_match,
    "span_f1": span_f1,
    "contains": contains,
    "token_f1": token_f1,
    "bleu": bleu,
    "chrf": chrf,
    "rouge": rouge,
    "distinct": distinct,
    "self_bleu": self_bleu,
    "repetition": repetition,
    "length_ratio": length_ratio,
}

# Those whose items depend on each other: a part of the pairs has to be measured by itself.
OF_THE_WHOLE = ("bleu", "distinct", "self_bleu")


def measure_all(pairs: Sequence[Judged]) -> list[Measured]:
    """Every metric over these replies; facts only where some are given."""
    if not pairs:
        return []
    found = [measured for metric in METRICS.values() for measured in metric(pairs)]
    return [measured for measured in found if measured.n]


def score_all(pairs: Sequence[Judged]) -> list[Score]:
    """The values of `measure_all`."""
    return [measured.score() for measured in measure_all(pairs)]


__all__ = [
    "METRICS",
    "OF_THE_WHOLE",
    "Judged",
    "Measured",
    "Score",
    "bleu",
    "chrf",
    "contains",
    "contains_fact",
    "distinct",
    "exact_fact_match",
    "exact_match",
    "fact_hit",
    "has_unspaced",
    "known_facts",
    "length_ratio",
    "measure_all",
    "repetition",
    "rouge",
    "score_all",
    "self_bleu",
    "span_f1",
    "token_f1",
    "words",
]
