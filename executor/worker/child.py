"""One attempt, in a process of its own: load the task by name, open its inputs, run it, hand over its value.

The agent forked this process clean, so nothing of an earlier attempt is here. User code runs from `_load` on; whatever
it raises becomes an ERROR frame with the user's own traceback. A call of another task goes up to the agent and blocks
(or is awaited) until the answer comes down.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib
import inspect
import os
import site
import socket
import sys
import threading
from concurrent.futures import Future
from typing import Any

from executor import authoring
from executor.errors import RunLocalError, TaskError, UsageError
from executor.worker import payload, shapes, stubs
from executor.worker.preview import preview
from executor.worker.protocol import FrameReader, encode
from executor.worker.tracebacks import render_traceback

_OURS = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Link:
    """The child's end of the line to the agent: sends frames, and matches answers to calls."""

    def __init__(self, channel: socket.socket, folders: payload.Folders) -> None:
        self._channel, self._folders = channel, folders
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._calls = 0
        self._listener: threading.Thread | None = None

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Send one frame; from any thread."""
        data = encode(header, body)
        with self._lock:
            self._channel.sendall(data)

    def submit(self, task: authoring.Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        """Ask the host to run a task; the future has its value, or raises what the call failed with."""
        if os.getpid() != self._pid:
            raise UsageError(
                f"`{task.short_name}` was called from a process that the task started",
                why="only the task's own process may call other tasks; its threads may, too",
                hint="call tasks before or after the parallel part, or let them be the parallel part",
            )
        place, body, _ = payload.dump((args, kwargs), self._folders, keep=True)
        future: Future[Any] = Future()
        with self._lock:
            self._calls += 1
            number = self._calls
            self._waiting[number] = future
            if self._listener is None:
                self._listener = threading.Thread(target=self._listen, name="run-local answers", daemon=True)
                self._listener.start()
        self.send({"kind": "CALL", "id": number, "task": task.name, "value": place}, body)
        return future

    def _listen(self) -> None:
        reader = FrameReader()
        while data := self._channel.recv(64 * 2**10):
            for header, body in reader.feed(data):
                self._answer(self._waiting.pop(header["id"]), header, body)

    def _answer(self, future: Future[Any], header: dict[str, Any], body: bytes) -> None:
        try:
            if "error" in header:
                raise _task_error(header["error"])
            future.set_result(payload.load(header["value"], body, self._folders))
        except BaseException as exc:  # noqa: BLE001  opening a value runs user code; the caller is to see what it raised
            future.set_exception(exc)


def run(config: dict[str, Any], header: dict[str, Any], body: bytes, channel: socket.socket) -> int:
    """Run the attempt that `header` and `body` describe; answers with the exit status of this process."""
    folders = payload.Folders(config["inputs"], config["outputs"], config["private"])
    link = Link(channel, folders)
    try:
        _prepare(config, header)
        task, args, kwargs = _load(config, header, body, folders)
        authoring.CALLER.append(link.submit)
        value = task.function(*args, **kwargs)
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
        place, answer, attached = payload.dump(value, folders, keep=False)
        link.send({"kind": "RESULT", "value": place, "preview": preview(value, attached)}, answer)
        status = 0
    except BaseException as exc:  # noqa: BLE001  user code may raise anything, and all of it is news
        link.send({"kind": "ERROR", "error": _story(exc, header, config)})
        status = 1
    _finish()
    return status


def _prepare(config: dict[str, Any], header: dict[str, Any]) -> None:
    """Make this process look like a fresh interpreter started for the task."""
    os.environ.update(header["env_vars"])
    os.chdir(config["work"])
    site.main()
    sys.path[:] = [*config["roots"], *(entry for entry in sys.path if entry != _OURS)]
    sys.argv = [header["task"]]
    sys.dont_write_bytecode = True
    # New ones, because the agent's were made for another kind of file.
    sys.stdout = sys.__stdout__ = open(1, "w", 1, "utf-8", "backslashreplace", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, "utf-8", "backslashreplace", closefd=False)  # type: ignore[misc]  # noqa: SIM115


def _load(
    config: dict[str, Any], header: dict[str, Any], body: bytes, folders: payload.Folders
) -> tuple[authoring.Task[Any, Any], tuple[Any, ...], dict[str, Any]]:
    stubs.install(config["roots"], config["environment"])
    task = importlib.import_module(header["module"])
    for part in header["qualname"].split("."):
        task = getattr(task, part)
    assert isinstance(task, authoring.Task)
    value = payload.load(header["value"], body, folders)
    if not isinstance(value, dict):
        args, kwargs = value
        return task, args, kwargs
    files = {
        each["key"]: os.path.join(folders.inputs, each["at"]) for each in header["value"]["files"] if "key" in each
    }
    return task, (), shapes.arguments(task.function, value, files)


def _finish() -> None:
    """What the end of a Python process does, as far as it can still matter to anybody."""
    with contextlib.suppress(Exception):  # exit functions are user code; each prints what it raises
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the task may have closed it
            stream.flush()


def _task_error(story: dict[str, Any]) -> TaskError:
    return TaskError(
        f"task `{story['task']}` failed: {story['code']}: {story['message']}", facts=story, hint=story.get("hint", "")
    )


def _story(exc: BaseException, header: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The failure as plain data: what, where, the user's own frames, and the failed call that caused it, if one did."""
    inner = _inner_story(exc)
    message = exc.what if isinstance(exc, RunLocalError) else str(exc)
    return {
        "code": type(exc).__name__,
        "message": message,
        "why": exc.why if isinstance(exc, RunLocalError) else "",
        "hint": exc.hint if isinstance(exc, RunLocalError) else "",
        "task": header["task"],
        "environment": config["environment"],
        "call": header["call"],
        "traceback": render_traceback(exc, config["project"]),
        "cause": inner,
    }


def _inner_story(exc: BaseException | None) -> dict[str, Any] | None:
    seen: list[BaseException] = []
    while exc is not None and exc not in seen:
        if isinstance(exc, TaskError):
            return exc.facts
        seen.append(exc)
        exc = exc.__cause__ or exc.__context__
    return None
