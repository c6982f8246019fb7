"""The loop: carries out what the scheduler wishes, and brings it back what happened. The only clock of a run.

    facts ─► SchedulerState.handle ─► commands ─► slots ─► frames ─► facts …

Nothing here has opinions about order or resources; nothing polls. A frame of an attempt, the end of one, a signal: each
is a fact in one queue, handled one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from executor.data.store import FileRef, Store, ValueRef
from executor.environments import Built
from executor.errors import MachineError, RunLocalError
from executor.events import (
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    CallSubmitted,
    CancelAttempt,
    Command,
    EndCall,
    Fact,
    LogWritten,
    Outcome,
    RunCancelled,
    RunEnded,
    StartAttempt,
    Status,
)
from executor.manifest import Manifest, TaskEntry
from executor.runtimes import Launch, Runtime
from executor.runtimes.pool import SlotPool
from executor.runtimes.slot import Slot
from executor.scheduling.state import Machine, SchedulerFact, SchedulerState
from executor.stories import Story, error_story, outcome_story, read_story

Listener = Callable[[Fact], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a run needs to know before it starts.

    built: every environment that the root call can reach; project and library: folders mounted into every slot
    """

    run: str
    manifest: Manifest
    task: TaskEntry
    inputs: ValueRef
    built: Mapping[str, Built]
    project: Path
    library: Path
    folder: Path
    lease: Path
    machine: Machine

    def launch(self, environment: str, number: int) -> Launch:
        """What the run's n-th slot is made of."""
        made, asked = self.built[environment], self.manifest.environments[environment].shape
        shape = replace(
            asked,
            cpus_limit=min(asked.cpus_limit, self.machine.cpus),
            memory_limit_bytes=asked.memory_limit_bytes or self.machine.memory_bytes,
        )
        return Launch(
            run=self.run,
            number=number,
            environment=environment,
            key=made.key,
            image=made.image,
            prefix=made.prefix,
            shape=shape,
            project=self.project,
            import_roots=self.manifest.import_roots,
            library=self.library,
            folder=self.folder / "slots" / str(number),
            lease=self.lease,
        )


@dataclass(slots=True)
class _Call:
    task: TaskEntry
    parent: str | None
    number: int  # the caller's own number for it
    made_in: int  # the attempt of the caller that made it, and that alone gets the answer
    inputs: ValueRef
    slot: Slot | None = None
    attempt: int = 0
    started: float = 0.0
    children: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    given: dict[str, FileRef] = field(default_factory=dict)
    value: ValueRef | None = None
    preview: Mapping[str, Any] | None = None
    error: Story | None = None


class Engine:
    """Runs one plan. `listen` hears every fact, in order, on the loop's thread."""

    def __init__(self, plan: Plan, runtime: Runtime, store: Store, listen: Listener) -> None:
        self._plan, self._store, self._listen = plan, store, listen
        self._state = SchedulerState(plan.machine)
        self._calls: dict[str, _Call] = {}
        self._facts: asyncio.Queue[SchedulerFact | _Broken] = asyncio.Queue()
        self._attempts: dict[str, asyncio.Task[None]] = {}
        self._pool = SlotPool(runtime, plan.launch)
        self._ended: dict[str, CallEnded] = {}

    async def run(self) -> CallEnded:
        """Run the root call to its end; answers with how it ended. Every slot is gone afterwards."""
        began = time.monotonic()
        status: Status = "failed"
        try:
            with self._signals():
                self._submit("1", _Call(self._plan.task, None, 0, 0, self._plan.inputs))
                await self._loop()
            status = self._ended["1"].status
            return self._ended["1"]
        finally:
            await self._close()
            self._listen(RunEnded(status=status, seconds=round(time.monotonic() - began, 3)))

    async def _loop(self) -> None:
        while "1" not in self._ended or self._state.live:
            fact = await self._facts.get()
            if isinstance(fact, _Broken):
                raise fact.error
            self._listen(fact)
            for command in self._state.handle(fact):
                self._obey(command)

    def _obey(self, command: Command) -> None:
        match command:
            case StartAttempt():
                attempt = asyncio.ensure_future(self._attempt(command.call, command.attempt))
                self._attempts[command.call] = attempt
                attempt.add_done_callback(self._surface)
            case CancelAttempt():
                slot = self._calls[command.call].slot
                if slot:
                    slot.send({"kind": "CANCEL"})
                else:
                    self._attempts[command.call].cancel()
            case EndCall():
                self._end(command)

    def _surface(self, attempt: asyncio.Task[None]) -> None:
        """An attempt that broke in our own hands ends the run, loudly."""
        if not attempt.cancelled() and (error := attempt.exception()):
            self._facts.put_nowait(_Broken(error))

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _submit(self, name: str, call: _Call) -> None:
        self._calls[name] = call
        task = call.task
        self._facts.put_nowait(
            CallSubmitted(
                call=name,
                parent=call.parent,
                task=task.name,
                environment=task.environment,
                shape=self._plan.manifest.environments[task.environment].shape,
                retries=task.retries,
            )
        )

    def _end(self, command: EndCall) -> None:
        """Record how a call ended, and answer its caller if that still runs."""
        call = self._calls[command.call]
        status: Status = "failed"
        if command.outcome == "ok":
            status = "succeeded"
        elif command.outcome == "cancelled":
            status = "cancelled"
        error = None
        if status != "succeeded":
            error = call.error or self._outcome_story(command.call, command.outcome, reason=command.reason)
        value = call.value.to_json() if call.value and not error else None
        ended = CallEnded(call=command.call, status=status, value=value, preview=call.preview, error=error)
        self._ended[command.call] = ended
        self._listen(ended)
        caller = self._calls.get(call.parent or "")
        if caller and caller.slot and caller.attempt == call.made_in:
            header: dict[str, Any] = {"kind": "ANSWER", "id": call.number}
            if error or call.value is None:
                caller.slot.send({**header, "error": error})
            else:
                place, body = self._place(caller, call.value)
                caller.slot.send({**header, "value": place}, body)
        del self._calls[command.call]

    def _place(self, call: _Call, value: ValueRef) -> tuple[dict[str, Any], bytes]:
        assert call.slot is not None
        place, body = self._store.place(value, call.slot.inputs)
        for each, file in zip(place["files"], value.files, strict=True):
            call.given[each["at"]] = file
        return place, body

    # -- attempts ------------------------------------------------------------------------------------------------------

    async def _attempt(self, name: str, number: int) -> None:
        """One attempt, from a slot to its end; whatever happens becomes one `AttemptEnded`."""
        call = self._calls[name]
        call.attempt, call.started, call.error = number, time.monotonic(), None
        try:
            slot = await self._pool.take(call.task.environment)
        except asyncio.CancelledError:
            self._attempt_ended(name, {"outcome": "cancelled"})
            return
        except MachineError as exc:
            environment = call.task.environment
            call.error = error_story(exc, task=call.task.name, environment=environment, call=name, code="rejected")
            self._attempt_ended(name, {"outcome": "rejected"})
            return
        call.slot = slot
        self._listen(AttemptStarted(call=name, attempt=number, container=slot.container))
        place, body = self._place(call, call.inputs)
        slot.send(
            {
                "kind": "TASK",
                "call": name,
                "task": call.task.name,
                "module": call.task.module,
                "qualname": call.task.qualname,
                "env_vars": dict(self._plan.manifest.environments[call.task.environment].env_vars),
                "timeout_s": call.task.timeout_s,
                "value": place,
            },
            body,
        )
        try:
            ended = await self._serve(name, call, slot)
        except (LookupError, TypeError, ValueError, AttributeError):
            ended = None  # what the agent said is not what an agent says
        call.slot = None
        if ended is None:
            ended = {"outcome": "lost"}
            await self._pool.stop(slot)
        else:
            self._pool.give_back(call.task.environment, slot)
        self._attempt_ended(name, ended)

    async def _serve(self, name: str, call: _Call, slot: Slot) -> dict[str, Any] | None:
        """Take the attempt's frames until it is over; answers with the agent's verdict, or None if it is lost."""
        result: tuple[dict[str, Any], bytes] | None = None
        while frame := await slot.receive():
            header, body = frame
            kind = header["kind"]
            if kind == "LOG":
                self._listen(LogWritten(call=name, stream=header["stream"], data=body))
            elif kind == "CALL":
                self._nested(name, call, slot, header, body)
            elif kind == "RESULT":
                result = frame
            elif kind == "ERROR":
                call.error = read_story(header["error"])
            elif kind == "ENDED":
                if result and header["outcome"] == "ok":
                    call.value = await self._commit(call, slot, *result)
                    call.preview = result[0]["preview"] if "json" in result[0]["preview"] else {"text": "?"}
                return _checked_verdict(header)
        return None

    async def _commit(self, call: _Call, slot: Slot, header: dict[str, Any], body: bytes) -> ValueRef:
        if header["value"].get("name") is None and not header["value"].get("files"):
            return self._store.take(header["value"], body, slot.outputs, call.given)
        return await asyncio.to_thread(self._store.take, header["value"], body, slot.outputs, call.given)

    def _nested(self, name: str, call: _Call, slot: Slot, header: dict[str, Any], body: bytes) -> None:
        """A task called another one: make a call of it, or refuse it at once."""
        number = int(header["id"])
        try:
            inputs = self._store.take(header["value"], body, slot.outputs, call.given)
            task = self._callable(call.task, str(header["task"]))
        except RunLocalError as exc:
            slot.send({"kind": "ANSWER", "id": number, "error": error_story(exc, task=str(header["task"]))})
            return
        self._submit(f"{name}.{next(call.children)}", _Call(task, name, number, call.attempt, inputs))

    def _callable(self, caller: TaskEntry, name: str) -> TaskEntry:
        task = self._plan.manifest.tasks.get(name)
        if task is None:
            raise RunLocalError(f"there is no task `{name}`", why="it was not declared when the workflow was described")
        if task.environment not in self._plan.manifest.reachable(caller.environment):
            raise RunLocalError(
                f"`{caller.name}` may not call `{name}`",
                why=f"environment `{caller.environment}` does not depend on `{task.environment}`, directly or not",
                hint=f"declare it: `TaskEnvironment({caller.environment!r}, depends_on=[…])`",
            )
        return task

    def _outcome_story(self, name: str, outcome: str, **more: Any) -> Story:
        task = self._calls[name].task
        return outcome_story(outcome, task=task.name, environment=task.environment, call=name, **more)

    def _attempt_ended(self, name: str, verdict: dict[str, Any]) -> None:
        call = self._calls[name]
        evidence = {key: value for key, value in verdict.items() if key not in ("kind", "outcome")}
        if verdict["outcome"] not in ("ok", "raised") and call.error is None:
            call.error = self._outcome_story(name, verdict["outcome"], evidence=evidence)
        self._facts.put_nowait(
            AttemptEnded(
                call=name,
                attempt=call.attempt,
                outcome=verdict["outcome"],
                seconds=round(time.monotonic() - call.started, 4),
                evidence=evidence,
            )
        )

    # -- the end -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Any:
        """The first Ctrl-C or SIGTERM stops the run cleanly; a second one is Python's again, and ends us at once."""
        loop = asyncio.get_running_loop()

        def stop(number: signal.Signals) -> None:
            self._facts.put_nowait(RunCancelled(reason=number.name))
            give_back()

        def give_back() -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.default_int_handler)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        try:
            yield
        finally:
            give_back()

    async def _close(self) -> None:
        for attempt in self._attempts.values():
            attempt.cancel()
        await asyncio.gather(*self._attempts.values(), return_exceptions=True)
        for call in self._calls.values():
            if call.slot:
                call.slot.hang_up()
        await self._pool.close()
        shutil.rmtree(self._plan.folder / "slots", ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Broken:
    error: BaseException


def _checked_verdict(header: dict[str, Any]) -> dict[str, Any]:
    if header["outcome"] not in get_args(Outcome):
        raise ValueError(header["outcome"])
    return header
