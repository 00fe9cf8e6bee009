"""A finetune of ours beside one with transformers' Trainer: tokens a second and held-out loss.

Both start from the same model folder, learn the same conversations (corpus folder) for as many
epochs, and are judged by the same program on the same held-out replies. Tokens are those of the
conversations, padding left out; seconds are this process's own, all of a finetune included:
packing, checks, validation, checkpoints. The Trainer runs at several learning rates, of which the
best held-out loss counts; it pads its batches and saves nothing until the end.

python tests/bench/sft.py -m MODEL -d CORPUS [--epochs 3] [--seq-len 256] [--batch-tokens N]
    [--rows 16] [--rate R] [--rates 5e-4,1e-3,2e-3] [--clock cpu]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from chatbench.corpus.shards import Corpus, TokenSplit, open_corpus
from chatbench.model.folder import open_model
from chatbench.settings import FinetuneSettings, OptimSettings, TrainSettings
from chatbench.train.batches import held_out
from chatbench.train.likelihood import Likelihood
from chatbench.train.recipes import finetune
from chatbench.train.supervised import packed

CPU = torch.device("cpu")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Tuned(NamedTuple):
    """Seconds of a finetune, and nats a token of held-out replies."""

    seconds: float
    loss: float


def ours(args: argparse.Namespace, corpus: Corpus, clock: Callable[[], float]) -> Tuned:
    with tempfile.TemporaryDirectory() as folder:
        # Validated once, as the other is: at the end.
        train = TrainSettings(
            epochs=args.epochs, seq_len=args.seq_len, batch_tokens=args.batch_tokens, patience=0,
            eval_every=10**6, sample_every=10**6, tensorboard=False,
        )  # fmt: skip
        begun = clock()
        run = finetune(
            FinetuneSettings(
                model=args.model, data=[args.data], out=f"{folder}/run", device="cpu",
                dtype="float32", train=train, optim=OptimSettings(learning_rate=args.rate),
            )
        )  # fmt: skip
        seconds = clock() - begun
        assert run is not None
        return Tuned(seconds, judged(run / "model", corpus, args.seq_len))


def judged(model_folder: Path, corpus: Corpus, seq_len: int) -> float:
    """Nats a token of the validation split's replies."""
    settings = FinetuneSettings(model="", data=[""], out="")
    rows = packed(settings, corpus.split("val"), corpus.tokenizer, seq_len)
    judge = Likelihood(None, held_out(rows, 8, 1 << 40), corpus.tokenizer)
    model = open_model(model_folder, CPU).model.eval()
    with torch.no_grad():
        losses = [judge.loss(model, batch) for batch in judge.validation()]
    return sum(float(loss.total) for loss in losses) / sum(loss.weight for loss in losses)


def labelled(split: TokenSplit, seq_len: int) -> list[dict[str, Any]]:
    """Conversations as a plain script prepares them: cut at the end, the prompt's labels -100."""
    rows = []
    for number in range(len(split)):
        ids, weights = split.ids(number)[:seq_len], split.weights(number)[:seq_len]
        labels = [int(i) if w else -100 for i, w in zip(ids, weights, strict=True)]
        rows.append({"input_ids": ids.astype(int).tolist(), "labels": labels})
    return rows


def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": -100}
    batch = {
        name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])
        for name, value in fill.items()
    }
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(width)[None] < lengths[:, None]).long()
    return batch


def trainer(
    args: argparse.Namespace, corpus: Corpus, rate: float, clock: Callable[[], float]
) -> Tuned:
    """Trainer with its CPU defaults, and a rate that falls after a short warmup as ours does."""
    from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainingArguments

    rows = labelled(corpus.split("train"), args.seq_len)
    with tempfile.TemporaryDirectory() as folder:
        begun = clock()
        model = AutoModelForCausalLM.from_pretrained(Path(args.model), dtype=torch.float32)
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=args.rows, learning_rate=rate,
            num_train_epochs=args.epochs, warmup_steps=10, weight_decay=0.1, use_cpu=True,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=False, remove_unused_columns=False, seed=0,
        )  # fmt: skip
        peer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=padded)
        peer.remove_callback(PrinterCallback)
        peer.train()
        seconds = clock() - begun
        final = Path(folder) / "model"
        model.save_pretrained(final)
        corpus.tokenizer.save(final)
        return Tuned(seconds, judged(final, corpus, args.seq_len))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-d", "--data", required=True)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch-tokens", type=int, default=None)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rate", type=float, default=None, help="of ours")
    parser.add_argument("--rates", default="5e-4,1e-3,2e-3")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="cpu")
    args = parser.parse_args()
    clock = CLOCKS[args.clock]
    corpus = open_corpus(Path(args.data))
    tokens = corpus.split("train").tokens * args.epochs
    print(f"before: held-out loss {judged(Path(args.model), corpus, args.seq_len):.4f}")
    mine = ours(args, corpus, clock)
    print(f"ours: {tokens / mine.seconds:,.0f} tok/s, held-out loss {mine.loss:.4f}", flush=True)
    others = []
    for rate in map(float, args.rates.split(",")):
        others.append(trainer(args, corpus, rate, clock))
        other = others[-1]
        print(
            f"trainer at {rate:g}: {tokens / other.seconds:,.0f} tok/s, "
            f"held-out loss {other.loss:.4f}",
            flush=True,
        )
    best = min(others, key=lambda other: other.loss)
    print(
        f"{best.seconds / mine.seconds:.2f}x its tokens/s, held-out loss {mine.loss:.4f} against "
        f"{best.loss:.4f}"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
