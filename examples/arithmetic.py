"""Sums in words, English and Chinese, learned from rewards: "three plus four" → "seven".

    python examples/arithmetic.py OUT [MINUTES]

A small model is shown half of the sums with their answers. Then it answers the other half itself,
many times each, and learns from nothing but whether an answer was right (`finetune --objective
grpo`). The share of right answers to sums that it was neither shown nor asked is told before and
after. OUT receives everything; MINUTES (default 5) is what learning from rewards may take.
"""

from __future__ import annotations

import json
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LARGEST = 9
ENGLISH = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen", "twenty",
)  # fmt: skip
TENS = {2: "twenty"}
DIGITS = "零一二三四五六七八九"
ASKED = (
    "{} plus {}", "what is {} plus {}?", "add {} and {}",
    "{}加{}", "{}加{}等于几？", "{}和{}的和是多少？",
)  # fmt: skip


def in_english(number: int) -> str:
    """0 to 29 in words."""
    if number <= 20:
        return ENGLISH[number]
    return f"{TENS[number // 10]}-{ENGLISH[number % 10]}"


def in_chinese(number: int) -> str:
    """0 to 99 in characters."""
    tens, ones = divmod(number, 10)
    if not tens:
        return DIGITS[ones]
    return ("" if tens == 1 else DIGITS[tens]) + "十" + (DIGITS[ones] if ones else "")


def sums(largest: int = LARGEST) -> Iterator[tuple[str, str]]:
    """Every question about two numbers up to `largest` with its answer."""
    for a in range(largest + 1):
        for b in range(largest + 1):
            for asked in ASKED:
                spell = in_english if asked.isascii() else in_chinese
                yield asked.format(spell(a), spell(b)), spell(a + b)


def write_sums(path: Path, largest: int = LARGEST) -> Path:
    """One dialogue a line."""
    return _write(path, list(sums(largest)))


def write_halves(folder: Path, largest: int = LARGEST) -> tuple[Path, Path]:
    """The sums that are shown and those that are asked, drawn by chance, always the same."""
    drawn = list(sums(largest))
    random.Random(0).shuffle(drawn)
    half = len(drawn) // 2
    return _write(folder / "shown.jsonl", drawn[:half]), _write(
        folder / "asked.jsonl", drawn[half:]
    )


def _write(path: Path, pairs: list[tuple[str, str]]) -> Path:
    rows = ({"prompt": question, "completion": answer} for question, answer in pairs)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def chatbench(*arguments: str | Path) -> str:
    """Show a command, run it, and return what it wrote to stdout."""
    words = ["chatbench", *map(str, arguments)]
    print(f"$ {shlex.join(words)}", file=sys.stderr, flush=True)
    program = [sys.executable, "-m", "chatbench", *words[1:]]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    out, minutes = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else "5"
    out.mkdir(parents=True, exist_ok=True)
    shown, asked = write_halves(out)
    corpus, questions, base, bot = (out / name for name in ("corpus", "questions", "base", "bot"))
    chatbench("preprocess", shown, "-o", corpus, "--vocab-size", "400", "--val-fraction", "0.1",
              "--test-fraction", "0", "--split-by", "document")  # fmt: skip
    chatbench("pretrain", "-d", corpus, "-o", base, "--n-layers", "2", "--hidden-size", "64",
              "--seq-len", "64", "--batch-tokens", "1024", "--steps", "280",
              "--eval-every", "1000")  # fmt: skip
    chatbench("preprocess", asked, "-o", questions, "--tokenizer", corpus, "--val-fraction", "0.25",
              "--test-fraction", "0", "--split-by", "document")  # fmt: skip
    chatbench("finetune", "--objective", "grpo", "-m", base, "-d", questions, "-o", bot,
              "--reward", "exact_match", "--max-new-tokens", "12",
              "--minutes", minutes)  # fmt: skip
    for name, model in (("before", base), ("after", bot)):
        found = json.loads(
            chatbench("evaluate", "-m", model, "-d", questions, "--split", "val", "--json")
        )
        (right,) = (score for score in found["scores"] if score["name"] == "exact_match")
        print(f"{name}: {right['value']:.1f} % of {right['n']} held-out sums are right")


if __name__ == "__main__":
    main()
