"""`run-local doctor`: what this machine has, and what run-local can do with it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys

import click

from executor import dockerd, machine
from executor.cli import print_json
from executor.environments import indexes
from executor.errors import MachineError
from executor.version import VERSION

_PROBE = "from executor.worker import kernel; print(kernel.enter_namespaces())"


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor_command(as_json: bool) -> None:
    """Say what this machine has, and what run-local can do with it."""
    home = machine.home()
    found = {
        "run-local": f"{VERSION}, Python {platform.python_version()} at {sys.executable}",
        "home": f"{home}, {shutil.disk_usage(home).free / 2**30:.0f} GiB free",
        "machine": f"{machine.cores():g} cores, {machine.memory_bytes() / 2**30:.0f} GiB, glibc {machine.glibc_version()}",
        "docker": _engine(),
        "process runtime": _rung(),
        "gpus": _gpus(),
        "package indexes": " ".join(indexes.uv_options()[2:]) or "PyPI",
    }
    if as_json:
        print_json(found)
        return
    for name, text in found.items():
        click.echo(f"{name:16} {text}")


def _engine() -> str:
    try:
        client = dockerd.connect()
    except MachineError as exc:
        return f"{exc.what} ({exc.why}): tasks run as processes"
    try:
        return dockerd.describe_engine(client)
    finally:
        client.close()


def _rung() -> str:
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    if done.stdout.strip() == "True":
        return "a process namespace for each slot; no memory limit, no file system of its own"
    return "the kernel refuses namespaces: descendants are found and killed by hand; no memory limit"


def _gpus() -> str:
    found, why = machine.gpus()
    return "; ".join(found) if found else f"none ({why})"
