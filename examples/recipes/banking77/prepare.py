"""Splits data/banking77/train.csv into banking77/train.csv and test.csv, columns text and label.

A fifth of the texts, by their hash, is the test; a text that is there twice is written once.
"""

import csv
import hashlib
import sys
from pathlib import Path

SOURCE = Path("data/banking77/train.csv")
OUT = Path("banking77")


def is_test(text: str) -> bool:
    return hashlib.sha256(f"test {text}".encode()).digest()[0] < 256 // 5


def main() -> None:
    if not SOURCE.is_file():
        print(f"{SOURCE} is not here; banking77's README says where to get it", file=sys.stderr)
        return
    with open(SOURCE, encoding="utf-8", newline="") as file:
        rows = sorted({(row["text"].strip(), row["category"]) for row in csv.DictReader(file)})
    OUT.mkdir(exist_ok=True)
    for name, tested in (("train", False), ("test", True)):
        chosen = [row for row in rows if is_test(row[0]) == tested]
        with open(OUT / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("text", "label"), *chosen])
        print(f"{OUT}/{name}.csv: {len(chosen)} rows", file=sys.stderr)


if __name__ == "__main__":
    main()
