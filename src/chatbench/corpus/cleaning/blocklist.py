"""Documents that hold a word or phrase of the user's lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from chatbench import console
from chatbench.corpus.cleaning.grams import GramSet, ngrams, words
from chatbench.corpus.document import Counts, Document, Dropped
from chatbench.errors import DataError, EnvironmentFault, UsageError


class Blocklist:
    """A Stage that drops documents in which a phrase stands, in any of their texts.

    A phrase is matched as its sequence of words: whole words in any case, single characters in
    Chinese, whatever punctuation and white space stand between them, never over the border of two
    messages. `skipped`: phrases without a letter or digit, which cannot be looked for.
    """

    def __init__(self, phrases: Sequence[str]) -> None:
        known = words(phrases)
        lengths = np.diff(known.starts)
        self.skipped = [phrases[place] for place in np.flatnonzero(lengths == 0).tolist()]
        self._lists: dict[int, tuple[GramSet, list[str]]] = {}
        for length in np.unique(lengths[lengths > 0]).tolist():
            places = np.flatnonzero(lengths == length)
            grams = ngrams(known, length)
            hashes, first = np.unique(grams.hashes[grams.starts[places]], return_index=True)
            self._lists[length] = (GramSet(hashes), [phrases[n] for n in places[first].tolist()])

    def __len__(self) -> int:
        """How many different phrases are looked for."""
        return sum(len(phrases) for _, phrases in self._lists.values())

    def __call__(self, documents: Sequence[Document]) -> tuple[list[Document | Dropped], Counts]:
        """Dropped("blocked", the phrase as the list has it), or the document itself."""
        texts: list[str] = []
        owners: list[int] = []
        for number, document in enumerate(documents):
            parts = document.texts()
            texts += parts
            owners += [number] * len(parts)
        results: list[Document | Dropped] = list(documents)
        taken: set[int] = set()
        for text, phrase in self.find(texts):
            if owners[text] not in taken:
                taken.add(owners[text])
                results[owners[text]] = Dropped("blocked", phrase)
        return results, Counter()

    def find(self, texts: Sequence[str]) -> list[tuple[int, str]]:
        """(text, phrase) for each text that holds one: the first in it, of several that start
        there the longest."""
        known = words(texts)
        best: dict[int, tuple[int, int, str]] = {}
        for length, (wanted, phrases) in self._lists.items():
            grams = ngrams(known, length)
            places, found = wanted.find(grams.hashes)
            owners, first = np.unique(grams.owner()[places], return_index=True)
            starts = places[first] - grams.starts[owners]
            for owner, start, number in zip(
                owners.tolist(), starts.tolist(), found[first].tolist(), strict=True
            ):
                find = (start, -length, phrases[number])
                best[owner] = min(best.get(owner, find), find)
        return [(owner, best[owner][2]) for owner in sorted(best)]


def block(paths: Sequence[str], said: Callable[[str], None] | None = None) -> Blocklist:
    """The Stage for list files: one word or phrase a line; `#` starts a comment line.

    `said` gets a line about phrases that had to be skipped; by default it is a notice on stderr.
    Raises UsageError for a file that is not there, EnvironmentFault for one that cannot be read,
    DataError when it is no text or there is nothing to look for.
    """
    stage = _load(tuple(_stamp(path) for path in paths))
    if stage.skipped:
        say = console.notice if said is None else said
        say(
            f"{console.counted(len(stage.skipped), 'entry', 'entries')} of {', '.join(paths)} "
            f"without letter or digit skipped, the first is {stage.skipped[0]}"
        )
    if not len(stage):
        raise DataError(f"{', '.join(paths)} holds no word to look for", hint="check --block")
    return stage


def _stamp(path: str) -> tuple[str, int, int]:
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist", hint="check --block") from None
    except OSError as error:
        raise EnvironmentFault(f"cannot read {path}: {error.strerror}") from error
    return path, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=2)
def _load(files: tuple[tuple[str, int, int], ...]) -> Blocklist:
    """Read once in a process, however many parts of the input it works on."""
    return Blocklist([phrase for path, _, _ in files for phrase in read_phrases(Path(path))])


def read_phrases(path: Path) -> list[str]:
    """The entries of a list file, stripped, in its order. Raises as `block` does."""
    from chatbench.corpus.sources.encodings import detect

    try:
        data = path.read_bytes()
    except OSError as error:
        raise EnvironmentFault(
            f"cannot read {path}: {error.strerror}", hint="--block takes text files"
        ) from error
    codec = detect(data).codec
    try:
        text = data.decode(codec or "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text", hint="write it as UTF-8, a phrase a line") from None
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]
