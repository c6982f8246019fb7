"""The names of runs, and who holds them."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from executor import runs
from executor.data.leases import NAME, hold_lease, lease_is_held
from executor.errors import MachineError
from executor.events import Fact, RunEnded
from executor.manifest import EnvironmentEntry, Manifest, Shape, TaskEntry
from executor.runtimes.slot import Door, remove_dead_doors


def test_ids_sort_as_their_runs_began() -> None:
    """`last` is the newest run, also of several within one second."""
    began = 1_700_000_000.0
    ids = [runs._new_id(began + step / 1000) for step in range(2000)]
    assert ids == sorted(set(ids))


def test_a_lease_is_held_from_the_moment_it_has_its_name(tmp_path: Path) -> None:
    """While it is held others see that; afterwards nothing of it is there."""
    with hold_lease(tmp_path) as lease:
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
        assert lease_is_held(lease)
    assert list(tmp_path.iterdir()) == []
    assert not lease_is_held(lease)


def request(folder: Path) -> runs.Request:
    """A run of a task that is never reached."""
    (folder / "project" / "envs" / "leaf").mkdir(parents=True)
    (folder / "project" / "envs" / "leaf" / "environment.yml").write_text("dependencies: [python]\n")
    shape = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=None, gpus=0, gpu_model="", shm_bytes=None)
    leaf = EnvironmentEntry(
        name="leaf", image=None, depends_on=(), extends=(), shape=shape, env_vars={}, file="flow.py", line=1
    )
    work = TaskEntry(
        name="leaf.work", environment="leaf", module="flow", qualname="work", file="flow.py", line=1, doc="",
        parameters=(), retries=0, timeout_s=None,
    )  # fmt: skip
    root = str(folder / "project")
    manifest = Manifest(root=root, import_roots=(".",), environments={"leaf": leaf}, tasks={"leaf.work": work})
    return runs.Request(manifest=manifest, task=work, inputs={}, files={}, runtime="process", home=folder / "home")


@pytest.mark.parametrize("where", ["_build", "_run"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MachineError("no disk")])
def test_a_run_that_breaks_leaves_its_record_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    """Whatever it was that broke: no folders that only a living run needs, and one end in the journal."""
    facts: list[Fact] = []

    def broken(*_: Any, **__: Any) -> Any:
        for name in ("slots", "incoming"):
            (next((tmp_path / "home" / "runs").iterdir()) / name / "left").mkdir(parents=True)
        raise error

    monkeypatch.setattr(runs, "_build", lambda *_, **__: {})
    monkeypatch.setattr(runs, where, broken)
    begun = request(tmp_path)
    try:
        runs.run_workflow(begun, facts.append, lambda *_: None)
    except type(error):
        pass
    [folder] = (tmp_path / "home" / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} <= {"journal.jsonl", "logs", "outputs"}
    status = "cancelled" if isinstance(error, KeyboardInterrupt) else "failed"
    assert [fact.status for fact in facts if isinstance(fact, RunEnded)] == [status]
    assert json.loads((folder / "journal.jsonl").read_text().splitlines()[-1])["status"] == status


def test_what_dead_runs_left_is_removed(tmp_path: Path) -> None:
    """With a lease or without; what a living run has stays."""
    folders = {name: tmp_path / "home" / "runs" / name for name in ("killed", "broken", "alive")}
    for folder in folders.values():
        for name in ("slots/1", "incoming", "logs"):
            (folder / name).mkdir(parents=True)
    (folders["killed"] / NAME).touch()
    with hold_lease(folders["alive"]):
        runs.remove_dead(tmp_path / "home")
        left = {name: sorted(path.name for path in folder.iterdir()) for name, folder in folders.items()}
    assert left == {"killed": ["logs"], "broken": ["logs"], "alive": ["incoming", NAME, "logs", "slots"]}


@pytest.mark.parametrize("depth", [0, 40])
def test_sockets_go_with_their_runs(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    """A killed run's socket is removed; a living run's stays, and that of another home where they share a folder."""
    living, dead = "20260101-000000-aaaa", "20260101-000000-bbbb"
    with tempfile.TemporaryDirectory(prefix="rl-", dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        homes = [Path(short, name, *("deep" for _ in range(depth))) for name in ("mine", "yours")]
        for home in homes:
            (home / "runs" / living).mkdir(parents=True)
        with hold_lease(homes[0] / "runs" / living):
            doors = [asyncio.run(_door(homes[0], living)), asyncio.run(_door(homes[0], dead))]
            doors.append(asyncio.run(_door(homes[1], dead)))
            remove_dead_doors(homes[0])
        assert [door.exists() for door in doors] == [True, False, True]


async def _door(home: Path, run: str) -> Path:
    return Door(home, run).folder
