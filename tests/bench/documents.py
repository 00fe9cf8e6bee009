"""Texts for the tokenizer benches: files cut into documents, mixed, up to a size."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

_CHARACTERS = 20_000


def documents(places: list[str], megabytes: float) -> list[str]:
    """Documents of 20,000 characters from all UTF-8 files under `places` (.gz too), shuffled."""
    pieces = []
    for place in map(Path, places):
        files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
        for path in files:
            data = path.read_bytes()
            try:
                text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
            except UnicodeDecodeError:
                continue
            pieces += [text[i : i + _CHARACTERS] for i in range(0, len(text), _CHARACTERS)]
    random.Random(1).shuffle(pieces)
    size, kept = 0.0, []
    while pieces and size < megabytes * 1e6:
        kept.append(pieces.pop())
        size += len(kept[-1].encode())
    return kept
