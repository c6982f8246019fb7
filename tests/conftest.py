"""Fixtures of all tests: a home, an engine, a runtime, a project, the command; and the check that nothing is left.

Variables that steer a session:
RUN_LOCAL_TEST_HOME  where the RUN_LOCAL_HOME of all runs is, one for each worker; otherwise folders that stay in the
                     cache, so that environments are built once, or with CI=true new ones that are removed at the end,
                     with the images made for them
RUN_LOCAL_REQUIRE    what must be there, for example `docker,chromium`: without it, tests fail instead of skipping
"""

import contextlib
import fcntl
import itertools
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NoReturn

import docker
import pytest

from executor import dockerd, gpus, runs
from executor.errors import MachineError
from tests.harness import (
    SESSION_VARIABLE,
    Finished,
    Interpreter,
    Leftovers,
    MakeProject,
    RunLocal,
    find_interpreters,
    remove_tree,
)
from tests.nvml.machine import DRIVER, SLICES, THREE, FakeGpus, Libraries, compile_cuda, compile_nvml

__all__ = ["FakeGpus", "Finished", "Interpreter", "MakeProject", "RunLocal"]

REQUIRED = frozenset(os.environ.get("RUN_LOCAL_REQUIRE", "").split(","))
IN_CI = os.environ.get("CI") == "true"
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
BEFORE = pytest.StashKey[tuple[Leftovers, set[str], set[str]]]()
TEST_HOME = os.environ.get("RUN_LOCAL_TEST_HOME", "")

_numbers = itertools.count()

#: How docker's own clients find the engine; everything else of theirs is kept from the tests.
ENGINE_VARIABLES = frozenset({"DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_CONFIG"})


def pytest_configure() -> None:
    """Take the signals back that a shell without job control ignores for what it starts with `&`, as many a CI does."""
    for number, handler in (signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that needs an engine, so that `-m "not docker"` leaves it out."""
    for item in items:
        if "engine" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.docker)


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Fail if anything of ours is left on the machine that has nobody else, once all workers are through."""
    yield
    if BEFORE in session.stash:
        watch, before, images = session.stash[BEFORE]
        left = watch.since(before)
        watch.remove(left)
        if left:
            sys.stderr.write("\n  ".join(["\nleft behind:", *left]) + "\n")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if watch.engine is not None:
            for image in _images(watch.engine) - images:
                watch.engine.api.remove_image(image, force=True)
            watch.engine.close()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember what is there before anything runs, where nobody else is."""
    if IN_CI and not WORKER:
        with contextlib.suppress(MachineError):
            engine = dockerd.connect()
            nowhere = Path("/nonexistent")
            watch = Leftovers(home=nowhere, session=uuid.uuid4().hex, scratch=nowhere, engine=engine, alone=True)
            session.stash[BEFORE] = watch, watch.find(), _images(engine)


def lacking(what: str, why: str) -> NoReturn:
    """Skip the test, or fail it where `what` is required."""
    if what in REQUIRED:
        pytest.fail(f"{what} is required here (RUN_LOCAL_REQUIRE), but: {why}")
    pytest.skip(f"no {what}: {why}")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting of the caller's reaches a test, and no test reaches the caller's own home."""
    for name in list(os.environ):
        if name.startswith(("RUN_LOCAL_", "DOCKER_")) and name not in ENGINE_VARIABLES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("RUN_LOCAL_HOME", str(tmp_path_factory.getbasetemp() / f"home-{next(_numbers)}"))


@pytest.fixture(scope="session")
def possible_engine() -> Iterator[docker.DockerClient | MachineError]:
    """The Docker engine, or why there is none."""
    try:
        client = dockerd.connect()
    except MachineError as error:
        yield error
        return
    yield client
    client.close()


@pytest.fixture(scope="session")
def engine(possible_engine: docker.DockerClient | MachineError) -> docker.DockerClient:
    """The real Docker engine. What a test makes there it labels with `leftovers.labels`, and removes."""
    if isinstance(possible_engine, MachineError):
        lacking("docker", possible_engine.why or possible_engine.what)
    return possible_engine


@pytest.fixture(scope="session")
def home(possible_engine: docker.DockerClient | MachineError) -> Iterator[Path]:
    """The RUN_LOCAL_HOME that all runs of the session share."""
    if TEST_HOME or not IN_CI:
        with contextlib.ExitStack() as held:
            path = Path(TEST_HOME) / WORKER if TEST_HOME else held.enter_context(_free_home())
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            yield path.resolve()
        return
    path = Path(tempfile.mkdtemp(prefix="run-local-tests-")).resolve()
    yield path
    remove_tree(path)


@contextlib.contextmanager
def _free_home() -> Iterator[Path]:
    """A folder in the cache that stays, and that no other session uses meanwhile."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        path = cache / f"run-local-tests-{os.getuid()}-{number}"
        with path.with_suffix(".lock").open("w") as lock, contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield path
            return


def _images(engine: docker.DockerClient) -> set[str]:
    return {image["Id"] for image in engine.api.images(filters={"label": dockerd.LABEL})}


@pytest.fixture(scope="session", autouse=True)
def leftovers(home: Path, possible_engine: docker.DockerClient | MachineError) -> Iterator[Leftovers]:
    """Fails the session if a container, process, mount or file of it is left, and names it."""
    scratch = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp"))  # short: the path of a socket has 108 bytes at most
    found = None if isinstance(possible_engine, MachineError) else possible_engine
    watch = Leftovers(home=home, session=uuid.uuid4().hex, scratch=scratch, engine=found)
    before = watch.find()
    yield watch
    try:
        _demand_nothing_left(watch, before)
    finally:
        remove_tree(scratch)


def _demand_nothing_left(watch: Leftovers, before: set[str]) -> None:
    left = watch.since(before)
    watch.remove(left)
    if left:
        pytest.fail("\n  ".join(["left behind:", *left]), pytrace=False)


@pytest.fixture
def run_local(home: Path, leftovers: Leftovers) -> Iterator[RunLocal]:
    """The command as a user calls it. The test fails if what it started left anything behind."""
    before = leftovers.find()
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "PYTEST_"))}
    variables |= {
        SESSION_VARIABLE: leftovers.session,
        "TMPDIR": str(leftovers.scratch),
        "XDG_RUNTIME_DIR": str(leftovers.scratch),
    }
    command = RunLocal(home=home, variables=variables, started=[])
    yield command
    command.end()
    runs.remove_dead(home)  # of one that was killed the next run removes what is left: this is how it does that
    _demand_nothing_left(leftovers, before)


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), "process"])
def runtime(request: pytest.FixtureRequest) -> str:
    """The name of a runtime; a test that asks for it makes its promise for every one of them."""
    name: str = request.param
    if name == "docker":
        request.getfixturevalue("engine")
    return name


@pytest.fixture
def project(tmp_path: Path) -> MakeProject:
    """Writes small workflow projects."""
    return MakeProject(tmp_path)


@pytest.fixture(scope="session")
def interpreters() -> list[Interpreter]:
    """The Pythons of this machine that a container may hold too, one of each version, oldest first."""
    return find_interpreters()


@pytest.fixture(scope="session")
def fake_libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    """NVML and CUDA without a driver behind them."""
    if shutil.which("cc") is None:
        lacking("cc", f"no C compiler is on PATH of {sys.executable}")
    folder = tmp_path_factory.mktemp("nvidia")
    cuda = folder / "cuda" / f"libcuda.so.{DRIVER}"
    nowhere = 99  # slices have no device node of their own
    compile_cuda(cuda, [*THREE, *((uuid, nowhere) for uuid in SLICES)])
    return Libraries(nvml=compile_nvml(folder / "nvml"), cuda=cuda)


@pytest.fixture
def fake_gpus(fake_libraries: Libraries, tmp_path: Path) -> FakeGpus:
    """Three GPUs that are not there: `run_local(…, env=fake_gpus.variables)` sees them, and so does any new process."""
    return FakeGpus(fake_libraries, tmp_path / "fake-gpus")


@pytest.fixture
def real_gpu() -> gpus.Gpu:
    """A GPU of this machine on which nobody computes just now."""
    found = gpus.discover()
    free = [each for each in found.usable if not each.processes]
    if not free:
        lacking("gpu", found.why or "others compute on all of them")
    return free[0]


@pytest.fixture(scope="session")
def chromium() -> Path:
    """A browser without a window."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        lacking("chromium", f"none is on PATH of {sys.executable}")
    return Path(found)
