"""`run-local logs`: what the tasks of a run wrote, or write."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from executor import machine
from executor.console import printable
from executor.data.following import follow
from executor.data.records import RunView, read_run
from executor.errors import UsageError


@click.command("logs")
@click.argument("run", default="last")
@click.argument("call", required=False)
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on until the run has ended.")
def logs_command(run: str, call: str | None, follows: bool) -> None:
    """Print what the tasks of RUN wrote, or what one CALL of it (such as 1.2) did."""
    view = read_run(machine.home(), run)
    if follows and view.status == "running":
        _follow(view, call)
        view = read_run(machine.home(), view.id)
        if call is not None:
            _demand_call(view, call)
        return
    if call is not None:
        _demand_call(view, call)
    for each in [view.calls[call]] if call else view.calls.values():
        if call is None:
            click.echo(click.style(f"== {each.id} {each.task}", bold=True))
        for attempt in range(1, each.attempts + 1):
            if each.attempts > 1:
                click.echo(click.style(f"-- attempt {attempt}", bold=True))
            _print_log(view.log(each.id, attempt))


def _demand_call(view: RunView, call: str) -> None:
    if call not in view.calls:
        raise UsageError(f"run {view.id} has no call `{call}`", why=f"its calls are {', '.join(view.calls)}")


def _follow(view: RunView, call: str | None) -> None:
    """Print what calls write as it comes, with a heading wherever it is another call's than what stands above."""
    above = (call, 1)
    for piece in follow(view, call):
        if above != (piece.call, piece.attempt):
            above = (piece.call, piece.attempt)
            again = f", attempt {piece.attempt}" if piece.attempt > 1 else ""
            click.echo(click.style(f"== {piece.call} {piece.task}{again}", bold=True))
        _print_lines(io.BytesIO(piece.data))


def _print_log(log: Path) -> None:
    if log.exists():
        with log.open("rb") as file:
            _print_lines(file)


def _print_lines(lines: Iterable[bytes]) -> None:
    """Print lines: into a file or a pipe byte for byte, on a terminal as what cannot harm it."""
    line = b""
    for line in lines:
        if sys.stdout.isatty():
            click.echo(printable(line, colours=True) + "\x1b[0m")
        else:
            sys.stdout.buffer.write(line)
    if line and not line.endswith(b"\n") and not sys.stdout.isatty():
        sys.stdout.buffer.write(b"\n")
    sys.stdout.flush()
