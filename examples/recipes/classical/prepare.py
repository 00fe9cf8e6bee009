"""Sentences of classical Chinese with their modern translations become prompts and replies.

    python prepare.py [PAIRS]

reads data/classical-modern-zh and writes classical/train.jsonl (PAIRS of them, 24,000 unless given,
drawn by a hash, so that fewer are always part of more), classical/test.jsonl (500 from passages of
40 sentences that training does not see) and classical/book.jsonl (500 from a book it does not see).
"""

import gzip
import json
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

SOURCE = Path("data/classical-modern-zh")
UNSEEN_BOOK = "战国策"
PASSAGE = 40


def drawn(text: str) -> int:
    """A number from 0 to 2^64 - 1 that depends on the text alone."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """Number of the passage, classical sentence, translation. Lost quotation marks left spaces
    behind, which go too; headings, whose two sides are the same, are no translation."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        told = ["".join(line.partition("：")[2].split()) for line in lines if line.strip()]
    for n, (old, new) in enumerate(zip(told[::2], told[1::2], strict=True)):
        if len(old) > 3 and new and old != new:
            yield n // PASSAGE, old, new


def main() -> None:
    files = sorted(SOURCE.glob("*.bitext.txt.gz"))
    if not files:
        sys.stderr.write(f"{SOURCE} is not here: see the page of this recipe\n")
        return
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 24_000
    parts: dict[str, dict[str, str]] = {"book": {}, "test": {}, "train": {}}
    for path in files:
        name = path.name.partition(".")[0]
        for passage, old, new in pairs(path):
            held_out = drawn(f"{name} {passage}") % 50 == 0
            part = "book" if name == UNSEEN_BOOK else "test" if held_out else "train"
            parts[part].setdefault(old, new)
    Path("classical").mkdir(exist_ok=True)
    held = parts["book"].keys() | parts["test"].keys()
    for part, size in (("book", 500), ("test", 500), ("train", wanted)):
        free = parts[part].keys() - (held if part == "train" else set())
        rows = [{"prompt": old, "completion": parts[part][old]} for old in sorted(free, key=drawn)]
        written = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:size])
        Path("classical", f"{part}.jsonl").write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
