"""Which CUDA an environment's packages were made for, and whether the driver of this machine knows it."""

from __future__ import annotations

import re

from executor.environments.lock import Lock, Package

#: Packages whose own version is CUDA's, or begins with it.
_CONDA = frozenset({"cuda-version", "cudatoolkit", "cuda-cudart", "cuda-cudart_linux-64"})
_PYPI = re.compile(r"nvidia-cuda-runtime(-cu\d+)?")
_LOCAL = re.compile(r"\+cu(\d{2})(\d)$")  # as in torch 2.3.0+cu121
_VERSION = re.compile(r"(\d+)\.(\d+)")

#: From this version on, a driver runs programs of every later CUDA with the same first number, though not their PTX.
_COMPATIBLE_SINCE = 11


def cuda_of(lock: Lock) -> tuple[tuple[int, int], Package] | None:
    """The newest CUDA that a lock brings, such as `(12, 4)`, and the package that says so; None where it brings none."""
    found = [(version, package) for package in lock.packages if (version := _cuda(package))]
    return max(found, key=lambda each: each[0]) if found else None


def driver_complaint(lock: Lock, driver: tuple[int, int]) -> str:
    """What is to be said about a lock that brings a newer CUDA than the driver supports; empty where it does not.

    driver: the newest CUDA that the driver supports, from `gpus.discover`
    """
    found = cuda_of(lock)
    if found is None or found[0] <= driver:
        return ""
    (major, minor), package = found
    needs = f"it brings CUDA {major}.{minor} (`{package.name} {package.version}`)"
    knows = f"the driver of this machine supports CUDA {driver[0]}.{driver[1]}"
    if major == driver[0] and major >= _COMPATIBLE_SINCE:
        return f"{needs}, and {knows}: what has to be compiled for the device first (PTX) will fail"
    return f"{needs}, and {knows}: no GPU will work in it until the driver is newer"


def _cuda(package: Package) -> tuple[int, int] | None:
    local = _LOCAL.search(package.version) if package.manager == "pip" else None
    if local:
        return int(local[1]), int(local[2])
    ours = package.name in _CONDA if package.manager == "conda" else _PYPI.fullmatch(package.name)
    version = _VERSION.match(package.version) if ours else None
    return (int(version[1]), int(version[2])) if version else None
