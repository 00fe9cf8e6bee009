"""Quality a second: validation loss against training seconds, beside GPT-2 in plain PyTorch at the
settings of nanoGPT's README for a CPU (4 layers, 4 heads, width 128, 64 characters, 12 rows, rate
1e-3 on a cosine over 2,000 steps), and of a middle size (`plain-mid`: width 256, 128 characters,
16 rows, 1,200 steps).

Text: tinyshakespeare, first nine tenths to train, last tenth to validate; or a Chinese novel. Loss:
nats a character over the whole validation part (bits a byte for Chinese). Ours reads tokens learned
on the training part; its rates, momentum and schedule are the defaults of `pretrain`. Seconds are
those of training steps alone; with `--clock cpu` the processor's, for a machine that is not idle.

python tests/bench/quality.py [--text en|zh] [--run tiny,small,mid,plain,plain-mid] [--scale 1.0]
    [--threads 0] [--clock wall]
"""

from __future__ import annotations

import argparse
import gzip
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peers.plain_gpt2 import PlainGPT2, Shape
from torch import Tensor

from chatbench.model.device import pick_dtype
from chatbench.model.head import linear_cross_entropy
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.settings import OptimSettings
from chatbench.text.tokenizer import train_tokenizer
from chatbench.train.optimizer import Optimizers, schedule
from chatbench.train.plan import default_rate

DATA = Path(__file__).parents[3] / "shared" / "data"
TEXTS = {
    "en": DATA / "tinyshakespeare" / "input.txt",
    "zh": DATA / "gutenberg-zh" / "23950-sanguo-yanyi.txt.gz",
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Recipe(NamedTuple):
    """Vocabulary, shape, rows of a step, steps, how often to validate."""

    vocabulary: int
    layers: int
    width: int
    heads: int
    tokens: int
    rows: int
    steps: int
    every: int


RECIPES = {
    "tiny": Recipe(1024, 4, 128, 4, 64, 16, 150, 25),
    "small": Recipe(1024, 4, 128, 4, 64, 16, 600, 100),
    "mid": Recipe(1024, 4, 192, 3, 128, 16, 600, 100),
}
PLAIN = {
    "plain": (Shape(4, 4, 128, 64, 12, 0), 2000),
    "plain-mid": (Shape(4, 4, 256, 128, 16, 0), 1200),
}


class Part(NamedTuple):
    """Ids of one part of the text, and what its summed nats are divided by."""

    ids: Tensor
    units: float


class Point(NamedTuple):
    step: int
    seconds: float
    loss: float


def read(name: str) -> tuple[str, str]:
    """The training and the validation part."""
    path = TEXTS[name]
    if not path.is_file():
        sys.exit(f"{path} is not here")
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    border = int(len(text) * 0.9)
    return text[:border], text[border:]


def units(text: str, name: str) -> float:
    """Characters, or for Chinese bytes in bits."""
    return len(text) if name == "en" else len(text.encode()) * math.log(2)


def windows(ids: Tensor, tokens: int, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random pieces without end."""
    drawn = np.random.default_rng(0)
    while True:
        at = drawn.integers(0, len(ids) - tokens, rows)
        pieces = torch.stack([ids[i : i + tokens + 1] for i in at.tolist()])
        yield pieces[:, :-1], pieces[:, 1:].contiguous()


@torch.no_grad()
def validate(nats: Callable[[Tensor, Tensor], float], part: Part, tokens: int) -> float:
    """Every token of the part but the first is a target once, in rows from its beginning."""
    total = 0.0
    last = len(part.ids) - 1
    whole = last // tokens * tokens
    ids, targets = part.ids[:whole].view(-1, tokens), part.ids[1 : whole + 1].view(-1, tokens)
    for begin in range(0, len(ids), 64):
        total += nats(ids[begin : begin + 64], targets[begin : begin + 64])
    if whole < last:
        total += nats(part.ids[None, whole:-1], part.ids[None, whole + 1 :])
    return total / part.units


def trained(
    steps: int, every: int, step: Callable[[int], None], loss: Callable[[], float],
    clock: Callable[[], float],
) -> Iterator[Point]:  # fmt: skip
    spent = 0.0
    for number in range(1, steps + 1):
        begun = clock()
        step(number)
        spent += clock() - begun
        if number % every == 0 or number == steps:
            yield Point(number, spent, loss())


def ours(
    recipe: Recipe, train: str, held: str, name: str, clock: Callable[[], float]
) -> Iterator[Point]:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(train.splitlines(keepends=True), recipe.vocabulary)
    ids = torch.tensor(tokenizer.encode(train))
    part = Part(torch.tensor(tokenizer.encode(held)), units(held, name))
    width = recipe.width
    config = ModelConfig(
        tokenizer.vocab_size, recipe.layers, width, recipe.heads, recipe.heads,
        width // recipe.heads, -(-8 * width // 3 // 64) * 64, recipe.tokens,
    )  # fmt: skip
    model = GPT(config).train()
    initialise(model, 0)
    settings, batch = OptimSettings(), recipe.rows * recipe.tokens
    rate = default_rate("muon", width, finetune=False, batch_tokens=batch)
    dtype = pick_dtype("auto", torch.device("cpu"))
    optimizers = Optimizers(model, settings, rate, dtype, batch_tokens=batch)
    batches = windows(ids, recipe.tokens, recipe.rows)

    def nats(ids: Tensor, targets: Tensor) -> Tensor:
        hidden = model(ids).flatten(0, 1)
        return linear_cross_entropy(hidden, model.lm_head.weight, targets.flatten()).total

    def step(number: int) -> None:
        (nats(*next(batches)) / batch).backward()
        optimizers.collect_gradients()
        optimizers.clip(settings.grad_clip)
        optimizers.step(schedule(number / recipe.steps, settings), number=number - 1)

    def loss() -> float:
        return validate(lambda a, b: float(nats(a, b)), part, recipe.tokens)

    return trained(recipe.steps, recipe.every, step, loss, clock)


def plain(
    shape: Shape, steps: int, train: str, held: str, name: str, clock: Callable[[], float]
) -> Iterator[Point]:
    torch.manual_seed(0)
    letters = {letter: number for number, letter in enumerate(sorted(set(train + held)))}
    ids = torch.tensor([letters[letter] for letter in train])
    part = Part(torch.tensor([letters[letter] for letter in held]), units(held, name))
    shape = shape._replace(vocabulary=len(letters))
    model = PlainGPT2(shape).train()
    optimizer = model.optimizer(1e-3)
    batches = windows(ids, shape.tokens, shape.rows)
    warmup = max(1, steps // 20)

    def step(number: int) -> None:
        gone = min(1.0, max(0.0, (number - warmup) / (steps - warmup)))
        warm = min(1.0, number / warmup)
        for group in optimizer.param_groups:
            group["lr"] = warm * (1e-4 + 0.5 * (1 + math.cos(math.pi * gone)) * 9e-4)
        model(*next(batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def nats(ids: Tensor, targets: Tensor) -> float:
        return float(model(ids, targets)) * targets.numel()

    return trained(
        steps, max(1, steps // 8), step, lambda: validate(nats, part, shape.tokens), clock
    )


def show(title: str, points: Iterator[Point]) -> list[Point]:
    found = []
    for point in points:
        found.append(point)
        print(
            f"{title}: step {point.step:5} · {point.seconds:6.1f} s · {point.loss:.4f}", flush=True
        )
    return found


def first(points: list[Point], loss: float) -> Point | None:
    return next((point for point in points if point.loss <= loss), None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", choices=sorted(TEXTS), default="en")
    parser.add_argument("--run", default="tiny,small,mid,plain,plain-mid")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--scale", type=float, default=1.0, help="share of all steps to run")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    train, held = read(args.text)
    clock = CLOCKS[args.clock]
    found: dict[str, list[Point]] = {}
    for run in args.run.split(","):
        if run in PLAIN:
            shape, steps = PLAIN[run]
            steps = max(2, round(steps * args.scale))
            found[run] = show(run, plain(shape, steps, train, held, args.text, clock))
            continue
        recipe = RECIPES[run]
        steps = max(1, round(recipe.steps * args.scale))
        recipe = recipe._replace(steps=steps, every=min(recipe.every, steps))
        found[run] = show(run, ours(recipe, train, held, args.text, clock))
    for loss in (1.88, 1.72, 1.55) if args.text == "en" else ():
        reached = {run: first(points, loss) for run, points in found.items()}
        words = [f"{run} {p.seconds:.1f} s" if p else f"{run} never" for run, p in reached.items()]
        print(f"to {loss}: {' · '.join(words)}")


if __name__ == "__main__":
    main()
