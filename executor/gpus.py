"""The GPUs of this machine: what NVML says of them, and leases, which keep runs and users from sharing one by accident.

    discover() ──► Found ──► Gpu … ──► as_device ──► what the scheduler knows
    Leases.try_take(UUIDs) ──► Lease        one flock per UUID, in a folder that all users of the machine have in common

A device is its UUID and nothing else: its minor number, its index in NVML and its index in CUDA are three orders. A MIG
slice is a device of its own, and the device that it is a slice of is then none.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pwd
import re
import stat
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml

from executor.errors import MachineError
from executor.events import Device

LEASES_VARIABLE = "RUN_LOCAL_GPU_LEASES"

#: Folders that belong to root, in which every user may make files and nobody may remove another's.
_COMMON = (Path("/run/lock"), Path("/tmp"))  # noqa: S108  that others can write there is the point; see `_open`
_LONGEST_NOTE = 4096
_TRIES = 100
_FIRST_PID_NAMESPACE = 0xEFFFFFFC  # a number that Linux has promised to keep
_LACKING = (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that computes on a device; used_bytes is None where the driver does not tell."""

    pid: int
    name: str
    user: str
    used_bytes: int | None

    def __str__(self) -> str:
        size = "" if self.used_bytes is None else f", {self.used_bytes / 2**30:.1f} GiB"
        return f"process {self.pid} ({self.name}) of {self.user}{size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A device that a call can have: a whole GPU, or a MIG slice.

    index:     its place in NVML's order, `0`; of a slice with that in the GPU, `0:1`
    minor:     the number of its device node; of a slice, of the GPU's
    processes: those that compute on it; what only draws, such as a desktop, does not make it busy
    instances: the numbers of a slice's GPU instance and compute instance; None for a whole GPU
    problem:   why it cannot be used, or empty
    """

    uuid: str
    name: str
    index: str
    minor: int
    total_bytes: int = 0
    free_bytes: int = 0
    processes: tuple[GpuProcess, ...] = ()
    instances: tuple[int, int] | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What NVML said. driver, cuda: the version of the driver, and the newest CUDA that it supports, such as `(12, 4)`;
    why: the reason where there is no device that can be used.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""
    cuda: tuple[int, int] | None = None
    why: str = ""

    @property
    def usable(self) -> tuple[Gpu, ...]:
        """The devices that no error keeps from being used."""
        return tuple(each for each in self.gpus if not each.problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """Which processes are ours, and so not foreign on a device.

    containers: ids of our containers, whole or their first 12 characters
    roots:      process ids, of this machine; they and all below them are ours
    """

    containers: Collection[str] = ()
    roots: Collection[int] = ()

    def owns(self, pid: int) -> bool:
        """Whether a process of this machine is in one of our containers, or below one of our processes."""
        groups = _read(f"/proc/{pid}/cgroup")
        if any(container in groups for container in self.containers):
            return True
        while pid > 1:
            if pid in self.roots:
                return True
            fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
            pid = int(fields[1]) if len(fields) > 1 else 0
        return False


def discover() -> Found:
    """Ask NVML for every device, now. Takes milliseconds where the driver stays loaded; never raises."""
    try:
        with _nvml():
            driver, cuda = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion_v2()
            gpus = tuple(gpu for index in range(pynvml.nvmlDeviceGetCount()) for gpu in _devices(index))
    except pynvml.NVMLError as exc:
        return Found(why=_reason(exc))
    found = Found(gpus=gpus, driver=driver, cuda=(cuda // 1000, cuda % 1000 // 10))
    if found.usable:
        return found
    problems = "; ".join(f"{each.uuid}: {each.problem}" for each in gpus)
    return Found(gpus=gpus, driver=driver, cuda=found.cuda, why=problems or "the driver shows none")


@dataclass(frozen=True, slots=True)
class Sample:
    """A device at one moment. percent: how much of the last moments it computed; None where the driver does not tell."""

    used_bytes: int
    percent: int | None


@contextlib.contextmanager
def watched() -> Iterator[Callable[[str], Sample | None]]:
    """What looks at the device with a UUID, as often as one likes, in microseconds; None where that cannot be done."""
    handles: dict[str, Any] = {}

    def look(uuid: str) -> Sample | None:
        try:
            if uuid not in handles:
                handles[uuid] = pynvml.nvmlDeviceGetHandleByUUID(uuid)
            return Sample(pynvml.nvmlDeviceGetMemoryInfo(handles[uuid]).used, _percent(handles[uuid]))
        except pynvml.NVMLError:
            return None

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # the driver is gone
        yield lambda _: None
        return
    try:
        yield look
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _percent(handle: Any) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except pynvml.NVMLError as exc:
        if exc.value in _LACKING:
            return None
        raise


def foreign(gpu: Gpu, own: Own) -> str:
    """The processes that compute on a device and are not ours, for people; empty where there is none."""
    return ", ".join(str(each) for each in gpu.processes if not own.owns(each.pid) and not _is_over(each.pid))


def as_device(gpu: Gpu, held: str, own: Own) -> Device:
    """A device as the scheduler knows it. held: which other run has its lease; its processes are then that run's."""
    return Device(
        uuid=gpu.uuid,
        name=gpu.name,
        memory_bytes=gpu.total_bytes,
        free_bytes=gpu.free_bytes,
        held=held,
        foreign="" if held else foreign(gpu, own),
    )


# -- NVML --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _nvml() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def _reason(exc: pynvml.NVMLError) -> str:
    if exc.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return "no NVIDIA driver is installed: there is no libnvidia-ml.so.1"
    if exc.value == pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return "the NVIDIA driver is not loaded"
    return f"the NVIDIA driver says: {str(exc).rstrip('.')}"


def _devices(index: int) -> list[Gpu]:
    """The device at an index, or its slices where it is in MIG mode; one that NVML fails at says so and is unusable."""
    uuid, name, minor = f"GPU number {index}", "a GPU", -1
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid, name = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
        minor = _minor(handle)
        if not _in_mig_mode(handle):
            return [_device(handle, uuid=uuid, name=name, index=str(index), minor=minor)]
        slices = _slices(handle, str(index), minor)
    except pynvml.NVMLError as exc:
        return [Gpu(uuid=uuid, name=name, index=str(index), minor=minor, problem=_reason(exc))]
    empty = Gpu(uuid=uuid, name=name, index=str(index), minor=minor, problem="it is in MIG mode and has no slices")
    return slices or [empty]


def _minor(handle: Any) -> int:
    """The number of a device's node, or -1 where it has none of its own."""
    try:
        return int(pynvml.nvmlDeviceGetMinorNumber(handle))
    except pynvml.NVMLError as exc:
        if exc.value in _LACKING:
            return -1
        raise


def _in_mig_mode(handle: Any) -> bool:
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)
    except pynvml.NVMLError as exc:
        if exc.value in _LACKING:
            return False
        raise


def _slices(parent: Any, index: str, minor: int) -> list[Gpu]:
    found = []
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(parent)):
        uuid, name = f"slice number {number} of GPU number {index}", "a MIG slice"
        here: dict[str, Any] = {"index": f"{index}:{number}", "minor": minor}
        try:
            handle = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(parent, number)
            uuid, name = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
            instances = (pynvml.nvmlDeviceGetGpuInstanceId(handle), pynvml.nvmlDeviceGetComputeInstanceId(handle))
            found.append(_device(handle, uuid=uuid, name=name, instances=instances, **here))
        except pynvml.NVMLError as exc:
            if exc.value != pynvml.NVML_ERROR_NOT_FOUND:  # nothing was made at that place
                found.append(Gpu(uuid=uuid, name=name, problem=_reason(exc), **here))
    return found


def _device(handle: Any, **known: Any) -> Gpu:
    total, free = _memory(handle)
    processes = {each.pid: _process(each) for each in _computing(handle)}
    return Gpu(
        **known,
        total_bytes=total,
        free_bytes=free,
        processes=tuple(processes[p] for p in sorted(processes)),
    )


def _memory(handle: Any) -> tuple[int, int]:
    """The bytes of a device, and those that are free; one without memory of its own has the machine's."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError as exc:
        if exc.value not in _LACKING:
            raise
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    return memory.total, memory.free


def _computing(handle: Any) -> list[Any]:
    try:
        return list(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except pynvml.NVMLError as exc:
        if exc.value != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        return list(pynvml.nvmlDeviceGetComputeRunningProcesses_v2(handle))  # drivers before 510


def _process(seen: Any) -> GpuProcess:
    """A process that NVML names; one of another process namespace has no name here."""
    try:
        user = user_name(os.stat(f"/proc/{seen.pid}").st_uid)  # noqa: PTH116  /proc has no links to follow
    except OSError:
        user = "somebody"
    name = _read(f"/proc/{seen.pid}/comm").strip() or "not visible here"
    return GpuProcess(pid=seen.pid, name=name, user=user, used_bytes=seen.usedGpuMemory)


def _is_over(pid: int) -> bool:
    """Whether a process that NVML still names has ended; in a process namespace of our own we could not tell."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return Path("/proc/self/ns/pid").stat().st_ino == _FIRST_PID_NAMESPACE
    except OSError:  # another user's
        return False
    return False


def user_name(uid: int) -> str:
    """The name of a user, or the number of one without."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# -- leases ------------------------------------------------------------------------------------------------------------


class Lease:
    """Devices that are ours until `close`, or until this process is dead. No child that is forked holds on to them."""

    def __init__(self, files: dict[str, int], closed: Any) -> None:
        self._files, self._closed = files, closed
        self._uuids = tuple(files)
        _held.add(self)

    @property
    def uuids(self) -> tuple[str, ...]:
        """What is leased."""
        return self._uuids

    def close(self) -> None:
        """Give the devices back; twice is fine."""
        for file in self._files.values():
            os.ftruncate(file, 0)
            _give_back(file)
        self._closed(self._files)
        self._files = {}

    def forget(self) -> None:
        """In a process that was just forked: let go of the files, which stay locked for the one that took them."""
        for file in self._files.values():
            os.close(file)
        self._files = {}


_held: weakref.WeakSet[Lease] = weakref.WeakSet()


def _forget_all() -> None:
    for lease in list(_held):
        lease.forget()


os.register_at_fork(after_in_child=_forget_all)


@dataclass
class Leases:
    """Takes devices for a run, against all runs of all users of this machine.

    folder: where the files lie: by default the first common folder of the machine, or `$RUN_LOCAL_GPU_LEASES`

    The files stay, because whoever removed one could remove one that somebody just locked. Nothing here blocks, and
    no process has to survive for a device to come free: the kernel gives the locks back.
    """

    folder: Path = field(default_factory=lambda: _common_folder())
    _own: set[str] = field(default_factory=set)
    _waiting: dict[str, set[asyncio.Future[None]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def try_take(self, uuids: Sequence[str], run: str) -> Lease | None:
        """Take all of these devices, or none and answer None where somebody has one.

        run: which run it is for, as others are told. Raises `MachineError` where a file cannot be used.
        """
        files: dict[str, int] = {}
        try:
            for uuid in sorted(set(uuids)):  # in one order, so that of two who want the same one gets it
                file = self._locked(uuid)
                if file is None:
                    return None
                files[uuid] = file
            for file in files.values():
                _sign(file, run)
            lease = Lease(files, self._own.difference_update)
            self._own.update(files)
            files = {}
        finally:
            for file in files.values():
                _give_back(file)
        return lease

    def held_by(self, uuid: str) -> str:
        """Which other run has a device, as `run 2026… of alice`; empty where none has, or where we have it ourselves."""
        if uuid in self._own:
            return ""
        try:
            file = self._open(uuid, make=False)
        except MachineError as exc:
            return exc.why or exc.what
        if file is None:
            return ""
        try:
            return "" if _try_lock(file, fcntl.LOCK_SH) else _signed(file)
        finally:
            _give_back(file)

    async def wait_released(self, uuids: Sequence[str]) -> None:
        """Return when one of these devices, which others have, was given back; somebody may have taken it since."""
        told = asyncio.get_running_loop().create_future()
        for uuid in uuids:
            with self._lock:
                begins = uuid not in self._waiting
                self._waiting.setdefault(uuid, set()).add(told)
            if (
                begins
            ):  # one thread for each device, which may outlive its askers: the kernel's waiting has no end to it
                threading.Thread(target=self._wait, args=(uuid,), name=f"lease of {uuid}", daemon=True).start()
        try:
            await told
        finally:
            with self._lock:
                for waiting in self._waiting.values():
                    waiting.discard(told)

    def _wait(self, uuid: str) -> None:
        """Block until nobody has a device, then tell all who wait for that."""
        with contextlib.suppress(MachineError):  # they learn why when they try to take it
            file = self._open(uuid, make=False)
            if file is not None:
                fcntl.flock(file, fcntl.LOCK_SH)
                _give_back(file)
        with self._lock:
            waiting = self._waiting.pop(uuid)
        for told in waiting:
            with contextlib.suppress(RuntimeError):  # the loop may be closed
                told.get_loop().call_soon_threadsafe(_tell, told)

    def _locked(self, uuid: str) -> int | None:
        """The open and locked file of a device; None where somebody else has it."""
        for _ in range(_TRIES):
            file = self._open(uuid, make=True)
            assert file is not None
            if not _lock_alone(file):
                os.close(file)
                return None
            if _is_at(file, self._path(uuid)):
                return file
            _give_back(file)  # it was removed just before
        raise MachineError("a GPU cannot be leased", why=f"`{self._path(uuid)}` is removed again and again")

    def _path(self, uuid: str) -> Path:
        return self.folder / f"run-local-gpu-{re.sub('[^A-Za-z0-9-]', '_', uuid)}.lock"

    def _open(self, uuid: str, *, make: bool) -> int | None:
        """The open file of a device, which another user may have made; None where there is none. Raises `MachineError`.

        No link is followed, and nothing but a file of one name is opened. O_CREAT stands only where there is no file
        yet: the kernel refuses it on what is another's in such a folder (`fs.protected_regular`).
        """
        path = self._path(uuid)
        why = "it is removed again and again"
        for _ in range(_TRIES):
            try:
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                if not make:
                    return None
                _make(path)
                continue
            except PermissionError as exc:  # whoever makes it has not opened it to others yet
                why = exc.strerror or str(exc)
                time.sleep(0.001)
                continue
            except OSError as exc:
                raise _unusable(uuid, path, exc.strerror or str(exc)) from exc
            facts = os.fstat(file)
            if stat.S_ISREG(facts.st_mode) and facts.st_nlink <= 1:
                if facts.st_uid == os.getuid():
                    os.fchmod(file, 0o666)  # whatever the umask, and if we died before we could do so
                return file
            os.close(file)
            raise _unusable(uuid, path, "it is not a file of one name")
        raise _unusable(uuid, path, why)


def _common_folder() -> Path:
    """Where the leases of this machine lie: the same for every user of it, root too."""
    named = os.environ.get(LEASES_VARIABLE)
    if named:
        return Path(named)
    for folder in _COMMON:
        with contextlib.suppress(OSError):
            facts = folder.lstat()
            shared = facts.st_mode & stat.S_ISVTX and facts.st_mode & stat.S_IWOTH
            if stat.S_ISDIR(facts.st_mode) and facts.st_uid == 0 and shared:
                return folder
    raise MachineError(
        "GPUs cannot be leased",
        why=f"neither {' nor '.join(map(str, _COMMON))} is a folder of root's in which everybody can make files",
        hint=f"name a folder that all users of GPUs here have in common: {LEASES_VARIABLE}=…",
    )


def _make(path: Path) -> None:
    """Make the file of a device; whoever opens it next and owns it opens it to others."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except FileExistsError:
        pass
    except OSError as exc:
        raise MachineError(
            "a GPU cannot be leased",
            why=f"{exc.strerror}: {path}",
            hint=f"{LEASES_VARIABLE} names a folder that all users of GPUs here have in common",
        ) from exc


def _unusable(uuid: str, path: Path, why: str) -> MachineError:
    try:
        owner = f", made by {user_name(path.lstat().st_uid)}"
    except OSError:
        owner = ""
    return MachineError(
        f"{uuid} cannot be leased", why=f"`{path}`{owner}: {why}", hint="whoever made it, or root, can remove it"
    )


def _lock_alone(file: int) -> bool:
    """Lock a file; False where somebody has it. Those who only look, which takes them no time, are waited for."""
    for _ in range(_TRIES):
        if _try_lock(file, fcntl.LOCK_EX):
            return True
        if not _try_lock(file, fcntl.LOCK_SH):
            return False
        fcntl.flock(file, fcntl.LOCK_UN)
        time.sleep(0.001)
    return False


def _try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _give_back(file: int) -> None:
    """Unlock and close: closing alone would not do where a process that was forked still has it open."""
    fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except OSError:
        return False


def _sign(file: int, run: str) -> None:
    """Write into a lease who holds it, for others to read."""
    note = {"run": run, "user": user_name(os.getuid()), "pid": os.getpid(), "since": round(time.time(), 3)}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(note).encode(), 0)


def _signed(file: int) -> str:
    """Who holds a lease, as far as what is written there makes sense."""
    try:
        note = json.loads(os.pread(file, _LONGEST_NOTE, 0))
        run, user = (re.sub(r"[^\w.@-]", "?", str(note[name]))[:64] for name in ("run", "user"))
    except (ValueError, KeyError, TypeError):
        return "another run"
    return f"run {run} of {user}"


def _tell(told: asyncio.Future[None]) -> None:
    if not told.done():
        told.set_result(None)
