"""Labelled examples → a trained screen and what it does on examples kept apart."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from chatbench.errors import DataError
from chatbench.text.logistic import Floats, Indices, Sparse, fit
from chatbench.text.screen import Layout, Screen
from chatbench.text.traits import as_judged, presence

# False: good; True: bad; a name: bad, of this category.
Label: TypeAlias = bool | str
FEWEST = 10
_BITS = 20
_TEST_PLACE, _PLACES = 4, 5  # one of five examples is for the test, the others are folds
_ONE_FOLD_FROM = 20_000
_PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1)
_SEEN_TWICE = 2
_WINDOW_RANGE = (64, 800)
_TAIL, _TAIL_TEXTS = 0.02, 20
_EVEN, _NEARLY_NONE = 0.5, 0.01
_SHOWN_WORDS = 12
_CANDIDATES = 20_000
_WORD = re.compile(r"[^\W_㐀-䶿一-鿿]{2,}|[㐀-䶿一-鿿]{2,}")


class Evaluation(msgspec.Struct, frozen=True):
    """What a screen does on examples that nothing was learned from; rates from 0 to 1.

    `recall`: share of the bad that is rejected. `false_positive_rate`: share of the good that is.
    `auc`: how often a bad text is judged worse than a good one. `enough_good` says whether there
    were enough good examples for the threshold to promise the wanted rate. `bad_words` and
    `good_words` are the words that lean most to each side.
    """

    examples: int
    bad: int
    left_out: dict[str, int]
    held_out: int
    held_out_bad: int
    precision: float
    recall: float
    false_positive_rate: float
    f1: float
    auc: float
    threshold: float
    max_false_positives: float
    enough_good: bool
    penalty: float
    bad_words: list[str]
    good_words: list[str]


class _Examples(NamedTuple):
    """Distinct examples in the order of their digests. `place`: 0 to 3 the fold, 4 the test."""

    texts: list[str]
    labels: list[Label]
    place: Indices
    left_out: dict[str, int]

    def bad(self) -> npt.NDArray[np.bool_]:
        return np.array([label is not False for label in self.labels], bool)


def _examples(rows: Sequence[tuple[str, Label]], seed: int) -> _Examples:
    """Equal texts, in the form in which they are judged, become one; those with different labels
    are left out. Which fold an example belongs to depends on its text, label and `seed`, and on
    how many others there are, never on the order of the rows."""
    labels: dict[str, Label | None] = {}
    left_out = {"empty": 0, "repeated": 0, "labelled both ways": 0}
    for text, label in rows:
        key = as_judged(text)
        if not key:
            left_out["empty"] += 1
        elif key not in labels:
            labels[key] = label
        else:
            left_out["repeated"] += 1
            labels[key] = label if labels[key] == label else None
    kept = [(text, label) for text, label in labels.items() if label is not None]
    left_out["labelled both ways"] = len(labels) - len(kept)
    salt = seed.to_bytes(8, "little")
    kept.sort(
        key=lambda row: hashlib.blake2b(row[0].encode("utf-8", "surrogatepass"), salt=salt).digest()
    )
    ranks: Counter[str] = Counter()
    place = []
    for _, label in kept:
        place.append(ranks[str(label)] % _PLACES)
        ranks[str(label)] += 1
    texts = [text for text, _ in kept]
    return _Examples(
        texts,
        [label for _, label in kept],
        np.array(place, np.int64),
        {reason: count for reason, count in left_out.items() if count},
    )


def train_on(
    rows: Sequence[tuple[str, Label]], *, max_false_positives: float = 0.01, seed: int = 0
) -> tuple[Screen, Evaluation]:
    """A screen from labelled texts, and how well it does on a fifth of them, kept apart.

    The strength of the penalty and the threshold are found by cross-validation on the other four
    fifths: the threshold lets through so many good texts that a new one is rejected with a
    probability of at most `max_false_positives` (split conformal prediction, Papadopoulos et al.
    2002), but is not lower than it takes to catch nearly all of the bad. Both classes weigh the
    same in training, whatever their sizes.
    The same rows in any order give the same bytes. Raises DataError for fewer than 10 distinct
    examples of a class.
    """
    examples = _examples(rows, seed)
    bad = examples.bad()
    if min(bad.sum(), (~bad).sum()) < FEWEST:
        raise DataError(
            f"{int(bad.sum())} bad and {int((~bad).sum())} good examples are too few",
            hint=f"a screen needs at least {FEWEST} different ones of each",
        )
    learner = _Learner(examples)
    learner.choose_penalty()
    layout = learner.calibrated(max_false_positives)
    made = learner.finished(layout.layout)
    evaluation = _evaluate(made, examples, layout, learner)
    made.about = {"seed": seed, "evaluation": msgspec.to_builtins(evaluation)}
    return made, evaluation


class _Calibration(NamedTuple):
    layout: Layout
    max_false_positives: float
    enough_good: bool


class _Learner:
    """The examples as a matrix, the folds, and what was found on them."""

    def __init__(self, examples: _Examples) -> None:
        self._examples = examples
        self._bad = examples.bad()
        self._training = np.flatnonzero(examples.place != _TEST_PLACE)
        starts, buckets = presence(examples.texts, _BITS)
        trained = np.repeat(examples.place != _TEST_PLACE, np.diff(starts))
        frequency = np.bincount(buckets[trained], minlength=1 << _BITS)
        # A bucket seen in one example alone says nothing about another one.
        self._buckets = np.flatnonzero(frequency >= _SEEN_TWICE)
        known = frequency[buckets] >= _SEEN_TWICE
        before = np.concatenate([[0], np.cumsum(known)])
        columns = np.searchsorted(self._buckets, buckets[known]).astype(np.int32)
        count = len(self._training)
        scales = 1 + np.log((1 + count) / (1 + frequency[self._buckets]))
        norms = 1 / np.sqrt(np.maximum(np.diff(starts), 1))
        self._matrix = Sparse(before[starts], columns, scales, norms)
        self.penalty = _PENALTIES[0]
        self._fold_weights: list[Floats] = []

    def _folds(self) -> range:
        return range(1 if len(self._training) >= _ONE_FOLD_FROM else _TEST_PLACE)

    def _apart(self) -> Indices:
        """The training examples that some fold model has not seen, fold by fold."""
        return np.concatenate([np.flatnonzero(self._examples.place == f) for f in self._folds()])

    def choose_penalty(self) -> None:
        """The penalty with the least balanced log-loss on examples that were not learned from."""
        apart = self._apart()
        losses = np.zeros(len(_PENALTIES))
        paths = []
        targets = self._bad[apart]
        for fold in self._folds():
            path = self._path(self._training[self._examples.place[self._training] != fold])
            paths.append(path)
            held = np.flatnonzero(self._examples.place == fold)
            matrix, bad = self._matrix.rows(held), self._bad[held]
            for number, weights in enumerate(path):
                logits = matrix.times(weights[:-1]) + weights[-1]
                loss = np.logaddexp(0, np.where(bad, -logits, logits))
                losses[number] += loss[bad].sum() / targets.sum()
                losses[number] += loss[~bad].sum() / (~targets).sum()
        best = int(np.argmin(losses))
        self.penalty = _PENALTIES[best]
        self._fold_weights = [path[best] for path in paths]

    def _path(self, rows: Indices) -> list[Floats]:
        """The weights for each penalty; each starts from those before."""
        matrix, bad = self._matrix.rows(rows), self._bad[rows]
        path: list[Floats] = []
        for penalty in _PENALTIES:
            path.append(fit(matrix, bad, penalty, path[-1] if path else None))
        return path

    def calibrated(self, max_false_positives: float) -> _Calibration:
        """Window, spread and threshold, from what the fold models say of the texts they did not
        learn from."""
        window = _window([self._examples.texts[row] for row in self._training])
        plain = Layout(_BITS, window, 0.0, _EVEN, (0.0,))
        good, bad = self._held(False), self._held(True)
        spread = _spread(_by_fold(Screen.logits, self._fold_screens(plain), good))
        layout = msgspec.structs.replace(plain, spread=spread)
        models = self._fold_screens(layout)
        judged = np.sort(_by_fold(Screen.judge, models, good))[::-1]
        allowed = math.floor(max_false_positives * (len(judged) + 1)) - 1
        # Where the classes lie far apart, the wanted rate alone would reject good texts in vain.
        enough = min(_EVEN, float(np.quantile(_by_fold(Screen.judge, models, bad), _NEARLY_NONE)))
        threshold = max(float(judged[max(allowed, 0)]), enough)
        layout = msgspec.structs.replace(layout, threshold=threshold)
        return _Calibration(layout, max_false_positives, allowed >= 0)

    def _held(self, bad: bool) -> list[list[str]]:
        """The good or the bad texts of each fold."""
        of_class = self._bad == bad
        rows = [np.flatnonzero((self._examples.place == f) & of_class) for f in self._folds()]
        return [[self._examples.texts[row] for row in own] for own in rows]

    def _fold_screens(self, layout: Layout) -> list[Screen]:
        """For each fold the screen that has not seen it."""
        return [self._screen(layout, [weights]) for weights in self._fold_weights]

    def finished(self, layout: Layout) -> Screen:
        """The screen, learned from all folds; one more row for each category, against the rest."""
        labels = [self._examples.labels[row] for row in self._training]
        matrix = self._matrix.rows(self._training)
        rows = [fit(matrix, self._bad[self._training], self.penalty)]
        names = sorted({label for label in labels if isinstance(label, str)})
        categories = tuple(names) if len(names) > 1 else ()
        rows += [
            fit(matrix, np.array([label == name for label in labels]), self.penalty)
            for name in categories
        ]
        return self._screen(msgspec.structs.replace(layout, categories=categories), rows)

    def _screen(self, layout: Layout, rows: Sequence[Floats]) -> Screen:
        weights = np.zeros((len(rows), 1 << _BITS), np.float16)
        for number, row in enumerate(rows):
            weights[number, self._buckets] = row[:-1] * self._matrix.scales
        biases = tuple(float(row[-1]) for row in rows)
        return Screen(weights, msgspec.structs.replace(layout, biases=biases))


def _by_fold(
    judge: Callable[[Screen, Sequence[str]], Floats],
    models: Sequence[Screen],
    texts: Sequence[Sequence[str]],
) -> Floats:
    pairs = zip(models, texts, strict=True)
    return np.concatenate([judge(model, own) for model, own in pairs])


def _window(texts: Sequence[str]) -> int:
    """Windows are like the examples, about as long as the longer of them: even, 64 to 800 bytes."""
    length = int(np.quantile([len(text.encode("utf-8", "replace")) for text in texts], 0.75))
    lowest, highest = _WINDOW_RANGE
    return min(max(length, lowest), highest) // 2 * 2


def _spread(logits: Floats) -> float:
    """Mean excess of the highest 2 % of good texts (at least 20, at most half) over the others.
    Where the tail falls exponentially, the largest of n lies about this × ln(n) above one."""
    share = min(max(_TAIL, _TAIL_TEXTS / len(logits)), 0.5)
    border = float(np.quantile(logits, 1 - share))
    excess = logits[logits > border] - border
    return float(excess.mean()) if len(excess) else 0.0


def _evaluate(
    made: Screen, examples: _Examples, calibration: _Calibration, learner: _Learner
) -> Evaluation:
    held = np.flatnonzero(examples.place == _TEST_PLACE)
    bad = examples.bad()
    judged = made.judge([examples.texts[row] for row in held])
    rejected = judged > made.threshold
    targets = bad[held]
    caught = int((rejected & targets).sum())
    wrong = int((rejected & ~targets).sum())
    training = [examples.texts[row] for row in np.flatnonzero(examples.place != _TEST_PLACE)]
    words = leaning_words(made, training)
    return Evaluation(
        examples=len(bad), bad=int(bad.sum()), left_out=examples.left_out, held_out=len(held),
        held_out_bad=int(targets.sum()),
        precision=caught / max(caught + wrong, 1),
        recall=caught / max(int(targets.sum()), 1),
        false_positive_rate=wrong / max(int((~targets).sum()), 1),
        f1=2 * caught / max(caught + wrong + int(targets.sum()), 1),
        auc=area_under_roc(judged, targets),
        threshold=made.threshold, max_false_positives=calibration.max_false_positives,
        enough_good=calibration.enough_good, penalty=learner.penalty,
        bad_words=words[0], good_words=words[1],
    )  # fmt: skip


def area_under_roc(scores: Floats, targets: npt.NDArray[np.bool_]) -> float:
    """Share of pairs of one target and one other in which the target scores higher, ties half
    (Mann and Whitney 1947). NaN without such pairs."""
    chosen, others = np.sort(scores[targets]), np.sort(scores[~targets])
    if not len(chosen) or not len(others):
        return math.nan
    below = np.searchsorted(others, chosen, "left") + np.searchsorted(others, chosen, "right")
    return float(below.sum()) / (2 * len(chosen) * len(others))


def leaning_words(made: Screen, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of `texts` (Chinese: 2 to 4 neighbouring characters) that speak most for bad, and
    those for good: what a word is judged when it stands alone × the logarithm of the number of
    texts with it. Of words that contain each other only the first is named."""
    seen: Counter[str] = Counter()
    for text in texts:
        found = chain.from_iterable(_parts(run) for run in _WORD.findall(as_judged(text)))
        seen.update(list(dict.fromkeys(found)))
    frequent = sorted((-count, word) for word, count in seen.items() if count > _SEEN_TWICE)
    words = [word for _, word in frequent[:_CANDIDATES]]
    counts = np.array([seen[word] for word in words])
    leans = (made.logits(words) - made.layout.biases[0]) * np.log(counts)
    order = np.argsort(leans, kind="stable").tolist()
    bad = _different(words[n] for n in reversed(order) if leans[n] > 0)
    return bad, _different(words[n] for n in order if leans[n] < 0)


def _parts(run: str) -> list[str]:
    if not "㐀" <= run[0] <= "鿿":
        return [run]
    return [run[i : i + n] for n in (2, 3, 4) for i in range(len(run) - n + 1)]


def _different(words: Iterable[str]) -> list[str]:
    chosen: list[str] = []
    for word in words:
        if not any(word in other or other in word for other in chosen):
            chosen.append(word)
        if len(chosen) == _SHOWN_WORDS:
            break
    return chosen
