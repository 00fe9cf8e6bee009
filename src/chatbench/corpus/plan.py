"""The decided corpus: which documents are in it, in which order and split, and where they lie.

Lies in the work folder as plain files, so that every task of the later steps can start from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from chatbench.corpus.chunks import Entries, read_documents
from chatbench.corpus.document import Document
from chatbench.corpus.split import SPLITS
from chatbench.settings import PreprocessSettings

BUCKET_BYTES = 1 << 23
_PLAN = "plan.npy"
_JOB = "job.json"
_READ_AT_ONCE = 512

# What becomes of a document: its split by number, or one of these.
DUPLICATE, NEAR_DUPLICATE, SHARED, CLUMSY = 3, 4, 5, 6
REASONS = {
    DUPLICATE: "duplicate",
    NEAR_DUPLICATE: "near-duplicate",
    SHARED: "shared with held-out",
    CLUMSY: "not fluent",
}


class Job(msgspec.Struct):
    """What every task needs to know; `buckets` are ranges of the plan."""

    settings: PreprocessSettings
    chunks: list[str] = []
    buckets: list[tuple[int, int]] = []


def write_job(folder: Path, job: Job) -> None:
    # The standard library's JSON, because a path may hold bytes that are not UTF-8.
    (folder / _JOB).write_text(json.dumps(msgspec.to_builtins(job)), encoding="ascii")


def read_job(folder: Path) -> Job:
    return msgspec.convert(json.loads((folder / _JOB).read_bytes()), Job)


def write_plan(folder: Path, entries: Entries) -> None:
    """`entries` in digest order with their fates."""
    np.save(folder / _PLAN, entries, allow_pickle=False)


def cut_buckets(entries: Entries) -> list[tuple[int, int]]:
    """Ranges of about BUCKET_BYTES of documents: what one task holds, and one shard file."""
    if not len(entries):
        return []
    filled = np.cumsum(entries["length"], dtype=np.int64)
    count = max(1, round(int(filled[-1]) / BUCKET_BYTES))
    borders = np.searchsorted(filled, np.arange(1, count) * (int(filled[-1]) / count))
    cuts = sorted({0, *borders.tolist(), len(entries)})
    return list(pairwise(cuts))


class Bucket:
    """The documents of one range of the plan."""

    def __init__(self, folder: Path, job: Job, number: int) -> None:
        begin, end = job.buckets[number]
        plan = np.load(folder / _PLAN, mmap_mode="r", allow_pickle=False)
        self.entries: Entries = np.array(plan[begin:end])
        self._folder = folder
        self._chunks = job.chunks

    def batches(self, *fates: int) -> Iterator[tuple[npt.NDArray[Any], list[Document]]]:
        """Documents with one of these fates, in order, with their places in the bucket."""
        places = np.flatnonzero(np.isin(self.entries["fate"], np.array(fates, np.uint8)))
        for start in range(0, len(places), _READ_AT_ONCE):
            some = places[start : start + _READ_AT_ONCE]
            yield some, list(read_documents(self._folder, self._chunks, self.entries[some]))


def count_fates(entries: Entries) -> dict[str, int]:
    """Documents by split and by the reasons of this step."""
    counts = np.bincount(entries["fate"], minlength=max(REASONS) + 1)
    names = {**dict(enumerate(SPLITS)), **REASONS}
    return {name: int(counts[fate]) for fate, name in names.items()}
