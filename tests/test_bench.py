"""Measurements that need a machine the suite does not have must not rot meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

GPU_BENCH = Path(__file__).parent / "bench" / "gpu.py"
ONE_LINE_OF_EACH = (
    "chosen: training", "documents, window", "decode, ragged", "TFLOP/s", "head and loss",
    "compile auto", "compile off", "MFU", "toy batch 3 drawn", "a step ahead",
)  # fmt: skip

REPLIES_BENCH = GPU_BENCH.with_name("decode.py")


def test_every_path_of_the_gpu_measurements_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(GPU_BENCH), "--smoke"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stdout
    for line in ONE_LINE_OF_EACH:
        assert line in done.stdout, line


@pytest.mark.slow
def test_the_measurement_of_replies_runs_and_names_what_is_missing() -> None:
    done = subprocess.run(
        [sys.executable, str(REPLIES_BENCH), "--smoke", "--threads", "1", "--peer-python", "nobody",
         "--only", "chatbench fp32,ctranslate2"], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "| chatbench fp32 |" in done.stdout
    assert "| fp32 |" in done.stdout
    assert "ctranslate2 int8 is left out" in done.stderr
    assert "17 of 17 first tokens alike" in done.stderr
