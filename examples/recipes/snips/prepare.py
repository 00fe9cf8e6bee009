"""Makes of data/snips/train_*_full.json.gz what the two models of this recipe learn from.

snips/train.jsonl, test.jsonl: what somebody says, and its entities as [ text](kind).
snips/intents-train.csv, intents-test.csv: the same texts, each with what is wanted by it.
A tenth of the texts, by their hash, is the test; a text that is there twice is written once.
"""

import csv
import gzip
import hashlib
import json
import sys
from pathlib import Path

SOURCES = "data/snips/train_*_full.json.gz"
OUT = Path("snips")


def is_test(text: str) -> bool:
    return hashlib.sha256(f"test {text}".encode()).digest()[0] < 256 // 10


def entities(parts: list[dict[str, str]]) -> str:
    # With a space before it, a name is the same tokens as in the request: easier to repeat.
    found = [(" ".join(p["text"].split()), p["entity"]) for p in parts if "entity" in p]
    return " ".join(f"[ {text}]({kind})" for text, kind in found) or "none"


def main() -> None:
    rows: dict[str, tuple[str, str]] = {}
    for path in sorted(Path().glob(SOURCES)):
        # One of the files has a picture spelled in bytes that are not UTF-8; it is left out.
        with gzip.open(path, "rt", encoding="utf-8", errors="ignore") as file:
            ((intent, said),) = json.load(file).items()
        for entry in said:
            text = " ".join("".join(part["text"] for part in entry["data"]).split())
            rows.setdefault(text, (intent, entities(entry["data"])))
    if not rows:
        print("data/snips is not here; snips's README says where to get it", file=sys.stderr)
        return
    OUT.mkdir(exist_ok=True)
    for name, tested in (("train", False), ("test", True)):
        chosen = [(text, *rest) for text, rest in sorted(rows.items()) if is_test(text) == tested]
        with open(OUT / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for text, _, found in chosen:
                line = {"prompt": text, "completion": found}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        with open(OUT / f"intents-{name}.csv", "w", encoding="utf-8", newline="") as file:
            table = [("text", "label"), *((text, intent) for text, intent, _ in chosen)]
            csv.writer(file, lineterminator="\n").writerows(table)
        print(f"{OUT}/{name}.jsonl, intents-{name}.csv: {len(chosen)} rows", file=sys.stderr)


if __name__ == "__main__":
    main()
