"""What the agent finds in force, wherever control groups are mounted and whichever version of them it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor.worker import confinement, groups, kernel

ONE = {"memory.limit_in_bytes": "1048576", "memory.memsw.limit_in_bytes": "1048576"}
QUOTA = {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"}
TWO = {"memory.max": "1048576", "memory.swap.max": "0", "cpu.max": "50000 100000", "pids.max": "17"}
ALL = {"memory_limit_bytes": 2**20, "swap_limit_bytes": 0, "cpu_limit": 0.5, "pids_limit": 17}
NONE = {"memory_limit_bytes": None, "swap_limit_bytes": None, "cpu_limit": None, "pids_limit": None}


class Machine:
    """A machine's /proc and control groups, as files."""

    def __init__(self, root: Path) -> None:
        self.root, self.process = root, str(root / "proc")
        (root / "proc").mkdir()
        self._lines: list[str] = []
        self._mounts: list[str] = []

    def one(self, controllers: str, group: str, *, shown: str = "/") -> Path:
        """A hierarchy of version 1, of which `shown` is mounted, and a process in one of its groups."""
        place = self.root / "cgroup" / controllers
        self._lines.append(f"4:{controllers}:{group}")
        self._mounts.append(f"92 88 0:32 {shown} {place} ro,nosuid - cgroup cgroup rw,{controllers}")
        return place

    def two(self, group: str, *, shown: str = "/", name: str = "") -> Path:
        """The hierarchy of version 2."""
        place = self.root / "cgroup" / name
        self._lines.append(f"0::{group}")
        self._mounts.append(f"92 88 0:32 {shown} {place} ro,nosuid - cgroup2 cgroup rw,nsdelegate")
        return place

    def write(self, folder: Path, files: dict[str, str]) -> None:
        """Write what a group says, and what /proc says so far."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text + "\n")
        (self.root / "proc/cgroup").write_text("\n".join(self._lines))
        (self.root / "proc/mountinfo").write_text("\n".join(self._mounts))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """One without control groups so far."""
    return Machine(tmp_path)


def test_a_container_of_version_1_sees_its_own_group_at_the_mount(machine: Machine) -> None:
    """/proc names the group from the machine's root, and the mount begins at that group."""
    machine.write(machine.one("memory", "/docker/c0ffee", shown="/docker/c0ffee"), ONE)
    machine.write(machine.one("cpu,cpuacct", "/docker/c0ffee", shown="/docker/c0ffee"), QUOTA)
    machine.write(machine.one("pids", "/docker/c0ffee", shown="/docker/c0ffee"), {"pids.max": "17"})
    assert groups.limits(machine.process) == ALL


def test_a_group_of_version_1_below_others_is_held_by_the_narrowest(machine: Machine) -> None:
    """A process of the machine itself; its own group says nothing, and one around it does."""
    memory = machine.one("memory", "/outer/inner")
    machine.write(memory / "outer/inner", {"memory.limit_in_bytes": "9223372036854771712"})
    machine.write(memory / "outer", {"memory.limit_in_bytes": "4194304"})
    machine.write(memory, {"memory.limit_in_bytes": "9223372036854771712"})
    assert groups.limits(machine.process) == {**NONE, "memory_limit_bytes": 2**22}
    assert groups.folders("memory", machine.process)[0] == str(memory / "outer/inner")


@pytest.mark.parametrize(
    ("group", "shown", "folder"),
    [
        ("/", "/", ""),
        ("/system.slice/x.scope", "/", "system.slice/x.scope"),
        ("/../../x", "/", ""),
        ("/a/b", "/a", "b"),
    ],
    ids=["namespace", "nested", "outside of the namespace", "a part is mounted"],
)
def test_version_2_is_found_however_it_is_shown(machine: Machine, group: str, shown: str, folder: str) -> None:
    """In a namespace of its own the group is the root; without one it is a path; one from outside has `..` in it."""
    machine.write(machine.two(group, shown=shown) / folder, TWO)
    assert groups.limits(machine.process) == ALL


def test_both_versions_beside_each_other(machine: Machine) -> None:
    """Each controller counts where it is: here memory in version 1, the others in version 2."""
    unified = machine.two("/x", name="unified")
    machine.write(machine.one("memory", "/x") / "x", ONE)
    machine.write(unified / "x", {"cpu.max": "50000 100000", "pids.max": "17"})
    assert groups.limits(machine.process) == ALL


def test_without_a_limit_there_is_none(machine: Machine) -> None:
    """`max` is no limit; swap without one is another thing than swap that nobody counts."""
    unlimited = {"memory.max": "max", "memory.swap.max": "max", "cpu.max": "max 100000", "pids.max": "max"}
    group = machine.two("/")
    machine.write(group, unlimited)
    assert groups.limits(machine.process) == {**NONE, "swap_limit_bytes": 2**60}
    (group / "memory.swap.max").unlink()
    assert groups.limits(machine.process) == NONE


def test_swap_counts_beside_memory(machine: Machine) -> None:
    """Version 1 limits the two together."""
    machine.write(machine.one("memory", "/"), {**ONE, "memory.memsw.limit_in_bytes": "3145728"})
    assert groups.limits(machine.process)["swap_limit_bytes"] == 2**21


def test_without_control_groups_nothing_is_known(machine: Machine) -> None:
    """As on a machine where they are not mounted; neither is an error."""
    assert groups.limits(machine.process) == NONE


def test_the_facts_of_this_process_are_those_of_the_kernel() -> None:
    """Each that the host compares is there, and of a type that travels as JSON."""
    facts = confinement.facts()
    assert isinstance(facts["tmp_bytes"], int)
    assert "lo" not in facts["interfaces"]
    before = kernel.mount_points()  # others mount meanwhile
    assert set(confinement.writable_places()) <= {*before, *kernel.mount_points()}
