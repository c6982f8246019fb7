"""`run-local WORKFLOW [--param value …]`: a command made from the signature of a task."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from executor import machine
from executor.cli import inputs, interrupted, print_json
from executor.describe import describe
from executor.manifest import Manifest, TaskEntry

if TYPE_CHECKING:
    from executor.data.records import CallView, RunView
    from executor.data.store import Value

_EXIT_CODES = {"succeeded": 0, "failed": 1}


def workflow_command(name: str) -> click.Command:
    """The command for a workflow; the project is described to make it, and meanwhile what runs it is loaded."""
    load = partial(importlib.import_module, "executor.runs")
    manifest, task = describe(name, Path.cwd(), meanwhile=load)
    options = [
        click.Option(
            ["--runtime"],
            type=click.Choice(["auto", "docker", "process"]),
            default="auto",
            show_default=True,
            help="Containers, or isolated processes where no engine answers.",
        ),
        click.Option(["--no-cache"], is_flag=True, help="Compute anew what the cache holds."),
        click.Option(
            ["--isolation"],
            type=click.Choice(machine.ISOLATIONS),
            help=f"Refuse to run tasks as processes that are not isolated fully.  [{machine.ISOLATION_VARIABLE}]",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON document about the run."),
        click.Option(["-v", "--verbose"], is_flag=True, help="Show what the tasks print."),
    ]
    mine = {option.name for option in options}
    taken = frozenset(name for option in options for name in option.opts)
    theirs = inputs.options(task, taken)

    def callback(
        runtime: str, isolation: str | None, no_cache: bool, as_json: bool, verbose: bool, **values: Any
    ) -> int:
        given, files = inputs.read(task, values, taken)
        wanted = Wanted(manifest=manifest, task=task, inputs=given, files=files, fresh=no_cache)
        return run(wanted, runtime=runtime, isolation=isolation, as_json=as_json, verbose=verbose)

    assert mine == {"runtime", "isolation", "no_cache", "as_json", "verbose"}
    return inputs.WorkflowCommand(name, params=[*theirs, *options], callback=callback, help=task.doc or None)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What somebody at a command line wants to be run; see `runs.Request`."""

    manifest: Manifest
    task: TaskEntry
    inputs: Mapping[str, Any] | Value
    files: Mapping[str, Path] = field(default_factory=dict)
    fresh: bool = False
    resumes: RunView | None = None


def run(wanted: Wanted, *, runtime: str, isolation: str | None, as_json: bool, verbose: bool) -> int:
    """Run it with a view of it on stderr, print what it came to, and answer with the exit code."""
    from executor import runs  # noqa: PLC0415
    from executor.console import ConsoleView  # noqa: PLC0415

    isolation = machine.isolation(isolation)
    home = machine.home()
    runs.remove_dead(home)
    chosen, note = runs.choose_runtime(runtime)
    with ConsoleView(verbose=verbose) as view:
        if note:
            view.say(note, "yellow")
        request = runs.Request(**vars(wanted), runtime=chosen, home=home, isolation=isolation)
        ended = runs.run_workflow(request, view, view.progress)
    code = report(ended, as_json)
    return interrupted(ended.stopped_by) if ended.status == "cancelled" else code


def report(view: RunView, as_json: bool) -> int:
    """Print what a run came to; its exit code, where it was not stopped."""
    from executor.console import render_failure  # noqa: PLC0415
    from executor.runs import result_document  # noqa: PLC0415

    result = result_document(view)
    if as_json:
        print_json(document(view, result))
    elif view.status == "succeeded" and result is not None:
        if isinstance(result, str):
            click.echo(result)
        else:
            print_json(result)
    call = view.root_call
    if view.status == "failed" and call and call.error:
        click.echo(click.style("error: ", fg="red", bold=True) + render_failure(call.error), err=True)
        click.echo(
            f"  hint: `run-local show {view.id}` tells more, `run-local logs {view.id}` what the tasks printed",
            err=True,
        )
        if line := replay_line(view, call.error):
            click.echo(f"  hint: `{line}` makes it once more, and stops where it fails", err=True)
    if view.status in ("failed", "cancelled") and any(each.status == "succeeded" for each in view.calls.values()):
        click.echo(
            f"  hint: `run-local resume {view.id}` goes on with it: calls that succeeded are not made again", err=True
        )
    if view.outputs.exists() and any(view.outputs.iterdir()):
        click.echo(f"outputs: {view.outputs}", err=True)
    sys.stdout.flush()
    return _EXIT_CODES.get(view.status, 1)


def replay_line(view: RunView, error: Mapping[str, Any]) -> str:
    """The command that makes the call once more where a failure began; empty where that was no call of a workflow."""
    if view.target.startswith(":"):  # a shell
        return ""
    while error.get("cause"):
        error = error["cause"]
    return f"run-local replay {view.id} {error.get('call') or '1'} --pdb"


def _used(call: CallView) -> dict[str, Any]:
    """What was measured of the last attempt of a call, as far as it was."""
    return {name: call.evidence[name] for name in ("cpu_s", "peak_bytes", "gpus") if name in call.evidence}


def document(view: RunView, result: Any) -> dict[str, Any]:
    """The JSON document about a run that `--json` promises."""
    fields = (
        "id", "parent", "task", "environment", "key", "python", "status", "seconds", "attempts", "container", "origin",
    )  # fmt: skip
    error = view.error or (view.root_call.error if view.root_call else None)
    return {
        "run": view.id,
        "status": view.status,
        "resumes": view.resumes or None,
        "runtime": view.runtime,
        "result": result,
        "calls": [
            {
                **{field: getattr(call, field) for field in fields},
                "used": _used(call),
                **({"error": call.error} if call.error else {}),
            }
            for call in view.calls.values()
        ],
        "outputs": str(view.outputs),
        **({"error": error} if error else {}),
        **({"replay": line} if error and "task" in error and (line := replay_line(view, error)) else {}),
    }
