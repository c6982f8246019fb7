"""One attempt, in a process of its own: load the task by name, open its inputs, run it, hand over its value.

The agent forked this process clean, so nothing of an earlier attempt is here. User code runs from `load_task` on; whatever
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
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Callable

from executor import authoring, report
from executor.errors import NonRecoverableError, NotPicklable, ProjectError, RunLocalError, TaskError, UsageError
from executor.worker import kernel, opaque, payload, shapes, stubs
from executor.worker.masking import Mask
from executor.worker.output import flush_streams, open_streams
from executor.worker.preview import preview, preview_arguments
from executor.worker.protocol import Frame, FrameReader, close_all, encode, receive, send
from executor.worker.tracebacks import render_traceback, shorten

_MOST_OF_A_MESSAGE = 2000
_MOST_OF_A_REPORT = 8 * 2**20
_OURS = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


#: A module that was to be preloaded and could not be imported, and why; see `zygote`.
NOT_PRELOADED: list[tuple[str, str]] = []


class Link:
    """The child's end of the line to the agent: sends frames, and matches answers to calls."""

    def __init__(self, channel: socket.socket, folders: payload.Folders) -> None:
        self._channel, self._folders = channel, folders
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Callable[[], Any]]] = {}
        self._parameters: dict[str, list[dict[str, Any]] | None] = {}
        self._calls = 0
        self._listener: threading.Thread | None = None

    def send(self, header: dict[str, Any], body: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send one frame and the open files that go with it, which are then closed; from any thread."""
        try:
            data = encode(header, body, fds)
            with self._lock:
                send(self._channel, data, fds)
        finally:
            close_all(fds)

    def submit(
        self, task: authoring.Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future[Callable[[], Any]]:
        """Ask the host to run a task; the future has what opens its value, or raises what the call failed with."""
        if os.getpid() != self._pid:
            raise UsageError(
                f"`{task.short_name}` was called from a process that the task started",
                why="only the task's own process may call other tasks; its threads may, too",
                hint="call tasks before or after the parallel part, or let them be the parallel part",
            )
        args, kwargs = self._check(task, args, kwargs)
        place, body, fds, attached = _dump(f"an argument of `{task.name}`", (args, kwargs), self._folders, keep=True)
        future: Future[Callable[[], Any]] = Future()
        with self._lock:
            self._calls += 1
            number = self._calls
            self._waiting[number] = future
            if self._listener is None:
                self._listener = threading.Thread(target=self._listen, name="run-local answers", daemon=True)
                self._listener.start()
        header = {"kind": "CALL", "id": number, "task": task.name, "override": task.overrides, "value": place}
        told = preview_arguments(self._parameters[task.name], args, kwargs, attached)
        self.send({**header, "arguments": told}, body, fds)
        future.add_done_callback(lambda done: self._abandon(number) if done.cancelled() else None)
        return future

    def report(self, mask: Mask, tab: str, html: str, replace: bool) -> None:
        """Send HTML for the report of this call, without what may not be seen in it."""
        if os.getpid() != self._pid:
            raise UsageError(
                "a report was written in a process that the task started",
                why="only the task's own process may write it; its threads may, too",
                hint="return what is to be shown to the task",
            )
        data = mask.data(html.encode(errors="replace"))
        if len(data) > _MOST_OF_A_REPORT:
            data = f"<p>… {len(data) / 2**20:.1f} MiB that were logged at once are too much for a report</p>".encode()
        self.send({"kind": "REPORT", "tab": mask.data(tab.encode()).decode(), "replace": replace}, data)

    def _check(
        self, task: authoring.Task[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Refuse arguments that are missing, unknown or of a wrong type, before anything is sent; paths become paths."""
        if task.name not in self._parameters:
            referred = authoring.REFERRED.get(task.name)
            if isinstance(task, authoring.ReferenceTask):
                self._parameters[task.name] = referred["parameters"] if referred else None
            else:
                self._parameters[task.name] = shapes.describe_parameters(task.function)
        parameters = self._parameters[task.name]
        if parameters is None:  # the host refuses a task that nobody declared
            return args, kwargs
        return shapes.check_call(parameters, args, kwargs, task.name)

    def leave_if_forked(self, status: int) -> None:
        """End a process that the task has forked and that came back here: it is not the one to answer."""
        if os.getpid() != self._pid:
            _finish()
            os._exit(status)

    def _abandon(self, number: int) -> None:
        """Tell the host that nobody waits for this call any more."""
        if self._waiting.pop(number, None) and os.getpid() == self._pid:
            self.send({"kind": "CANCEL", "id": number})

    def _listen(self) -> None:
        reader = FrameReader()
        while True:
            data, fds = receive(self._channel, 64 * 2**10)
            if not data:
                return
            for frame in reader.feed(data, fds):
                future = self._waiting.pop(frame.header["id"], None)
                if future and future.set_running_or_notify_cancel():  # from here on nobody can cancel it
                    self._answer(future, frame)
                else:
                    close_all(frame.fds)

    def _answer(self, future: Future[Callable[[], Any]], frame: Frame) -> None:
        header, body, fds = frame
        if "error" in header:
            error = _task_error(header["error"])
            if "value" in header:
                error.original = self._original(header["value"], body)
            future.set_exception(error)
        else:
            future.set_result(_Unopened(header["value"], body, self._folders, fds))

    def _original(self, place: dict[str, Any], body: bytes) -> Any:
        """The exception that a task raised, as far as it can be opened here."""
        try:
            return payload.load(place, body, self._folders)
        except Exception:  # noqa: BLE001  opening it is user code
            return None


class _Unopened:
    """An answer that nobody has opened yet; one that nobody ever opens keeps no memory."""

    def __init__(self, place: dict[str, Any], body: bytes, folders: payload.Folders, fds: list[int]) -> None:
        self._place, self._body, self._folders, self._fds = place, body, folders, fds

    def __call__(self) -> Any:
        fds, self._fds = self._fds, []
        return payload.load(self._place, self._body, self._folders, fds)

    def __del__(self) -> None:
        close_all(self._fds)


def run(config: dict[str, Any], frame: Frame, channel: socket.socket) -> int:
    """Run the attempt that a TASK frame describes; answers with the exit status of this process."""
    folders = payload.Folders(config["inputs"], config["outputs"], config["private"], config["environment"])
    opaque.HERE[:] = [config["environment"], config["specification"]]
    header, link = frame.header, Link(channel, folders)
    interaction = None
    try:
        interaction = _interaction(frame)
        _prepare(config, header)
        _demand_preloaded(config)
        if interaction and (code := interaction.run_command(config, frame)) is not None:
            return _end_command(link, code, folders)
        task, args, kwargs = load_task(config, frame, folders)
        authoring.CALLER.append(link.submit)
        report.SENDER.append(partial(link.report, Mask(secret_values(header))))
        value = task.function(*args, **kwargs)
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
        link.leave_if_forked(0)
        place, body, fds, attached = _dump(f"the value of `{header['task']}`", value, folders, keep=False)
        link.send({"kind": "RESULT", "value": place, "preview": preview(value, attached)}, body, fds)
        status = 0
    except BaseException as exc:  # noqa: BLE001  user code may raise anything, and all of it is news
        link.leave_if_forked(1)
        if interaction:
            interaction.stop_at(exc, frame)
        _tell(link, exc, header, config, folders)
        status = 1
    _finish()
    return status


def _interaction(frame: Frame) -> Any:
    """What lets somebody sit at an attempt, where somebody does; it is loaded then only."""
    if "interaction" not in frame.header:
        return None
    from executor.worker import interaction  # noqa: PLC0415

    interaction.take_files(frame)
    return interaction


def _end_command(link: Link, code: int, folders: payload.Folders) -> int:
    """Tell how a command ended that ran in the place of a task."""
    place, body, fds, attached = _dump("an exit status", code, folders, keep=False)
    link.send({"kind": "RESULT", "value": place, "preview": preview(code, attached)}, body, fds)
    return 0


def _dump(what: str, value: Any, folders: payload.Folders, *, keep: bool) -> payload.Parcel:
    """A value ready to be sent; raises `NotPicklable`, with what it is, where it cannot be."""
    try:
        return payload.dump(value, folders, keep=keep)
    except (RunLocalError, MemoryError, OSError):
        raise
    except Exception as exc:
        raise NotPicklable(
            f"{what} cannot be sent",
            why=f"{type(exc).__name__}: {exc}",
            hint="what travels between tasks has to pickle: plain data, arrays, objects of classes that can be imported;"
            " an open file, a generator, a lock or a connection does not",
        ) from exc


def run_from(config: dict[str, Any], channel: socket.socket) -> int:
    """Run the attempt whose TASK frame is the first to come through the channel."""
    reader, frames = FrameReader(), list[Frame]()
    while not frames:
        data, fds = receive(channel, 64 * 2**10)
        if not data:
            return 70
        frames += reader.feed(data, fds)
    return run(config, frames[0], channel)


def _demand_preloaded(config: dict[str, Any]) -> None:
    for module, why in NOT_PRELOADED:
        environment = config["environment"]
        hint = f"add its package to {config['specification']}, or take it out of `Reuse(preload=[…])`"
        raise ProjectError(f"`{module}` cannot be preloaded in environment `{environment}`", why=why, hint=hint)


def secret_values(header: dict[str, Any]) -> list[str]:
    """The secrets in a TASK frame."""
    secrets = header.get("secrets", {})
    return [*secrets.get("variables", {}).values(), *secrets.get("files", {}).values()]


def _prepare(config: dict[str, Any], header: dict[str, Any]) -> None:
    """Make this process look like a fresh interpreter started for the task."""
    for name in config["env_vars"]:
        os.environ.pop(name, None)
    os.environ.update(header["env_vars"])
    _take_secrets(header.get("secrets", {}))
    os.chdir(config["work"])
    find_modules(config)
    sys.argv = [header["task"]]
    sys.dont_write_bytecode = True
    kernel.allow_many_files()
    open_streams()


def _take_secrets(secrets: dict[str, Any]) -> None:
    """Give the task its secrets; their folder is one that the agent empties afterwards."""
    os.environ.update(secrets.get("variables", {}))
    for name, value in secrets.get("files", {}).items():
        path = os.path.join(authoring.SECRET_FILES, name)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w", encoding="utf-8") as file:
            file.write(value)


def find_modules(config: dict[str, Any]) -> None:
    """Set `sys.path` to the project's folders and what the environment holds; our own folder is not on it."""
    if sys.path[: len(config["roots"])] != config["roots"]:
        site.main()
        sys.path[:] = [*config["roots"], *(entry for entry in sys.path if entry != _OURS)]


def load_task(
    config: dict[str, Any], frame: Frame, folders: payload.Folders
) -> tuple[authoring.Task[Any, Any], tuple[Any, ...], dict[str, Any]]:
    """The task of a TASK frame, and what it is called with."""
    header, body, fds = frame
    authoring.REFERRED.update(header["references"])
    stubs.install(config["roots"], config["environment"], config["specification"])
    task = importlib.import_module(header["module"])
    for part in header["qualname"].split("."):
        task = getattr(task, part)
    assert isinstance(task, authoring.Task)
    value = payload.load(header["value"], body, folders, fds)
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
    flush_streams()


def _task_error(story: dict[str, Any]) -> TaskError:
    message = shorten(story["message"], _MOST_OF_A_MESSAGE)  # the whole of it stays in the story
    return TaskError(f"task `{story['task']}` failed: {story['code']}: {message}", story["why"], story["hint"], story)


def _tell(
    link: Link, exc: BaseException, header: dict[str, Any], config: dict[str, Any], folders: payload.Folders
) -> None:
    """Send the story of a failure, and what was raised; of one that cannot be told, at least what it is."""
    mask = Mask(secret_values(header))
    raised = _raised(exc, folders)
    if mask.hides(raised[1]):
        raised = {}, b""
    try:
        story = mask.story(_story(exc, header, config))
        told = {"kind": "ERROR", "error": story, "final": isinstance(exc, NonRecoverableError)}
        link.send({**told, **raised[0]}, raised[1])
    except Exception:  # noqa: BLE001  an exception is user code, too
        link.send({"kind": "ERROR", "error": mask.story(_short_story(exc, header, config))})


def _raised(exc: BaseException, folders: payload.Folders) -> tuple[dict[str, Any], bytes]:
    """An exception as a value, where it can be one and is small; of one that passes through, the first."""
    original = exc.original if isinstance(exc, TaskError) and exc.original is not None else exc
    try:
        place, body, fds, _ = payload.dump(original, folders, keep=True)
    except Exception:  # noqa: BLE001  user code
        return {}, b""
    close_all(fds)
    small = place["at"] is None and "fd" not in place and not place["files"]
    return ({"value": place}, body) if small else ({}, b"")


def _story(exc: BaseException, header: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The failure as plain data: what, where, the user's own frames, and the failed call that caused it, if one did."""
    story = _short_story(exc, header, config)
    if isinstance(exc, TaskError) and exc.facts:  # it passes through: its caller asks what it was
        story.update({name: exc.facts.get(name, "") for name in ("code", "message", "why", "hint")})
    elif isinstance(exc, RunLocalError):
        story.update(message=shorten(exc.what), why=shorten(exc.why), hint=shorten(exc.hint))
    return {**story, "traceback": shorten(render_traceback(exc, config["project"])), "cause": _inner_story(exc)}


def _short_story(exc: BaseException, header: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What can be said of any failure whatsoever."""
    try:
        message = str(exc)
    except Exception as failure:  # noqa: BLE001  user code
        message = f"<its text cannot be made: {type(failure).__name__}>"
    return {
        "code": type(exc).__name__,
        "message": shorten(message),
        "why": "",
        "hint": "",
        "task": header["task"],
        "environment": config["environment"],
        "call": header["call"],
        "traceback": "",
        "cause": None,
    }


def _inner_story(exc: BaseException) -> dict[str, Any] | None:
    """The story of the failed call behind an exception, if there is one: of what caused it, or of a group's first."""
    seen: list[int] = []
    front: list[Any] = [exc]
    while front:
        each = front.pop(0)
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        if isinstance(each, TaskError) and each.facts:
            return each.facts
        seen.append(id(each))
        front += [each.__cause__ or each.__context__, *getattr(each, "exceptions", ())]
    return None
