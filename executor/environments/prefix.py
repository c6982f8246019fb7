"""A lock as a folder: the prefix that the process runtime runs from, and what an image is packed from.

A prefix has its final name only when it is whole and its own Python has started.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from executor import machine
from executor.data.leases import scratch_folder
from executor.data.store import full_disk
from executor.environments.lock import Lock, ask_child
from executor.errors import BuildError

_RECIPE = "prefix 1"


def prefix_path(key: str, home: Path) -> Path:
    """Where the prefix with this key is, or will be."""
    return home / "prefixes" / key


def make_prefix(lock: Lock, key: str, *, home: Path, say: Callable[[str, str], None]) -> Path:
    """The prefix of a lock, made now where there is none."""
    target = prefix_path(key, home)
    if target.exists():
        return target
    with machine.lock_file(home / "prefixes" / f"{key}.lock", lambda: say("install", "another run-local builds it")):
        if not target.exists():
            with installed(lock, str(target), home=home, say=say) as folder, full_disk("a prefix cannot be published"):
                say("verify", "starting its Python")
                _verify(folder, lock)
                folder.rename(target)
    return target


@contextlib.contextmanager
def installed(lock: Lock, prefix: str, *, home: Path, say: Callable[[str, str], None]) -> Iterator[Path]:
    """The packages of a lock in a temporary folder, made for the given final prefix."""
    with full_disk("an environment cannot be built"), scratch_folder(home / "tmp") as scratch:
        folder = scratch / "prefix"
        folder.mkdir()
        request = {
            "packages": [asdict(package) for package in lock.packages],
            "folder": str(folder),
            "prefix": prefix,
            "home": str(home),
        }
        answer = ask_child("executor.environments.install", request, lambda text: say("install", text))
        if "error" in answer:
            raise BuildError(**answer["error"])
        yield folder


def _verify(folder: Path, lock: Lock) -> None:
    """Start the Python of a prefix; one that does not start gets no name."""
    try:
        done = machine.run([str(folder / "bin/python"), "-I", "-c", "import sys; print(sys.version.split()[0])"])
        if done.stdout.strip() == lock.python:
            return
        why = done.stderr.strip()[-500:] or f"it says {done.stdout.strip()}, the lock {lock.python}"
    except OSError as exc:
        why = str(exc)
    raise BuildError("the Python of an environment does not start", why=why)
