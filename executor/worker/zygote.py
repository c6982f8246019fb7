"""The zygote: a process that has imported what an environment preloads, and is forked for each attempt.

    agent ── fork ──► zygote: imports the modules, says READY
    agent ── open files of an attempt ──► zygote ── fork ──► helper ── fork ──► child of the attempt
                                                              helper ends, so the child becomes the agent's

It runs the code of libraries, so it is not the agent; and it runs no task, so that each starts from the same state. It
is replaced when it is lost, and after an attempt that had to be killed or left processes behind.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from executor.worker import child, kernel
from executor.worker.protocol import close_all, receive

_READY = b"R"
_PID = struct.Struct(">I")
_FORKS_S = 10.0

#: Called in the child of an attempt, with its channel, its stdout and its stderr.
Run = Callable[[socket.socket, Sequence[int]], NoReturn]


class Zygote:
    """One zygote, as the agent sees it.

    modules:   what it imports; variables: of the environment, set before that
    run:       what a child of it does; forget: closes what is only the agent's
    """

    def __init__(self, config: dict[str, Any], run: Run, forget: Callable[[], None]) -> None:
        self.channel, theirs = socket.socketpair()
        self.ready = False
        self.kept: set[int] = set()
        self.pid = os.fork()
        if self.pid == 0:
            self.channel.close()
            forget()
            _serve(theirs, config, run)
        theirs.close()
        self.channel.settimeout(_FORKS_S)

    def hear_ready(self) -> bool:
        """Take its READY, when there is something to read; False where it has ended instead."""
        self.ready = self.channel.recv(1) == _READY
        self.kept = {self.pid, *kernel.descendants(self.pid)}
        return self.ready

    def is_well(self) -> bool:
        """Whether it runs: the attempt before may have killed or stopped it, and the next one is not to pay for that."""
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def fork(self, channel: socket.socket, outputs: Sequence[int]) -> int | None:
        """A child with these open files: its process id, or None where the zygote is lost."""
        try:
            socket.send_fds(self.channel, [b"F"], [channel.fileno(), *outputs])
            told = self.channel.recv(_PID.size)
            return int(_PID.unpack(told)[0]) if len(told) == _PID.size else None
        except OSError:
            return None

    def end(self) -> None:
        """Kill it; the agent collects it like any other."""
        self.channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def _serve(channel: socket.socket, config: dict[str, Any], run: Run) -> NoReturn:
    try:
        _become_zygote(config)
        channel.sendall(_READY)
        while True:
            data, fds = receive(channel, 1)
            if not data:
                break
            channel.sendall(_PID.pack(_fork(channel, fds, run)))
            close_all(fds)
    except BaseException:  # noqa: BLE001  libraries may do anything
        os.write(2, traceback.format_exc().encode(errors="backslashreplace"))
    os._exit(0)


def _become_zygote(config: dict[str, Any]) -> None:
    kernel.die_with_parent()
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(config["env_vars"])
    child.find_modules(config)
    for module in config["preload"]:
        try:
            importlib.import_module(module)
        except BaseException as exc:  # noqa: BLE001  it is told by each attempt
            child.NOT_PRELOADED.append((module, f"{type(exc).__name__}: {exc}"))
            break
    gc.collect()
    gc.freeze()  # so that a child's collections touch none of these pages


def _fork(channel: socket.socket, fds: list[int], run: Run) -> int:
    """Fork twice, so that the child is not ours; answers with its process id."""
    reader, writer = os.pipe()
    helper = os.fork()
    if helper == 0:
        ours = os.getpid()
        pid = os.fork()
        if pid:
            os.write(writer, _PID.pack(pid))
            os._exit(0)
        os.close(reader)
        os.close(writer)
        channel.close()
        while os.getppid() == ours:  # the agent becomes our parent in a moment
            os.sched_yield()
        _differ()
        run(socket.socket(fileno=fds[0]), fds[1:])
    os.close(writer)
    os.waitpid(helper, 0)
    with os.fdopen(reader, "rb") as pipe:
        return int(_PID.unpack(pipe.read())[0])


def _differ() -> None:
    """Do not draw the same random numbers as every other attempt; Python's own generator sees to that itself."""
    for name, seed in (("numpy.random", "seed"), ("torch", "seed")):
        if name in sys.modules:
            getattr(sys.modules[name], seed)()
