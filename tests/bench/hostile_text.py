"""Seconds per megabyte of preprocess on text without borders, beside prose of the same size.

python tests/bench/hostile_text.py PROSE.txt TOKENIZER_FOLDER [KILOBYTES] [ROUNDS]
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from chatbench.corpus.build import preprocess
from chatbench.settings import PreprocessSettings

RUNS = {
    "one letter": "a", "spaces": " ", "one character": "茶", "a run of Chinese": "今天天气很好",
    "digits": "7", "line ends": "\n", "dots": ".", "combining marks": "\u0301", "emoji": "🍵",
}  # fmt: skip


def main() -> None:
    prose, tokenizer = Path(sys.argv[1]), sys.argv[2]
    size = 1024 * int(sys.argv[3]) if len(sys.argv) > 3 else 512 * 1024
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 5
    texts = {"prose": prose.read_bytes()[:size].decode(errors="ignore")}
    texts |= {name: "x" + unit * (size // len(unit.encode())) for name, unit in RUNS.items()}
    with tempfile.TemporaryDirectory() as place:
        times: dict[str, list[float]] = {name: [] for name in texts}
        for number in range(rounds + 1):
            for name, text in texts.items():
                file, out = Path(place, "in.txt"), Path(place, "corpus")
                file.write_text(text, encoding="utf-8")
                shutil.rmtree(out, ignore_errors=True)
                begun = time.perf_counter()
                preprocess(
                    PreprocessSettings(
                        inputs=[str(file)], out=str(out), tokenizer=tokenizer, workers=1,
                        profile=False, passage_chars=1 << 30, contamination="off",
                    )
                )  # fmt: skip
                if number:
                    times[name].append(time.perf_counter() - begun)
        base = statistics.median(times["prose"])
        for name, taken in times.items():
            middle = statistics.median(taken)
            print(f"{name:18} {1e3 * middle:8.1f} ms  {middle / base:5.2f}x prose")


if __name__ == "__main__":
    main()
