"""What keeps a run's folder where it is: that somebody pinned it, or that the run goes on."""

from __future__ import annotations

from pathlib import Path

from executor.data.leases import NAME, lease_is_held
from executor.data.store import full_disk

_PIN = "pinned"


def pin(folder: Path) -> None:
    """Have housekeeping keep a run, with all that its record names; twice is fine. Raises `MachineError`."""
    with full_disk("the run cannot be pinned"):
        (folder / _PIN).touch()


def unpin(folder: Path) -> None:
    """Let housekeeping remove a run again; twice is fine. Raises `MachineError`."""
    with full_disk("the pin cannot be removed"):
        (folder / _PIN).unlink(missing_ok=True)


def is_pinned(folder: Path) -> bool:
    """Whether somebody pinned a run."""
    return (folder / _PIN).exists()


def why_kept(folder: Path) -> str:
    """Why a run may not go, or an empty text."""
    lease = folder / NAME
    if any(each.exists() and lease_is_held(each) for each in (lease, lease.with_suffix(".taken"))):
        return "it goes on"
    return "it is pinned" if is_pinned(folder) else ""
