"""Runs in a thread of the user's own process: what `executor.run` starts.

    describe (a child process) → the inputs as a stored value → runs.run_workflow, in the thread → the value, opened here

The one module on the host that pickles and opens values: those of the process that the user's own code runs in, for that
code. What runs on the command line's behalf never comes here.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from executor import api, machine, page, runs
from executor.authoring import Task
from executor.console import ConsoleView, render_failure
from executor.data.leases import scratch_folder
from executor.data.records import CallView, RunView, read_run
from executor.data.store import Store, Value, read_value
from executor.describe import describe
from executor.errors import MissingModule, RunLocalError, TaskError, UsageError
from executor.manifest import TaskEntry
from executor.stories import outcome_story
from executor.worker import opaque, payload, shapes
from executor.worker.preview import preview_arguments

#: Runs that go on, and those that failed without anybody having asked for it.
_UNSEEN: dict[str, _Started] = {}


def start(
    task: Task[Any, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    runtime: str,
    verbose: bool,
    isolation: str | None,
) -> Any:
    """Start a run of a task with inputs that were checked; see `api.run`."""
    isolation = machine.isolation(isolation)
    file = _file_of(task)
    manifest, entry = describe(f"{file}:{task.name}", file.parent)
    _refuse_changed(task, entry, file)
    home = machine.home()
    runs.remove_dead(home)
    chosen, note = runs.choose_runtime(runtime)
    with _as_tasks_know_it(task.__module__, entry.module), scratch_folder(home / "tmp") as scratch:
        inputs = _store_values(Store(home, scratch), args, kwargs, scratch)
        told = preview_arguments(shapes.describe_parameters(task.function), args, kwargs, {})
    request = runs.Request(
        manifest=manifest,
        task=entry,
        inputs=inputs,
        arguments=told,
        runtime=chosen,
        home=home,
        isolation=isolation,
    )
    return _Started(request, script=task.__module__, verbose=verbose, note=note)


def load(run: str) -> _Recorded:
    """A run of the past, or one of this process that goes on; see `api.Run.load`."""
    view = read_run(machine.home(), run)
    return _UNSEEN.get(view.id) or _Recorded(machine.home(), view.id)


def _file_of(task: Task[Any, Any]) -> Path:
    """The file to describe a task by."""
    file = getattr(sys.modules.get(task.__module__), "__file__", None)
    if not file or not Path(file).is_file():
        raise UsageError(
            f"task `{task.name}` is in no file",
            why="it was declared in a notebook or at a prompt, and containers import tasks from your project's source",
            hint="put it into a .py file of your project, and import it from there",
        )
    return Path(file).resolve()


def _refuse_changed(task: Task[Any, Any], entry: TaskEntry, file: Path) -> None:
    mine, theirs = list(shapes.signature(task.function).parameters), [each.name for each in entry.parameters]
    if mine != theirs:
        raise UsageError(
            f"`{file.name}` has changed since it was imported here",
            why=f"`{task.short_name}` has the parameters {', '.join(theirs) or 'none'} now, and had {', '.join(mine)}",
            hint="import it anew: start Python again, or the notebook's kernel",
        )


class _Recorded(api.Run[Any]):
    """A run as its record tells it."""

    def __init__(self, home: Path, run: str) -> None:
        self.id = run
        self.outputs = home / "runs" / run / "outputs"
        self._home = home
        self._value: list[Any] = []

    @property
    def status(self) -> str:
        return self._view().status

    @property
    def calls(self) -> list[CallView]:
        return list(self._view().calls.values())

    @property
    def report(self) -> Path:
        return page.write_page(self._view(), self._home, None)

    def done(self) -> bool:
        return self.status != "running"

    def wait(self, timeout: float | None = None) -> bool:
        if not self.done():
            raise UsageError(f"run {self.id} cannot be waited for here", why="it runs in another process")
        return True

    def result(self, timeout: float | None = None) -> Any:
        if not self.wait(timeout):
            raise TimeoutError(f"run {self.id} is not over after {timeout:g} s")
        if not self._value:
            self._value.append(self._open())
        return self._value[0]

    def cancel(self) -> None:
        if not self.done():
            raise UsageError(f"run {self.id} cannot be cancelled here", why="it runs in another process")

    def _view(self) -> RunView:
        return read_run(self._home, self.id)

    def _open(self) -> Any:
        view = self._view()
        if view.status == "succeeded" and view.root_call and view.root_call.value:
            files = [view.outputs / name for name in runs.exported_names(view.root_call.value)]
            return _open_value(self._home, view.root_call.value, files)
        raise _failure(view)


class _Started(_Recorded):
    """A run of this process, which a thread carries out."""

    def __init__(self, request: runs.Request, *, script: str, verbose: bool, note: str) -> None:
        super().__init__(request.home, request.run)
        self._request, self._script, self._note = request, script, note
        self._stop, self._over = runs.Stop(self._end_building), threading.Event()
        self._broke: BaseException | None = None
        beside = next((other._shown for other in _UNSEEN.values() if not other.done()), None)
        self._shown: ConsoleView = ConsoleView(verbose=verbose, beside=beside)
        _UNSEEN[self.id] = self
        threading.Thread(target=self._carry_out, name=f"run {self.id}", daemon=True).start()

    @property
    def status(self) -> str:
        if not self._over.is_set():
            return "running"
        self._see()
        if self._broke:
            return "failed"
        return self._view().status

    @property
    def calls(self) -> list[CallView]:
        return super().calls if self.outputs.parent.exists() else []

    def done(self) -> bool:
        return self._over.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        try:
            over = self._over.wait(timeout)
        except KeyboardInterrupt:
            self.interrupt()
            self._see()
            raise
        if over:
            self._see()
            if self._broke:
                raise self._broke
        return over

    def cancel(self) -> None:
        self._cancel("cancel")

    def interrupt(self) -> None:
        """Ctrl-C: stop it cleanly, and return when that is done; a second one stops it at once."""
        self._cancel("SIGINT")
        try:
            self._over.wait()
        except KeyboardInterrupt:
            self._cancel("SIGINT")
            self._over.wait()

    def finish(self) -> None:
        """See it to its end when the script comes to its own, and tell of a failure that nobody asked for."""
        try:
            self._over.wait()
        except KeyboardInterrupt:
            self.interrupt()
        if self._broke:
            sys.stderr.write(f"error: {self._broke}\n")
        elif (view := self._view()).status == "failed":
            sys.stderr.write(f"error: {_failure(view)}\n")

    def _carry_out(self) -> None:
        try:
            with self._shown as view:
                if self._note:
                    view.say(self._note, "yellow")
                runs.run_workflow(self._request, view, view.progress, self._stop)
        except KeyboardInterrupt:
            pass  # the record says that it was cancelled
        except BaseException as exc:  # noqa: BLE001  whoever waits for it gets it
            self._broke = exc
        finally:
            self._over.set()

    def _cancel(self, reason: str) -> None:
        if not self._over.is_set():
            self._stop(reason)

    def _end_building(self) -> None:
        """Unless another run goes on, whose programs cannot be told from ours: then the next step of it is the end."""
        if all(other is self or other.done() for other in list(_UNSEEN.values())):
            machine.end_children()

    def _see(self) -> None:
        _UNSEEN.pop(self.id, None)

    def _open(self) -> Any:
        with _as_tasks_know_it(self._script, self._request.task.module):
            return super()._open()


def _failure(view: RunView) -> RunLocalError:
    """What a run that did not succeed raises in whoever asks for its result."""
    call = view.root_call
    if view.error:
        return RunLocalError(view.error["what"], view.error["why"], view.error["hint"], {"run": view.id})
    story = call.error if call else None
    if story is None:
        outcome = "cancelled" if view.status == "cancelled" else "lost_agent"
        story = outcome_story(outcome, task=view.workflow, environment=view.workflow.partition(".")[0], call="1")
    told = f"`run-local show {view.id}` tells more, `run-local logs {view.id}` what the tasks printed"
    error = TaskError(render_failure(story), hint=told, facts={**story, "run": view.id})
    if call and call.raised:
        with contextlib.suppress(Exception):  # opening it is user code
            error.original = _open_stored(view.folder.parent.parent, call.raised, [])
    return error


def _wait_for_runs() -> None:
    """At the end of the script: wait for what it started; after a Ctrl-C that it died of, stop it."""
    left = list(_UNSEEN.values())
    if getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1"):
        for run in left:
            run.interrupt()
    for run in left:
        run.finish()


# Not `atexit`: that comes when no thread can be started any more, and a run starts some until its end. What is registered
# last is called first, so `concurrent.futures`, which the engine imports, still works then.
threading._register_atexit(_wait_for_runs)  # type: ignore[attr-defined]


# -- values ------------------------------------------------------------------------------------------------------------


def _store_values(store: Store, args: tuple[Any, ...], kwargs: dict[str, Any], scratch: Path) -> Value:
    """The inputs of a root call. A `pathlib.Path` to a file or folder of this machine travels by content.

    scratch: a folder that is there for as long as this takes, on the file system of the store
    """
    folders = payload.Folders(str(scratch / "inputs"), str(scratch), [])
    folders.private = [""]  # above every file
    place, body, fds, _ = payload.dump((args, kwargs), folders, keep=True)
    value = store.receive(place, body, fds, scratch, {})
    value.commit(store)
    return value


def _open_stored(home: Path, told: dict[str, Any], files: list[Path]) -> Any:
    """The value that a record speaks of; what is attached to it under a name lies at `files`."""
    store, stored = Store(home, home / "tmp"), read_value(told)
    place: dict[str, Any] = {"at": str(store.path(stored.sha256)), "type": stored.type, "files": []}
    for each, file in zip(stored.files, files, strict=True):
        place["files"].append({"name": each.name, "at": str(file if each.name else store.path(each.sha256))})
    return payload.load({**place, "environment": stored.environment}, b"", payload.Folders("/", "/", []))


def _open_value(home: Path, told: dict[str, Any], files: list[Path]) -> Any:
    """The same of a result; raises `MissingModule` where all of it is a handle."""
    value = _open_stored(home, told, files)
    info = opaque.opaque_info(value)
    if info:
        raise MissingModule(
            f"the result is of type `{info.type}`, and cannot be opened here",
            why=f"this Python does not hold `{info.module}`" if info.module else "",
            hint="install it here, or let the task return plain data",
        )
    return value


@contextlib.contextmanager
def _as_tasks_know_it(mine: str, theirs: str) -> Iterator[None]:
    """Let what a script defines itself have the names by which tasks import it, while values are pickled or opened.

    mine:   the module's name in this process, `__main__` for the script
    theirs: its name in containers
    """
    if mine != "__main__" or theirs == mine:
        yield
        return
    main = sys.modules[mine]
    kinds = (type, types.FunctionType, Task)
    renamed = [each for each in vars(main).values() if isinstance(each, kinds) and each.__module__ == mine]
    stands_in = sys.modules.setdefault(theirs, main) is main
    for each in renamed:
        each.__module__ = theirs
    try:
        yield
    finally:
        for each in renamed:
            each.__module__ = mine
        if stands_in:
            del sys.modules[theirs]
