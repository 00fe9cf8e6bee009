"""The summary of a corpus on stdout: aligned, complete, and what to type next."""

from __future__ import annotations

import random
import re
import shlex
from pathlib import Path

import msgspec
import pytest

from chatbench.corpus.reports.charts import width
from chatbench.corpus.reports.facts import (
    ContaminationFacts,
    CorpusFacts,
    DuplicateFacts,
    FertilityFacts,
    LedgerFacts,
    LengthFacts,
    OverlapFacts,
    PersonalFacts,
    SourceFacts,
    SplitFacts,
    TokenizerFacts,
)
from chatbench.corpus.reports.summary import aligned, corpus_lines, show_corpus
from chatbench.corpus.shards import KIND
from chatbench.errors import IntegrityError, UsageError
from chatbench.storage import new_folder, write_json

FACTS = CorpusFacts(
    name="小店",
    sources=[SourceFacts("书/红楼梦.txt", 2_613_544, 1204, "text · gb18030"),
             SourceFacts("chats.jsonl", 99, 460, "JSON Lines · utf-8")],
    ledger=LedgerFacts(1664, 1500, {"duplicate": 120, "语言": 31}, {"bad JSON": 13}),
    languages={"zh": 1100, "en": 400},
    lengths=LengthFacts([1, 2, 3], [1000, 500], 1.0, 2.0, 2, {512: 0, 1024: 7}),
    turns={2: 300, 4: 100},
    shapes={"messages": 400, "text": 1100},
    changed={"mojibake": 3},
    duplicates=DuplicateFacts("near", 120, 11),
    splits={"train": SplitFacts(1350, 901_223, 612_001), "val": SplitFacts(70, 50_321, 33_101),
            "test": SplitFacts(80, 50_112, 34_002)},
    contamination=ContaminationFacts("report", {"val": OverlapFacts(70, 3)}),
    pii=PersonalFacts("mask", {"email": 8}),
    tags={"style": {"诗": 12}},
    tokenizer=TokenizerFacts(4096, "9f", [FertilityFacts("zh", 4.62, 0.71, "character")]),
    baseline={"val": 2.2014},
    fingerprint="ab" * 32,
)  # fmt: skip


def made(folder: Path, facts: CorpusFacts | None, info: dict[str, object] | None = None) -> Path:
    with new_folder(folder, KIND, {"fingerprint": "00", **(info or {})}) as staging:
        if facts is not None:
            write_json(staging / "facts.json", facts)
        (staging / "report.html").write_text("<html></html>")
    return folder


def test_everything_that_is_known_is_told(tmp_path: Path) -> None:
    text = "\n".join(corpus_lines({}, FACTS, tmp_path / "corpus"))
    for expected in (
        "corpus 小店: 1,500 documents, 400 of them conversations, 1M tokens",
        "sources: 2 files, 2.61MB", "书/红楼梦.txt", "text · gb18030",
        "records: 1,664 read, 1,500 kept, 151 dropped, 13 failed", "Chinese 1,100 · English 400",
        "text 1,100 · messages 400", "longest 2; longer than 1024: 7", "mojibake 3",
        "120 exact, 11 near, dropped", "3 of 70 in val", "email 8 (masked)", "诗 12",
        "4,096 entries; bytes per token: Chinese 4.62", "2.201 on val", "abababababababab",
    ):  # fmt: skip
        assert expected in text, expected


def test_columns_line_up_although_chinese_is_twice_as_wide() -> None:
    lines = corpus_lines({}, FACTS, Path("corpus"))
    (first,) = [n for n, line in enumerate(lines) if line.startswith("split")]
    assert len({width(line) for line in lines[first : first + 4]}) == 1
    (duplicate,) = [line for line in lines if line.startswith("  duplicate")]
    (language,) = [line for line in lines if line.startswith("  语言")]
    assert width(duplicate) == width(language)
    assert duplicate.index("dropped") == language.index("dropped") + 2


def test_alignment_against_a_plain_reading(rng: random.Random) -> None:
    rows = [["".join(rng.choices("ab汉字 ", k=rng.randrange(1, 9))).strip() or "x"
             for _ in range(4)] for _ in range(6)]  # fmt: skip
    lines = aligned(rows, right=(3,), indent=3)
    for place in range(4):
        room = [max(width(row[p]) for row in rows) for p in range(4)]
        start = 3 + sum(room[:place]) + 2 * place
        for row, line in zip(rows, lines, strict=True):
            cells = "".join(c + "\0" * (width(c) - 1) for c in line)
            cell = cells[start : start + room[place]].replace("\0", "")
            assert cell.strip() == row[place]
            if place == 3:
                assert line.endswith(row[3])


@pytest.mark.parametrize(
    ("turns", "shown"), [({2: 5}, ["pretrain", "finetune"]), ({}, ["pretrain"])]
)
def test_the_next_steps_follow_from_what_it_holds(
    turns: dict[int, int], shown: list[str], tmp_path: Path
) -> None:
    facts = CorpusFacts(
        turns=turns, ledger=LedgerFacts(5, 5), splits={"train": SplitFacts(5, 50, 50)}
    )
    folder = tmp_path / "my corpus"
    steps = [line for line in corpus_lines({}, facts, folder) if "chatbench" in line]
    assert [shlex.split(step)[2] for step in steps] == shown
    for step in steps:
        words = shlex.split(step)
        assert words[words.index("-d") + 1] == str(folder)


def test_a_corpus_with_nothing_to_train_on_says_so() -> None:
    facts = CorpusFacts(splits={"train": SplitFacts(), "val": SplitFacts(1, 5, 5)})
    assert (
        corpus_lines({}, facts, Path("c"))[-1] == "next: add data, nothing in here is to train on"
    )


def test_an_empty_corpus_has_a_summary() -> None:
    text = "\n".join(corpus_lines({}, CorpusFacts(), Path("c")))
    assert "corpus c: 0 documents" in text
    assert "records: 0 read" in text


def test_many_sources_and_reasons_are_cut_with_their_number() -> None:
    facts = CorpusFacts(
        sources=[SourceFacts(f"f{n}", 1, 1) for n in range(30)], files=500,
        ledger=LedgerFacts(400, 0, {f"reason {n:02d}": 40 - n for n in range(20)}),
    )  # fmt: skip
    text = "\n".join(corpus_lines({}, facts, Path("c")))
    assert "sources: 500 files, 30B in the first 30" in text
    assert "and 492 more" in text
    rest = sum(40 - n for n in range(15, 20))
    assert re.search(rf"5 more reasons +{rest}\n", text)


@pytest.mark.parametrize("name", ["\x1b[2Jevil", "a\nb", "\u202eabc", "x" * 5000, "\ud800"])
def test_names_cannot_steer_the_terminal(name: str) -> None:
    facts = CorpusFacts(
        name=name, sources=[SourceFacts(name, 1, 1, name)],
        ledger=LedgerFacts(2, 1, {name: 1}), languages={name: 1}, tags={name: {name: 1}},
        splits={name: SplitFacts(1, 1, 1)}, pii=PersonalFacts(name, {name: 1}),
        contamination=ContaminationFacts("report", {name: OverlapFacts(1, 1)}), baseline={name: 1},
        fingerprint=name,
        tokenizer=TokenizerFacts(1, name, [FertilityFacts(name, 1.0)]),
    )  # fmt: skip
    for line in corpus_lines({}, facts, Path(name)):
        assert not re.search("[\x00-\x1f\x7f-\x9f\u202a-\u202e\ud800]", line)
        assert "x" * 200 not in line or name in line  # the folder itself is told in full


# ---- folders


def test_a_folder_is_shown_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "corpus", FACTS)
    show_corpus(folder)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == corpus_lines({}, FACTS, folder)
    assert f"report: {folder / 'report.html'}" in out


def test_json_is_the_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_corpus(made(tmp_path / "corpus", FACTS), as_json=True)
    assert msgspec.json.decode(capsys.readouterr().out, type=CorpusFacts) == FACTS


def test_a_corpus_without_facts_is_told_from_its_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = {
        "ledger": {"read": 9, "kept": 8, "dropped": {"duplicate": 1}, "failed": {}},
        "splits": {"train": {"documents": 8, "tokens": 80, "supervised": 30}},
        "tokenizer": {"digest": "9f", "vocab_size": 400},
        "sources": [{"path": "茶.txt", "bytes": 7, "sha256": "00", "records": 9}],
        "settings": {"vocab_size": 400}, "fingerprint": "cd" * 32,
    }  # fmt: skip
    folder = made(tmp_path / "old", None, info)
    (folder / "report.html").unlink()
    show_corpus(folder)
    out = capsys.readouterr().out
    assert "report" not in out
    assert "corpus old: 8 documents, 80 tokens" in out
    assert "records: 9 read, 8 kept, 1 dropped, 0 failed" in out
    assert "茶.txt" in out
    assert "400 entries" in out
    assert "finetune" in out
    assert "cdcdcdcdcdcdcdcd" in out


def test_what_is_no_corpus_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a corpus folder"):
        show_corpus(tmp_path)
    with new_folder(tmp_path / "other", "evaluation", {}):
        pass
    with pytest.raises(UsageError, match="is not a corpus folder"):
        show_corpus(tmp_path / "other")


def test_damaged_facts_are_an_integrity_error(tmp_path: Path) -> None:
    folder = made(tmp_path / "corpus", FACTS)
    (folder / "facts.json").write_bytes(b"{")
    with pytest.raises(IntegrityError, match=r"facts\.json cannot be read"):
        show_corpus(folder)
