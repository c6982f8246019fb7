"""What can happen in a run (facts, past tense) and what is to be done about it (commands, imperative).

The scheduler takes facts and answers with commands; the record is the list of facts; the console is a view of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from executor.manifest import Shape

Outcome = Literal["ok", "raised", "exit", "signal", "oom", "timeout", "cancelled", "lost", "rejected"]
Status = Literal["succeeded", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """A run began; `workflow` is the name of the root task.

    mounts: environment → path in it → path on this machine
    """

    run: str
    workflow: str
    runtime: str
    root: str
    mounts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentReady:
    """An environment is locked and built."""

    environment: str
    key: str
    python: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSubmitted:
    """A task was called: by the user (parent None) or by the task of another call."""

    call: str
    parent: str | None
    task: str
    environment: str
    shape: Shape
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted:
    """A slot took the call; `container` is its id, or None under the process runtime."""

    call: str
    attempt: int
    container: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogWritten:
    """A task wrote to its stdout or stderr."""

    call: str
    stream: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded:
    """An attempt is over and nothing of it is left. `seconds` is from its start to its end."""

    call: str
    attempt: int
    outcome: Outcome
    seconds: float
    evidence: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded:
    """A call is over: its value is committed (`value`, `preview`), or it failed (`error`).

    raised: the exception that it failed with, as a committed value, where it is one
    """

    call: str
    status: Status
    value: Mapping[str, Any] | None = None
    preview: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    raised: Mapping[str, Any] | None = None


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
    | AttemptStarted
    | LogWritten
    | AttemptEnded
    | CallEnded
    | CallCancelled
    | RunCancelled
    | RunEnded
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAttempt:
    """Run this call now; its share of the machine is taken."""

    call: str
    attempt: int


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


Command = StartAttempt | CancelAttempt | EndCall
