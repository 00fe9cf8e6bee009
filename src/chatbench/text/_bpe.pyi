from typing import Any

import numpy.typing as npt

Bytes = bytes | npt.NDArray[Any]

class Counter:
    def __init__(self, classes: Bytes, longest: int, /) -> None: ...
    def __len__(self) -> int: ...
    def add(self, text: str, /) -> None: ...
    def add_packed(
        self, lengths: Bytes, counts: Bytes, content: Bytes, part: int, parts: int, /
    ) -> None: ...
    def pop(self) -> tuple[bytes, bytes, bytes]: ...

def first_marked(text: str, marks: Bytes, /) -> int: ...
def learn(
    lengths: Bytes,
    counts: Bytes,
    content: Bytes,
    token_lengths: Bytes,
    token_content: Bytes,
    merges: Bytes,
    entries: int,
    unique: bool,
    /,
) -> bytes: ...
