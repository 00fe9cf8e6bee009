"""How far rewards carry a small model on sums in words, and what that takes.

python tests/bench/grpo.py OUT [STEPS [RATE ...]]

The base model is shown half of the sums (examples/arithmetic.py) and learns by GRPO from being
asked the other half, for STEPS steps (default 120) at each multiple RATE of its usual learning rate
(default 1). Printed: the share of drawn answers that were right, by tenths of the run; of greedy
answers to held-out sums, by validations; seconds of the processor and of the clock.
"""

from __future__ import annotations

import json
import math
import runpy
import sys
import time
from pathlib import Path

from chatbench.corpus.build import preprocess
from chatbench.settings import (
    FinetuneSettings,
    GrpoSettings,
    ModelSettings,
    OptimSettings,
    PreprocessSettings,
    PretrainSettings,
    TrainSettings,
)
from chatbench.train.recipes import finetune, pretrain

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "arithmetic.py"))
# What the plan gives a model of this width.
USUAL = 0.77 / 64 / 4 * 0.3


def prepared(out: Path) -> tuple[Path, Path]:
    """The base model and the corpus of questions."""
    shown, asked = EXAMPLE["write_halves"](out)
    corpus, questions = out / "corpus", out / "questions"
    if not questions.is_dir():
        for data, folder, held, tokenizer in (
            (shown, corpus, 0.1, None), (asked, questions, 0.25, str(corpus)),
        ):  # fmt: skip
            preprocess(
                PreprocessSettings(
                    inputs=[str(data)], out=str(folder), vocab_size=400, tokenizer=tokenizer,
                    val_fraction=held, test_fraction=0.0, split_by="document", overwrite=True,
                )
            )  # fmt: skip
        pretrain(
            PretrainSettings(
                data=str(corpus), out=str(out / "base"),
                model=ModelSettings(n_layers=2, hidden_size=64, n_heads=2),
                train=TrainSettings(
                    steps=280, seq_len=64, batch_tokens=1024, eval_every=1000, tensorboard=False
                ),
            )
        )  # fmt: skip
    return out / "base", questions


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 120
    base, questions = prepared(out)
    for rate in map(float, sys.argv[3:] or ["1"]):
        run, begun, spent = out / f"bot-{rate}-{steps}", time.monotonic(), time.process_time()
        finetune(
            FinetuneSettings(
                model=str(base), data=[str(questions)], out=str(run), objective="grpo",
                grpo=GrpoSettings(reward=["exact_match"], max_new_tokens=12),
                optim=OptimSettings(learning_rate=rate * USUAL),
                train=TrainSettings(
                    steps=steps, eval_every=max(1, steps // 5), log_every=1, tensorboard=False
                ),
            )
        )  # fmt: skip
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        drawn = [row["reward"] for row in rows if "reward" in row]
        tenth = max(1, len(drawn) // 10)
        parts = [drawn[at : at + tenth] for at in range(0, len(drawn), tenth)]
        means = " ".join(f"{math.fsum(part) / len(part):.2f}" for part in parts)
        held = " ".join(f"{row['val_reward']:.2f}" for row in rows if "val_reward" in row)
        cost = f"{time.process_time() - spent:.0f} CPU s, {time.monotonic() - begun:.0f} s"
        print(f"rate {rate}: drawn {means} · held out {held} · {cost}")


if __name__ == "__main__":
    main()
