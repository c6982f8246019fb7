"""Podman in the place of Docker: with root's it works, and a user's own is refused where it keeps no limits.

The service is started here, with storage of its own, and takes its image from the Docker engine that built it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from executor import dockerd
from executor.data.leases import hold_lease
from executor.gpus import Gpu
from executor.manifest import Shape
from executor.runtimes import Launch
from executor.runtimes.docker import DockerRuntime
from executor.runtimes.library import worker_library
from tests.conftest import lacking
from tests.harness import ROOT, MakeProject, RunLocal
from tests.nvml.machine import THREE, FakeGpus

pytestmark = pytest.mark.docker

STARTS_S = 30
BASES = ("run-local/base:", "debian:")

FLOW = """
    import os
    import pathlib

    from executor import Resources, Secret, TaskEnvironment

    small = Resources(cpu=0.5, memory="128Mi")
    leaf = TaskEnvironment(
        "leaf", resources=small, network=False, secrets=[Secret("RL_PODMAN", mount="/etc/flyte/secrets")]
    )


    @leaf.task
    def look() -> list:
        token = pathlib.Path("/etc/flyte/secrets/RL_PODMAN").read_text()
        pathlib.Path("out.txt").write_text("x")
        return [os.getuid(), len(token), sorted(os.listdir("/var/tmp"))]


    @leaf.task
    def fill() -> int:
        return len(bytearray(512 * 2**20))
"""

#: Starts one slot as a user, and prints why it was refused; its arguments are a home and an image.
SLOT = """
import asyncio, json, sys
from pathlib import Path
from executor.data.leases import hold_lease
from executor.errors import MachineError
from executor.manifest import Shape
from executor.runtimes import Launch
from executor.runtimes.docker import DockerRuntime
from executor.runtimes.library import worker_library

home, image = Path(sys.argv[1]), sys.argv[2]
folder = home / "runs" / "rootless"
shape = Shape(
    cpus=0.5, cpus_limit=0.5, memory_bytes=2**27, memory_limit_bytes=2**27, gpus=0, gpu_model="", shm_bytes=None
)

async def start(lease):
    runtime = DockerRuntime(home, folder.name)
    try:
        launch = Launch(
            run=folder.name, number=1, environment="leaf", specification="s", key="k", image=image, prefix=None,
            variables={}, shape=shape, project=home, import_roots=(".",), library=worker_library(home),
            folder=folder / "slots" / "1", lease=lease, network=False,
        )
        return (await runtime.start(launch)).hello
    except MachineError as exc:
        return exc.why
    finally:
        await runtime.close()

for name in ("tmp", "runs/rootless"):
    (home / name).mkdir(parents=True)
with hold_lease(folder) as lease:
    print(json.dumps(asyncio.run(start(lease))))
"""


@dataclass(frozen=True)
class Service:
    """A Podman service: its address, and the command and variables that talk to its storage."""

    address: str
    command: list[str]
    variables: dict[str, str]

    def ask(self, *words: str, check: bool = True) -> str:
        """What the command prints; without the variables it would leave locks for the whole machine in /dev/shm."""
        return subprocess.run(
            [*self.command, *words],
            cwd="/", env=self.variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=check,
        ).stdout  # fmt: skip


@contextlib.contextmanager
def podman(folder: Path, *, user: str = "") -> Iterator[Service]:
    """Start a service of Podman in a folder, as a user if one is named; nothing of it is left afterwards."""
    socket, settings = folder / "s", folder / "containers.conf"
    settings.write_text('[engine]\nevents_logger = "file"\nlock_type = "file"\n')
    own = ["--root", str(folder / "root"), "--runroot", str(folder / "run"), "--tmpdir", str(folder / "tmp")]
    command = ["podman", *own, "--cgroup-manager", "cgroupfs", "--runtime", "runc", "--storage-driver", "overlay"]
    variables = {**os.environ, "CONTAINERS_CONF": str(settings), "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder)}
    if user:
        command = ["runuser", "-u", user, "--", *command]
    found = Service(f"unix://{socket}", command, variables)
    with (folder / "log").open("wb") as log:
        service = subprocess.Popen(
            [*command, "system", "service", "--time=0", f"unix://{socket}"],
            cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + STARTS_S
        while not socket.exists() and service.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if not socket.exists():
            lacking("podman", (folder / "log").read_text()[-500:])
        yield found
    finally:
        os.killpg(service.pid, signal.SIGTERM)  # as a user it is a process below the one that we started
        service.wait(STARTS_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(service.pid, signal.SIGKILL)
        found.ask("rm", "--all", "--force", "--time", "0", check=False)
        found.ask("rmi", "--all", "--force", check=False)
        _end_pause(folder)
        for line in Path("/proc/mounts").read_text().splitlines():
            place = line.split()[1]
            if place.startswith(f"{folder}/"):
                subprocess.run(["umount", place], check=True)


def _end_pause(folder: Path) -> None:
    """End the process that keeps a user's namespaces."""
    for path in folder.rglob("pause.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.read_text()), signal.SIGKILL)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder with a short path that every user may pass through; not on a file system in memory."""
    if os.getuid() != 0 or not shutil.which("podman"):
        lacking("podman", "it is not installed, or we are not root")
    folder = Path(tempfile.mkdtemp(prefix="rl-podman-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture
def user(scratch: Path) -> Iterator[str]:
    """A user who may map other users' ids, for the time of a test."""
    if not all(map(shutil.which, ("useradd", "newuidmap", "runuser"))):
        pytest.skip("no user who has ids to map can be made here (useradd, uidmap)")
    name = f"rl-podman-{os.getpid()}"
    subprocess.run(["useradd", "--no-create-home", "--home-dir", str(scratch), name], check=True)
    yield name
    # its processes are dead, and may still have to be collected by somebody else
    subprocess.run(["userdel", "--force", name], check=True, capture_output=True)


def built(run_local: RunLocal, engine: docker.DockerClient, root: Path) -> str:
    """The tag of an image that the Docker engine has."""
    done = run_local("build", "leaf", "--runtime", "docker", cwd=root)
    image = engine.images.get(done.stderr.split()[-1])
    return next(tag for tag in image.tags if tag.startswith("run-local/leaf:"))


def hand_over(engine: docker.DockerClient, tag: str, address: str) -> None:
    """Give an image of the Docker engine to another one."""
    client = docker.DockerClient(base_url=address, timeout=120)
    try:
        dockerd.load(client, engine.api.get_image(tag))
    finally:
        client.close()


@pytest.fixture
def secret(home: Path) -> None:
    """The secret that the workflow names."""
    path = home / "secrets" / "RL_PODMAN"
    path.parent.mkdir(exist_ok=True, mode=0o700)
    path.write_text("hunter2-token")
    path.chmod(0o600)


@pytest.mark.slow  # an image of 200 MB is handed from engine to engine
@pytest.mark.usefixtures("secret")
def test_roots_podman_runs_tasks_as_docker_does(
    run_local: RunLocal, project: MakeProject, engine: docker.DockerClient, scratch: Path
) -> None:
    """Every promise is kept, a task that wants too much memory is told so, and no container is left."""
    root = project({"flow.py": FLOW}, {"leaf": ["python >=3.10"]})
    tag = built(run_local, engine, root)
    with podman(scratch) as service:
        bases = [each for image in engine.images.list() for each in image.tags if each.startswith(BASES)]
        for each in (*bases, tag):
            hand_over(engine, each, service.address)
        there = {"DOCKER_HOST": service.address}
        assert "Podman Engine" in run_local("doctor", cwd=root, env=there).stdout
        finished = run_local("look", "--runtime", "docker", "--json", cwd=root, env=there)
        assert finished.code == 0, finished.stderr
        assert finished.document["result"] == [65534, len("hunter2-token"), []]
        starved = run_local("fill", "--runtime", "docker", "--json", cwd=root, env=there)
        assert starved.code == 1
        assert starved.document["calls"][0]["error"]["code"] == "oom", starved.stdout
        assert service.ask("ps", "--all", "--quiet") == ""


@pytest.mark.slow  # as above
def test_a_request_for_a_gpu_that_podman_ignores_is_noticed(
    run_local: RunLocal,
    project: MakeProject,
    engine: docker.DockerClient,
    scratch: Path,
    home: Path,
    fake_gpus: FakeGpus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Some versions accept it and do nothing; a container then has no device, and the next way is tried."""
    root = project({"flow.py": FLOW}, {"leaf": ["python >=3.10"]})
    tag = built(run_local, engine, root)
    uuid, minor = THREE[1]
    (home / "runs").mkdir(exist_ok=True)
    gpu = Gpu(uuid=uuid, name="Fake A100", index="1", minor=minor)

    async def start(folder: Path, lease: Path) -> dict[str, Any]:
        runtime = DockerRuntime(home, folder.name)
        shape = Shape(
            cpus=0.5, cpus_limit=0.5, memory_bytes=2**27, memory_limit_bytes=2**27, gpus=1, gpu_model="", shm_bytes=None
        )
        launch = Launch(
            run=folder.name, number=1, environment="leaf", specification="s", key="k", image=tag, prefix=None,
            variables={}, shape=shape, project=root, import_roots=(".",), library=worker_library(home),
            folder=scratch / "slots" / "1", lease=lease, network=False, gpus=(gpu,),
        )  # fmt: skip
        try:
            return (await runtime.start(launch)).hello
        finally:
            await runtime.close()

    with (
        podman(scratch) as service,
        tempfile.TemporaryDirectory(dir=home / "runs") as own,
        hold_lease(Path(own)) as lease,
    ):
        hand_over(engine, tag, service.address)
        for name, text in {**fake_gpus.variables, "DOCKER_HOST": service.address}.items():
            monkeypatch.setenv(name, text)
        hello = asyncio.run(start(Path(own), lease))
    assert hello["gpus"] == {"nodes": [f"nvidia{minor}"], "seen": [uuid.removeprefix("GPU-")], "problem": ""}


@pytest.mark.slow  # as above
def test_a_users_own_podman_is_refused_where_it_keeps_no_limits(
    run_local: RunLocal, project: MakeProject, engine: docker.DockerClient, scratch: Path, user: str
) -> None:
    """It says that it limits memory, and does not; what it can keep, such as whose the files are, is in force."""
    python = _python_of_everybody(user)
    root = project({"flow.py": FLOW}, {"leaf": ["python >=3.10"]})
    tag = built(run_local, engine, root)
    shutil.chown(scratch, user)
    with podman(scratch, user=user) as service:
        hand_over(engine, tag, service.address)
        paths = ":".join((str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))))
        variables = {**os.environ, "DOCKER_HOST": service.address, "PYTHONPATH": paths, "HOME": str(scratch)}
        done = subprocess.run(
            ["runuser", "-u", user, "--", python, "-c", SLOT, str(scratch / "home"), tag],
            cwd=scratch, env=variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
    if "memory_limit_bytes" in told:  # with control groups of version 2, a user can be given limits
        assert told["memory_limit_bytes"] == 2**27
        return
    assert "the limit of memory is none, not 134217728 bytes" in told
    assert "the limit of processes is none" in told
    assert "the limit of cores is none, not 0.5" in told
    for kept in (
        "tasks run as",
        "belongs to",
        "capabilities",
        "privileges",
        "seccomp",
        "root file",
        "be written",
        "/tmp",
    ):
        assert kept not in told


def _python_of_everybody(user: str) -> str:
    """A Python of our version that another user may start."""
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for path in (sys.executable, f"/usr/local/bin/{name}", f"/usr/bin/{name}"):
        if (
            subprocess.run(["runuser", "-u", user, "--", path, "-c", ""], capture_output=True, check=False).returncode
            == 0
        ):
            return path
    pytest.skip(f"no {name} that another user may start")
