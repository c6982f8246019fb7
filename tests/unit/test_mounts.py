"""What may be mounted where, without mounting it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from executor.describe import describe
from executor.errors import ProjectError
from executor.manifest import EnvironmentEntry, Manifest, MountEntry, Shape
from executor.mounts import OURS, check_mounts
from executor.runtimes import docker
from executor.worker import kernel
from tests.harness import MakeProject

SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=None, gpus=0, gpu_model="", shm_bytes=None)


def problems(*mounts: tuple[str | Path, str | Path], runtime: str = "docker", home: str | Path = "/nowhere") -> str:
    """What is said of these mounts of one environment; empty where nothing is wrong with them."""
    entry = EnvironmentEntry(
        name="leaf", image=None, depends_on=(), extends=(), shape=SHAPE, env_vars={}, file="flow.py", line=3,
        mounts=tuple(MountEntry(source=str(source), target=str(target)) for source, target in mounts),
    )  # fmt: skip
    manifest = Manifest(root="/p", import_roots=(".",), environments={"leaf": entry}, tasks={})
    try:
        check_mounts(manifest, ["leaf"], runtime, Path(home))
    except ProjectError as exc:
        return exc.why
    return ""


@pytest.mark.parametrize("target", ["/data", "/mnt/db", "/opt/databases", "/usr/share/db", "/taskdata", "/etc/licence"])
def test_data_may_be_mounted_at(tmp_path: Path, target: str) -> None:
    """What nobody else uses."""
    assert problems((tmp_path, target)) == ""


@pytest.mark.parametrize(
    "target",
    ["/", "/opt", "/opt/env", "/opt/env/lib", "/project", "/task/in", "/run-local", "/proc", "/sys/fs", "/dev/shm", "/tmp",
     "/tmp/db", "/usr", "/lib64", "/etc", "/var"],
)  # fmt: skip
def test_data_may_not_be_mounted_at(tmp_path: Path, target: str) -> None:
    """What a container, or we, use for something else; on every runtime."""
    for runtime in ("docker", "process"):
        assert "is used for something else" in problems((tmp_path, target), runtime=runtime)


def test_what_we_mount_ourselves_is_known() -> None:
    """Nothing that a slot finds at a place of its own can be covered."""
    own = [docker.LIBRARY, docker.CONTROL, docker.INPUTS, docker.TASK, docker.PROJECT, docker.PYTHON]
    assert all(any(path == each or path.startswith(each + "/") for each in OURS) for path in own)


def test_mounts_do_not_cover_each_other(tmp_path: Path) -> None:
    """Neither at the same place nor one within the other; names that begin alike are no trouble."""
    assert "two mounts at `/db`" in problems((tmp_path, "/db"), (tmp_path, "/db"))
    assert "one within the other" in problems((tmp_path, "/db"), (tmp_path, "/db/small"))
    assert "one within the other" in problems((tmp_path, "/db/small"), (tmp_path, "/db"))
    assert problems((tmp_path, "/db"), (tmp_path, "/db2")) == ""


def test_a_source_is_data(tmp_path: Path) -> None:
    """A file or a folder, and none that shows a task our own files, the engine's socket or devices."""
    home = tmp_path / "home"
    home.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        assert "neither a file nor a folder" in problems((tmp_path / "s", "/db"))
    for source in ("/", "/run", "/proc", "/sys/class", "/dev", home, tmp_path):
        assert "holds more than data" in problems((source, "/db"), home=home), source
    (tmp_path / "way").symlink_to("/")
    assert "holds more than data" in problems((tmp_path / "way", "/db"))
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    assert "there is no" in problems((tmp_path / "gone", "/db"))


def test_a_process_is_shown_data_in_the_place_of_something(tmp_path: Path) -> None:
    """Of the same kind, and not of our own files."""
    home, data, file = tmp_path / "home", tmp_path / "data", tmp_path / "file"
    home.mkdir()
    data.mkdir()
    file.touch()
    target = os.path.realpath("/srv")
    assert problems((data, "/mnt/nothing/like/this")) == ""
    assert "(`mkdir -p /mnt/nothing/like/this`)" in problems((data, "/mnt/nothing/like/this"), runtime="process")
    assert f"(`touch {target}`)" in problems((file, target), runtime="process")
    assert problems((data, target), runtime="process") == ""
    assert "cover run-local's own files" in problems((data, target), runtime="process", home=f"{target}/home")


def test_paths_become_absolute(project: MakeProject, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the project's root, and from the user's home; without a target they are found where they lie."""
    monkeypatch.setenv("HOME", "/of/somebody")
    root = project({"flow.py": declared('[Mount("w/../db"), Mount(Path("~/x"), "/db//y/"), Mount("//a")]')}, {})
    manifest, _ = describe("work", root)
    assert [(each.source, each.target) for each in manifest.environments["leaf"].mounts] == [
        (str(root / "db"), str(root / "db")),
        ("/of/somebody/x", "/db/y"),
        ("/a", "/a"),
    ]


@pytest.mark.parametrize(
    "mounts", ['["/db"]', 'Mount("/db")', "[Mount(3)]", '[Mount("/db", 3)]', '[Mount("")]', "None"]
)
def test_what_is_no_mount_is_refused(project: MakeProject, mounts: str) -> None:
    """With the place of its environment."""
    root = project({"flow.py": declared(mounts)}, {})
    with pytest.raises(ProjectError, match=r"^environment `leaf` \(flow.py:5\): (`mounts`|a `Mount`) must be"):
        describe("work", root)


def declared(mounts: str) -> str:
    """A workflow whose environment has these mounts."""
    return f"""
        from pathlib import Path

        from executor import Mount, TaskEnvironment

        leaf = TaskEnvironment("leaf", mounts={mounts})

        @leaf.task
        def work() -> int:
            return 1
    """


def test_places_of_mounts_are_read_as_they_are() -> None:
    """Those below a folder, whatever their names are."""
    assert "/proc" in kernel.mounted_below("/")
    assert kernel.mounted_below("/pro") == []
    assert kernel._unescaped(rb"/a\040b\134c\011") == b"/a b\\c\t"
