"""Runs from which the forecast of bits per byte is fitted, one line of JSON each; then the fit.

python tests/bench/law.py run CORPUS LAYERS WIDTH TOKENS [BATCH [RATE_FACTOR]]  >> points.jsonl
python tests/bench/law.py fit points.jsonl CORPORA

A run ends after its tokens, or after MINUTES with what it has seen by then. `fit` looks for the
corpora of the points in the folder CORPORA; it prints the two constants that are fitted, what the
law misses of each run, and what it misses of runs that the fit has not seen.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatbench.corpus.shards import open_corpus
from chatbench.settings import ModelSettings, OptimSettings, PretrainSettings, TrainSettings
from chatbench.train.forecast import (
    REFERENCE_VOCABULARY,
    SCALE,
    VOCABULARY_POWER,
    difficulty,
    forecast,
)
from chatbench.train.plan import default_rate
from chatbench.train.recipes import pretrain

MINUTES = 1.0
CONTEXT = 256


def run(
    folder: str, layers: int, width: int, tokens: int, batch: int = 1024, factor: float = 1.0
) -> dict[str, Any]:
    """One training of `tokens` tokens on one thread, and what came of it."""
    torch.set_num_threads(1)
    corpus = open_corpus(Path(folder))
    with tempfile.TemporaryDirectory() as place:
        settings = PretrainSettings(
            data=folder, out=f"{place}/run", device="cpu", dtype="float32",
            model=ModelSettings(n_layers=layers, hidden_size=width, n_heads=max(1, width // 64)),
            train=TrainSettings(
                tokens=tokens, minutes=MINUTES, seq_len=CONTEXT, batch_tokens=batch,
                eval_every=1 << 30, sample_every=1 << 30, save_every=1 << 30, tensorboard=False,
                eval_tokens=1 << 16,
            ),
            optim=OptimSettings(learning_rate=factor * default_rate("muon", width, finetune=False)),
        )  # fmt: skip
        path = pretrain(settings)
        assert path is not None
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        config = json.loads((path / "model" / "config.json").read_text())
    inner = 2 * config["num_attention_heads"] + 2 * config["num_key_value_heads"]
    block = width * (inner * config["head_dim"] + 3 * config["intermediate_size"])
    return {
        "corpus": Path(folder).name, "layers": layers, "width": width, "batch": batch,
        "factor": factor, "vocab": corpus.tokenizer.vocab_size,
        "body": layers * block, "table": width * corpus.tokenizer.vocab_size,
        "tokens": max(row.get("tokens", 0) for row in rows),
        "unique": corpus.split("train").tokens,
        "bits": next(row["val_bits_per_byte"] for row in reversed(rows)
                     if "val_bits_per_byte" in row),
    }  # fmt: skip


def fit(points: list[dict[str, Any]], corpora: Path) -> None:
    """Least squares of the logarithms; every run left out once."""
    hard = {p["corpus"]: difficulty(open_corpus(corpora / p["corpus"])) for p in points}
    unknown = []
    for p in points:
        found = hard[p["corpus"]]
        assert found is not None
        law = forecast(found, p["body"], p["table"], p["tokens"]).bits
        law /= SCALE * (found.vocabulary / REFERENCE_VOCABULARY) ** -VOCABULARY_POWER
        unknown.append(math.log(p["bits"] / law))
    y = np.array(unknown)
    x = np.stack(
        [np.ones(len(y)), [-math.log(p["vocab"] / REFERENCE_VOCABULARY) for p in points]], 1
    )
    scale, power = np.linalg.lstsq(x, y, rcond=None)[0]
    print(f"scale {math.exp(scale):.3f} · power of the vocabulary {power:.3f}")
    missed = []
    for n, p in enumerate(points):
        kept = np.arange(len(y)) != n
        others = np.linalg.lstsq(x[kept], y[kept], rcond=None)[0]
        missed.append(float(y[n] - x[n] @ others))
        print(
            f"{p['corpus']:>12} {p['layers']}×{p['width']} {p['tokens']:>9,} tokens: "
            f"{p['bits']:.3f} bits per byte, {100 * missed[-1]:+.1f} % beside the law"
        )
    print(f"left out, root of the mean square: {100 * float(np.std(missed)):.1f} %")


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        numbers = [int(n) for n in sys.argv[3:7]]
        print(json.dumps(run(sys.argv[2], *numbers, *map(float, sys.argv[7:8]))), flush=True)
    elif sys.argv[1:2] == ["fit"]:
        lines = Path(sys.argv[2]).read_text().splitlines()
        fit([json.loads(line) for line in lines], Path(sys.argv[3]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
