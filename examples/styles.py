"""A shop's bot in two styles and two languages: `--tag style=formal`, `--tag 语气=随意`.

    python examples/styles.py OUT

Makes tagged dialogues (English with a column `style`, Chinese with a column `语气`), trains a very
small model from nothing on them and asks it under every tag and without. OUT receives everything.
It takes about a minute; styles.md says what came out.
"""

from __future__ import annotations

import json
import random
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

# Price in yuan, and the shelf.
GOODS = [
    ("tea", "茶叶", 12, 3), ("coffee", "咖啡", 25, 4), ("honey", "蜂蜜", 30, 7),
    ("rice", "大米", 8, 1), ("salt", "盐", 2, 9), ("ink", "墨水", 15, 6), ("paper", "信纸", 6, 5),
    ("brushes", "毛笔", 18, 6), ("soap", "肥皂", 4, 8), ("candles", "蜡烛", 9, 8),
    ("umbrellas", "雨伞", 35, 2), ("scarves", "围巾", 48, 2), ("baskets", "竹篮", 22, 7),
    ("lamps", "台灯", 60, 4), ("cups", "茶杯", 14, 3), ("teapots", "茶壶", 55, 3),
]  # fmt: skip
# Language → what is asked → phrasings.
QUESTIONS: dict[str, dict[str, list[str]]] = {
    "en": {
        "price": ["How much is the {item}?", "What do you ask for {item}?", "What is the price of"
                  " {item}?", "I would like {item}, what is the price?"],
        "place": ["Where do I find {item}?", "On which shelf is the {item}?", "Can you show me the"
                  " {item}?", "Where have you put the {item}?"],
    },
    "zh": {
        "price": ["{item}多少钱？", "{item}怎么卖？", "请问{item}的价钱？",
                  "我想买{item}，什么价？"],
        "place": ["{item}在哪里？", "请问{item}放在哪个货架？",
                  "哪里能找到{item}？", "{item}摆在哪儿？"],
    },
}  # fmt: skip
# Style → beginnings, what is said, ends.
REPLIES: dict[str, dict[str, tuple[list[str], dict[str, str], list[str]]]] = {
    "en": {
        "formal": (
            ["Good day.", "Certainly.", "Thank you for your enquiry."],
            {"price": "The price of {item} is {price} yuan.",
             "place": "You will find {item} on shelf {shelf}."},
            ["We remain at your service.", "Kindly let us know how we may assist you further."],
        ),
        "casual": (
            ["Hey!", "Sure thing!", "Oh, easy!"],
            {"price": "That's just {price} yuan for {item}.",
             "place": "Go grab {item} from shelf {shelf}."},
            ["Shout if you need more!", "Cheers!"],
        ),
    },
    "zh": {
        "正式": (
            ["您好。", "感谢您的垂询。", "尊敬的顾客，您好。"],
            {"price": "{item}的售价为{price}元。", "place": "{item}陈列于{shelf}号货架。"},
            ["如有需要，敬请吩咐。", "期待您的光临。"],
        ),
        "随意": (
            ["嗨！", "好嘞！", "哈哈，简单！"],
            {"price": "{item}才{price}块钱啦。", "place": "{item}就在{shelf}号架子上嘛。"},
            ["有事喊我哈！", "回头见啦！"],
        ),
    },
}  # fmt: skip
COLUMNS = {"en": "style", "zh": "语气"}


def dialogues(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` different rows: messages, the tag of the language, and the fact that is asked for."""
    rng = random.Random(seed)
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        language = rng.choice(["en", "zh"])
        english, chinese, price, shelf = rng.choice(GOODS)
        topic = rng.choice(["price", "place"])
        style = rng.choice([*REPLIES[language]])
        known = {"item": english if language == "en" else chinese, "price": price, "shelf": shelf}
        begins, told, ends = REPLIES[language][style]
        said = [rng.choice(begins), told[topic], rng.choice(ends)]
        asked = rng.choice(QUESTIONS[language][topic]).format(**known)
        reply = ("" if language == "zh" else " ").join(said).format(**known)
        row = {
            "messages": [
                {"role": "user", "content": asked}, {"role": "assistant", "content": reply},
            ],
            COLUMNS[language]: style,
            "facts": [str(price if topic == "price" else shelf)],
        }  # fmt: skip
        rows[json.dumps(row)] = row
    return [*rows.values()]


def chatbench(*arguments: str | Path, stdin: str | None = None) -> str:
    """Show a command, run it, and return what it wrote to stdout."""
    words = ["chatbench", *map(str, arguments)]
    print(f"$ {shlex.join(words)}", file=sys.stderr, flush=True)
    program = [sys.executable, "-m", "chatbench", *words[1:]]
    done = subprocess.run(program, input=stdin, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    data = out / "styles.jsonl"
    data.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in dialogues(2000)), "utf-8"
    )
    columns = ",".join(COLUMNS.values())
    chatbench("preprocess", data, "-o", out / "corpus", "--tag-column", columns,
              "--vocab-size", "1024", "--split-by", "document", "--overwrite")  # fmt: skip
    length = ("--seq-len", "128", "--batch-tokens", "1024")
    chatbench("pretrain", "-d", out / "corpus", "-o", out / "base", *length, "--steps", "100",
              "--n-layers", "2", "--hidden-size", "96", "--n-heads", "3")  # fmt: skip
    chatbench("finetune", "-m", out / "base", "-d", out / "corpus", "-o", out / "bot", *length,
              "--steps", "400")  # fmt: skip
    print(chatbench("evaluate", "-m", out / "bot", "-d", out / "corpus", "--control", "every",
                    "-o", out / "evaluation", "--overwrite"))  # fmt: skip
    lines = [
        {"prompt": asked, "tags": {column: value} if value else {}}
        for asked, column, values in (
            ("How much is the honey?", "style", ["formal", "casual", ""]),
            ("茶壶在哪里？", "语气", ["正式", "随意", ""]),
        )
        for value in values
    ]
    given = "".join(json.dumps(line) + "\n" for line in lines)
    replies = chatbench("chat", "-m", out / "bot", "--jsonl", "--temperature", "0", stdin=given)
    for line, reply in zip(lines, replies.splitlines(), strict=True):
        print(f"{line['prompt']} {line['tags'] or ''}\n  {json.loads(reply)['text']}")


if __name__ == "__main__":
    main()
