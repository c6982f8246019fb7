"""Slots as isolated process trees, for machines without a container engine.

The environment is the same lock as a prefix, the agent is the same, and it is PID 1 of a namespace of its own where the
kernel allows that (see `worker.launch` for the rungs), so a slot dies as a whole here, too. What a process cannot be
promised, and a container is: a memory limit, a file system of its own, another user.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

from executor import machine
from executor.runtimes import Launch
from executor.runtimes.slot import Door, Slot, agent_config, common_variables, make_folders

_ENDS_S = 5.0


class ProcessRuntime:
    """Starts slots as process trees; `Runtime` says what is promised."""

    name = "process"

    def __init__(self, home: Path) -> None:
        self._home = home
        self._live: dict[Slot, subprocess.Popen[bytes]] = {}

    async def start(self, launch: Launch) -> Slot:
        """Start an agent in the environment's prefix, and wait for it."""
        make_folders(launch.folder, machine.user())
        door = Door(self._home, launch.run)
        process = None
        try:
            await door.open()
            process = self._spawn(launch, door)
            gone = asyncio.to_thread(process.wait)
            hello, line = await door.wait_hello(gone, lambda: _last_words(launch.folder))
        except BaseException:
            door.close()
            if process:
                process.kill()
            raise
        slot = Slot(launch.folder, hello, None, line)
        self._live[slot] = process
        return slot

    async def stop(self, slot: Slot) -> None:
        """Hang up, and wait until the tree is gone."""
        slot.hang_up()
        process = self._live.pop(slot, None)
        if process:
            await asyncio.to_thread(_see_ended, process)

    async def close(self) -> None:
        """End every slot that is left."""
        await asyncio.gather(*(self.stop(slot) for slot in list(self._live)))

    def _spawn(self, launch: Launch, door: Door) -> subprocess.Popen[bytes]:
        assert launch.prefix is not None
        with (launch.folder / "agent.log").open("wb") as log:
            process: subprocess.Popen[bytes] = machine.spawn(
                [str(launch.prefix / "bin/python"), "-I", "-S", str(launch.library), json.dumps(_config(launch, door))],
                env=_environment(launch),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=launch.folder,
                start_new_session=True,
            )
        return process


def _config(launch: Launch, door: Door) -> dict[str, Any]:
    task = str(launch.folder / "task")
    config = agent_config(
        door=door,
        socket=str(door.socket),
        inputs=str(launch.folder / "inputs"),
        task=task,
        scratch=[f"{task}/tmp"],  # noqa: S108  its own
        project=str(launch.project),
        import_roots=launch.import_roots,
        environment=launch.environment,
        isolation="process",
    )
    return {**config, "make": [f"{task}/home"]}


def _environment(launch: Launch) -> dict[str, str]:
    """The variables of a task: nothing of the user's own shell, so that a run does not depend on it."""
    task = launch.folder / "task"
    return {
        **common_variables(launch.shape),
        "PATH": f"{launch.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(task / "home"),
        "TMPDIR": str(task / "tmp"),
        "CUDA_VISIBLE_DEVICES": "",
    }


async def _last_words(folder: Path) -> str:
    return (folder / "agent.log").read_text(errors="replace")[-2000:].strip()


def _see_ended(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_ENDS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
