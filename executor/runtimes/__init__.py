"""Where attempts run: a runtime starts slots, a slot serves attempts one after the other.

    Launch ──► Runtime.start ──► Slot ⇄ frames ⇄ agent (PID 1 of the slot)

Both runtimes start the same agent and speak the same protocol with it; what differs is what stands between the agent
and this machine. A slot is gone, with everything that ever ran in it, as soon as its socket closes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from executor.events import Outcome
from executor.gpus import Gpu
from executor.manifest import MountEntry, Shape
from executor.runtimes.slot import Slot
from executor.worker.output import LOG_LIMIT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a slot is made of.

    run, number:  name the slot
    environment:  the name of its environment; image or prefix is what it was built into
    specification: where that says what it holds, for messages
    variables:    what its specification sets; an image has them in itself
    project:      the snapshot of the source; import_roots are folders in it
    library:      the folder with run-local's own code for containers
    folder:       the slot's own folder on this machine, made by the runtime
    lease:        a file that our process holds locked for as long as it lives
    preload, fork: how attempts follow each other (see `authoring.Reuse`), with the variables that preloading needs
    mounts:        data of this machine that attempts find, read-only
    network:       whether attempts have any
    secret_files:  whether attempts find secrets as files; what those are, a launch does not know
    log_limit:     how many bytes of what one attempt prints are kept
    gpus:          the devices that are leased for it
    """

    run: str
    number: int
    environment: str
    specification: str
    key: str
    image: str | None
    prefix: Path | None
    variables: Mapping[str, str]
    shape: Shape
    project: Path
    import_roots: tuple[str, ...]
    library: Path
    folder: Path
    lease: Path
    preload: tuple[str, ...] = ()
    fork: bool = True
    env_vars: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[MountEntry, ...] = ()
    network: bool = True
    secret_files: bool = False
    log_limit: int = LOG_LIMIT_BYTES
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What became of a slot whose line closed while an attempt ran in it.

    why: in words, as far as it is known; evidence: the same as data
    """

    outcome: Outcome
    why: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


class Runtime(Protocol):
    """Starts slots. Raises nothing but `MachineError`; everything it started is gone after `close`.

    A `MachineError` that has an `outcome` among its facts ends the attempt with that one instead of `rejected`.
    """

    name: str

    async def start(self, launch: Launch) -> Slot:
        """Start a slot and wait until its agent has said HELLO and what was asked for is in force."""
        ...

    async def explain_loss(self, slot: Slot) -> Loss:
        """What became of a slot whose line has closed, before it is stopped; within a bounded time."""
        ...

    async def stop(self, slot: Slot) -> None:
        """End a slot and whatever runs in it; return when it is gone. Stopping twice is fine."""
        ...

    async def close(self) -> None:
        """End everything that this runtime started, and return when it is gone."""
        ...
