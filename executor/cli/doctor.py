"""`run-local doctor`: what this machine has, and what run-local can do with it."""

from __future__ import annotations

import platform
import shutil
import sys

import click

from executor import dockerd, machine
from executor.cli import print_json
from executor.environments import indexes
from executor.errors import MachineError
from executor.runtimes.rungs import find_rung
from executor.version import VERSION


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
        "process runtime": f"{find_rung().describe()}; no memory limit, no file system or user of its own",
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


def _gpus() -> str:
    found, why = machine.gpus()
    return "; ".join(found) if found else f"none ({why})"
