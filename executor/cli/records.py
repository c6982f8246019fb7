"""`run-local runs | show`: what the records of past runs say."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from executor import machine
from executor.cli import print_json, print_table
from executor.cli.workflow import document, replay_line
from executor.console import render_failure
from executor.data.index import Summary, summaries
from executor.data.pins import is_pinned
from executor.data.records import CallView, read_run
from executor.errors import RunLocalError
from executor.runs import result_document

_STYLES = {"succeeded": "green", "cached": "cyan", "failed": "red", "cancelled": "yellow", "interrupted": "yellow"}


@click.command("runs")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.option("-n", "most", type=click.IntRange(min=1), default=20, show_default=True, help="How many, newest first.")
def runs_command(as_json: bool, most: int) -> None:
    """List the runs of this machine, newest first."""
    home = machine.home()
    found, note = summaries(home, most)
    if note:
        click.echo(note, err=True)
    if as_json:
        print_json([_document(each, home) for each in found])
        return
    if not found:
        click.echo("no runs yet")
        return
    rows = []
    for each in found:
        began = datetime.datetime.fromtimestamp(each.started).strftime("%Y-%m-%d %H:%M") if each.started else ""
        status = _styled(each.status) + (", pinned" if is_pinned(home / "runs" / each.run) else "")
        rows.append([each.run, each.workflow, status, began, f"{each.seconds:.1f}", str(sum(each.calls.values()))])
    print_table(rows, "run", "workflow", "status", "began", "seconds", "calls")
    for each in found:
        if each.why:
            click.echo(f"run {each.run} cannot be read: {each.why}", err=True)


@click.command("show")
@click.argument("run", default="last")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show_command(run: str, as_json: bool) -> None:
    """Show one RUN: its calls, how each ended, and where its outputs are. `last` is the newest."""
    view = read_run(machine.home(), run)
    if view.damaged:
        lines = "a line" if view.damaged == 1 else f"{view.damaged} lines"
        click.echo(f"warning: {lines} of its journal cannot be read, and what they told is missing here", err=True)
    result = result_document(view)
    if as_json:
        print_json(document(view, result))
        return
    runtime = f"{view.runtime}: {view.isolation}" if view.isolation else view.runtime
    click.echo(f"run {view.id} of {view.workflow} ({runtime}): {view.status}, {view.seconds:.1f} s")
    if view.replays:
        click.echo("once more: call {1} of run {0}".format(*view.replays.split()))
    rows = [_row(call) for call in view.calls.values()]
    print_table(rows, "call", "task", "status", "seconds", "cpu s", "peak MiB", "python", "key")
    root = view.root_call
    if root and root.error:
        click.echo(render_failure(root.error))
        if line := replay_line(view, root.error):
            click.echo(f"  hint: `{line}` makes it once more, and stops where it fails")
    told = _links(root.error) if root and root.error else []
    for call in view.calls.values():
        if call.error and call.status == "failed" and call.id not in told and call is not root:
            click.echo(f"{call.id} {call.task}: {call.error['code']}: {call.error['message']}")
    if view.error:
        click.echo(f"error: {RunLocalError(view.error['what'], view.error['why'], view.error['hint'])}")
    if view.outputs.exists() and any(view.outputs.iterdir()):
        click.echo(f"outputs: {view.outputs}")


def _links(error: Mapping[str, Any] | None) -> list[str]:
    """The calls that a story tells of."""
    return [str(error.get("call")), *_links(error.get("cause"))] if error else []


def _styled(status: str) -> str:
    return click.style(status, fg=_STYLES.get(status))


def _row(call: CallView) -> list[str]:
    peak, cpu = call.evidence.get("peak_bytes"), call.evidence.get("cpu_s")
    return [
        call.id,
        call.task,
        _styled(call.status),
        f"{call.seconds:.2f}",
        "" if cpu is None else f"{cpu:.2f}",
        "" if peak is None else f"{peak / 2**20:.0f}",
        call.python,
        call.key[:12],
    ]


def _document(summary: Summary, home: Path) -> dict[str, object]:
    return {
        "run": summary.run,
        "workflow": summary.workflow,
        "status": summary.status,
        "runtime": summary.runtime,
        "started": summary.started,
        "seconds": summary.seconds,
        "calls": sum(summary.calls.values()),
        "pinned": is_pinned(home / "runs" / summary.run),
    }
