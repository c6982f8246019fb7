"""`run-local channel build | list`: the bridge channel, for sites that no conda channel reaches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import click

from executor import machine
from executor.cli import print_json, print_table
from executor.cli.environments import RUNTIME_OPTION, find_specs, open_builder
from executor.data.leases import scratch_folder
from executor.data.store import full_disk
from executor.environments import Builder, Request, Spec, channel
from executor.environments.archives import local_path


@click.group("channel")
def channel_command() -> None:
    """The bridge channel: Python of this machine, and wheels, as conda packages."""


@channel_command.command("build")
@click.argument("environments", nargs=-1)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Copy what they need into this folder: a conda channel that a machine without a network can use as a mirror.",
)
@RUNTIME_OPTION
def _build(environments: Sequence[str], output: Path | None, runtime: str) -> None:
    """Make the packages that ENVIRONMENTS (default: all) ask conda for, whether or not a conda channel answers.

    A `pip:` list is not part of it: those wheels come from wherever pip's settings say.
    """
    specs = find_specs(environments)
    with open_builder(runtime) as (builder, view), full_disk("the channel cannot be written"):
        made = {path: record for spec in specs for path, record in _packages(spec, builder).items()}
        for folder in {path.parent.parent for path in made}:
            records = [record for path, record in made.items() if path.is_relative_to(folder)]
            if output:
                channel.export(folder, records, output)
            view.say(f"{len(records)} packages in {output.resolve() if output else folder}")
        without = [spec.name for spec in specs if spec.pip]
        if without:
            view.say(f"not with them: what is listed under `pip:` by {', '.join(without)}", "dim")


def _packages(spec: Spec, builder: Builder) -> dict[Path, channel.Record]:
    """The files and records of the conda packages of an environment, made now where they are missing."""
    wanted = dataclasses.replace(spec, channels=(channel.NAME,), pip=())
    with scratch_folder(machine.home() / "tmp") as scratch:
        _, locked = builder.lock(wanted, Request(path=scratch / "conda-lock.yml"))
    files = {path for package in locked.packages if (path := local_path(package.url))}
    folders = {path.parent.parent for path in files}
    records = {channel.package_path(folder, each): each for folder in folders for each in channel.read_index(folder)}
    return {path: records[path] for path in sorted(files)}


@channel_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def _list(as_json: bool) -> None:
    """List the packages that were made here, and where they are."""
    found = [(channel.package_path(folder, record), record) for folder, record in channel.stored(machine.home())]
    if as_json:
        keys = ("name", "version", "build", "subdir", "size", "sha256")
        print_json([{**{key: record[key] for key in keys}, "path": str(path)} for path, record in found])
        return
    rows = [
        [record["name"], record["version"], f"{record['size'] / 2**20:.1f} MiB", str(path)] for path, record in found
    ]
    print_table(rows, "package", "version", "size", "where")
