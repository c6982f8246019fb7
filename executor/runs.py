"""One run from its description to its record: build what it needs, then let the engine run it.

    describe → environments → snapshot → inputs → engine → outputs

This is what `run-local WORKFLOW` calls once its command line is parsed, and `executor.run` in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from executor import dockerd, machine, room
from executor.cache import Cache, Done
from executor.data import index
from executor.data.leases import NAME as LEASE
from executor.data.leases import hold_lease, lease_is_held
from executor.data.records import Record, RunView, past_times, read_run
from executor.data.results import Results
from executor.data.snapshot import take_snapshot
from executor.data.store import Blob, Store, Value, full_disk, read_value
from executor.engine import Engine, Listener
from executor.environments import Builder, Built, Lock, Progress, Spec, find_spec, usage
from executor.environments.cuda import driver_complaint
from executor.environments.provided import provided_by_lock
from executor.errors import MachineError, RunLocalError
from executor.events import EnvironmentReady, Fact, RunEnded, RunStarted, Status
from executor.gpus import Found
from executor.manifest import Manifest, TaskEntry, Terms
from executor.missing import check_imports
from executor.mounts import check_mounts
from executor.network import check_networks
from executor.plan import Plan
from executor.reach import Code
from executor.runtimes import Runtime
from executor.runtimes.docker import DockerRuntime
from executor.runtimes.library import worker_library
from executor.runtimes.process import ProcessRuntime
from executor.runtimes.rungs import Rung, demand_full, find_rung
from executor.runtimes.slot import remove_dead_doors
from executor.scheduling.ranks import ranks
from executor.secrets import find_secrets
from executor.terminal import Interaction
from executor.version import VERSION
from executor.worker import folders
from executor.worker.payload import dump_json

RuntimeName = Literal["docker", "process"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to run: a described task and its inputs.

    inputs:  JSON, with the user's files that it names (`{"$file": key}`) in `files`; or a value made of them already
    run:     the id of the run
    fresh:   take nothing from the cache
    resumes: the run that this one goes on with
    locks:   environment → the lock that it is built from, where it is not to be the one that is found
    replays: the run and the call that is made once more; of the run in `resumes`, calls below it are taken over
    terms, interaction: see `plan.Plan`
    isolation: `auto`, or `required` where a run is not to begin unless its tasks are isolated fully
    arguments: what a person sees of inputs that are a value; see `preview.preview_arguments`
    """

    manifest: Manifest
    task: TaskEntry
    inputs: Mapping[str, Any] | Value
    files: Mapping[str, Path] = field(default_factory=dict)
    arguments: Mapping[str, Any] | None = None
    runtime: RuntimeName
    home: Path
    isolation: str = "auto"
    run: str = field(default_factory=lambda: _new_id(time.time()))
    fresh: bool = False
    resumes: RunView | None = None
    locks: Mapping[str, Path] = field(default_factory=dict)
    replays: tuple[str, str] | None = None
    terms: Terms | None = None
    interaction: Interaction | None = None


class Stop:
    """Stops a run from another thread: the first time cleanly, as one Ctrl-C does, and then at once.

    unblock: ends the programs that the making of environments waits for
    """

    def __init__(self, unblock: Callable[[], None] = lambda: None) -> None:
        self._unblock, self._lock = unblock, threading.Lock()
        self._asked: list[str] = []
        self._tell: Callable[[str, bool], None] | None = None

    def __call__(self, reason: str) -> None:
        """Ask for it, and return at once."""
        with self._lock:
            self._asked.append(reason)
            if self._tell:
                self._tell(reason, len(self._asked) > 1)
            else:
                self._unblock()

    def __bool__(self) -> bool:
        """Whether it was asked for."""
        return bool(self._asked)

    def check(self) -> None:
        """Raise `KeyboardInterrupt` where it was asked for."""
        if self._asked:
            raise KeyboardInterrupt(self._asked[0])

    @contextlib.contextmanager
    def reaches(self, engine: Engine) -> Iterator[None]:
        """Let it stop what this task of the event loop waits for."""
        loop, waiting = asyncio.get_running_loop(), asyncio.current_task()
        assert waiting is not None

        def tell(reason: str, at_once: bool) -> None:
            if at_once:
                loop.call_soon_threadsafe(waiting.cancel)
            else:
                loop.call_soon_threadsafe(engine.cancel, reason)

        with self._lock:
            self._tell = tell
            if self._asked:
                tell(self._asked[0], False)
        try:
            yield
        except asyncio.CancelledError:
            self.check()
            raise
        finally:
            with self._lock:
                self._tell = None


def choose_runtime(wanted: str) -> tuple[RuntimeName, str]:
    """The runtime for `auto`, `docker` or `process`, and what is to be said about the choice."""
    if wanted == "process":
        return "process", ""
    try:
        dockerd.connect().close()
    except MachineError as exc:
        if wanted == "docker":
            raise
        return "process", f"{exc.what}: tasks run as isolated processes (`--runtime docker` insists on containers)"
    return "docker", ""


def run_workflow(request: Request, listen: Listener, progress: Progress, stop: Stop | None = None) -> RunView:
    """Run a workflow to its end and answer with what its record says; every slot is gone afterwards.

    stop: how another thread stops it; in the main thread, Ctrl-C does

    Raises `EnvironmentFailed` or `MachineError` where it cannot begin. A task that fails, or an interrupt, is no
    exception here: the view says `failed` or `cancelled`.
    """
    with contextlib.ExitStack() as held:
        with full_disk("the record of the run cannot be written"):
            held.enter_context(usage.hold(request.home, usage.RECORDING))
        return _run_workflow(request, listen, progress, Stop() if stop is None else stop)


def _run_workflow(request: Request, listen: Listener, progress: Progress, stop: Stop) -> RunView:
    names = request.manifest.reachable(request.task.environment)
    request.manifest.check_calls(request.task.name)
    offered = room.offered()
    gpus = room.find_gpus(request.manifest, names)
    room.demand(request.manifest, names, request.home, gpus)
    check_mounts(request.manifest, names, request.runtime, request.home)
    secrets = find_secrets(request.manifest, names, request.runtime, request.home)
    rung = _find_rung(request)
    log_limit = machine.log_limit()
    specs = [replace(find_spec(request.manifest, name), lock=request.locks.get(name)) for name in names]
    home, run = request.home, request.run
    project = take_snapshot(Path(request.manifest.root), home)  # first: building may take minutes, and people edit
    record = Record(home, run)
    ended = False

    def tell(fact: Fact) -> None:
        nonlocal ended
        ended = ended or isinstance(fact, RunEnded)
        record(fact)
        listen(fact)

    def tell_end(status: Status, error: RunLocalError | None = None) -> None:
        if not ended:
            story = {"what": error.what, "why": error.why, "hint": error.hint} if error else None
            tell(RunEnded(status=status, seconds=round(time.monotonic() - began, 3), error=story))

    began = time.monotonic()
    with (
        contextlib.closing(record),
        hold_lease(record.folder) as lease,
        _work_in(record.folder),
        contextlib.ExitStack() as held,
    ):
        store = Store(home, record.folder / "incoming")
        tell(_started(request, run, names, project, rung, store))
        try:
            built = _build(request, specs, store, held, tell, _checked(progress, stop), gpus=gpus)
            stop.check()
            plan = Plan(
                run=run,
                manifest=request.manifest,
                task=request.task,
                inputs=_store_inputs(store, request),
                built=built,
                project=project,
                library=worker_library(home),
                folder=record.folder,
                lease=lease,
                machine=offered,
                cache=_cache(request, store, built, project),
                ranks=ranks(past_times(home, request.task.name)),
                log_limit=log_limit,
                secrets=secrets,
                offline=machine.offline(),
                arguments=_arguments(request),
                terms=request.terms,
                interaction=request.interaction,
            )
        except RunLocalError as exc:
            tell_end("cancelled" if stop else "failed", None if stop else exc)
            if not stop:  # otherwise it is what we ended ourselves that failed
                raise type(exc)(exc.what, exc.why, exc.hint, {**exc.facts, "run": run}) from exc
        except KeyboardInterrupt:
            tell_end("cancelled")
        except BaseException:
            tell_end("failed")
            raise
        else:
            try:
                asyncio.run(_run(plan, request, rung, store, tell, stop))
            except KeyboardInterrupt:
                tell_end("cancelled")
                raise
            finally:
                tell_end("failed")
        view = read_run(home, run)
        _export(store, view)
    index.add_run(home, view)
    return view


@contextlib.contextmanager
def _work_in(folder: Path) -> Iterator[None]:
    """Remove what a run has in its folder only while it runs, however it ends."""
    try:
        yield
    finally:
        _remove_work(folder)


def _remove_work(folder: Path) -> None:
    for name in ("slots", "incoming"):
        folders.remove_tree(str(folder / name))


def _new_id(now: float) -> str:
    """The id of a run that begins now; ids sort as their runs began, also within one second."""
    return time.strftime("%Y%m%d-%H%M%S-", time.localtime(now)) + f"{int(now % 1 * 2**16):04x}"


def result_document(view: RunView) -> Any:
    """The result as JSON, files as paths in the run's outputs; a text of it where it has no JSON form."""
    call = view.root_call
    if call is None or call.preview is None:
        return None
    if "json" not in call.preview:
        return call.preview["text"]
    names = exported_names(call.value or {})

    def resolve(doc: Any) -> Any:
        if isinstance(doc, dict):
            index = doc.get("$file")
            if set(doc) == {"$file"} and isinstance(index, int) and 0 <= index < len(names):
                return str(view.outputs / names[index])
            return {key: resolve(each) for key, each in doc.items()}
        return [resolve(each) for each in doc] if isinstance(doc, list) else doc

    return resolve(call.preview["json"])


async def _run(plan: Plan, request: Request, rung: Rung | None, store: Store, tell: Listener, stop: Stop) -> None:
    runtime: Runtime = (
        ProcessRuntime(request.home, rung, request.isolation) if rung else DockerRuntime(request.home, plan.run)
    )
    engine = Engine(plan, runtime, store, tell)
    with stop.reaches(engine):
        await engine.run()


def _checked(progress: Progress, stop: Stop) -> Progress:
    """The same, and whoever tells it something stops once that was asked for."""

    def tell(environment: str, step: str, detail: str, done: float | None = None) -> None:
        stop.check()
        progress(environment, step, detail, done)

    return tell


def _find_rung(request: Request) -> Rung | None:
    """How processes are isolated here; None for containers. Raises `MachineError` where that is not what is required."""
    if request.runtime != "process":
        return None
    rung = find_rung()
    if request.isolation == "required":
        demand_full(rung)
    return rung


def _started(
    request: Request, run: str, names: Sequence[str], project: Path, rung: Rung | None, store: Store
) -> RunStarted:
    mounts = {name: request.manifest.environments[name].mounts for name in names}
    return RunStarted(
        run=run,
        workflow=request.task.name,
        runtime=request.runtime,
        root=request.manifest.root,
        mounts={name: {each.target: each.source for each in made} for name, made in mounts.items() if made},
        target=f"{request.task.file}:{request.task.name}",
        resumes=request.resumes.id if request.resumes and not request.replays else "",
        replays=" ".join(request.replays or ()),
        isolation=rung.describe() if rung else "",
        snapshot=project.name,
        fresh=request.fresh,
        manifest=store.put_bytes(json.dumps(request.manifest.to_json()).encode()),
        host=_host(request.runtime),
    )


def _cache(request: Request, store: Store, built: Mapping[str, Built], project: Path) -> Cache:
    """What knows which calls of a run need not run."""
    earlier = request.resumes.calls.values() if request.resumes else ()
    return Cache(
        store,
        Results(request.home, store),
        manifest=request.manifest,
        keys={name: made.key for name, made in built.items()},
        reach=Code(project, request.manifest.import_roots, request.manifest).reached,
        done=[
            Done(run=request.resumes.id, call=call.id, key=call.call_key, value=call.value, preview=call.preview)
            for call in earlier
            if request.resumes
            and call.status in ("succeeded", "cached")
            and call.value
            and call.call_key
            and (request.replays is None or call.id.startswith(f"{request.replays[1]}."))
        ],
        fresh=request.fresh,
    )


def _host(runtime: RuntimeName) -> dict[str, Any]:
    """What the record says of this machine; see `RunStarted`."""
    engine = ""
    if runtime == "docker":
        with contextlib.closing(dockerd.connect()) as client:
            engine = dockerd.engine_version(client)
    return {**machine.describe(), "engine": engine, "version": VERSION}


def _arguments(request: Request) -> dict[str, Any] | None:
    """The previews of the inputs, by name; a file of the user's stands as its path."""
    if isinstance(request.inputs, Value):
        if request.resumes and request.resumes.root_call and not request.replays:
            return request.resumes.root_call.arguments
        return dict(request.arguments) if request.arguments is not None else None

    def resolve(doc: Any) -> Any:
        if isinstance(doc, dict):
            key = doc.get("$file")
            if set(doc) == {"$file"} and isinstance(key, str) and key in request.files:
                return str(request.files[key])
            return {name: resolve(each) for name, each in doc.items()}
        return [resolve(each) for each in doc] if isinstance(doc, list) else doc

    return {name: {"json": resolve(each)} for name, each in request.inputs.items()}


def _build(
    request: Request,
    specs: Sequence[Spec],
    store: Store,
    held: contextlib.ExitStack,
    tell: Listener,
    progress: Progress,
    *,
    gpus: Found,
) -> dict[str, Built]:
    """Lock and build every environment that the root call can reach, dependencies first, and hold them while we run."""
    found: dict[str, Lock] = {}

    def ready(made: Built) -> None:
        held.enter_context(usage.hold(request.home, made.key))
        tell(
            EnvironmentReady(
                environment=made.name,
                key=made.key,
                python=made.python,
                seconds=made.seconds,
                image=made.image,
                lock=found[made.name].digest,
                lock_file=store.put_bytes(found[made.name].path.read_bytes()),
                packages=tuple((each.manager, each.name, each.version) for each in found[made.name].packages),
            )
        )

    def locked(locks: Mapping[str, Lock]) -> None:
        found.update(locks)
        provided = {name: provided_by_lock(lock, request.home) for name, lock in locks.items()}
        for report in check_imports(request.manifest, request.task.name, provided):
            for step, detail in report.tell():
                progress(report.environment, step, detail)
        for name, lock in locks.items():
            wants = request.manifest.environments[name].shape.gpus
            if wants and gpus.cuda and (complaint := driver_complaint(lock, gpus.cuda)):
                progress(name, "warning", complaint)

    names = [spec.name for spec in specs]
    for name, warning in check_networks(request.manifest, names, request.runtime, offline=machine.offline()).items():
        progress(name, "warning", warning)
    with contextlib.closing(Builder(request.runtime, request.home, progress)) as builder:
        return builder.build_all(specs, root=Path(request.manifest.root), locked=locked, ready=ready)


def _store_inputs(store: Store, request: Request) -> Value:
    if isinstance(request.inputs, Value):
        return request.inputs
    files = [store.put_file(path, key) for key, path in request.files.items()]
    return Value(Blob(data=dump_json(dict(request.inputs))), files, type="inputs")


def _export(store: Store, view: RunView) -> None:
    """Copy the files of the result to the run's outputs."""
    view.outputs.mkdir(exist_ok=True)
    call = view.root_call
    if call is None or call.value is None:
        return
    for file, name in zip(read_value(call.value).files, exported_names(call.value), strict=True):
        if name:
            store.export(replace(file, name=name), view.outputs)


def exported_names(value: Mapping[str, Any]) -> list[str]:
    """A name of its own in the outputs for each file of a value; none for a blob of its buffers."""
    names: list[str] = []
    for file in value.get("files", ()):
        name, count = str(file["name"]), 1
        while name and name in names:
            count += 1
            name = f"{Path(file['name']).stem}-{count}{Path(file['name']).suffix}"
        names.append(name)
    return names


def remove_dead(home: Path) -> None:
    """Remove what runs that were killed left in their folders, and their sockets; their records stay."""
    remove_dead_doors(home)
    for left in ("slots", "incoming", LEASE):
        for path in home.glob(f"runs/*/{left}"):
            if not lease_is_held(path.parent / LEASE):
                _remove_work(path.parent)
                (path.parent / LEASE).unlink(missing_ok=True)
