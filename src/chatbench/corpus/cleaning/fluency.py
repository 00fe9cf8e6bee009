"""How fluent text is, its sentences and its set phrases: NLTK where that needs no data, and an
n-gram language model that is both a baseline and a signal of quality."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from chatbench.corpus.cleaning.language import languages
from chatbench.corpus.document import Counts, Document, Dropped, Stage
from chatbench.errors import IntegrityError

Ids = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
_CJK = "\u2e80-\u2fdf\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_CJK += "\U00020000-\U0003ffff"

_PUNKT_CHARS = 500_000  # a second and a half of training
# An ellipsis inside a sentence is common; before a line end or a closing quote it ends one.
_CHINESE_END = re.compile(
    "(?:[。！？]+|…+(?=[”’」』）】\n]|$))[”’」』）】]*[ \u3000]*\n*|\n[ \t]*\n\\s*"
)


class Punkt(msgspec.Struct, frozen=True):
    """What Punkt (Kiss and Strunk 2006) learned: NLTK's parameters as plain sorted values."""

    abbreviations: tuple[str, ...] = ()
    collocations: tuple[tuple[str, str], ...] = ()
    starters: tuple[str, ...] = ()
    orthography: dict[str, int] = {}

    @classmethod
    def train(cls, texts: Iterable[str], chars: int = _PUNKT_CHARS) -> Punkt:
        """Learns abbreviations and the like from about `chars` characters of the texts."""
        from nltk.tokenize.punkt import PunktTrainer

        trainer = PunktTrainer()
        trainer.train("\n\n".join(sample(list(texts), chars)), finalize=True)
        found = trainer.get_params()
        return cls(
            tuple(sorted(found.abbrev_types)),
            tuple(sorted(found.collocations)),
            tuple(sorted(found.sent_starters)),
            dict(sorted(found.ortho_context.items())),
        )

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> Punkt:
        """Raises IntegrityError for anything that `to_json` did not write."""
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise IntegrityError(f"the sentence rules are damaged: {error}") from error

    def tokenizer(self) -> Any:
        """NLTK's PunktSentenceTokenizer with these parameters."""
        from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

        parameters = PunktParameters()
        parameters.abbrev_types = set(self.abbreviations)
        parameters.collocations = set(self.collocations)
        parameters.sent_starters = set(self.starters)
        parameters.ortho_context.update(self.orthography)
        return PunktSentenceTokenizer(parameters)


def split_sentences(text: str, punkt: Punkt) -> list[str]:
    """The sentences with the white space after them: joined they are the text. Chinese ends by
    its marks, other text as Punkt says, and a blank line ends a sentence in both."""
    return sentences([text], punkt)[0]


def sentences(texts: Sequence[str], punkt: Punkt | None = None) -> list[list[str]]:
    """`split_sentences` for many texts; without `punkt` it is trained on them."""
    tokenizer = (Punkt.train(texts) if punkt is None else punkt).tokenizer()
    return [_split(text, tokenizer) for text in texts]


def _split(text: str, tokenizer: Any) -> list[str]:
    found = []
    ends = [match.end() for match in _CHINESE_END.finditer(text)]
    for start, end in zip([0, *ends], [*ends, len(text)], strict=True):
        part = text[start:end]
        if "." in part or "!" in part or "?" in part:
            starts = [span[0] for span in tokenizer.span_tokenize(part)][1:]
            found += [part[a:b] for a, b in zip([0, *starts], [*starts, len(part)], strict=True)]
        elif part:
            found.append(part)
    return found


def sample(texts: Sequence[str], chars: int) -> list[str]:
    """At most about `chars` characters, from all over the list, the same on every run."""
    total = sum(map(len, texts))
    if total <= chars:
        return list(texts)
    chosen = texts[:: max(1, min(total // chars, len(texts) // 50))]
    each = chars // len(chosen) + 1
    return [text[:each] for text in chosen]


_PHRASE_CHARS = 500_000
_SELDOM = 3  # a phrase stands at least this often
_EMPTY_WORDS = (
    " the and that this with for from not but are was were had has have been will would could "
    "should can may might did does done she her his him they them their there then than you your "
    "its our who what when where which all any one more most very into upon said "
)
_EMPTY_CHARACTERS = frozenset(
    "的一是不了在有和人这這个個我他她它你们們也就都而之与與为為其以把被着說说到来來"
)


def collocations(
    texts: Sequence[str], count: int = 20, language: str | None = None
) -> list[tuple[str, ...]]:
    """The pairs of words, or for Chinese and Japanese the pairs and triples of characters, that
    stand together far more often than by chance (likelihood ratio, Dunning 1993), best first.

    `language` is a code of chatbench.corpus.cleaning.language; by default most texts decide.
    """
    some = sample(texts, _PHRASE_CHARS)
    if language is None:
        found = Counter(languages(some)).most_common()
        language = min(found, key=lambda pair: (-pair[1], pair[0]))[0] if found else "none"
    if language.split("+")[0] in ("zh", "ja"):
        return _character_phrases(some, count)
    return _word_phrases(some, count)


def _word_phrases(texts: Sequence[str], count: int) -> list[tuple[str, ...]]:
    from nltk.collocations import BigramAssocMeasures, BigramCollocationFinder
    from nltk.tokenize import wordpunct_tokenize

    words = [word.lower() for text in texts for word in [*wordpunct_tokenize(text), "."]]
    finder = BigramCollocationFinder.from_words(words)
    finder.apply_freq_filter(_SELDOM)
    finder.apply_word_filter(lambda w: len(w) < 3 or not w.isalpha() or f" {w} " in _EMPTY_WORDS)
    return list(finder.nbest(BigramAssocMeasures.likelihood_ratio, count))


def _character_phrases(texts: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Up to half of them triples, then pairs that are not part of a chosen triple."""
    from nltk.collocations import BigramAssocMeasures as Pairs
    from nltk.collocations import BigramCollocationFinder, TrigramCollocationFinder
    from nltk.collocations import TrigramAssocMeasures as Triples

    # A mark between the runs keeps a phrase from spanning two of them.
    runs = [f"{run}。" for text in texts for run in re.findall(f"[{_CJK}]+", text)]
    triples = TrigramCollocationFinder.from_words("".join(runs))
    pairs = BigramCollocationFinder(triples.word_fd, triples.bigram_fd)
    seen = triples.bigram_fd.copy()
    for finder in (triples, pairs):
        finder.apply_freq_filter(_SELDOM)
        finder.apply_word_filter(lambda c: c == "。" or c in _EMPTY_CHARACTERS)
    # A triple that is only one use among many of a pair within it is no phrase of its own.
    triples.apply_ngram_filter(lambda *t: 2 * triples.ngram_fd[t] < max(seen[t[:2]], seen[t[1:]]))
    phrases = list(triples.nbest(Triples.likelihood_ratio, count // 2))
    inside = {triple[n : n + 2] for triple in phrases for n in (0, 1)}
    rest = [pair for pair in pairs.nbest(Pairs.likelihood_ratio, 2 * count) if pair not in inside]
    return phrases + rest[: count - len(phrases)]


_PIECE = re.compile(f" ?[^\\W\\d_{_CJK}]+| ?\\d|\\s+|.", re.DOTALL)
_MAGIC = b"chatbench n-grams 1\n"
_TRAIN_CHARS = 2_000_000
_END = 256  # of the spelling of a piece, beside the 256 bytes
_BITS = 21  # of one id in a packed trigram
_MAX_SIZE = (1 << _BITS) - 2
LEAST_BYTES = 32  # of a shorter text the bits per byte say nothing


class NGramModel:
    """Trigrams over pieces, interpolated Kneser-Ney (Kneser and Ney 1995; Chen and Goodman 1999).

    A piece is a word with the space before it, a Chinese character, a digit, a mark, or a run of
    white space. Pieces seen once in training stand for all unknown ones, and a second trigram
    model, over the bytes of those, spells what is unknown; so every text has a probability, and
    bits per byte compare with those of any other model. Only the end of the text is not counted.
    """

    def __init__(self, pieces: Sequence[str], words: _KneserNey, letters: _KneserNey) -> None:
        self._pieces = list(pieces)
        self._ids = {piece: number for number, piece in enumerate(pieces, 1)}
        self._words, self._letters = words, letters

    @classmethod
    def train(cls, texts: Sequence[str], chars: int = _TRAIN_CHARS) -> NGramModel:
        """Learns from about `chars` characters, spread evenly over the texts."""
        cut = [_PIECE.findall(text) for text in sample(texts, chars)]
        counts = Counter(piece for pieces in cut for piece in pieces)
        known = sorted(piece for piece, count in counts.items() if count > 1)
        if len(known) > _MAX_SIZE:
            known = sorted(sorted(known, key=lambda piece: (-counts[piece], piece))[:_MAX_SIZE])
        ids = {piece: number for number, piece in enumerate(known, 1)}
        words = _KneserNey.train([[ids.get(p, 0) for p in pieces] for pieces in cut], len(ids) + 1)
        unknown = sorted(piece for piece in counts if piece not in ids)
        return cls(known, words, _KneserNey.train(map(_spelling, unknown), _END + 1))

    def bits(self, texts: Sequence[str]) -> Floats:
        """The bits of each text: minus log2 of its probability."""
        cut = [_PIECE.findall(text) for text in texts]
        ids = [[self._ids.get(piece, 0) for piece in pieces] for pieces in cut]
        found = self._words.bits(ids)
        spelled = [
            (number, _spelling(piece))
            for number, pieces in enumerate(cut)
            for piece in pieces
            if piece not in self._ids
        ]
        if spelled:
            owners = np.array([number for number, _ in spelled])
            extra = self._letters.bits([spelling for _, spelling in spelled])
            found += np.bincount(owners, weights=extra, minlength=len(texts))
        return found

    def bits_per_byte(self, text: str) -> float:
        """Bits of the text for each byte of its UTF-8; 0 for an empty text."""
        return float(self.bits([text])[0]) / max(_size(text), 1)

    def to_bytes(self) -> bytes:
        """A line that names the format, a line of JSON, and little-endian arrays."""
        parts = [
            part for model in (self._words, self._letters) for part in (model.keys, model.counts)
        ]
        head = msgspec.json.encode((self._pieces, list(map(len, parts))))
        return b"".join([_MAGIC, head, b"\n", *(part.astype("<u8").tobytes() for part in parts)])

    @classmethod
    def from_bytes(cls, data: bytes) -> NGramModel:
        """Raises IntegrityError for anything that `to_bytes` did not write."""
        try:
            if not data.startswith(_MAGIC):
                raise ValueError("it does not begin as one")
            start = data.index(b"\n", len(_MAGIC)) + 1
            head = data[len(_MAGIC) : start]
            pieces, lengths = msgspec.json.decode(head, type=tuple[list[str], list[int]])
            values = np.frombuffer(data, "<u8", offset=start).astype(np.uint64)
            if len(lengths) != 4 or sum(lengths) != len(values):
                raise ValueError("its arrays are cut off")
            parts = np.split(values, np.cumsum(lengths)[:-1])
            words = _KneserNey(parts[0], parts[1], len(pieces) + 1)
            return cls(pieces, words, _KneserNey(parts[2], parts[3], _END + 1))
        except (ValueError, msgspec.DecodeError) as error:
            raise IntegrityError(f"the n-gram model is damaged: {error}") from error


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _spelling(piece: str) -> list[int]:
    return [*piece.encode("utf-8", "surrogatepass"), _END]


class _Table(NamedTuple):
    """Counts of packed n-grams, sorted, and of their contexts: for each context how much it was
    followed by in all, and by how many different symbols."""

    keys: Ids
    counts: Floats
    contexts: Ids
    totals: Floats
    kinds: Floats
    discount: float

    def parts(self, keys: Ids, contexts: Ids) -> tuple[Floats, Floats]:
        """The discounted probability of each n-gram, and the mass left to the lower order."""
        count = _looked_up(self.keys, self.counts, keys)
        total = _looked_up(self.contexts, self.totals, contexts)
        kinds = _looked_up(self.contexts, self.kinds, contexts)
        seen = total > 0
        safe = np.where(seen, total, 1)
        own = np.where(seen, np.maximum(count - self.discount, 0) / safe, 0)
        return own, np.where(seen, self.discount * kinds / safe, 1)


def _table(keys: Ids, counts: Floats, shift: int) -> _Table:
    contexts, first = np.unique(keys >> np.uint64(shift), return_index=True)
    totals = np.add.reduceat(counts, first) if len(first) else np.zeros(0)
    kinds = np.diff(np.append(first, len(keys))).astype(float)
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    # Ney's estimate; where nothing stands once or twice it would be 0 or undefined.
    discount = min(max(once / (once + 2 * twice), 0.1), 0.95) if once else 0.5
    return _Table(keys, counts, contexts, totals, kinds, discount)


def _looked_up(keys: Ids, values: Floats, wanted: Ids) -> Floats:
    if not len(keys):
        return np.zeros(len(wanted))
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


class _KneserNey:
    """Interpolated Kneser-Ney of order 3 over the symbols 0 .. size-1.

    The lower orders count the contexts of a symbol, and the lowest leaves its discount to a
    uniform distribution: each symbol has a probability, and after any context they sum to one.
    """

    def __init__(self, keys: Ids, counts: Ids, size: int) -> None:
        self.keys, self.counts, self.size = keys, counts, size
        third = np.uint64((1 << 2 * _BITS) - 1)
        self.three = _table(keys, counts.astype(float), _BITS)
        pairs, kinds = np.unique(keys & third, return_counts=True)
        self.two = _table(pairs, kinds.astype(float), _BITS)
        singles, kinds = np.unique(pairs & np.uint64((1 << _BITS) - 1), return_counts=True)
        self.one = _table(singles, kinds.astype(float), _BITS)

    @classmethod
    def train(cls, sequences: Iterable[list[int]], size: int) -> _KneserNey:
        symbols, places, _ = _flat(sequences, size)
        keys, counts = np.unique(_packed(symbols, places, 3), return_counts=True)
        return cls(keys, counts.astype(np.uint64), size)

    def probabilities(self, symbols: Ids, places: npt.NDArray[np.int64]) -> Floats:
        """Of the symbol at each place after the two before it."""
        shift = np.uint64(_BITS)
        base: Floats = np.full(len(places), 1 / self.size)
        for order, table in ((1, self.one), (2, self.two), (3, self.three)):
            keys = _packed(symbols, places, order)
            own, left = table.parts(keys, keys >> shift)
            base = own + left * base
        return base

    def bits(self, sequences: Iterable[list[int]]) -> Floats:
        """Minus log2 of the probability of each sequence."""
        symbols, places, owners = _flat(sequences, self.size)
        bits = -np.log2(self.probabilities(symbols, places))
        # Each sequence is summed from its start on, whatever else is in the batch.
        sums: Floats = np.bincount(owners[:-1], bits, int(owners[-1])).astype(float)
        return sums


def _flat(
    sequences: Iterable[list[int]], size: int
) -> tuple[Ids, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All sequences one after the other, each behind two start symbols; the places of their own
    symbols; and the sequence of each place, with the number of sequences appended."""
    flat: list[int] = []
    lengths = []
    for sequence in sequences:
        flat += (size, size)
        flat += sequence
        lengths.append(len(sequence))
    sizes = np.array(lengths, np.int64)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    places = np.arange(len(owners)) + 2 * (owners + 1)
    return np.array(flat, np.uint64), places, np.append(owners, len(sizes))


def _packed(symbols: Ids, places: npt.NDArray[np.int64], order: int) -> Ids:
    keys = np.zeros(len(places), np.uint64)
    for back in range(order - 1, -1, -1):
        keys = (keys << np.uint64(_BITS)) | symbols[places - back]
    return keys


def stage(model: NGramModel, threshold_bits: float) -> Stage:
    """A stage that drops documents of more than `threshold_bits` bits per byte with
    Dropped("fluency", the bits); a text of fewer than 32 bytes passes."""
    return _Fluent(model, threshold_bits)


class _Fluent(msgspec.Struct, frozen=True):
    model: NGramModel
    threshold: float

    def __call__(self, documents: Sequence[Document]) -> tuple[list[Document | Dropped], Counts]:
        texts = [document.joined() for document in documents]
        counts: Counts = Counter()
        done: list[Document | Dropped] = []
        for document, text, bits in zip(documents, texts, self.model.bits(texts), strict=True):
            size = _size(text)
            if size >= LEAST_BYTES and bits / size > self.threshold:
                counts["fluency"] += 1
                done.append(Dropped("fluency", f"{bits / size:.3f} bits per byte"))
            else:
                done.append(document)
        return done, counts


def percentile_threshold(scores: Sequence[float], percentile: float) -> float:
    """The bits per byte above which at most `percentile` percent of the scores lie; infinite
    without scores."""
    if not len(scores):
        return float("inf")
    above = int(len(scores) * percentile / 100)
    return float(np.sort(np.asarray(scores, float))[len(scores) - 1 - above])
