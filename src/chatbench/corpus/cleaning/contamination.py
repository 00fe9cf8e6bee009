"""Training text that repeats what a model will be tested on: shared 13-grams of words.

The rule and its length are GPT-3's (Brown et al. 2020, appendix C). A Chinese, Japanese or Korean
character counts as a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from chatbench import console
from chatbench.corpus.cleaning.grams import GramSet, Hashes, Offsets, ngrams, spell, words
from chatbench.corpus.document import Counts, Document, Dropped, Failure
from chatbench.errors import DataError

GRAM_WORDS = 13
SHORTEST = 8
LIMIT = 1_000_000
HELD_OUT = ("val", "test")
_BATCH_CHARACTERS = 1 << 18
Flags = npt.NDArray[np.bool_]


def tested_text(document: Document) -> str:
    """What a test asks and expects: all of a document but its system messages, which whole test
    sets and training sets share without sharing a question."""
    if document.messages is None:
        return document.text or ""
    return "\n".join(m.content for m in document.messages if m.role != "system")


# ---- against the user's own test files


class Against:
    """A Stage that drops documents which hold a gram of some test items.

    `grams`: by length in words, what to look for; `items`: test items that can be looked for;
    `ignored`: those shorter than SHORTEST words, which cannot.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.items = 0
        self.ignored = 0
        found: dict[int, list[Hashes]] = {}
        for batch in batches(texts):
            known = words(batch)
            count = np.diff(known.starts)
            self.ignored += int((count < SHORTEST).sum())
            self.items += int((count >= SHORTEST).sum())
            found.setdefault(GRAM_WORDS, []).append(np.unique(ngrams(known, GRAM_WORDS).hashes))
            for length in range(SHORTEST, GRAM_WORDS):
                grams = ngrams(known, length)
                whole = grams.hashes[grams.starts[:-1][count == length]]
                if len(whole):
                    found.setdefault(length, []).append(whole)
        sets = {length: GramSet(np.concatenate(found[length])) for length in sorted(found)}
        self.grams = {length: grams for length, grams in sets.items() if len(grams)}

    def __call__(self, documents: Sequence[Document]) -> tuple[list[Document | Dropped], Counts]:
        """Dropped("contaminated", the shared words), or the document itself."""
        texts = [document.joined() for document in documents]
        results: list[Document | Dropped] = list(documents)
        # The longest grams last: of several finds the longest is the best reason.
        for place, (start, length) in sorted(self._finds(texts).items()):
            shared = " ".join(spell(texts[place], start, length))
            results[place] = Dropped("contaminated", shared)
        return results, Counter()

    def _finds(self, texts: Sequence[str]) -> dict[int, tuple[int, int]]:
        """Text → (first word, words) of the first of the longest grams it shares."""
        known = words(texts)
        finds: dict[int, tuple[int, int]] = {}
        for length, wanted in self.grams.items():
            grams = ngrams(known, length)
            places, _ = wanted.find(grams.hashes)
            owners, first = np.unique(grams.owner()[places], return_index=True)
            starts = places[first] - grams.starts[owners]
            finds |= {
                owner: (start, length)
                for owner, start in zip(owners.tolist(), starts.tolist(), strict=True)
            }
        return finds


def against_texts(texts: Iterable[str]) -> Against:
    """A Stage that drops documents which share a 13-gram with any of `texts`; a text of 8 to 12
    words is looked for as a whole, shorter ones are counted in `.ignored`."""
    return Against(texts)


def against(paths: Sequence[str], said: Callable[[str], None] | None = None) -> Against:
    """The same for the test files and folders a user names, in any form that `preprocess` reads.

    `said` gets a line for what could not be used; by default it is a notice on stderr. Raises
    UsageError for a path that does not exist, DataError when there is nothing to look for.
    """
    from chatbench.corpus.sources.containers import find_inputs

    inputs, refused = find_inputs(list(paths), None)
    say = console.notice if said is None else said
    key = tuple((str(found.path), found.bytes, found.mtime_ns) for found in inputs)
    stage, failed = _read_tests(key)
    failed += [f"{failure.source}: {failure.reason}" for failure in refused]
    named = ", ".join(paths)
    if failed:
        records = console.counted(len(failed), "record")
        say(f"{records} of {named} could not be read, the first is {failed[0]}")
    if stage.ignored:
        say(
            f"{stage.ignored} of {stage.items + stage.ignored} test items in {named} have fewer "
            f"than {SHORTEST} words and cannot be looked for"
        )
    if not stage.items:
        raise DataError(
            f"{named} holds no test item of {SHORTEST} words or more", hint="check --against"
        )
    return stage


@lru_cache(maxsize=2)
def _read_tests(files: tuple[tuple[str, int, int], ...]) -> tuple[Against, list[str]]:
    """Read once in a process, however many parts of the input it works on."""
    from chatbench.corpus.sources.blob import ReadOptions
    from chatbench.corpus.sources.reading import read_path

    failed: list[str] = []

    def texts() -> Iterator[str]:
        # Long texts are not cut: a gram may lie anywhere.
        options = ReadOptions(passage_chars=1 << 30)
        for path, _, _ in files:
            for record in read_path(Path(path), path, options):
                if isinstance(record, Failure):
                    failed.append(f"{record.source}: {record.reason}")
                else:
                    yield tested_text(record)

    return Against(texts()), failed


# ---- between the splits


class HeldOutGrams:
    """The 13-grams of the held-out texts, to count what training shares with them.

    `hashes` uint64 (g,), ascending; `marks` uint8 (g,), bit s set when split HELD_OUT[s] holds
    the gram. When there are more than `limit` distinct ones, only those below a bound are kept
    and the bound is halved until they fit: an even sample, `rate` of all, that depends on the set
    of texts alone. Parts made by several workers can be merged.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._halvings = 0
        self._waiting: list[tuple[Hashes, npt.NDArray[np.uint8]]] = []
        self._waits = 0
        self._hashes = np.zeros(0, np.uint64)
        self._marks = np.zeros(0, np.uint8)
        self._set: GramSet | None = None

    @classmethod
    def of(
        cls, hashes: Hashes, marks: npt.NDArray[np.uint8], rate: float, limit: int = LIMIT
    ) -> HeldOutGrams:
        """What `hashes`, `marks` and `rate` of another one describe, for instance read back."""
        made = cls(limit)
        made._halvings = round(-np.log2(rate))
        made._hashes, made._marks = hashes, marks
        return made

    def add(self, texts: Sequence[str], split: int) -> None:
        """Take in held-out texts of HELD_OUT[split]."""
        hashes = np.unique(ngrams(words(texts), GRAM_WORDS).hashes)
        self._take(hashes, np.full(len(hashes), 1 << split, np.uint8))

    def merge(self, other: HeldOutGrams) -> None:
        """Take in what another one holds."""
        self._take(other.hashes, other.marks)
        if other._halvings > self._halvings:
            self._halvings = other._halvings
            self._settle()

    @property
    def hashes(self) -> Hashes:
        self._settle()
        return self._hashes

    @property
    def marks(self) -> npt.NDArray[np.uint8]:
        self._settle()
        return self._marks

    @property
    def rate(self) -> float:
        """Share of the grams that are kept, in (0, 1]."""
        self._settle()
        return 0.5**self._halvings

    def no_marks(self) -> Flags:
        """A new `seen` array (g,) for `overlap`; those of several workers are joined with |."""
        return np.zeros(len(self.hashes), bool)

    def overlap(self, texts: Sequence[str], seen: Flags | None = None) -> Flags:
        """(len(texts), 2): whether each training text shares a kept gram with val, with test. The
        shared grams are marked in `seen`."""
        places, owners = self._look(texts)
        if seen is not None:
            seen[places] = True
        found = np.zeros((len(texts), len(HELD_OUT)), bool)
        for split in range(len(HELD_OUT)):
            found[owners[self._marks[places] >> split & 1 == 1], split] = True
        return found

    def overlapping(self, texts: Sequence[str], seen: Flags) -> Flags:
        """(len(texts),): whether each held-out text holds a gram that training was seen to."""
        places, owners = self._look(texts)
        found = np.zeros(len(texts), bool)
        found[owners[seen[places]]] = True
        return found

    def _look(self, texts: Sequence[str]) -> tuple[Offsets, Offsets]:
        """Places among the kept grams, and the text of each find."""
        self._settle()
        if self._set is None:
            self._set = GramSet(self._hashes)
        grams = ngrams(words(texts), GRAM_WORDS)
        places, found = self._set.find(grams.hashes)
        return found, grams.owner()[places]

    def _take(self, hashes: Hashes, marks: npt.NDArray[np.uint8]) -> None:
        below = hashes <= self._bound()
        self._waiting.append((hashes[below], marks[below]))
        self._waits += int(below.sum())
        self._set = None
        if self._waits > self._limit // 4:
            self._settle()

    def _settle(self) -> None:
        """Merge what waits, each gram once, and halve the bound while there are too many.

        Only distinct grams are counted, so a bound that falls early would have fallen at the end
        as well, and the order of texts does not matter."""
        if self._waiting:
            hashes, marks = _each_once(self._waiting)
            self._waiting, self._waits = [], 0
            places = np.searchsorted(self._hashes, hashes)
            known = np.zeros(len(hashes), bool)
            inside = places < len(self._hashes)
            known[inside] = self._hashes[places[inside]] == hashes[inside]
            self._marks[places[known]] |= marks[known]
            self._hashes = np.insert(self._hashes, places[~known], hashes[~known])
            self._marks = np.insert(self._marks, places[~known], marks[~known])
        while (kept := self._kept()) > self._limit:
            self._halvings += 1
        if kept < len(self._hashes):
            self._hashes, self._marks = self._hashes[:kept].copy(), self._marks[:kept].copy()

    def _kept(self) -> int:
        return int(np.searchsorted(self._hashes, self._bound(), side="right"))

    def _bound(self) -> np.uint64:
        return np.uint64((1 << (64 - self._halvings)) - 1)


def _each_once(
    parts: Sequence[tuple[Hashes, npt.NDArray[np.uint8]]],
) -> tuple[Hashes, npt.NDArray[np.uint8]]:
    """Ascending distinct hashes with all their marks."""
    hashes, place = np.unique(np.concatenate([h for h, _ in parts]), return_inverse=True)
    marks = np.zeros(len(hashes), np.uint8)
    np.bitwise_or.at(marks, place, np.concatenate([m for _, m in parts]))
    return hashes, marks


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """As many texts together as have about 256 Ki characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
