"""Which split a document belongs to: a function of its content, and of its near-duplicates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from chatbench.corpus.cleaning.grams import Hashes, Offsets, mix
from chatbench.corpus.cleaning.neardup import find_roots, unite

SPLITS = ("train", "val", "test")
_TRAIN, _VAL, _TEST = range(3)
_MINIMUM = 10
_HEAD = 8


def split_of(digest: bytes, val_fraction: float, test_fraction: float) -> str:
    """Read the digest as a number in [0, 1): the lowest part is test, the next val, the rest
    train. A document stays where it is when others are added, removed or reordered."""
    key = np.array([int.from_bytes(digest[:_HEAD], "big")], np.uint64)
    return SPLITS[_by_key(key, val_fraction, test_fraction)[0]]


def assign_units(
    keys: Hashes,
    cluster: npt.NDArray[np.int64] | None,
    val_fraction: float,
    test_fraction: float,
) -> npt.NDArray[np.uint8]:
    """The split of each document, uint8 (n,), as a place in SPLITS.

    `keys` (n,): the first 8 bytes of each digest as a big-endian number, ascending. `cluster`
    (n,): equal for documents that must stay together, or None; equal keys always do. What stays
    together is a unit. A document without others falls as `split_of` says; a unit of several
    falls by a hash of its smallest key, for the smallest of several is not evenly spread.

    A unit of more than half of all documents goes to train. There is always something to train
    on: the highest unit, should chance have given nothing. From ten units on no wanted split
    stays empty: the lowest becomes test, the next one val.
    """
    if not len(keys):
        return np.zeros(0, np.uint8)
    unit_of, positions, sizes = _units(keys, cluster)
    splits = _by_key(positions, val_fraction, test_fraction)
    huge = 2 * sizes > len(keys)
    splits[huge] = _TRAIN
    order = np.argsort(positions, kind="stable")
    _fill(splits, order[~huge[order]], val_fraction > 0, test_fraction > 0)
    return splits[unit_of]


def _units(keys: Hashes, cluster: npt.NDArray[np.int64] | None) -> tuple[Offsets, Hashes, Offsets]:
    """The unit of each document; for each unit the number it falls by, and how many it holds."""
    parent = np.arange(len(keys))
    if cluster is not None:
        _, first, label = np.unique(cluster, return_index=True, return_inverse=True)
        parent = first[label]
    copies = np.flatnonzero(keys[1:] == keys[:-1])
    unite(parent, copies, copies + 1)
    roots, unit_of, sizes = np.unique(
        find_roots(parent, np.arange(len(keys))), return_inverse=True, return_counts=True
    )
    highest = np.zeros(len(roots), np.uint64)
    np.maximum.at(highest, unit_of, keys)
    smallest = keys[roots]
    # Copies of one document are no other content, so they fall as it would.
    return unit_of, np.where(highest == smallest, smallest, mix(smallest)), sizes


def _by_key(keys: Hashes, val_fraction: float, test_fraction: float) -> npt.NDArray[np.uint8]:
    position = keys.astype(np.float64) / 2.0**64
    splits = np.full(len(keys), _TRAIN, np.uint8)
    splits[position < test_fraction + val_fraction] = _VAL
    splits[position < test_fraction] = _TEST
    return splits


def _fill(
    splits: npt.NDArray[np.uint8], movable: Offsets, val_wanted: bool, test_wanted: bool
) -> None:
    """Move units, given in the order of their positions, so that no wanted split is empty."""
    enough = len(splits) >= _MINIMUM
    if enough and test_wanted and not (splits == _TEST).any():
        splits[movable[0]] = _TEST
    if not (splits == _TRAIN).any():
        splits[movable[-1]] = _TRAIN
    if enough and val_wanted and not (splits == _VAL).any():
        trains = movable[splits[movable] == _TRAIN]
        tests = movable[splits[movable] == _TEST]
        spare = np.count_nonzero(splits == _TRAIN) > 1
        splits[trains[0] if spare else tests[-1]] = _VAL
