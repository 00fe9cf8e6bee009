"""What a run will reach, in bits per byte: a law fitted on small runs, anchored on the corpus.

bits = G(D) · scale · (V / 4096)^-v · (1 + D / D0)^-d · (1 + (D / (k·N))^0.3)

G(D) is what a trigram model reaches after D tokens of this very corpus: it says how hard the text
is, in its language and with its tokenizer. A network beside it stays a few percent behind on little
text and overtakes on much (the power d, from published figures of both kinds of model on corpora of
a hundred million words and more). The last factor is what a model of N parameters is too small for
(an entry of the embedding serves its own token alone and counts a quarter); k puts the best use of
an amount of computation near ten tokens a parameter, where the law of Hoffmann et al. 2022 has it
for a million parameters. `scale` and `v` were fitted by tests/bench/law.py.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from chatbench.corpus.shards import Corpus, TokenSplit
from chatbench.text.ngram import Scored, ngram_bits_per_byte, uniform_bits_per_byte

SCALE = 1.009
VOCABULARY_POWER = 0.020
REFERENCE_VOCABULARY = 4096
_OVERTAKING_TOKENS = 0.7e6
_OVERTAKING_POWER = 0.05
_TOO_SMALL_POWER = 0.3
_TOO_SMALL_RATIO = 1200.0
_TABLE_SHARE = 0.25
# A repeated token is worth less and less, all repetitions together 15 times the corpus
# (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models").
_REPETITIONS = 15.4
# Parameters that the fresh tokens of a corpus can fill at best, and what more of them are worth,
# in the same way.
_TOKENS_A_PARAMETER = 4.0
_EXCESS = 5.3
# Relative error of the law, two standard deviations of the runs left out of the fit; and by how
# much it grows with every factor e beyond the tokens of those runs, and with repetitions.
ERROR = 0.13
_ERROR_BEYOND = 0.02
_FITTED_TOKENS = 0.7e6

_ORDER = 3
# A corpus of a few thousand tokens shows no curve that would go on.
_STEEPEST = 0.15
_SAMPLE_TOKENS = 1 << 19
_JUDGED_TOKENS = 1 << 16


class Difficulty(NamedTuple):
    """Of a corpus: bits per byte of held-out text under a trigram model of `tokens` tokens, by what
    power that falls with more of them, and under evenly drawn tokens; its vocabulary and size."""

    trigram: float
    tokens: int
    power: float
    uniform: float
    vocabulary: int
    unique: int


class Forecast(NamedTuple):
    """Bits per byte of held-out text: expected, and between which values it should lie."""

    bits: float
    low: float
    high: float


def difficulty(corpus: Corpus) -> Difficulty | None:
    """None where nothing is held out, or there is nothing to learn from."""
    train, val = corpus.split("train"), corpus.split("val")
    sizes = np.array([len(spelt) for spelt in corpus.tokenizer.token_bytes])
    held = _spread(val)
    most = min(train.tokens, _SAMPLE_TOKENS)
    if most < 8:
        return None

    def bits(tokens: int) -> float:
        documents = (train.ids(number) for number in range(len(train)))
        return ngram_bits_per_byte(documents, held, sizes, _ORDER, tokens)

    whole, quarter = bits(most), bits(most // 4)
    if not whole > 0:
        return None
    power = min(max(0.0, math.log(quarter / whole) / math.log(4)), _STEEPEST)
    return Difficulty(
        whole, most, power, uniform_bits_per_byte(held, sizes), corpus.tokenizer.vocab_size,
        train.tokens,
    )  # fmt: skip


def _spread(split: TokenSplit) -> list[Scored]:
    """The beginning of every held-out document, the same share of each."""
    share = max(1, -(-split.tokens // _JUDGED_TOKENS))
    pieces = (split.ids(number) for number in range(len(split)))
    begun = [ids[: max(1, len(ids) // share)] for ids in pieces]
    return [Scored(ids, np.ones(len(ids))) for ids in begun]


def worth(tokens: float, unique: float) -> float:
    """Fresh tokens that are worth `tokens` read from a corpus of `unique`."""
    if tokens <= unique:
        return tokens
    again = (tokens - unique) / unique
    return unique * (1 + _REPETITIONS * -math.expm1(-again / _REPETITIONS))


def filled(parameters: float, unique: float) -> float:
    """Parameters that a corpus of `unique` tokens can fill, of those a model has."""
    best = unique / _TOKENS_A_PARAMETER
    if parameters <= best:
        return parameters
    return best * (1 + _EXCESS * -math.expm1(-(parameters / best - 1) / _EXCESS))


def forecast(hard: Difficulty, body: float, tables: float, tokens: float) -> Forecast:
    """After `tokens` tokens with a model of `body` parameters in its blocks and `tables` in its
    embeddings."""
    tokens = max(tokens, 1.0)
    fresh = worth(tokens, hard.unique)
    useful = filled(body + _TABLE_SHARE * tables, hard.unique)
    trigram = hard.trigram * (fresh / hard.tokens) ** -hard.power
    law = (
        SCALE
        * (hard.vocabulary / REFERENCE_VOCABULARY) ** -VOCABULARY_POWER
        * (1 + fresh / _OVERTAKING_TOKENS) ** -_OVERTAKING_POWER
        * (1 + (fresh / (_TOO_SMALL_RATIO * useful)) ** _TOO_SMALL_POWER)
    )
    bits = min(hard.uniform, trigram * law)
    beyond = max(0.0, math.log(fresh / _FITTED_TOKENS)) + max(0.0, math.log(tokens / hard.unique))
    error = min(0.5, ERROR + _ERROR_BEYOND * beyond)
    return Forecast(bits, bits * (1 - error), bits * (1 + error))
