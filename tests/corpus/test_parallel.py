"""Workers, parts, buckets and interruptions change no byte of a corpus."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chatbench.corpus import plan
from chatbench.corpus.build import preprocess
from chatbench.corpus.crew import Crew
from chatbench.corpus.sources import parts
from chatbench.corpus.sources.blob import ReadOptions
from chatbench.corpus.sources.inputs import find_inputs
from chatbench.corpus.sources.parts import plan_parts
from chatbench.corpus.sources.reading import read_slice
from chatbench.errors import IntegrityError
from chatbench.settings import PreprocessSettings
from conftest import sample_chats, sample_texts, write_jsonl


@pytest.fixture
def tree(tmp_path: Path, rng: random.Random) -> Path:
    """Many small files, a big one of rows and a big one of prose; some broken rows, many copies."""
    folder = tmp_path / "tree"
    rows = [{"text": text} for text in sample_texts(200)] + sample_chats(200)
    rows += rng.choices(rows, k=60)
    rng.shuffle(rows)
    for number in range(0, 120, 6):
        path = folder / f"{number:03d}.jsonl"
        path.parent.mkdir(exist_ok=True)
        write_jsonl(path, rows[number : number + 6])
    lines = [json.dumps(row, ensure_ascii=False) for row in rows[120:]]
    for _ in range(15):
        lines.insert(rng.randrange(1, len(lines)), rng.choice(["{", "5", '{"x": 1}', ""]))
    (folder / "big.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    prose = "\n\n".join(f"{text}\n{n} 第{n}段" for n, text in enumerate(sample_texts(150)))
    (folder / "big.txt").write_text(prose, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 6_000)
    monkeypatch.setattr(parts, "PART_FILES", 5)
    monkeypatch.setattr(plan, "BUCKET_BYTES", 20_000)


def build(out: Path, tree: Path, **settings: Any) -> dict[str, bytes]:
    given = {"vocab_size": 400, "profile": False, "workers": 1, "val_fraction": 0.2, **settings}
    folder = preprocess(PreprocessSettings(inputs=[str(tree)], out=str(out), **given))
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("settings", [{}, {"dedup": "near", "contamination": "drop"}], ids=str)
def test_any_number_of_workers_gives_the_same_bytes(
    tmp_path: Path, tree: Path, settings: dict[str, Any]
) -> None:
    alone = build(tmp_path / "1", tree, **settings)
    assert sum(name.startswith("train/") for name in alone) > 3
    for workers in (2, 3):
        assert build(tmp_path / f"{workers}", tree, workers=workers, **settings) == alone


def test_the_size_of_parts_changes_nothing_for_rows(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "big.txt").unlink()
    small = build(tmp_path / "small", tree)
    monkeypatch.setattr(parts, "PART_BYTES", 1 << 24)
    assert build(tmp_path / "large", tree) == small


def test_pieces_of_a_file_are_its_records_with_their_lines(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ReadOptions(passage_chars=300)
    for name, whole_parts in (("big.jsonl", 1 << 24), ("big.txt", 1 << 24)):
        found, _ = find_inputs([str(tree / name)], None)
        cut = list(plan_parts(found, options))
        assert len(cut) > 2
        pieces = [record for part in cut for piece in part
                  for record in read_slice(piece, options, [])]  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(parts, "PART_BYTES", whole_parts)
            (whole,) = plan_parts(found, options)
        records = list(read_slice(whole[0], options, []))
        if name == "big.jsonl":
            assert pieces == records
        else:
            lines = (tree / name).read_text(encoding="utf-8").split("\n")
            for record in pieces:
                number = int(record.source.rpartition(":")[2])
                assert record.text is not None
                assert record.text.startswith(lines[number - 1].strip())
            assert [w for r in pieces for w in r.text.split()] == [
                w for r in records for w in r.text.split()
            ]


class _Interrupted:
    """A crew that is interrupted after some results of the first task."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.original = Crew.run

    def __call__(self, crew: Crew, task: str, job: str, arguments: Any) -> Iterator[Any]:
        for number, result in enumerate(self.original(crew, task, job, arguments)):
            yield result
            if number + 1 == self.after:
                raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_where_finished_parts_allow(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = build(tmp_path / "undisturbed", tree)
    interruption = _Interrupted(3)
    with monkeypatch.context() as patch:
        patch.setattr(Crew, "run", lambda *given: interruption(*given))
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "corpus", tree)
    assert not (tmp_path / "corpus").exists()
    capsys.readouterr()
    assert build(tmp_path / "corpus", tree) == undisturbed
    assert "3 of " in capsys.readouterr().err
    assert not list(tmp_path.glob(".corpus*"))


@pytest.mark.parametrize("change", ["setting", "file", "list", "damage"])
def test_parts_of_other_settings_or_files_or_damaged_ones_are_made_again(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    interruption = _Interrupted(4)
    (tmp_path / "blocked.txt").write_text("nowhere\n")
    settings: dict[str, Any] = {"block": [str(tmp_path / "blocked.txt")]}
    with monkeypatch.context() as patch:
        patch.setattr(Crew, "run", lambda *given: interruption(*given))
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "corpus", tree, **settings)
    if change == "list":
        (tmp_path / "blocked.txt").write_text("number\n")
    elif change == "setting":
        settings["repair"] = False
    elif change == "file":
        write_jsonl(tree / "000.jsonl", [{"text": "another first file"}])
    else:
        victim = next((tmp_path / ".corpus.parts").glob("*.docs"))
        victim.write_bytes(victim.read_bytes()[:-1])
    assert build(tmp_path / "corpus", tree, **settings) == build(
        tmp_path / "fresh", tree, **settings
    )


def test_a_file_that_changes_while_it_is_read_is_an_integrity_error(
    tmp_path: Path, tree: Path
) -> None:
    found, _ = find_inputs([str(tree / "000.jsonl")], None)
    ((piece,),) = plan_parts(found, ReadOptions())
    with open(tree / "000.jsonl", "a") as handle:
        handle.write('{"text": "late"}\n')
    with pytest.raises(IntegrityError, match="changed while it was read"):
        list(read_slice(piece, ReadOptions(), []))
