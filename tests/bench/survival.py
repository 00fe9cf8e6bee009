"""What being killed costs: a run that is killed with SIGKILL every so many seconds and resumed,
beside the same run left alone. Useful is the share of computed steps that were kept.

python tests/bench/survival.py CORPUS [--every 60] [--kills 3] [--save-minutes 0.05]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(corpus: str, run: Path, save_minutes: float) -> list[str]:
    return [
        sys.executable, "-m", "chatbench", "pretrain", "-d", corpus, "-o", str(run), "--size",
        "tiny", "--steps", "1000000", "--batch-tokens", "2048", "--set", "train.eval_every=1000000",
        "--set", f"train.save_minutes={save_minutes}", "--set", "train.log_every=1", "--save-steps",
        "1000000",
    ]  # fmt: skip


def last_step(run: Path) -> int:
    """Of the whole lines of the log: what was computed."""
    rows = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [0]
    for row in rows:
        try:
            steps.append(json.loads(row)["step"])
        except ValueError:
            continue
    return max(steps)


def kept(run: Path) -> int:
    found = sorted((run / "checkpoints").glob("step-????????"))
    return int(found[-1].name.removeprefix("step-")) if found else 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus")
    parser.add_argument("--every", type=float, default=60)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--save-minutes", type=float, default=0.05)
    args = parser.parse_args()
    computed = 0
    with tempfile.TemporaryDirectory() as name:
        run = Path(name) / "run"
        plain = command(args.corpus, run, args.save_minutes)
        for number in range(args.kills):
            began_at = kept(run) if number else 0
            resume = ["--resume"] if number else []
            process = subprocess.Popen(
                plain + resume, start_new_session=True, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            time.sleep(args.every)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reached = last_step(run)
            computed += reached - began_at
            print(f"killed at step {reached}, kept {kept(run)}", flush=True)
        print(f"useful: {100 * kept(run) / computed:.1f} % of {computed} steps computed")


if __name__ == "__main__":
    main()
