"""What the report says about a finished corpus, gathered from the steps that made it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from chatbench.corpus.cleaning.language import languages
from chatbench.corpus.comparing import Compared
from chatbench.corpus.document import Document
from chatbench.corpus.encoding import BucketResult
from chatbench.corpus.fluent import sample_documents
from chatbench.corpus.ledger import Ledger
from chatbench.corpus.plan import Job
from chatbench.corpus.reports.facts import (
    ClusterFacts,
    ContaminationFacts,
    CorpusFacts,
    CutWord,
    DuplicateFacts,
    FertilityFacts,
    LedgerFacts,
    OverlapFacts,
    PersonalFacts,
    SourceFacts,
    SplitFacts,
    TokenizerFacts,
    summarise_lengths,
)
from chatbench.corpus.shards import TokenSplit
from chatbench.corpus.sources.inputs import written
from chatbench.corpus.split import SPLITS
from chatbench.settings import PreprocessSettings
from chatbench.text.tokenizer import Tokenizer
from chatbench.text.vocabulary import fertility

_SAMPLE_DOCUMENTS = 1000
_SAMPLE_CHARACTERS = 120_000
_PROFILED_CHARACTERS = 2_000_000
_LISTED_SOURCES = 1000
_LISTED_TAGS = 20
_PHRASES = 20
_PHRASES_FROM = 200_000
_SENTENCES_FROM = 3000
_SENTENCE_TEXTS = 60
_JUDGED_CHARACTERS = 500_000


def describe(
    settings: PreprocessSettings,
    folder: Path,
    work: Path,
    job: Job,
    ledger: Ledger,
    compared: Compared,
    results: Sequence[BucketResult],
    tokenizer: Tokenizer,
) -> CorpusFacts:
    """Everything but the fingerprint."""
    counts = _merged(results)
    sample = sample_documents(work, job, _SAMPLE_CHARACTERS, _SAMPLE_DOCUMENTS)
    total = ledger.total()
    lengths = [TokenSplit(folder / split).lengths for split in SPLITS]
    facts = CorpusFacts(
        settings=recorded(settings),
        sources=[
            SourceFacts(s.path, s.bytes, s.account.read, s.verdict)
            for s in ledger.sources[:_LISTED_SOURCES]
        ],
        files=len(ledger.sources),
        ledger=LedgerFacts(
            total.read, total.kept, dict(sorted(total.dropped.items())),
            dict(sorted(total.failed.items())), ledger.examples,
        ),
        changed=dict(sorted(ledger.counts.get("repair", Counter()).items())),
        languages=_ranked(counts["language"]),
        lengths=summarise_lengths(np.concatenate(lengths)),
        characters=sum(result.characters for result in results),
        turns={int(turns): n for turns, n in sorted(counts["turns"].items(), key=_by_number)},
        shapes=_ranked(counts["shape"]),
        roles=_ranked(counts["role"]),
        duplicates=DuplicateFacts(
            settings.dedup, total.dropped["duplicate"], total.dropped["near-duplicate"],
            settings.near_threshold if settings.dedup == "near" else None,
            compared.cluster_sizes, [ClusterFacts(*found) for found in compared.largest],
        ),
        splits={
            split: SplitFacts(
                *(sum(getattr(r.splits[split], f) for r in results)
                  for f in ("documents", "tokens", "supervised"))
            )
            for split in SPLITS
        },
        contamination=ContaminationFacts(
            settings.contamination,
            {split: OverlapFacts(*pair) for split, pair in compared.contamination.items()},
            compared.contamination_rate, recorded(settings)["against"],
            total.dropped["contaminated"],
        ),
        pii=PersonalFacts(settings.pii, dict(sorted(ledger.counts.get("pii", {}).items()))),
        tags={
            aspect.removeprefix("tag "): dict(list(_ranked(counter).items())[:_LISTED_TAGS])
            for aspect, counter in counts.items()
            if aspect.startswith("tag ")
        },
        tokenizer=_tokenizer_facts(tokenizer, sample, results),
    )  # fmt: skip
    return _profiled(facts, work, job) if settings.profile else facts


def _by_number(item: tuple[str, int]) -> int:
    return int(item[0])


def storable(settings: PreprocessSettings) -> dict[str, Any]:
    """The settings as JSON can hold them: bytes of paths that are not UTF-8 as `\\xff`."""

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(entry) for entry in value]
        if not isinstance(value, str):
            return value
        if settings.pii == "mask":
            from chatbench.corpus.cleaning.pii.everywhere import masked_value

            return masked_value(written(value))
        return written(value)

    return {name: clean(value) for name, value in msgspec.to_builtins(settings).items()}


def recorded(settings: PreprocessSettings) -> dict[str, Any]:
    """What decides the corpus: everything but where it lies and how it is made."""
    aside = ("out", "overwrite", "workers", "strict", "show")
    told = {name: value for name, value in storable(settings).items() if name not in aside}
    # The order in which files and languages are named decides nothing.
    return told | {name: sorted(told[name]) for name in ("inputs", "against", "block", "lang")}


def _ranked(counter: Counter[str]) -> dict[str, int]:
    """Most frequent first, ties by name."""
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))


class _Merged(dict[str, Counter[str]]):
    def __missing__(self, key: str) -> Counter[str]:
        return Counter()


def _merged(results: Sequence[BucketResult]) -> _Merged:
    merged = _Merged()
    for result in results:
        for aspect, counter in result.counts.items():
            merged.setdefault(aspect, Counter()).update(counter)
    return merged


def by_language(documents: Sequence[Document]) -> dict[str, list[str]]:
    """The texts of each language, most texts first."""
    texts = [document.joined() for document in documents]
    groups: dict[str, list[str]] = {}
    for text, language in zip(texts, languages(texts), strict=True):
        groups.setdefault(language, []).append(text)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def _tokenizer_facts(
    tokenizer: Tokenizer, sample: Sequence[Document], results: Sequence[BucketResult]
) -> TokenizerFacts:
    rows = fertility(tokenizer, by_language(sample))
    return TokenizerFacts(
        tokenizer.vocab_size,
        tokenizer.digest,
        [
            FertilityFacts(
                row.language, row.bytes_per_token, row.tokens_per_word,
                "character" if row.language in ("zh", "ja") else "word", row.texts,
            )
            for row in rows
        ],
        _vocabulary_use(tokenizer, results),
        [CutWord(word, pieces, row.language) for row in rows for word, pieces in row.worst_words],
    )  # fmt: skip


def _vocabulary_use(tokenizer: Tokenizer, results: Sequence[BucketResult]) -> float:
    """Share of the entries, control tokens aside, that occur in the training documents."""
    seen = np.zeros(tokenizer.vocab_size, bool)
    for result in results:
        bits = np.frombuffer(result.seen, np.uint8)
        seen |= np.unpackbits(bits, count=tokenizer.vocab_size).astype(bool)
    plain = np.ones(tokenizer.vocab_size, bool)
    plain[sorted(tokenizer.control_ids)] = False
    return float(seen[plain].mean()) if plain.any() else 0.0


def _profiled(facts: CorpusFacts, work: Path, job: Job) -> CorpusFacts:
    """Collocations, and the n-gram model that every language model should beat."""
    from chatbench.corpus.cleaning.fluency import NGramModel, collocations, sentences
    from chatbench.corpus.cleaning.fluency import sample as part_of

    sample = sample_documents(work, job, _PROFILED_CHARACTERS)
    groups = by_language(sample)
    phrases = {
        language: ["".join(p) if language in ("zh", "ja") else " ".join(p) for p in found]
        for language, texts in groups.items()
        if (found := collocations(part_of(texts, _PHRASES_FROM), _PHRASES, language))
    }
    means = {}
    for language, texts in groups.items():
        # A huge text would keep Punkt's regular expressions busy for long.
        heads = [text[:_SENTENCES_FROM] for text in texts[:_SENTENCE_TEXTS]]
        spoken = [s.strip() for parts in sentences(heads) for s in parts if s.strip()]
        if spoken:
            means[language] = sum(map(len, spoken)) / len(spoken)
    model = NGramModel.train([document.joined() for document in sample])
    baseline = {}
    for fate, split in enumerate(SPLITS[1:], 1):
        held = sample_documents(work, job, _JUDGED_CHARACTERS, fate=fate)
        texts = [document.joined() for document in held]
        size = sum(len(text.encode()) for text in texts)
        if size:
            baseline[split] = float(model.bits(texts).sum()) / size
    return msgspec.structs.replace(
        facts, collocations=phrases, sentence_lengths=means, baseline=baseline
    )
