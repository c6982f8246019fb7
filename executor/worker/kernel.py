"""The few things that the agent asks of Linux directly: prctl, namespaces, and what /proc knows.

Each has its reason in docs/adr/0010. Everything here is safe to call as an ordinary user; what the kernel refuses is
answered with False or None, never with an exception.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import resource
import signal
import socket
import struct
import time
from collections.abc import Iterable

_MOST_OPEN_FILES = 65536
_ENDS_S = 10.0
_ROUND_S = 0.002

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 1
_MS_RDONLY = 1
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_MS_REMOUNT = 32
_MS_BIND = 4096
_MS_BIND_ALL = 4096 | 0x4000
_MS_REC_PRIVATE = 0x4000 | 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Let the kernel kill this process when the thread that made it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def outlive_parent() -> None:
    """Take back `die_with_parent`, also where the parent asked for it."""
    _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def become_subreaper() -> bool:
    """Let orphans among our descendants become our children, as they would of PID 1."""
    return bool(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def enter_namespaces() -> str:
    """Make a user, a mount and a process namespace for the children of this process, which stays who it is.

    Answers with what the kernel refused, as the call and its error; an empty text where it refused nothing.
    """
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID) != 0:
        return _refused("unshare")
    try:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
    except OSError as exc:
        return f"{exc.filename}: {exc.strerror}"
    if _libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None) != 0:
        return _refused("mount")  # what is mounted outside from now on would be seen inside
    return ""


def try_namespaces() -> str:
    """What the kernel refuses of a process namespace with a /proc of its own, if anything.

    The calling process is in namespaces of its own afterwards, so it should be made for that.
    """
    refused = enter_namespaces()
    if refused:
        return refused
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, b"" if mount_own_proc() else _refused("mount of /proc").encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as told:
        return told.read()


def _refused(call: str) -> str:
    return f"{call}: {os.strerror(ctypes.get_errno())}"


def mount_own_proc() -> bool:
    """Show this process namespace, and no other, in /proc."""
    return bool(_libc.mount(b"proc", b"/proc", b"proc", _MS_NOSUID_NODEV_NOEXEC, None) == 0)


def leave_network() -> bool:
    """Go on in a network namespace of our own, where there is nothing but a loopback, if the kernel lets us."""
    if _libc.unshare(CLONE_NEWNET) != 0:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, contextlib.suppress(OSError):
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))
    return True


def try_to_leave_network() -> bool:
    """Whether we may do that here, in a user namespace or without; for a process that is made for this question."""
    return bool(_libc.unshare(CLONE_NEWNET) == 0 or _libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0)


def interfaces() -> list[str]:
    """The network interfaces that are up, apart from the loopback; where there is none, nobody can be reached."""
    found = []
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):  # it was removed meanwhile
                    told = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16s24x", os.fsencode(name)))
                    if name != "lo" and struct.unpack_from("H", told, 16)[0] & _IFF_UP:
                        found.append(name)
    except OSError:  # there is no network at all
        return []
    return sorted(found)


def mount_read_only(source: str, target: str) -> bool:
    """Show a file or folder, and what is mounted below it, at another place or at its own as what nobody can write to.

    Only in our own mount namespace, and only where there is something at the target. `source` may be a path of
    `hold_open`, which means what it meant then, whatever was mounted meanwhile.
    """
    if _libc.mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND_ALL, None) != 0:
        return False
    target = os.path.realpath(target)
    return all(_remount_read_only(path) for path in (target, *mounted_below(target)))


def hold_open(path: str) -> str:
    """Another path of a file or folder of our mount namespace, for as long as this process lives."""
    return f"/proc/self/fd/{os.open(path, os.O_PATH | os.O_CLOEXEC)}"


def mounted_below(folder: str) -> list[str]:
    """Where file systems are mounted below a folder, by its real path, the outermost first."""
    return [path for path in mount_points() if path.startswith(folder.rstrip("/") + "/") and os.path.exists(path)]


def mount_points() -> list[str]:
    """Where file systems are mounted, the outermost first."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return sorted({os.fsdecode(_unescaped(line.split(b" ")[4])) for line in file})
    except OSError:
        return []


def is_read_only(path: str) -> bool:
    """Whether what lies at a path is mounted so that nobody can write to it; False where there is nothing."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def size_of(path: str) -> int | None:
    """How many bytes the file system at a path holds; None where there is nothing."""
    try:
        there = os.statvfs(path)
    except OSError:
        return None
    return there.f_blocks * there.f_frsize


def _remount_read_only(path: str) -> bool:
    kept = os.statvfs(path).f_flag & _MS_NOSUID_NODEV_NOEXEC  # a namespace may not take them back
    flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | kept
    return bool(_libc.mount(None, os.fsencode(path), None, flags, None) == 0)


def _unescaped(path: bytes) -> bytes:
    """A path as it is, from /proc/self/mountinfo, where a blank and a few more are octal numbers."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), path)


def allow_many_files() -> None:
    """Let this process have more files open than is usual, because each large value that it holds may be one.

    Not as many as it could: there are programs that walk through all of them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def leave_no_core() -> None:
    """Let neither this process nor any that it starts write a core file, which would hold all that they know."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def prefer_as_oom_victim() -> None:
    """Let the kernel, where memory runs out, take this process before the agent."""
    with contextlib.suppress(OSError):
        _write("/proc/self/oom_score_adj", "1000")


def end_descendants() -> None:
    """Kill and collect everything below this process, which has to be a subreaper.

    Gives up on what it may not kill, such as a program that runs as somebody else.
    """
    deadline = time.monotonic() + _ENDS_S
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            kill_descendants()
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(_ROUND_S)


def kill_descendants() -> None:
    """Kill everything below this process; all of it is stopped first, because it may be starting others."""
    found = descendants(os.getpid())
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def descendants(of: int) -> list[int]:
    """Every living process below `of`, from /proc; used where we are not PID 1 of a namespace of our own."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            fields = read(f"/proc/{entry}/stat").rpartition(")")[2].split()
            if len(fields) > 1 and fields[0] != "Z":
                parents[int(entry)] = int(fields[1])
    found: list[int] = []
    front = [of]
    while front:
        front = [pid for pid, parent in parents.items() if parent in front]
        found += front
    return found


def memory_of(pids: Iterable[int]) -> int:
    """What these processes have in memory, in bytes; what they share is counted once (`Pss`, proc_pid_smaps(5))."""
    told = [read(f"/proc/{pid}/smaps_rollup") for pid in pids]
    shares = [line.split()[1] for text in told for line in text.splitlines() if line.startswith("Pss:")]
    return sum(map(int, shares)) * 1024


def read(path: str) -> str:
    """The text of a small file, such as those of /proc; empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
