"""Tells which of several labels a text bears, by its character n-grams, words and word pairs.

One logistic regression for each label against the others, on hashed features (see traits.py): small
enough to be trained beside an evaluation, deterministic, and the same for any script.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from chatbench.text.logistic import Floats, Indices, Sparse, fit
from chatbench.text.traits import presence

_BITS = 18
_PENALTY = 0.3
# More teach it little more, and would take minutes.
MOST_TEXTS = 4000


class Classifier:
    """Weights (labels, buckets + 1), the last column the bias; `scales` (buckets,)."""

    def __init__(self, labels: tuple[str, ...], buckets: Indices, scales: Floats, weights: Floats):
        self.labels = labels
        self._buckets = buckets
        self._scales = scales
        self._weights = weights

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """Of each label for each text, (texts, labels); rows add up to 1."""
        if not texts:
            return np.zeros((0, len(self.labels)))
        matrix = _matrix(*presence(texts, _BITS), self._buckets, self._scales)
        margins = np.stack([matrix.times(row[:-1]) + row[-1] for row in self._weights], axis=1)
        # As logarithms: the label that is least unlikely still gets its share.
        logs = -np.logaddexp(0, -margins)
        shares = np.exp(logs - logs.max(axis=1, keepdims=True))
        found: Floats = shares / shares.sum(axis=1, keepdims=True)
        return found

    def told(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each."""
        return [self.labels[place] for place in self.probabilities(texts).argmax(axis=1)]


def learn(texts: Sequence[str], labels: Sequence[str]) -> Classifier:
    """From texts with their labels, at least one; of more than MOST_TEXTS an even choice.

    All labels weigh the same, however rare. With one label there is nothing to tell.
    """
    assert len(texts) == len(labels) > 0
    step = -(-len(texts) // MOST_TEXTS)
    texts, labels = texts[::step], labels[::step]
    names = tuple(sorted(Counter(labels)))
    starts, columns = presence(texts, _BITS)
    frequency = np.bincount(columns, minlength=1 << _BITS)
    buckets = np.flatnonzero(frequency)
    scales = 1 + np.log((1 + len(texts)) / (1 + frequency[buckets]))
    matrix = _matrix(starts, columns, buckets, scales)
    weights = np.zeros((len(names), len(buckets) + 1))
    if len(names) > 1:
        given = np.array(labels)
        for number, name in enumerate(names):
            weights[number] = fit(matrix, given == name, _PENALTY)
    return Classifier(names, buckets, scales, weights)


def _matrix(
    starts: Indices, columns: npt.NDArray[np.int32], buckets: Indices, scales: Floats
) -> Sparse:
    """Texts by the buckets that are known."""
    places = np.searchsorted(buckets, columns)
    known = places < len(buckets)
    known[known] = buckets[places[known]] == columns[known]
    before = np.concatenate([[0], np.cumsum(known)])
    norms = 1 / np.sqrt(np.maximum(np.diff(starts), 1))
    return Sparse(before[starts], places[known].astype(np.int32), scales, norms)
