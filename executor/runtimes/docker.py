"""Slots as containers of the Docker engine, hardened from the start.

`plan` is the one list of all that we ask of the engine for a slot. The agent is PID 1 in there and says in its HELLO
what is really in force; each promise that the engine did not keep refuses the slot (docs/adr/0017). A container ends when
its socket closes, and the engine then removes it, so nothing is left even when run-local is killed outright. What was
created and never started before such a death has a lease that nobody holds any more, and is removed when the next run
begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from executor import dockerd
from executor.authoring import SECRET_FILES
from executor.data.leases import lease_is_held
from executor.data.store import full_disk
from executor.errors import MachineError
from executor.runtimes import Launch, Loss, gpus
from executor.runtimes.slot import Door, Slot, agent_config, common_variables, make_folders
from executor.stories import signal_name
from executor.worker import kernel

NOBODY = 65534
LIBRARY, CONTROL, INPUTS, TASK, PROJECT = "/run-local/lib", "/run-local/ctl", "/run-local/in", "/task", "/project"
PYTHON = "/opt/env/bin/python"

T = TypeVar("T")

_DOCKER = dockerd.Kind()
_PIDS = 4096
_OPEN_FILES = 65536
_PODMAN_PROCESSES = 16384
_LEAST_CPUS = 0.01  # the kernel gives no less
_FILTERED = 2  # what the kernel calls a filter of system calls
_MEMORY_BYTES = 4 * 2**30  # taken for the memory of a slot without a limit
_SECRETS_BYTES = 2**20
_PATIENCE_S = 25
_ENGINE_CALLS_AT_ONCE = 8
_DIES_S = 5.0
_RETURNS_S = 20.0  # an engine that is being started anew, and has kept its containers
_ASKS_AGAIN_S = 1.0
_REMOVED_S = 10
_MOST_EVENTS = 20
_CONFLICT = 409


def task_user(engine: dockerd.Kind = _DOCKER) -> tuple[int, int]:
    """Who tasks run as: the user who called us; for root, nobody, because a task is never root.

    In the containers of a rootless Docker the one who called us is called root, and nobody else is of this machine.
    """
    if engine.rootless and not engine.podman:
        return 0, 0
    return (os.getuid(), os.getgid()) if os.getuid() else (NOBODY, NOBODY)


def _owner(engine: dockerd.Kind) -> int:
    """The user of this machine that what tasks write belongs to."""
    return os.getuid() if engine.rootless else task_user(engine)[0]


def _groups(engine: dockerd.Kind) -> list[int]:
    """The other groups of the user who called us, so that tasks may read what he may; never root's."""
    uid, gid = task_user(engine)
    return [] if engine.rootless or uid != os.getuid() else sorted(set(os.getgroups()) - {0, gid})


def plan(
    launch: Launch, door: Door, engine: dockerd.Kind = _DOCKER, passed: gpus.Passed = gpus.NOTHING
) -> dict[str, Any]:
    """The arguments of `create_container`, `host_config` apart: all that we ask of the engine for a slot."""
    config = agent_config(
        launch,
        door=door,
        socket=f"{CONTROL}/s",
        inputs=INPUTS,
        task=TASK,
        scratch=["/tmp", "/dev/shm"],  # noqa: S108  in the container both are private
        project=PROJECT,
        isolation="container",
    )
    ours = [(str(each), each) for each in (LIBRARY, CONTROL, INPUTS, PROJECT)]
    config["mounts"] = [*ours, *_data(launch)]  # the agent sees to it that all of them are read-only
    config["scratch"] += [SECRET_FILES] * launch.secret_files
    uid, gid = task_user(engine)
    return {
        "image": launch.image,
        "name": f"run-local-{launch.run}-{launch.number}",
        "entrypoint": [],
        "command": [PYTHON, "-s", "-S", LIBRARY, json.dumps(config)],
        "user": f"{uid}:{gid}",
        "working_dir": f"{TASK}/work",
        "hostname": "task",
        "stop_signal": "SIGKILL",
        "healthcheck": None if engine.podman else {"test": ["NONE"]},  # Podman would ask systemd for a timer
        "environment": {**task_environment(launch), **passed.variables},
        "labels": {
            dockerd.LABEL: "slot",
            f"{dockerd.LABEL}.run": launch.run,
            f"{dockerd.LABEL}.lease": str(launch.lease),
            f"{dockerd.LABEL}.environment": launch.environment,
            f"{dockerd.LABEL}.key": launch.key,
        },
        "host_config": {**_plan_host(launch, door.folder, engine, passed), **passed.host},
    }


def task_environment(launch: Launch) -> dict[str, str]:
    """The variables that every task finds. No secret ever goes in here: the engine shows them to whoever may ask."""
    return {
        **common_variables(launch.shape),
        "HOME": f"{TASK}/home",
        "TMPDIR": "/tmp",  # noqa: S108
    }


def _plan_host(launch: Launch, control: Path, engine: dockerd.Kind, passed: gpus.Passed) -> dict[str, Any]:
    shape, memory = launch.shape, _memory_limit(launch)
    tmpfs = {"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={_tmp_bytes(launch)}"}  # noqa: S108
    if engine.podman:  # it makes these writable in every read-only container
        tmpfs.update(dict.fromkeys(("/run", "/var/tmp"), "ro,nosuid,nodev,size=4096"))  # noqa: S108
    if launch.secret_files:
        tmpfs[SECRET_FILES] = f"rw,noexec,nosuid,nodev,mode=1777,size={_SECRETS_BYTES}"
    return {
        "network_mode": "bridge" if launch.network else "none",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "pids_limit": _PIDS,
        "mem_limit": memory,
        "memswap_limit": memory,
        "nano_cpus": int(max(shape.cpus_limit, _LEAST_CPUS) * 1e9),
        "group_add": [str(group) for group in _groups(engine)],
        "init": False,
        "auto_remove": True,
        "oom_score_adj": 500,
        "ipc_mode": "private",
        "shm_size": shape.shm_bytes or (memory or _MEMORY_BYTES) // 4,
        "tmpfs": tmpfs,
        "ulimits": _ulimits(engine),
        "log_config": {"type": "none", "config": {}},
        "mounts": [
            dockerd.bind(launch.library, LIBRARY),
            dockerd.bind(control, CONTROL),
            dockerd.bind(launch.project, PROJECT),
            dockerd.bind(launch.folder / "inputs", INPUTS),
            dockerd.bind(launch.folder / "task", TASK, writable=True),
            *(dockerd.bind(Path(source), target) for source, target in _data(launch)),
            *(dockerd.bind(source, target) for source, target in passed.binds),
        ],
    }


def _ulimits(engine: dockerd.Kind) -> list[dict[str, Any]]:
    """Limits of each process: an engine that has no right to raise limits can give what we have, and no more.

    Podman would ask for more processes than it may, so it is told how many; they count for all of a user together.
    """
    limits = {"core": 0, "nofile": _hard_limit(resource.RLIMIT_NOFILE, _OPEN_FILES)}
    if engine.podman:
        limits["nproc"] = _hard_limit(resource.RLIMIT_NPROC, _PODMAN_PROCESSES)
    return [{"Name": name, "Soft": limit, "Hard": limit} for name, limit in limits.items()]


def _hard_limit(kind: int, most: int) -> int:
    ours = resource.getrlimit(kind)[1]
    return most if ours == resource.RLIM_INFINITY else min(ours, most)


def _data(launch: Launch) -> list[tuple[str, str]]:
    """Each mount of an environment, as its source here and its target in the container.

    A read-only mount shows nothing of what is mounted below its source (see `dockerd.bind`), so that is mounted, too.
    """
    binds = []
    for mount in launch.mounts:
        real = os.path.realpath(mount.source)
        binds += [(path, mount.target + path[len(real) :]) for path in (real, *kernel.mounted_below(real))]
    return binds


def _memory_limit(launch: Launch) -> int | None:
    """The memory that a slot may use, in whole pages, because that is how the kernel counts it."""
    asked = launch.shape.memory_limit_bytes
    return None if asked is None else asked - asked % os.sysconf("SC_PAGE_SIZE")


def _tmp_bytes(launch: Launch) -> int:
    """How much /tmp holds: half of the memory, which it is a part of."""
    return _in_pages((_memory_limit(launch) or _MEMORY_BYTES) // 2)


def _in_pages(size: int) -> int:
    """The size of a file system in memory, which is made of whole pages."""
    return -(-size // os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PAGE_SIZE")


def broken_promises(launch: Launch, hello: dict[str, Any], engine: dockerd.Kind = _DOCKER) -> list[str]:
    """What the engine was asked for and is not in force, as the agent sees it; nothing is taken on trust.

    hello: what it says, and as `owner` whom a folder that it made belongs to on this machine
    """
    asked = _plan_host(launch, Path(), engine, gpus.NOTHING)
    uid, gid = task_user(engine)
    groups = set(map(int, asked["group_add"]))
    ours = {TASK, "/tmp", "/dev/shm", "/dev/mqueue", *asked["tmpfs"]}  # noqa: S108
    cpus, files = asked["nano_cpus"] / 1e9, asked["ulimits"][1]["Hard"]
    promises = [
        (hello["pid"] == 1, "the agent is not PID 1"),
        ((hello["uid"], hello["gid"]) == (uid, gid), f"tasks run as {hello['uid']}:{hello['gid']}, not {uid}:{gid}"),
        (hello["owner"] == _owner(engine), f"what tasks write belongs to user {hello['owner']}"),
        (groups <= set(hello["groups"]), f"tasks lack the groups {sorted(groups - set(hello['groups']))}"),
        (0 not in hello["groups"], "tasks are in root's group"),
        (hello["capabilities"] == 0, "capabilities were not dropped"),
        (hello["capabilities_bounding"] == 0, "capabilities could be gained again"),
        (hello["no_new_privileges"], "`no-new-privileges` is not in force"),
        (hello["seccomp"] == _FILTERED, "system calls are not filtered (seccomp)"),
        (hello["root_read_only"], "the root file system is writable"),
        (hello["pids_limit"] == asked["pids_limit"], f"the limit of processes is {_told(hello['pids_limit'])}"),
        (_near(hello["cpu_limit"], cpus), f"the limit of cores is {_told(hello['cpu_limit'])}, not {cpus:g}"),
        (hello["shm_bytes"] == _in_pages(asked["shm_size"]), f"the size of /dev/shm is {_told(hello['shm_bytes'])}"),
        (hello["tmp_bytes"] == _tmp_bytes(launch), f"the size of /tmp is {_told(hello['tmp_bytes'])}"),
        (hello["tmp_mode"] == 0o1777, "not everybody may write to /tmp"),
        (hello["core"] == 0, "processes that crash may leave a core file"),
        (hello["open_files"] == files, f"the limit of open files is {hello['open_files']}, not {files}"),
        (launch.network or not hello["interfaces"], f"there is a network ({', '.join(hello['interfaces'])})"),
        *_memory_promises(launch, hello),
        *((False, f"`{target}` can be written to") for target in hello["writable_mounts"]),
        *((False, f"`{place}` can be written to") for place in hello["writable_places"] if place not in ours),
    ]
    broken = [text for kept, text in promises if not kept]
    return list(dict.fromkeys(broken + gpus.broken_promises(launch, hello, own_dev=True)))


def _memory_promises(launch: Launch, hello: dict[str, Any]) -> list[tuple[bool, str]]:
    """Swap counts where the kernel counts it; on a machine where it does not, a task may use all that there is."""
    memory, swap = _memory_limit(launch), hello["swap_limit_bytes"]
    if memory is None:
        return []
    seen = hello["memory_limit_bytes"]
    return [
        (seen == memory, f"the limit of memory is {_told(seen)}, not {memory} bytes"),
        (swap in (None, 0), f"tasks may use swap beside their memory (up to {swap} bytes)"),
    ]


def _told(limit: float | None) -> str:
    return "none" if limit is None else str(round(limit, 4))


def _near(cpus: float | None, asked: float) -> bool:
    """Whether two shares are the same: the kernel counts in microseconds of each tenth of a second."""
    return cpus is not None and abs(cpus - asked) <= 1e-4


class DockerRuntime:
    """Starts slots as containers; `Runtime` says what is promised."""

    name = "docker"

    def __init__(self, home: Path, run: str, patience_s: int = _PATIENCE_S) -> None:
        """Start slots of a run. patience_s: how long the engine may take for one request."""
        self._home, self._run = home, run
        self._loop = asyncio.get_running_loop()
        client = dockerd.connect(patience_s)
        self._api, self._engine = client.api, dockerd.kind_of(client)
        self._threads = ThreadPoolExecutor(_ENGINE_CALLS_AT_ONCE, thread_name_prefix="docker")
        self._containers: dict[str, _Container] = {}
        self._lost = ""  # why the engine was given up
        self._silent = False  # whether its last request was not answered
        self._returning: asyncio.Task[None] | None = None
        self._driver = gpus.Driver.here()
        self._offer: gpus.Offer | None = None
        self._way = ""  # how this run passes GPUs, once a slot has seen that it works
        self._choosing = asyncio.Lock()
        self._remove_dead()
        self._watch = self._make_watch()

    async def start(self, launch: Launch) -> Slot:
        """Create and start a container, and wait for its agent; one with GPUs in the first way that works."""
        if not launch.gpus:
            return await self._start_slot(launch, gpus.NOTHING)
        async with self._choosing:
            if not self._way:
                return await self._start_first(launch)
        passed = await self._passed(self._way, launch)
        if isinstance(passed, str):
            raise gpus.refused(launch.environment, {self._way: passed})
        return await self._start_slot(launch, passed)

    async def _start_first(self, launch: Launch) -> Slot:
        """Start a slot in one way after the other, until the devices work in it; keep that way for the run."""
        said = {}
        for way in gpus.WAYS:
            shutil.rmtree(launch.folder, ignore_errors=True)
            passed = await self._passed(way, launch)
            if isinstance(passed, str):
                said[way] = passed
                continue
            try:
                slot = await self._start_slot(launch, passed)
            except MachineError as exc:
                if "outcome" in exc.facts:  # no fault of the way
                    raise
                said[way] = exc.why or exc.what
            else:
                self._way = way
                return slot
        raise gpus.refused(launch.environment, said)

    async def _passed(self, way: str, launch: Launch) -> gpus.Passed | str:
        if self._offer is None:
            self._offer = await self._ask(self._ask_offer)
        passed = await self._ask(gpus.WAYS[way], launch.gpus, self._offer, self._driver)
        if isinstance(passed, str):
            return passed
        with full_disk(f"a container of `{launch.environment}` cannot be given the driver"):
            return gpus.prepare(passed, launch)

    async def _start_slot(self, launch: Launch, passed: gpus.Passed) -> Slot:
        with full_disk(f"a container of `{launch.environment}` cannot be given its folders"):
            make_folders(launch.folder, (os.getuid(), os.getgid()) if self._engine.rootless else task_user())
        door = Door(self._home, launch.run)
        asked = plan(launch, door, self._engine, passed)
        container = None
        try:
            with full_disk(f"the socket of a container of `{launch.environment}` cannot be opened"):
                door.open()
            if self._lost:
                raise MachineError(
                    f"a container of `{launch.environment}` could not be made",
                    why=f"the Docker engine does not answer any more: {self._lost}",
                    hint="is it still running?",
                    facts={"outcome": "lost_engine"},
                )
            container = await self._make(launch.environment, asked)
            await self._ask(self._start, launch.environment, container.id)
            hello, line = await door.wait_hello(container.died.wait(), lambda: self._ask(self._run_to_its_end, asked))
        except BaseException:
            door.close()
            if container:
                await self._ask(self._force_removal, container.id)
                self._containers.pop(container.id, None)
            raise
        slot = container.slot = Slot(launch.folder, hello, container.id[:12], line)
        owner = (launch.folder / "task" / "home").stat().st_uid
        broken = broken_promises(launch, {**hello, "owner": owner}, self._engine)
        if broken:
            await self.stop(slot)
            raise MachineError(
                f"a container of `{launch.environment}` was refused",
                why="the engine did not keep what it was asked for: " + "; ".join(broken),
                hint="`run-local doctor` shows what this engine can do; `--runtime process` does without it",
            )
        return slot

    async def stop(self, slot: Slot) -> None:
        """Hang up, and wait until the engine has removed the container."""
        slot.hang_up()
        if container := self._container_of(slot):
            await self._remove(container)

    async def explain_loss(self, slot: Slot) -> Loss:
        """What became of a container whose agent does not answer any more, as the engine tells it."""
        container = self._container_of(slot)
        if container is None:
            return Loss(outcome="lost_agent", why="its container is gone")
        if not self._lost:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(container.died.wait(), _DIES_S)
        told = bool(container.events) and not self._returning  # an engine that stops ends its containers first
        answers: bool = told or await self._ask(_engine_answers)
        if self._lost or not answers:
            return Loss(outcome="lost_engine", why=self._lost or "it does not answer any more")
        return container.explain()

    def _container_of(self, slot: Slot) -> _Container | None:
        return next((each for each in self._containers.values() if each.id[:12] == slot.container), None)

    async def close(self) -> None:
        """Remove every container that is left."""
        for container in self._containers.values():
            if container.slot:
                container.slot.hang_up()
        await asyncio.gather(*(self._remove(container) for container in list(self._containers.values())))
        if self._returning:
            self._returning.cancel()
        self._watch.close()
        self._threads.shutdown()
        self._api.close()

    # -- the engine ----------------------------------------------------------------------------------------------------

    async def _ask(self, call: Callable[..., T], *args: Any) -> T:
        try:
            answer = await self._loop.run_in_executor(self._threads, call, *args)
        except MachineError as exc:
            self._silent = exc.facts.get("outcome") == "lost_engine"
            raise
        self._silent = False
        return answer

    def _make_watch(self) -> dockerd.Watch:
        return dockerd.Watch(self._api, f"{dockerd.LABEL}.run={self._run}", self._notice, self._loop)

    def _lose(self, why: str) -> None:
        """Give the engine up: whatever runs on it ends with its line."""
        self._lost = why
        for container in self._containers.values():
            if container.slot:
                container.slot.hang_up()

    async def _wait_for_return(self) -> None:
        """The engine has closed the stream of its events. It may be back in a moment, with all its containers."""
        deadline, why = self._loop.time() + _RETURNS_S, ""
        while self._loop.time() < deadline:
            await asyncio.sleep(_ASKS_AGAIN_S)
            try:
                await self._loop.run_in_executor(self._threads, _demand_engine)
                self._watch = await self._loop.run_in_executor(self._threads, self._make_watch)
            except MachineError as exc:
                why = exc.why
            else:
                self._returning = None
                return
        self._lose(why)

    async def _make(self, environment: str, asked: dict[str, Any]) -> _Container:
        """Create a container; when cancelled meanwhile, wait for its id all the same, and remove it."""
        creating = asyncio.ensure_future(self._ask(self._create, environment, asked))
        try:
            container = _Container(await asyncio.shield(creating), asked["host_config"]["mem_limit"])
        except asyncio.CancelledError:
            await self._ask(self._force_removal, await creating)
            raise
        self._containers[container.id] = container
        return container

    def _notice(self, container: str, event: str, detail: str) -> None:
        """Take note of an event of the engine, on the loop's thread."""
        if not container:
            self._returning = asyncio.ensure_future(self._wait_for_return())
        elif container in self._containers:
            self._containers[container].notice(event, detail)

    def _ask_offer(self) -> gpus.Offer:
        with dockerd.translated("the engine cannot be asked what it is"):
            return gpus.offer(self._api.info(), podman=self._engine.podman)

    def _create(self, environment: str, asked: dict[str, Any]) -> str:
        """Create a container; once more where the engine failed, which may have made it all the same: names are unique."""
        with dockerd.translated(f"a container of `{environment}` could not be made"):
            host = self._api.create_host_config(**asked["host_config"])
            if self._engine.podman and self._engine.rootless:
                host["UsernsMode"] = "keep-id"  # which the SDK does not know: so the caller's id means the caller
            arguments = {**asked, "host_config": host}
            try:
                return str(self._api.create_container(**arguments)["Id"])
            except dockerd.APIError as exc:
                if not exc.is_server_error() and exc.status_code != _CONFLICT:
                    raise
            self._force_removal(asked["name"])
            try:
                return str(self._api.create_container(**arguments)["Id"])
            except dockerd.APIError:
                self._force_removal(asked["name"])
                raise

    def _start(self, environment: str, container: str) -> None:
        with dockerd.translated(f"a container of `{environment}` could not be started"):
            dockerd.again(lambda: self._api.start(container))

    async def _remove(self, container: _Container) -> None:
        """See a container gone: by itself, since its agent ends when its socket closes, or else by force.

        Without an engine nobody tells us of the end, and nobody could use force.
        """
        if self._lost or self._returning or self._silent:
            self._containers.pop(container.id, None)
            return
        try:
            await asyncio.wait_for(container.died.wait(), _DIES_S)
            await asyncio.wait_for(container.removed.wait(), _REMOVED_S)
        except asyncio.TimeoutError:  # another class before Python 3.11
            await self._ask(self._force_removal, container.id)
        self._containers.pop(container.id, None)

    def _force_removal(self, container: str) -> None:
        """Remove a container by its id or name, whatever state it is in."""
        if not self._silent:
            with contextlib.suppress(MachineError), dockerd.translated("a container could not be removed"):
                dockerd.again(lambda: self._api.remove_container(container, force=True, v=True))

    def _run_to_its_end(self, asked: dict[str, Any]) -> str:
        """Why an agent did not come up: start the same once more, and read what it prints."""
        host = {**asked["host_config"], "auto_remove": False, "log_config": {"type": "json-file", "config": {}}}
        container = ""
        try:
            container = self._create("diagnosis", {**asked, "name": asked["name"] + "-why", "host_config": host})
            with dockerd.translated("its second start failed, too"):
                self._api.start(container)
                self._api.wait(container, timeout=_REMOVED_S)
                text: str = self._api.logs(container).decode(errors="replace")[-2000:]
        except MachineError as exc:
            text = str(exc)
        finally:
            if container:
                self._force_removal(container)
        return text.strip()

    def _remove_dead(self) -> None:
        """Remove containers whose run-local is gone: those whose lease nobody holds."""
        with dockerd.translated("containers could not be listed"):
            found = dockerd.again(lambda: self._api.containers(all=True, filters={"label": f"{dockerd.LABEL}=slot"}))
        for each in found:
            lease = each["Labels"].get(f"{dockerd.LABEL}.lease", "")
            if lease and not lease_is_held(Path(lease)):
                self._force_removal(each["Id"])


class _Container:
    """A container of ours, and what the engine's events said of it."""

    def __init__(self, id: str, memory_limit: int | None = None) -> None:
        self.id = id
        self.slot: Slot | None = None
        self.events: list[str] = []
        self.died = asyncio.Event()
        self.removed = asyncio.Event()
        self._memory_limit = memory_limit
        self._exit = ""
        self._killed_by = ""

    def notice(self, event: str, detail: str) -> None:
        """Take note of an event."""
        if len(self.events) < _MOST_EVENTS:
            self.events.append(f"{event} {detail}".strip())
        if event == "kill" and detail.isdigit():
            self._killed_by = signal_name(int(detail))
        elif event == "die":
            self._exit = detail
            self.died.set()
        elif event == "destroy":
            self.died.set()
            self.removed.set()

    def explain(self) -> Loss:
        """Why its line closed. An agent that is killed for want of memory cannot tell that itself."""
        evidence: dict[str, Any] = {"events": list(self.events)}
        if "oom" in self.events and not self._killed_by:
            limit = {"memory_limit_bytes": self._memory_limit, "oom_kills": self.events.count("oom")}
            return Loss(outcome="oom", why="", evidence={**evidence, **limit, "oom_task": True})
        if self._killed_by:
            why = f"somebody removed its container, or killed it ({self._killed_by}), through the engine"
        elif self._exit:
            why = f"its container ended by itself (exit {self._exit}): nobody asked the engine for that"
        else:
            why = "its agent closed the line, and the engine knows of no end of its container"
        return Loss(outcome="lost_agent", why=why, evidence=evidence)


def _demand_engine() -> None:
    """Raise `MachineError` where no engine answers."""
    dockerd.connect().close()


def _engine_answers() -> bool:
    try:
        _demand_engine()
    except MachineError:
        return False
    return True
