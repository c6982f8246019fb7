"""Slots as isolated process trees, for machines without a container engine.

The environment is the same lock as a prefix, the agent is the same, and it is PID 1 of a namespace of its own where the
kernel allows that (see `rungs`, and docs/adr/0018), so a slot dies as a whole here, too. What a process cannot be
promised, and a container is: a memory limit, a file system of its own, another user.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

from executor import machine
from executor.data.store import full_disk
from executor.errors import MachineError
from executor.runtimes import Launch, Loss, gpus
from executor.runtimes.rungs import Rung, bubblewrap, demand_full
from executor.runtimes.slot import Door, Slot, agent_config, common_variables, make_folders
from executor.stories import signal_name
from executor.worker import kernel

_ENDS_S = 5.0
_PASSES = 10  # what is being killed may just have started another


class ProcessRuntime:
    """Starts slots as process trees; `Runtime` says what is promised."""

    name = "process"

    def __init__(self, home: Path, rung: Rung | None = None, isolation: str = "auto") -> None:
        """Start slots on a rung, `namespaces` unless told otherwise; with `required` isolation on no lower one."""
        self._home = home
        self._rung, self._isolation = rung or Rung("namespaces"), isolation
        self._live: dict[Slot, _Tree] = {}

    async def start(self, launch: Launch) -> Slot:
        """Start an agent in the environment's prefix, and wait for it."""
        with full_disk(f"a process of `{launch.environment}` cannot be given its folders"):
            make_folders(launch.folder, machine.user())
        door = Door(self._home, launch.run)
        tree = None
        try:
            with full_disk(f"a process of `{launch.environment}` cannot be started"):
                door.open()
                tree = _Tree(_spawn(launch, door, self._rung))
            hello, line = await door.wait_hello(tree.ended.wait(), lambda: _last_words(launch.folder))
        except BaseException:
            door.close()
            if tree:
                tree.kill()
                await tree.ended.wait()
            raise
        slot = Slot(launch.folder, hello, None, line, tree.pid)
        self._live[slot] = tree
        try:
            _demand_mounted(launch, hello)
            _demand_gpus(launch, hello)
            if self._isolation == "required":
                demand_full(Rung(hello["isolation"], "although it gave some when this run began"))
                _demand_no_network(launch, hello)
        except MachineError:
            await self.stop(slot)
            raise
        return slot

    async def stop(self, slot: Slot) -> None:
        """Hang up, and wait until the tree is gone."""
        slot.hang_up()
        tree = self._live.get(slot)
        if tree:
            await tree.end()
            self._live.pop(slot, None)

    async def explain_loss(self, slot: Slot) -> Loss:
        """What became of an agent that does not answer any more."""
        tree = self._live[slot]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(tree.ended.wait(), _ENDS_S)
        words = await _last_words(slot.folder)
        evidence = {"agent_exit": tree.status, "agent_log": words} if words else {"agent_exit": tree.status}
        return Loss(outcome="lost_agent", why=_why_ended(tree.status), evidence=evidence)

    async def close(self) -> None:
        """End every slot that is left."""
        await asyncio.gather(*(self.stop(slot) for slot in list(self._live)))


def _demand_no_network(launch: Launch, hello: dict[str, Any]) -> None:
    if not launch.network and hello["interfaces"]:
        raise MachineError(
            f"`{launch.environment}` is to have no network, and has one",
            why=f"the kernel refuses a network namespace, which `--isolation required` demands: {hello['interfaces']}",
            hint="use `--runtime docker`, or do without `--isolation required`",
        )


class _Tree:
    """The process tree of a slot, by its first process, which a thread of its own waits for."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.ended = asyncio.Event()
        self.pid = process.pid
        self._process = process
        threading.Thread(target=self._wait, args=(asyncio.get_running_loop(),), daemon=True).start()

    @property
    def status(self) -> int | None:
        """How its first process ended, as `subprocess` tells it; None while that goes on."""
        return self._process.returncode

    async def end(self) -> None:
        """See the tree gone: by itself, since its agent ends when its socket closes, or else by force."""
        try:
            await asyncio.wait_for(self.ended.wait(), _ENDS_S)
        except asyncio.TimeoutError:  # another class before Python 3.11
            self.kill()
            await self.ended.wait()

    def kill(self) -> None:
        """Kill the whole tree, its first process last: without that one, nobody could tell whose the others were."""
        for _ in range(_PASSES):
            for pid in [] if self.ended.is_set() else kernel.descendants(self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.kill()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        with contextlib.suppress(RuntimeError):  # the loop may be closed
            loop.call_soon_threadsafe(self.ended.set)


def _why_ended(status: int | None) -> str:
    if status is None:
        return "its process still runs, and has closed its line"
    number = -status if status < 0 else status - 128
    if number <= 0:
        return f"its first process ended by itself (exit {status})"
    return f"its first process was killed by {signal_name(number)}"


def _demand_mounted(launch: Launch, hello: dict[str, Any]) -> None:
    """Raise `MachineError` where an environment's data is not where it was asked for; it is moved by namespaces only."""
    what = f"data cannot be mounted for `{launch.environment}`"
    moved = [f"`{each.source}` at `{each.target}`" for each in launch.mounts if each.source != each.target]
    broken = [*hello["not_mounted"], *hello["writable_mounts"]]
    if hello["isolation"] == "subreaper" and moved:
        why = f"{', '.join(moved)}: that needs a mount namespace, and the kernel refuses one here"
        hint = "leave the `target` of its `Mount` out, so that tasks find it where it lies, or use `--runtime docker`"
        raise MachineError(what, why, hint)
    if hello["isolation"] != "subreaper" and broken:
        raise MachineError(what, f"the kernel refuses to show it read-only at {', '.join(broken)}")


def _demand_gpus(launch: Launch, hello: dict[str, Any]) -> None:
    if broken := gpus.broken_promises(launch, hello, own_dev=False):
        raise MachineError(
            f"the GPUs of a process of `{launch.environment}` cannot be used",
            why="; ".join(broken),
            hint="`run-local doctor` shows what the driver says",
        )


def _spawn(launch: Launch, door: Door, rung: Rung) -> subprocess.Popen[bytes]:
    assert launch.prefix is not None
    config = _config(launch, door, rung)
    shown = [(folder, folder) for folder in config["read_only"]] + config["mounts"]
    agent = [str(launch.prefix / "bin/python"), "-s", "-S", str(launch.library), json.dumps(config)]
    with (launch.folder / "agent.log").open("wb") as log:
        process: subprocess.Popen[bytes] = machine.spawn(
            [*bubblewrap(shown), *agent] if rung.name == "bubblewrap" else agent,
            env=_environment(launch),
            stdin=subprocess.PIPE,  # which closes when we are gone, whatever became of us
            stdout=log,
            stderr=log,
            cwd=launch.folder,
            start_new_session=True,
        )
    assert process.stdin is not None
    machine.keep_from_forks(process.stdin)
    return process


def _config(launch: Launch, door: Door, rung: Rung) -> dict[str, Any]:
    task = str(launch.folder / "task")
    config = agent_config(
        launch,
        door=door,
        socket=str(door.socket),
        inputs=str(launch.folder / "inputs"),
        task=task,
        scratch=[f"{task}/tmp"],  # noqa: S108  its own
        project=str(launch.project),
        isolation=rung.name,
    )
    return {**config, "read_only": [config["inputs"], str(launch.project), str(launch.library), str(launch.prefix)]}


def _environment(launch: Launch) -> dict[str, str]:
    """The variables of a task: nothing of the user's own shell, so that a run does not depend on it."""
    task = launch.folder / "task"
    return {
        **common_variables(launch.shape),
        "PATH": f"{launch.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(task / "home"),
        "TMPDIR": str(task / "tmp"),
        "CONDA_PREFIX": str(launch.prefix),
        **launch.variables,
        **gpus.into_process(launch, gpus.Driver.here()).variables,
    }


async def _last_words(folder: Path) -> str:
    return (folder / "agent.log").read_text(errors="replace")[-2000:].strip()
