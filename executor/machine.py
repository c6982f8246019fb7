"""This machine: where run-local keeps its things, how much of it there is, and child processes that die with us."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import re
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from executor.errors import MachineError, UsageError
from executor.resources import parse_memory
from executor.worker.output import LOG_LIMIT_BYTES

ISOLATION_VARIABLE = "RUN_LOCAL_ISOLATION"
ISOLATIONS = ("auto", "required")
LOG_LIMIT_VARIABLE = "RUN_LOCAL_LOG_LIMIT"
OFFLINE_VARIABLE = "RUN_LOCAL_OFFLINE"

#: File systems that several machines share, or that are not the kernel's own: locks and mapped files may not hold there.
_NETWORKED = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "orangefs",
    "panfs", "pvfs2", "smb2", "smb3", "smbfs", "wekafs", "fuse.ceph", "fuse.cvmfs", "fuse.glusterfs", "fuse.gpfs",
    "fuse.juicefs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs",
})  # fmt: skip
_OCTAL = re.compile(r"\\([0-7]{3})")
_PR_SET_PDEATHSIG = 1
_UNLIMITED = 2**60

F = TypeVar("F", bound=Any)

_libc = ctypes.CDLL(None)
_only_ours: weakref.WeakSet[Any] = weakref.WeakSet()
_children: weakref.WeakSet[subprocess.Popen[Any]] = weakref.WeakSet()


def home_path() -> Path:
    """Where `home` is, or would be."""
    named = os.environ.get("RUN_LOCAL_HOME")
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    return Path(named).absolute() if named else data / "run-local"


def home() -> Path:
    """`$RUN_LOCAL_HOME`, or `run-local` in the user's data folder; made if it is missing."""
    folder = home_path()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "tmp").mkdir(exist_ok=True)
    except OSError as exc:
        raise MachineError(
            f"`{folder}` cannot be used",
            why=f"{exc.strerror}: {exc.filename}",
            hint="set RUN_LOCAL_HOME to a folder that you can write to",
        ) from exc
    return folder


def network_file_system(path: Path, mounts: str = "/proc/self/mountinfo") -> str:
    """The kind of the network file system that a path lies on, such as `nfs4`; empty where it is local, or unknown."""
    real, longest, found = os.path.realpath(path), "", ""
    for line in read_setting(mounts, "utf-8").splitlines():
        before, _, after = line.partition(" - ")
        at = _OCTAL.sub(lambda escaped: chr(int(escaped[1], 8)), (before.split() + [""] * 5)[4])
        is_above = real == at or real.startswith(at.rstrip("/") + "/")
        if at and is_above and len(at) >= len(longest):  # the last one hides those before
            longest, found = at, (after.split() or [""])[0]
    return found if found in _NETWORKED else ""


def offline() -> bool:
    """Whether nothing may be fetched: `--offline`, or `RUN_LOCAL_OFFLINE=1`."""
    return os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0")


def log_limit() -> int:
    """How many bytes of what one attempt prints are kept: `RUN_LOCAL_LOG_LIMIT`, written like an amount of memory."""
    told = os.environ.get(LOG_LIMIT_VARIABLE, "").strip()
    try:
        return parse_memory(told) if told else LOG_LIMIT_BYTES
    except UsageError as exc:
        raise UsageError(f"{LOG_LIMIT_VARIABLE} is `{told}`", why="it is no amount of bytes", hint=exc.hint) from None


def isolation(told: str | None = None) -> str:
    """How well tasks have to be isolated: what was told, else `RUN_LOCAL_ISOLATION`, else `auto`."""
    wanted = told or os.environ.get(ISOLATION_VARIABLE, "").strip() or ISOLATIONS[0]
    if wanted not in ISOLATIONS:
        raise UsageError(f"there is no isolation `{wanted}`", why=f"what there is: {', '.join(ISOLATIONS)}")
    return wanted


def user() -> tuple[int, int]:
    """Our user and group."""
    return os.getuid(), os.getgid()


def cores() -> float:
    """The cores that this process may use: its affinity and its control group's quota."""
    available = float(len(os.sched_getaffinity(0)))
    quota = read_setting("/sys/fs/cgroup/cpu.max").split()
    if not quota:
        quota = [
            read_setting("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
            read_setting("/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
        ]
    if len(quota) == 2 and all(part.isdigit() for part in quota) and int(quota[1]):
        available = min(available, int(quota[0]) / int(quota[1]))
    return available


def memory_bytes() -> int:
    """The memory that this process may use: the hardware's, or less where its control group has a limit."""
    hardware = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = read_setting(path)
        if limit.isdigit() and int(limit) < _UNLIMITED:
            hardware = min(hardware, int(limit))
    return hardware


def describe() -> dict[str, Any]:
    """This machine as a record has it: its `name`, `kernel`, `cores` and `memory_bytes`, and the `python` that runs us."""
    return {
        "name": platform.node(),
        "kernel": f"{platform.system()} {platform.release()}",
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "python": platform.python_version(),
    }


def glibc_version() -> str:
    """The version of this machine's C library; what is made here needs at least that."""
    return platform.libc_ver()[1]


def spawn(argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a process that the kernel kills when we die, even by SIGKILL; the options are `Popen`'s.

    The kernel ties it to the thread that starts it, so that has to wait for it.
    """
    process = subprocess.Popen(argv, preexec_fn=_die_with_parent, **options)
    _children.add(process)
    return process


def keep_from_forks(file: F) -> F:
    """Let go of an open file or socket in every process that is forked from this one; answers with the file.

    A lock, or the line to an agent, says that we are alive. What a user's script has forked must not say so after us.
    """
    _only_ours.add(file)
    return file


def _let_go() -> None:
    """In a process that was just forked: put nothing in the place of each of these files.

    `close` would wait for a lock of the file's that another thread may have held when we were forked, for ever.
    """
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for file in list(_only_ours):
        with contextlib.suppress(ValueError, OSError):  # it was closed
            number = file.fileno()
            if number >= 0:
                os.dup2(nothing, number, inheritable=False)
    os.close(nothing)


os.register_at_fork(after_in_child=_let_go)


def end_children() -> None:
    """Kill every process of `spawn` that still runs."""
    for process in list(_children):
        if process.poll() is None:
            process.kill()


@contextlib.contextmanager
def child(argv: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process of `spawn` that lives no longer than the block; its pipes are closed with it, however the block ends."""
    process = None
    try:
        with _signals_held():
            process = spawn(argv, **options)
        yield process
    finally:
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                with contextlib.suppress(BrokenPipeError):  # what it did not read
                    if pipe:
                        pipe.close()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let no Ctrl-C or SIGTERM interrupt what the main thread does in the block; one that comes is handled after it.

    `Popen` can be interrupted between the start of a process and its own return, and nobody has that process then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    before: dict[int, Callable[[int, FrameType | None], object]] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                signal.signal(number, lambda *signaled: came.append(signaled))
        yield
    finally:
        for held, handler in reversed(before.items()):  # SIGINT last, since its handler raises
            signal.signal(held, handler)
    for held, frame in came:
        before[held](held, frame)


def run(argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a process to its end and capture what it prints, as text; it does not survive us, or an interrupt."""
    given = options.pop("input", None)
    stdin = subprocess.DEVNULL if given is None else subprocess.PIPE
    with child(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        stdout, stderr = process.communicate(given)
    return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)


@contextlib.contextmanager
def lock_file(path: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock that other processes of ours respect; `waits` is called once if somebody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with keep_from_forks(path.open("wb")) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def read_setting(path: str, encoding: str = "ascii") -> str:
    """What a small file of the kernel's says; empty where it cannot be read."""
    try:
        return Path(path).read_text(encoding=encoding, errors="surrogateescape").strip()
    except OSError:
        return ""
