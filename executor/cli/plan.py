"""`run-local plan WORKFLOW`: what a run would do, without doing any of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from executor import machine, runs
from executor.cli import print_json, print_table
from executor.console import ConsoleView
from executor.describe import describe
from executor.environments import Builder, State, find_spec
from executor.manifest import Manifest


@click.command("plan")
@click.argument("workflow")
@click.option("--runtime", type=click.Choice(["auto", "docker", "process"]), default="auto", help="Plan for this one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def plan_command(workflow: str, runtime: str, as_json: bool) -> None:
    """Say what running WORKFLOW would lock and build, in which order, and what is missing where."""
    manifest, task = describe(workflow, Path.cwd())
    manifest.check_calls(task.name)
    chosen, note = runs.choose_runtime(runtime)
    with (
        ConsoleView(verbose=False, quiet=True) as view,
        contextlib.closing(Builder(chosen, machine.home(), view.progress)) as builder,
    ):
        states = [builder.look(find_spec(manifest, name)) for name in manifest.reachable(task.environment)]
    if as_json:
        print_json(_document(manifest, task.name, chosen, states))
        return
    click.echo(f"{task.name} ({chosen}{': ' + note if note else ''})")
    rows = [_row(manifest, state) for state in states]
    print_table(rows, "environment", "cores", "memory", "lock", "build", "key")
    for module, places in manifest.missing.items():
        click.echo(f"stood in for while reading the project: {module} ({', '.join(places)})")


def _row(manifest: Manifest, state: State) -> list[str]:
    shape = manifest.environments[state.spec.name].shape
    lock = state.problem or (f"{state.packages} packages" if state.lock else "to be made")
    built = "there" if state.built else "to be built"
    return [state.spec.name, f"{shape.cpus:g}", f"{shape.memory_bytes / 2**30:g} GiB", lock, built, state.key[:12]]


def _document(manifest: Manifest, task: str, runtime: str, states: list[State]) -> dict[str, Any]:
    return {
        "task": task,
        "runtime": runtime,
        "environments": [
            {
                "name": state.spec.name,
                "spec": str(state.spec.path),
                "locked": bool(state.lock) and not state.problem,
                "problem": state.problem or None,
                "built": state.built,
            }
            for state in states
        ],
        "missing": {module: list(places) for module, places in manifest.missing.items()},
    }
