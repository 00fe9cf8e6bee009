"""What the training split shares with validation and test, counted or left out, bucket by bucket.

The tasks hand arrays to each other as files in the work folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from chatbench import console
from chatbench.corpus.chunks import Entries
from chatbench.corpus.cleaning.contamination import HELD_OUT, HeldOutGrams, tested_text
from chatbench.corpus.crew import Crew
from chatbench.corpus.plan import SHARED, Bucket, Job, read_job
from chatbench.errors import DataError
from chatbench.settings import PreprocessSettings

if TYPE_CHECKING:
    from chatbench.corpus.comparing import Compared

_HERE = "chatbench.corpus.leaks"


class Kept(msgspec.Struct):
    """Which share of the grams a HeldOutGrams on disk kept."""

    rate: float


def find_leaks(
    settings: PreprocessSettings,
    work: Path,
    job: Job,
    crew: Crew,
    entries: Entries,
    compared: Compared,
) -> None:
    """Fill in `compared.contamination`; with --contamination drop mark what shares a gram.

    Raises DataError when that leaves nothing to train on."""
    numbers = range(len(job.buckets))
    merged = HeldOutGrams()
    for number, answer in enumerate(crew.run(f"{_HERE}:gather", str(work), numbers)):
        merged.merge(_load(work, f"grams-{number}", msgspec.convert(answer, Kept).rate))
    compared.contamination_rate = merged.rate
    _save(work, "held-out", merged)
    seen = merged.no_marks()
    for number, _ in enumerate(crew.run(f"{_HERE}:compare", str(work), _asked(numbers, merged))):
        seen |= np.load(work / f"seen-{number}.npy", allow_pickle=False)
        if settings.contamination == "drop":
            begin = job.buckets[number][0]
            shared = np.load(work / f"shared-{number}.npy", allow_pickle=False)
            entries["fate"][begin + shared] = SHARED
    if np.any(entries["fate"] == SHARED) and not np.any(entries["fate"] == 0):
        raise DataError(
            "every training document shares 13 words in a row with validation or test, so "
            "--contamination drop leaves nothing to train on",
            hint="only count them: --contamination report",
        )
    np.save(work / "seen.npy", seen, allow_pickle=False)
    sums = np.zeros((len(HELD_OUT), 2), np.int64)
    for answer in crew.run(f"{_HERE}:count", str(work), _asked(numbers, merged)):
        sums += np.asarray(answer, np.int64)
    compared.contamination = {
        split: (int(sums[n, 0]), int(sums[n, 1])) for n, split in enumerate(HELD_OUT)
    }
    found = sum(pair[1] for pair in compared.contamination.values())
    if found and settings.contamination == "report":
        console.notice(
            f"{found:,} held-out documents share 13 words (Chinese: characters) in a row with "
            "training; --contamination drop leaves those training documents out"
        )


def _asked(numbers: range, grams: HeldOutGrams) -> list[tuple[int, float]]:
    return [(number, grams.rate) for number in numbers]


def _save(work: Path, name: str, grams: HeldOutGrams) -> None:
    np.save(work / f"{name}.hashes.npy", grams.hashes, allow_pickle=False)
    np.save(work / f"{name}.marks.npy", grams.marks, allow_pickle=False)


def _load(work: Path, name: str, rate: float) -> HeldOutGrams:
    arrays: list[npt.NDArray[Any]] = [
        np.load(work / f"{name}.{part}.npy", allow_pickle=False) for part in ("hashes", "marks")
    ]
    return HeldOutGrams.of(arrays[0], arrays[1], rate)


def gather(folder: str, number: int) -> Kept:
    """Task: the 13-grams of one bucket's held-out documents."""
    work = Path(folder)
    grams = HeldOutGrams()
    for split in range(len(HELD_OUT)):
        for _, documents in Bucket(work, read_job(work), number).batches(1 + split):
            grams.add([tested_text(document) for document in documents], split)
    _save(work, f"grams-{number}", grams)
    return Kept(grams.rate)


def compare(folder: str, argument: tuple[int, float]) -> None:
    """Task: which training documents of a bucket hold such grams, and which grams they hold."""
    work = Path(folder)
    number, rate = argument
    grams = _load(work, "held-out", rate)
    seen = grams.no_marks()
    shared: list[npt.NDArray[Any]] = [np.zeros(0, np.int64)]
    for places, documents in Bucket(work, read_job(work), number).batches(0):
        found = grams.overlap([tested_text(document) for document in documents], seen)
        shared.append(places[found.any(axis=1)])
    np.save(work / f"seen-{number}.npy", seen, allow_pickle=False)
    np.save(work / f"shared-{number}.npy", np.concatenate(shared), allow_pickle=False)


def count(folder: str, argument: tuple[int, float]) -> list[tuple[int, int]]:
    """Task: held-out documents of a bucket by split, and how many of them training shares."""
    work = Path(folder)
    number, rate = argument
    grams = _load(work, "held-out", rate)
    seen = np.load(work / "seen.npy", allow_pickle=False)
    sums = []
    for split in range(len(HELD_OUT)):
        total = found = 0
        for _, documents in Bucket(work, read_job(work), number).batches(1 + split):
            texts = [tested_text(document) for document in documents]
            total += len(texts)
            found += int(grams.overlapping(texts, seen).sum())
        sums.append((total, found))
    return sums
