"""The loop: carries out what the scheduler wishes, and brings it back what happened. The only clock of a run.

    facts ─► SchedulerState.handle ─► commands ─► slots ─► frames ─► facts …

Nothing here has opinions about order or resources; nothing polls. A frame of an attempt, the end of one, a signal: each
is a fact in one queue, handled one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, get_args

from executor.allocator import GpuAllocator
from executor.cache import Hit
from executor.data.results import Claim
from executor.data.store import Given, Store, Value, ValueRef, ValueRefused
from executor.errors import MachineError, RunLocalError
from executor.events import (
    AttemptDeferred,
    AttemptEnded,
    AttemptStarted,
    CallCancelled,
    CallEnded,
    CallSubmitted,
    CallWaiting,
    CancelAttempt,
    CodeReached,
    Command,
    DevicesSeen,
    EndCall,
    Fact,
    InputsCommitted,
    LogWritten,
    MemoryMeasured,
    Outcome,
    ReportWritten,
    RetryDue,
    RetryLater,
    RunCancelled,
    RunEnded,
    StartAttempt,
    Status,
    TellWaiting,
)
from executor.gpus import Gpu
from executor.keys import CallKey
from executor.manifest import Shape, TaskEntry, Terms
from executor.plan import Plan
from executor.runtimes import Runtime
from executor.runtimes.pool import SlotPool
from executor.runtimes.slot import Slot
from executor.scheduling.state import SchedulerFact, SchedulerState
from executor.secrets import Secrets
from executor.stories import Story, error_story, outcome_story, read_story, warnings
from executor.worker import folders, kernel
from executor.worker.protocol import Frame, ProtocolError, close_all

Listener = Callable[[Fact], None]
T = TypeVar("T")

_STORED_AT_ONCE = 4
_AGENT_LATE_S = 5.0  # an agent that has not stopped its attempt so long after it should have will never do it
_LAST_LINES = 10
_LAST_BYTES = 2000
_LONGEST_TAB = 60
_MOST_WAITING = 64  # values, to be stored
_CLAIMED_S = 0.2  # until it is looked whether another run has computed what is wanted, which no event tells

#: A slot whose memory is in use beyond this, when nothing runs in it, is not used again: the next attempt would be short
#: of it. What is in use is values that others still read.
_MOST_MEMORY_HELD = 0.25


@dataclass(slots=True)
class _Call:
    task: TaskEntry
    terms: Terms
    parent: str | None
    number: int  # the caller's own number for it
    made_in: int  # the attempt of the caller that made it, and that alone gets the answer
    inputs: Value
    arguments: Mapping[str, Any] | None  # what a person sees of the inputs
    shape: Shape  # of the attempt
    gpus: tuple[Gpu, ...] = ()  # that it has
    key: CallKey | None = None  # once its inputs are stored
    keyed: asyncio.Future[None] | None = None  # that it has one
    claim: Claim | None = None  # the right to compute what others want, too
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    taking: asyncio.Future[Slot] | None = None  # the slot of the attempt that begins
    slot: Slot | None = None
    attempt: int = 0
    started: float = 0.0
    made: dict[int, str] = field(default_factory=dict)  # the calls of this attempt, by its own numbers for them
    children: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    given: Given = field(default_factory=dict)
    value: Value | None = None
    preview: Mapping[str, Any] | None = None
    error: Story | None = None
    raised: tuple[Any, bytes] | None = None  # the exception itself, as a place on the wire and a frame's body
    final: bool = False  # another attempt would be of no use, it says
    said: bytes = b""  # the last of what it printed
    fault: str = ""  # why the agent could not go on, or what it said that no agent says

    def begin(self, command: StartAttempt) -> None:
        """Forget what an earlier attempt came to."""
        self.attempt, self.shape = command.attempt, command.shape
        self.started, self.error, self.raised, self.final = time.monotonic(), None, None, False
        self.said, self.fault = b"", ""
        self.made.clear()
        self.given.clear()


class Engine:
    """Runs one plan. `listen` hears every fact, in order, on the loop's thread."""

    def __init__(self, plan: Plan, runtime: Runtime, store: Store, listen: Listener) -> None:
        self._plan, self._store, self._listen = plan, store, listen
        self._state = SchedulerState(plan.machine)
        self._calls: dict[str, _Call] = {}
        self._facts: asyncio.Queue[SchedulerFact | _Done | _Broken] = asyncio.Queue()
        self._storing: set[asyncio.Task[None]] = set()
        self._looking: set[asyncio.Task[None]] = set()
        self._computing: dict[str, tuple[str, asyncio.Event]] = {}  # key → the call that is made for it, and its end
        self._attempts: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(_STORED_AT_ONCE, thread_name_prefix="store")
        self._runtime = runtime
        self._pool = SlotPool(runtime, plan.launch)
        self._gpus = GpuAllocator(plan.run, self._pool.own)
        self._first_look: asyncio.Task[None] | None = None  # at the devices
        self._watching: asyncio.Task[None] | None = None  # for those that others have
        self._ended: dict[str, CallEnded] = {}
        self._told_code: set[str] = set()
        self._references = plan.manifest.referred()

    async def run(self) -> CallEnded:
        """Run the root call to its end; answers with how it ended. Every slot is gone afterwards."""
        began = time.monotonic()
        kernel.allow_many_files()
        status: Status = "failed"
        try:
            with self._signals():
                terms = self._plan.terms or self._plan.manifest.terms(self._plan.task)
                told = self._plan.arguments
                self._submit("1", _Call(self._plan.task, terms, None, 0, 0, self._plan.inputs, told, terms.shape))
                await self._loop()
            status = self._ended["1"].status
            status = "succeeded" if status == "cached" else status
            return self._ended["1"]
        except (asyncio.CancelledError, KeyboardInterrupt):
            status = "cancelled"
            raise
        finally:
            try:
                await self._close()
            finally:  # also when somebody is in too much of a hurry for a clean end
                self._listen(RunEnded(status=status, seconds=round(time.monotonic() - began, 3)))

    def cancel(self, reason: str) -> None:
        """Stop the run cleanly; on the loop's thread."""
        self._facts.put_nowait(RunCancelled(reason=reason))

    async def _loop(self) -> None:
        while "1" not in self._ended or not self._state.is_idle or self._storing or self._looking:
            fact = await self._facts.get()
            if isinstance(fact, _Broken):
                raise fact.error
            if isinstance(fact, _Done):
                continue
            if isinstance(fact, (AttemptEnded, CallCancelled, RunCancelled)):
                self._listen(fact)
            for command in self._state.handle(fact):
                self._obey(command)
            if isinstance(fact, (CallCancelled, RunCancelled)):
                self._stop_looking(fact)
            if self._watching is None and self._state.wants_devices:
                self._watching = asyncio.ensure_future(self._watch_devices())

    def _obey(self, command: Command) -> None:
        match command:
            case StartAttempt():
                attempt = asyncio.ensure_future(self._attempt(command))
                self._attempts.add(attempt)
                attempt.add_done_callback(self._surface)
            case RetryLater():
                due = RetryDue(call=command.call)
                asyncio.get_running_loop().call_later(command.after_s, self._facts.put_nowait, due)
            case TellWaiting():
                self._listen(CallWaiting(call=command.call, reason=command.reason))
            case CancelAttempt():
                self._cancel(self._calls[command.call])
            case EndCall():
                self._end(command)

    def _surface(self, attempt: asyncio.Task[None]) -> None:
        """An attempt that broke in our own hands ends the run, loudly."""
        self._attempts.discard(attempt)
        if not attempt.cancelled() and (error := attempt.exception()):
            self._facts.put_nowait(_Broken(error))

    # -- calls ---------------------------------------------------------------------------------------------------------

    def _submit(self, name: str, call: _Call) -> None:
        self._calls[name] = call
        submitted = CallSubmitted(
            call=name,
            parent=call.parent,
            task=call.task.name,
            environment=call.task.environment,
            shape=call.terms.shape,
            retries=call.terms.retries,
            backoff=call.terms.backoff,
            rank=self._plan.ranks.get(call.task.name, 1.0),
            arguments=call.arguments,
            env_vars=call.terms.env_vars,
            timeout_s=call.terms.timeout_s,
            cache=call.terms.cache.behavior,
        )
        call.keyed = self._beside(self._find_key(name, call), self._storing)
        if self._plan.cache.is_asked(call.terms) or call.terms.shape.gpus:
            self._beside(self._prepare(name, call, submitted), self._looking)
        else:
            self._facts.put_nowait(submitted)
        self._listen(submitted)

    async def _find_key(self, name: str, call: _Call) -> None:
        """Commit the inputs of a call, and make its key of them."""
        ref = await self._commit(call.inputs)
        call.key = await self._in_thread(self._plan.cache.key, call.task, call.terms, ref)
        if call.key.code_digest not in self._told_code:
            self._told_code.add(call.key.code_digest)
            self._listen(CodeReached(digest=call.key.code_digest, parts=call.key.code))
        parts = call.key.told()
        self._listen(InputsCommitted(call=name, inputs=ref.to_json(), key=call.key.digest, parts=parts))

    async def _prepare(self, name: str, call: _Call, submitted: CallSubmitted) -> None:
        """End a call whose value is there already; any other one goes to the scheduler, once that knows the devices."""
        if self._plan.cache.is_asked(call.terms) and await self._look_up(name, call):
            return
        if call.terms.shape.gpus:
            self._first_look = self._first_look or asyncio.ensure_future(self._see_devices())
            await asyncio.shield(self._first_look)
        self._facts.put_nowait(submitted)
        if call.cancelled.is_set():
            self._facts.put_nowait(CallCancelled(call=name))

    async def _look_up(self, name: str, call: _Call) -> bool:
        """Whether a call has ended, because its value is there already.

        What another call computes just now, in this run or in another one, is waited for.
        """
        assert call.keyed is not None
        await asyncio.shield(call.keyed)
        assert call.key is not None
        cache, key = self._plan.cache, call.key.digest
        while not call.cancelled.is_set():
            hit = await self._in_thread(cache.find, name, key, call.terms)
            if hit:
                self._take_over(name, call, hit)
                return True
            if not cache.is_shared(call.terms) or self._is_computed_above(call, key):
                break
            if key in self._computing:
                await _either(self._computing[key][1], call.cancelled)
                continue
            call.claim = cache.claim(key)
            if call.claim is None:
                with contextlib.suppress(asyncio.TimeoutError):  # another class before Python 3.11
                    await asyncio.wait_for(call.cancelled.wait(), _CLAIMED_S)
                continue
            self._computing[key] = (name, asyncio.Event())
            hit = await self._in_thread(cache.find, name, key, call.terms)  # whoever had the claim may have been done
            if hit:
                self._give_back_claim(call)
                self._take_over(name, call, hit)
                return True
            break
        return False

    def _is_computed_above(self, call: _Call, key: str) -> bool:
        """Whether a caller of this call computes the same: nobody would ever be done."""
        name, _ = self._computing.get(key, ("", None))
        above = call.parent
        while above and above != name:
            above = self._calls[above].parent if above in self._calls else None
        return bool(above)

    def _take_over(self, name: str, call: _Call, hit: Hit) -> None:
        """End a call with a value that was computed before."""
        del self._calls[name]
        call.value = hit.value
        self._answer_caller(call, None)
        origin = {"run": hit.run, "call": hit.call}
        value = hit.ref.to_json()
        self._record_end(CallEnded(call=name, status="cached", value=value, preview=hit.preview, origin=origin))

    def _stop_looking(self, fact: CallCancelled | RunCancelled) -> None:
        """Let calls that were cancelled before the scheduler knew of them wait for nothing more."""
        for name in list(self._calls) if isinstance(fact, RunCancelled) else [fact.call]:
            if name in self._calls and not self._state.is_live(name):
                self._calls[name].cancelled.set()

    def _give_back_claim(self, call: _Call) -> None:
        if call.claim and call.key:
            call.claim.give_back()
            call.claim = None
            self._computing.pop(call.key.digest)[1].set()

    def _end(self, command: EndCall) -> None:
        """Answer the caller of a call that ended, if that still runs, and record how it ended."""
        call = self._calls.pop(command.call)
        status: Status = "failed"
        if command.outcome == "ok":
            status = "succeeded"
        elif command.outcome == "cancelled":
            status = "cancelled"
        error = None
        if status != "succeeded":
            error = call.error or self._outcome_story(command.call, call.task, command.outcome, reason=command.reason)
        self._answer_caller(call, error)
        raised = self._store_raised(*call.raised) if error and call.raised else None
        ended = CallEnded(call=command.call, status=status, preview=call.preview, error=error, raised=raised)
        if error or call.value is None:
            self._give_back_claim(call)
            self._record_end(ended)
        else:
            self._beside(self._finish(call, call.value, ended), self._storing)

    async def _finish(self, call: _Call, value: Value, ended: CallEnded) -> None:
        """Commit the value of a call that succeeded; it is done when that is, and its key is known."""
        ref = await self._commit(value)
        assert call.keyed is not None
        await asyncio.shield(call.keyed)
        if call.key and self._plan.cache.is_kept(call.terms):
            entry = {"value": ref.to_json(), "preview": ended.preview, "run": self._plan.run, "call": ended.call}
            await self._in_thread(self._plan.cache.keep, call.key, entry)
        self._give_back_claim(call)
        self._record_end(replace(ended, value=ref.to_json()))

    def _answer_caller(self, call: _Call, error: Story | None) -> None:
        """Answer the caller of a call, if that still waits for it."""
        caller = self._calls.get(call.parent or "")
        if caller and caller.slot and caller.attempt == call.made_in:
            self._answer(caller, caller.slot, call, error)

    def _store_raised(self, place: Mapping[str, Any], body: bytes) -> dict[str, Any] | None:
        """Commit the exception of a failed call, where it is a value."""
        try:
            return self._store.receive(place, body, [], self._plan.folder, {}).commit(self._store).to_json()
        except ValueRefused:
            return None

    def _record_end(self, ended: CallEnded) -> None:
        self._ended[ended.call] = ended
        self._listen(ended)

    async def _commit(self, value: Value) -> ValueRef:
        """Commit a value while the run goes on; a small one at once."""
        return value.commit(self._store) if value.is_small else await self._in_thread(value.commit, self._store)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    def _beside(self, work: Coroutine[Any, Any, None], kind: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        """Do something while the run goes on; the run ends when it is done, and at once where it fails."""
        doing = asyncio.ensure_future(work)
        kind.add(doing)
        doing.add_done_callback(lambda done: self._done(done, kind))
        return doing

    async def _room_to_store(self) -> None:
        """Let who makes values faster than they are stored wait: each holds an open file, and memory."""
        while len(self._storing) > _MOST_WAITING:
            await asyncio.wait(self._storing, return_when=asyncio.FIRST_COMPLETED)

    def _done(self, doing: asyncio.Task[None], kind: set[asyncio.Task[None]]) -> None:
        """A value that cannot be stored ends the run: what was made of it could not be trusted to be there."""
        kind.discard(doing)
        error = None if doing.cancelled() else doing.exception()
        self._facts.put_nowait(_Broken(error) if error else _Done())

    def _answer(self, caller: _Call, slot: Slot, call: _Call, error: Story | None) -> None:
        """Tell the caller's attempt what became of its call; a value that cannot be given is a failure, too."""
        header = {"kind": "ANSWER", "id": call.number}
        if error is None and call.value:
            try:
                place, body, fds = self._place(caller, call.value)
                slot.send({**header, "value": place}, body, fds)
                return
            except (MachineError, ProtocolError) as exc:
                error = _story_of(exc, task=call.task.name, environment=call.task.environment)
        raised, text = call.raised or (None, b"")
        told = {"error": error} if raised is None else {"error": error, "value": raised}
        try:
            slot.send({**header, **told}, text)
        except ProtocolError as exc:
            slot.send({**header, "error": _story_of(exc, task=call.task.name, environment=call.task.environment)})

    def _cancel(self, call: _Call) -> None:
        """Stop the attempt of a call, however far it is; that ends in an `AttemptEnded` like every other."""
        call.cancelled.set()
        if call.taking:
            call.taking.cancel()
        elif call.slot:
            call.slot.send({"kind": "CANCEL"})
            asyncio.get_running_loop().call_later(_AGENT_LATE_S, self._insist, call, call.slot)

    @staticmethod
    def _insist(call: _Call, slot: Slot) -> None:
        """Give up an agent that does not do what it was told, because somebody stopped it from outside."""
        if call.slot is slot:
            slot.hang_up()

    def _place(self, call: _Call, value: Value) -> tuple[dict[str, Any], bytes, list[int]]:
        assert call.slot is not None
        share = not call.slot.hello.get("inputs_writable")
        return self._store.place(value, call.slot.inputs, call.given, share=share)

    # -- attempts ------------------------------------------------------------------------------------------------------

    async def _attempt(self, command: StartAttempt) -> None:
        """One attempt, from a slot to its end; whatever happens becomes one `AttemptEnded`."""
        name, call = command.call, self._calls[command.call]
        call.begin(command)
        if command.gpus and not await self._lease(name, call, command):
            return
        slot = await self._take_slot(name, call)
        if slot is None:
            await self._give_back_devices(name, call)
            self._attempt_ended(name, {"outcome": call.error["code"] if call.error else "cancelled"})
            return
        call.slot = slot
        self._listen(
            AttemptStarted(
                call=name,
                attempt=call.attempt,
                container=slot.container,
                slot=slot.number,
                gpus=command.gpus,
                memory_bytes=call.shape.memory_limit_bytes,
            )
        )
        self._gpus.watch(name)
        usable, verdict = await self._use(name, call, slot)
        verdict.update(self._gpus.watched(name))
        call.slot = None
        if usable:
            self._pool.give_back(call.task.environment, call.shape, slot, call.gpus)
        else:
            await self._pool.stop(slot)
        await self._give_back_devices(name, call)
        self._attempt_ended(name, verdict)

    async def _lease(self, name: str, call: _Call, command: StartAttempt) -> bool:
        """Lease the devices of an attempt; where others were faster, it is put off, and False."""
        shape = call.shape
        try:
            taken = await self._in_thread(
                partial(self._gpus.take, shared=shape.gpu_shared, memory_bytes=shape.gpu_memory_bytes or 0),
                name,
                command.gpus,
            )
        except MachineError as exc:
            call.error = self._error_story(name, exc)
            self._attempt_ended(name, {"outcome": "rejected"})
            return False
        if taken is None:
            self._facts.put_nowait(DevicesSeen(devices=self._gpus.devices))
            self._facts.put_nowait(AttemptDeferred(call=name, attempt=command.attempt))
            return False
        call.gpus = taken
        return True

    async def _give_back_devices(self, name: str, call: _Call) -> None:
        if call.gpus:
            call.gpus = ()
            self._gpus.give_back(name)
            await self._see_devices()

    async def _see_devices(self) -> None:
        """Tell the scheduler of all GPUs, as they are now."""
        self._facts.put_nowait(DevicesSeen(devices=await self._in_thread(self._gpus.see)))

    async def _watch_devices(self) -> None:
        """Look again when devices that others have may be free, as long as a call waits for one."""
        try:
            while self._state.wants_devices and await self._gpus.changed():
                await self._see_devices()
        finally:
            self._watching = None

    async def _take_slot(self, name: str, call: _Call) -> Slot | None:
        """A slot for an attempt; None when it was cancelled before it had one, or there is none (`call.error`)."""
        if call.cancelled.is_set():
            return None
        environment = call.task.environment
        call.taking = asyncio.ensure_future(self._pool.take(environment, call.shape, call.gpus))
        try:
            slot = await call.taking
        except asyncio.CancelledError:
            return None
        except MachineError as exc:
            outcome = str(exc.facts.get("outcome", "rejected"))
            call.error = error_story(exc, task=call.task.name, environment=environment, call=name, code=outcome)
            return None
        finally:
            call.taking = None
        if call.cancelled.is_set():
            self._pool.give_back(environment, call.shape, slot, call.gpus)
            return None
        return slot

    async def _use(self, name: str, call: _Call, slot: Slot) -> tuple[bool, dict[str, Any]]:
        """Run an attempt in its slot: whether the slot can be used again, and the verdict."""
        verdict = None
        patience = None if call.terms.timeout_s is None else call.terms.timeout_s + _AGENT_LATE_S
        try:
            self._hand_over(name, call, slot)
            verdict = await asyncio.wait_for(self._serve(name, call, slot), patience)
        except asyncio.TimeoutError:  # another class before Python 3.11
            return False, {"outcome": "timeout", "by": "host"}
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as exc:
            call.fault = f"its agent said what no agent says: {exc!r}"
        except ValueRefused as exc:
            call.error = self._error_story(name, exc)
            return False, {"outcome": "raised"}
        except ProtocolError as exc:
            call.error = self._error_story(name, exc)
            return False, {"outcome": "rejected"}
        if verdict is None:
            return False, await self._loss(call, slot)
        return verdict.get("memory_share", 0) <= _MOST_MEMORY_HELD, verdict

    async def _loss(self, call: _Call, slot: Slot) -> dict[str, Any]:
        """The verdict over an attempt whose agent has none."""
        if call.cancelled.is_set():
            return {"outcome": "cancelled"}
        call.fault = call.fault or slot.nonsense
        if call.fault:
            return {"outcome": "lost_agent", "why": call.fault}
        loss = await self._runtime.explain_loss(slot)
        return {"outcome": loss.outcome, "why": loss.why, **loss.evidence}

    def _hand_over(self, name: str, call: _Call, slot: Slot) -> None:
        place, body, fds = self._place(call, call.inputs)
        interaction = {}
        if self._plan.interaction and call.parent is None:
            interaction = {"interaction": self._plan.interaction.told()}
            fds += self._plan.interaction.copies()
        slot.send(
            {
                **interaction,
                "kind": "TASK",
                "call": name,
                "task": call.task.name,
                "module": call.task.module,
                "qualname": call.task.qualname,
                "env_vars": dict(call.terms.env_vars),
                "timeout_s": call.terms.timeout_s,
                "references": self._references,
                "value": place,
                "secrets": self._plan.secrets.get(call.task.environment, Secrets()).reveal(),
            },
            body,
            fds,
        )

    async def _serve(self, name: str, call: _Call, slot: Slot) -> dict[str, Any] | None:
        """Take the attempt's frames until it is over; answers with the agent's verdict, or None if it is lost."""
        results: list[Frame] = []  # the last of them counts
        try:
            while frame := await slot.receive():
                kind = frame.header["kind"]
                if kind == "CALL":
                    await self._room_to_store()
                    self._nested(name, call, slot, frame)
                elif kind == "RESULT":
                    _drop(results)
                    results.append(frame)
                elif kind == "ENDED":
                    close_all(frame.fds)
                    verdict = _checked_verdict(frame.header)
                    if results and verdict["outcome"] == "ok":
                        call.preview = _checked_preview(results[0].header["preview"])
                        call.value = self._receive(call, slot, results.pop())
                    return verdict
                else:
                    close_all(frame.fds)
                    self._hear(name, call, frame)
            return None
        finally:
            _drop(results)

    def _hear(self, name: str, call: _Call, frame: Frame) -> None:
        """Take a frame that needs no answer."""
        header, body, _ = frame
        kind = header["kind"]
        if kind == "LOG":
            call.said = _last_of(call.said + body)
            self._listen(LogWritten(call=name, stream=header["stream"], data=body))
        elif kind == "REPORT":
            text, replaces = body.decode(errors="replace"), bool(header["replace"])
            self._listen(ReportWritten(call=name, tab=str(header["tab"])[:_LONGEST_TAB], html=text, replace=replaces))
        elif kind == "MEMORY":
            self._listen(MemoryMeasured(call=name, used_bytes=_checked_bytes(header["used_bytes"])))
        elif kind == "CANCEL":
            self._abandon(call, header["id"])
        elif kind == "ERROR":
            call.error = read_story(header["error"])
            call.raised = (header["value"], body) if "value" in header else None
            call.final = bool(header.get("final"))
        elif kind == "FAULT":
            call.fault = f"its agent could not go on: {header['reason']}"
        else:
            raise ProtocolError(f"an agent sent {kind[:80]!r}")

    def _receive(self, call: _Call, slot: Slot, frame: Frame) -> Value:
        header, body, fds = frame
        running = header["kind"] == "CALL"
        value = self._store.receive(header.get("value", {}), body, fds, slot.outputs, call.given, copy=running)
        value.environment = value.environment or call.task.environment
        return value

    def _nested(self, name: str, call: _Call, slot: Slot, frame: Frame) -> None:
        """A task called another one: make a call of it, or refuse it at once."""
        header = frame.header
        try:
            number, asked = int(header["id"]), str(header["task"])
        except BaseException:
            close_all(frame.fds)
            raise
        try:
            inputs = self._receive(call, slot, frame)
            task = self._callable(call.task, asked)
            terms = self._plan.manifest.terms(task).override(header.get("override", {}))
        except RunLocalError as exc:
            story = error_story(exc, task=asked, code="refused")
            slot.send({"kind": "ANSWER", "id": number, "error": story})
            return
        call.made[number] = f"{name}.{next(call.children)}"
        told = _checked_arguments(header.get("arguments"))
        self._submit(call.made[number], _Call(task, terms, name, number, call.attempt, inputs, told, terms.shape))

    def _abandon(self, call: _Call, number: int) -> None:
        """A task does not wait for one of its calls any more."""
        made = call.made.get(number, "")
        if made in self._calls:
            self._facts.put_nowait(CallCancelled(call=made))

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

    def _error_story(self, name: str, exc: Exception) -> Story:
        task = self._calls[name].task
        return _story_of(exc, task=task.name, environment=task.environment, call=name)

    @staticmethod
    def _outcome_story(name: str, task: TaskEntry, outcome: str, **more: Any) -> Story:
        return outcome_story(outcome, task=task.name, environment=task.environment, call=name, **more)

    def _attempt_ended(self, name: str, verdict: dict[str, Any]) -> None:
        call = self._calls[name]
        outcome = verdict["outcome"]
        evidence = {key: value for key, value in verdict.items() if key not in ("kind", "outcome")}
        if outcome == "timeout":
            evidence["timeout_s"] = call.terms.timeout_s
        if outcome != "ok":
            evidence["log"] = call.said.decode(errors="replace")
        if outcome == "oom" and call.error:  # it met that, and then raised something
            evidence["then"] = call.error["code"]
            cause = self._outcome_story(name, call.task, outcome, evidence=evidence)
            call.error = {**cause, "traceback": call.error["traceback"], "cause": call.error["cause"]}
        elif outcome not in ("ok", "raised") and call.error is None:
            call.error = self._outcome_story(name, call.task, outcome, evidence=evidence)
        elif outcome == "raised" and call.error:
            call.error["why"] = "\n".join(filter(None, [call.error["why"], *warnings(evidence)]))
        self._facts.put_nowait(
            AttemptEnded(
                call=name,
                attempt=call.attempt,
                outcome=outcome,
                seconds=round(time.monotonic() - call.started, 4),
                evidence=evidence,
                final=call.final,
            )
        )

    # -- the end -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Any:
        """The first Ctrl-C or SIGTERM stops the run cleanly; a second one is our caller's again, and ends us at once.

        Python takes signals in its main thread only; what runs us in another one has `cancel`.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before[signal.SIGINT] = signal.default_int_handler  # asyncio's own cancels, which is what we do already

        def stop(number: signal.Signals) -> None:
            self.cancel(number.name)
            give_back()

        def give_back() -> None:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        try:
            yield
        finally:
            give_back()

    async def _close(self) -> None:
        attempts = list(self._attempts)
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
        for call in self._calls.values():
            self._give_back_claim(call)
            if call.slot:
                call.slot.hang_up()
        await self._pool.close()
        for doing in (*self._storing, *self._looking, self._watching, self._first_look):
            if doing:
                doing.cancel()
        self._gpus.close()
        self._threads.shutdown()
        folders.remove_tree(str(self._plan.folder / "slots"))


class _Done:
    """Something that was done beside the run is done."""


async def _either(*events: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()


@dataclass(frozen=True, slots=True)
class _Broken:
    error: BaseException


def _story_of(exc: Exception, *, task: str, environment: str, call: str = "") -> Story:
    """The story of what went wrong between us and a slot."""
    error = exc if isinstance(exc, RunLocalError) else RunLocalError(str(exc))
    return error_story(error, task=task, environment=environment, call=call)


def _drop(frames: list[Frame]) -> None:
    while frames:
        close_all(frames.pop().fds)


def _last_of(said: bytes) -> bytes:
    """The last lines of what was printed, and of those no more than can be shown."""
    lines = said[-_LAST_BYTES:].split(b"\n")
    return b"\n".join(lines[-_LAST_LINES - 1 :])


def _checked_arguments(told: Any) -> dict[str, Any] | None:
    """The previews of a call's arguments as its caller told them; they are for people, and decide nothing."""
    if not isinstance(told, dict):
        return None
    return {str(name): _checked_preview(each) for name, each in told.items()}


def _checked_preview(told: dict[str, Any]) -> dict[str, Any]:
    return {"json": told["json"]} if "json" in told else {"text": str(told["text"])}


def _checked_bytes(size: Any) -> int:
    if not 0 <= int(size) < 2**60:
        raise ValueError(size)
    return int(size)


def _checked_verdict(header: dict[str, Any]) -> dict[str, Any]:
    if header["outcome"] not in get_args(Outcome):
        raise ValueError(header["outcome"])
    return {**header, "memory_share": float(header.get("memory_share", 0))}
