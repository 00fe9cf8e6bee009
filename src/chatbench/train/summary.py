"""What a finished run says in the end: what was reached, what it cost, what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from chatbench import console
from chatbench.model.labels import labels_of
from chatbench.train.board import REPORTED
from chatbench.train.checkpoint import TrainState
from chatbench.train.references import read_references


def summary(run: Path, *, finetuned: bool, ended: TrainState | None = None) -> list[str]:
    """Lines from the logs of a run and the state it `ended` in; a run without validation has less
    to say."""
    best: dict[str, Any] | None = None
    validations = skipped = tokens = step = 0
    loss = reward = math.nan
    for row in _rows(run / "metrics.jsonl"):
        step = max(step, row["step"])
        tokens, loss = row.get("tokens", tokens), row.get("loss", loss)
        reward = row.get("reward", reward)
        skipped += "skipped" in row
        if row.get("val_loss") is not None:  # in JSON what is no number is null
            validations += 1
            if best is None or row["val_loss"] < best["val_loss"]:
                best = row
    seconds = 0.0
    for row in _rows(run / "timings.jsonl"):
        seconds = row.get("seconds", seconds)
    if ended is not None:  # the logs lack the steps after their last line
        step, tokens, seconds = ended.step, ended.tokens, ended.seconds
    cost = [console.counted(step, "step"), f"{console.format_count(tokens)} tokens"]
    cost += [console.format_duration(seconds)] if seconds else []
    cost += [f"{skipped} skipped"] if skipped else []
    reached = [f"train loss {loss:.3f}"] if math.isfinite(loss) else []
    if math.isfinite(reward):  # the loss of a policy says nothing
        reached = [f"train reward {reward:.3f}"]
    if best is not None:
        reached += _judged(best, validations)
    lines = [f"reached: {' · '.join(reached)}"] if reached else []
    if best is not None and "val_bits_per_byte" in best:
        lines.append(_held_against(best["val_bits_per_byte"], read_references(run)))
    lines.append(f"trained: {' · '.join(cost)}")
    return [*lines, f"next: {_next(run, finetuned=finetuned)}"]


def _judged(best: dict[str, Any], validations: int) -> list[str]:
    """The best validation; of rewards the loss is the negative."""
    rewarded = best.get("val_reward") is not None
    what = f"val reward {best['val_reward']:.3f}" if rewarded else f"val {best['val_loss']:.3f}"
    others = [
        f"{shown} {make(best[f'val_{name}'])}"
        for name, (shown, make) in REPORTED.items()
        if name != "reward" and best.get(f"val_{name}") is not None
    ]
    return [f"{what} at step {best['step']:,}, best of {validations}", *others]


def _held_against(bits: float, references: dict[str, float]) -> str:
    line = f"bits per byte: {bits:.3f}"
    if "ngram_bits_per_byte" in references:
        order, read, whole = (
            int(references.get(name, 0)) for name in ("ngram_order", "ngram_tokens", "train_tokens")
        )
        text = "the same text"
        if read < whole:
            text = f"{console.format_count(read)} of its {console.format_count(whole)} tokens"
        line += f"; a {order}-gram model of {text}: {references['ngram_bits_per_byte']:.3f}"
    if "uniform_bits_per_byte" in references:
        line += f"; chance: {references['uniform_bits_per_byte']:.3f}"
    return line


def _next(run: Path, *, finetuned: bool) -> str:
    name = shlex.quote(str(run))
    if labels_of(run):
        return f"chatbench classify -m {name} TEXTS.csv · chatbench evaluate -m {name} -d TEST.csv"
    if finetuned:
        return f"chatbench chat -m {name}"
    return (
        f"chatbench finetune -m {name} -d DIALOGUES.jsonl -o BOT · chatbench chat --raw -m {name}"
    )


def _rows(log: Path) -> Iterator[dict[str, Any]]:
    """Rows that can be read; none when there is no such file."""
    if not log.is_file():
        return
    for line in log.read_bytes().splitlines():
        try:
            row = msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row
