"""JSON Lines → one uint16 .bin with tiktoken in two processes, in the manner of nanoGPT's
prepare.py but without datasets.

python tiktoken_bin.py TEXT.jsonl TOKENIZER.json OUT.bin
"""

from __future__ import annotations

import json
import sys
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import tiktoken

source, tokenizer_file, out = sys.argv[1:]
_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_ALPHABET = {chr(b): b for b in _BYTES} | {
    chr(0x100 + n): b for n, b in enumerate(b for b in range(256) if b not in _BYTES)
}


def encoding() -> tiktoken.Encoding:
    content = json.loads(Path(tokenizer_file).read_bytes())
    ranks = {
        bytes(_ALPHABET[c] for c in token): number
        for token, number in content["model"]["vocab"].items()
    }
    pattern = content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    end = next(t["id"] for t in content["added_tokens"] if t["content"] == "<|endoftext|>")
    return tiktoken.Encoding(
        "bench", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": end}
    )


codec: tiktoken.Encoding


def start() -> None:
    global codec
    codec = encoding()


def process(line: str) -> np.ndarray:
    ids = codec.encode_ordinary(json.loads(line)["text"])
    ids.append(codec.eot_token)
    return np.array(ids, np.uint16)


if __name__ == "__main__":
    with Pool(2, start) as pool, open(source, encoding="utf-8") as lines, open(out, "wb") as sink:
        for ids in pool.imap(process, lines, chunksize=32):
            ids.tofile(sink)
