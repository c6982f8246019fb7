"""Large values in memory that several processes share: sealed, so that nobody changes them, and mapped privately.

A producer writes a value into a memfd and seals it (`fcntl(2)`, F_ADD_SEALS). The open file travels with a frame; each
consumer maps it copy-on-write, so nothing is copied until somebody writes, and nobody sees what others write. The
kernel frees it when the last process has closed it, however that ended. Its pages count as the producer's memory, so it
is made only where there is room; otherwise a value travels as a file, whose pages the kernel can write back and drop.

What a consumer has mapped and never written to can be passed on by name. Whether it was written to is read off
/proc/self/pagemap: a page of a private map is still the file's own (bit 61) until the first write replaces it.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import sys
import weakref
from typing import Any

from executor.worker import groups, kernel

#: Since Python 3.13 a map need not keep its file open.
_WITHOUT_FILE: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}

_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
SEALS = 0x1 | 0x2 | 0x4 | 0x8  # against sealing, shrinking, growing, writing

_PAGE = mmap.PAGESIZE
_PRESENT, _SWAPPED, _OF_THE_FILE = 1 << 63, 1 << 62, 1 << 61
_ENTRIES_AT_ONCE = 2**16


class Maps:
    """What this process has mapped of what it was given."""

    def __init__(self) -> None:
        self._maps: list[tuple[weakref.ref[mmap.mmap], int, int, str]] = []

    def map(self, fd: int, at: str) -> memoryview:
        """A private, writable map of a whole open file, which was given under the name `at`."""
        made = mmap.mmap(fd, 0, access=mmap.ACCESS_COPY, **_WITHOUT_FILE)
        view = memoryview(made)
        self._maps = [entry for entry in self._maps if entry[0]() is not None]
        self._maps.append((weakref.ref(made), _address(view), len(made), at))
        return view

    def find(self, buffer: memoryview) -> tuple[str, int] | None:
        """The name and offset at which a buffer was given, if it lies in a map and nobody has written to it there."""
        start = _address(buffer)
        for made, first, size, at in self._maps:
            if first <= start and start + buffer.nbytes <= first + size and made() is not None:
                return (at, start - first) if _is_untouched(start, buffer.nbytes) else None
        return None


def make_sealed(chunks: list[Any], size: int) -> int | None:
    """A sealed memfd that holds these chunks of bytes; None where there is no room for it, or none can be made."""
    if not hasattr(os, "memfd_create") or not _has_room(size):
        return None
    try:
        fd = os.memfd_create("run-local value", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return None
    try:
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            while view:
                view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, _F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_sealed(fd: int) -> bool:
    """Whether nobody can change what this open file holds."""
    try:
        return fcntl.fcntl(fd, _F_GET_SEALS) & SEALS == SEALS
    except OSError:  # it is no memfd
        return False


def used_share() -> float:
    """How much of our control group's memory is in use and cannot be dropped; 0 where there is no limit."""
    limit, used = groups.memory_use()
    return used / limit if limit else 0.0


def _has_room(size: int) -> bool:
    """Whether a copy of this many bytes leaves as much again, in our control group and on the machine."""
    limit, used = groups.memory_use()
    available = [
        line.split()[1] for line in kernel.read("/proc/meminfo").splitlines() if line.startswith("MemAvailable:")
    ]
    free = [int(text) * 1024 for text in available] + ([limit - used] if limit else [])
    return bool(available) and 2 * size <= min(free)


def _is_untouched(start: int, size: int) -> bool:
    first, last = start // _PAGE, (start + size - 1) // _PAGE
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as pages:
            for at in range(first, last + 1, _ENTRIES_AT_ONCE):
                wanted = 8 * min(_ENTRIES_AT_ONCE, last + 1 - at)
                told = os.pread(pages.fileno(), wanted, 8 * at)
                if len(told) != wanted or any(map(_is_changed, array.array("Q", told))):
                    return False
    except OSError:  # not every kernel lets us look
        return False
    return True


def _is_changed(page: int) -> bool:
    return bool(page & _SWAPPED or (page & _PRESENT and not page & _OF_THE_FILE))


class _Buffer(ctypes.Structure):
    """`Py_buffer` of the C API."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def _address(view: memoryview) -> int:
    """Where a buffer lies in memory; 0 for an empty one."""
    told = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(told), 0)
    address = int(told.buf or 0)
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(told))
    return address
