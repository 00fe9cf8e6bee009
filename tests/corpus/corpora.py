"""Small corpora of numbered rows, and what became of each row."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec

from chatbench.corpus.build import preprocess
from chatbench.corpus.reports.facts import CorpusFacts
from chatbench.corpus.shards import Corpus, open_corpus
from chatbench.settings import PreprocessSettings
from conftest import write_jsonl

EN = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("ain", "ell", "ock", "umb", "ire", "ast")]
ZH = [chr(code) for code in range(0x4E10, 0x4F80)]
_STOPS = ["the", "of", "and", "that", "have", "with", "的", "是", "了", "在", "有", "和"]
Row = dict[str, Any]


def build(out: Path, *inputs: Path, **settings: Any) -> Corpus:
    given = {
        "vocab_size": 300, "val_fraction": 0.2, "test_fraction": 0.2, "profile": False,
        "workers": 1, **settings,
    }  # fmt: skip
    made = preprocess(PreprocessSettings(inputs=list(map(str, inputs)), out=str(out), **given))
    return open_corpus(made)


def numbered(path: Path, rows: list[Row]) -> Path:
    """The rows as JSON Lines, each with its number in column `n`."""
    return write_jsonl(path, [{**row, "n": n} for n, row in enumerate(rows)])


def rows_of(path: Path) -> list[Row]:
    return [msgspec.json.decode(line) for line in path.read_bytes().split(b"\n") if line]


def fates(corpus: Corpus, count: int) -> list[str]:
    """Of each numbered row: val, test, the reason it was dropped for, or else train."""
    found = {}
    for name in ("val", "test", "dropped"):
        for row in rows_of(corpus.folder / f"{name}.jsonl"):
            if row.get("status") != "failed":
                found[row["n"]] = row["reason"] if name == "dropped" else name
    fate = [found.get(n, "train") for n in range(count)]
    assert fate.count("train") == len(corpus.split("train"))
    return fate


def facts_of(corpus: Corpus) -> CorpusFacts:
    return msgspec.json.decode((corpus.folder / "facts.json").read_bytes(), type=CorpusFacts)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def words(rng: random.Random, chinese: bool, length: int) -> list[str]:
    return rng.choices(ZH if chinese else EN, k=length)


def written(chosen: list[str], chinese: bool) -> str:
    return ("" if chinese else " ").join(chosen)


def prose(rng: random.Random, chinese: bool, sentences: int = 8) -> str:
    """Sentences of words that mean nothing, with what the rules for prose ask for."""
    lines = []
    for _ in range(sentences):
        chosen = words(rng, chinese, rng.randint(9, 14))
        for place in range(2, len(chosen), 4):
            chosen.insert(place, rng.choice(_STOPS[6:] if chinese else _STOPS[:6]))
        lines.append(written(chosen, chinese).capitalize() + ("。" if chinese else "."))
    return "".join(lines) if chinese else " ".join(lines)


def exchange_row(asked: str, told: str, system: str | None = None) -> Row:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
    first = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*first, *turns]}


def all_kinds(rng: random.Random, count: int) -> list[Row]:
    """Texts, chats, preference pairs and judged replies in both languages, with two tags."""
    rows: list[Row] = []
    for n in range(count):
        chinese = n % 2 == 1
        said = [prose(rng, chinese, rng.randint(6, 9)) for _ in range(3)]
        row: Row = [
            {"text": said[0]},
            exchange_row(*said[:2], system="要简短。" if chinese else None),
            {"prompt": said[0], "chosen": said[1], "rejected": said[2]},
            {"prompt": said[0], "completion": said[1], "label": n % 4 < 2},
            {"instruction": said[0], "input": "", "output": said[1]},
        ][n // 2 % 5]
        tags = {"style": rng.choice(["formal", "随意", None]), "topic": rng.choice(["tea", "书"])}
        rows.append({**row, **tags})
    return rows
