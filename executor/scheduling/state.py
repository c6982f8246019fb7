"""Which call runs when, and on which GPUs: a pure state machine.

A call waits until its share of the machine is free, runs in attempts, and ends once. Order: calls that want a GPU, then
children before other roots, so that live containers stay few, then those with the longest way to the end of the run, then
as they came. Whatever fits may go before what does not (backfill), with one reservation: what waits first
and was overtaken often enough gets what becomes free. Not sooner: devices that are kept for a call that wants several
of them stand still meanwhile.

A caller that waits for its calls is blocked and lends its CPU, so nesting can be deeper than the machine has cores; memory
and GPUs it keeps, because they are really in use. What can never run, or could only run if its callers first gave back
what they hold, is rejected by name and never left to hang. What waits for a device that another run or a stranger holds
waits, and says so.

Waiting calls of one shape are one queue, so that a fact costs as much as there are shapes, however many calls wait.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal

from typing_extensions import assert_never

from executor.events import (
    AttemptDeferred,
    AttemptEnded,
    CallCancelled,
    CallSubmitted,
    CancelAttempt,
    Command,
    Device,
    DevicesSeen,
    EndCall,
    Outcome,
    RetryDue,
    RetryLater,
    RunCancelled,
    StartAttempt,
    TellWaiting,
)
from executor.manifest import Shape
from executor.scheduling.devices import Devices, describe_gpus

SchedulerFact = CallSubmitted | AttemptEnded | AttemptDeferred | RetryDue | DevicesSeen | CallCancelled | RunCancelled

_WORTH_ANOTHER_ATTEMPT: frozenset[Outcome] = frozenset(
    {"raised", "exit", "signal", "oom", "timeout", "lost_agent", "lost_engine"}
)
#: How many calls may go before one that came first and does not fit.
_MOST_OVERTAKES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What all attempts together may use."""

    cpus: float
    memory_bytes: int
    devices: tuple[Device, ...] = ()


_Status = Literal["queued", "later", "running", "over"]


@dataclass(slots=True)
class _Call:
    submitted: CallSubmitted
    depth: int
    order: int
    shape: Shape  # of its next attempt
    status: _Status = "over"
    attempt: int = 0
    retried: int = 0
    was_lost: bool = False
    overtaken: int = 0
    cancelled: bool = False
    told: str = ""
    gpus: tuple[str, ...] = ()
    children: dict[str, None] = field(default_factory=dict)  # in the order in which they came

    @property
    def millicpus(self) -> int:
        return round(self.shape.cpus * 1000)

    @property
    def kind(self) -> _Kind:
        """What has to be free for it; calls that need the same wait in one queue."""
        shape = self.shape
        return (
            self.millicpus, shape.memory_bytes, shape.gpus, shape.gpu_model, shape.gpu_memory_bytes, shape.gpu_shared,
        )  # fmt: skip

    @property
    def place(self) -> _Place:
        """Its place in a queue; the smallest goes first."""
        return (not self.shape.gpus, -self.depth, -self.submitted.rank, self.order, self.submitted.call)


_Kind = tuple[int, int, int, str, int | None, bool]
_Place = tuple[bool, int, float, int, str]


class SchedulerState:
    """The calls of one run, and what of the machine is free.

    `handle` is the only door: it takes note of one fact and answers with everything to do because of it. `check` states
    the invariants.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._free_millicpus = round(machine.cpus * 1000)
        self._free_bytes = machine.memory_bytes
        self._devices = Devices(machine.devices)
        self._live: dict[str, _Call] = {}
        self._queues: dict[_Kind, list[_Place]] = {}
        self._count: Counter[_Status] = Counter()
        self._working = 0  # attempts that run and do not wait for calls of theirs
        self._submitted = 0
        self._stopping = False

    @property
    def live(self) -> frozenset[str]:
        """The calls that have not ended."""
        return frozenset(self._live)

    def is_live(self, call: str) -> bool:
        """Whether a call is known and has not ended."""
        return call in self._live

    @property
    def is_idle(self) -> bool:
        """Whether every call has ended."""
        return not self._live

    @property
    def wants_devices(self) -> bool:
        """Whether a call waits for a GPU."""
        return any(kind[2] for kind in self._queues)

    def handle(self, fact: SchedulerFact) -> list[Command]:
        """Take note of one fact; answer with everything to do because of it."""
        commands: list[Command] = []
        match fact:
            case CallSubmitted():
                self._submit(fact, commands)
            case AttemptEnded():
                self._end_attempt(fact, commands)
            case AttemptDeferred():
                self._defer(fact, commands)
            case RetryDue():
                self._retry(fact)
            case DevicesSeen():
                self._devices.see(fact.devices)
                self._reject_impossible(commands)
            case CallCancelled():
                if fact.call in self._live:
                    self._cancel(fact.call, commands)
            case RunCancelled():
                self._cancel_all(commands)
            case _:
                assert_never(fact)
        self._start(commands)
        return commands

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold."""
        running = {name: call for name, call in self._live.items() if call.status == "running"}
        used_bytes = sum(call.shape.memory_bytes for call in running.values())
        used_millicpus = sum(call.millicpus for call in running.values() if not call.children)
        assert self._free_bytes == self._machine.memory_bytes - used_bytes >= 0
        assert self._free_millicpus == round(self._machine.cpus * 1000) - used_millicpus
        assert self._working == sum(not call.children for call in running.values())
        for status in ("queued", "later", "running"):
            assert self._count[status] == sum(call.status == status for call in self._live.values())
        assert self._devices.taken == {uuid: name for name, call in running.items() for uuid in call.gpus}
        for name, call in self._live.items():
            assert all(self._live[child].submitted.parent == name for child in call.children)
            assert call.status == "running" or not call.children
            assert len(call.gpus) == (call.shape.gpus if call.status == "running" else 0)

    # -- facts ---------------------------------------------------------------------------------------------------------

    def _submit(self, fact: CallSubmitted, commands: list[Command]) -> None:
        parent = self._live.get(fact.parent) if fact.parent is not None else None
        shape = _first(fact.shape)
        refusal = self._never_fits(shape)
        if self._stopping or (fact.parent is not None and (parent is None or parent.cancelled)):
            commands.append(EndCall(call=fact.call, outcome="cancelled", reason="its caller is being stopped"))
        elif refusal:
            commands.append(EndCall(call=fact.call, outcome="rejected", reason=refusal))
        else:
            self._submitted += 1
            depth = 0 if parent is None else parent.depth + 1
            self._live[fact.call] = call = _Call(fact, depth, self._submitted, shape)
            self._enqueue(call)
            if parent is not None:
                if not parent.children:
                    self._free_millicpus += parent.millicpus
                    self._working -= 1
                parent.children[fact.call] = None

    def _end_attempt(self, fact: AttemptEnded, commands: list[Command]) -> None:
        call = self._live[fact.call]
        for child in list(call.children):
            self._cancel(child, commands)
        self._take_back(call)
        for child in list(call.children):  # still dying; they answer to nobody now
            self._live[child].submitted = replace(self._live[child].submitted, parent=None)
        call.children.clear()
        if call.cancelled or fact.final or not self._try_again(call, fact.outcome, commands):
            self._end_call(fact.call, fact.outcome, commands)

    def _try_again(self, call: _Call, outcome: Outcome, commands: list[Command]) -> bool:
        """Make another attempt of a call, now or later, where it is worth one.

        More memory for one that ran out of it, and another container for one that lost its own, are no retries of its.
        """
        more = min(
            2 * call.shape.memory_bytes, call.submitted.shape.memory_limit_bytes or 0, self._machine.memory_bytes
        )
        if outcome == "oom" and more > call.shape.memory_bytes:
            call.shape = replace(call.shape, memory_bytes=more, memory_limit_bytes=more)
            self._enqueue(call)
        elif outcome == "lost_agent" and not call.was_lost:
            call.was_lost = True
            self._enqueue(call)
        elif outcome in _WORTH_ANOTHER_ATTEMPT and call.retried < call.submitted.retries:
            commands.append(RetryLater(call=call.submitted.call, after_s=call.submitted.backoff.before(call.retried)))
            call.retried += 1
            self._move(call, "later")
        else:
            return False
        return True

    def _defer(self, fact: AttemptDeferred, commands: list[Command]) -> None:
        call = self._live[fact.call]
        self._take_back(call)
        call.attempt -= 1
        if call.cancelled:
            self._end_call(fact.call, "cancelled", commands)
        else:
            self._enqueue(call)

    def _retry(self, fact: RetryDue) -> None:
        call = self._live.get(fact.call)
        if call and call.status == "later":
            self._enqueue(call)

    def _cancel_all(self, commands: list[Command]) -> None:
        self._stopping = True
        for name in [name for name, call in self._live.items() if call.depth == 0]:
            self._cancel(name, commands)

    def _cancel(self, name: str, commands: list[Command]) -> None:
        """Stop a call and everything below it; a running one ends when its attempt does."""
        call = self._live[name]
        if call.cancelled:
            return
        call.cancelled = True
        for child in list(call.children):
            self._cancel(child, commands)
        if call.status == "running":
            commands.append(CancelAttempt(call=name))
        else:
            self._end_call(name, "cancelled", commands)

    def _end_call(self, name: str, outcome: Outcome, commands: list[Command], reason: str = "") -> None:
        call = self._live.pop(name)
        self._move(call, "over")
        parent = self._live.get(call.submitted.parent or "")
        if parent is not None and name in parent.children:
            del parent.children[name]
            if not parent.children and parent.status == "running":
                self._free_millicpus -= parent.millicpus  # it goes on at once, even if that over-commits the CPU
                self._working += 1
        commands.append(EndCall(call=name, outcome=outcome, reason=reason))

    def _move(self, call: _Call, status: _Status) -> None:
        self._count[call.status] -= 1
        self._count[status] += 1
        call.status = status

    def _enqueue(self, call: _Call) -> None:
        self._move(call, "queued")
        heapq.heappush(self._queues.setdefault(call.kind, []), call.place)

    def _take_back(self, call: _Call) -> None:
        """What a running attempt had is free again."""
        assert call.status == "running"
        self._free_bytes += call.shape.memory_bytes
        if not call.children:
            self._free_millicpus += call.millicpus
            self._working -= 1
        self._devices.give_back(call.gpus)
        call.gpus = ()
        self._move(call, "over")

    # -- placement -----------------------------------------------------------------------------------------------------

    def _start(self, commands: list[Command]) -> None:
        """Start what fits; where a reservation holds up everything, without one: it may wait for what it holds up."""
        self._start_in_order(commands, reserves=True)
        if self._count["queued"] and not self._working:
            self._start_in_order(commands, reserves=False)
        self._reject_stuck(commands)

    def _start_in_order(self, commands: list[Command], *, reserves: bool) -> None:
        heads = [(call.place, call) for kind in list(self._queues) if (call := self._head(kind))]
        heapq.heapify(heads)
        first: _Call | None = None  # that does not fit
        kept_millicpus = kept_bytes = 0
        keeps_devices = False
        while heads:
            _, call = heapq.heappop(heads)
            gpus = self._fit(call, kept_millicpus, kept_bytes, keeps_devices=keeps_devices)
            if gpus is None:
                if not self._is_held_outside(call) and first is None:
                    first = call
                    if reserves and call.overtaken >= _MOST_OVERTAKES:
                        kept_millicpus, kept_bytes = call.millicpus, call.shape.memory_bytes
                        keeps_devices = bool(call.shape.gpus)
                if call.shape.gpus:
                    self._tell(call, commands)
                continue
            if first:
                first.overtaken += 1
            self._begin(call, gpus, commands)
            if following := self._head(call.kind):
                heapq.heappush(heads, (following.place, following))

    def _head(self, kind: _Kind) -> _Call | None:
        """The first call of a queue; places of calls that do not wait in it any more are passed over."""
        queue = self._queues[kind]
        while queue:
            call = self._live.get(queue[0][-1])
            if call and call.status == "queued" and call.kind == kind:
                return call
            heapq.heappop(queue)
        del self._queues[kind]
        return None

    def _fit(self, call: _Call, kept_millicpus: int, kept_bytes: int, *, keeps_devices: bool) -> tuple[str, ...] | None:
        """The devices for a call that fits into what is free and not kept for another one; None where it does not fit."""
        if (
            call.millicpus > self._free_millicpus - kept_millicpus
            or call.shape.memory_bytes > self._free_bytes - kept_bytes
        ):
            return None
        if not call.shape.gpus:
            return ()
        return None if keeps_devices else self._devices.choose(call.shape)

    def _begin(self, call: _Call, gpus: tuple[str, ...], commands: list[Command]) -> None:
        name = call.submitted.call
        heapq.heappop(self._queues[call.kind])
        self._free_millicpus -= call.millicpus
        self._free_bytes -= call.shape.memory_bytes
        self._devices.take(gpus, name)
        self._working += 1
        self._move(call, "running")
        call.gpus, call.told = gpus, ""
        call.attempt += 1
        commands.append(StartAttempt(call=name, attempt=call.attempt, shape=call.shape, gpus=gpus))

    def _is_held_outside(self, call: _Call) -> bool:
        """Whether a call waits for devices that another run or a stranger holds, whatever this run gives back."""
        return self._devices.usable(call.shape) < call.shape.gpus

    def _tell(self, call: _Call, commands: list[Command]) -> None:
        """Say what a call that wants a GPU waits for, where that has changed."""
        holders = {name: self._live[name].submitted.task for name in self._devices.taken.values()}
        reason = self._devices.why_not(call.shape, holders)
        if reason and reason != call.told:
            call.told = reason
            commands.append(TellWaiting(call=call.submitted.call, reason=reason))

    # -- what cannot be ------------------------------------------------------------------------------------------------

    def _reject_stuck(self, commands: list[Command]) -> None:
        """Where all that runs waits for calls that cannot start, nothing will ever change: say so."""
        while self._count["queued"] and not self._working and not self._count["later"]:
            heads = sorted(
                (call for kind in list(self._queues) if (call := self._head(kind))), key=lambda call: call.place
            )
            if any(self._is_held_outside(call) for call in heads):
                return
            self._end_call(heads[0].submitted.call, "rejected", commands, self._why_stuck(heads[0]))

    def _why_stuck(self, call: _Call) -> str:
        shape = call.shape
        asked, free = f"{shape.memory_bytes / 2**30:.3g} GiB", f"{self._free_bytes / 2**30:.3g} GiB"
        if shape.gpus:
            asked += f" and {describe_gpus(shape)}"
            free += f" and {self._devices.free(shape)} of those"
        holders = ", ".join(
            f"`{each.submitted.task}` ({each.shape.memory_bytes / 2**30:.3g} GiB"
            + (f", {_count(len(each.gpus), 'GPU')})" if each.gpus else ")")
            for each in self._live.values()
            if each.status == "running"
        )
        return f"it asks for {asked}, {free} are free, and the rest is held by calls that wait for it: {holders}"

    def _reject_impossible(self, commands: list[Command]) -> None:
        """Devices may have gone."""
        for kind in list(self._queues):
            while (call := self._head(kind)) and (refusal := self._never_fits(call.shape)):
                self._end_call(call.submitted.call, "rejected", commands, refusal)

    def _never_fits(self, shape: Shape) -> str:
        machine = self._machine
        for asked, has, unit in (
            (shape.cpus, machine.cpus, "cores"),
            (shape.memory_bytes / 2**30, machine.memory_bytes / 2**30, "GiB of memory"),
        ):
            if asked > has:
                return f"it asks for {asked:.4g} {unit}, and this machine offers {has:.4g}"
        if shape.gpus > self._devices.matching(shape):
            return f"it asks for {describe_gpus(shape)}, and this machine has {self._devices.describe(shape)}"
        return ""


def _first(shape: Shape) -> Shape:
    """What the first attempt gets: its memory is limited to what it is admitted with, where there is a limit at all."""
    return shape if shape.memory_limit_bytes is None else replace(shape, memory_limit_bytes=shape.memory_bytes)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"
