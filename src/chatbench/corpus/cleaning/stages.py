"""Which stages the settings ask for, in the order in which documents meet them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from chatbench import console
from chatbench.corpus.document import Counts, Document, Dropped, Stage
from chatbench.settings import PreprocessSettings
from chatbench.text.tags import control_text, said


def make_stages(
    settings: PreprocessSettings, said: Callable[[str], None] = console.notice
) -> list[tuple[str, Stage]]:
    """Name and function of each stage. Raises UsageError for a missing package, file or word.

    Repair comes first, so that every other stage sees clean text; personal data comes last of
    those that read the text, so that what was masked is what is compared, split and stored. `said`
    is told what of the lists and test files could not be used.
    """
    stages: list[tuple[str, Stage]] = []
    if settings.repair:
        from chatbench.corpus.cleaning.repair import ready, repair

        ready()
        stages.append(("repair", repair))
    stages.append(("empty", drop_empty))
    if settings.lang:
        from chatbench.corpus.cleaning.language import keep

        stages.append(("language", keep(_words(settings.lang))))
    if settings.quality:
        from chatbench.corpus.cleaning.quality import quality

        stages.append(("quality", quality))
    if settings.block:
        from chatbench.corpus.cleaning.blocklist import block

        stages.append(("block", block(settings.block, said)))
    if settings.screen is not None:
        from chatbench.corpus.cleaning.screening import screen

        stages.append(("screen", screen(settings.screen)))
    if settings.against:
        from chatbench.corpus.cleaning.contamination import against

        stages.append(("against", against(settings.against, said)))
    if settings.pii != "off":
        from chatbench.corpus.cleaning.pii import scrub

        stages.append(("pii", scrub(settings.pii)))
    return stages


def _words(given: Sequence[str]) -> list[str]:
    """`["en,zh", "de"]` → en, zh, de."""
    return [word.strip() for entry in given for word in entry.split(",") if word.strip()]


def drop_empty(documents: Sequence[Document]) -> tuple[list[Document | Dropped], Counts]:
    """Leave out documents in which there is nothing but white space."""
    results: list[Document | Dropped] = [
        Dropped("empty") if document.is_empty() else document for document in documents
    ]
    return results, Counter()


def tagged(document: Document, columns: Sequence[str], dropout: float, digest: bytes) -> Document:
    """The document with its tag columns as control text, `style: formal` a line.

    A column is left out for good with probability `dropout`, decided by content and column alone.
    """
    import hashlib

    import msgspec

    kept = {}
    for column in columns:
        chance = hashlib.sha256(digest + column.encode()).digest()[:8]
        value = tag_value(document, column)
        if value is not None and int.from_bytes(chance, "big") >= dropout * 2**64:
            kept[column] = value
    control = control_text(kept)
    return msgspec.structs.replace(document, control=control) if control else document


def tag_value(document: Document, column: str) -> str | None:
    """What a column says, on one line; None where it says nothing or is no plain value."""
    return said(document.meta.get(column))
