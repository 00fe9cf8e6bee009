"""Runs of the program as forks of one process that has torch loaded already, and broken on demand.

Reads one JSON job a line: `arguments`; and `signal`, a name such as KILL, sent `after` so many
seconds from when file `watch` has `lines` lines; and `largest`, the bytes a file may have. Answers
each with `code` (negative: killed by that signal), `seconds`, `out` and `err`.

All runs meet the same troubles, by step: see `Troubled`.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
import torch
import torch._dynamo  # every optimiser imports it, in seconds

import chatbench.train.recipes
from chatbench.cli import run
from chatbench.model.transformer import GPT
from chatbench.train.likelihood import Likelihood
from chatbench.train.objective import Batch, GlobalBatch, Loss

LOADED_FOR_ALL_CHILDREN = (rich.console, rich.progress, torch._dynamo, chatbench.train.recipes)


class Troubled(Likelihood):
    """No finite loss at two steps, a spike, memory that holds one row only, and at last worse and
    worse validations."""

    step = -1

    def batch(self, step: int) -> GlobalBatch:
        self.step = step
        return super().batch(step)

    def loss(self, model: GPT, batch: Batch) -> Loss:
        loss = super().loss(model, batch)
        if not torch.is_grad_enabled():
            return loss if self.step < 45 else loss._replace(total=loss.total * 1000)
        if self.step == 20 and len(batch.ids) > 1:
            raise torch.OutOfMemoryError("out of memory")
        factor = {11: math.nan, 30: math.inf, 40: 1e4}.get(self.step)
        return loss if factor is None else loss._replace(total=loss.total * factor)


def child(arguments: list[str], largest: int | None, out: int, err: int) -> None:
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    os.dup2(out, 1)
    os.dup2(err, 2)
    code = 1
    try:
        code = int(run(arguments))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def line_count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def disturb(pid: int, job: dict[str, Any]) -> int:
    """Send the job's signal when it is due; the wait status when the child ends before."""
    due = None
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if due is None and line_count(Path(job["watch"])) >= job["lines"]:
            due = time.monotonic() + job.get("after", 0.0)
        if due is not None and time.monotonic() >= due:
            os.kill(pid, signal.Signals[f"SIG{job['signal']}"])
            return os.waitpid(pid, 0)[1]
        time.sleep(0.001)


def answer(job: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(job["arguments"], job.get("largest"), out.fileno(), err.fileno())
        status = disturb(pid, job) if "signal" in job else os.waitpid(pid, 0)[1]
        seconds = time.monotonic() - begun
        said = []
        for stream in (out, err):
            stream.seek(0)
            said.append(stream.read().decode())
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "seconds": seconds, "out": said[0], "err": said[1]}


if __name__ == "__main__":
    torch.set_num_threads(1)
    chatbench.train.likelihood.Likelihood = Troubled  # type: ignore[misc]
    with contextlib.redirect_stdout(io.StringIO()):  # and what parsing loads
        run(["pretrain", "-d", "corpus", "-o", "run", "--print-config"])
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
