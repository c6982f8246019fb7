"""`run-local plan WORKFLOW`: what a run would do, without doing any of it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from executor import machine, room, runs
from executor.cli import print_json, print_table
from executor.console import ConsoleView
from executor.describe import describe
from executor.environments import Builder, State, find_spec
from executor.environments.lock import read_lock
from executor.environments.provided import Provided, provided_by_lock, provided_by_spec
from executor.errors import MachineError
from executor.manifest import Manifest
from executor.missing import Missing, Report, check_imports
from executor.mounts import check_mounts
from executor.network import check_networks
from executor.secrets import read_secret


@click.command("plan")
@click.argument("workflow")
@click.option("--runtime", type=click.Choice(["auto", "docker", "process"]), default="auto", help="Plan for this one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def plan_command(workflow: str, runtime: str, as_json: bool) -> None:
    """Say what running WORKFLOW would lock and build, in which order, and what is missing where."""
    manifest, task = describe(workflow, Path.cwd())
    manifest.check_calls(task.name)
    chosen, note = runs.choose_runtime(runtime)
    names = manifest.reachable(task.environment)
    check_mounts(manifest, names, chosen, machine.home())
    with (
        ConsoleView(verbose=False, quiet=True) as view,
        contextlib.closing(Builder(chosen, machine.home(), view.progress)) as builder,
    ):
        states = [builder.look(find_spec(manifest, name)) for name in names]
    provided = {state.spec.name: _provided(state) for state in states}
    reports = check_imports(manifest, task.name, provided)
    networks = check_networks(manifest, names, chosen, offline=machine.offline())
    small = room.too_small(manifest, names, machine.home(), room.find_gpus(manifest, names))
    if as_json:
        document = _document(manifest, task.name, chosen, states, reports, networks)
        print_json({**document, "too_small": small})
        return
    click.echo(f"{task.name} ({chosen}{': ' + note if note else ''})")
    rows = [_row(manifest, state) for state in states]
    print_table(rows, "environment", "cores", "memory", "lock", "build", "key")
    for state in states:
        for mount in _mounts(manifest, state):
            click.echo(f"{state.spec.name} finds {mount['source']} of this machine at {mount['target']}, read-only")
        for secret in _secrets(manifest, state):
            click.echo(f"{state.spec.name} is told the secret {secret['name']}, {secret['problem'] or 'which is here'}")
    for warning in networks.values():
        _warn(warning)
    if small:
        _warn("this machine is too small, and would refuse to run it: " + "; ".join(small))
    for report in reports:
        _print_report(report)


def _warn(text: str) -> None:
    click.echo("\n" + click.style("warning: ", fg="yellow", bold=True) + text)


def _secrets(manifest: Manifest, state: State) -> list[dict[str, str]]:
    """The secrets that tasks of an environment are told; one that cannot be is no reason not to plan."""
    found = []
    for secret in manifest.environments[state.spec.name].secrets:
        problem = ""
        try:
            read_secret(secret, machine.home())
        except MachineError as exc:
            problem = f"and cannot be: {exc.what}"
        found.append({"name": secret.name, "problem": problem})
    return found


def _mounts(manifest: Manifest, state: State) -> list[dict[str, str]]:
    entry = manifest.environments[state.spec.name]
    return [{"source": each.source, "target": each.target} for each in entry.mounts]


def _provided(state: State) -> Provided:
    if state.lock and not state.problem:
        return provided_by_lock(read_lock(state.lock), machine.home())
    return provided_by_spec(state.spec)


def _print_report(report: Report) -> None:
    noted = [each for each in report.missing if not each.uses]
    if noted:
        many, them = (f"{len(noted)} modules", "them") if len(noted) > 1 else ("a module", "it")
        click.echo(f"\n{report.environment} does without {many} that its source imports{report.basis}:")
        width = max(len(each.module) for each in noted)
        for each in noted:
            more = f" (and {len(each.places) - 1} more)" if len(each.places) > 1 else ""
            click.echo(f"  {each.module:{width}}  {each.places[0]}{more}")
        call = next((place.call for each in noted for place in each.places if place.call), "")
        click.echo(f"  no task of {report.environment} is seen to use {them}, so nothing has to be done")
        if call:
            click.echo(f'  what is called by its name is not even imported: `reference_task("{call}")`')
    for failure, ways_out in report.warnings:
        _warn(failure)
        click.echo(f"  hint: {ways_out}")
    if report.unknown:
        names = ", ".join(f"`{module}`" for module in report.unknown)
        when = "it is locked" if report.judged_by == "specification" else "its packages are fetched"
        click.echo(f"\nwhether {report.environment} holds {names} is known once {when}")


def _row(manifest: Manifest, state: State) -> list[str]:
    shape = manifest.environments[state.spec.name].shape
    lock = state.problem or (f"{state.packages} packages" if state.lock else "to be made")
    built = "there" if state.built else "to be built"
    return [state.spec.name, f"{shape.cpus:g}", f"{shape.memory_bytes / 2**30:g} GiB", lock, built, state.key[:12]]


def _document(
    manifest: Manifest,
    task: str,
    runtime: str,
    states: list[State],
    reports: list[Report],
    networks: dict[str, str],
) -> dict[str, Any]:
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
                "mounts": _mounts(manifest, state),
                "secrets": _secrets(manifest, state),
                "network": manifest.environments[state.spec.name].network,
            }
            for state in states
        ],
        "imports": [
            {
                "environment": report.environment,
                "judged_by": report.judged_by,
                "missing": [_missing_document(each) for each in report.missing],
                "unknown": list(report.unknown),
                "warnings": [{"what": failure, "hint": ways_out} for failure, ways_out in report.warnings],
            }
            for report in reports
        ],
        "warnings": list(networks.values()),
        "missing": {module: list(places) for module, places in manifest.missing.items()},
    }


def _missing_document(missing: Missing) -> dict[str, Any]:
    return {
        "module": missing.module,
        "imported": [{"at": each.at, "by": list(each.way), "call": each.call or None} for each in missing.places],
        "used": [{"task": task, "at": use.at, "imported": use.imported} for task, use in missing.uses.items()],
        "held_by": list(missing.others),
    }
