"""Which split a document belongs to: a function of its content alone."""

from __future__ import annotations

SPLITS = ("train", "val", "test")
_MINIMUM = 10
_HEAD = 8


def split_of(digest: bytes, val_fraction: float, test_fraction: float) -> str:
    """Read the digest as a number in [0, 1): the lowest part is test, the next val, the rest
    train. A document stays where it is when others are added, removed or reordered."""
    position = int.from_bytes(digest[:_HEAD], "big") / 2**64
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def assign(digests: list[bytes], val_fraction: float, test_fraction: float) -> list[str]:
    """Splits of sorted digests; those that share their first half (copies) stay together.

    There is always something to train on: the highest digest, should chance have given nothing.
    From ten different documents on no wanted split stays empty: the lowest becomes test, the next
    one val.
    """
    heads = [digest[:_HEAD] for digest in digests]
    split = {head: split_of(head, val_fraction, test_fraction) for head in heads}
    enough = len(split) >= _MINIMUM
    if enough and test_fraction and "test" not in split.values():
        split[heads[0]] = "test"
    if heads and "train" not in split.values():
        split[heads[-1]] = "train"
    if enough and val_fraction and "val" not in split.values():
        trains = [head for head in split if split[head] == "train"]
        tests = [head for head in split if split[head] == "test"]
        split[trains[0] if len(trains) > 1 else tests[-1]] = "val"
    return [split[head] for head in heads]
