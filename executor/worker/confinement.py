"""What is really in force for this process: its user, its rights, its limits, what it can reach and write to.

The agent says it in its HELLO, and the host compares it with what it asked of the engine. Nothing here is taken from
what anybody was told: it is read from the kernel.
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from typing import Any

from executor.worker import groups, kernel


def facts() -> dict[str, Any]:
    """All of it as plain data.

    capabilities, capabilities_bounding: as bits; the first are all that the process has or could hand on
    memory_limit_bytes, swap_limit_bytes, cpu_limit, pids_limit: see `groups.limits`
    root_read_only:     whether `/` is
    interfaces:         of the network, as far as they are up, without the loopback
    shm, tmp:           size in bytes, and for the latter its mode
    core, open_files:   the hard limits
    """
    status = dict(line.split(":", 1) for line in kernel.read("/proc/self/status").splitlines() if ":" in line)
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
        **groups.limits(),
        "root_read_only": kernel.is_read_only("/"),
        "interfaces": kernel.interfaces(),
        "shm_bytes": kernel.size_of("/dev/shm"),  # noqa: S108
        "tmp_bytes": kernel.size_of("/tmp"),  # noqa: S108
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


def _mode(folder: str) -> int | None:
    try:
        return stat.S_IMODE(os.stat(folder).st_mode)
    except OSError:
        return None
