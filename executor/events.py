"""What can happen in a run (facts, past tense) and what is to be done about it (commands, imperative).

The scheduler takes facts and answers with commands; the record is the list of facts; the console is a view of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from executor.manifest import Backoff, Shape

#: The format of journals: raised where a reader of an earlier version would take what is there for something else.
JOURNAL = 1

#: How an attempt can end. `raised`: the task's exception; `exit` and `signal`: its process ended without having returned;
#: `lost_agent`: its container or process tree was gone; `lost_engine`: the engine was; `rejected`: it could not begin.
Outcome = Literal[
    "ok", "raised", "exit", "signal", "oom", "timeout", "cancelled", "lost_agent", "lost_engine", "rejected"
]
Status = Literal["succeeded", "failed", "cancelled", "cached"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU, or a slice of one, as it was seen.

    held:    which other run holds its lease, as `run 2026… of alice`, or empty
    foreign: which processes that are not run-local's have memory on it, or empty
    """

    uuid: str
    name: str
    memory_bytes: int
    free_bytes: int
    held: str = ""
    foreign: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """A run began; `workflow` is the name of the root task.

    mounts:  environment → path in it → path on this machine
    target:  what the workflow is found by again: `file.py:environment.task`, from the project's root
    resumes: the run that this one goes on with, or empty
    replays: the run and the call that its root call makes once more, or empty
    isolation: which rung the process runtime has, in words (see `runtimes.rungs`); empty for containers
    snapshot: which copy of the source it uses
    manifest: the digest of the project's description in the store (see `Manifest.to_json`)
    fresh:   nothing is taken from the cache
    host: this machine: `name`, `kernel`, `cores`, `memory_bytes`, `engine`, `python`, and run-local's `version`
    journal: the format of the journal that this line begins (see `JOURNAL`)
    """

    run: str
    workflow: str
    runtime: str
    root: str
    mounts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    target: str = ""
    resumes: str = ""
    replays: str = ""
    isolation: str = ""
    snapshot: str = ""
    manifest: str = ""
    fresh: bool = False
    host: Mapping[str, Any] = field(default_factory=dict)
    journal: int = JOURNAL


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentReady:
    """An environment is locked and built.

    image: what Docker runs; None under the process runtime
    lock: the digest of its packages, which are listed as manager, name and version
    lock_file: the digest of the lock itself in the store
    """

    environment: str
    key: str
    python: str
    seconds: float
    image: str | None = None
    lock: str = ""
    lock_file: str = ""
    packages: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSubmitted:
    """A task was called: by the user (parent None) or by the task of another call.

    rank: the seconds that are expected from its start to the end of the run; calls with more go first
    arguments: the preview of each, by name
    env_vars, timeout_s, cache: what it was called with; seconds, or None; see `authoring.Cache`
    """

    call: str
    parent: str | None
    task: str
    environment: str
    shape: Shape
    retries: int = 0
    backoff: Backoff = field(default_factory=Backoff)
    rank: float = 1.0
    arguments: Mapping[str, Any] | None = None
    env_vars: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None
    cache: str = "disable"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallWaiting:
    """A call waits for what others hold."""

    call: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeReached:
    """What code a task reaches; told once, before the first call that reaches it (see `reach.Reach`)."""

    digest: str
    parts: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputsCommitted:
    """The inputs of a call are in the store, so its key is known.

    parts: what it was made of, as far as no other fact tells it (see `keys.CallKey.told`)
    """

    call: str
    inputs: Mapping[str, Any]
    key: str
    parts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted:
    """A slot took the call; `container` is its id, or None under the process runtime.

    slot: its number in the run; gpus: the UUIDs of its devices; memory_bytes: what it may use at most, where that is limited
    """

    call: str
    attempt: int
    container: str | None
    gpus: tuple[str, ...] = ()
    memory_bytes: int | None = None
    slot: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogWritten:
    """A task wrote to its stdout or stderr."""

    call: str
    stream: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryMeasured:
    """How much memory the attempt of a call uses now; told every few seconds, and not recorded."""

    call: str
    used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportWritten:
    """A task logged HTML for people (see `executor.report`); `replace`: instead of what the tab had."""

    call: str
    tab: str
    html: str
    replace: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded:
    """An attempt is over and nothing of it is left.

    seconds: from its start to its end; final: the task said that another attempt is of no use
    evidence: what was measured (see `agent._verdict`); `gpus`, what was seen of its devices (see `sampling.Sampler.end`);
              of a failure `log`, the last of what it printed, as well
    """

    call: str
    attempt: int
    outcome: Outcome
    seconds: float
    evidence: Mapping[str, Any]
    final: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptDeferred:
    """An attempt could not begin: the devices that it was to have are somebody else's now."""

    call: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDue:
    """The time that a call was to wait before its next attempt is over."""

    call: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicesSeen:
    """All GPUs of this machine, as they are now."""

    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded:
    """A call is over: its value is committed (`value`, `preview`), or it failed (`error`).

    raised: the exception that it failed with, as a committed value, where it is one
    origin: where the value of a cached call was computed: the `run` and the `call`
    """

    call: str
    status: Status
    value: Mapping[str, Any] | None = None
    preview: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    raised: Mapping[str, Any] | None = None
    origin: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCancelled:
    """The caller of a call goes on and waits for it no more."""

    call: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCancelled:
    """Somebody wants the run to stop."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """The root call is over, and every slot is gone.

    error: why the run could not begin, as what, why and hint; a call that failed has its own
    """

    status: Status
    seconds: float
    error: Mapping[str, str] | None = None


Fact = (
    RunStarted
    | EnvironmentReady
    | CallSubmitted
    | CallWaiting
    | CodeReached
    | InputsCommitted
    | AttemptStarted
    | LogWritten
    | MemoryMeasured
    | ReportWritten
    | AttemptEnded
    | AttemptDeferred
    | RetryDue
    | DevicesSeen
    | CallEnded
    | CallCancelled
    | RunCancelled
    | RunEnded
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAttempt:
    """Run this call now; its share of the machine is taken.

    shape: what this attempt gets, which may be more memory than the last one; gpus: the UUIDs of its devices
    """

    call: str
    attempt: int
    shape: Shape
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryLater:
    """Tell of this call (`RetryDue`) when so many seconds are over."""

    call: str
    after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TellWaiting:
    """Say what a call waits for."""

    call: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAttempt:
    """Kill the running attempt of this call; its end will come as a fact."""

    call: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndCall:
    """The call is over; tell its caller. `reason` says why, where no attempt of it can."""

    call: str
    outcome: Outcome
    reason: str = ""


Command = StartAttempt | RetryLater | TellWaiting | CancelAttempt | EndCall
