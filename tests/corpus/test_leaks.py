"""What training shares with the held-out splits, and with the user's tests: counted, left out."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from corpus.corpora import (
    EN,
    Row,
    build,
    exchange_row,
    facts_of,
    fates,
    numbered,
    prose,
    rows_of,
    words,
    written,
)

from chatbench.corpus import plan
from chatbench.corpus.cleaning import contamination
from chatbench.corpus.cleaning.grams import spell
from chatbench.errors import DataError, ExitCode
from conftest import write_jsonl

SYSTEM = "You are a patient clerk in a small shop who answers every question in one short line."


def asked_text(row: Row) -> str:
    if "text" in row:
        return str(row["text"])
    return "\n".join(m["content"] for m in row["messages"] if m["role"] != "system")


def grams(row: Row, length: int = 13) -> set[tuple[str, ...]]:
    found = spell(asked_text(row))
    return {tuple(found[n : n + length]) for n in range(len(found) - length + 1)}


def leaky_rows(rng: random.Random, count: int) -> list[Row]:
    """Texts and dialogues of which many quote one of a few passages of 10 to 16 words; the
    dialogues share a long system message."""
    passages = {
        chinese: [words(rng, chinese, rng.randint(10, 16)) for _ in range(6)]
        for chinese in (False, True)
    }
    rows = []
    for number in range(count):
        chinese = number % 2 == 1
        chosen = words(rng, chinese, rng.randint(20, 60))
        if rng.random() < 0.4:
            place = rng.randrange(len(chosen))
            chosen[place:place] = rng.choice(passages[chinese])
        text = written(chosen, chinese)
        system = SYSTEM if rng.random() < 0.7 else None
        rows.append({"text": text} if number % 3 else exchange_row(text, f"好 {number}", system))
    return rows


def shared_with(rows: list[Row], fate: list[str], wanted: list[str], others: list[str]) -> set[int]:
    """Rows in splits `wanted` that share 13 words in a row with one in splits `others`."""
    pool = {gram for n, row in enumerate(rows) if fate[n] in others for gram in grams(row)}
    return {
        n for n, row in enumerate(rows) if fate[n] in wanted and not pool.isdisjoint(grams(row))
    }


@pytest.mark.parametrize("bucket_bytes", [1 << 24, 8_000])
def test_counts_and_drops_are_those_of_a_slow_twin(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch, bucket_bytes: int
) -> None:
    monkeypatch.setattr(plan, "BUCKET_BYTES", bucket_bytes)
    rows = leaky_rows(rng, 120)
    path = numbered(tmp_path / "a.jsonl", rows)
    reported = build(tmp_path / "report", path, contamination="report")
    fate = fates(reported, len(rows))
    found = facts_of(reported).contamination
    assert (found.mode, found.rate) == ("report", 1.0)
    for split in ("val", "test"):
        overlap = found.held_out[split]
        assert overlap.documents == fate.count(split)
        assert overlap.overlapping == len(shared_with(rows, fate, [split], ["train"]))
    leaking = shared_with(rows, fate, ["train"], ["val", "test"])
    assert leaking
    dropped = build(tmp_path / "drop", path, contamination="drop")
    expected = ["shared with held-out" if n in leaking else f for n, f in enumerate(fate)]
    assert fates(dropped, len(rows)) == expected
    assert dropped.manifest.info["ledger"]["dropped"] == {"shared with held-out": len(leaking)}
    off = build(tmp_path / "off", path, contamination="off")
    assert fates(off, len(rows)) == fate
    assert facts_of(off).contamination.held_out == {}


def test_twelve_words_in_a_row_are_no_leak_and_thirteen_are(
    tmp_path: Path, rng: random.Random
) -> None:
    passage = words(rng, False, 13)
    for length, leaks in ((12, False), (13, True)):
        # A word of its own before the passage, or chance could make it one longer.
        rows = [
            {"text": written([*words(rng, False, 30), f"no{n}", *passage[:length]], False)}
            for n in range(40)
        ]
        path = numbered(tmp_path / f"{length}.jsonl", rows)
        held_out = facts_of(build(tmp_path / f"c{length}", path)).contamination.held_out
        assert {row.overlapping == row.documents for row in held_out.values()} == {leaks}
        assert {bool(row.overlapping) for row in held_out.values()} == {leaks}


def test_a_sample_of_the_grams_is_said_to_be_one(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contamination.HeldOutGrams.__init__, "__defaults__", (200,))
    monkeypatch.setattr(contamination.HeldOutGrams.of.__func__, "__defaults__", (200,))
    path = numbered(tmp_path / "a.jsonl", leaky_rows(rng, 150))
    found = facts_of(build(tmp_path / "c", path)).contamination
    assert 0 < found.rate < 1
    assert found.rate in [0.5**n for n in range(1, 20)]


def test_when_all_of_training_leaks_there_is_nothing_to_train_on(
    tmp_path: Path, rng: random.Random
) -> None:
    shared = written(words(rng, False, 14), False)
    rows = [{"text": f"{written(words(rng, False, 40), False)} {shared}"} for _ in range(30)]
    path = numbered(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match="drop leaves nothing to train on") as caught:
        build(tmp_path / "c", path, contamination="drop")
    assert caught.value.exit_code == ExitCode.DATA
    assert "--contamination report" in str(caught.value)
    assert os.listdir(tmp_path) == ["a.jsonl"]


# ---- the user's test files


def test_planted_test_items_are_kept_out(tmp_path: Path, rng: random.Random) -> None:
    items: list[tuple[str, str]] = [
        (written(words(rng, n % 2 == 1, length), n % 2 == 1), "C")
        for n, length in enumerate([*range(8, 22), *range(8, 22)])
    ]
    exam = write_jsonl(
        tmp_path / "exam.jsonl", [{"question": asked, "answer": told} for asked, told in items]
    )
    rows: list[Row] = [{"text": prose(rng, n % 2 == 1)} for n in range(30)]
    planted = set()
    for asked, told in items:
        planted.add(len(rows))
        before, after = (written(words(rng, False, 6), False) for _ in range(2))
        # What a test asks and what it expects stand in a row.
        rows.append(
            rng.choice([{"text": f"{before} {asked.upper()}! {told} {after}"},
                        exchange_row(asked, f"{told}. {after}")])
        )  # fmt: skip
    short = [n for n, (asked, _) in enumerate(items) if len(spell(asked)) < 13]
    for number in short:
        asked = spell(items[number][0])
        rows.append({"text": " ".join([*asked[:-1], rng.choice(EN), *words(rng, False, 20)])})
    corpus = build(
        tmp_path / "c", numbered(tmp_path / "a.jsonl", rows), against=[str(exam)],
        contamination="off",
    )  # fmt: skip
    fate = fates(corpus, len(rows))
    assert {n for n, found in enumerate(fate) if found == "contaminated"} == planted
    facts = facts_of(corpus).contamination
    assert (facts.against, facts.against_dropped) == ([str(exam)], len(planted))
    details: dict[int, Any] = {
        row["n"]: row["detail"] for row in rows_of(corpus.folder / "dropped.jsonl")
    }
    for number in planted:
        shared = details[number].split(" ")
        assert 8 < len(shared) <= 13
        said = spell(asked_text(rows[number]))
        assert any(said[n : n + len(shared)] == shared for n in range(len(said)))
