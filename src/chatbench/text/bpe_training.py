"""Counted words → merges of byte-pair encoding (Sennrich et al. 2016).

Counting can be done in pieces, by several workers and in any order: counts merge exactly, and are
cut down to a bounded number of words only after that. Learning gives the merges that the trainer
of `tokenizers` gives. Both run in a small C extension; without it everything works, slower.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from chatbench.errors import IntegrityError
from chatbench.storage import write_file
from chatbench.text.splitting import (
    byte_alphabet,
    character_classes,
    composed,
    refuse_surrogates,
    split_pattern,
)

# A longer run without a border, such as base64, is counted in pieces: learning reads whole words.
LONGEST_WORD = 4096
MOST_HELD = 1 << 20
MOST_WORDS = 2_000_000
_MAGIC = b"chatbench words 1\n"

Merges = npt.NDArray[np.uint32]


class WordCounts(NamedTuple):
    """Distinct words in the order of their UTF-8 bytes: `lengths` (W,) uint32 in bytes, `counts`
    (W,) int64, and `content`, all bytes one word after the other, uint8."""

    lengths: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.int64]
    content: npt.NDArray[np.uint8]

    def size(self) -> int:
        """Distinct words."""
        return len(self.lengths)

    def items(self) -> Iterator[tuple[bytes, int]]:
        content, start = self.content.tobytes(), 0
        for length, count in zip(self.lengths.tolist(), self.counts.tolist(), strict=True):
            yield content[start : start + length], count
            start += length

    def save(self, path: Path) -> None:
        """Magic, number of words and of bytes (uint64), lengths, counts, bytes; little-endian."""
        sizes = np.array([len(self.lengths), len(self.content)], "<u8")
        parts = (sizes, self.lengths.astype("<u4"), self.counts.astype("<i8"), self.content)
        write_file(path, _MAGIC + b"".join(part.tobytes() for part in parts))


def load_word_counts(path: Path) -> WordCounts:
    """What `WordCounts.save` wrote, mapped. Raises IntegrityError for anything else."""
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    begin = len(_MAGIC) + 16
    if len(data) >= begin and data[: len(_MAGIC)].tobytes() == _MAGIC:
        words, size = map(int, data[len(_MAGIC) : begin].view("<u8"))
        ends = begin + 4 * words, begin + 12 * words, begin + 12 * words + size
        if ends[2] == len(data):
            lengths = data[begin : ends[0]].view("<u4").astype(np.uint32)
            counts = data[ends[0] : ends[1]].view("<i8").astype(np.int64)
            if int(lengths.sum(dtype=np.uint64)) == size:
                return WordCounts(lengths, counts, data[ends[1] :])
    raise IntegrityError(f"{path} is not a complete file of word counts")


def pack_words(counted: dict[bytes, int]) -> WordCounts:
    """A table of counts as WordCounts."""
    words = sorted(counted)
    return WordCounts(
        np.fromiter(map(len, words), np.uint32, len(words)),
        np.fromiter((counted[word] for word in words), np.int64, len(words)),
        np.frombuffer(b"".join(words), np.uint8),
    )


# ---- counting


def count_words(
    texts: Iterable[str], split: Callable[[str], list[str]] | None = None
) -> WordCounts:
    """Words of `texts` by Qwen2's pattern after NFC, or by `split` as they are, and how often each
    occurs.

    At most MOST_HELD words are in memory at a time; beyond, runs go to a temporary folder. What
    comes back is cut down as `merge_word_counts` says. Raises DataError for lone surrogates.
    """
    with TemporaryDirectory(prefix="chatbench-words-") as folder:
        runs: list[WordCounts] = []
        for number, run in enumerate(count_in_runs(texts, split)):
            if runs:
                path = Path(folder) / str(number)
                run.save(path)
                run = load_word_counts(path)
            runs.append(run)
        return merge_word_counts(runs)


def count_in_runs(
    texts: Iterable[str], split: Callable[[str], list[str]] | None = None
) -> Iterator[WordCounts]:
    """Counts of consecutive parts of `texts`, each of about MOST_HELD distinct words."""
    counter = _counter(split)
    for text in texts:
        if split is None:
            counter.add(composed(text))
        else:
            refuse_surrogates(text)
            counter.add(text)
        if len(counter) >= MOST_HELD:
            yield _packed(counter.pop())
    yield _packed(counter.pop())


def merge_word_counts(
    parts: Sequence[WordCounts], most_words: int = MOST_WORDS, most_held: int = 2 * MOST_HELD
) -> WordCounts:
    """Counts of all parts together: the same whatever the parts were.

    When more than `most_words` are distinct, the words that occur at least m times are kept, for
    the smallest m that leaves no more; of those that occur m - 1 times the ones with the smallest
    CRC-32, a share that fills up the number, so that no script is preferred. Words are merged in
    groups by hash, about `most_held` at a time.
    """
    groups = max(1, -(-sum(part.size() for part in parts) // most_held))
    if groups == 1 and sum(part.size() for part in parts) <= most_words:
        return parts[0] if len(parts) == 1 else _merged(parts, 0, 1)
    tally: Counter[int] = Counter()
    for group in range(groups):
        values, numbers = np.unique(_merged(parts, group, groups).counts, return_counts=True)
        tally.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    least, share = _limit(tally, most_words)
    kept = [_kept(_merged(parts, group, groups), least, share) for group in range(groups)]
    return _merged(kept, 0, 1)


def _limit(tally: Counter[int], most: int) -> tuple[int, float]:
    """The least count that is kept, and the share kept of the words that occur once less."""
    kept = 0
    for count in sorted(tally, reverse=True):
        if kept + tally[count] > most:
            return count + 1, (most - kept) / tally[count]
        kept += tally[count]
    return 0, 0.0


def _kept(words: WordCounts, least: int, share: float) -> WordCounts:
    mask = words.counts >= least
    if share:
        ends = np.cumsum(words.lengths, dtype=np.int64)
        for place in np.flatnonzero(words.counts == least - 1).tolist():
            end = int(ends[place])
            word = words.content[end - int(words.lengths[place]) : end]
            mask[place] = zlib.crc32(word.tobytes()) < share * 2**32
    content = words.content[np.repeat(mask, words.lengths)]
    return WordCounts(words.lengths[mask], words.counts[mask], content)


def _merged(parts: Sequence[WordCounts], group: int, groups: int) -> WordCounts:
    counter = _counter(None)
    for part in parts:
        counter.add_packed(part.lengths, part.counts, part.content, group, groups)
    return _packed(counter.pop())


def _packed(popped: tuple[bytes, bytes, bytes]) -> WordCounts:
    lengths, counts, content = popped
    return WordCounts(
        np.frombuffer(lengths, np.uint32),
        np.frombuffer(counts, np.int64),
        np.frombuffer(content, np.uint8),
    )


class WordCounter(Protocol):
    """What both counters do: texts or counted words in, all words out in order of their bytes."""

    def __len__(self) -> int: ...
    def add(self, text: str, /) -> None: ...
    def add_packed(
        self,
        lengths: npt.NDArray[np.uint32],
        counts: npt.NDArray[np.int64],
        content: npt.NDArray[np.uint8],
        part: int,
        parts: int,
        /,
    ) -> None: ...
    def pop(self) -> tuple[bytes, bytes, bytes]: ...


class SlowCounter:
    """The extension's Counter in Python; `split` gives the words of a text, joined they are it."""

    def __init__(self, split: Callable[[str], list[str]]) -> None:
        self._split = split
        self._counts: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, text: str) -> None:
        for word, count in Counter(self._split(text)).items():
            for piece in _cut(word.encode()):
                self._counts[piece] += count

    def add_packed(
        self,
        lengths: npt.NDArray[np.uint32],
        counts: npt.NDArray[np.int64],
        content: npt.NDArray[np.uint8],
        part: int,
        parts: int,
    ) -> None:
        for word, count in WordCounts(lengths, counts, content).items():
            if zlib.crc32(word) % parts == part:
                self._counts[word] += count

    def pop(self) -> tuple[bytes, bytes, bytes]:
        words = pack_words(self._counts)
        self._counts.clear()
        return words.lengths.tobytes(), words.counts.tobytes(), words.content.tobytes()


def _cut(word: bytes) -> Iterator[bytes]:
    """Pieces of at most LONGEST_WORD bytes, cut between characters."""
    while len(word) > LONGEST_WORD:
        end = LONGEST_WORD
        while word[end] & 0xC0 == 0x80:
            end -= 1
        yield word[:end]
        word = word[end:]
    yield word


def _counter(split: Callable[[str], list[str]] | None) -> WordCounter:
    if split is not None:
        return SlowCounter(split)
    try:
        from chatbench.text import _bpe
    except ImportError:
        return SlowCounter(split_pattern().findall)
    return _bpe.Counter(character_classes(), LONGEST_WORD)


# ---- learning


def learn_merges(
    words: WordCounts,
    entries: Sequence[bytes],
    known: Merges,
    wanted: int,
    unique: bool = False,
) -> Merges:
    """Merges that follow `known`, (M, 3) uint32: left, right and the entry they make.

    `entries` spells every id so far, all single bytes among them (control tokens as b""); new
    entries take the ids after. The most frequent pair is merged first, among equals the one with
    the smaller ids, until `wanted` entries are new or no pair is left. A pair may spell an entry
    that is already there; with `unique` such a pair is passed over, otherwise it is merged to that
    entry, as `tokenizers` does. Counts are 64 bits wide (there: 32).
    """
    try:
        from chatbench.text import _bpe
    except ImportError:
        if len(known) or unique or len(entries) != 256:
            return learn_slowly(words, entries, known, wanted, unique)
        return _learn_with_tokenizers(words, entries, wanted)
    lengths = np.fromiter(map(len, entries), np.uint32, len(entries))
    merges = _bpe.learn(
        words.lengths, words.counts, words.content, lengths, b"".join(entries),
        np.ascontiguousarray(known, np.uint32), wanted, unique,
    )  # fmt: skip
    return np.frombuffer(merges, np.uint32).reshape(-1, 3)


def _learn_with_tokenizers(words: WordCounts, entries: Sequence[bytes], wanted: int) -> Merges:
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=len(entries) + wanted,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    repeated = (word.decode() for word, count in words.items() for _ in range(count))
    backend.train_from_iterator(repeated, trainer=trainer)
    model = json.loads(backend.to_str())["model"]
    ids = model["vocab"]
    triples = [(ids[a], ids[b], ids[a + b]) for a, b in model["merges"]]
    return np.array(triples, np.uint32).reshape(-1, 3)


def learn_slowly(
    words: WordCounts, entries: Sequence[bytes], known: Merges, wanted: int, unique: bool
) -> Merges:
    """`learn_merges` in Python: the extension's twin, and its stand-in for what `tokenizers`'
    trainer cannot do."""
    from chatbench.text.slow_learner import SlowLearner

    learner = SlowLearner(words.items(), entries, [tuple(m) for m in known.tolist()])
    merges = learner.learn(wanted, unique)
    return np.array(merges, np.uint32).reshape(-1, 3)


def in_alphabet(content: bytes) -> str:
    """How tokenizer.json spells these bytes."""
    letters = _letters()
    return "".join(letters[byte] for byte in content)


@cache
def _letters() -> dict[int, str]:
    return {byte: letter for letter, byte in byte_alphabet().items()}
