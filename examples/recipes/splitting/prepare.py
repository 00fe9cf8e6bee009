"""Wiki-split as pairs: splitting/train.jsonl, a fifth of validation as splitting/test.jsonl, and
splitting/rule.jsonl, what one gets by cutting at the conjunction nearest to the middle.

Run it where data/ is. Long sentences become prompts; the two short ones stand on two lines.
"""

import gzip
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

SOURCE, OUT = Path("data/wiki-split"), Path("splitting")
# As published, marks stand apart from words.
MARKS = [
    (r" ?'' ?([^']+?) ?''", r' "\1"'), (r" n't\b", "n't"), (r" ('(?:s|re|ve|ll|d|m)?)\b", r"\1"),
    (r" ([,.;:!?)%])", r"\1"), (r"\( ", "("), (r"(\w) ([-–/]) (\w)", r"\1\2\3"),
]  # fmt: skip
CUT = re.compile(r"(?:,? (?:and|but|while|although|because)|;) ")


def plain(text: str) -> str:
    for mark, instead in MARKS:
        text = re.sub(mark, instead, text)
    return text.strip()


def pairs(name: str) -> Iterator[tuple[str, str]]:
    with gzip.open(SOURCE / f"{name}.tsv.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            long, short = line.rstrip("\n").split("\t")
            yield plain(long), "\n".join(plain(half) for half in short.split("<::::>"))


def cut(text: str) -> str:
    found = min(CUT.finditer(text), key=lambda m: abs(m.start() - len(text) / 2), default=None)
    if found is None:
        return text
    rest = text[found.end() :]
    return f"{text[: found.start()]}.\n{rest[:1].upper()}{rest[1:]}"


def write(name: str, rows: list[dict[str, str]]) -> None:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (OUT / name).write_text("".join(lines), encoding="utf-8")


if not SOURCE.is_dir():
    print(f"no {SOURCE}: README.md says where it is", file=sys.stderr)
else:
    OUT.mkdir(exist_ok=True)
    # As published, the sentences stand in the order of the alphabet.
    held = sorted(pairs("validation"), key=lambda pair: crc32(pair[0].encode()))
    test = dict(held[: len(held) // 5])
    train = {a: b for a, b in pairs("tune") if a not in test}
    write("train.jsonl", [{"prompt": a, "completion": b} for a, b in train.items()])
    write("test.jsonl", [{"prompt": a, "completion": b} for a, b in test.items()])
    write("rule.jsonl", [{"prompt": a, "reference": b, "reply": cut(a)} for a, b in test.items()])
