"""The check that nothing is left behind can fail: it finds each kind of thing, where one was left on purpose."""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from tests.harness import ROOT, SESSION_VARIABLE, SHARED_MEMORY, Leftovers, MakeProject


@pytest.fixture
def watch(tmp_path: Path) -> Leftovers:
    """A watch over a home and a scratch folder of its own."""
    for name in ("home", "scratch"):
        (tmp_path / name).mkdir()
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    return Leftovers(home=home, session=uuid.uuid4().hex, scratch=scratch, engine=None, grace_s=0)


@pytest.fixture
def orphan(watch: Leftovers) -> Iterator[int]:
    """The pid of a process that somebody with the session's mark left behind."""
    script = "sleep 60 >/dev/null 2>&1 & echo $!"
    env = {**os.environ, SESSION_VARIABLE: watch.session}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True)
    yield int(done.stdout)
    try:
        os.kill(int(done.stdout), signal.SIGKILL)
    except ProcessLookupError:
        return


def test_nothing_is_left_where_nothing_was_done(watch: Leftovers) -> None:
    """No process of this machine is taken for one of a session that did nothing."""
    assert watch.find() == set()


def test_an_orphan_is_found_named_and_removed(watch: Leftovers, orphan: int) -> None:
    """Whoever its parent is now, its environment tells whose it was."""
    left = watch.since(set())
    assert [line.split()[:2] for line in left] == [["process", str(orphan)]]
    watch.remove(left)
    assert replace(watch, grace_s=10).since(set()) == []


def test_a_file_is_found_and_what_was_there_before_is_not(watch: Leftovers) -> None:
    """A socket, a lock or a half-written file in TMPDIR is a leftover like a process."""
    (watch.scratch / "old").touch()
    before = watch.find()
    (watch.scratch / "new").mkdir()
    left = watch.since(before)
    assert left == [f"file {watch.scratch}/new"]
    watch.remove(left)
    assert watch.find() == before


@pytest.mark.parametrize(
    "left",
    [
        "sockets/20260101-000000-0000.x",
        "tmp/half",
        "runs/r/slots",
        "runs/r/incoming",
        "runs/r/lease",
        "prefixes/half-x",
    ],
)
def test_what_only_a_live_run_has_is_found(watch: Leftovers, left: str) -> None:
    """In the home, wherever runs and builds keep what is not finished; the record of a run is no leftover."""
    (watch.home / "runs/r/logs").mkdir(parents=True)
    (watch.home / "runs/r/journal.jsonl").touch()
    assert watch.find() == set()
    (watch.home / left).mkdir(parents=True)
    found = watch.since(set())
    assert found == [f"file {watch.home}/{left}"]
    watch.remove(found)
    assert watch.find() == set()


def test_a_name_in_shared_memory_is_found(watch: Leftovers) -> None:
    """Values have none there; whoever is alone on the machine is told of anybody's."""
    with tempfile.NamedTemporaryFile(dir=SHARED_MEMORY, prefix="run-local-harness-") as ours:
        assert f"file {ours.name}" in watch.find()
    with tempfile.NamedTemporaryFile(dir=SHARED_MEMORY, prefix="harness-") as theirs:
        assert f"file {theirs.name}" not in watch.find()
        assert f"file {theirs.name}" in replace(watch, alone=True).find()


@pytest.mark.parametrize("abstract", [False, True])
def test_a_socket_is_found(watch: Leftovers, abstract: bool) -> None:
    """One without a file, too."""
    path = f"\0run-local-{watch.session}" if abstract else f"{watch.scratch}/s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        name = path.replace("\0", "@")
        assert f"socket {name}" in watch.find()
    assert f"socket {name}" not in watch.find()


def test_a_mount_is_found_and_removed(watch: Leftovers) -> None:
    """Of the home, or of the folder for temporary files."""
    place = watch.home / "with a blank"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("nothing can be mounted here")
    left = watch.since(set())
    watch.remove(left)
    assert left == [f"mount {place}"]
    assert watch.find() == set()


@pytest.mark.docker
@pytest.mark.parametrize("by", ["lease", "labels"])
def test_a_container_is_found_and_removed(watch: Leftovers, engine: docker.DockerClient, by: str) -> None:
    """A slot of a run of this home, which was created and never ran; or one that a test made."""
    watch = replace(watch, engine=engine)
    image = engine.api.import_image_from_data(
        io.BytesIO(bytes(1024)).getvalue(), repository="run-local-test", tag="empty"
    )
    labels = watch.labels if by == "labels" else {"run-local": "slot", "run-local.lease": f"{watch.home}/runs/r/lease"}
    container = engine.api.create_container("run-local-test:empty", command=["x"], labels=labels)["Id"]
    try:
        left = watch.since(set())
        assert [line.split()[:2] for line in left] == [["container", container[:12]]], image
        watch.remove(left)
        assert replace(watch, grace_s=10).since(set()) == []
    finally:
        with contextlib.suppress(docker.errors.NotFound):
            engine.api.remove_container(container, force=True)
        engine.api.remove_image("run-local-test:empty")


def test_a_session_that_leaves_something_fails(tmp_path: Path) -> None:
    """And names it; so does the test that left it, and what was left is gone."""
    (tmp_path / "test_it.py").write_text(
        "import subprocess\n"
        "def test_it(run_local):\n"
        "    variables = {**run_local.variables}\n"
        "    left = subprocess.Popen(['sleep', '61'], env=variables, start_new_session=True)\n"
        "    while not open(f'/proc/{left.pid}/environ').read():\n"
        "        pass  # the kernel shows it a moment after it has begun\n"
    )
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RUN_LOCAL_TEST_HOME": str(tmp_path / "home"),
        "DOCKER_HOST": "unix:///x",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.conftest",
        "-W",
        "ignore",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout
    assert "left behind:" in done.stdout
    pid = re.search(r"process (\d+) sleep 61", done.stdout)
    assert pid, done.stdout
    with contextlib.suppress(FileNotFoundError):  # nobody may have waited for it yet
        assert Path(f"/proc/{pid[1]}/cmdline").read_bytes() == b""


def test_a_project_is_written_as_a_user_would(project: MakeProject) -> None:
    """Source dedented, one environment.yml for each environment."""
    root = project({"flow.py": "    x = 1\n"}, {"a": ["python", "numpy >=2"], "b": "dependencies: [python]\n"})
    assert (root / "flow.py").read_text() == "x = 1\n"
    assert (root / "envs/a/environment.yml").read_text() == (
        "channels: [conda-forge]\ndependencies:\n  - python\n  - numpy >=2\n"
    )
    assert (root / "envs/b/environment.yml").read_text() == "dependencies: [python]\n"
