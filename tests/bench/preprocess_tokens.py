"""Text to tokens on disk, whole processes: ours beside datasets.map and a tiktoken script.

python tests/bench/preprocess_tokens.py TEXT.jsonl TOKENIZER_FOLDER PEER_PYTHON [ROUNDS]

TEXT.jsonl comes from gather_text.py; PEER_PYTHON is an interpreter that has datasets, tokenizers
and tiktoken. Cleaning, comparing and splitting are off, since the peers do none of it. All three
use two processes. Afterwards the ids are compared with those of `tokenizers`, document by document.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pairs import seconds

from chatbench.corpus.shards import open_corpus

PEERS = Path(__file__).parent / "peers"
BARE = [
    "--workers", "2", "--no-repair", "--dedup", "off", "--split-by", "document",
    "--contamination", "off", "--no-profile", "--val-fraction", "0", "--test-fraction", "0",
]  # fmt: skip


def run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def main() -> None:
    text, tokenizer = Path(sys.argv[1]), Path(sys.argv[2])
    peer_python = sys.argv[3]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    megabytes = text.stat().st_size / 1e6
    file = tokenizer / "tokenizer.json"
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)

        def ours() -> None:
            shutil.rmtree(out / "corpus", ignore_errors=True)
            run(sys.executable, "-m", "chatbench", "preprocess", text, "-o", out / "corpus",
                "--tokenizer", file, *BARE)  # fmt: skip

        def datasets_map() -> None:
            for name in ("arrow", "arrow.cache"):
                shutil.rmtree(out / name, ignore_errors=True)
            run(peer_python, PEERS / "datasets_map.py", text, file, out / "arrow")

        def tiktoken_bin() -> None:
            run(peer_python, PEERS / "tiktoken_bin.py", text, file, out / "ids.bin")

        def nanogpt() -> None:
            shutil.rmtree(out / "nano.bin.cache", ignore_errors=True)
            run(peer_python, PEERS / "nanogpt_prepare.py", text, file, out / "nano.bin")

        ours()  # the files are in memory from here on
        candidates = {
            "ours": ours, "datasets.map": datasets_map, "nanoGPT's way": nanogpt,
            "bare tiktoken": tiktoken_bin,
        }  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(rounds):
            for name, candidate in candidates.items():
                times[name].append(seconds(candidate))
        mine = statistics.median(times["ours"])
        for name, taken in times.items():
            middle = statistics.median(taken)
            ratio = statistics.median(t / o for t, o in zip(taken, times["ours"], strict=True))
            print(f"{name:14} {middle:7.2f} s  {megabytes / middle:6.1f} MB/s  {ratio:5.2f}x")
        print(f"{megabytes:.1f} MB, {megabytes / mine:.1f} MB/s end to end, {rounds} rounds")
        check(text, file, out / "corpus")


def check(text: Path, tokenizer: Path, corpus: Path) -> None:
    """Every document's ids are those of `tokenizers`."""
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(tokenizer))
    content = json.loads(reference.to_str())
    content["added_tokens"] = []
    reference = Tokenizer.from_str(json.dumps(content))
    train = open_corpus(corpus).split("train")
    found = sorted(train.ids(n)[:-1].astype("<u4").tobytes() for n in range(len(train)))
    expected = []
    with open(text, encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    for start in range(0, len(texts), 1000):
        batch = reference.encode_batch_fast(texts[start : start + 1000], add_special_tokens=False)
        expected += [b"".join(i.to_bytes(4, "little") for i in entry.ids) for entry in batch]
    print("ids identical to tokenizers:", found == sorted(expected))


if __name__ == "__main__":
    main()
