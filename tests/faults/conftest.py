"""Fixtures of the fault tests: a haunting project, an index that hangs, and the search for what is still alive."""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.harness import Leftovers, MakeProject

PYTHON = ["python >=3.10"]
PATIENCE_S = 30.0

#: `haunt` leaves children of every kind behind and never ends; all of them carry the token on their command line.
FLOW = '''
    import os
    import pathlib
    import signal
    import subprocess
    import sys
    import time

    from executor import Resources, TaskEnvironment

    leaf_env = TaskEnvironment("leaf", resources=Resources(cpu=0.5, memory="256Mi"))
    root_env = TaskEnvironment("root", depends_on=[leaf_env], resources=Resources(cpu=1, memory="256Mi"))

    STUBBORN = """
    import os, signal, sys, time
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.argv[2] == "daemon" and (os.fork() or os.setsid() or os.fork()):
        os._exit(0)
    time.sleep(600)
    """


    def spawn(token: str) -> None:
        subprocess.Popen([sys.executable, "-c", STUBBORN, token, "child"])
        subprocess.run([sys.executable, "-c", STUBBORN, token, "daemon"], check=True)


    @leaf_env.task
    def work(token: str, depth: int) -> int:
        spawn(token)
        if depth:
            return work(token, depth - 1)
        print("haunting", flush=True)
        time.sleep(600)
        return 0


    @root_env.task
    def haunt(token: str, depth: int = 1) -> int:
        """Never ends."""
        spawn(token)
        return work(token, depth)


    @leaf_env.task
    def one() -> int:
        return 1


    @root_env.task
    def two() -> int:
        return one() + 1
'''


@pytest.fixture
def haunted(project: MakeProject) -> Path:
    """A project whose task `haunt` never ends, and whose `two` is 2."""
    return project({"flow.py": FLOW}, {"leaf": PYTHON, "root": PYTHON})


@pytest.fixture
def token() -> str:
    """A text that no other process on this machine has in its command line."""
    return f"token-{uuid.uuid4().hex}"


@dataclass(frozen=True)
class Alive:
    """Finds what of a run is alive: processes that carry the token, or are the session's own, and running containers."""

    leftovers: Leftovers
    token: str
    before: frozenset[str]

    def find(self) -> list[str]:
        """One line for each."""
        found = [line for line in self.leftovers.find() - self.before if line.startswith("process ")]
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended meanwhile
            if self.token.encode() in words:
                found.append(f"process {folder.name} of a task")
        return found + self._containers()

    def _containers(self) -> list[str]:
        engine = self.leftovers.engine
        if engine is None:
            return []
        running = engine.api.containers(filters={"label": "run-local"})
        leases = {each["Id"][:12]: each["Labels"].get("run-local.lease", "/") for each in running}
        return [f"container {id}" for id, lease in leases.items() if Path(lease).is_relative_to(self.leftovers.home)]

    def after(self, seconds: float, but: str = "nobody") -> list[str]:
        """What is still alive after so long, but lines that begin like this; returns as soon as nothing is."""
        deadline = time.monotonic() + seconds
        while (found := [line for line in self.find() if not line.startswith(but)]) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found


@pytest.fixture
def alive(leftovers: Leftovers, token: str) -> Alive:
    """What of this test is alive."""
    return Alive(leftovers, token, frozenset(leftovers.find()))


def wait_for(fact: Callable[[], object], what: str) -> None:
    """Wait until something is true; fails when it does not become so."""
    deadline = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE_S:g} s"
        time.sleep(0.01)


@dataclass
class Index:
    """A package index with one wheel, of no code. It answers, or hangs until the test is over where it is told to.

    hang: the part of a path that it never answers; `reached` is set as soon as somebody has asked for it
    """

    package: str
    hang: str = ""
    reached: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    port: int = 0
    size: int = 0

    @property
    def variables(self) -> dict[str, str]:
        """What points pip's configuration, and with it run-local, to this index."""
        return {"PIP_INDEX_URL": f"http://127.0.0.1:{self.port}/simple", "PIP_CONFIG_FILE": "/dev/null"}

    @property
    def spec(self) -> str:
        """The specification of an environment with the package."""
        lines = ["channels: [conda-forge]", "dependencies:", "  - python >=3.10", "  - pip"]
        return "\n".join([*lines, f"  - pip: [{self.package}]", ""])

    def wheel(self) -> bytes:
        """The wheel; its size is that of one file in it that does not compress."""
        made = io.BytesIO()
        stem = f"{self.package.replace('-', '_')}-1.0"
        metadata = f"Metadata-Version: 2.1\nName: {self.package}\nVersion: 1.0\n"
        with zipfile.ZipFile(made, "w") as archive:
            for name, text in (
                (f"{stem}.dist-info/METADATA", metadata),
                (f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
                (f"{stem.replace('-1.0', '')}_data.bin", "x" * self.size),
                (f"{stem}.dist-info/RECORD", f"{stem}.dist-info/METADATA,,\n{stem}.dist-info/WHEEL,,\n"),
            ):
                archive.writestr(zipfile.ZipInfo(name), text)
        return made.getvalue()

    def answer(self, path: str) -> bytes | None:
        """The body for a path; None is a 404."""
        wheel, stem = self.wheel(), f"{self.package.replace('-', '_')}-1.0"
        name = f"{stem}-py3-none-any.whl"
        if path.endswith(f"/simple/{self.package}/"):
            link = f"/files/{name}#sha256={hashlib.sha256(wheel).hexdigest()}"
            return f'<a href="{link}" data-dist-info-metadata="true">{name}</a>'.encode()
        if path.endswith(".metadata"):
            return zipfile.ZipFile(io.BytesIO(wheel)).read(f"{stem}.dist-info/METADATA")
        return wheel if path.endswith(name) else None


@pytest.fixture
def index(token: str) -> Iterator[Index]:
    """A package index on this machine with one package that nobody has ever locked."""
    made = Index(package=token)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            if made.hang and self.path.endswith(made.hang):
                made.reached.set()
                made.over.wait()
                return
            body = made.answer(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    made.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def files_below(folder: Path, leave_out: Sequence[str] = ()) -> set[str]:
    """Every path below a folder, from there, except what lies in some of its folders."""
    paths = {path.relative_to(folder) for path in folder.rglob("*")}
    return {str(path) for path in paths if path.parts[0] not in leave_out}
