"""Tokens a second of a training step: ours beside GPT-2 in plain PyTorch and beside transformers'
Trainer, in turn, medians over rounds.

Ours is what `pretrain` runs, Muon included; `--optimizer adamw` compares AdamW with AdamW. The
limit is that of the machine's float32 products (`sgemm`), in the same run. `--clock cpu` counts
this process's own processor seconds, for a machine that is not idle, with one thread.

python tests/bench/train.py [--shape tiny,baby,gpt2] [--peer plain,trainer] [--optimizer muon]
    [--rounds 7] [--steps 3] [--threads 0] [--clock wall]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from peers.plain_gpt2 import PlainGPT2, Shape

from chatbench.model.device import dtype_name, pick_dtype
from chatbench.model.head import linear_cross_entropy
from chatbench.model.transformer import GPT, ModelConfig, initialise
from chatbench.settings import OptimSettings
from chatbench.train.optimizer import Optimizers

SHAPES = {
    "tiny": Shape(4, 4, 128, 64, 12, 65),
    "baby": Shape(6, 6, 384, 256, 16, 65),
    "gpt2": Shape(12, 12, 768, 512, 4, 50_304),
}
Step = Callable[[], object]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def drawn(shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, shape.vocabulary, (shape.rows, shape.tokens + 1))
    return ids[:, :-1], ids[:, 1:].contiguous()


def ours(shape: Shape, optimizer: str) -> Step:
    """The same shape; SwiGLU with two thirds of GPT-2's inner width has as many weights."""
    width = shape.width
    ffn = -(-8 * width // 3 // 64) * 64
    config = ModelConfig(
        shape.vocabulary, shape.layers, width, shape.heads, shape.heads, width // shape.heads, ffn,
        shape.tokens,
    )  # fmt: skip
    model = GPT(config).train()
    initialise(model, 0)
    ids, targets = drawn(shape)
    settings = OptimSettings(optimizer=optimizer)  # type: ignore[arg-type]
    dtype = pick_dtype("auto", torch.device("cpu"))
    optimizers = Optimizers(model, settings, 1e-3, dtype, batch_tokens=ids.numel())

    def step() -> None:
        hidden = model(ids).flatten(0, 1)
        loss = linear_cross_entropy(hidden, model.lm_head.weight, targets.flatten())
        (loss.total / ids.numel()).backward()
        optimizers.collect_gradients()
        optimizers.clip(1.0)
        float(loss.total.detach())
        optimizers.step(1.0)

    return step


def plain(shape: Shape) -> Step:
    model = PlainGPT2(shape).train()
    optimizer = model.optimizer(1e-3)
    ids, targets = drawn(shape)

    def step() -> None:
        loss = model(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss.detach())

    return step


def timed(step: Step, steps: int, clock: Callable[[], float]) -> Callable[[], float]:
    """Seconds of a step, over `steps` of them."""

    def measure() -> float:
        begun = clock()
        for _ in range(steps):
            step()
        return (clock() - begun) / steps

    return measure


def trainer(shape: Shape, steps: int, clock: Callable[[], float]) -> Callable[[], float]:
    """Seconds of a step of Trainer with its CPU defaults, the first step apart."""
    from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainerCallback
    from transformers import TrainingArguments as Arguments

    config = GPT2Config(
        vocab_size=shape.vocabulary, n_positions=shape.tokens, n_embd=shape.width,
        n_layer=shape.layers, n_head=shape.heads, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    ids, _ = drawn(shape)
    rows = [{"input_ids": row, "labels": row} for row in ids] * (steps + 1)
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *given: object, **more: object) -> None:
            marks.append(clock())

    def measure() -> float:
        marks.clear()
        with tempfile.TemporaryDirectory() as folder:
            arguments = Arguments(
                output_dir=folder, per_device_train_batch_size=shape.rows, max_steps=steps + 1,
                use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no",
                disable_tqdm=True, dataloader_pin_memory=False,
            )  # fmt: skip
            peer = Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Clock()])
            peer.remove_callback(PrinterCallback)
            peer.train()
        return (marks[-1] - marks[0]) / steps

    return measure


def sgemm(shape: Shape, clock: Callable[[], float]) -> float:
    """GFLOP/s of float32 products as wide as this shape's."""
    x = torch.randn(shape.rows * shape.tokens, shape.width)
    w = torch.randn(4 * shape.width, shape.width)
    measure = timed(lambda: x @ w.T, 3, clock)
    spent = statistics.median(measure() for _ in range(7))
    return 2 * x.numel() * len(w) / spent / 1e9


def report(name: str, peers: list[str], args: argparse.Namespace) -> None:
    """The lines of one shape."""
    shape, clock = SHAPES[name], CLOCKS[args.clock]
    own = ours(shape, args.optimizer)
    own()
    mine = timed(own, args.steps, clock)
    limit = sgemm(shape, clock)
    matrices = 12 * shape.layers * shape.width**2 + shape.vocabulary * shape.width
    work = 6 * (matrices + shape.layers * shape.width * shape.tokens)
    tokens = shape.rows * shape.tokens
    for peer in peers:
        if peer == "plain":
            step = plain(shape)
            step()
            other = timed(step, args.steps, clock)
        else:
            other = trainer(shape, args.steps, clock)
        pairs = [(mine(), other()) for _ in range(args.rounds)]
        a, b = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        ratio = statistics.median(b / a for a, b in pairs)
        reached = tokens * work / a / 1e9
        print(
            f"{name}: ours {tokens / a:,.0f} tok/s ({reached:.0f} of sgemm's {limit:.0f} GFLOP/s)"
            f" · {peer} {tokens / b:,.0f} tok/s · {ratio:.2f}× ({args.rounds} pairs)",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="tiny,baby,gpt2")
    parser.add_argument("--peer", default="plain,trainer")
    parser.add_argument("--optimizer", default="muon")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    dtype = dtype_name(pick_dtype("auto", torch.device("cpu")))
    print(f"{torch.get_num_threads()} threads, ours in {dtype} with {args.optimizer}")
    for name in args.shape.split(","):
        report(name, args.peer.split(","), args)


if __name__ == "__main__":
    main()
