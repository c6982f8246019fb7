"""Frames that make no sense, in every direction: whoever gets them lives on, closes what came with them, and goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from executor.data.records import Record, read_run
from executor.data.store import Store
from executor.engine import Engine
from executor.errors import MachineError
from executor.events import CallEnded
from executor.runtimes import Loss
from executor.runtimes import slot as slots
from executor.runtimes.library import worker_library
from executor.runtimes.slot import Door, Line, Slot
from executor.worker import payload
from executor.worker.protocol import (
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    VERSION,
    FrameReader,
    ProtocolError,
    close_all,
    encode,
)
from tests.faults.conftest import PYTHON
from tests.harness import MakeProject, RunLocal
from tests.unit.test_engine import _plan

BOUNDED = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PATIENCE_S = 20
RUN = "20000101-000000-0000"

KINDS = ["HELLO", "LOG", "CALL", "CANCEL", "RESULT", "ERROR", "ENDED", "MEMORY", "TASK", "ANSWER", "NONSENSE",
         ""]  # fmt: skip
NAMES = ["kind", "id", "task", "value", "preview", "error", "outcome", "stream", "override", "fds", "memory_share", "exit",
         "swept", "used_bytes", "version", "nonce", "call", "timeout_s", "module"]  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True)
    | st.text(max_size=20)
    | st.sampled_from(["ok", "raised", "v1", "../v1", "leaf.work", "stdout", "1", "\0", "\ud800", *KINDS])
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
)
PLACES = st.fixed_dictionaries(
    {},
    optional={
        "size": SCALARS,
        "at": SCALARS,
        "fd": st.integers(-3, 3) | SCALARS,
        "type": JSON,
        "environment": JSON,
        "texts": JSON,
        "files": JSON
        | st.lists(
            st.fixed_dictionaries({}, optional={"name": SCALARS, "at": SCALARS, "given": SCALARS, "tree": JSON}),
            max_size=3,
        ),
    },
)
HEADERS = st.fixed_dictionaries(
    {"kind": st.sampled_from(KINDS)},
    optional={
        "id": SCALARS,
        "task": st.sampled_from(["leaf.work", "root.main", "root.none"]) | SCALARS,
        "value": PLACES | JSON,
        "preview": JSON,
        "error": JSON,
        "outcome": st.sampled_from(["ok", "raised", "timeout", "lost_agent"]) | SCALARS,
        "stream": st.sampled_from(["stdout", "stderr"]) | SCALARS,
        "override": JSON,
        "memory_share": SCALARS,
    },
)


def framed(text: bytes) -> bytes:
    """A frame with this header, which `encode` may refuse to send, and no body."""
    return struct.pack(">II", len(text), 0) + text


def deep(levels: int) -> bytes:
    """A header that is JSON and nested too deeply to be read by recursion."""
    return framed(b'{"kind":"LOG","stream":' + b"[" * levels + b"]" * levels + b"}")


#: A frame as it is on the wire, and with how many open files it comes.
Wire = tuple[bytes, int]
GOOD = st.builds(lambda header, body, fds: (encode(header, body, range(fds)), fds), HEADERS, st.binary(max_size=50),
                 st.integers(0, 3))  # fmt: skip
LIARS = st.builds(
    lambda header, told, fds: (framed(json.dumps({**header, "fds": told}).encode()), fds),
    HEADERS,
    st.integers(-2, 300) | SCALARS,
    st.integers(0, 3),
)
CUT = st.builds(lambda frame, at: (frame[0][: at % (len(frame[0]) + 1)], frame[1]), GOOD, st.integers(0, 10**6))
LENGTHS = st.builds(lambda a, b, rest: (struct.pack(">II", a, b) + rest, 0), st.integers(0, 2**32 - 1),
                    st.integers(0, 2**32 - 1), st.binary(max_size=60))  # fmt: skip
NOISE = st.binary(max_size=100).map(lambda data: (data, 0))
WIRES = st.lists(GOOD | LIARS | CUT | LENGTHS | NOISE, max_size=6)


def open_files() -> int:
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def null_files(count: int) -> Iterator[list[int]]:
    """Open files to be sent along; ours are closed afterwards."""
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
    try:
        yield fds
    finally:
        close_all(fds)


def send(channel: socket.socket, data: bytes, fds: int = 0) -> None:
    """Send bytes as they are; that nobody listens any more is fine."""
    with null_files(fds) as files, contextlib.suppress(OSError):
        sent = socket.send_fds(channel, [data[:1]], files) if files and data else 0
        channel.sendall(data[sent:])


# -- the reader --------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=60)) | WIRES.map(lambda wires: [data for data, _ in wires]))
@example([deep(10**5)])
@example([deep(900)])
@example([framed(b'{"kind":"\xff\xff"}')])
@BOUNDED
def test_whatever_comes_is_a_frame_or_refused(pieces: list[bytes]) -> None:
    """Nothing but `ProtocolError` leaves the reader, and what it holds is bounded by what one frame may be."""
    reader = FrameReader()
    with contextlib.suppress(ProtocolError):
        for piece in pieces:
            for frame in reader.feed(piece):
                assert isinstance(frame.header["kind"], str)
                json.dumps(frame.header)  # what was read can be written, to the record, too
    assert len(reader._held) <= MAX_HEADER_BYTES + MAX_BODY_BYTES + 8 + sum(map(len, pieces))


# -- from an agent to the host -----------------------------------------------------------------------------------------


class WildRuntime:
    """Slots with a real line, whose agents are the test's sockets."""

    name = "wild"

    def __init__(self) -> None:
        self.agents: list[socket.socket] = []
        self.stopped = 0

    async def start(self, launch: Any) -> Slot:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.agents.append(theirs)
        for name in ("inputs", "task/outputs"):
            (launch.folder / name).mkdir(parents=True)
        return Slot(launch.folder, {}, None, Line(ours))

    async def explain_loss(self, slot: Slot) -> Loss:
        return Loss(outcome="lost_agent", why="its agent is gone")

    async def stop(self, slot: Slot) -> None:
        self.stopped += 1
        slot.hang_up()

    async def close(self) -> None:
        for agent in self.agents:
            agent.close()


async def take_task(agent: socket.socket) -> bool:
    """Whether an agent got its TASK before the host hung up."""
    with contextlib.suppress(ConnectionError):
        return bool(await asyncio.get_running_loop().sock_recv(agent, 65536))
    return False


def end_well(agent: socket.socket) -> None:
    """What an agent says of a task that returned 1."""
    place, body, _, _ = payload.dump(1, payload.Folders("/", "/", []), keep=False)
    send(agent, encode({"kind": "RESULT", "value": place, "preview": {"json": 1}}, body))
    send(agent, encode({"kind": "ENDED", "outcome": "ok"}))


@given(WIRES)
@example([(deep(900), 0)])
@example([(deep(10**5), 0)])
@example([(encode({"kind": "ENDED", "outcome": "ok", "memory_share": "much"}), 0)])
@example([(encode({"kind": "LOG", "stream": ["stdout"]}, b"x"), 0)])
@example([(encode({"kind": "CANCEL", "id": [1]}), 0)])
@example([(encode({"kind": "MEMORY", "used_bytes": 10**400}), 0)])
@BOUNDED
def test_a_host_outlives_every_agent(tmp_path_factory: pytest.TempPathFactory, wires: list[Wire]) -> None:
    """The attempt ends in one of the ways that there are; a retry in another slot works; no file stays open."""
    folder = tmp_path_factory.mktemp("run")

    before = open_files()
    ended = asyncio.run(asyncio.wait_for(outlive(folder, wires), PATIENCE_S))
    assert ended.status in ("succeeded", "failed")
    assert read_run(folder, RUN).status == ended.status
    assert open_files() == before


async def outlive(folder: Path, wires: list[Wire]) -> CallEnded:
    """How a run ends whose first agent says this and is gone; all others do as they should."""
    record, runtime, served = Record(folder, RUN), WildRuntime(), 1
    engine = Engine(_plan(folder, 1), runtime, Store(folder, folder / "incoming"), record)
    ended = asyncio.ensure_future(engine.run())
    while not runtime.agents:
        await asyncio.sleep(0.001)
    await take_task(runtime.agents[0])
    for data, fds in wires:
        send(runtime.agents[0], data, fds)
    runtime.agents[0].shutdown(socket.SHUT_WR)
    while not ended.done():
        await asyncio.sleep(0.001)
        for agent in runtime.agents[served:]:
            if await take_task(agent):
                end_well(agent)
            served += 1
    record.close()
    return await ended


# -- from the host to an agent -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The part of run-local that travels."""
    home = tmp_path_factory.mktemp("library")
    (home / "tmp").mkdir()
    return worker_library(home)


class LiveAgent:
    """A real agent in a process of its own, and our end of its line."""

    def __init__(self, folder: Path, library: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(PATIENCE_S)
            listener.bind(f"{folder}/s")
            listener.listen(1)
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(library), json.dumps(self._config(folder))], stderr=subprocess.DEVNULL
            )
            self.line, _ = listener.accept()
        self.line.settimeout(PATIENCE_S)

    def read_to_the_end(self) -> bytes:
        """All that it says until it hangs up."""
        said = b""
        with contextlib.suppress(ConnectionError):
            while data := self.line.recv(65536):
                said += data
        return said

    def close(self) -> None:
        self.line.close()
        self.process.kill()
        self.process.wait()

    @staticmethod
    def _config(folder: Path) -> dict[str, Any]:
        work = str(folder / "work")
        Path(work).mkdir(exist_ok=True)
        return {
            "socket": f"{folder}/s", "nonce": "n", "inputs": str(folder), "outputs": str(folder), "work": work,
            "private": [work], "scratch": [work], "read_only": [], "mounts": [], "not_mounted": [], "log_limit": 1000,
            "project": str(folder), "roots": [], "environment": "leaf", "specification": "s", "preload": [],
            "fork": True, "env_vars": {}, "isolation": "container", "network": True, "gpus": [],
        }  # fmt: skip


@given(WIRES)
@example([(deep(10**5), 0)])
@example([(encode({"kind": "TASK"}), 0)])
@example([(encode({"kind": "HELLO"}), 0)])
@example([(encode({"kind": "ANSWER", "id": 1}), 3)])
@settings(BOUNDED, max_examples=25)
def test_an_agent_ends_with_a_host_that_makes_no_sense(library: Path, wires: list[Wire]) -> None:
    """It says HELLO, and whatever it hears then, it is gone once the host is."""
    with tempfile.TemporaryDirectory(prefix="agent-") as folder:
        agent = LiveAgent(Path(folder), library)
        try:
            for data, fds in wires:
                send(agent.line, data, fds)
            with contextlib.suppress(OSError):
                agent.line.shutdown(socket.SHUT_WR)
            assert b'"kind":"HELLO"' in agent.read_to_the_end()
            agent.process.wait(PATIENCE_S)
        finally:
            agent.close()


# -- from a task to its agent ------------------------------------------------------------------------------------------

FLOW = """
    import contextlib
    import os
    import socket
    import stat
    import struct

    from executor import Resources, TaskEnvironment, TaskError

    leaf_env = TaskEnvironment("leaf", resources=Resources(cpu=0.2, memory="256Mi"))
    root_env = TaskEnvironment("root", "envs/leaf/environment.yml", depends_on=[leaf_env], resources=Resources(cpu=0.2))


    def frame(text: bytes, body: bytes = b"") -> bytes:
        return struct.pack(">II", len(text), len(body)) + text + body


    NONSENSE = {
        "noise": os.urandom(5000),
        "too large": struct.pack(">II", 2**31, 2**31),
        "half a frame": frame(b'{"kind":"RESULT"}')[:-5],
        "deep": frame(b'{"kind":"ERROR","error":' + b"[" * 100000 + b"]" * 100000 + b"}"),
        "files that did not come": frame(b'{"kind":"CALL","id":1,"fds":3}'),
        "somebody else's frame": frame(b'{"kind":"ENDED","outcome":"ok"}'),
        "no value": frame(b'{"kind":"RESULT","value":{"at":null},"preview":{}}'),
        "call of nothing": frame(b'{"kind":"CALL","id":[],"task":{},"value":[]}'),
        "host's secrets": frame(
            b'{"kind":"CALL","id":7,"task":"leaf.one","value":{"size":1,"at":"../../../../etc/passwd","files":[]}}'
        ),
    }


    def line() -> socket.socket:
        '''The line to the agent: the first socket that is open here.'''
        for number in range(3, 100):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(number).st_mode):
                    return socket.socket(fileno=os.dup(number))
        raise LookupError("no line")


    @leaf_env.task
    def say(what: str, folder: bool) -> int:
        if folder:
            with line() as ours, open("file", "wb") as file:
                place = b'{"size":1,"at":null,"fd":0,"files":[]}'
                text = b'{"kind":"CALL","id":1,"task":"leaf.one","fds":2,"value":' + place + b"}"
                socket.send_fds(ours, [frame(text)], [os.open("/", os.O_RDONLY), file.fileno()])
        else:
            with line() as ours:
                ours.sendall(NONSENSE[what])
        return 1


    @leaf_env.task
    def one() -> int:
        return 1


    @root_env.task
    def talk() -> dict:
        told = {}
        for what in [*NONSENSE, "a folder"]:
            try:
                ended = say(what, what == "a folder")
            except TaskError as error:
                ended = error.facts["code"]
            told[what] = [ended, one()]
        return told
"""


def test_a_task_that_talks_nonsense_harms_itself_only(run_local: RunLocal, project: MakeProject, runtime: str) -> None:
    """Its own attempt may fail, in one of the ways that there are; the next call in its environment works."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON})
    done = run_local("talk", "--json", "--runtime", runtime, cwd=root, timeout_s=120)
    assert done.code == 0, done.stderr
    assert "Traceback" not in done.stderr
    told = done.document["result"]
    assert len(told) == 10
    assert {after for _, after in told.values()} == {1}
    assert told["half a frame"][0] == "lost_agent"
    assert told["files that did not come"][0] == "lost_agent"
    assert told["a folder"][0] == 1
    assert "root:" not in done.stdout


# -- from a stranger to the host ---------------------------------------------------------------------------------------


def connect(door: Door) -> socket.socket:
    """Somebody on this machine at a slot's socket."""
    stranger = socket.socket(socket.AF_UNIX)
    try:
        stranger.connect(str(door.socket))
    except OSError:
        stranger.close()
        raise
    return stranger


async def never() -> str:
    """An agent's process that lives on."""
    await asyncio.sleep(3600)
    return ""


async def silence() -> str:
    """Nothing to be said of why it did not come."""
    return ""


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        encode({"kind": "HELLO", "version": VERSION}),
        encode({"kind": "HELLO", "version": VERSION, "nonce": "guessed"}),
        encode({"kind": "HELLO", "version": VERSION, "nonce": ["guessed"]}),
        framed(json.dumps({"kind": "HELLO", "version": VERSION, "nonce": "guessed", "fds": 1}).encode()),
        deep(10**5),
    ],
)
def test_a_stranger_is_not_taken_for_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """Whoever does not know the nonce is refused, soon, and the slot with him; no socket and no file stays."""
    monkeypatch.setattr(slots, "_HELLO_S", 0.2)

    async def story() -> None:
        door = Door(tmp_path, RUN)
        door.open()
        with connect(door) as stranger:
            send(stranger, said)
            with pytest.raises(MachineError, match="did not start"):
                await door.wait_hello(never(), silence)
        assert not door.folder.exists()

    before = open_files()
    asyncio.run(asyncio.wait_for(story(), PATIENCE_S))
    assert open_files() == before


def test_nobody_comes_after_the_agent(tmp_path: Path) -> None:
    """Once an agent is there, its socket is gone, and who waited at it is not heard."""

    async def story() -> None:
        door = Door(tmp_path, RUN)
        door.open()
        with connect(door) as agent, connect(door) as stranger:
            send(agent, encode({"kind": "HELLO", "version": VERSION, "nonce": door.nonce}))
            send(stranger, encode({"kind": "HELLO", "version": VERSION, "nonce": door.nonce}))
            hello, line = await door.wait_hello(never(), silence)
            assert hello["version"] == VERSION
            with pytest.raises(OSError, match="No such file"):
                connect(door)
            stranger.setblocking(False)
            with contextlib.suppress(ConnectionError):
                assert stranger.recv(1) == b""
            line.close()

    asyncio.run(asyncio.wait_for(story(), PATIENCE_S))
