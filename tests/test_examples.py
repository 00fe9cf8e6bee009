"""The examples run: on real data when it is at hand, and end well without it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from evaluate.styled import styles

from conftest import ROOT, SHARED_DATA

SCRIPT = ROOT / "examples" / "real_data.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL, timeout=400,
        env={**os.environ, "CHATBENCH_MODEL_N_LAYERS": "1"},
    )  # fmt: skip


def test_without_the_data_it_says_so_and_ends_well(tmp_path: Path) -> None:
    done = run(tmp_path / "nothing", tmp_path / "out")
    assert done.returncode == 0
    assert "nothing to do" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_job_on_real_data(tmp_path: Path) -> None:
    if not (SHARED_DATA / "gutenberg-en").is_dir():
        pytest.skip("the data sets are not here")
    done = run(SHARED_DATA, tmp_path / "out", "0.1")
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout
    assert done.stdout.count("> ") == 4


def test_styled_dialogues_are_different_and_right() -> None:
    rows = styles.dialogues(500, seed=3)
    assert rows == styles.dialogues(500, seed=3) != styles.dialogues(500, seed=4)
    assert len({str(row) for row in rows}) == 500
    known = {column: {row[column] for row in rows if column in row} for column in ("style", "语气")}
    assert known == {"style": {"formal", "casual"}, "语气": {"正式", "随意"}}
    for row in rows:
        asked, told = (message["content"] for message in row["messages"])
        (goods,) = [g for g in styles.GOODS if re.search(rf"\b{g[0]}\b", asked) or g[1] in asked]
        assert int(row["facts"][0]) in goods[2:]
        assert row["facts"][0] in told
        assert told.isascii() == asked.isascii() == ("style" in row)
