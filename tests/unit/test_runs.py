"""The names of runs, and who holds them."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from executor import runs
from executor.data.leases import NAME, hold_lease, lease_is_held
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
