"""Control groups: what they allow a process, what it has used of that, and how often it met a limit.

It knows version 1, version 2, and the two beside each other, in which a controller is in one of them, wherever they are
mounted (Linux, Documentation/admin-guide: cgroup-v1/, cgroup-v2.rst).
"""

from __future__ import annotations

import functools
import os
from typing import Any, NamedTuple

from executor.worker import kernel

#: What a control group says where it sets no limit: more than any machine has.
_NO_LIMIT = 2**60


class Counts(NamedTuple):
    """What the kernel has counted in our control groups since they were made.

    oom_kills:    how often it has killed something for want of memory
    pids_refused: how often a process or thread could not be started because there were too many
    memory_peak:  the most bytes that were in use at once; 0 where nobody counts that
    """

    oom_kills: int
    pids_refused: int
    memory_peak: int


def counts() -> Counts:
    """What has been counted so far: a few small reads, because each attempt asks."""
    memory, pids = _own("memory"), _own("pids")
    peak = kernel.read(f"{memory}/memory.max_usage_in_bytes") or kernel.read(f"{memory}/memory.peak")
    return Counts(
        oom_kills=_counted(
            kernel.read(f"{memory}/memory.oom_control") or kernel.read(f"{memory}/memory.events"), "oom_kill"
        ),
        pids_refused=_counted(kernel.read(f"{pids}/pids.events"), "max"),
        memory_peak=int(peak) if peak.strip().isdigit() else 0,
    )


def memory_use() -> tuple[int, int]:
    """The memory limit of our group and what is used of it (`memory_used`), in bytes; (0, 0) without a limit."""
    limit = _least([_own("memory")], "memory.limit_in_bytes", "memory.max")
    return (0, 0) if limit is None else (limit, memory_used())


def memory_used() -> int:
    """What our group uses of memory and cannot be dropped, in bytes: the pages of files can."""
    group = _own("memory")
    lines = dict(line.split() for line in kernel.read(f"{group}/memory.stat").splitlines())
    of_files = (
        ("total_inactive_file", "total_active_file") if "total_cache" in lines else ("inactive_file", "active_file")
    )
    used = kernel.read(f"{group}/memory.usage_in_bytes") or kernel.read(f"{group}/memory.current") or "0"
    return int(used) - sum(int(lines.get(name, 0)) for name in of_files)


def limits(process: str = "/proc/self") -> dict[str, Any]:
    """What control groups allow a process, by its folder in /proc.

    memory_limit_bytes, swap_limit_bytes, cpu_limit (cores), pids_limit: the least of its groups; None is without one (of
    swap, that the kernel does not count it)
    """
    memory = _least(folders("memory", process), "memory.limit_in_bytes", "memory.max")
    return {
        "memory_limit_bytes": memory,
        "swap_limit_bytes": _swap_limit(folders("memory", process), memory),
        "cpu_limit": _cpu_limit(folders("cpu", process)),
        "pids_limit": _least(folders("pids", process), "pids.max"),
    }


def folders(controller: str, process: str = "/proc/self") -> list[str]:
    """The folders of the control group for `memory`, `cpu` or `pids`, and of those around it that are to be seen.

    The group itself comes first. Empty where no control groups are mounted.
    """
    mounted = _mounts(process)
    groups = [line.split(":", 2) for line in kernel.read(f"{process}/cgroup").splitlines()]
    for _, names, path in groups:
        if controller in names.split(",") and controller in mounted:
            return _up_from(path, *mounted[controller])
    for number, _, path in groups:
        if number == "0" and "" in mounted:
            return _up_from(path, *mounted[""])
    return []


def _mounts(process: str) -> dict[str, tuple[str, str]]:
    """Controller (version 2: empty) → what of its hierarchy is mounted, and where."""
    mounted: dict[str, tuple[str, str]] = {}
    for line in kernel.read(f"{process}/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        root, place = left.split(" ")[3:5]
        if kind == "cgroup2":
            mounted.setdefault("", (root, place))
        elif kind == "cgroup":
            for name in options.split(","):
                mounted.setdefault(name, (root, place))
    return mounted


def _up_from(path: str, root: str, place: str) -> list[str]:
    """The folder of a control group, and those above it as far as the mount shows them."""
    below = os.path.relpath(path, root)
    if below.startswith(".."):  # what is mounted is a namespace's part of it, and begins at our own group
        below = "."
    parts = [] if below == "." else below.split("/")
    return [os.path.join(place, *parts[:count]) for count in range(len(parts), -1, -1)]


def _least(groups: list[str], *names: str) -> int | None:
    """The least of what a file of these groups says, by its name in either version; None where it says no number."""
    said = [kernel.read(f"{folder}/{name}").strip() for folder in groups for name in names]
    return min((int(text) for text in said if text.isdigit() and int(text) < _NO_LIMIT), default=None)


def _cpu_limit(groups: list[str]) -> float | None:
    """How many cores these groups allow, or None."""
    allowed = []
    for folder in groups:
        told = kernel.read(f"{folder}/cpu.max").split()
        told = told or [
            kernel.read(f"{folder}/cpu.cfs_quota_us").strip(),
            kernel.read(f"{folder}/cpu.cfs_period_us").strip(),
        ]
        if all(part.isdigit() for part in told):  # without a limit it is `max`, or -1
            allowed.append(int(told[0]) / int(told[1]))
    return min(allowed, default=None)


def _swap_limit(groups: list[str], memory: int | None) -> int | None:
    """How much swap these groups allow beside their memory; None where the kernel does not count it."""
    for name, beside in (("memory.memsw.limit_in_bytes", memory or 0), ("memory.swap.max", 0)):
        if any(os.path.exists(f"{folder}/{name}") for folder in groups):
            limit = _least(groups, name)
            return _NO_LIMIT if limit is None else limit - beside
    return None


@functools.cache  # nobody is moved to another group
def _own(controller: str) -> str:
    """The folder of our own group."""
    return next(iter(folders(controller)), "/nonexistent")


def _counted(told: str, name: str) -> int:
    return next((int(line.split()[1]) for line in told.splitlines() if line.startswith(f"{name} ")), 0)
