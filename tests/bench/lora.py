"""Tokens a second and held-out loss of `finetune --lora-rank` beside peft with transformers'
Trainer: one base model, the same conversations, the same epochs, one thread.

Rows of ours are packed; the Trainer pads a batch of as many tokens to its longest conversation, and
its padding is not counted. `--rates` are multiples of our default rate, `--peer-rates` those of the
Trainer. Held-out loss is that of the same code for both, one conversation at a time. Seconds are
this process's own processor seconds of the training loops; ours validates, writes a checkpoint and
the finished folder in them, once.

python tests/bench/lora.py [--dialogues 1200] [--epochs 1] [--rank 8] [--pretrain-steps 300]
    [--rates 1] [--peer-rates 0.001,0.005] [--optimizer muon,adamw] [--quantize none] [--full]
    [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from chatbench.corpus.build import preprocess
from chatbench.corpus.shards import Corpus, TokenSplit, open_corpus
from chatbench.demo.corpus import dialogues, prose
from chatbench.model.folder import open_model
from chatbench.settings import (
    FinetuneSettings,
    LoraSettings,
    ModelSettings,
    OptimSettings,
    PreprocessSettings,
    PretrainSettings,
    TrainSettings,
)
from chatbench.train.adapting import adaptation_of
from chatbench.train.loop import Trainer
from chatbench.train.plan import default_rate
from chatbench.train.recipes import finetune, pretrain

CPU = torch.device("cpu")
BATCH_TOKENS = 2048
NEVER = 1_000_000


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def prepared(place: Path, count: int, steps: int) -> tuple[Path, Path]:
    """A base model of 4 × 256 that has read about the shop, and conversations it has not seen."""
    if not (place / "base" / "model").is_dir():
        texts = written(place / "prose.jsonl", [{"text": text} for text in prose(0, 1500)])
        made = preprocess(
            PreprocessSettings(inputs=[str(texts)], out=str(place / "texts"), vocab_size=2048)
        )
        pretrain(
            PretrainSettings(
                data=str(made), out=str(place / "base"), dtype="float32", device="cpu",
                model=ModelSettings(size="tiny"),
                train=TrainSettings(steps=steps, tensorboard=False),
            )
        )  # fmt: skip
    chats = place / f"chats-{count}"
    if not chats.is_dir():
        rows = written(place / "chats.jsonl", dialogues(1, count))
        preprocess(
            PreprocessSettings(
                inputs=[str(rows)], out=str(chats), tokenizer=str(place / "base" / "model")
            )
        )
    return place / "base", chats


def conversations(split: TokenSplit) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids (T,) and labels (T,) of each, -100 where nothing is learned."""
    found = []
    for number in range(len(split)):
        ids = torch.tensor(split.ids(number).astype("int64"))
        learned = torch.tensor(split.weights(number).astype("float32")) > 0
        found.append((ids, torch.where(learned, ids, -100)))
    return found


@torch.no_grad()
def held_out(folder: Path, corpus: Corpus) -> float:
    """Nats a learned token."""
    model = open_model(folder, CPU).model
    total = count = 0.0
    for ids, labels in conversations(corpus.split("val")):
        logits = model.logits(model(ids[None, :-1]))[0]
        total += float(F.cross_entropy(logits, labels[1:], reduction="sum"))
        count += int((labels[1:] >= 0).sum())
    return total / count


def ours(base: Path, chats: Path, out: Path, options: Any, optimizer: str, rate: float,
         lora: bool = True) -> float:  # fmt: skip
    """Processor seconds of the training loop."""
    settings = FinetuneSettings(
        model=str(base), data=[str(chats)], out=str(out), dtype="float32", device="cpu",
        lora=LoraSettings(rank=options.rank if lora else None),
        quantize=options.quantize if lora else "none",
        optim=OptimSettings(optimizer=optimizer),  # type: ignore[arg-type]
        train=TrainSettings(
            epochs=options.epochs, batch_tokens=BATCH_TOKENS, tensorboard=False, patience=0,
            eval_every=NEVER, sample_every=NEVER, save_every=NEVER,
        ),
    )  # fmt: skip
    if rate != 1.0:
        width = open_model(base, CPU).model.config.hidden_size
        usual = default_rate(optimizer, width, finetune=True)
        settings.optim.learning_rate = rate * usual * adaptation_of(settings).rate(optimizer)
    seconds: list[float] = []
    fit = Trainer.fit

    def timed(self: Trainer, *arguments: Any) -> Path:
        begun = time.process_time()
        done = fit(self, *arguments)
        seconds.append(time.process_time() - begun)
        return done

    Trainer.fit = timed  # type: ignore[method-assign]
    finetune(settings)
    Trainer.fit = fit  # type: ignore[method-assign]
    return seconds[0]


def peer(base: Path, corpus: Corpus, out: Path, options: Any, rate: float) -> float:
    """Processor seconds of the Trainer's own loop; the adapter lies in `out`."""
    import peft
    import transformers

    rows = conversations(corpus.split("train"))
    mean = sum(len(ids) for ids, _ in rows) / len(rows)
    model = transformers.AutoModelForCausalLM.from_pretrained(base / "model")
    model = peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=options.rank,
            lora_alpha=2 * options.rank,
            task_type="CAUSAL_LM",
            target_modules="all-linear",
        ),
    )

    def collate(batch: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.stack(
                [F.pad(row[name], (0, longest - len(row[name])), value=value) for row in batch]
            )

        mask = [F.pad(torch.ones(len(r["input_ids"])), (0, longest - len(r["input_ids"])))
                for r in batch]  # fmt: skip
        return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100),
                "attention_mask": torch.stack(mask).long()}  # fmt: skip

    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(out / "trainer"), num_train_epochs=options.epochs,
            per_device_train_batch_size=max(1, round(BATCH_TOKENS / mean)),
            learning_rate=rate, lr_scheduler_type="linear", warmup_steps=10,
            save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True, seed=0,
            dataloader_pin_memory=False,
        ),
        train_dataset=[{"input_ids": ids, "labels": labels} for ids, labels in rows],
        data_collator=collate,
    )  # fmt: skip
    begun = time.process_time()
    trainer.train()
    seconds = time.process_time() - begun
    model.save_pretrained(out)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dialogues", type=int, default=1200)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--pretrain-steps", type=int, default=300)
    parser.add_argument("--rates", default="1")
    parser.add_argument("--optimizer", default="muon,adamw")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--full", action="store_true", help="all weights as well")
    parser.add_argument("--peer-rates", default="0.001,0.005")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        place = options.keep or Path(scratch)
        place.mkdir(exist_ok=True)
        base, chats = prepared(place, options.dialogues, options.pretrain_steps)
        corpus = open_corpus(chats)
        tokens = options.epochs * corpus.split("train").tokens
        runs = Path(scratch) / "runs"
        runs.mkdir()
        print(f"base: held-out loss {held_out(base, corpus):.4f}", flush=True)

        def tell(who: str, rate: float, seconds: float, out: Path) -> None:
            print(
                f"{who:<32} rate {rate:<7g} {tokens / seconds:8,.0f} tokens/s  "
                f"held-out loss {held_out(out, corpus):.4f}", flush=True,
            )  # fmt: skip

        kinds = [(name, True) for name in options.optimizer.split(",")]
        kinds += [(name, False) for name, _ in kinds] if options.full else []
        for rate, (optimizer, lora) in product(numbers(options.rates), kinds):
            out = runs / f"ours-{optimizer}-{rate}-{lora}"
            seconds = ours(base, chats, out, options, optimizer, rate, lora)
            what = f"adapter over {options.quantize}" if lora else "all weights"
            tell(f"chatbench {optimizer}, {what}", rate, seconds, out)
        for rate in numbers(options.peer_rates):
            out = runs / f"peer-{rate}"
            tell("peft + Trainer", rate, peer(base, corpus, out, options, rate), out)


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",") if word]


if __name__ == "__main__":
    main()
