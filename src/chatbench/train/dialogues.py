"""What a finetune learns from: corpus folders, or ones made from files behind the scenes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from chatbench import console
from chatbench.corpus.cache import preprocess_once
from chatbench.corpus.columns import NoColumn, check_columns, tag_columns
from chatbench.corpus.mixture import Mixture, Share
from chatbench.corpus.shards import Corpus, open_corpus
from chatbench.errors import IntegrityError, UsageError
from chatbench.model.folder import read_provenance, tokenizer_folder
from chatbench.settings import FinetuneSettings, PreprocessSettings
from chatbench.settings.base import replace
from chatbench.text.tokenizer import Tokenizer
from chatbench.train.run import CONFIG

# A share that whole texts miss by less than this is nothing to tell.
_NEAR = 0.9


class Source(NamedTuple):
    """A place named with -d; `share`: how much of the training tokens it makes, None: it is
    learned whole."""

    place: str
    share: float | None = None


def sources_of(data: Sequence[str]) -> list[Source]:
    """`old/:0.1` is a tenth of old/, unless there is something of just that name.

    Raises UsageError for shares that cannot be.
    """
    sources = [_source(text) for text in data]
    shares = [source.share for source in sources if source.share is not None]
    if len(shares) == len(sources):
        raise UsageError(
            "no data is named that is learned whole" if sources else "data is empty",
            hint="give one -d without a share",
        )
    if sum(shares) >= 1:
        raise UsageError(
            f"the shares add up to {sum(shares):g}, which leaves nothing for the rest",
            hint="give shares that add up to less than 1",
        )
    return sources


def _source(text: str) -> Source:
    place, _, last = text.rpartition(":")
    try:
        share = float(last)
    except ValueError:
        return Source(text)
    if not place or os.path.lexists(text):
        return Source(text)
    if not 0 < share < 1:
        raise UsageError(
            f"{text} does not exist, and {last} is no share", hint="a share lies between 0 and 1"
        )
    return Source(place, share)


def open_dialogues(
    settings: FinetuneSettings, tokenizer: Tokenizer, base: Path, place: Path
) -> Corpus:
    """The corpus folders named, or made from files and kept in `place`, as one corpus.

    Files are split as the base model's corpus was, so that what was held out there is held out
    here, unless the settings say otherwise. A column that becomes a tag need not be in all of
    them. Raises UsageError and IntegrityError for what does not fit, and as preprocess does.
    """
    whole: list[Corpus] = []
    shares: list[Share] = []
    sources = sources_of(settings.data)
    _check_fractions(settings, sources)
    wanted, there = tag_columns(settings.tag_column), Counter[str]()
    for number, source in enumerate(sources, 1):
        made = place / ("corpus" if number == 1 else f"corpus-{number}")
        # Without a config.toml it belongs to an attempt that never began, perhaps on other data.
        again = not (made.is_dir() and (place / CONFIG).is_file())
        if is_corpus(source.place):
            corpus = _fitting(open_corpus(Path(source.place)), settings, tokenizer)
            there.update({name: sum(values.values()) for name, values in corpus.tags().items()})
        else:
            if again:
                there += _make(settings, source.place, base, made, alone=len(sources) == 1)
            else:  # judged when the run began
                there.update(wanted)
            corpus = open_corpus(made)
        if source.share is None:
            whole.append(corpus)
        else:
            shares.append(Share(corpus, source.share))
    _check_tags(wanted, there, [source.place for source in sources])
    if len(whole) == 1 and not shares:
        return whole[0]
    mixture = Mixture(whole, shares, settings.seed)
    _tell_scarce(mixture)
    return mixture


def _make(
    settings: FinetuneSettings, data: str, base: Path, made: Path, *, alone: bool
) -> Counter[str]:
    """Preprocess a file; its columns, as far as they are known. Raises NoColumn where it lacks one
    and is alone."""
    given = PreprocessSettings(
        inputs=[data],
        out=str(made),
        tokenizer=str(tokenizer_folder(base)),
        template=settings.template,
        tag_column=tag_columns(settings.tag_column),
        overwrite=True,
        profile=False,
        **read_provenance(base).get("split", {}) | _fractions(settings),
    )
    try:
        preprocess_once(given)
        return Counter(given.tag_column)
    except NoColumn as lacking:
        if alone:
            raise
        here = [column for column in given.tag_column if column not in lacking.missing]
        preprocess_once(replace(given, tag_column=here))
        return Counter(lacking.there)


def _fractions(settings: FinetuneSettings) -> dict[str, float]:
    """The shares to hold out, where they are given."""
    given = {"val_fraction": settings.val_fraction, "test_fraction": settings.test_fraction}
    return {name: share for name, share in given.items() if share is not None}


def _check_fractions(settings: FinetuneSettings, sources: Sequence[Source]) -> None:
    """Raises UsageError where nothing is split."""
    given = [f"--{name.replace('_', '-')}" for name in _fractions(settings)]
    if given and all(is_corpus(source.place) for source in sources):
        raise UsageError(
            f"{given[0]} says nothing of a corpus folder: it is split when it is made",
            hint="give it to preprocess, or the .jsonl itself",
        )


def _check_tags(wanted: Sequence[str], there: Counter[str], places: Sequence[str]) -> None:
    """Raises UsageError for columns that none of the data have."""
    try:
        check_columns(wanted, there)
    except NoColumn as lacking:
        if not any(map(is_corpus, places)):
            raise
        raise UsageError(
            f"{lacking}; of a corpus folder tags are settled when it is made",
            hint="give --tag-column to preprocess, or the .jsonl itself",
        ) from None


def _fitting(corpus: Corpus, settings: FinetuneSettings, tokenizer: Tokenizer) -> Corpus:
    """The same, if it is written in the model's tokens and turns."""
    if corpus.tokenizer.digest != tokenizer.digest:
        given = corpus.manifest.info["settings"].get("template")
        way = f"preprocess it with --tokenizer {settings.model}"
        if settings.template:
            way += f" --template {settings.template}"
        elif given:  # with it the model gets the control tokens that the corpus has
            way = f"finetune with --template {given} as preprocess did"
        raise IntegrityError(
            f"{corpus.folder} was made with another tokenizer than {settings.model}",
            hint=f"give the .jsonl itself, or {way}",
        )
    if settings.template and corpus.tokenizer.template.source != tokenizer.template.source:
        raise UsageError(
            f"the conversations of {corpus.folder} are written in another chat template",
            hint=f"give the .jsonl itself, or preprocess with --template {settings.template}",
        )
    return corpus


def _tell_scarce(mixture: Mixture) -> None:
    for folder, wanted, got in mixture.shares():
        if got < _NEAR * wanted:
            console.notice(
                f"{folder} has too few tokens for a share of {wanted:g}: it makes {got:.1%} of the "
                "training tokens"
            )


def is_corpus(data: str | Path) -> bool:
    """Whether this is a folder that preprocess made."""
    return (Path(data) / "manifest.json").is_file()
