"""What evaluate computes beside its peers, same model, same machine, in turn: greedy replies of
the batched engine beside a loop over transformers' `generate`, and log-likelihoods of choices
beside lm-evaluation-harness with its `hf` model (left out where lm_eval is not installed).

python tests/bench/evaluate.py MODEL [--replies 1000] [--looped 100] [--rounds 3]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM

from chatbench.conversation import Message
from chatbench.evaluate.choices import Choice, score_choices
from chatbench.evaluate.tasks import answer
from chatbench.model.folder import OpenedModel, open_model
from chatbench.settings import SamplingSettings
from chatbench.text.template import reply_prompt

LONGEST = 32
WORDS = [
    "the",
    "shop",
    "opens",
    "at",
    "nine",
    "in",
    "the",
    "morning",
    "tea",
    "books",
    "and",
    "paper",
    "stand",
    "on",
    "shelves",
]


def rate(count: int, call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return count / (time.perf_counter() - begun)


def replies(opened: OpenedModel, many: int, looped: int, rounds: int) -> None:
    peer = AutoModelForCausalLM.from_pretrained(str(opened.folder)).eval()
    asked = [f"What does tea {n} cost?" if n % 2 else f"墨水{n}号多少钱？" for n in range(many)]
    prompts = [reply_prompt(opened.tokenizer, [Message("user", text)]) for text in asked]
    greedy = SamplingSettings(temperature=0, max_tokens=LONGEST)

    def loop() -> None:
        for prompt in prompts[:looped]:
            peer.generate(torch.tensor([prompt]), max_new_tokens=LONGEST, do_sample=False)

    ratios = []
    with torch.no_grad():
        for _ in range(rounds):
            ours = rate(many, lambda: answer(opened, prompts, greedy, 16))
            theirs = rate(looped, loop)
            ratios.append(ours / theirs)
            print(f"replies a second: {ours:.1f}, generate {theirs:.1f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


def likelihoods(opened: OpenedModel, rounds: int) -> None:
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        print("lm_eval is not installed")
        return
    drawn = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(drawn.choices(WORDS, k=drawn.randrange(least, most)))

    items = [Choice(text(8, 30), tuple(text(3, 8) for _ in range(4)), 0, False) for _ in range(400)]
    peer = HFLM(pretrained=str(opened.folder), device="cpu", dtype="float32", batch_size=16)
    requests = [
        Instance("loglikelihood", {}, (item.query, f" {choice}"), number)
        for item in items for number, choice in enumerate(item.choices)
    ]  # fmt: skip
    ratios = []
    for _ in range(rounds):
        theirs = rate(len(requests), lambda: peer.loglikelihood(requests, disable_tqdm=True))
        ours = rate(len(requests), lambda: score_choices(opened, items, 16))
        ratios.append(ours / theirs)
        print(f"choices a second: {ours:.0f}, lm-eval {theirs:.0f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--replies", type=int, default=1000)
    parser.add_argument("--looped", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    opened = open_model(args.model, torch.device("cpu"))
    replies(opened, args.replies, args.looped, args.rounds)
    likelihoods(opened, args.rounds)


if __name__ == "__main__":
    main()
