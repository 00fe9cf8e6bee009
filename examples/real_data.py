"""The whole job on real data: English books, then small talk, then questions through a pipe.

    python examples/real_data.py DATA OUT [MINUTES]

DATA holds public data sets, one folder each:
  gutenberg-en/*.txt.gz                               books of Project Gutenberg
  personality-chat/qna_chitchat_professional.tsv.gz   questions and answers (tab separated)
OUT receives everything; MINUTES (default 4) is what each of the two trainings may take.
Without the data it says so and ends with exit code 0.
"""

from __future__ import annotations

import csv
import gzip
import json
import shlex
import subprocess
import sys
from pathlib import Path

BOOKS = ("alice", "looking-glass", "peter-pan", "wizard-of-oz", "secret-garden", "just-so", "heidi",
         "railway-children", "doctor-dolittle", "black-beauty")  # fmt: skip
QUESTIONS = ("Hello, who are you?", "Do you like music?", "Tell me a joke", "Good night!")


def chatbench(*arguments: str | Path, stdin: str | None = None) -> str:
    """Show a command, run it, and return what it wrote to stdout."""
    words = ["chatbench", *map(str, arguments)]
    print(f"$ {shlex.join(words)}", file=sys.stderr, flush=True)
    program = [sys.executable, "-m", "chatbench", *words[1:]]
    done = subprocess.run(program, input=stdin, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def write_dialogues(table: Path, target: Path) -> None:
    """Tab-separated questions and answers → one dialogue a line."""
    with gzip.open(table, "rt", encoding="utf-8") as source, target.open("w") as out:
        for row in csv.DictReader(source, delimiter="\t"):
            pair = {"prompt": row["Question"], "completion": row["Answer"]}
            out.write(json.dumps(pair, ensure_ascii=False) + "\n")


def main() -> None:
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    minutes = sys.argv[3] if len(sys.argv) == 4 else "4"
    books = [
        p for p in sorted(data.glob("gutenberg-en/*.txt.gz")) if any(b in p.name for b in BOOKS)
    ]
    table = data / "personality-chat" / "qna_chitchat_professional.tsv.gz"
    if not books or not table.is_file():
        print(f"{data} does not hold the data sets, so there is nothing to do", file=sys.stderr)
        return
    out.mkdir(parents=True, exist_ok=True)
    write_dialogues(table, out / "dialogues.jsonl")

    chatbench("preprocess", *books, "-o", out / "corpus", "--vocab-size", "4096")
    chatbench("pretrain", "-d", out / "corpus", "-o", out / "base", "--minutes", minutes,
              "--seq-len", "128", "--batch-tokens", "2048")  # fmt: skip
    chatbench("preprocess", out / "dialogues.jsonl", "-o", out / "chats",
              "--tokenizer", out / "base")  # fmt: skip
    chatbench("finetune", "-m", out / "base", "-d", out / "chats", "-o", out / "bot",
              "--minutes", minutes, "--batch-tokens", "1024")  # fmt: skip

    print(chatbench("evaluate", "-m", out / "base", "-d", out / "corpus"))
    print(chatbench("evaluate", "-m", out / "bot", "-d", out / "chats", "-o", out / "evaluation"))
    lines = "".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS)
    replies = chatbench("chat", "-m", out / "bot", "--jsonl", "--temperature", "0", stdin=lines)
    for question, line in zip(QUESTIONS, replies.splitlines(), strict=True):
        print(f"> {question}\n{json.loads(line)['text']}")


if __name__ == "__main__":
    main()
