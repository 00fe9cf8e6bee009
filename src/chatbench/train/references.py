"""What a run is held against, computed while its first steps run: n-grams, and pure chance."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from chatbench import console
from chatbench.corpus.shards import TokenSplit
from chatbench.storage import write_json
from chatbench.text.ngram import (
    LARGEST_SAMPLE,
    ORDER,
    Scored,
    ngram_bits_per_byte,
    uniform_bits_per_byte,
)
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.objective import Batch

REFERENCES = "references.json"


class References:
    """Values by name, in `references.json` of a run; made in a thread when they are not there."""

    def __init__(
        self, run: Path, train: TokenSplit, held: Iterable[Batch], tokenizer: Tokenizer
    ) -> None:
        self._path = run / REFERENCES
        self._train = train
        self._held = held
        self._tokenizer = tokenizer
        self._made: dict[str, float] | None = None
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._make, name="references", daemon=True)

    def start(self) -> None:
        """Begin, unless a run before this one has left them."""
        known = read_references(self._path.parent)
        if known:
            self._made = known
        else:
            self._thread.start()

    def ready(self, seconds: float | None = 0.0) -> dict[str, float]:
        """What is known after waiting at most so long (None: until it is), or nothing."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return {}
            if self._failure is not None:
                failure, self._failure = self._failure, None
                console.notice(f"no n-gram reference: {failure}")
            # By the caller's thread: whoever leaves early leaves no half-written file.
            if self._made and not self._path.is_file():
                write_json(self._path, self._made)
        return self._made or {}

    def _make(self) -> None:
        try:
            self._made = reference_values(self._train, self._held, self._tokenizer)
        except (OSError, MemoryError, ValueError) as error:
            self._failure = error


def reference_values(
    train: TokenSplit, held: Iterable[Batch], tokenizer: Tokenizer
) -> dict[str, float]:
    """`ngram_bits_per_byte` of a model of the first `ngram_tokens` of the training split's tokens,
    `uniform_bits_per_byte` and `uniform_loss` (nats a token) of guessing, all on exactly the
    tokens that the validation scores; empty when it scores none."""
    pieces = list(scored_pieces(held))
    token_bytes = np.array([len(spelt) for spelt in tokenizer.token_bytes], np.int64)
    documents = (train.ids(number) for number in range(len(train)))
    bits = ngram_bits_per_byte(documents, pieces, token_bytes)
    if math.isnan(bits):
        return {}
    return {
        "ngram_bits_per_byte": bits,
        "ngram_order": ORDER,
        "ngram_tokens": min(train.tokens, LARGEST_SAMPLE),
        "train_tokens": train.tokens,
        "uniform_bits_per_byte": uniform_bits_per_byte(pieces, token_bytes),
        "uniform_loss": math.log(len(token_bytes)),
    }


def scored_pieces(batches: Iterable[Batch]) -> Iterator[Scored]:
    """Every document in every row: its tokens, and which of them the loss counts."""
    for batch in batches:
        ids, targets, weights = (t.cpu().numpy() for t in batch[:3])
        for row in range(len(ids)):
            used = int(np.flatnonzero(weights[row]).max(initial=-1)) + 1
            names = np.zeros(used, np.int64)
            if batch.packing is not None:
                names = batch.packing.document[row, :used].cpu().numpy()
            for begin, end in _runs(names):
                yield Scored(
                    np.concatenate([ids[row, begin : begin + 1], targets[row, begin:end]]),
                    np.concatenate([np.zeros(1, weights.dtype), weights[row, begin:end]]),
                )


def _runs(names: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Begin and end of every stretch of one name."""
    borders = [0, *(np.flatnonzero(np.diff(names)) + 1).tolist(), len(names)]
    for begin, end in pairwise(borders):
        if begin < end:
            yield begin, end


def read_references(run: Path) -> dict[str, float]:
    """What `references.json` of a run holds; empty when there is none or it cannot be read."""
    try:
        return msgspec.json.decode((run / REFERENCES).read_bytes(), type=dict[str, float])
    except (OSError, msgspec.DecodeError):
        return {}
