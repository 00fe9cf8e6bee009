"""A JSON Lines file of real text for the benches: no repeats, documents of up to 20,000 characters.

python tests/bench/gather_text.py OUT.jsonl MEGABYTES FOLDER...

Takes .txt, .md, .rst, .py and .jsonl (their text) below the folders, plain or gzip, in a fixed
random order, until there is enough.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

SUFFIXES = {".txt", ".md", ".rst", ".py", ".json", ".jsonl", ".csv", ".tsv", ".h"}
DOCUMENT_CHARACTERS = 20_000
SHORTEST = 200


def texts(path: Path) -> Iterator[str]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    for start in range(0, len(text), DOCUMENT_CHARACTERS):
        piece = text[start : start + DOCUMENT_CHARACTERS]
        if len(piece) >= SHORTEST and "\0" not in piece:
            yield piece


def main() -> None:
    out, megabytes, *folders = sys.argv[1:]
    found = [
        path
        for folder in folders
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and Path(path.name.removesuffix(".gz")).suffix in SUFFIXES
    ]
    random.Random(0).shuffle(found)
    written, seen = 0, set()
    with open(out, "w", encoding="utf-8") as handle:
        for path in found:
            for text in texts(path):
                digest = hashlib.sha256(text.encode()).digest()
                if digest in seen:
                    continue
                seen.add(digest)
                written += len(text.encode())
                handle.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            if written >= float(megabytes) * 1e6:
                break
    print(f"{len(seen)} documents, {written / 1e6:.1f} MB of text")


if __name__ == "__main__":
    main()
