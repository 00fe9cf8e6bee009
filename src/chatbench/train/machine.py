"""What this machine lends to one process: cores, memory, and since when."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def threads(root: Path = _ROOT) -> tuple[int, str]:
    """How many threads should compute, and why: OMP_NUM_THREADS where it is set, else the physical
    cores that affinity and the control group's quota leave. `root`: where /proc and /sys are."""
    named = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if named.isdigit() and int(named):
        return int(named), "OMP_NUM_THREADS"
    allowed = _allowed()
    physical = len({_siblings(root, cpu) for cpu in allowed})
    quota = _quota(root)
    if quota is not None and quota < physical:
        return max(1, round(quota)), "quota of the control group"
    return physical, "physical cores"


def _allowed() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _siblings(root: Path, cpu: int) -> str:
    """The logical processors that share a core with this one."""
    place = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return _read(place) or str(cpu)


def _quota(root: Path) -> float | None:
    """Processors that the control group grants, the tightest one on the way up."""
    found = []
    for folder in _groups(root, "cpu"):
        limit, _, period = _read(folder / "cpu.max").partition(" ")
        if not limit:
            limit = _read(folder / "cpu.cfs_quota_us")
            period = _read(folder / "cpu.cfs_period_us")
        if limit.isdigit() and period.isdigit() and int(period):
            found.append(int(limit) / int(period))
    return min(found, default=None)


def free_memory(root: Path = _ROOT) -> int | None:
    """Bytes that this process may still take, by the machine and by its control groups; None where
    the system does not tell."""
    known = [
        1024 * int(line.split()[1])
        for line in _read(root / "proc/meminfo").splitlines()
        if line.startswith("MemAvailable:")
    ]
    for folder in _groups(root, "memory"):
        for limit_file, used_file, reclaimed in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _read(folder / limit_file), _read(folder / used_file)
            if limit.isdigit() and used.isdigit():
                # Pages of files are counted as used, and given back when asked for.
                cached = _named(_read(folder / "memory.stat"), reclaimed)
                known.append(max(0, int(limit) - int(used) + cached))
    return min(known, default=None)


def _named(lines: str, name: str) -> int:
    values = (line.split() for line in lines.splitlines() if line.startswith(f"{name} "))
    return next((int(value[1]) for value in values), 0)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups, its own first, of version 2 and then 1."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controllers and controller)
        own = top / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def process_began() -> float:
    """When this process was started, on time.monotonic's clock; now, where nobody knows."""
    now = time.monotonic()
    fields = _read(_ROOT / "proc/self/stat").rpartition(")")[2].split()
    if len(fields) < 20 or not hasattr(time, "CLOCK_BOOTTIME"):
        return now
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    age = since_boot - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return now - max(0.0, age)
