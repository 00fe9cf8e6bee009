"""A shop's bot that answers curtly or courteously, as the dice fall, learns which is preferred.

    python examples/courtesy.py OUT

Trains a very small model from nothing on English and Chinese dialogues in both manners, then on
pairs of a chosen and a rejected reply (`finetune --objective dpo`), once for each manner, and
counts how it answers questions before and after. OUT receives everything. It takes about two
minutes; courtesy.md says what came out.
"""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

GOODS = {"en": ("tea", "paper", "books", "ink", "rain"),
         "zh": ("茶叶", "信纸", "墨水", "雨伞", "书架")}  # fmt: skip
MANNERS = {
    "courteous": {"en": re.compile(r"Gladly! The \w+ costs \d+ yuan\."),
                  "zh": re.compile(r"您好！\w+卖\d+元。")},
    "curt": {"en": re.compile(r"\d+\."), "zh": re.compile(r"\d+元。")},
}  # fmt: skip


class Question(NamedTuple):
    """What is asked, and both right answers."""

    language: str
    asked: str
    courteous: str
    curt: str


def questions(prices: Iterable[int]) -> Iterator[Question]:
    """Of every price and of all goods, in both languages."""
    for price in prices:
        for thing in GOODS["en"]:
            told = f"Gladly! The {thing} costs {price} yuan."
            yield Question("en", f"What does {thing} {price} cost?", told, f"{price}.")
        for thing in GOODS["zh"]:
            told = f"您好！{thing}卖{price}元。"
            yield Question("zh", f"{thing}{price}号多少钱？", told, f"{price}元。")


def write_rows(path: Path, rows: Iterable[object]) -> Path:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def write_chats(path: Path, seed: int = 0) -> Path:
    """Dialogues in one manner as often as in the other."""
    rng = random.Random(seed)
    return write_rows(
        path,
        ({"prompt": question.asked, "completion": rng.choice(question[2:])}
         for question in questions(range(10, 60))),
    )  # fmt: skip


def write_pairs(path: Path, manner: str) -> Path:
    """Every second price; the reply in this manner is the chosen one."""
    other = "curt" if manner == "courteous" else "courteous"
    return write_rows(
        path,
        ({"prompt": question.asked, "chosen": getattr(question, manner),
          "rejected": getattr(question, other)} for question in questions(range(10, 60, 2))),
    )  # fmt: skip


def shares(asked: list[Question], replies: list[str]) -> dict[str, dict[str, float]]:
    """Of each language's replies those in each manner, and those that say just what is right."""
    found: dict[str, dict[str, float]] = {}
    for language in GOODS:
        mine = [(q, r.strip()) for q, r in zip(asked, replies, strict=True)
                if q.language == language]  # fmt: skip
        found[language] = {
            manner: sum(bool(forms[language].fullmatch(reply)) for _, reply in mine) / len(mine)
            for manner, forms in MANNERS.items()
        } | {"right": sum(reply in question[2:] for question, reply in mine) / len(mine)}
    return found


def chatbench(*arguments: str | Path, stdin: str | None = None) -> str:
    """Show a command, run it, and return what it wrote to stdout."""
    words = ["chatbench", *map(str, arguments)]
    print(f"$ {shlex.join(words)}", file=sys.stderr, flush=True)
    program = [sys.executable, "-m", "chatbench", *words[1:]]
    done = subprocess.run(program, input=stdin, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def show(name: str, model: Path) -> None:
    """How the model answers questions of which it has seen no pair."""
    asked = list(questions(range(11, 60, 2)))
    given = "".join(json.dumps({"prompt": question.asked}) + "\n" for question in asked)
    said = chatbench("chat", "-m", model, "--jsonl", "--temperature", "1",
                     "--max-tokens", "40", stdin=given)  # fmt: skip
    replies = [json.loads(line)["text"] for line in said.splitlines()]
    for language, each in shares(asked, replies).items():
        print(f"{name:<10}{language}  " + "  ".join(f"{k} {v:.0%}" for k, v in each.items()))


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    base = out / "base"
    chatbench("preprocess", write_chats(out / "chats.jsonl"), "-o", out / "corpus",
              "--vocab-size", "400", "--split-by", "document")  # fmt: skip
    chatbench("pretrain", "-d", out / "corpus", "-o", base, "--n-layers", "2", "--hidden-size",
              "64", "--n-heads", "2", "--seq-len", "64", "--batch-tokens", "1024", "--steps",
              "300")  # fmt: skip
    show("before", base)
    for manner in MANNERS:
        pairs = write_pairs(out / f"{manner}.jsonl", manner)
        chatbench("finetune", "--objective", "dpo", "-m", base, "-d", pairs, "-o", out / manner)
        show(manner, out / manner)


if __name__ == "__main__":
    main()
