"""The Docker engine dies, hangs or fails at any request; on an engine of our own where it has to be killed for that."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import docker
import pytest

from executor import dockerd
from tests.conftest import lacking
from tests.faults.conftest import PYTHON, Alive, wait_for
from tests.harness import MakeProject, RunLocal, remove_tree

pytestmark = pytest.mark.docker

DEAD_S = 5.0
ENDS_S = 60.0
#: Of this session alone: another one may run the same tests, and removes its own at its end.
BRIDGE, ADDRESS = f"rlf{os.getpid()}", f"10.213.{os.getpid() % 254}.1/24"

FLOW = """
    import time

    from executor import Resources, TaskEnvironment

    leaf_env = TaskEnvironment("leaf", resources=Resources(cpu=0.5, memory="128Mi"))
    root_env = TaskEnvironment("root", depends_on=[leaf_env], resources=Resources(cpu=0.5, memory="128Mi"))


    @leaf_env.task
    def one() -> int:
        return 1


    @leaf_env.task(timeout=1)
    def slow() -> int:
        print("at work", flush=True)
        time.sleep(600)
        return 1


    @root_env.task
    def late() -> int:
        print("at work", flush=True)
        time.sleep(3)
        return one()
"""


@pytest.fixture
def root(project: MakeProject) -> Path:
    """A small project."""
    return project({"flow.py": FLOW}, {"leaf": PYTHON, "root": PYTHON}, name="small")


# -- an engine of our own ----------------------------------------------------------------------------------------------


class OwnEngine:
    """A dockerd and a containerd with folders, sockets and a bridge of their own, which shares nothing with another one.

    Its own bridge, and never none: a dockerd without one removes that of the engine beside it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/docker.sock"
        self.containerd: subprocess.Popen[bytes] | None = None
        self.dockerd: subprocess.Popen[bytes] | None = None
        self._log = (folder / "log").open("wb")

    def start(self) -> None:
        """Start what of it does not run, and wait until it answers."""
        where = self.folder
        sock = f"{where}/containerd.sock"
        if self.containerd is None or self.containerd.poll() is not None:
            state = ["--root", f"{where}/containerd", "--state", f"{where}/state"]
            self.containerd = self._spawn("containerd", *state, "--address", sock)
            wait_for(lambda: _answers(sock), "containerd answers")
        if self.dockerd is None or self.dockerd.poll() is not None:
            self.dockerd = self._spawn(
                "dockerd", "--data-root", f"{where}/data", "--exec-root", f"{where}/exec", "-H", self.url,
                "--pidfile", f"{where}/pid", "--containerd", sock, "--bridge", BRIDGE, "--iptables=false",
                "--ip-forward=false", "--ip-masq=false",
            )  # fmt: skip
            wait_for(lambda: _answers(f"{where}/docker.sock"), "dockerd answers")

    def _spawn(self, *argv: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(argv, stdout=self._log, stderr=self._log, start_new_session=True)

    def kill(self, process: subprocess.Popen[bytes] | None) -> None:
        """Kill a part of it outright."""
        assert process is not None
        process.kill()
        process.wait()
        if process is self.dockerd:
            for name in ("pid", "docker.sock"):
                (self.folder / name).unlink(missing_ok=True)

    def shims(self) -> list[int]:
        """The processes between containerd and each container."""
        mark = f"{self.folder}/containerd.sock".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if b"shim" in words[0] and mark in words:
                    found.append(int(folder.name))
        return found

    def end(self) -> None:
        """End all of it, and remove what it mounted and wrote."""
        for process in (self.dockerd, self.containerd):
            if process and process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()
                process.wait()
        for pid in self.shims():
            os.kill(pid, signal.SIGKILL)
        self._log.close()
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if line.split()[1].startswith(f"{self.folder}/"):
                subprocess.run(["umount", "-l", line.split()[1]], check=False)
        remove_tree(self.folder)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as knocking:
        try:
            knocking.connect(path)
        except OSError:
            return False
    return True


@pytest.fixture(scope="module")
def possible_own_engine(engine: docker.DockerClient) -> Iterator[OwnEngine]:
    """An engine that tests may kill, with the base images of the other one; where there is none, they are skipped."""
    if os.getuid() or not all(map(shutil.which, ("dockerd", "containerd", "ip"))):
        lacking("dockerd", "a private one needs root, and the programs `dockerd`, `containerd` and `ip`")
    subprocess.run(["ip", "link", "add", "name", BRIDGE, "type", "bridge"], check=False, capture_output=True)
    subprocess.run(["ip", "addr", "replace", ADDRESS, "dev", BRIDGE], check=False, capture_output=True)
    up = subprocess.run(["ip", "link", "set", BRIDGE, "up"], check=False, capture_output=True, text=True)
    if up.returncode:
        lacking("dockerd", f"no bridge can be made for a private one: {up.stderr}")
    made = OwnEngine(Path(tempfile.mkdtemp(prefix="rld-", dir="/tmp")))
    try:
        made.start()
        with contextlib.closing(docker.DockerClient(base_url=made.url)) as own:
            for image in engine.images.list(filters={"label": f"{dockerd.LABEL}=base"}):
                if image.tags:  # or they would be made anew, which takes a minute
                    own.images.load(b"".join(image.save(named=True)))
        yield made
    finally:
        made.end()
        subprocess.run(["ip", "link", "delete", BRIDGE], check=False, capture_output=True)


@pytest.fixture
def own_engine(possible_own_engine: OwnEngine) -> OwnEngine:
    """The same, running."""
    possible_own_engine.start()
    return possible_own_engine


@dataclass
class Elsewhere:
    """Runs on the private engine."""

    run_local: RunLocal
    engine: OwnEngine

    def start(self, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
        """A run whose first task is at work."""
        env = {"DOCKER_HOST": self.engine.url}
        process = self.run_local.start(*arguments, "--runtime", "docker", "-v", "--json", cwd=cwd, env=env)
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "at work" in line or "haunting" in line:
                return process
        raise AssertionError("".join(said))


@pytest.fixture
def elsewhere(run_local: RunLocal, own_engine: OwnEngine) -> Elsewhere:
    """Starts runs there."""
    return Elsewhere(run_local, own_engine)


def test_the_engine_is_killed_in_mid_task(
    elsewhere: Elsewhere, own_engine: OwnEngine, haunted: Path, alive: Alive, token: str, run_local: RunLocal
) -> None:
    """It is waited for, and then the run ends with its name; nothing is alive though nobody could ask for that."""
    process = elsewhere.start("haunt", "--token", token, cwd=haunted)
    assert alive.find() != []
    own_engine.kill(own_engine.dockerd)
    began = time.monotonic()
    stdout, stderr = process.communicate(timeout=ENDS_S)
    error = json.loads(stdout)["error"]
    assert (process.returncode, error["code"]) == (1, "lost_engine"), stderr
    assert error["message"] == "the container engine was lost"
    assert "docker.sock" in error["why"]
    assert time.monotonic() - began < ENDS_S / 2
    assert alive.after(DEAD_S) == []
    own_engine.start()
    again = run_local("two", "--runtime", "docker", cwd=haunted, env={"DOCKER_HOST": own_engine.url})
    assert (again.code, again.stdout) == (0, "2\n"), again.stderr


def test_the_shim_of_a_container_is_killed(
    elsewhere: Elsewhere, own_engine: OwnEngine, haunted: Path, alive: Alive, token: str
) -> None:
    """The container dies with it; its attempt is lost, the next one too, and the engine is not blamed."""
    process = elsewhere.start("haunt", "--token", token, cwd=haunted)
    assert process.stderr is not None
    for pid in own_engine.shims():
        os.kill(pid, signal.SIGKILL)
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "haunting" in line:
            break
    else:
        raise AssertionError("".join(seen))
    for pid in own_engine.shims():
        os.kill(pid, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=ENDS_S)
    assert (process.returncode, json.loads(stdout)["error"]["code"]) == (1, "lost_agent"), stderr
    assert alive.after(DEAD_S) == []


def test_containerd_is_killed(elsewhere: Elsewhere, own_engine: OwnEngine, root: Path) -> None:
    """What is at work goes on; what needs another container fails soon, in the engine's words."""
    process = elsewhere.start("late", cwd=root)
    own_engine.kill(own_engine.containerd)
    stdout, stderr = process.communicate(timeout=ENDS_S)
    error = json.loads(stdout)["error"]
    assert process.returncode == 1, stderr
    assert error["code"] in ("rejected", "lost_engine"), error
    assert "a container of `leaf` could not be started" in error["message"]
    own_engine.kill(own_engine.dockerd)  # which may not find its way back for a while


# -- the engine of this machine ----------------------------------------------------------------------------------------


def _slots(engine: docker.DockerClient, home: Path) -> list[str]:
    found = engine.api.containers(filters={"label": f"{dockerd.LABEL}=slot"})
    return [each["Id"] for each in found if Path(each["Labels"]["run-local.lease"]).is_relative_to(home)]


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_stranger_pauses_a_container(
    run_local: RunLocal, root: Path, engine: docker.DockerClient, home: Path, interrupted: bool
) -> None:
    """Its agent cannot stop the task in time, nor on Ctrl-C; the host does, and nothing stays paused."""
    process = run_local.start("slow" if not interrupted else "late", "--runtime", "docker", "--json", "-v", cwd=root)
    assert process.stderr is not None
    assert any("at work" in line for line in process.stderr)
    for container in _slots(engine, home):
        engine.api.pause(container)
    if interrupted:
        process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=ENDS_S)
    told = json.loads(stdout)
    assert told["status"] == ("cancelled" if interrupted else "failed"), stderr
    if not interrupted:
        assert told["error"]["code"] == "timeout"
        assert told["error"]["why"] == "its agent did not stop it, so the host has"
    wait_for(lambda: _slots(engine, home) == [], "the container is gone")


Fault = Callable[[str], "int | str | None"]


class Faulty:
    """A socket in front of the engine that looks at each request, as `METHOD path`, before it passes it on.

    fault: answers with None to pass it on; a status, to answer with that instead; `done <status>`, to pass it on and
    answer so all the same; `hang`, to answer nothing
    """

    def __init__(self, path: Path, engine: str, fault: Fault) -> None:
        self.path, self._engine, self._fault = path, engine, fault
        self.met: list[str] = []
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End all of it."""
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                engine = socket.socket(socket.AF_UNIX)
                engine.connect(self._engine)
                self._open += [client, engine]
                threading.Thread(target=self._ask, args=(client, engine), daemon=True).start()
                threading.Thread(target=self._answer, args=(client, engine), daemon=True).start()

    def _ask(self, client: socket.socket, engine: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(2**16):
                method, _, rest = data.partition(b" ")
                request = ""
                if method in (b"GET", b"POST", b"DELETE", b"HEAD"):  # a request begins where one of our clients writes
                    request = f"{method.decode()} {rest.partition(b' ')[0].decode()}"
                fault = self._fault(request)
                if fault is None:
                    engine.sendall(data)
                    continue
                self.met.append(request)
                if fault == "hang":
                    return
                if isinstance(fault, str):
                    self._pass_on_whole(data, client)
                status = fault if isinstance(fault, int) else int(fault.split()[1])
                body = b'{"message": "a fault of the test"}'
                head = f"HTTP/1.1 {status} Fault\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                client.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)
                client.shutdown(socket.SHUT_WR)
                engine.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            engine.shutdown(socket.SHUT_WR)

    def _pass_on_whole(self, data: bytes, client: socket.socket) -> None:
        """Have the engine do it, and keep its answer back."""
        head, _, body = data.partition(b"\r\n\r\n")
        sizes = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        missing = int(sizes[0].split(b":")[1]) - len(body) if sizes else 0
        with socket.socket(socket.AF_UNIX) as engine:
            engine.connect(self._engine)
            engine.sendall(data)
            while missing > 0:
                more = client.recv(2**16)
                engine.sendall(more)
                missing -= len(more)
            engine.recv(2**16)

    def _answer(self, client: socket.socket, engine: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := engine.recv(2**16):
                client.sendall(data)


@dataclass
class Times:
    """A fault at the first so many requests that have these words in them."""

    what: int | str
    words: tuple[str, ...]
    left: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, request: str) -> int | str | None:
        with self.lock:
            if self.left and all(word in request for word in self.words):
                self.left -= 1
                return self.what
        return None


MakeFaulty = Callable[..., Faulty]


@pytest.fixture
def faulty(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeFaulty]:
    """`faulty(what, *words, times=1)` is a socket in front of the engine with that fault."""
    base = str(engine.api.base_url).removeprefix("http+docker://localhost")
    real = base if base.startswith("/") else os.environ.get("DOCKER_HOST", "").removeprefix("unix://")
    folder, made = tmp_path_factory.mktemp("faulty"), list[Faulty]()

    def make(what: int | str, *words: str, times: int = 1) -> Faulty:
        path = folder / str(len(made))
        made.append(Faulty(path, real or "/var/run/docker.sock", Times(what, words, times)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_an_engine_that_hangs_is_named_in_time(
    run_local: RunLocal, root: Path, faulty: MakeFaulty, alive: Alive
) -> None:
    """At whichever request: the run ends with an error that says so, and leaves nothing running."""
    assert run_local("one", "--runtime", "docker", cwd=root).code == 0
    requests = [("GET", "/containers/json"), ("GET", "/events"), ("POST", "/containers/create"), ("POST", "/start")]
    waiting = []
    for words in requests:
        socket_ = faulty("hang", *words, times=1000)
        env = {"DOCKER_HOST": f"unix://{socket_.path}"}
        waiting.append((socket_, run_local.start("one", "--runtime", "docker", cwd=root, env=env)))
    for (socket_, process), words in zip(waiting, requests, strict=True):
        _, stderr = process.communicate(timeout=2 * ENDS_S)
        assert socket_.met, words
        assert process.returncode in (1, 4), (words, stderr)
        assert "the Docker engine does not answer any more" in stderr, words
        assert "Traceback" not in stderr
    for socket_, _ in waiting:
        socket_.close()
    assert alive.after(DEAD_S) == []
    assert run_local("one", "--runtime", "docker", cwd=root).code == 0  # which removes what was made and never started


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (500, ("GET", "/containers/json")),
        (500, ("GET", "/events")),
        (500, ("POST", "/containers/create")),
        ("done 500", ("POST", "/containers/create")),
        (500, ("POST", "/start")),
        ("done 500", ("POST", "/start")),
    ],
)
def test_a_fault_of_the_engine_is_asked_past(
    run_local: RunLocal, root: Path, faulty: MakeFaulty, what: int | str, words: tuple[str, ...]
) -> None:
    """What may be asked twice is, also where the engine had done it the first time; nothing is there twice."""
    socket_ = faulty(what, *words)
    done = run_local("one", "--runtime", "docker", cwd=root, env={"DOCKER_HOST": f"unix://{socket_.path}"})
    assert (done.code, done.stdout) == (0, "1\n"), done.stderr
    assert len(socket_.met) == 1


@pytest.mark.parametrize("status", [404, 409, 500])
@pytest.mark.parametrize("words", [("POST", "/containers/create"), ("POST", "/start"), ("GET", "/events")])
def test_a_fault_that_stays_is_told(
    run_local: RunLocal, root: Path, faulty: MakeFaulty, status: int, words: tuple[str, ...]
) -> None:
    """With what was asked for and what the engine said; no container is left, and nothing was tried for ever."""
    socket_ = faulty(status, *words, times=1000)
    done = run_local("one", "--runtime", "docker", cwd=root, env={"DOCKER_HOST": f"unix://{socket_.path}"})
    assert done.code in (1, 4), done.stderr
    assert "a fault of the test" in done.stderr
    assert "Traceback" not in done.stderr
    assert 1 <= len(socket_.met) <= 2
