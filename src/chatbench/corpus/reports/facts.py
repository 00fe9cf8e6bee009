"""What is known about a corpus, as plain values: facts.json, and what the report is drawn from.

Every field may be left at its default; the report and the summary then leave its part out. All
numbers are counts of documents unless their name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from chatbench.errors import IntegrityError
from chatbench.storage import MANIFEST

FACTS = "facts.json"
CONTEXT_LIMITS = (512, 1024, 2048)


class SourceFacts(msgspec.Struct, frozen=True):
    """One file of the input; `verdict` is the reader's word on its form and encoding."""

    path: str
    bytes: int = 0
    records: int = 0
    verdict: str = ""


class LedgerFacts(msgspec.Struct, frozen=True):
    """read = kept + all dropped + all failed. `examples`: by reason, up to five lines of
    `source: detail`."""

    read: int = 0
    kept: int = 0
    dropped: dict[str, int] = {}
    failed: dict[str, int] = {}
    examples: dict[str, list[str]] = {}


class LengthFacts(msgspec.Struct, frozen=True):
    """Tokens per document: counts[i] have from edges[i] to below edges[i + 1] tokens.

    `longer_than`: context limit in tokens → documents that do not fit into it.
    """

    edges: list[int] = []
    counts: list[int] = []
    median: float = 0.0
    p95: float = 0.0
    max: int = 0
    longer_than: dict[int, int] = {}


class ClusterFacts(msgspec.Struct, frozen=True):
    """A group of near-duplicates, with the start of one of them."""

    size: int
    excerpt: str = ""


class DuplicateFacts(msgspec.Struct, frozen=True):
    """`mode` is the --dedup setting; cluster_sizes: documents in a group → number of groups."""

    mode: str = "off"
    exact: int = 0
    near: int = 0
    threshold: float | None = None
    cluster_sizes: dict[int, int] = {}
    largest: list[ClusterFacts] = []


class SplitFacts(msgspec.Struct, frozen=True):
    """One of train, val, test; `supervised` counts the tokens that are learned."""

    documents: int = 0
    tokens: int = 0
    supervised: int = 0


class OverlapFacts(msgspec.Struct, frozen=True):
    """Held-out documents, and how many of them share a 13-gram with training."""

    documents: int = 0
    overlapping: int = 0


class ContaminationFacts(msgspec.Struct, frozen=True):
    """`rate`: share of the held-out 13-grams looked at. `against`: the user's test files;
    `against_dropped`: documents that share a 13-gram with them."""

    mode: str = "off"
    held_out: dict[str, OverlapFacts] = {}
    rate: float = 1.0
    against: list[str] = []
    against_dropped: int = 0


class PersonalFacts(msgspec.Struct, frozen=True):
    """Items of personal data by type; `mode` is the --pii setting."""

    mode: str = "off"
    counts: dict[str, int] = {}


class FertilityFacts(msgspec.Struct, frozen=True):
    """How finely the tokenizer cuts one language; `unit` is what `tokens_per_unit` is per."""

    language: str
    bytes_per_token: float
    tokens_per_unit: float = 0.0
    unit: str = "word"
    texts: int = 0


class CutWord(msgspec.Struct, frozen=True):
    """A frequent word, and the number of tokens it is cut into."""

    word: str
    tokens: int
    language: str = ""


class TokenizerFacts(msgspec.Struct, frozen=True):
    """`vocabulary_use`: share (0..1) of the entries that occur in the training text."""

    vocab_size: int = 0
    digest: str = ""
    fertility: list[FertilityFacts] = []
    vocabulary_use: float | None = None
    worst_words: list[CutWord] = []


class CorpusFacts(msgspec.Struct, frozen=True):
    """Everything the report shows. JSON-serialisable; lies in a corpus folder as facts.json.

    `files`: how many files were read, when `sources` lists only the first · `changed`: what a
    repair did → documents · `languages`, `shapes`: name → documents · `roles`: role → turns ·
    `turns`: turns of a conversation → conversations · `tags`: column → value → documents ·
    `collocations`: language → phrases · `sentence_lengths`: language → mean characters of a
    sentence as Punkt finds them · `baseline`: split → bits per byte of an n-gram model of
    the training part.
    """

    name: str = ""
    settings: dict[str, Any] = {}
    sources: list[SourceFacts] = []
    files: int = 0
    ledger: LedgerFacts = LedgerFacts()
    changed: dict[str, int] = {}
    languages: dict[str, int] = {}
    lengths: LengthFacts = LengthFacts()
    characters: int = 0
    turns: dict[int, int] = {}
    shapes: dict[str, int] = {}
    roles: dict[str, int] = {}
    duplicates: DuplicateFacts = DuplicateFacts()
    splits: dict[str, SplitFacts] = {}
    contamination: ContaminationFacts = ContaminationFacts()
    pii: PersonalFacts = PersonalFacts()
    tags: dict[str, dict[str, int]] = {}
    tokenizer: TokenizerFacts = TokenizerFacts()
    collocations: dict[str, list[str]] = {}
    sentence_lengths: dict[str, float] = {}
    baseline: dict[str, float] = {}
    fingerprint: str = ""

    def file_count(self) -> int:
        """How many files were read."""
        return max(self.files, len(self.sources))

    def total(self) -> SplitFacts:
        """All splits together."""
        rows = self.splits.values()
        return SplitFacts(
            sum(row.documents for row in rows),
            sum(row.tokens for row in rows),
            sum(row.supervised for row in rows),
        )

    def holds_conversations(self) -> bool:
        """Whether there are replies to finetune on."""
        total = self.total()
        return bool(sum(self.turns.values())) or 0 < total.supervised < total.tokens


def summarise_lengths(lengths: npt.NDArray[np.integer[Any]]) -> LengthFacts:
    """LengthFacts of the token counts [D] of all documents, in half-octave bins (1, 2, 3, 4, 6,
    8, 12, ...), so that every power of two is an edge."""
    if not len(lengths):
        return LengthFacts()
    longest = int(lengths.max())
    edges = [0, 1]
    while edges[-1] <= longest:
        power = 1 << (edges[-1].bit_length() - 1)
        edges.append(edges[-1] + (max(power // 2, 1) if edges[-1] == power else power // 2))
    counts = np.histogram(lengths, bins=np.asarray(edges))[0].tolist()
    first = next(position for position, count in enumerate(counts) if count)
    return LengthFacts(
        edges=edges[first:],
        counts=counts[first:],
        median=float(np.median(lengths)),
        p95=float(np.percentile(lengths, 95)),
        max=longest,
        longer_than={limit: int((lengths > limit).sum()) for limit in CONTEXT_LIMITS},
    )


def facts_of(folder: Path, info: Mapping[str, Any]) -> CorpusFacts:
    """The facts of a corpus folder: its facts.json, or for older folders what the manifest's
    `info` tells. Raises IntegrityError when they cannot be read."""
    path = folder / FACTS
    try:
        if path.is_file():
            return msgspec.json.decode(path.read_bytes(), type=CorpusFacts)
        return msgspec.convert({"name": folder.absolute().name, **info}, CorpusFacts)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        where = path if path.is_file() else folder / MANIFEST
        raise IntegrityError(f"{where} cannot be read: {error}", hint="make it again") from error
