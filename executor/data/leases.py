"""A lease says that a run, or whoever works in a folder, is alive: a file that its process holds locked.

The kernel gives the lock back however the process ends, so there is nothing to be cleaned up and no process id to be
mistaken. A missing file is a lease given back.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from executor import machine

NAME = "lease"


@contextlib.contextmanager
def hold_lease(folder: Path) -> Iterator[Path]:
    """Hold the lease of a run's folder; it has its name only once it is held, so that nobody takes it for a dead one."""
    lease = folder / NAME
    taken = lease.with_suffix(".taken")
    with machine.keep_from_forks(taken.open("wb")) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        taken.rename(lease)
        try:
            yield lease
        finally:
            lease.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder below `parent`: gone at the end, or at the next call if we are killed before that."""
    for left in parent.glob("scratch-*"):
        if (left / NAME).exists() and not lease_is_held(left / NAME):
            shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(dir=parent, prefix="scratch-"))
    try:
        with hold_lease(scratch):
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def settle(made: Path, target: Path) -> None:
    """Give a folder that is whole its final name; another process may have been first, with the same content."""
    try:
        made.rename(target)
    except OSError:
        if not target.exists():
            raise


def lease_is_held(lease: Path) -> bool:
    """Whether the process that took this lease still lives; of a lease that we may not look at, we cannot say no."""
    try:
        with lease.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        pass
    return False
