"""Runs on several ranks, as forks of one process that has torch loaded already.

Reads one JSON job a line: `size`; `arguments`, the program's, or a list of them for each rank;
`call`, a function of rank_checks with its `data` instead, whose number is the code; `environment`,
of all or by rank in a list; and `disturb`, a list of `rank`, `signal`, `watch`, `lines`: the signal
is sent when file `watch` has so many lines. `namespaces`: the network namespace of each rank,
`master`: the address of rank 0. Answers each with a list of `code`, `out`, `err` and `seconds`
after the last disturbance, by rank; ranks that live on after `limit` seconds are killed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import rank_checks
import rich.console
import rich.progress
import torch
import torch._dynamo  # every optimiser imports it, in seconds

import chatbench.train.parallel_group
import chatbench.train.recipes
from chatbench.cli import run

LOADED_FOR_ALL = (rich.console, rich.progress, torch._dynamo, chatbench.train.recipes,
                  chatbench.train.parallel_group)  # fmt: skip


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def of_rank(value: Any, rank: int) -> Any:
    return value[rank] if value and isinstance(value[0], list | dict) else value


def child(job: dict[str, Any], rank: int, port: int, out: int, err: int) -> None:
    os.dup2(out, 1)
    os.dup2(err, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    size = job["size"]
    if size > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size),
            MASTER_ADDR=job.get("master", "127.0.0.1"), MASTER_PORT=str(port),
            GLOO_SOCKET_IFNAME=job.get("interface", "lo"),
        )  # fmt: skip
    environment = job.get("environment", {})
    os.environ.update(environment[rank] if isinstance(environment, list) else environment)
    if "namespaces" in job:
        with open(f"/run/netns/{job['namespaces'][rank]}") as handle:
            if not hasattr(os, "setns"):  # Python 3.12 has it
                import ctypes

                assert ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), 0) == 0
            else:
                os.setns(handle.fileno(), 0)
    code = 1
    try:
        if "call" in job:
            code = int(getattr(rank_checks, job["call"])(rank, size, job.get("data")) or 0)
        else:
            code = int(run(of_rank(job["arguments"], rank)))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def line_count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait(pids: list[int], job: dict[str, Any]) -> tuple[dict[int, int], dict[int, float]]:
    """Wait statuses and seconds since the last disturbance, by rank."""
    due = list(job.get("disturb", []))
    begun = since = time.monotonic()
    statuses: dict[int, int] = {}
    seconds: dict[int, float] = {}
    stopped = []
    while len(statuses) < len(pids):
        for rank, pid in enumerate(pids):
            if rank not in statuses:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    statuses[rank], seconds[rank] = status, time.monotonic() - since
        for each in list(due):
            if line_count(Path(each["watch"])) >= each["lines"]:
                due.remove(each)
                since = time.monotonic()
                if "shell" in each:
                    os.system(each["shell"])
                    continue
                os.kill(pids[each["rank"]], signal.Signals[f"SIG{each['signal']}"])
                if each["signal"] == "STOP":
                    stopped.append(each["rank"])
        living = set(range(len(pids))) - set(statuses)
        late = time.monotonic() - begun > job.get("limit", 100)
        if late or (living and living <= set(stopped)):
            for rank in living:
                os.kill(pids[rank], signal.SIGKILL)
        time.sleep(0.002)
    return statuses, seconds


def answer(job: dict[str, Any]) -> list[dict[str, Any]]:
    port = free_port()
    with contextlib.ExitStack() as stack:
        files = [
            (stack.enter_context(tempfile.TemporaryFile()),
             stack.enter_context(tempfile.TemporaryFile()))
            for _ in range(job["size"])
        ]  # fmt: skip
        pids = []
        for rank, (out, err) in enumerate(files):
            pid = os.fork()
            if pid == 0:
                child(job, rank, port, out.fileno(), err.fileno())
            pids.append(pid)
        statuses, seconds = wait(pids, job)
        replies = []
        for rank, (out, err) in enumerate(files):
            out.seek(0)
            err.seek(0)
            replies.append({
                "code": os.waitstatus_to_exitcode(statuses[rank]), "seconds": seconds[rank],
                "out": out.read().decode("utf-8", "replace"),
                "err": err.read().decode("utf-8", "replace"),
            })  # fmt: skip
        return replies


def main() -> None:
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):  # and what parsing loads
        run(["pretrain", "-d", "corpus", "-o", "run", "--print-config"])
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
