"""Published data sets go through preprocess as they were found: each is read for what it is, and
every record is accounted for."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chatbench.corpus.build import preprocess
from chatbench.corpus.document import Failure
from chatbench.corpus.ledger import Account
from chatbench.corpus.sources.encodings import detect, lines
from chatbench.settings import PreprocessSettings
from chatbench.storage import read_manifest
from conftest import SHARED_DATA

# The odd files are few enough to be read each time.
_LARGE, _ALWAYS = 1_000_000, "messy-encodings"

# Shape → number of documents kept, SOURCE.md's own text aside: what the publishers counted, less
# repetitions and rows that are broken in the published file.
EXPECTED: dict[str, dict[str, int]] = {
    "banking77": {"labelled": 9_999},
    "bitext-support": {"labelled": 7_290},
    "cdial-zh": {"prompt": 10_000},
    "chatterbot-corpus": {"chatterbot": 2_357},
    "cmrc2018-zh": {"prompt": 1_002},
    "cold-zh": {"labelled": 6_430},
    "crosswoz-zh": {"messages": 500},
    "dialogsum": {"prompt": 500},
    "drcd-zh": {"prompt": 3_524},
    "gsm8k": {"prompt": 7_473},
    "humaneval": {"prompt": 164},
    "kdconv-zh": {"messages": 450},
    "lambada": {"text": 1_001},
    "mmlu-sample": {"multiple choice": 2_822},
    "personality-chat": {"prompt": 8_395},
    "scitldr": {"prompt": 2_609},
    "self-instruct-seed": {"alpaca": 175},
    "sgd": {"messages": 2_243},
    "sms-spam": {"labelled": 5_158},
    "t0-templates": {"prompt": 3_000},
    "taskmaster4": {"messages": 1_988},
    "toxicity-en": {"labelled": 999},
    "wiki-split": {"prompt": 10_000},
    "xdailydialog": {"dailydialog": 3_978},  # two of 3,980 are there twice
    "xquad": {"prompt": 4_738},
}
# Nothing in them but their description can be learned without --map: pairs of sentences to compare,
# questions without answers, annotated spans, meetings, generation settings, weights, tables of
# three unnamed columns.
UNREADABLE = ("blimp", "csl-zh", "mt-bench-questions", "qmsum", "sling-zh", "snips",
              "stories260k", "tatoeba-en-zh", "xcopa")  # fmt: skip


def _sets() -> list[Any]:
    if not SHARED_DATA.is_dir():
        return []
    folders = sorted(path for path in SHARED_DATA.iterdir() if path.is_dir())
    return [
        pytest.param(path, id=path.name, marks=[pytest.mark.slow] if _is_slow(path) else [])
        for path in folders
    ]


def _is_slow(folder: Path) -> bool:
    return folder.name != _ALWAYS and _size(folder) > _LARGE


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _rows(path: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in path.read_bytes().split(b"\n") if line]


def _build(out: Path, *inputs: Path, **changes: Any) -> Path:
    return preprocess(
        PreprocessSettings(
            inputs=list(map(str, inputs)), out=str(out), workers=1, profile=False, vocab_size=300,
            **changes,
        )
    )  # fmt: skip


def _shapes(corpus: Path) -> dict[str, int]:
    facts = json.loads((corpus / "facts.json").read_bytes())
    return {str(shape): int(count) for shape, count in facts["shapes"].items()}


@pytest.mark.parametrize("folder", _sets())
def test_every_record_of_a_published_set_is_accounted_for(folder: Path, tmp_path: Path) -> None:
    corpus = _build(tmp_path / "corpus", folder)
    total = Account()
    for row in _rows(corpus / "sources.jsonl"):
        account = Account(row["read"], row["kept"], Counter(row["dropped"]), Counter(row["failed"]))
        assert account.balances(), row
        total.add(account)
    manifest = read_manifest(corpus)
    assert manifest is not None
    assert manifest.info["ledger"] == total.as_info()
    rejects = Counter(row["reason"] for row in _rows(corpus / "dropped.jsonl"))
    assert rejects == total.dropped + total.failed
    shapes = _shapes(corpus)
    assert sum(shapes.values()) == total.kept > 0
    expected = EXPECTED.get(folder.name)
    if expected is not None:
        assert {shape: shapes.get(shape) for shape in expected} == expected
    if folder.name in UNREADABLE:
        assert set(shapes) == {"text"}
        assert total.failed.total() > 0
        kept = {row["path"] for row in _rows(corpus / "sources.jsonl") if row["kept"]}
        assert {Path(path).name for path in kept} == {"SOURCE.md"}


MAPPED = [
    ("csl-zh", ["user=2", "assistant=3"], "prompt", 9_900),
    pytest.param("tatoeba-en-zh", ["user=1", "assistant=2"], "prompt", 26_000,
                 marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("name", "mapping", "shape", "least"), MAPPED)
def test_a_map_reads_what_has_no_names(
    name: str, mapping: list[str], shape: str, least: int, tmp_path: Path
) -> None:
    files = sorted((SHARED_DATA / name).glob("*.t*")) if SHARED_DATA.is_dir() else []
    if not files:
        pytest.skip("no shared data")
    corpus = _build(tmp_path / "corpus", *files, map=mapping)
    assert _shapes(corpus).get(shape, 0) > least


def test_recoded_books_decode_to_the_text_they_were_made_from() -> None:
    folder = SHARED_DATA / "messy-encodings" / "recoded"
    if not folder.is_dir():
        pytest.skip("no shared data")
    checked = 0
    for entry in json.loads((folder / "manifest.json").read_bytes()):
        if "then" in entry["encoding"]:
            continue  # two encodings in one file: its lines are counted as failures
        path = folder / entry["file"]
        codec = detect(path.read_bytes()[: 1 << 16]).codec
        assert codec is not None, path.name
        with open(path, "rb") as handle:
            found = list(lines(handle, codec, path.name, 1 << 24))
        assert not [line for line in found if isinstance(line, Failure)], path.name
        text = "\n".join(line.text for line in found if not isinstance(line, Failure))
        # 0xA145 is a bullet in Python's big5, by which this was made, and U+2027 in Windows' Big5.
        text = text.replace("\u2027", "\u2022")
        sums = {hashlib.sha256((text + end).encode()).hexdigest() for end in ("", "\n")}
        assert entry["sha256_of_utf8_with_LF"] in sums, entry["file"]
        checked += 1
    assert checked > 4
