"""Steps a second of whole `pretrain` runs in turn, a plain one beside one that does more:

ranks   two processes of one thread under torchrun (gloo) beside one process of two threads
saves   a checkpoint every `--save-seconds` beside none; the cost of one each minute follows

python tests/bench/whole_runs.py CORPUS ranks|saves [--rounds 3] [--steps 120] [--size tiny]
    [--save-seconds 10]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

MODULE = ["-m", "chatbench", "pretrain"]
RANKS = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Steps at the beginning that are not counted.
WARM = 10


def seconds_of(run: Path) -> tuple[float, float]:
    """Seconds and tokens of the steps after the first few."""
    rows = [
        json.loads(line)
        for line in (run / "timings.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    rows = [row for row in rows if row.get("step", 0) >= WARM]
    return rows[-1]["seconds"] - rows[0]["seconds"], rows[-1]["step"] - rows[0]["step"]


def rate(launcher: list[str], flags: list[str], threads: int) -> float:
    """Steps a second."""
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        command = [sys.executable, *launcher, *MODULE, *flags, "-o", str(run)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
        seconds, steps = seconds_of(run)
        return steps / seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus")
    parser.add_argument("what", choices=("ranks", "saves"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--save-seconds", type=float, default=10)
    args = parser.parse_args()
    plain = [
        "-d", args.corpus, "--size", args.size, "--steps", str(args.steps), "--eval-interval",
        str(args.steps), "--batch-tokens", "4096", "--set", "train.log_every=1", "--save-steps",
        "1000000", "--set", "train.save_minutes=1000",
    ]  # fmt: skip
    saving = [*plain, "--set", f"train.save_minutes={args.save_seconds / 60}"]
    ratios = []
    for _ in range(args.rounds):
        alone = rate([], plain, 2)
        other = rate(RANKS, plain, 1) if args.what == "ranks" else rate([], saving, 2)
        ratios.append(other / alone)
        print(f"{alone:.3f} and {other:.3f} steps a second: {other / alone:.3f}", flush=True)
    ratio = statistics.median(ratios)
    print(f"median {ratio:.3f}")
    if args.what == "saves":
        lost = (1 / ratio - 1) * args.save_seconds
        print(f"one checkpoint costs {lost:.2f} s, one a minute {100 * lost / 60:.1f} %")


if __name__ == "__main__":
    main()
