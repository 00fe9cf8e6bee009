"""JSON Lines → token ids with Hugging Face datasets and tokenizers, as their documentation shows.

python datasets_map.py TEXT.jsonl TOKENIZER.json OUT
"""

from __future__ import annotations

import sys

from datasets import Dataset, load_dataset
from tokenizers import Tokenizer

source, tokenizer_file, out = sys.argv[1:]
tokenizer = Tokenizer.from_file(tokenizer_file)


def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
    encoded = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
    return {"ids": [entry.ids for entry in encoded]}


if __name__ == "__main__":
    rows = load_dataset("json", data_files=source, split="train", cache_dir=out + ".cache")
    assert isinstance(rows, Dataset)
    rows.map(encode, batched=True, num_proc=2, remove_columns=["text"]).save_to_disk(out)
