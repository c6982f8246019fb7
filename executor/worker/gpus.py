"""Which GPUs an agent really has: device nodes that can be opened, and a driver that answers with them.

The driver is asked in a child that ends at once: a process in which CUDA was started can fork no attempts.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import uuid
from collections.abc import Sequence
from typing import Any, NoReturn

DEV = "/dev"

_PATIENCE_S = 20
_PRIMARY = ("nvidiactl", "nvidia-uvm")


class _DriverError(Exception):
    """The driver refused a call."""


def look(asked: Sequence[str]) -> dict[str, Any]:
    """What can be seen of GPUs here; without any that was asked for, the driver is left alone.

    nodes:   the device nodes of GPUs that are in /dev
    seen:    the UUIDs of the devices that CUDA shows, without `GPU-` or `MIG-`
    problem: why CUDA shows none, or empty
    """
    nodes = _nodes()
    if not asked:
        return {"nodes": nodes, "seen": [], "problem": ""}
    answer = _ask_driver()
    if answer["problem"]:
        closed = [path for path in _wanted(nodes) if not _opens(path)]
        if closed:
            answer["problem"] += f"; {', '.join(closed)} cannot be opened"
    return {"nodes": nodes, **answer}


def _nodes() -> list[str]:
    try:
        return sorted(name for name in os.listdir(DEV) if name.startswith("nvidia") and name[6:].isdigit())
    except OSError:
        return []


def _wanted(nodes: Sequence[str]) -> list[str]:
    return [f"{DEV}/{name}" for name in (*_PRIMARY, *(nodes or ["nvidia0"]))]


def _opens(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _ask_driver() -> dict[str, Any]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _answer(writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    if not told:
        killer = os.WTERMSIG(status)  # 0 where it was none
        why = f"it did not answer within {_PATIENCE_S} s" if killer == signal.SIGALRM else f"it died of signal {killer}"
        return {"seen": [], "problem": f"the driver was asked, and {why}"}
    answer: dict[str, Any] = json.loads(told)
    return answer


def _answer(writer: int) -> NoReturn:
    """In the child: say what CUDA shows, and end."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_PATIENCE_S)
        try:
            answer = {"seen": _ask_cuda(), "problem": ""}
        except _DriverError as exc:
            answer = {"seen": [], "problem": str(exc)}
        except (OSError, AttributeError) as exc:  # no library, one for another C library, or one without a function
            answer = {"seen": [], "problem": f"the driver's library cannot be used: {exc}"}
        os.write(writer, json.dumps(answer).encode())
    finally:
        os._exit(0)


def _ask_cuda() -> list[str]:
    """The UUIDs of all devices that CUDA shows. Raises `OSError`, or `_DriverError` with what the driver says."""
    cuda = ctypes.CDLL("libcuda.so.1")
    count, device = ctypes.c_int(), ctypes.c_int()
    _check(cuda, "cuInit", cuda.cuInit(0))
    _check(cuda, "cuDeviceGetCount", cuda.cuDeviceGetCount(ctypes.byref(count)))
    seen = []
    name = "cuDeviceGetUuid_v2" if hasattr(cuda, "cuDeviceGetUuid_v2") else "cuDeviceGetUuid"  # which knows no slices
    for index in range(count.value):
        found = (ctypes.c_ubyte * 16)()
        _check(cuda, "cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(device), index))
        _check(cuda, name, getattr(cuda, name)(found, device))
        seen.append(str(uuid.UUID(bytes=bytes(found))))
    return seen


def _check(cuda: Any, call: str, status: int) -> None:
    if status == 0:
        return
    text = ctypes.c_char_p()
    cuda.cuGetErrorName(status, ctypes.byref(text))
    raise _DriverError(f"{call} of the driver answers {(text.value or b'').decode() or status}")
