"""What is really in force for this process: its user, its rights, its limits, what it can reach and write to.

The agent says it in its HELLO, and the host compares it with what it asked of the engine. Nothing here is taken from
what anybody was told: it is read from the kernel, in the words of whichever version of control groups there is.
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from typing import Any

from executor.worker import kernel

#: What a control group says where it sets no limit: more than any machine has.
_NO_LIMIT = 2**60


def facts() -> dict[str, Any]:
    """All of it as plain data.

    capabilities, capabilities_bounding: as bits; the first are all that the process has or could hand on
    memory_limit_bytes, swap_limit_bytes, cpu_limit, pids_limit: the least of its control groups; None is without one
                        (of swap, that the kernel does not count it)
    root_read_only:     whether `/` is
    interfaces:         of the network, as far as they are up, without the loopback
    shm, tmp:           size in bytes, and for the latter its mode
    core, open_files:   the hard limits
    """
    status = dict(line.split(":", 1) for line in _read("/proc/self/status").splitlines() if ":" in line)
    sets = [int(status.get(name, "0").strip(), 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")]
    return {
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": sorted(os.getgroups()),
        "pid": os.getpid(),
        "capabilities": sets[0] | sets[1] | sets[2] | sets[3],
        "capabilities_bounding": int(status.get("CapBnd", "0").strip(), 16),
        "no_new_privileges": status.get("NoNewPrivs", "0").strip() == "1",
        "seccomp": int(status.get("Seccomp", "0").strip()),
        **limits(),
        "root_read_only": kernel.is_read_only("/"),
        "interfaces": kernel.interfaces(),
        "shm_bytes": _size("/dev/shm"),  # noqa: S108
        "tmp_bytes": _size("/tmp"),  # noqa: S108
        "tmp_mode": _mode("/tmp"),  # noqa: S108
        "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
    }


def writable_places() -> list[str]:
    """Where a folder or file is mounted that this process may write to."""
    found = []
    for path in kernel.mount_points():
        with contextlib.suppress(OSError):  # it may be covered by another one
            kind = os.stat(path).st_mode
            if (
                (stat.S_ISDIR(kind) or stat.S_ISREG(kind))
                and not kernel.is_read_only(path)
                and os.access(path, os.W_OK)
            ):
                found.append(path)
    return found


def limits(process: str = "/proc/self") -> dict[str, Any]:
    """What control groups allow a process, by its folder in /proc."""
    memory = _least(control_groups("memory", process), "memory.limit_in_bytes", "memory.max")
    return {
        "memory_limit_bytes": memory,
        "swap_limit_bytes": _swap_limit(control_groups("memory", process), memory),
        "cpu_limit": _cpu_limit(control_groups("cpu", process)),
        "pids_limit": _least(control_groups("pids", process), "pids.max"),
    }


def control_groups(controller: str, process: str = "/proc/self") -> list[str]:
    """The folders of the control group for `memory`, `cpu` or `pids`, and of those around it that are to be seen.

    The group itself comes first. It knows version 1, version 2, and the two beside each other, in which a controller is
    in one of them. Empty where no control groups are mounted.
    """
    mounted = _control_group_mounts(process)
    groups = [line.split(":", 2) for line in _read(f"{process}/cgroup").splitlines()]
    for _, names, path in groups:
        if controller in names.split(",") and controller in mounted:
            return _up_from(path, *mounted[controller])
    for number, _, path in groups:
        if number == "0" and "" in mounted:
            return _up_from(path, *mounted[""])
    return []


def _control_group_mounts(process: str) -> dict[str, tuple[str, str]]:
    """Controller (version 2: empty) → what of its hierarchy is mounted, and where."""
    mounted: dict[str, tuple[str, str]] = {}
    for line in _read(f"{process}/mountinfo").splitlines():
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
    said = [_read(f"{folder}/{name}").strip() for folder in groups for name in names]
    return min((int(text) for text in said if text.isdigit() and int(text) < _NO_LIMIT), default=None)


def _cpu_limit(groups: list[str]) -> float | None:
    """How many cores these groups allow, or None."""
    allowed = []
    for folder in groups:
        told = _read(f"{folder}/cpu.max").split()
        told = told or [_read(f"{folder}/cpu.cfs_quota_us").strip(), _read(f"{folder}/cpu.cfs_period_us").strip()]
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


def _size(folder: str) -> int | None:
    """The size of the file system at a folder."""
    try:
        told = os.statvfs(folder)
    except OSError:
        return None
    return told.f_blocks * told.f_frsize


def _mode(folder: str) -> int | None:
    try:
        return stat.S_IMODE(os.stat(folder).st_mode)
    except OSError:
        return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
