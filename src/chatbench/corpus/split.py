"""Which split a document belongs to: a function of its content alone."""

from __future__ import annotations

SPLITS = ("train", "val", "test")
_MINIMUM = 10


def split_of(digest: bytes, val_fraction: float, test_fraction: float) -> str:
    """Read the digest as a number in [0, 1): the lowest part is test, the next val, the rest
    train. A document stays where it is when others are added, removed or reordered."""
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def assign(digests: list[bytes], val_fraction: float, test_fraction: float) -> list[str]:
    """Splits of sorted, distinct digests.

    With at least ten documents no wanted split stays empty: the lowest digest becomes test, the
    next one val, should chance have given them none.
    """
    splits = [split_of(digest, val_fraction, test_fraction) for digest in digests]
    if len(digests) >= _MINIMUM:
        if test_fraction and "test" not in splits:
            splits[0] = "test"
        if val_fraction and "val" not in splits:
            splits[splits.index("train")] = "val"
    return splits
