"""The Docker engine is not there, goes away in mid-run, or somebody removes a container of ours."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.faults.conftest import Alive
from tests.harness import MakeProject, RunLocal

NO_ENGINE = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}
ENDS_S = 30.0


def test_docker_was_asked_for_and_is_not_there(run_local: RunLocal, haunted: Path, home: Path) -> None:
    """Exit code 4, what is wrong, why, and what next; no run has begun."""
    runs = list((home / "runs").glob("*"))
    done = run_local("two", "--runtime", "docker", cwd=haunted, env=NO_ENGINE)
    assert (done.code, done.stdout) == (4, "")
    assert done.stderr == (
        "error: no Docker engine answers\n"
        "  why: unix:///nonexistent/docker.sock: [Errno 2] No such file or directory\n"
        "  hint: start it (`systemctl start docker`), or use `--runtime process`\n"
    )
    assert list((home / "runs").glob("*")) == runs
    assert run_local("build", "--runtime", "docker", cwd=haunted, env=NO_ENGINE).code == 4


def test_auto_falls_back_to_processes_and_says_so(run_local: RunLocal, haunted: Path) -> None:
    """The run works, and nobody has to guess where."""
    done = run_local("two", "--json", cwd=haunted, env=NO_ENGINE)
    assert (done.code, done.document["result"], done.document["runtime"]) == (0, 2, "process"), done.stderr
    assert "no Docker engine answers: tasks run as isolated processes" in done.stderr


class Proxy:
    """A socket in front of the engine that can be cut: what was connected is closed, and nobody answers any more."""

    def __init__(self, path: Path, engine: str) -> None:
        self.path, self._engine = path, engine
        self._cut = threading.Event()
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """The engine dies."""
        self._cut.set()
        self.path.unlink(missing_ok=True)
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):  # it may have ended by itself
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all of it."""
        self.cut()
        for thread in self._threads:
            thread.join(ENDS_S)
        self._listener.close()

    def _accept(self) -> None:
        while not self._cut.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            engine = socket.socket(socket.AF_UNIX)
            engine.connect(self._engine)
            self._open += [client, engine]
            self._threads.append(threading.Thread(target=self._pump, args=(client, engine)))
            self._threads[-1].start()

    def _pump(self, client: socket.socket, engine: socket.socket) -> None:
        with client, engine, selectors.DefaultSelector() as selector, contextlib.suppress(OSError):
            selector.register(client, selectors.EVENT_READ, engine)
            selector.register(engine, selectors.EVENT_READ, client)
            while True:
                for key, _ in selector.select():
                    data = key.fileobj.recv(2**16)  # type: ignore[union-attr]
                    if not data:
                        return
                    key.data.sendall(data)


@pytest.fixture
def proxy(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy of the real engine."""
    base = str(engine.api.base_url)
    path = base.removeprefix("http+docker://localhost") or "/var/run/docker.sock"
    made = Proxy(tmp_path_factory.mktemp("proxy") / "s", path if path.startswith("/") else "/var/run/docker.sock")
    yield made
    made.close()


FLOW = """
    import pathlib
    import time

    from executor import Resources, TaskEnvironment

    leaf_env = TaskEnvironment("leaf", resources=Resources(cpu=0.5, memory="256Mi"))
    root_env = TaskEnvironment("root", depends_on=[leaf_env], resources=Resources(cpu=1, memory="256Mi"))


    @leaf_env.task
    def one() -> int:
        return 1


    @root_env.task
    def late() -> int:
        print("at work", flush=True)
        time.sleep(3)
        return one()


    @root_env.task
    def ends() -> int:
        print("at work", flush=True)
        time.sleep(2)
        return 5


    @root_env.task
    def stays() -> int:
        print("at work", flush=True)
        time.sleep(600)
        return 1
"""
ENVIRONMENTS = {"leaf": ["python >=3.10"], "root": ["python >=3.10"]}


def test_an_engine_that_goes_away_is_named(
    run_local: RunLocal, project: MakeProject, proxy: Proxy, alive: Alive
) -> None:
    """A call that needs a new container fails in bounded time, with the engine as its reason; nothing hangs."""
    root = project({"flow.py": FLOW}, ENVIRONMENTS)
    assert run_local("late", "--runtime", "docker", cwd=root).code == 0
    process = run_local.start(
        "late", "--runtime", "docker", "-v", cwd=root, env={"DOCKER_HOST": f"unix://{proxy.path}"}
    )
    assert process.stderr is not None
    assert any("at work" in line for line in process.stderr)
    proxy.cut()
    _, stderr = process.communicate(timeout=ENDS_S)
    assert process.returncode in (1, 4), stderr
    assert "engine does not answer" in stderr
    assert "executor/" not in stderr
    assert alive.after(5.0) == []


def test_a_task_that_needs_no_engine_outlives_it(
    run_local: RunLocal, project: MakeProject, proxy: Proxy, alive: Alive
) -> None:
    """A task that is at work already ends as it should: its line is to our agent, not to the engine."""
    root = project({"flow.py": FLOW}, ENVIRONMENTS)
    process = run_local.start(
        "ends", "--runtime", "docker", "-v", cwd=root, env={"DOCKER_HOST": f"unix://{proxy.path}"}
    )
    assert process.stderr is not None
    assert any("at work" in line for line in process.stderr)
    proxy.cut()
    stdout, stderr = process.communicate(timeout=ENDS_S)
    assert (process.returncode, stdout) == (0, "5\n"), stderr
    assert alive.after(5.0) == []


def test_a_stranger_removes_the_container(
    run_local: RunLocal, project: MakeProject, engine: docker.DockerClient, home: Path
) -> None:
    """The attempt is lost, and tried once more by itself; the end tells who did it, and the last of the log."""
    root = project({"flow.py": FLOW}, ENVIRONMENTS)
    process = run_local.start("stays", "--runtime", "docker", "-v", "--json", cwd=root)
    assert process.stderr is not None
    for _ in range(2):
        assert any("at work" in line for line in process.stderr)
        for found in engine.api.containers(filters={"label": "run-local=slot"}):
            if Path(found["Labels"]["run-local.lease"]).is_relative_to(home):
                engine.api.remove_container(found["Id"], force=True)
    _, stderr = process.communicate(timeout=ENDS_S)
    assert process.returncode == 1
    assert "task `root.stays` failed: lost_agent: what the task ran in was lost" in stderr
    assert "why: somebody removed its container, or killed it (SIGKILL), through the engine" in stderr
    assert "│ at work" in stderr
