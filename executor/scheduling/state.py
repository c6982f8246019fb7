"""Which call runs when: a pure state machine.

A call waits until its share of the machine is free, runs in attempts, and ends once. A caller that waits for its calls
is blocked and lends its CPU, so nesting can be deeper than the machine has cores; memory it keeps, because it is really
in use. Children go before other roots, so that live containers stay few. What can never run, or could only run if its
callers first gave back what they hold, is rejected by name and never left to hang.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from typing_extensions import assert_never

from executor.events import (
    AttemptEnded,
    CallCancelled,
    CallSubmitted,
    CancelAttempt,
    Command,
    EndCall,
    Outcome,
    RunCancelled,
    StartAttempt,
)

SchedulerFact = CallSubmitted | AttemptEnded | CallCancelled | RunCancelled

_WORTH_ANOTHER_ATTEMPT: frozenset[Outcome] = frozenset({"raised", "exit", "signal", "oom", "timeout", "lost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What all attempts together may use."""

    cpus: float
    memory_bytes: int
    gpus: int = 0


@dataclass(slots=True)
class _Call:
    submitted: CallSubmitted
    depth: int
    order: int
    attempt: int = 0
    running: bool = False
    cancelled: bool = False
    children: set[str] = field(default_factory=set)

    @property
    def millicpus(self) -> int:
        return round(self.submitted.shape.cpus * 1000)


class SchedulerState:
    """The calls of one run, and what of the machine is free.

    `handle` is the only door: it takes note of one fact and answers with everything to do because of it. `check` states
    the invariants.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._free_millicpus = round(machine.cpus * 1000)
        self._free_bytes = machine.memory_bytes
        self._live: dict[str, _Call] = {}
        self._submitted = 0
        self._stopping = False

    @property
    def live(self) -> frozenset[str]:
        """The calls that have not ended."""
        return frozenset(self._live)

    def handle(self, fact: SchedulerFact) -> list[Command]:
        """Take note of one fact; answer with everything to do because of it."""
        commands: list[Command] = []
        match fact:
            case CallSubmitted():
                self._submit(fact, commands)
            case AttemptEnded():
                self._end_attempt(fact, commands)
            case CallCancelled():
                if fact.call in self._live:
                    self._cancel(fact.call, commands)
            case RunCancelled():
                self._stopping = True
                for name, call in list(self._live.items()):
                    if call.depth == 0:
                        self._cancel(name, commands)
            case _:
                assert_never(fact)
        self._start(commands)
        return commands

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        running = [call for call in self._live.values() if call.running]
        used_bytes = sum(call.submitted.shape.memory_bytes for call in running)
        used_millicpus = sum(call.millicpus for call in running if not call.children)
        assert self._free_bytes == self._machine.memory_bytes - used_bytes >= 0
        assert self._free_millicpus == round(self._machine.cpus * 1000) - used_millicpus
        for name, call in self._live.items():
            assert all(self._live[child].submitted.parent == name for child in call.children)
            assert call.running or not call.children

    # -- facts ---------------------------------------------------------------------------------------------------------

    def _submit(self, fact: CallSubmitted, commands: list[Command]) -> None:
        parent = self._live.get(fact.parent) if fact.parent is not None else None
        refusal = self._never_fits(fact)
        if self._stopping or (fact.parent is not None and (parent is None or parent.cancelled)):
            commands.append(EndCall(call=fact.call, outcome="cancelled", reason="its caller is being stopped"))
        elif refusal:
            commands.append(EndCall(call=fact.call, outcome="rejected", reason=refusal))
        else:
            self._submitted += 1
            depth = 0 if parent is None else parent.depth + 1
            self._live[fact.call] = _Call(fact, depth, self._submitted)
            if parent is not None:
                if not parent.children:
                    self._free_millicpus += parent.millicpus
                parent.children.add(fact.call)

    def _end_attempt(self, fact: AttemptEnded, commands: list[Command]) -> None:
        call = self._live[fact.call]
        for child in list(call.children):
            self._cancel(child, commands)
        assert call.running
        call.running = False
        self._free_bytes += call.submitted.shape.memory_bytes
        if not call.children:
            self._free_millicpus += call.millicpus
        for child in list(call.children):  # still dying; they answer to nobody now
            self._live[child].submitted = _orphaned(self._live[child].submitted)
        call.children.clear()
        again = call.attempt <= call.submitted.retries and fact.outcome in _WORTH_ANOTHER_ATTEMPT
        if not again or call.cancelled:
            self._end_call(fact.call, fact.outcome, commands)

    def _cancel(self, name: str, commands: list[Command]) -> None:
        """Stop a call and everything below it; a running one ends when its attempt does."""
        call = self._live[name]
        if call.cancelled:
            return
        call.cancelled = True
        for child in list(call.children):
            self._cancel(child, commands)
        if call.running:
            commands.append(CancelAttempt(call=name))
        else:
            self._end_call(name, "cancelled", commands)

    def _end_call(self, name: str, outcome: Outcome, commands: list[Command], reason: str = "") -> None:
        call = self._live.pop(name)
        parent = self._live.get(call.submitted.parent or "")
        if parent is not None and name in parent.children:
            parent.children.discard(name)
            if not parent.children and parent.running:
                self._free_millicpus -= parent.millicpus  # it goes on at once, even if that over-commits the CPU
        commands.append(EndCall(call=name, outcome=outcome, reason=reason))

    # -- placement -----------------------------------------------------------------------------------------------------

    def _start(self, commands: list[Command]) -> None:
        waiting = [(name, call) for name, call in self._live.items() if not call.running and not call.cancelled]
        for name, call in sorted(waiting, key=lambda each: (-each[1].depth, each[1].order)):
            shape = call.submitted.shape
            if call.millicpus <= self._free_millicpus and shape.memory_bytes <= self._free_bytes:
                self._free_millicpus -= call.millicpus
                self._free_bytes -= shape.memory_bytes
                call.running = True
                call.attempt += 1
                commands.append(StartAttempt(call=name, attempt=call.attempt))
        self._reject_stuck(commands)

    def _reject_stuck(self, commands: list[Command]) -> None:
        """Where all that runs waits for calls that cannot start, nothing will ever change: say so."""
        while (waiting := [name for name, call in self._live.items() if not call.running]) and not any(
            call.running and not call.children for call in self._live.values()
        ):
            name = waiting[0]
            holders = ", ".join(
                f"`{call.submitted.task}` ({call.submitted.shape.memory_bytes / 2**30:.3g} GiB)"
                for call in self._live.values()
                if call.running
            )
            wanted = self._live[name].submitted.shape.memory_bytes / 2**30
            reason = (
                f"it asks for {wanted:.3g} GiB, {self._free_bytes / 2**30:.3g} GiB are free, "
                f"and the rest is held by calls that wait for it: {holders}"
            )
            self._end_call(name, "rejected", commands, reason)

    def _never_fits(self, fact: CallSubmitted) -> str:
        shape, machine = fact.shape, self._machine
        for asked, has, unit in (
            (shape.cpus, machine.cpus, "cores"),
            (shape.memory_bytes / 2**30, machine.memory_bytes / 2**30, "GiB of memory"),
            (shape.gpus, machine.gpus, "GPUs"),
        ):
            if asked > has:
                return f"it asks for {asked:.4g} {unit}, and this machine offers {has:.4g}"
        return ""


def _orphaned(fact: CallSubmitted) -> CallSubmitted:
    return CallSubmitted(
        call=fact.call,
        parent=None,
        task=fact.task,
        environment=fact.environment,
        shape=fact.shape,
        retries=fact.retries,
    )
