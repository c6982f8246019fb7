"""What this machine has, beside what environments ask for: known before anything is made for a run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from executor import machine
from executor.errors import MachineError
from executor.gpus import Found, Own, as_device, discover
from executor.manifest import Manifest
from executor.scheduling.devices import Devices, describe_gpus
from executor.scheduling.state import Machine


def offered() -> Machine:
    """The cores and the memory of this machine; its GPUs are looked at when a call wants one."""
    return Machine(cpus=machine.cores(), memory_bytes=machine.memory_bytes())


def find_gpus(manifest: Manifest, names: Sequence[str]) -> Found:
    """The GPUs of this machine, where any of these environments asks for one."""
    wanted = any(manifest.environments[name].shape.gpus for name in names)
    return discover() if wanted else Found()


def demand(manifest: Manifest, names: Sequence[str], home: Path, gpus: Found) -> None:
    """Raise `MachineError` where environments ask for what this machine can never give."""
    if asked := too_small(manifest, names, home, gpus):
        hint = "ask for less: `resources=Resources(cpu=…, memory=…, gpu=…)`; `run-local doctor` shows what there is"
        raise MachineError("this machine is too small", why="\n".join(asked), hint=hint)


def too_small(manifest: Manifest, names: Sequence[str], home: Path, gpus: Found) -> list[str]:
    """What environments ask for that can never be had on this machine, a line each."""
    asked = []
    here = offered()
    devices = Devices(as_device(each, "", Own()) for each in gpus.usable)
    for name in names:
        shape = manifest.environments[name].shape
        if shape.cpus > here.cpus:
            asked.append(f"`{name}` asks for {shape.cpus:g} cores, and there are {here.cpus:g}")
        if shape.memory_bytes > here.memory_bytes:
            there = f"{here.memory_bytes / 2**30:.1f} GiB"
            asked.append(f"`{name}` asks for {shape.memory_bytes / 2**30:.1f} GiB of memory, and there are {there}")
        if shape.gpus > devices.matching(shape):
            there = devices.describe(shape) if gpus.usable else f"no GPU ({gpus.why})"
            asked.append(f"`{name}` asks for {describe_gpus(shape)}, and this machine has {there}")
        if shape.disk_bytes and shape.disk_bytes > (free := shutil.disk_usage(home).free):
            there = f"{free / 2**30:.1f} GiB are free at {home}"
            asked.append(f"`{name}` asks for {shape.disk_bytes / 2**30:.1f} GiB of disk, and {there}")
    return asked
