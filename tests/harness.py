"""What the fixtures hand to tests, and how they find what a test left behind."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import docker

from executor import dockerd

ROOT = Path(__file__).resolve().parent.parent

#: In the environment of every process that a test session starts; its value tells sessions apart.
SESSION_VARIABLE = "RUN_LOCAL_TEST_SESSION"

#: Starts a command below a seccomp filter that refuses new user namespaces, as in a container with the default profile.
WITHOUT_NAMESPACES = [
    sys.executable,
    "-c",
    """
import ctypes, os, platform, struct, sys
unshare, clone = {"x86_64": (272, 56), "aarch64": (97, 220)}[platform.machine()]
LOAD, EQUAL, ANY, RETURN = 0x20, 0x15, 0x45, 0x06
program = b"".join(struct.pack("HBBI", *each) for each in (
    (LOAD, 0, 0, 0), (EQUAL, 4, 0, unshare), (EQUAL, 0, 2, clone), (LOAD, 0, 0, 16), (ANY, 1, 0, 0x10000000),
    (RETURN, 0, 0, 0x7FFF0000), (RETURN, 0, 0, 0x00050001),
))
text = ctypes.create_string_buffer(program)
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(text)), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
""",
]

#: Starts a command in a network namespace without any interface; empty where that cannot be done.
WITHOUT_NETWORK = ["unshare", "-n" if os.getuid() == 0 else "-rn"]
if subprocess.run([*WITHOUT_NETWORK, "true"], capture_output=True, check=False).returncode != 0:
    WITHOUT_NETWORK = []

SHARED_MEMORY = Path("/dev/shm")

OLDEST_IN_CONTAINERS = (3, 9)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How one call of `run-local` ended."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout, with `--json`."""
        document = json.loads(self.stdout)
        assert isinstance(document, dict), self.stdout
        return document


@dataclass(frozen=True, kw_only=True)
class RunLocal:
    """Calls the real command, in an environment of its own; one that fails or hangs does not outlive its test.

    under: the command that it is started by, which restricts it
    """

    home: Path
    variables: Mapping[str, str]
    started: list["subprocess.Popen[str]"]
    under: Sequence[str] = ()

    def __call__(
        self,
        *arguments: str | Path,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        wrapped: Sequence[str] = (),
        timeout_s: float = 900,
    ) -> Finished:
        """Run `run-local ARGUMENTS` in `cwd` and wait for its end; `env` is added to its environment.

        wrapped: a command that runs it, such as `unshare`
        """
        began = time.monotonic()
        process = self.start(*arguments, cwd=cwd, env=env, wrapped=wrapped)
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            raise AssertionError(f"no end after {timeout_s} s; so far:\n{stdout}\n{stderr}") from None
        seconds = time.monotonic() - began
        return Finished(code=process.returncode, stdout=stdout, stderr=stderr, seconds=seconds)

    def start(
        self,
        *arguments: str | Path,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        wrapped: Sequence[str] = (),
    ) -> "subprocess.Popen[str]":
        """Start `run-local ARGUMENTS` in a process group of its own, for tests that interrupt or kill it."""
        command = Path(sys.executable).with_name("run-local")
        assert command.exists(), f"{command} is missing: run `scripts/setup dev`"
        process = subprocess.Popen(
            [*self.under, *wrapped, str(command), *map(str, arguments)],
            cwd=cwd,
            env={**self.variables, "RUN_LOCAL_HOME": str(self.home), **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """Kill whatever is still running of what was started."""
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@dataclass(frozen=True)
class MakeProject:
    """Writes workflow projects below `folder`."""

    folder: Path

    def __call__(
        self, files: Mapping[str, str], environments: Mapping[str, str | Sequence[str]], name: str = "project"
    ) -> Path:
        """A project with these source files and environments; its root.

        files:        path from the root → text, dedented
        environments: name → its packages, or the whole text of its environment.yml
        """
        root = self.folder / name
        for path, text in files.items():
            _write(root / path, dedent(text).lstrip("\n"))
        for environment, spec in environments.items():
            text = dedent(spec).lstrip("\n") if isinstance(spec, str) else _render_spec(spec)
            _write(root / "envs" / environment / "environment.yml", text)
        return root


def _render_spec(packages: Sequence[str]) -> str:
    return "\n".join(["channels: [conda-forge]", "dependencies:", *(f"  - {one}" for one in packages), ""])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@dataclass(frozen=True, order=True)
class Interpreter:
    """Another Python on this machine."""

    version: tuple[int, int]
    path: Path

    def run(self, code: str, *arguments: str) -> str:
        """What the program `code` prints; it has to succeed."""
        done = subprocess.run([self.path, "-I", "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


def find_interpreters() -> list[Interpreter]:
    """One Python of every version that a container may hold, oldest first: on PATH, and pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = [shutil.which(f"python3.{minor}") for minor in range(OLDEST_IN_CONTAINERS[1], 20)]
    candidates = [*sorted(pyenv.glob("versions/*/bin/python3")), *(Path(one) for one in on_path if one)]
    found: dict[tuple[int, int], Interpreter] = {}
    for path in candidates:
        version = _version_of(path)
        if version is not None and version >= OLDEST_IN_CONTAINERS:
            found.setdefault(version, Interpreter(version, path))
    return sorted(found.values())


def _version_of(path: Path) -> tuple[int, int] | None:
    code = "import sys; print(*sys.version_info[:2])"
    done = subprocess.run([path, "-I", "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None  # a shim of pyenv's for a version that is not switched on
    major, minor = done.stdout.split()
    return int(major), int(minor)


@dataclass(frozen=True, kw_only=True)
class Leftovers:
    """Finds what a run left on this machine, each thing as one line that names it.

    home:    what belongs to runs with this RUN_LOCAL_HOME
    session: the processes that carry this value of SESSION_VARIABLE, the containers with `labels`
    scratch: the folder that runs were given as TMPDIR and XDG_RUNTIME_DIR
    alone:   nobody else uses run-local on this machine, so every container with our label is of this session
    grace_s: how long a run that is over may take to disappear: the engine removes containers in the background
    """

    home: Path
    session: str
    scratch: Path
    engine: docker.DockerClient | None
    alone: bool = False
    grace_s: float = 2.0

    @property
    def labels(self) -> dict[str, str]:
        """What a test puts on a container that it makes itself."""
        return {dockerd.LABEL: "test", f"{dockerd.LABEL}.session": self.session}

    def find(self) -> set[str]:
        """All that is there now."""
        return {*self._containers(), *self._processes(), *self._mounts(), *self._sockets(), *self._files()}

    def since(self, before: set[str]) -> list[str]:
        """What came since `before` and does not go away by itself."""
        deadline = time.monotonic() + self.grace_s
        while (left := self.find() - before) and time.monotonic() < deadline:
            time.sleep(0.1)
        return sorted(left)

    def remove(self, left: Sequence[str]) -> None:
        """Remove these containers, mounts and files, and kill these processes, so that no later test meets them."""
        for line in left:
            kind, _, rest = line.partition(" ")
            name = rest.split()[0]
            if kind == "container" and self.engine is not None:
                self.engine.api.remove_container(name, force=True, v=True)
            elif kind == "process":
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(int(name), signal.SIGKILL)
            elif kind == "mount":
                subprocess.run(["umount", "-l", rest], check=False)
            elif kind == "file":
                remove_tree(Path(rest))

    def _containers(self) -> Iterator[str]:
        if self.engine is None:
            return
        for found in self.engine.api.containers(all=True, filters={"label": dockerd.LABEL}):
            labels = found["Labels"]
            lease = labels.get(f"{dockerd.LABEL}.lease", "")
            if self.alone or Path(lease).is_relative_to(self.home) or self.labels.items() <= labels.items():
                yield f"container {found['Id'][:12]} {' '.join(found['Names'])} of image {found['Image']}"

    def _processes(self) -> Iterator[str]:
        marks = (f"{SESSION_VARIABLE}={self.session}\0".encode(), f"{self.home}/".encode())
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes()
                known = command + (folder / "environ").read_bytes()
            except OSError:
                continue  # it ended meanwhile, or is somebody else's
            if command and any(mark in known for mark in marks):
                words = command.decode(errors="replace").split("\0")
                yield f"process {folder.name} {' '.join(words)[:200]}"

    def _mounts(self) -> Iterator[str]:
        for line in Path("/proc/self/mounts").read_text().splitlines():
            place = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split()[1])
            if Path(place).is_relative_to(self.home) or Path(place).is_relative_to(self.scratch):
                yield f"mount {place}"

    def _sockets(self) -> Iterator[str]:
        """Listening sockets by name: abstract ones have no file that could be found."""
        for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
            name = line.split(maxsplit=7)[7:]
            if name and (self.session in name[0] or f"{self.home}/" in name[0] or f"{self.scratch}/" in name[0]):
                yield f"socket {name[0]}"

    def _files(self) -> Iterator[str]:
        """What only a run that goes on has: temporary files, its slots' folders, shared memory that somebody named."""
        for folder in (self.scratch, self.home / "sockets", self.home / "tmp"):
            if folder.exists():
                yield from (f"file {path}" for path in sorted(folder.iterdir()))
        for pattern in ("runs/*/slots", "runs/*/incoming", "runs/*/lease", "*/half-*"):
            yield from (f"file {path}" for path in sorted(self.home.glob(pattern)))
        yield from (f"file {path}" for path in sorted(SHARED_MEMORY.iterdir()) if _is_ours(path, self.alone))


def _is_ours(path: Path, alone: bool) -> bool:
    """Whether a file in shared memory may be one of ours: nobody else is there, or it says so."""
    return alone or "run-local" in path.name


def remove_tree(path: Path) -> None:
    """Remove a file or folder, read-only folders in it too."""
    if path.is_dir() and not path.is_symlink():
        for folder, _, _ in os.walk(path):
            Path(folder).chmod(0o700)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
