"""The agent: PID 1 of a slot. Talks to the host, forks one child per attempt, and leaves nothing of it behind.

    host ⇄ socket ⇄ agent ⇄ socketpair ⇄ child
                      ⇐ stdout, stderr of the child and of all that it starts

It runs no user code, has no threads, and serves one attempt at a time. When the host's end of the socket closes, for
whatever reason, the agent exits, and because it is PID 1 the kernel then kills everything that it ever started: that
is what makes an orphaned container impossible. Where it cannot be PID 1 (the process runtime without user namespaces)
it is a subreaper and kills its descendants by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from executor.version import VERSION as RUN_LOCAL_VERSION
from executor.worker import child, confinement, folders, gpus, groups, kernel, memory
from executor.worker.masking import Mask
from executor.worker.output import Output
from executor.worker.protocol import (
    VERSION,
    Frame,
    FrameReader,
    Outbox,
    ProtocolError,
    close_all,
    encode,
    receive,
    send,
)
from executor.worker.zygote import Zygote

_CHUNK = 64 * 2**10
_LONGEST_REASON = 2000
_LONGEST_WAIT_S = 3600.0  # the kernel counts milliseconds in 32 bits
_MEASURED_EVERY_S = 2.0
_WORTH_TELLING = 2**20
_MEASURING_SHARE = 0.01  # of the time, at most: the pages of many gigabytes take long to count


class _Attempt:
    """The attempt that this agent serves now."""

    def __init__(self, pid: int, channel: socket.socket, streams: dict[int, str], deadline: float | None) -> None:
        self.pid = pid
        self.channel = channel
        self.reader = FrameReader()
        self.answers = Outbox()  # what the child has not taken yet
        self.streams = streams
        self.output = Output()
        self.deadline = deadline
        self.shares_memory = False
        self.killed_for = ""
        self.reported = ""
        self.status: int | None = None
        self.usage: Any = None
        self.measured = 0
        self.measure_at = time.monotonic() + _MEASURED_EVERY_S
        self.counted = groups.counts()


class Agent:
    """Serves attempts until the host goes away.

    config: socket (path), inputs, outputs, work (cwd of attempts), scratch (folders that each attempt finds empty),
            read_only (folders made so, where that can be done), mounts ([source, target] of each, read-only too),
            network (whether attempts have any),
            roots (folders of the project on sys.path), environment (its name), env_vars (its variables),
            preload, fork (see `authoring.Reuse`), isolation (how we were started),
            log_limit (bytes of an attempt's output that are kept), gpus (the UUIDs of those that it is to have)
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        kernel.allow_many_files()
        kernel.leave_no_core()
        self._host = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._host.settimeout(10)
        self._host.connect(config["socket"])
        self._host.settimeout(None)
        self._from_host = FrameReader()
        self._selector = selectors.DefaultSelector()
        self._attempt: _Attempt | None = None
        self._zygote: Zygote | None = None
        self._waiting: Frame | None = None  # a task that comes before the zygote is ready
        self._ready_by: float | None = None
        self._first = os.getpid() == 1
        self._child_ended, writer = os.pipe()
        for end in (self._child_ended, writer):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of PID 1 the kernel keeps all others, that have no handler
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def serve(self) -> NoReturn:
        """Say HELLO, then serve until the host is gone."""
        self._clean()
        self._say({"kind": "HELLO", "version": VERSION, **self._facts()})
        self._selector.register(self._host, selectors.EVENT_READ)
        self._selector.register(self._child_ended, selectors.EVENT_READ)
        try:
            while True:
                self._turn()
        except Exception as exc:  # noqa: BLE001  whatever it is, nobody else can tell it
            text = str(exc) if isinstance(exc, ProtocolError) else traceback.format_exc()
            self._say({"kind": "FAULT", "reason": text[-_LONGEST_REASON:]})
            self._leave()

    def _turn(self) -> None:
        for key, events in self._selector.select(self._patience()):
            if events & selectors.EVENT_READ:
                self._take(key.fileobj)
            elif self._attempt:
                self._pass_on(self._attempt)
        deadline = self._deadline()
        if deadline is not None and time.monotonic() >= deadline:
            self._kill("timeout")
        if self._attempt and self._attempt.status is None and time.monotonic() >= self._attempt.measure_at:
            self._measure(self._attempt)
        if self._attempt and self._attempt.status is not None:
            self._end(self._attempt)

    def _facts(self) -> dict[str, Any]:
        return {
            **confinement.facts(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "run_local": RUN_LOCAL_VERSION,
            "isolation": self._config["isolation"],
            "inputs_writable": os.access(self._config["inputs"], os.W_OK),
            "not_mounted": self._config["not_mounted"],
            "writable_places": confinement.writable_places() if self._config["isolation"] == "container" else [],
            "writable_mounts": [each for _, each in self._config["mounts"] if not kernel.is_read_only(each)],
            "gpus": gpus.look(self._config["gpus"]),
            "nonce": self._config["nonce"],
        }

    def _patience(self) -> float | None:
        due = [self._deadline(), self._attempt.measure_at if self._attempt else None]
        first = min((when for when in due if when is not None), default=None)
        return None if first is None else min(max(0.0, first - time.monotonic()), _LONGEST_WAIT_S)

    def _deadline(self) -> float | None:
        """When the attempt, or what it waits for, has had its time."""
        if self._waiting:
            return self._ready_by
        return self._attempt.deadline if self._attempt else None

    def _measure(self, attempt: _Attempt) -> None:
        """Tell how much memory is in use, if that has changed: of the container, or without one, of all our processes."""
        began = time.monotonic()
        if self._config["isolation"] == "container":
            used = groups.memory_used()
        else:
            used = kernel.memory_of(kernel.descendants(os.getpid()))
        now = time.monotonic()
        attempt.measure_at = now + max(_MEASURED_EVERY_S, (now - began) / _MEASURING_SHARE)
        if abs(used - attempt.measured) >= _WORTH_TELLING:
            attempt.measured = used
            self._say({"kind": "MEMORY", "used_bytes": used})

    def _take(self, source: Any) -> None:
        if source is self._host:
            data, fds = receive(self._host, _CHUNK)
            if not data:
                self._leave()
            for frame in self._from_host.feed(data, fds):
                self._obey(frame)
        elif source == self._child_ended:
            os.read(self._child_ended, 4096)
            self._reap()
        elif self._zygote and source is self._zygote.channel:
            self._hear_zygote(self._zygote)
        elif self._attempt and source is self._attempt.channel:
            self._relay(self._attempt)
        elif self._attempt and source in self._attempt.streams:
            self._log(self._attempt, source)

    def _obey(self, frame: Frame) -> None:
        kind = frame.header["kind"]
        if kind == "ANSWER" and self._attempt:
            self._attempt.answers.put(encode(*frame), frame.fds)
            self._pass_on(self._attempt)
            return
        if kind == "TASK" and self._attempt is None and self._waiting is None:
            if self._zygote and self._zygote.ready and not self._zygote.is_well():
                self._drop_zygote()
            if self._config["preload"] and not (self._zygote and self._zygote.ready):
                self._waiting = frame
                timeout = frame.header["timeout_s"]
                self._ready_by = None if timeout is None else time.monotonic() + timeout
                self._begin_zygote()
                return
            self._start(frame)
            return
        if kind == "CANCEL":
            self._kill("cancelled")
        elif kind != "ANSWER":
            raise ProtocolError(f"the host sent {kind} out of turn")
        close_all(frame.fds)

    def _start(self, frame: Frame) -> None:
        ours, theirs = socket.socketpair()
        pipes = {name: os.pipe() for name in ("stdout", "stderr")}
        outputs = [pipes["stdout"][1], pipes["stderr"][1]]
        forks = self._config["fork"] and not self._zygote
        pid: int | None = 0
        if self._zygote:
            pid = self._zygote.fork(theirs, outputs)
        else:
            pid = os.fork()
            if pid == 0:
                self._forget_everything()
                ours.close()
                close_all(reader for reader, _ in pipes.values())
                self._become_child(theirs, outputs, frame if forks else None)
        theirs.close()
        ours.setblocking(False)  # the child may not read
        for reader, writer in pipes.values():
            os.close(writer)
            os.set_blocking(reader, False)
        timeout = frame.header["timeout_s"]
        deadline = None if timeout is None else time.monotonic() + timeout
        streams = {reader: name for name, (reader, _) in pipes.items()}
        attempt = _Attempt(pid or 0, ours, streams, deadline)
        attempt.output = Output(self._config["log_limit"], Mask(child.secret_values(frame.header)))
        self._attempt = attempt
        self._selector.register(ours, selectors.EVENT_READ)
        for stream in attempt.streams:
            self._selector.register(stream, selectors.EVENT_READ)
        if forks:
            close_all(frame.fds)
        else:  # it has to be told
            attempt.answers.put(encode(*frame), frame.fds)
            self._pass_on(attempt)
        if pid is None:  # the zygote was lost just now; the next attempt finds a new one
            self._drop_zygote()
            attempt.status, attempt.usage = signal.SIGKILL, resource.getrusage(resource.RUSAGE_CHILDREN)

    def _forget_everything(self) -> None:
        """Close, in a process that was just forked, what is the agent's alone."""
        signal.set_wakeup_fd(-1)
        self._host.close()
        self._selector.close()
        if self._attempt:
            self._attempt.channel.close()

    def _become_child(self, channel: socket.socket, outputs: Sequence[int], frame: Frame | None) -> NoReturn:
        """Be the child of an attempt; without its frame, as a new interpreter, or forked off the zygote."""
        status = 70
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setsid()
            kernel.die_with_parent()
            kernel.prefer_as_oom_victim()
            for number, fd in enumerate(outputs, start=1):
                os.dup2(fd, number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            if frame:
                status = child.run(self._config, frame, channel)
            elif self._config["fork"]:
                status = child.run_from(self._config, channel)
            else:
                os.set_inheritable(channel.fileno(), True)
                config = json.dumps({**self._config, "channel": channel.fileno()})
                os.execv(sys.executable, [sys.executable, "-s", "-S", sys.argv[0], config])  # noqa: S606
        except BaseException:  # noqa: BLE001  nothing can be told to anybody; the task's log is what is left
            os.write(2, traceback.format_exc().encode(errors="backslashreplace"))
        finally:
            os._exit(status)

    # -- the zygote ----------------------------------------------------------------------------------------------------

    def _begin_zygote(self) -> None:
        if self._zygote is None:

            def run(channel: socket.socket, outputs: Sequence[int]) -> NoReturn:
                self._become_child(channel, outputs, None)

            self._zygote = Zygote(self._config, run, self._forget_everything)
            self._selector.register(self._zygote.channel, selectors.EVENT_READ)

    def _hear_zygote(self, zygote: Zygote) -> None:
        """It is ready; or it has ended, and what waits for it goes without."""
        if zygote.hear_ready():
            self._selector.unregister(zygote.channel)
        else:
            self._drop_zygote()
        if self._waiting:
            frame, self._waiting = self._waiting, None
            self._start(frame)

    def _drop_zygote(self) -> None:
        if self._zygote:
            self._forget(self._zygote.channel)
            self._zygote.end()
            self._zygote = None

    def _pass_on(self, attempt: _Attempt) -> None:
        """Give the child as much of its answers as it takes now; one that does not read keeps nobody waiting."""
        try:
            attempt.answers.flush(attempt.channel)
        except OSError:  # it has just ended
            attempt.answers.close()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if attempt.answers else 0)
        with contextlib.suppress(KeyError):  # it has closed its end
            self._selector.modify(attempt.channel, events)

    def _relay(self, attempt: _Attempt, *, last: bool = False) -> None:
        """Pass the child's frames up. It can lie about nothing but its own attempt, so only their kinds are checked.

        last: nothing will come any more, whoever else still holds the other end
        """
        try:
            data, fds = receive(attempt.channel, _CHUNK)
        except BlockingIOError:
            if not last:
                return
            data, fds = b"", []
        except ConnectionError:
            data, fds = b"", []
        if not data:
            self._forget(attempt.channel)
            return
        for frame in attempt.reader.feed(data, fds):
            kind = frame.header["kind"]
            if kind not in ("CALL", "CANCEL", "RESULT", "ERROR", "REPORT"):
                raise ProtocolError(f"a task sent {kind}")
            if kind in ("RESULT", "ERROR"):
                attempt.reported = kind
            attempt.shares_memory = attempt.shares_memory or bool(frame.fds)
            self._say(*frame)

    def _log(self, attempt: _Attempt, stream: int, *, last: bool = False) -> None:
        try:
            data = os.read(stream, _CHUNK)
        except BlockingIOError:
            if not last:
                return
            data = b""
        if text := attempt.output.take(attempt.streams[stream], data, last=not data):
            self._say({"kind": "LOG", "stream": attempt.streams[stream]}, text)
        if not data:
            self._forget(stream)
            os.close(stream)
            del attempt.streams[stream]

    def _forget(self, source: Any) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(source)

    def _reap(self) -> int:
        """Collect every child that has ended: the attempt's, and orphans that the kernel gave us. How many there were."""
        reaped = 0
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    break
                reaped += 1
                if self._attempt and pid == self._attempt.pid:
                    self._attempt.status, self._attempt.usage = status, usage
        return reaped

    def _kill(self, reason: str) -> None:
        if self._waiting:
            close_all(self._waiting.fds)
            self._waiting = None
            self._drop_zygote()
            self._say({"kind": "ENDED", "outcome": reason})
        if self._attempt and not self._attempt.killed_for:
            self._attempt.killed_for = reason
            self._attempt.deadline = None
            self._sweep()

    def _sweep(self) -> int:
        """Kill and collect everything that the attempt left; answers with how many processes there were."""
        if self._attempt and self._attempt.status is not None and self._zygote and self._zygote.ready:
            left = set(kernel.descendants(os.getpid())) - self._zygote.kept
            if not left:
                return 0
        self._drop_zygote()
        swept = 0
        while _has_children():
            self._kill_everything()
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # until one has ended; then take all that have
            swept += self._reap()
        return swept

    def _kill_everything(self) -> None:
        if self._first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            return
        kernel.kill_descendants()

    def _end(self, attempt: _Attempt) -> None:
        """The child is gone: sweep, pass on what it still had to say, clean up, and tell the host."""
        swept = self._sweep()
        while attempt.channel in self._selector.get_map():
            self._relay(attempt, last=True)
        for stream in list(attempt.streams):
            while stream in attempt.streams:
                self._log(attempt, stream, last=True)
        attempt.channel.close()
        attempt.answers.close()
        attempt.reader.close()
        self._clean()
        self._attempt = None
        share = round(memory.used_share(), 3) if attempt.shares_memory else 0.0
        self._say({"kind": "ENDED", "swept": swept, "memory_share": share, **_verdict(attempt)})

    def _clean(self) -> None:
        """Leave the folders that attempts write to as the next one is to find them, whatever the last one did to them."""
        for folder in self._config["scratch"]:
            with contextlib.suppress(OSError):
                _empty(folder)

    def _say(self, header: dict[str, Any], body: bytes = b"", fds: Sequence[int] = ()) -> None:
        try:
            send(self._host, encode(header, body, fds), fds)
        except OSError:
            self._leave()
        close_all(fds)

    def _leave(self) -> NoReturn:
        """The host is gone. As PID 1, exiting kills all that is left."""
        if not self._first:
            kernel.end_descendants()
        os._exit(0)


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _verdict(attempt: _Attempt) -> dict[str, Any]:
    """How an attempt ended, with the evidence: one of ok, raised, exit, signal, oom, timeout, cancelled.

    exit, signal:  of the task's own process, one of them
    peak_bytes:    the most that one of its processes had in memory; group_peak_bytes: all of the slot, where that rose
    oom_kills:     processes of the slot that the kernel killed for want of memory meanwhile; oom_task: the task's was one
    memory_limit_bytes, pids_limit, shm_bytes: what was in force, where it matters
    pids_refused:  how often a process or thread could not be started because there were too many
    """
    assert attempt.status is not None
    killer = os.WTERMSIG(attempt.status) if os.WIFSIGNALED(attempt.status) else None
    exit_code = None if killer else os.WEXITSTATUS(attempt.status)
    counted = groups.counts()
    oom_kills = counted.oom_kills - attempt.counted.oom_kills
    pids_refused = counted.pids_refused - attempt.counted.pids_refused
    starved = oom_kills > 0 and (killer == signal.SIGKILL or attempt.reported != "RESULT")
    told = {"RESULT": "ok", "ERROR": "raised"}.get(attempt.reported, "exit")
    evidence: dict[str, Any] = {
        "outcome": attempt.killed_for or ("oom" if starved else "signal" if killer else told),
        "exit": exit_code,
        "signal": killer,
        "cpu_s": round(attempt.usage.ru_utime + attempt.usage.ru_stime, 4),
        "peak_bytes": attempt.usage.ru_maxrss * 1024,
        "output_bytes": attempt.output.written,
    }
    if counted.memory_peak > attempt.counted.memory_peak:
        evidence["group_peak_bytes"] = counted.memory_peak
    if oom_kills > 0:
        limit = groups.limits()["memory_limit_bytes"]
        evidence.update(oom_kills=oom_kills, oom_task=killer == signal.SIGKILL, memory_limit_bytes=limit)
    if pids_refused > 0:
        evidence.update(pids_refused=pids_refused, pids_limit=groups.limits()["pids_limit"])
    if killer == signal.SIGBUS:
        evidence["shm_bytes"] = kernel.size_of("/dev/shm")  # noqa: S108
    return evidence


def _empty(folder: str) -> None:
    """Empty a folder; where it is gone, or something else has taken its place, make it again."""
    folders.unlock(os.path.dirname(folder))
    if os.path.islink(folder) or not os.path.isdir(folder):
        folders.remove_tree(folder)
        os.mkdir(folder)
    folders.empty_folder(folder)
