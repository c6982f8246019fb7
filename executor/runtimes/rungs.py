"""How well this machine lets the process runtime isolate tasks: probed once, before a run begins; see `worker.launch`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import executor
from executor import machine
from executor.errors import MachineError

_PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
from executor.worker import kernel
print(kernel.try_namespaces())
"""

_BUBBLEWRAP = (
    "--bind", "/", "/", "--dev-bind", "/dev", "/dev", "--proc", "/proc", "--unshare-user-try", "--unshare-pid",
    "--as-pid-1", "--die-with-parent",
)  # fmt: skip

#: Settings of a machine that keep its users from making namespaces: where, which value, and whether root may do it.
_SETTINGS = (
    ("user.max_user_namespaces", "0", False),
    ("kernel.unprivileged_userns_clone", "0", True),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", True),
)


@dataclass(frozen=True)
class Rung:
    """How tasks are isolated.

    name:    namespaces, bubblewrap or subreaper; the first two are full isolation of processes
    refused: what the kernel refuses, and the setting that makes it; empty where it refuses nothing
    """

    name: str
    refused: str = ""

    @property
    def is_full(self) -> bool:
        """Whether the kernel itself ends everything that a task has started, whatever the task does."""
        return self.name != "subreaper"

    def describe(self) -> str:
        """In a line, for people."""
        if self.name == "namespaces":
            return "a process namespace for each slot"
        if self.name == "bubblewrap":
            return f"a process namespace for each slot, made by bubblewrap; the kernel refuses ours ({self.refused})"
        return f"what tasks leave behind is found and killed by hand; the kernel refuses namespaces ({self.refused})"


def find_rung() -> Rung:
    """The best rung that this machine has."""
    ours = str(Path(executor.__file__).parent.parent)
    refused = _ask([sys.executable, "-I", "-S", "-c", _PROBE, ours])
    if not refused:
        return Rung("namespaces")
    refused = "; ".join([refused, *_reasons()])
    if shutil.which("bwrap") and not _ask([*bubblewrap([]), sys.executable, "-I", "-S", "-c", "pass"]):
        return Rung("bubblewrap", refused)
    return Rung("subreaper", refused)


def bubblewrap(read_only: Sequence[tuple[str, str]]) -> list[str]:
    """Starts a command as PID 1 of a namespace, made by a program that may do what we may not.

    read_only: what is shown read-only, and where
    """
    program = shutil.which("bwrap") or "bwrap"
    return [program, *_BUBBLEWRAP, *(word for each in read_only for word in ("--ro-bind", *each)), "--"]


def demand_full(rung: Rung) -> None:
    """Raise `MachineError` where tasks would not be isolated fully."""
    if not rung.is_full:
        raise MachineError(
            "tasks cannot be isolated here as `--isolation required` demands",
            why=f"the kernel refuses namespaces ({rung.refused})",
            hint="use `--runtime docker`, or have the setting changed; `--isolation auto` does with what there is",
        )


def _ask(argv: list[str]) -> str:
    """What a program that should say nothing has to say."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd="/")
    said = done.stdout.strip()
    return said or (done.stderr.strip() or f"exit status {done.returncode}")[-300:] if done.returncode or said else ""


def _reasons() -> list[str]:
    found = [
        f"sysctl {name} is {value}"
        for name, value, only_users in _SETTINGS
        if machine.read_setting(f"/proc/sys/{name.replace('.', '/')}") == value and (os.getuid() or not only_users)
    ]
    status = machine.read_setting("/proc/self/status")
    if "\nSeccomp:\t2" in status:
        found.append("a seccomp filter is in force, as in a container")
    return found
