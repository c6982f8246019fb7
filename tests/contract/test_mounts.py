"""Data of this machine that tasks read where it lies: read-only, at the same path, on every runtime."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from executor.data.records import read_run
from tests.harness import Finished, MakeProject, RunLocal

Call = Callable[..., Finished]

PYTHON = ["python >=3.10"]

#: Starts a command in a user namespace in which no further one can be made.
WITHOUT_NAMESPACES = [
    *(shutil.which("unshare") or "unshare", "-Ur", "/bin/sh", "-c"),
    'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"',
    "sh",
]

FLOW = """
    import os
    import pathlib

    from executor import Mount, Resources, TaskEnvironment

    data = pathlib.Path(SOURCE)
    small = Resources(cpu=0.2, memory="128Mi")
    leaf_env = TaskEnvironment("leaf", resources=small, mounts=[Mount(data, TARGET), Mount(data / "one.txt", FILE)])
    twin_env = TaskEnvironment(
        "twin", image="envs/leaf/environment.yml", resources=small, mounts=[Mount(SOURCE, TARGET)]
    )
    root_env = TaskEnvironment("root", depends_on=[leaf_env, twin_env], resources=small)
    there = pathlib.Path(TARGET or SOURCE)


    def refused(function, *args) -> str:
        try:
            function(*args)
        except OSError as exc:
            return type(exc).__name__
        return "nothing refused it"


    @leaf_env.task
    def look() -> dict:
        return {
            "text": (there / "a b/deep.txt").read_text(),
            "entries": sorted(os.listdir(there)),
            "below": sorted(os.listdir(there / "below")),
            "file": pathlib.Path(FILE).read_text() if FILE else "",
            "written": [
                refused((there / "new").write_text, "x"),
                refused((there / "one.txt").write_text, "x"),
                refused((there / "below" / "new").write_text, "x"),
                refused((there / "a b" / "deep.txt").unlink),
            ],
        }


    @leaf_env.task
    def find() -> pathlib.Path:
        return there / "a b" / "deep.txt"


    @twin_env.task
    def read(path: pathlib.Path) -> list:
        return [str(path), path.read_text()]


    @root_env.task
    def pass_on() -> list:
        return read(find())


    @leaf_env.task
    def again() -> list:
        return sorted(os.listdir(there))


    @root_env.task
    def twice() -> bool:
        return again() == again()
"""


@pytest.fixture
def data() -> Iterator[Path]:
    """Data outside of everything that a task is given; not below /tmp, which is a task's own."""
    folder = Path(tempfile.mkdtemp(prefix="rl-mounts-", dir="/var/tmp"))
    folder.chmod(0o755)
    for name in ("one.txt", "a b/deep.txt", "below/hidden.txt"):
        (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "data" / name).write_text(f"the text of {name}")
    for path in (folder / "data").rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)  # so that nothing but the mount keeps a task from writing
    yield folder / "data"
    shutil.rmtree(folder)


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """A file system of its own at a folder, that everybody may write to."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"mode=0777") != 0:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield
    finally:
        assert libc.umount(os.fsencode(folder)) == 0


@pytest.fixture
def make(run_local: RunLocal, project: MakeProject, runtime: str) -> Callable[..., Call]:
    """`make(source, target, file)` writes the flow; what it gives runs a task of it."""

    def write(source: str, target: str | None = None, file: str | None = None) -> Call:
        constants = f"SOURCE, TARGET, FILE = {source!r}, {target!r}, {file!r}\n"
        flow = constants + "".join(line.removeprefix("    ") for line in FLOW.splitlines(keepends=True))
        if file is None:
            flow = flow.replace(', Mount(data / "one.txt", FILE)', "")
        root = project({"flow.py": flow}, {"leaf": PYTHON, "root": PYTHON})
        return lambda *told: run_local(*told, "--json", "--runtime", runtime, cwd=root, timeout_s=300)

    return write


WHAT_IS_SEEN = {
    "text": "the text of a b/deep.txt",
    "entries": ["a b", "below", "one.txt"],
    "below": ["hidden.txt"],
    "file": "",
    "written": ["OSError"] * 4,
}


def test_data_is_found_where_it_lies_and_cannot_be_changed(
    make: Callable[..., Call], data: Path, home_of_runs: Path
) -> None:
    """Without a target, the path is the same as here; the record says what was mounted; nothing of it is copied."""
    done = make(str(data))("look")
    assert done.code == 0, done.stderr
    assert done.document["result"] == WHAT_IS_SEEN
    assert sorted(path.name for path in data.iterdir()) == ["a b", "below", "one.txt"]
    first = json.loads(
        (read_run(home_of_runs, done.document["run"]).folder / "journal.jsonl").read_text().splitlines()[0]
    )
    assert first["mounts"] == {"leaf": {str(data): str(data)}}


def test_data_is_shown_at_another_path(make: Callable[..., Call], data: Path) -> None:
    """A folder, and a file; here the places exist, as a process needs them to."""
    place, file = data.parent / "place", data.parent / "file"
    place.mkdir()
    file.touch()
    done = make(str(data), str(place), str(file))("look")
    assert done.code == 0, done.stderr
    assert done.document["result"] == {**WHAT_IS_SEEN, "file": "the text of one.txt"}
    assert list(place.iterdir()) == []


def test_what_is_mounted_below_is_there_and_cannot_be_changed(make: Callable[..., Call], data: Path) -> None:
    """A database may have a file system of its own."""
    with mounted(data / "below"):
        (data / "below" / "own.txt").write_text("on a disk of its own")
        (data / "below" / "nested one").mkdir()
        with mounted(data / "below" / "nested one"):
            done = make(str(data))("look")
    assert done.code == 0, done.stderr
    assert done.document["result"] == {**WHAT_IS_SEEN, "below": ["nested one", "own.txt"]}


def test_a_path_of_mounted_data_travels_by_name(make: Callable[..., Call], data: Path) -> None:
    """And is the same file in another environment that mounts it; no content travels."""
    done = make(str(data))("pass_on")
    assert done.code == 0, done.stderr
    assert done.document["result"] == [str(data / "a b/deep.txt"), "the text of a b/deep.txt"]


def test_a_link_to_data_is_followed(make: Callable[..., Call], data: Path) -> None:
    """The path that was named is the path that tasks find."""
    link = data.parent / "link"
    link.symlink_to(data)
    done = make(str(link))("look")
    assert done.code == 0, done.stderr
    assert done.document["result"] == WHAT_IS_SEEN


def test_mounts_stay_for_the_next_call_of_a_slot(make: Callable[..., Call], data: Path) -> None:
    """What an attempt finds does not depend on those before it."""
    done = make(str(data))("twice")
    assert done.code == 0, done.stderr
    assert done.document["result"] is True


def test_what_cannot_be_mounted_is_told_before_anything_is_made(
    project: MakeProject, run_local: RunLocal, runtime: str, data: Path
) -> None:
    """All of it at once, with the environment and its place; a run and a plan say the same, and no record is made."""
    flow = f"""
        from executor import Mount, TaskEnvironment

        leaf = TaskEnvironment("leaf", mounts=[Mount("{data}/missing"), Mount("{data}", "relative")])
        root = TaskEnvironment("root", depends_on=[leaf], mounts=[Mount("{data}", "/opt"), Mount("{data}", "/task/x")])

        @root.task
        def work() -> int:
            return 1
    """
    where = project({"flow.py": flow}, {"leaf": ["nothing-like-this"], "root": ["nothing-like-this"]})
    runs = [run_local(*told, "--runtime", runtime, cwd=where) for told in (["work"], ["plan", "work"])]
    for done in runs:
        assert done.code == 2
        assert done.stderr == (
            "error: data cannot be mounted\n"
            f"  why: `leaf` (flow.py:3): there is no `{data}/missing` on this machine (No such file or directory): put the "
            "data there, or name where it is\n"
            f"       `leaf` (flow.py:3): `{data}` at `relative`: the target must be an absolute path\n"
            f"       `root` (flow.py:4): `{data}` at `/opt`: `/opt/env` of the container is used for something else: "
            "name another target, such as `/mnt/data`\n"
            f"       `root` (flow.py:4): `{data}` at `/task/x`: `/task` of the container is used for something else: "
            "name another target, such as `/mnt/data`\n"
            "  hint: correct `mounts=[Mount(source, target)]`\n"
        )


def test_a_plan_shows_what_would_be_mounted(
    project: MakeProject, run_local: RunLocal, data: Path, possible_target: Path
) -> None:
    """For a person and as data; a path from the project's root is an absolute one."""
    flow = f"""
        from executor import Mount, TaskEnvironment

        leaf = TaskEnvironment("leaf", mounts=[Mount("weights", "{possible_target}"), Mount("{data}")])

        @leaf.task
        def work() -> int:
            return 1
    """
    where = project({"flow.py": flow, "weights/w.bin": "w"}, {"leaf": PYTHON})
    plan = run_local("plan", "work", "--runtime", "process", cwd=where)
    assert f"leaf finds {where / 'weights'} of this machine at {possible_target}, read-only\n" in plan.stdout
    document = run_local("plan", "work", "--runtime", "process", "--json", cwd=where).document
    assert document["environments"][0]["mounts"] == [
        {"source": str(where / "weights"), "target": str(possible_target)},
        {"source": str(data), "target": str(data)},
    ]


@pytest.fixture
def possible_target(data: Path) -> Path:
    """A folder that something can be shown in place of."""
    target = data.parent / "target"
    target.mkdir()
    return target


@pytest.fixture
def home_of_runs(home: Path) -> Path:
    """Where the records are."""
    return home


def test_a_process_is_shown_nothing_where_there_is_nothing(
    project: MakeProject, run_local: RunLocal, data: Path
) -> None:
    """The error says what to do: make the folder, or leave the target out."""
    flow = f"""
        from executor import Mount, TaskEnvironment

        leaf = TaskEnvironment("leaf", mounts=[Mount("{data}", "/mnt/nothing/like/this")])

        @leaf.task
        def work() -> int:
            return 1
    """
    where = project({"flow.py": flow}, {"leaf": PYTHON})
    done = run_local("work", "--runtime", "process", cwd=where)
    assert done.code == 2
    assert "(`mkdir -p /mnt/nothing/like/this`), or leave the target out" in done.stderr


def test_without_namespaces_data_is_found_where_it_lies_only(
    project: MakeProject, run_local: RunLocal, data: Path, possible_target: Path
) -> None:
    """Where the kernel gives none, moving data is refused; what stays where it is can be read."""
    flow = f"""
        import os

        from executor import Mount, TaskEnvironment

        leaf = TaskEnvironment("leaf", mounts=[Mount("{data}")])
        moved = TaskEnvironment(
            "moved", image="envs/leaf/environment.yml", mounts=[Mount("{data}", "{possible_target}")]
        )

        @leaf.task
        def look() -> list:
            return sorted(os.listdir("{data}"))

        @moved.task
        def look_elsewhere() -> list:
            return sorted(os.listdir("{possible_target}"))
    """
    where = project({"flow.py": flow}, {"leaf": PYTHON})
    command = [*WITHOUT_NAMESPACES, str(Path(sys.executable).with_name("run-local"))]
    if subprocess.run([*WITHOUT_NAMESPACES, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace without more of them cannot be made here")
    where_programs_are = str(Path(sys.executable).parent)  # and no bubblewrap, which could do it
    variables = {**run_local.variables, "RUN_LOCAL_HOME": str(run_local.home), "PATH": where_programs_are}

    def run(*told: str) -> subprocess.CompletedProcess[str]:
        argv = [*command, *told, "--runtime", "process"]
        return subprocess.run(argv, cwd=where, env=variables, capture_output=True, text=True, check=False)

    stays, moves = run("look", "--json"), run("look_elsewhere")
    assert json.loads(stays.stdout)["result"] == ["a b", "below", "one.txt"]
    assert moves.returncode == 1
    assert f"why: `{data}` at `{possible_target}`: that needs a mount namespace" in moves.stderr
    assert "hint: leave the `target` of its `Mount` out" in moves.stderr


def test_nothing_stays_mounted(make: Callable[..., Call], data: Path) -> None:
    """When a run is over, nothing is mounted that was not; an engine may need a moment for that."""

    def mounted() -> set[str]:
        return set(Path("/proc/mounts").read_text().splitlines())

    before = mounted()
    place = data.parent / "place"
    place.mkdir()
    assert make(str(data), str(place))("again").code == 0
    deadline = time.monotonic() + 20
    while (new := mounted() - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert new == set()
