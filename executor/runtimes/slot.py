"""The host's end of a slot: its folders, its socket, and the frames that go through it.

<folder>/inputs        what attempts are given; read-only in the container
<folder>/task/outputs  what attempts hand over
<folder>/task/work     where attempts run, and beside it their home, made by the agent
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executor import machine
from executor.data.leases import NAME, lease_is_held
from executor.data.store import full_disk
from executor.errors import MachineError
from executor.manifest import Shape
from executor.worker.protocol import VERSION, Frame, FrameReader, Outbox, ProtocolError, close_all, encode, receive

if TYPE_CHECKING:
    from executor.runtimes import Launch

_CHUNK = 256 * 2**10
_MOST_READY = 64
_THREADED = ("OMP", "OPENBLAS", "MKL", "BLIS", "NUMEXPR", "NUMBA", "RAYON")
_HELLO_S = 30.0
_LONGEST_SOCKET_PATH = 107
_OF_A_SOCKET = len("/20260101-000000-0000.12345678/s")


class Slot:
    """A live agent and the line to it. container, pid: who it is on this machine: a container, or a first process."""

    def __init__(
        self, folder: Path, hello: dict[str, Any], container: str | None, line: Line, pid: int | None = None
    ) -> None:
        self.folder = folder
        self.hello = hello
        self.container = container
        self.pid = pid
        self._line = line

    @property
    def number(self) -> int:
        """Which slot of its run it is; they count from 1."""
        return int(self.folder.name)

    @property
    def inputs(self) -> Path:
        """Where to put files for the agent's attempts."""
        return self.folder / "inputs"

    @property
    def outputs(self) -> Path:
        """Where attempts leave files for us."""
        return self.folder / "task" / "outputs"

    def send(self, header: dict[str, Any], body: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a frame; one that cannot be sent any more is dropped: the next `receive` says that the agent is gone.

        fds: open files that go with it, and are then closed. Raises `ProtocolError` for a frame that is too large.
        """
        self._line.send(header, body, fds)

    async def receive(self) -> Frame | None:
        """The next frame of the agent; None when it is gone, or has said what no agent says."""
        return await self._line.receive()

    @property
    def nonsense(self) -> str:
        """What the agent said that no agent says, if that is why the line closed."""
        return self._line.nonsense

    def is_alive(self) -> bool:
        """Whether the agent is still there, as far as we have heard."""
        return self._line.is_open()

    def hang_up(self) -> None:
        """Close the line; the agent and everything under it then dies."""
        self._line.close()
        self._line.forget()


class Line:
    """One accepted connection, cut into frames."""

    def __init__(self, channel: socket.socket) -> None:
        channel.setblocking(False)
        self._channel = machine.keep_from_forks(channel)
        self._loop = asyncio.get_running_loop()
        self._frames = FrameReader()
        self._ready: deque[Frame] = deque()
        self._outbox = Outbox()
        self._news = asyncio.Event()
        self._open = True
        self._listens = False
        self.nonsense = ""
        self._listen()

    def send(self, header: dict[str, Any], body: bytes, fds: Sequence[int]) -> None:
        """Send a frame without waiting."""
        try:
            data = encode(header, body, fds)
        except ProtocolError:
            close_all(fds)
            raise
        self._outbox.put(data, fds)
        self._flush()

    async def receive(self) -> Frame | None:
        """The next frame, or None."""
        while not self._ready:
            if not self._open:
                return None
            self._news.clear()
            self._listen()
            await self._news.wait()
        return self._ready.popleft()

    def is_open(self) -> bool:
        """Whether neither side has closed it."""
        return self._open

    def close(self) -> None:
        """Close it; twice is fine. What has come stays to be received."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._channel)
        self._loop.remove_writer(self._channel)
        self._channel.close()
        self._outbox.close()
        self._frames.close()
        self._news.set()

    def forget(self) -> None:
        """Drop what has come and was not received."""
        while self._ready:
            close_all(self._ready.popleft().fds)

    def _listen(self) -> None:
        if self._open and not self._listens:
            self._loop.add_reader(self._channel, self._take)
            self._listens = True

    def _take(self) -> None:
        """Read what has come; when more of it waits than anybody has asked for, let the agent wait, too."""
        try:
            data, fds = receive(self._channel, _CHUNK)
            self._ready.extend(self._frames.feed(data, fds))
        except BlockingIOError:
            return
        except ProtocolError as exc:
            self.nonsense = str(exc)
            data = b""
        except OSError:
            data = b""
        if not data:
            self.close()
        elif len(self._ready) > _MOST_READY:
            self._loop.remove_reader(self._channel)
            self._listens = False
        self._news.set()

    def _flush(self) -> None:
        try:
            if self._open:
                self._outbox.flush(self._channel)
        except OSError:
            self.close()
        if not self._open:
            self._outbox.close()
        elif self._outbox:
            self._loop.add_writer(self._channel, self._flush)
        else:
            self._loop.remove_writer(self._channel)


class Door:
    """The socket that a slot's agent connects to, once.

    It lies in a folder of its own with a short path, because the path of a socket may hold about 100 bytes only. The
    folder is named after the run, so that the next one can tell whether it is still wanted. Whoever connects must know
    the nonce, so no other process of this machine can pass for the agent.
    """

    def __init__(self, home: Path, run: str) -> None:
        self.nonce = secrets.token_hex(16)
        with full_disk("the socket of a container cannot be made"):
            folder, prefix = _sockets(home)
            self.folder = Path(tempfile.mkdtemp(dir=folder, prefix=f"{prefix}{run}."))
            self.folder.chmod(0o711)
        self._listener: socket.socket | None = None
        self._arriving: asyncio.Task[tuple[socket.socket, Any]] | None = None

    @property
    def socket(self) -> Path:
        """The path of the socket."""
        return self.folder / "s"

    def open(self) -> None:
        """Start to listen."""
        self._listener = machine.keep_from_forks(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        self._listener.bind(str(self.socket))
        self._listener.listen(1)
        self._listener.setblocking(False)
        self.socket.chmod(0o666)
        self._arriving = asyncio.ensure_future(asyncio.get_running_loop().sock_accept(self._listener))

    async def wait_hello(
        self, gone: Awaitable[Any], why_gone: Callable[[], Awaitable[str]]
    ) -> tuple[dict[str, Any], Line]:
        """The agent's HELLO and the line to it. `gone` completes if its process ends before it could connect."""
        assert self._arriving is not None
        ending = asyncio.ensure_future(gone)
        try:
            await asyncio.wait({self._arriving, ending}, timeout=_HELLO_S, return_when=asyncio.FIRST_COMPLETED)
            if not self._arriving.done():
                raise MachineError("a container did not start", why=await why_gone() or "its agent never answered")
            line = Line(self._arriving.result()[0])
            frame = await asyncio.wait_for(line.receive(), _HELLO_S)
        except asyncio.TimeoutError:  # another class before Python 3.11
            raise MachineError("a container did not start", why="its agent said nothing") from None
        finally:
            ending.cancel()
            self.close()
        hello = frame.header if frame else {}
        if hello.get("version") != VERSION or hello.pop("nonce", "") != self.nonce:
            line.close()
            raise MachineError("a container did not start", why="who answered is not its agent")
        return hello, line

    def close(self) -> None:
        """Stop listening and remove the socket; the line that was accepted stays."""
        if self._arriving and not self._arriving.cancel() and not self._arriving.cancelled():
            self._arriving.exception()  # somebody may have come whom nobody waited for
        if self._listener:
            self._listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_dead_doors(home: Path) -> None:
    """Remove the folders of sockets whose runs were killed while they waited for an agent."""
    sockets, prefix = _sockets(home)
    for folder in sockets.glob(f"{prefix}*.*"):
        run = folder.name.removeprefix(prefix).partition(".")[0]
        if not lease_is_held(home / "runs" / run / NAME):
            shutil.rmtree(folder, ignore_errors=True)


def _sockets(home: Path) -> tuple[Path, str]:
    """Where the folders of sockets lie, and how their names begin.

    They lie in the home, or where its path is too long beside the temporary files, which are not of this home alone.
    """
    near = home / "sockets"
    if len(os.fsencode(near)) + _OF_A_SOCKET > _LONGEST_SOCKET_PATH:
        return Path(tempfile.gettempdir()), f"run-local-{hashlib.sha256(os.fsencode(home)).hexdigest()[:8]}-"
    near.mkdir(exist_ok=True)
    return near, ""


def make_folders(folder: Path, owner: tuple[int, int]) -> None:
    """Make a slot's folders, those that tasks write to owned by the user that they run as."""
    for name in ("inputs", "task/outputs", "task/work", "task/tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "inputs").chmod(0o755)  # whatever our umask is: tasks may run as somebody else
    for name in ("task", "task/outputs", "task/work", "task/tmp"):
        if owner != (os.getuid(), os.getgid()):
            os.chown(folder / name, *owner)


def common_variables(shape: Shape) -> dict[str, str]:
    """The variables that every task finds; numerical libraries are told the share of the machine that is theirs."""
    threads = str(max(1, int(shape.cpus_limit)))
    return {
        "USER": "task",
        "LOGNAME": "task",
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",  # or the same set of texts has another order, and other bytes, in each container
        **{f"{library}_NUM_THREADS": threads for library in _THREADED},
        "POLARS_MAX_THREADS": threads,
    }


def agent_config(
    launch: Launch,
    *,
    door: Door,
    socket: str,
    inputs: str,
    task: str,
    scratch: list[str],
    project: str,
    isolation: str,
) -> dict[str, Any]:
    """The configuration of an agent (see `worker.agent.Agent`), its paths being those that the agent will see."""
    work, home = f"{task}/work", f"{task}/home"
    return {
        "socket": socket,
        "nonce": door.nonce,
        "inputs": inputs,
        "outputs": f"{task}/outputs",
        "work": work,
        "private": [work, home, *scratch],
        "scratch": [work, home, *scratch],
        "read_only": [],
        "gpus": [each.uuid for each in launch.gpus],
        "mounts": [[each.source, each.target] for each in launch.mounts],
        "not_mounted": [],
        "network": launch.network,
        "log_limit": launch.log_limit,
        "project": project,
        "roots": [project if root == "." else f"{project}/{root}" for root in launch.import_roots],
        "environment": launch.environment,
        "specification": launch.specification,
        "preload": list(launch.preload),
        "fork": launch.fork,
        "env_vars": dict(launch.env_vars) if launch.preload else {},
        "isolation": isolation,
    }
