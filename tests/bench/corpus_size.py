"""What a large corpus costs: seconds of making batches for each token, and resident memory, at a
corpus of 1 MB of tokens and of 1 GB, made up here.

python tests/bench/corpus_size.py [--megabytes 1,1000] [--batches 200]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from chatbench.corpus.shards import ShardWriter, TokenSplit
from chatbench.text.rendering import RenderedArrays
from chatbench.train.batches import Batches, StreamRows

TOKENS_A_DOCUMENT = 400
TOKENS_A_SHARD = 25_000_000
SEQ_LEN, ROWS = 256, 16


def make(folder: Path, tokens: int) -> None:
    drawn = np.random.default_rng(0)
    for number, begin in enumerate(range(0, tokens, TOKENS_A_SHARD)):
        count = min(TOKENS_A_SHARD, tokens - begin)
        ids = drawn.integers(0, 4096, count).astype(np.uint16)
        starts = np.append(np.arange(0, count, TOKENS_A_DOCUMENT), count)
        writer = ShardWriter(folder / f"{number:04}.safetensors", 4096)
        writer.add(RenderedArrays(ids, starts, np.ones(count, np.uint8)))
        writer.close()


def resident(kind: str) -> float:
    """MB: `RssAnon` is the program's own, `RssFile` pages of files, which may go any time."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(kind))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", default="1,1000")
    parser.add_argument("--batches", type=int, default=200)
    args = parser.parse_args()
    if not sys.platform.startswith("linux"):
        sys.exit("resident memory is read from /proc")
    for size in map(int, args.megabytes.split(",")):
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), size * 500_000)
            own, begun = resident("RssAnon"), time.process_time()
            batches = Batches(StreamRows(TokenSplit(Path(name)), SEQ_LEN, 0, 0), ROWS, ROWS)
            batches.batch(0)
            opening = time.process_time() - begun
            spent = []
            for step in range(1, args.batches + 1):
                begun = time.process_time()
                batches.batch(step)
                spent.append(time.process_time() - begun)
            micro = statistics.median(spent) / (SEQ_LEN * ROWS) * 1e6
            print(
                f"{size} MB: opened in {opening:.2f} s · {micro:.3f} µs a token · "
                f"{resident('RssAnon') - own:.0f} MB more of its own, "
                f"{resident('RssFile'):.0f} MB of files",
                flush=True,
            )


if __name__ == "__main__":
    main()
