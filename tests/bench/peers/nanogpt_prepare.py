"""JSON Lines → one uint16 .bin in the manner of nanoGPT's data/openwebtext/prepare.py: datasets
for reading and mapping, tiktoken for the ids, a memory map for the result.

python nanogpt_prepare.py TEXT.jsonl TOKENIZER.json OUT.bin
"""

from __future__ import annotations

import sys

import numpy as np
from datasets import Dataset, load_dataset
from tiktoken_bin import encoding

source, tokenizer_file, out = sys.argv[1:]
codec = encoding()
SHARDS = 64


def process(row: dict[str, str]) -> dict[str, object]:
    ids = codec.encode_ordinary(row["text"])
    ids.append(codec.eot_token)
    return {"ids": ids, "len": len(ids)}


if __name__ == "__main__":
    rows = load_dataset("json", data_files=source, split="train", cache_dir=out + ".cache")
    assert isinstance(rows, Dataset)
    tokenized = rows.map(process, remove_columns=["text"], num_proc=2)
    total = np.sum(tokenized["len"], dtype=np.uint64)
    array = np.memmap(out, dtype=np.uint16, mode="w+", shape=(int(total),))
    place = 0
    for number in range(SHARDS):
        shard = tokenized.shard(num_shards=SHARDS, index=number, contiguous=True)
        batch = np.concatenate(shard.with_format("numpy")["ids"])
        array[place : place + len(batch)] = batch
        place += len(batch)
    array.flush()
