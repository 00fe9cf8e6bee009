"""Several corpora as one: some whole, of others a share of the training tokens (replay)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from chatbench.corpus.shards import Corpus, Ids, TokenSplit, Weights
from chatbench.corpus.untagging import Splice
from chatbench.text.tags import Known, merged

Numbers = npt.NDArray[np.int64]


class Share(NamedTuple):
    """A corpus of which so much of the mixture is made, in tokens; `share` in (0, 1)."""

    corpus: Corpus
    share: float


class Mixture(Corpus):
    """Seen as one corpus: `folder` and `manifest` are those of the first whole one.

    Validation and test are those of the whole corpora alone, so that the best model is the best at
    what is new.
    """

    def __init__(self, whole: Sequence[Corpus], shares: Sequence[Share], seed: int) -> None:
        """At least one corpus is whole, and all have one tokenizer; the shares add up to less
        than 1. `seed` decides which documents make up the shares."""
        assert whole
        assert sum(share for _, share in shares) < 1
        first = whole[0]
        self.folder, self.manifest, self.tokenizer = first.folder, first.manifest, first.tokenizer
        self.replayed = tuple(corpus for corpus, _ in shares)
        self._whole, self._shares, self._seed = whole, shares, seed
        told = [*(corpus.fingerprint for corpus in whole)]
        told += [f"{corpus.fingerprint}:{share!r}:{seed}" for corpus, share in shares]
        self.fingerprint = hashlib.sha256("\n".join(told).encode()).hexdigest()

    @property
    def folders(self) -> tuple[Path, ...]:
        return tuple(corpus.folder for corpus in (*self._whole, *self.replayed))

    def split(self, name: str) -> MixedSplit:
        whole = [corpus.split(name) for corpus in self._whole]
        parts = [Part(split, np.arange(len(split))) for split in whole]
        if name == "train":
            tokens = sum(split.tokens for split in whole)
            total = tokens / (1 - sum(share for _, share in self._shares))
            for number, (corpus, share) in enumerate(self._shares):
                old = corpus.split(name)
                parts.append(Part(old, drawn(old, share * total, [self._seed, number]), True))
        return MixedSplit(parts)

    def shares(self) -> Iterator[tuple[Path, float, float]]:
        """Of every corpus that is not whole: its folder, the share asked for, the share it makes of
        the training tokens."""
        mixed = self.split("train")
        for (corpus, share), part in zip(
            self._shares, mixed.parts[len(self._whole) :], strict=True
        ):
            tokens = int(part.split.lengths[part.numbers].sum())
            yield corpus.folder, share, tokens / max(1, mixed.tokens)

    def tags(self) -> Known:
        return merged(corpus.tags() for corpus in (*self._whole, *self.replayed))

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        for corpus in self._whole:
            yield from corpus.rows(name)


class Part(NamedTuple):
    """Documents of a split, by number; `replayed`: texts among them are learned like replies."""

    split: TokenSplit
    numbers: Numbers
    replayed: bool = False


class MixedSplit(TokenSplit):
    """Documents of several splits, one after the other."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._first = np.cumsum([0, *(len(part.numbers) for part in parts)])
        self.lengths = np.concatenate([part.split.lengths[part.numbers] for part in parts])
        self._tokens = int(self.lengths.sum())

    def ids(self, number: int) -> Ids:
        part, local = self._place(number)
        return part.split.ids(local)

    def weights(self, number: int) -> Weights:
        part, local = self._place(number)
        return part.split.weights(local)

    def rejected(self, number: int) -> tuple[Ids, Weights] | None:
        part, local = self._place(number)
        return part.split.rejected(local)

    @property
    def has_tags(self) -> bool:
        return any(part.split.has_tags for part in self.parts)

    def untagged(self, number: int) -> tuple[Splice, ...]:
        part, local = self._place(number)
        return part.split.untagged(local)

    def largest(self) -> int:
        return max((part.split.largest() for part in self.parts), default=-1)

    def is_replayed(self, number: int) -> bool:
        return self._place(number)[0].replayed

    def _place(self, number: int) -> tuple[Part, int]:
        which = int(np.searchsorted(self._first, number, side="right")) - 1
        part = self.parts[which]
        return part, int(part.numbers[number - int(self._first[which])])


def drawn(split: TokenSplit, tokens: float, seed: Sequence[int]) -> Numbers:
    """Documents drawn without repetition that hold as nearly `tokens` tokens as whole documents
    can, in the order of the corpus; all of them where it holds fewer."""
    order = np.random.Generator(np.random.PCG64(list(seed))).permutation(len(split))
    sizes = np.cumsum([0, *split.lengths[order].tolist()])
    chosen: Numbers = np.sort(order[: int(np.abs(sizes - tokens).argmin())])
    return chosen
