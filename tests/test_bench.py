"""Measurements that need a machine the suite does not have must not rot meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

GPU_BENCH = Path(__file__).parent / "bench" / "gpu.py"
ONE_LINE_OF_EACH = (
    "chosen: training", "documents, window", "decode, ragged", "TFLOP/s", "head and loss",
    "compile auto", "compile off", "MFU", "toy batch 3",
)  # fmt: skip


def test_every_path_of_the_gpu_measurements_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(GPU_BENCH), "--smoke"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stdout
    for line in ONE_LINE_OF_EACH:
        assert line in done.stdout, line
