"""All cleaning stages and near-duplicates, whole processes: ours beside datatrove's local pipeline.

python tests/bench/preprocess_stages.py TEXT.jsonl TOKENIZER_FOLDER PEER_PYTHON [DOCUMENTS] [ROUNDS]

Both mend mojibake, apply the Gopher, C4 and FineWeb rules, mask personal data, drop
near-duplicates by MinHash and tokenise, in two processes. datatrove's personal data are e-mail and
IP addresses only; ours are all types. Neither identifies languages. PEER_PYTHON has datatrove with
its extras, spacy and tokenizers.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

from pairs import seconds

PEER = Path(__file__).parent / "peers" / "datatrove_pipeline.py"


def run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def main() -> None:
    text, tokenizer, peer_python = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    documents = int(sys.argv[4]) if len(sys.argv) > 4 else 2000
    rounds = int(sys.argv[5]) if len(sys.argv) > 5 else 3
    file = tokenizer / "tokenizer.json"
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        with open(text, encoding="utf-8") as lines:
            rows = list(islice(lines, documents))
        (out / "text.jsonl").write_text("".join(rows), encoding="utf-8")
        for number in range(2):  # datatrove gives each process its own files
            part = out / "parts" / f"text-part{number}.jsonl"
            part.parent.mkdir(exist_ok=True)
            part.write_text("".join(rows[number::2]), encoding="utf-8")

        def ours() -> None:
            shutil.rmtree(out / "corpus", ignore_errors=True)
            run(sys.executable, "-m", "chatbench", "preprocess", out / "text.jsonl",
                "-o", out / "corpus", "--tokenizer", file, "--workers", "2", "--quality",
                "--pii", "mask", "--dedup", "near", "--no-profile")  # fmt: skip

        def datatrove() -> None:
            shutil.rmtree(out / "peer", ignore_errors=True)
            run(peer_python, PEER, out / "parts" / "text.jsonl", file, out / "peer")

        ours()
        pairs = [(seconds(ours), seconds(datatrove)) for _ in range(rounds)]
        for name, times in zip(("ours", "datatrove"), zip(*pairs, strict=True), strict=True):
            middle = statistics.median(times)
            print(f"{name:10} {middle:7.2f} s  {documents / middle:7.1f} documents/s")
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"{documents} documents, {sum(map(len, rows)) / 1e6:.1f} M characters, "
              f"{rounds} pairs: {ratio:.2f}x")  # fmt: skip


if __name__ == "__main__":
    main()
