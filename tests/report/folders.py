"""Run and evaluation folders as training and evaluate write them, made without either."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from chatbench.config import to_toml
from chatbench.settings import FinetuneSettings, ModelSettings, PretrainSettings, TrainSettings
from chatbench.storage import new_folder, write_json

PROMPT = "小店几点开门？<b>"
CONFIG = {"model_type": "qwen3", "num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 16}


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")


def write_run(
    run: Path, *, steps: int = 200, every: int = 10, loss: float = 6.0, rate: float = 0.006,
    base: str | None = None, data: str = "corpus", fingerprint: str = "ab" * 32,
    finished: bool = True, text: str = "九点。", age: float = 0.0, **extra: float,
) -> Path:  # fmt: skip
    """A run with everything in it; `loss` scales its curves, `age` is seconds since its end."""
    run.mkdir(parents=True)
    train = TrainSettings(steps=steps, minutes=3.0, tensorboard=False)
    settings: Any = PretrainSettings(
        data=data, out=str(run), train=train, model=ModelSettings(size="tiny")
    )
    if base is not None:
        settings = FinetuneSettings(model=base, data=[data], out=str(run), train=train)
    settings.optim.learning_rate = rate
    (run / "config.toml").write_text(to_toml(settings), "utf-8")
    metrics, timings, samples = [], [], []
    for step in range(every, steps + 1, every):
        here = loss * (step + 10) ** -0.3
        metrics.append({"step": step, "loss": here, "learning_rate": rate * (1 - step / steps),
                        "grad_norm": 1 + 1 / step, "tokens": 2048 * step, **extra})  # fmt: skip
        timings.append({"step": step, "seconds": 0.1 * step, "tokens_per_second": 20_000 + step,
                        "mfu": 0.31, "memory": 3.2e8, "seconds_compute": 0.09 * every,
                        "seconds_data": 0.002 * every})  # fmt: skip
        if step % (5 * every) == 0:
            metrics.append({"step": step, "val_loss": 1.05 * here, "val_bits_per_byte": 0.4 * here})
            samples.append({"step": step, "prompt": PROMPT, "text": f"{step} {text}"})
    metrics.append({"step": every + 3, "skipped": "gradient norm 90 is above 12", "rows": [1, 2]})
    lines(run / "metrics.jsonl", metrics)
    lines(run / "timings.jsonl", timings)
    lines(run / "samples.jsonl", samples)
    ngram = {"ngram_bits_per_byte": 0.31, "ngram_order": 5, "ngram_tokens": 6108}
    chance = {"uniform_bits_per_byte": 1.6, "uniform_loss": 2.77}
    write_json(run / "references.json", ngram | chance)
    write_json(run / "plan.json", {"steps": steps, "tokens": 2048.0 * steps, "seconds": 30.0,
               "learning_rate": rate, "bits": 0.5, "bits_low": 0.4, "bits_high": 0.6})  # fmt: skip
    write_json(run / "environment.json", {"chatbench": "0.1.0", "command": ["chatbench", "x"]})
    if finished:
        with new_folder(run / "model", "model", {"step": steps, "trained": steps}) as folder:
            write_model(folder, fingerprint)
    else:
        (run / "checkpoints" / f"step-{steps:08d}" / "model").mkdir(parents=True)
        write_model(run / "checkpoints" / f"step-{steps:08d}" / "model", fingerprint)
    end = 1_700_000_000.0 - age
    os.utime(run / "metrics.jsonl", (end, end))
    return run


def write_model(folder: Path, fingerprint: str = "ab" * 32) -> None:
    """22 parameters."""
    noted = {"chatbench": {"corpus": fingerprint}}
    (folder / "config.json").write_text(json.dumps(CONFIG | noted))
    save_file({"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float16)},
              folder / "model.safetensors")  # fmt: skip


def best_bits(steps: int, loss: float, every: int = 10) -> float:
    """What `write_run` logs as its lowest val_bits_per_byte."""
    last = steps - steps % (5 * every)
    return 0.4 * loss * math.pow(last + 10, -0.3)


SCORES = [
    {"name": "chrf", "value": 61.5, "n": 40, "signature": "nrefs:1", "low": 55.25, "high": 66.0},
    {"name": "perplexity", "value": 3.25, "n": 2386, "signature": "each-token-once"},
]


def write_evaluation(folder: Path, **more: Any) -> Path:
    """Scores, slices, a baseline with items that flipped, classes and advice."""
    folder.mkdir(parents=True)
    results = {
        "model": "runs/小店/model", "data": "questions.jsonl", "scores": SCORES, "failed": 1,
        "unanswered": 0, "missed": ["chrf is 61.5, required is >= 70"],
        "slices": [{"by": "tag.语气", "value": "formal", "n": 21, "scores": SCORES},
                   {"by": "tag.语气", "value": "随意", "n": 19, "scores": SCORES[:1]}],
        "baselines": [{
            "name": "bm25", "scores": [SCORES[0] | {"value": 48.5}],
            "differences": [{"name": "chrf", "value": 61.5, "baseline": 48.5, "difference": 13.0,
                             "low": 6.5, "high": 19.5, "p": 0.002, "n": 40, "signature": "s"}],
            "flipped": {"metric": "exact_match",
                        "gained": [{"question": "几点开门？", "reference": "九点。",
                                    "reply": "九点。", "baseline": "不知道"}],
                        "lost": [{"question": "When do you close?", "reference": "At six.",
                                  "reply": "At nine.", "baseline": "At six."}]},
        }],
        "classes": {
            "labels": ["card lost", "贷款", "other"],
            "confusion": [[8, 1, 0], [0, 11, 3], [2, 0, 15]],
            "by_class": [],
            "calibration": [{"rows": 9, "confidence": 0.55, "accuracy": 0.44},
                            {"rows": 31, "confidence": 0.93, "accuracy": 0.9}],
        },
        "advice": [{"finding": "replies are short", "why": "length ratio 0.41",
                    "command": "chatbench finetune -m runs/a -d more.jsonl -o runs/b"}],
        **more,
    }  # fmt: skip
    # Not our encoder: a file from elsewhere may hold half a surrogate.
    (folder / "results.json").write_text(json.dumps(results))
    write_json(folder / "settings.json", {"temperature": 0.0, "batch_size": 16})
    lines(folder / "samples.jsonl", [
        {"messages": [{"role": "user", "content": "茶叶多少钱？"}], "reply": "茶叶卖八元。",
         "reference": "茶叶卖八元。", "right": True},
        {"messages": [{"role": "user", "content": "What is ink?"}], "reply": "Tea & <i>paper</i>",
         "reference": "The ink costs 3 yuan.", "right": False},
    ])  # fmt: skip
    return folder
