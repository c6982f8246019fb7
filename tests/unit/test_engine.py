"""The real engine and store, and slots that say what a test tells them to: every attempt ends, whatever happens when."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from executor import engine
from executor.cache import Cache
from executor.data.results import Results
from executor.data.store import Blob, Store, Value
from executor.engine import Engine
from executor.errors import MachineError
from executor.events import AttemptEnded, CallCancelled, CallEnded, CallSubmitted, Fact, RunCancelled, RunEnded
from executor.manifest import EnvironmentEntry, Manifest, Shape, TaskEntry
from executor.plan import Plan
from executor.reach import Reach
from executor.runtimes import Launch, Loss
from executor.scheduling.state import Machine
from executor.worker import memory, payload
from executor.worker.protocol import INLINE_BYTES, MAX_HEADER_BYTES, Frame, ProtocolError, close_all, encode

PATIENCE_S = 5
SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=None, gpus=0, gpu_model="", shm_bytes=None)


class FakeSlot:
    """A slot whose agent is the test."""

    container = None
    nonsense = ""

    def __init__(self, folder: Path) -> None:
        self.number = int(folder.name)
        self.inputs, self.outputs = folder / "inputs", folder / "task" / "outputs"
        for made in (self.inputs, self.outputs):
            made.mkdir(parents=True)
        self.folders = payload.Folders(str(self.inputs), str(self.outputs), [])
        self.hello: dict[str, Any] = {}
        self.alive = True
        self._frames: asyncio.Queue[Frame | None] = asyncio.Queue()
        self._heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def send(self, header: dict[str, Any], body: bytes = b"", fds: Sequence[int] = ()) -> None:
        close_all(fds)
        encode(header, body)
        self._heard.put_nowait(header)

    async def receive(self) -> Frame | None:
        return await self._frames.get()

    def is_alive(self) -> bool:
        return self.alive

    def hang_up(self) -> None:
        self._frames.put_nowait(None)

    def say(self, kind: str, body: bytes = b"", fds: Sequence[int] = (), **header: Any) -> None:
        """What the agent says next."""
        self._frames.put_nowait(Frame({"kind": kind, **header}, body, list(fds)))

    def call(self, number: int, *args: Any) -> None:
        """The task calls `leaf.work`."""
        place, body, fds, _ = payload.dump((args, {}), self.folders, keep=True)
        self.say("CALL", body, fds, id=number, task="leaf.work", value=place)

    def end(self, value: Any = 1, outcome: str = "ok") -> None:
        """The task returns a value, and its attempt is over."""
        place, body, fds, _ = payload.dump(value, self.folders, keep=False)
        self.say("RESULT", body, fds, value=place, preview={"json": 1})
        self.say("ENDED", outcome=outcome)

    async def hear(self, kind: str) -> dict[str, Any]:
        """The next frame of the engine, which is of this kind."""
        header = await asyncio.wait_for(self._heard.get(), PATIENCE_S)
        assert header["kind"] == kind
        return header


class FakeRuntime:
    """Starts such slots, and remembers which it stopped."""

    name = "fake"

    def __init__(self) -> None:
        self.started: list[FakeSlot] = []
        self.stopped: list[FakeSlot] = []
        self.stopping = asyncio.Event()
        self.may_stop = asyncio.Event()
        self.may_stop.set()

    async def start(self, launch: Launch) -> Any:
        self.started.append(FakeSlot(launch.folder))
        return self.started[-1]

    async def explain_loss(self, slot: Any) -> Loss:
        return Loss(outcome="lost_agent", why="it was lost")

    async def stop(self, slot: Any) -> None:
        self.stopping.set()
        await self.may_stop.wait()
        self.stopped.append(slot)

    async def close(self) -> None:
        pass

    async def slot(self, number: int) -> FakeSlot:
        """The n-th slot, once it has its task."""
        for _ in range(PATIENCE_S * 1000):
            if len(self.started) < number:
                await asyncio.sleep(0.001)
        await self.started[number - 1].hear("TASK")
        return self.started[number - 1]


class Running:
    """A run whose root call is being made."""

    def __init__(self, folder: Path, retries: int = 0) -> None:
        self.facts: list[Fact] = []
        self.react: Callable[[Fact], None] = lambda _: None
        self.runtime = FakeRuntime()
        self.engine = Engine(_plan(folder, retries), self.runtime, Store(folder, folder / "incoming"), self._listen)
        self.ended = asyncio.ensure_future(self.engine.run())

    def _listen(self, fact: Fact) -> None:
        self.facts.append(fact)
        self.react(fact)

    def cancel(self) -> None:
        """Ctrl-C."""
        self.engine._facts.put_nowait(RunCancelled(reason="SIGINT"))

    async def end(self) -> CallEnded:
        """How the root call ended."""
        return await asyncio.wait_for(self.ended, PATIENCE_S)

    def outcomes(self) -> dict[str, str]:
        """Call → the outcome of its last attempt."""
        return {fact.call: fact.outcome for fact in self.facts if isinstance(fact, AttemptEnded)}


def _plan(folder: Path, retries: int) -> Plan:
    environments = {
        name: EnvironmentEntry(
            name=name, image=None, depends_on=others, extends=(), shape=SHAPE, env_vars={}, file="", line=1
        )
        for name, others in {"leaf": (), "root": ("leaf",)}.items()
    }
    tasks = {
        name: TaskEntry(
            name=name,
            environment=name.partition(".")[0],
            module="flow",
            qualname=name.partition(".")[2],
            file="",
            line=1,
            doc="",
            parameters=(),
            retries=retries,
            timeout_s=None,
        )
        for name in ("root.main", "leaf.work")
    }
    made: Any = SimpleNamespace(key="k", image=None, prefix=None, variables={})
    manifest = Manifest(root=str(folder), import_roots=(".",), environments=environments, tasks=tasks)
    return Plan(
        run="r",
        manifest=manifest,
        task=tasks["root.main"],
        inputs=Value(Blob(data=payload.dump_json({})), []),
        built=dict.fromkeys(environments, made),
        project=folder,
        library=folder,
        folder=folder,
        lease=folder / "lease",
        machine=Machine(cpus=4, memory_bytes=100),
        cache=_cache(folder, manifest),
    )


def _cache(folder: Path, manifest: Manifest) -> Cache:
    store = Store(folder, folder / "incoming")
    reach = Reach({}, "")
    return Cache(store, Results(folder, store), manifest=manifest, keys={}, reach=lambda *_: reach)


@asynccontextmanager
async def running(folder: Path, retries: int = 0) -> AsyncIterator[Running]:
    run = Running(folder, retries)
    try:
        yield run
    finally:
        run.runtime.may_stop.set()
        run.ended.cancel()
        await asyncio.gather(run.ended, return_exceptions=True)


_PATIENCE_S = 20  # an engine that broke would be waited for without end


def script(story: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """A test that is a coroutine."""

    def test(tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(story(tmp_path), _PATIENCE_S))

    test.__name__, test.__doc__ = story.__name__, story.__doc__
    return test


@script
async def test_a_cancel_in_the_turn_of_the_start(tmp_path: Path) -> None:
    """An attempt that is stopped before it took its first step ends like every other."""
    async with running(tmp_path) as run:
        run.react = lambda fact: run.cancel() if isinstance(fact, CallSubmitted) else None
        assert (await run.end()).status == "cancelled"
        assert run.outcomes() == {"1": "cancelled"}
        assert run.runtime.started == []


@script
async def test_a_task_that_forgets_its_call(tmp_path: Path) -> None:
    """A call, the value and the end of its caller, all in what one read of the socket holds."""
    async with running(tmp_path) as run:
        slot = await run.runtime.slot(1)
        slot.call(1)
        slot.end()
        assert (await run.end()).status == "succeeded"
        assert run.outcomes() == {"1": "ok", "1.1": "cancelled"}


@script
async def test_a_cancel_while_a_lost_slot_is_being_removed(tmp_path: Path) -> None:
    """The attempt is told as lost; nobody waits for a second word about it."""
    async with running(tmp_path) as run:
        slot = await run.runtime.slot(1)
        run.runtime.may_stop.clear()
        slot.hang_up()
        await asyncio.wait_for(run.runtime.stopping.wait(), PATIENCE_S)
        run.cancel()
        await asyncio.sleep(0.01)
        run.runtime.may_stop.set()
        await run.end()
        assert run.outcomes() == {"1": "lost_agent"}


@script
async def test_a_call_that_its_caller_gave_up(tmp_path: Path) -> None:
    """A CANCEL of the caller stops the attempt of that call and of no other; the caller goes on."""
    async with running(tmp_path) as run:
        root = await run.runtime.slot(1)
        root.call(1)
        root.call(2)
        given_up, other = await run.runtime.slot(2), await run.runtime.slot(3)
        root.say("CANCEL", id=1)
        root.say("CANCEL", id=77)
        await given_up.hear("CANCEL")
        given_up.say("ENDED", outcome="cancelled")
        assert (await root.hear("ANSWER"))["id"] == 1
        other.end()
        assert "value" in await root.hear("ANSWER")
        root.say("CANCEL", id=2)
        root.end()
        assert (await run.end()).status == "succeeded"
        assert run.outcomes() == {"1": "ok", "1.1": "cancelled", "1.2": "ok"}
        assert [fact for fact in run.facts if isinstance(fact, CallCancelled)] == [CallCancelled(call="1.1")]


@script
async def test_a_value_whose_file_is_gone(tmp_path: Path) -> None:
    """It is that task's failure, and its slot is not used again."""
    async with running(tmp_path) as run:
        slot = await run.runtime.slot(1)
        slot.say("RESULT", value={"size": 1, "at": "v1", "files": []}, preview={"json": 1})
        slot.say("ENDED", outcome="ok")
        ended = await run.end()
        assert (ended.status, (ended.error or {})["code"]) == ("failed", "ValueRefused")
        assert run.runtime.stopped == [slot]


@pytest.mark.parametrize("left", ["nothing", "a link", "a file"])
def test_a_task_that_spoils_its_outputs(tmp_path: Path, left: str) -> None:
    """What it returned counts; its slot is ended, and nothing is touched that it put in the folder's place."""
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "v7").touch()

    async def story() -> None:
        async with running(tmp_path / "home") as run:
            slot = await run.runtime.slot(1)
            slot.outputs.rmdir()
            if left == "a link":
                slot.outputs.symlink_to(treasure)
                slot.say("CALL", id=1, task="leaf.work", value={"size": 1, "at": "v7", "files": []})
                assert "is gone" in (await slot.hear("ANSWER"))["error"]["message"]
            elif left == "a file":
                slot.outputs.touch()
            slot.end()
            assert (await run.end()).status == "succeeded"
            assert run.runtime.stopped == [slot]

    asyncio.run(story())
    assert [path.name for path in treasure.iterdir()] == ["v7"]


@script
async def test_large_values_need_no_thread_of_anybody_else(tmp_path: Path) -> None:
    """A value is stored though every thread of the loop's own pool is taken."""
    over = threading.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    loop.run_in_executor(None, over.wait)
    try:
        async with running(tmp_path) as run:
            slot = await run.runtime.slot(1)
            slot.end(bytes(2 * INLINE_BYTES))
            assert (await run.end()).status == "succeeded"
    finally:
        over.set()


@script
async def test_values_are_stored_beside_the_calls(tmp_path: Path) -> None:
    """A large value is answered with before it is hashed, on another thread; the run ends when all are stored."""
    async with running(tmp_path) as run:
        may_store, stored = threading.Event(), []
        committing = Blob.commit

        def commit(self: Blob, store: Store) -> None:
            if self.data is None:
                may_store.wait(PATIENCE_S)
                stored.append(threading.current_thread().name.partition("_")[0])
            committing(self, store)

        with mock.patch.object(Blob, "commit", commit):
            slot = await run.runtime.slot(1)
            slot.call(1, bytes(2 * INLINE_BYTES))
            (await run.runtime.slot(2)).end(bytes(3 * INLINE_BYTES))
            assert "value" in await slot.hear("ANSWER")
            slot.end()
            await asyncio.sleep(0.05)
            assert (stored, [fact for fact in run.facts if isinstance(fact, RunEnded)]) == ([], [])
            may_store.set()
            await run.end()
        assert stored == ["store", "store"]
        ended = [fact for fact in run.facts if isinstance(fact, CallEnded)]
        assert all(fact.value and run.engine._store.path(fact.value["sha256"]).exists() for fact in ended)


@script
async def test_a_value_that_cannot_be_stored_ends_the_run(tmp_path: Path) -> None:
    """Nobody is told that all went well."""
    async with running(tmp_path) as run:
        slot = await run.runtime.slot(1)
        with mock.patch.object(Blob, "commit", side_effect=MachineError("a value cannot be stored", "no room")):
            slot.call(1, bytes(2 * INLINE_BYTES))
            with pytest.raises(MachineError, match="stored"):
                await run.end()


@script
async def test_an_idle_slot_that_died_is_not_handed_out(tmp_path: Path) -> None:
    """The next call of its environment gets a new one, at its first attempt."""
    async with running(tmp_path) as run:
        root = await run.runtime.slot(1)
        root.call(1)
        (await run.runtime.slot(2)).end()
        await root.hear("ANSWER")
        run.runtime.started[1].alive = False
        root.call(2)
        (await run.runtime.slot(3)).end()
        await root.hear("ANSWER")
        root.end()
        await run.end()
        assert run.outcomes() == {"1": "ok", "1.1": "ok", "1.2": "ok"}
        assert run.runtime.stopped == [run.runtime.started[1]]


@script
async def test_a_failure_too_long_to_be_passed_on(tmp_path: Path) -> None:
    """A task that says as much as a frame holds does not end the run; its caller gets a failure all the same."""
    async with running(tmp_path) as run:
        root = await run.runtime.slot(1)
        root.call(1)
        leaf = await run.runtime.slot(2)
        leaf.say(
            "ERROR",
            error=dict.fromkeys(("code", "message", "why", "hint", "task", "call"), "x" * (MAX_HEADER_BYTES // 6)),
        )
        leaf.say("ENDED", outcome="raised")
        assert "error" in await root.hear("ANSWER")
        root.end()
        assert (await run.end()).status == "succeeded"


@script
async def test_a_value_that_cannot_be_given(tmp_path: Path) -> None:
    """The caller is told why, and may go on."""
    async with running(tmp_path) as run:
        root = await run.runtime.slot(1)
        root.call(1)
        leaf = await run.runtime.slot(2)
        root.inputs.rmdir()
        with mock.patch.object(memory, "make_sealed", return_value=None):
            leaf.end(bytes(2 * INLINE_BYTES))
        assert "No such file" in (await root.hear("ANSWER"))["error"]["why"]
        root.end()
        assert (await run.end()).status == "succeeded"


@script
async def test_an_impatient_end_is_an_end(tmp_path: Path) -> None:
    """Whoever interrupts even the closing is told that the run has ended."""
    async with running(tmp_path) as run:
        await run.runtime.slot(1)
        run.runtime.may_stop.clear()

        async def broken() -> None:
            raise MachineError("the engine is gone")

        run.runtime.close = broken  # type: ignore[method-assign]
        run.cancel()
        run.runtime.started[0].hang_up()
        run.runtime.may_stop.set()
        with pytest.raises(MachineError):
            await run.end()
        assert isinstance(run.facts[-1], RunEnded)


@pytest.mark.parametrize(
    "frame",
    [
        {"kind": "CALL"},
        {"kind": "CALL", "id": "x", "task": "leaf.work"},
        {"kind": "CALL", "id": 1},
        {"kind": "CALL", "id": [], "task": "leaf.work", "value": {}},
        {"kind": "LOG"},
        {"kind": "RESULT"},
        {"kind": "ENDED"},
        {"kind": "ENDED", "outcome": "splendid"},
        {"kind": "FAULT"},
    ],
)
def test_frames_that_make_no_sense_keep_no_file_open(tmp_path: Path, frame: dict[str, Any]) -> None:
    """The attempt is lost, with what was wrong as the reason; what came with the frame is closed."""

    async def story() -> None:
        async with running(tmp_path) as run:
            open_before = 0
            for number in (1, 2):  # what was lost is replaced once
                slot = await run.runtime.slot(number)
                open_before = open_before or len(list(Path("/proc/self/fd").iterdir()))
                fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
                slot.say("RESULT", b"", fds[:1], value={}, preview={})
                slot.say(**frame, fds=fds[1:])
                slot.say("ENDED")
            ended = await run.end()
            error = ended.error or {}
            assert (error["code"], "what no agent says" in error["why"]) == ("lost_agent", True)
            assert len(list(Path("/proc/self/fd").iterdir())) <= open_before

    asyncio.run(asyncio.wait_for(story(), _PATIENCE_S))


@script
async def test_an_agent_that_cannot_go_on_says_why(tmp_path: Path) -> None:
    """Its own words are the reason, and the last lines of the task are kept."""
    async with running(tmp_path) as run:
        for number in (1, 2):  # what was lost is replaced once
            slot = await run.runtime.slot(number)
            slot.say("LOG", b"".join(b"%d\n" % number for number in range(30)), stream="stdout")
            slot.say("FAULT", reason="a task sent HELLO")
            slot.hang_up()
        error = (await run.end()).error or {}
        assert error["why"] == "its agent could not go on: a task sent HELLO"
        assert error["log"].split() == [str(number) for number in range(20, 30)]


@script
async def test_an_agent_that_stands_still_is_given_up(tmp_path: Path) -> None:
    """One that does not answer a CANCEL is hung up on, and the attempt counts as cancelled."""
    async with running(tmp_path) as run:
        await run.runtime.slot(1)
        with mock.patch.object(engine, "_AGENT_LATE_S", 0.05):
            run.cancel()
            assert (await run.end()).status == "cancelled"
        assert run.outcomes() == {"1": "cancelled"}


@script
async def test_no_memory_is_the_reason_of_what_came_of_it(tmp_path: Path) -> None:
    """A task that raises because the kernel has killed its child is told as out of memory, with its own traceback."""
    async with running(tmp_path) as run:
        slot = await run.runtime.slot(1)
        slot.say("ERROR", error={"code": "CalledProcessError", "message": "m", "traceback": "Traceback …"})
        slot.say("ENDED", outcome="oom", oom_kills=1, oom_task=False, memory_limit_bytes=2**30)
        error = (await run.end()).error or {}
        assert (error["code"], error["traceback"]) == ("oom", "Traceback …")
        assert "the task then ended with CalledProcessError" in error["why"]
        assert '`Resources(memory="2Gi")`' in error["hint"]


def test_the_largest_frame_is_what_it_says() -> None:
    """What the engine may not send raises, so that the fakes here refuse it as a real slot does."""
    with pytest.raises(ProtocolError):
        encode({"kind": "X", "text": "x" * MAX_HEADER_BYTES})
