"""`run-local doctor`: what this machine has, and what run-local can do with it."""

from __future__ import annotations

import contextlib
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from executor import dockerd, gpus, machine
from executor.cli import print_json
from executor.data import index
from executor.environments import indexes
from executor.environments.cuda import driver_complaint
from executor.environments.lock import read_lock
from executor.errors import MachineError, RunLocalError
from executor.runtimes import gpus as passing
from executor.runtimes.rungs import find_rung
from executor.version import VERSION


@click.command("doctor")
@click.option(
    "--rebuild", is_flag=True, help="Make the index of the runs anew from their folders, and do nothing else."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor_command(rebuild: bool, as_json: bool) -> None:
    """Say what this machine has, and what run-local can do with it."""
    home = machine.home()
    if rebuild:
        _rebuild(home, as_json)
        return
    found = {
        "run-local": f"{VERSION}, Python {platform.python_version()} at {sys.executable}",
        "home": _home(home),
        "index": index.describe(home),
        "machine": f"{machine.cores():g} cores, {machine.memory_bytes() / 2**30:.0f} GiB, glibc {machine.glibc_version()}",
        "docker": _engine(),
        "process runtime": f"{find_rung().describe()}; no memory limit, no file system or user of its own",
        "package indexes": " ".join(indexes.uv_options()[2:]) or "PyPI",
    }
    devices = _gpus(home)
    if as_json:
        print_json({**found, "gpus": devices})
        return
    for name, text in found.items():
        click.echo(f"{name:16} {text}")
    for line, text in enumerate(_render_gpus(devices)):
        click.echo(f"{'' if line else 'gpus':16} {text}")


def _rebuild(home: Path, as_json: bool) -> None:
    count, note = index.rebuild(home)
    if as_json:
        print_json({"runs": count, "note": note})
        return
    click.echo(f"{home / index.NAME} holds {count} runs")
    if note:
        click.echo(note, err=True)


def _home(home: Path) -> str:
    told = f"{home}, {shutil.disk_usage(home).free / 2**30:.0f} GiB free"
    if kind := machine.network_file_system(home):
        told += (
            f"; it is on a network file system ({kind}), where locks may not hold: set RUN_LOCAL_HOME to a local disk"
        )
    return told


def _engine() -> str:
    try:
        client = dockerd.connect()
    except MachineError as exc:
        return f"{exc.what} ({exc.why}): tasks run as processes"
    try:
        return dockerd.describe_engine(client)
    finally:
        client.close()


def _gpus(home: Path) -> dict[str, Any]:
    """What there is to be said about GPUs, for programs."""
    found = gpus.discover()
    return {
        "driver": found.driver,
        "cuda": ".".join(map(str, found.cuda or ())),
        "why": found.why,
        "devices": [_device(each) for each in found.gpus],
        "ways": _ways(found.usable) if found.usable else {},
        "locks": dict(_locks(home, found.cuda)) if found.cuda else {},
    }


def _device(gpu: gpus.Gpu) -> dict[str, Any]:
    try:
        held = gpus.Leases().held_by(gpu.uuid)
    except MachineError as exc:
        held = exc.why
    return {
        "uuid": gpu.uuid,
        "name": gpu.name,
        "index": gpu.index,
        "minor": gpu.minor,
        "total_bytes": gpu.total_bytes,
        "free_bytes": gpu.free_bytes,
        "problem": gpu.problem,
        "held": held,
        "processes": [
            {"pid": each.pid, "name": each.name, "user": each.user, "used_bytes": each.used_bytes}
            for each in gpu.processes
        ],
    }


def _ways(devices: tuple[gpus.Gpu, ...]) -> dict[str, str]:
    """The ways into a container, in the order in which a run tries them → why one cannot work here, or nothing."""
    try:
        client = dockerd.connect()
    except MachineError:
        return {}
    try:
        with dockerd.translated("the engine cannot be asked what it is"):
            offered = passing.offer(client.api.info(), podman=dockerd.kind_of(client).podman)
        return passing.why_not(devices, offered, passing.Driver.here())
    finally:
        client.close()


def _locks(home: Path, driver: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """The locks that bring a newer CUDA than the driver supports, and what that means."""
    beside = Path.cwd().glob("envs/*/conda-lock.yml")
    for path in sorted({*beside, *home.glob("locks/*/conda-lock.yml")}):
        with contextlib.suppress(RunLocalError):  # whoever uses it is told
            if complaint := driver_complaint(read_lock(path), driver):
                yield str(path), complaint


def _render_gpus(found: dict[str, Any]) -> Iterator[str]:
    if found["why"]:
        yield f"none ({found['why']})"
    if found["driver"]:
        yield f"driver {found['driver']}, CUDA {found['cuda']}"
    for each in found["devices"]:
        free = f"{each['free_bytes'] / 2**30:.0f} of {each['total_bytes'] / 2**30:.0f} GiB free"
        yield f"{each['uuid']}  {each['name']}, {each['problem'] or free}"
        if each["held"]:
            yield f"  held by {each['held']}"
        for process in each["processes"]:
            yield f"  {gpus.GpuProcess(**process)}"
    for way, problem in found["ways"].items():
        yield f"into containers by {way}: {problem or 'is tried, and kept if the devices work inside'}"
    for path, complaint in found["locks"].items():
        yield f"{path}: {complaint}"
