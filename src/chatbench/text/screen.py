"""A small trained classifier that keeps bad content out of data and out of replies.

A text is judged by which character 1- to 4-grams, words and word pairs stand in it, hashed into
2**bits buckets (feature hashing, Weinberger et al. 2009), by logistic regression. What counts is
that an n-gram is there, not how often. `chatbench.corpus.cleaning.screening` trains one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from chatbench.errors import IntegrityError, UsageError
from chatbench.storage import new_folder, pretty_json, verify
from chatbench.text.traits import Indices, Places, Sightings, as_judged, batches, sightings

KIND = "screen"
_WEIGHTS, _SETTINGS = "weights.safetensors", "screen.json"
_VERSION = 1
_LONGEST_PIECE = 1 << 18
_NEVER = -2

Floats = npt.NDArray[np.float64]


class Layout(msgspec.Struct, frozen=True):
    """What of a screen is not weights. Row 0 of `biases` and of the weights tells bad from good,
    row 1 + c category c from everything else. `window` is in bytes of UTF-8, even, at least 8;
    `spread` in logits.
    """

    bits: int
    window: int
    spread: float
    threshold: float
    biases: tuple[float, ...]
    categories: tuple[str, ...] = ()
    version: int = _VERSION


class Screen:
    """Judges texts. `weights`: float16, one row for bad and one for each category × 2**bits.

    Half precision makes every sum of weights exact in float64, so a text gets the same
    probability, to the last bit, in any batch and in any order.
    """

    def __init__(
        self,
        weights: npt.NDArray[np.float16],
        layout: Layout,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.layout = layout
        self.about = about or {}
        self._half = weights
        self._weights = weights.astype(np.float64)

    @property
    def threshold(self) -> float:
        """Texts above this probability are rejected."""
        return self.layout.threshold

    @property
    def categories(self) -> tuple[str, ...]:
        """Kinds of bad content, where the labels told several apart."""
        return self.layout.categories

    def judge(self, texts: Sequence[str]) -> Floats:
        """Probability that each text is bad, were good and bad equally frequent: float64 [texts].

        A text is judged as a whole and by windows of `layout.window` bytes of UTF-8 (a Chinese
        character says about as much as three Latin letters), which overlap by
        half; the worst counts, so that a bad sentence in a long good text is found. Because many
        windows have many chances to look bad by accident, `layout.spread` × ln((windows + 1) / 2)
        is taken off what they say; with it a long good text is rejected about as often as
        a short one. Texts above 2**18 characters are judged in pieces of that length. An
        empty text has probability 0. Time is linear in the length.
        """
        return _sigmoid(self.logits(texts))

    def rejects(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether each text is above the threshold: bool [texts]."""
        return self.judge(texts) > self.threshold

    def category_scores(self, texts: Sequence[str]) -> Floats:
        """Probability of each category, judged on its own: float64 [texts, categories]."""
        rows = [_sigmoid(self.logits(texts, 1 + c)) for c in range(len(self.categories))]
        return np.stack(rows, axis=1) if rows else np.zeros((len(texts), 0))

    def logits(self, texts: Sequence[str], row: int = 0) -> Floats:
        """What `judge` says before it becomes a probability; -inf for empty texts."""
        worst = np.full(len(texts), -math.inf)
        pieces: list[str] = []
        owners: list[int] = []
        step = _LONGEST_PIECE - self.layout.window
        for number, text in enumerate(texts):
            judged = as_judged(text)
            if judged:
                for start in range(0, max(len(judged) - self.layout.window, 1), step):
                    pieces.append(judged[start : start + _LONGEST_PIECE])
                    owners.append(number)
        done = 0
        for batch in batches(pieces):
            values = self._batch_logits(batch, row)
            np.maximum.at(worst, owners[done : done + len(batch)], values)
            done += len(batch)
        return worst

    def _batch_logits(self, texts: list[str], row: int) -> Floats:
        seen = sightings(texts, self.layout.bits)
        weights = self._weights[row].take(seen.bucket)
        bias = self.layout.biases[row]
        sizes = np.diff(seen.borders)
        starts = np.repeat(seen.borders[:-1], sizes).astype(np.int32)
        owners = np.repeat(np.arange(len(texts), dtype=np.int32), sizes)
        whole = _Leaning(len(texts)).add(seen, weights, starts, owners).logits() + bias
        blocks = _blocks(seen, self.layout.window // 2)
        counts = np.maximum(blocks.counts - 1, 1)
        if counts.max(initial=1) == 1:
            return whole
        # A window is a block and the next one: a place lies in the window that its block starts
        # and in the one that the block before it starts.
        first = np.cumsum(counts) - counts
        number = blocks.number
        starting = np.repeat(first, blocks.counts) + number
        leaning = _Leaning(int(counts.sum()))
        for since, windows in (
            (np.where(number < np.repeat(counts, blocks.counts), blocks.heads, _NEVER), starting),
            (np.where(number > 0, np.roll(blocks.heads, 1), _NEVER), starting - 1),
        ):
            reach, window = since.astype(np.int32), windows.astype(np.int32)
            leaning.add(seen, weights, reach.take(blocks.of), window.take(blocks.of))
        # Neighbours share half of their text, so half of the windows are news.
        allowance = np.array(
            [self.layout.spread * math.log((count + 1) / 2) for count in counts.tolist()]
        )
        values = leaning.logits() + bias - np.repeat(allowance, counts)
        return np.maximum(whole, np.maximum.reduceat(values, first))

    def save(self, folder: Path, *, replace: bool = False) -> Path:
        """Write the screen as a folder with a manifest. Raises UsageError when something is there
        and not `replace`, EnvironmentFault for disk trouble."""
        from safetensors.numpy import save

        info = {"threshold": self.threshold, "categories": list(self.categories)}
        with new_folder(folder, KIND, info, replace=replace) as staging:
            (staging / _WEIGHTS).write_bytes(save({"weights": self._half}))
            settings = {"layout": msgspec.to_builtins(self.layout), "about": self.about}
            (staging / _SETTINGS).write_bytes(pretty_json(settings))
        return folder


class _Saved(msgspec.Struct):
    layout: Layout
    about: dict[str, Any]


def open_screen(folder: str | Path) -> Screen:
    """The screen in `folder`. Raises UsageError when there is no such folder, IntegrityError when
    it is damaged or something else."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder with a screen", hint="make one with: chatbench screen"
        )
    verify(folder, KIND)
    try:
        saved = msgspec.json.decode((folder / _SETTINGS).read_bytes(), type=_Saved)
        weights = load((folder / _WEIGHTS).read_bytes())["weights"]
    except (OSError, msgspec.DecodeError, SafetensorError, KeyError) as error:
        raise IntegrityError(f"{folder} cannot be read as a screen: {error}") from error
    layout = saved.layout
    rows = 1 + len(layout.categories)
    if layout.version != _VERSION:
        raise IntegrityError(f"{folder} has version {layout.version}, this program reads 1")
    if weights.shape != (rows, 1 << layout.bits) or len(layout.biases) != rows:
        raise IntegrityError(f"{folder} does not hold the weights that its settings name")
    return Screen(weights.astype(np.float16), layout, saved.about)


class _Blocks(NamedTuple):
    """Each text cut into blocks of equally many bytes of UTF-8. `heads`: the place where each block
    starts; `number`: which block of its text it is; `of`: the block of each place; `counts`: how
    many blocks each text has."""

    heads: Indices
    number: Indices
    of: Indices
    counts: Indices


def _blocks(seen: Sightings, step: int) -> _Blocks:
    within = seen.offsets // step
    begins = np.ones(len(within), bool)
    begins[1:] = within[1:] != within[:-1]
    begins[seen.borders[:-1]] = True
    heads = np.flatnonzero(begins)
    return _Blocks(heads, within[heads], np.cumsum(begins) - 1, within[seen.borders[1:] - 1] + 1)


class _Leaning:
    """Sums of weights of different n-grams, and how many, for each of some stretches of text."""

    def __init__(self, count: int) -> None:
        self._sums = np.zeros(count)
        self._sizes = np.zeros(count, np.int64)

    def add(self, seen: Sightings, weights: Floats, since: Places, stretches: Places) -> _Leaning:
        """Count each n-gram for stretches[its place], which starts at since[its place], unless an
        equal one stands before in that stretch."""
        fresh = seen.fresh(since)
        owners = stretches.take(seen.place.take(fresh))
        self._sums += np.bincount(owners, weights.take(fresh), minlength=len(self._sums))
        self._sizes += np.bincount(owners, minlength=len(self._sizes))
        return self

    def logits(self) -> Floats:
        result: Floats = self._sums / np.sqrt(np.maximum(self._sizes, 1))
        return result


def _sigmoid(logits: Floats) -> Floats:
    # One at a time: numpy's vector code may round differently by place in the array.
    return np.array([_probability(logit) for logit in logits.tolist()], np.float64)


def _probability(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    small = math.exp(logit)
    return small / (1 + small)


class Judge(Protocol):
    """Whatever can tell which texts are to be kept back; a `Screen` for one."""

    def rejects(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]: ...


# Possessive, so that where a sentence ends does not depend on how the text came in pieces: a run
# of stops ends only where a character that is no stop has been seen.
_SENTENCE_END = re.compile(
    "[。！？；…]++[”’」』）】\"')\\]]*+(?=.)|[.!?]++[\"')\\]”’]*+(?=\\s)|\n", re.DOTALL
)


class HeldBack:
    """Lets a streamed reply through sentence by sentence, once each is judged.

    `feed` takes text as it comes and returns what may be shown; `finish` says that all has come.
    Text is held until a sentence ends, at the latest for `longest` characters, and judged alone and
    together with up to `context` characters before it. From the first rejection on nothing is
    returned any more: the output is the text up to a border before the rejected sentence. The
    output as a whole does not depend on how the text was cut into pieces.
    """

    def __init__(self, judge: Judge, *, longest: int = 200, context: int = 400) -> None:
        if longest < 1 or context < 0:
            raise ValueError("longest is at least 1, context at least 0")
        self._judge = judge
        self._longest = longest
        self._context = context
        self._shown = ""
        self._held = ""
        self._finished = False
        self.blocked = False

    def feed(self, piece: str) -> str:
        """What may be shown after `piece` has come; empty once blocked."""
        if self._finished:
            raise ValueError("the reply is finished")
        if self.blocked:
            return ""
        self._held += piece
        released = []
        start = 0
        while not self.blocked and (length := self._border(start)):
            released.append(self._release(self._held[start : start + length]))
            start += length
        self._held = "" if self.blocked else self._held[start:]
        return "".join(released)

    def finish(self) -> str:
        """The rest, if it may be shown. Nothing can be fed after."""
        rest = "" if self._finished else self.feed("")
        held, self._held, self._finished = self._held, "", True
        return rest + (self._release(held) if held and not self.blocked else "")

    def _border(self, start: int) -> int:
        """Length of what is to be judged next, 0 while that is not decided."""
        limit = start + self._longest
        found = _SENTENCE_END.search(self._held, start, limit + 1)
        if found:
            return found.end() - start
        if len(self._held) <= limit:
            return 0
        space = self._held.rfind(" ", start + self._longest // 2, limit)
        return self._longest if space < 0 else space + 1 - start

    def _release(self, text: str) -> str:
        texts = [text, self._shown + text] if self._shown else [text]
        if bool(np.any(self._judge.rejects(texts))):
            self.blocked = True
            return ""
        self._shown = (self._shown + text)[-self._context :] if self._context else ""
        return text
