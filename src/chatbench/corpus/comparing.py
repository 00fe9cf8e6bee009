"""Documents compared with each other: duplicates, clusters, fluency, splits, contamination."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from chatbench.corpus import plan as plans
from chatbench.corpus.chunks import (
    Entries,
    in_order,
    map_signatures,
    read_documents,
    read_entries,
    repeats,
)
from chatbench.corpus.crew import Crew
from chatbench.corpus.plan import CLUMSY, DUPLICATE, NEAR_DUPLICATE, Job
from chatbench.corpus.sources.reading import excerpt
from chatbench.corpus.split import assign_units
from chatbench.settings import PreprocessSettings

_LARGEST = 5
# Pairs this much below --near-threshold stay in one split as well: similarity is an estimate.
_MARGIN = 0.05


class Compared(msgspec.Struct):
    """What the comparison found, for the report."""

    cluster_sizes: dict[int, int] = {}
    largest: list[tuple[int, str]] = []
    contamination: dict[str, tuple[int, int]] = {}
    contamination_rate: float = 1.0
    fluency_limit: float | None = None


def decide(
    settings: PreprocessSettings, work: Path, job: Job, crew: Crew
) -> tuple[Entries, Compared]:
    """The plan: all documents in digest order with what becomes of each. Written to `work`."""
    unsorted = read_entries(work, job.chunks)
    order = in_order(unsorted)
    entries = unsorted[order]
    del unsorted
    compared = Compared()
    if settings.dedup != "off":
        entries["fate"][repeats(entries)] = DUPLICATE
    alone = np.flatnonzero(entries["fate"] == 0)
    cluster = _clusters(settings, work, job, entries, order, alone, compared)
    if settings.min_fluency is not None:
        alone, cluster = _drop_clumsy(settings, work, job, crew, entries, alone, cluster, compared)
    _split(settings, entries, alone, cluster)
    _write(work, job, entries)
    if settings.contamination != "off" and (settings.val_fraction or settings.test_fraction):
        from chatbench.corpus.leaks import find_leaks

        find_leaks(settings, work, job, crew, entries, compared)
        _write(work, job, entries)
    return entries, compared


def _write(work: Path, job: Job, entries: Entries) -> None:
    job.buckets = plans.cut_buckets(entries)
    plans.write_plan(work, entries)
    plans.write_job(work, job)


def _clusters(
    settings: PreprocessSettings,
    work: Path,
    job: Job,
    entries: Entries,
    order: npt.NDArray[Any],
    alone: npt.NDArray[Any],
    compared: Compared,
) -> npt.NDArray[np.int64] | None:
    """Marks near-duplicates; the cluster of each of the `alone` documents, if asked for."""
    if (settings.dedup != "near" and settings.split_by != "cluster") or not len(alone):
        return None
    from chatbench.corpus.cleaning.neardup import PERMUTATIONS, find_clusters

    signatures = map_signatures(work, job.chunks, PERMUTATIONS)
    found = find_clusters(signatures, settings.near_threshold, order[alone], _MARGIN)
    if settings.dedup == "near":
        entries["fate"][alone[found.dropped]] = NEAR_DUPLICATE
    sizes = np.bincount(found.cluster, minlength=len(alone))
    groups, counts = np.unique(sizes[sizes > 1], return_counts=True)
    compared.cluster_sizes = dict(zip(groups.tolist(), counts.tolist(), strict=True))
    for first in np.argsort(-sizes, kind="stable")[:_LARGEST].tolist():
        if sizes[first] > 1:
            (document,) = read_documents(work, job.chunks, entries[alone[first : first + 1]])
            compared.largest.append((int(sizes[first]), excerpt(document)))
    return found.cluster if settings.split_by == "cluster" else None


def _drop_clumsy(
    settings: PreprocessSettings,
    work: Path,
    job: Job,
    crew: Crew,
    entries: Entries,
    alone: npt.NDArray[Any],
    cluster: npt.NDArray[np.int64] | None,
    compared: Compared,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64] | None]:
    """Marks the documents that an n-gram model of the corpus finds least likely."""
    from chatbench.corpus.fluent import clumsy

    assert settings.min_fluency is not None
    _write(work, job, entries)
    marked, compared.fluency_limit = clumsy(settings.min_fluency, work, job, crew, entries)
    entries["fate"][marked] = CLUMSY
    stays = entries["fate"][alone] != CLUMSY
    return alone[stays], None if cluster is None else _without(cluster, stays)


def _without(cluster: npt.NDArray[np.int64], stays: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Clusters of those that stay, named by their smallest member again."""
    _, first, member = np.unique(cluster[stays], return_index=True, return_inverse=True)
    return first[member].astype(np.int64)


def _split(
    settings: PreprocessSettings,
    entries: Entries,
    alone: npt.NDArray[Any],
    cluster: npt.NDArray[np.int64] | None,
) -> None:
    # A near-duplicate that is left out keeps its place in its cluster, so the others stay put.
    splits = assign_units(
        entries["high"][alone], cluster, settings.val_fraction, settings.test_fraction
    )
    kept = entries["fate"][alone] == 0
    entries["fate"][alone[kept]] = splits[kept]
