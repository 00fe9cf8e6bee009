"""Documents that read like nothing else in the corpus, found by an n-gram model of the corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chatbench.corpus.chunks import Entries
from chatbench.corpus.cleaning.fluency import LEAST_BYTES, NGramModel, percentile_threshold
from chatbench.corpus.crew import Crew
from chatbench.corpus.document import Document
from chatbench.corpus.plan import Bucket, Job, read_job

_MODEL = "fluency.model"
_TRAIN_CHARACTERS = 2_000_000


def clumsy(
    percentile: float, work: Path, job: Job, crew: Crew, entries: Entries
) -> tuple[npt.NDArray[Any], float]:
    """Places in the plan of the least fluent `percentile` percent of its documents, and the bits
    per byte above which they lie."""
    model = NGramModel.train([d.joined() for d in sample_documents(work, job, _TRAIN_CHARACTERS)])
    (work / _MODEL).write_bytes(model.to_bytes())
    numbers = range(len(job.buckets))
    scores = np.full(len(entries), -np.inf)
    for number, _ in enumerate(crew.run("chatbench.corpus.fluent:score", str(work), numbers)):
        begin, end = job.buckets[number]
        scores[begin:end] = np.load(_scores_path(work, number), allow_pickle=False)
    judged = scores[np.isfinite(scores)]
    limit = percentile_threshold(judged, percentile)
    return np.flatnonzero(scores > limit), limit


def score(folder: str, number: int) -> None:
    """Task: bits per byte of one bucket's documents; -inf where they do not count."""
    work = Path(folder)
    model = NGramModel.from_bytes((work / _MODEL).read_bytes())
    bucket = Bucket(work, read_job(work), number)
    scores = np.full(len(bucket.entries), -np.inf)
    for places, documents in bucket.batches(0):
        texts = [document.joined() for document in documents]
        sizes = np.array([len(text.encode()) for text in texts])
        long_enough = sizes >= LEAST_BYTES
        bits = model.bits(texts) / np.maximum(sizes, 1)
        scores[places] = np.where(long_enough, bits, -np.inf)
    np.save(_scores_path(work, number), scores, allow_pickle=False)


def _scores_path(work: Path, number: int) -> Path:
    return work / f"fluency-{number:05d}.npy"


def sample_documents(
    work: Path, job: Job, characters: int, documents: int = 1 << 30, fate: int = 0
) -> list[Document]:
    """Documents with this fate in the order of their digests, which is as good as chance, until
    there are enough characters or documents."""
    sample: list[Document] = []
    size = 0
    for number in range(len(job.buckets)):
        for _, batch in Bucket(work, job, number).batches(fate):
            for document in batch:
                sample.append(document)
                size += len(document.joined())
                if len(sample) >= documents or size >= characters:
                    return sample
    return sample
