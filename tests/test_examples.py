"""The examples run: on real data when it is at hand, and end well without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
