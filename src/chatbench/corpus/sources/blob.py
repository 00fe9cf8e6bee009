"""One logical file of the input as format readers see it: decompressed, unpacked."""

from __future__ import annotations

from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import msgspec


class ReadOptions(msgspec.Struct, frozen=True):
    """What of the settings decides how bytes become documents.

    `mapping` is the user's --map: part of a row → column, such as {"user": "question"}.
    """

    format: str = "auto"
    encoding: str = "auto"
    mapping: dict[str, str] = {}
    passage_chars: int = 8000
    max_record_bytes: int = 1 << 24
    max_expansion: int = 200
    bin_tokenizer: str | None = None


class Blob(NamedTuple):
    """`name` is what people read, such as `logs.zip/a.csv`. `handle` stands at the first byte and
    can `peek`; it is read once, forward. `path` is the file itself where that lies on disk as it
    is: neither compressed, nor in an archive, nor a piece. `first_line` is above 1 for a later
    piece of a file that several workers share."""

    name: str
    handle: BufferedReader
    path: Path | None = None
    first_line: int = 1
