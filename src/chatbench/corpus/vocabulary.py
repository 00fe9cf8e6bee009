"""The corpus's tokenizer: opened, extended, or trained on the training documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chatbench import console
from chatbench.corpus.crew import Crew
from chatbench.corpus.plan import Bucket, Job, read_job
from chatbench.errors import UsageError
from chatbench.hub import fetch, is_hub_name
from chatbench.settings import PreprocessSettings
from chatbench.text.bpe_training import (
    WordCounts,
    count_in_runs,
    load_word_counts,
    merge_word_counts,
)
from chatbench.text.new_tokens import with_new_tokens
from chatbench.text.tokenizer import Tokenizer, open_tokenizer, train_from_counts
from chatbench.text.tokenizer_files import TOKENIZER_FILE
from chatbench.text.vocabulary import count_for, extend_tokenizer


def check_tokenizer(settings: PreprocessSettings) -> None:
    """Whether --tokenizer can be opened and, if wanted, extended: an answer before any work.

    Raises UsageError, IntegrityError."""
    if settings.tokenizer is None:
        if settings.template is not None:
            raise UsageError(
                "--template is for the tokenizer of another model",
                hint="name one with --tokenizer; one trained here gets ChatML",
            )
        return
    base = open_given(settings.tokenizer, settings.template)
    if settings.template is not None:
        base.template  # noqa: B018  says at once what is wrong with it
    if settings.extend_vocab:
        extend_tokenizer(base, [], settings.vocab_size)


def corpus_tokenizer(settings: PreprocessSettings, work: Path, job: Job, crew: Crew) -> Tokenizer:
    """What the settings ask for. Raises UsageError, IntegrityError."""
    base = None
    if settings.tokenizer is not None:
        base = open_given(settings.tokenizer, settings.template, fetched=True)
    if base is not None and not settings.extend_vocab:
        return base
    verb = "training" if base is None else "extending"
    console.say(f"{verb} a tokenizer to {settings.vocab_size:,} entries")
    words = _count(work, job, crew)
    if base is None:
        trained = train_from_counts(words, settings.vocab_size)
        if trained.vocab_size < settings.vocab_size:
            console.say(f"the text gave no more than {trained.vocab_size:,} entries")
        return trained
    return extend_tokenizer(base, words, settings.vocab_size)


def _count(work: Path, job: Job, crew: Crew) -> WordCounts:
    numbers = range(len(job.buckets))
    runs = list(crew.run("chatbench.corpus.vocabulary:count_bucket", str(work), numbers))
    paths = [work / f"words-{n:05d}-{run}" for n in numbers for run in range(runs[n])]
    return merge_word_counts([load_word_counts(path) for path in paths])


def count_bucket(folder: str, number: int) -> int:
    """Task: count the words of one bucket's training documents into files; returns how many."""
    work = Path(folder)
    texts = _training_texts(work, number)
    given = read_job(work).settings.tokenizer
    base = None if given is None else open_given(given, fetched=True)
    runs = count_in_runs(texts) if base is None else [count_for(base, texts)]
    run = -1
    for run, words in enumerate(runs):
        words.save(work / f"words-{number:05d}-{run}")
    return run + 1


def _training_texts(work: Path, number: int) -> Iterator[str]:
    for _, documents in Bucket(work, read_job(work), number).batches(0):
        for document in documents:
            yield from document.texts()


def open_given(name: str, template: str | None = None, *, fetched: bool = False) -> Tokenizer:
    """The tokenizer of a corpus, run or model folder, of hf://owner/name, or a tokenizer.json;
    `template` takes the place of its own chat template, with the control tokens it lacks for that.
    What was `fetched` before is opened without connecting.

    Raises UsageError, IntegrityError, EnvironmentFault (no network).
    """
    return with_new_tokens(_open_given(name, template, fetched=fetched))[0]


def _open_given(name: str, template: str | None, *, fetched: bool) -> Tokenizer:
    hub = is_hub_name(name)
    place = fetch(name, weights=False, connect=not fetched) if hub else Path(name)
    if place.is_file() and place.name == TOKENIZER_FILE:
        return open_tokenizer(place, template)
    if not place.is_dir():
        raise UsageError(f"{place} does not exist", hint="name a model, run or corpus folder")
    places = [place / "tokenizer", place / "model"]
    places += sorted(place.glob("checkpoints/step-*/model"))[-1:]
    return open_tokenizer(next((found for found in places if found.is_dir()), place), template)
