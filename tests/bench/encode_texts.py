"""MB a second of encoding: ours (gigatoken, checked) beside `tokenizers`, and long runs.

A fresh encoder in every round, so that building and checking its twin is paid for and no cache is
warm. The second table is nanoseconds a byte of 512 KiB without a border, and of prose; everything
on one thread.

python tests/bench/encode_texts.py PLACE [PLACE ...] [--megabytes 16] [--rounds 3]
"""

from __future__ import annotations

import argparse
from statistics import median

from documents import documents
from pairs import compare, seconds
from tokenizers import Tokenizer as Backend

from chatbench.text.fast_encoding import FastEncoder
from chatbench.text.tokenizer import train_tokenizer

SIZE = 512 * 1024
RUNS = {
    "one letter": "a", "spaces": " ", "one CJK character": "茶", "line ends": "\n",
    "combining marks": "\u0301", "dots": ".", "digits": "1",
}  # fmt: skip


def runs(backend: Backend, texts: list[str]) -> None:
    encoder = FastEncoder(backend, worth_building=0)
    encoder.encode(texts[:200])
    prose = "".join(texts[200:500]).encode()
    for name, content in {
        "prose": prose,
        **{n: c.encode() * SIZE for n, c in RUNS.items()},
    }.items():
        # Every call sees another text, for gigatoken remembers what it has encoded.
        cases = [content[7 * i : SIZE - 101 * i].decode(errors="ignore") for i in range(6)]
        times = [seconds(lambda t=t: encoder._fast([t])) / SIZE * 1e9 for t in cases[:3]]
        theirs = [
            seconds(lambda t=t: backend.encode_batch_fast([t], add_special_tokens=False))
            / SIZE * 1e9
            for t in cases[3:]
        ]  # fmt: skip
        print(f"{name:>18}: ours {median(times):5.0f} ns/byte · tokenizers {median(theirs):5.0f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("places", nargs="+")
    parser.add_argument("--megabytes", type=float, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    texts = documents(given.places, given.megabytes)
    size = sum(len(text.encode()) for text in texts) / 1e6
    backend = train_tokenizer(texts[: len(texts) // 4], 16_000)._text_only

    def ours() -> object:
        return FastEncoder(backend, worth_building=0).encode(texts)

    def peer() -> object:
        return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]

    a, b, ratio = compare(ours, peer, given.rounds)
    print(
        f"{size:.0f} MB: ours {size / a:.0f} MB/s · tokenizers {size / b:.1f} MB/s · "
        f"{ratio:.0f}× ({given.rounds} pairs)"
    )
    runs(backend, texts)


if __name__ == "__main__":
    main()
