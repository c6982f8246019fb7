"""`run-local`: each command parses, makes one call, and prints.

Anything that is no command is a workflow: its options are made from the signature of the task. Progress goes to
stderr, the result to stdout. Exit codes: 0 it worked, 1 the workflow failed, 2 the command line is wrong, 3 an
environment could not be made, 4 this machine cannot do it, 130 interrupted (Ctrl-C), 143 by SIGTERM.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import io
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from executor.errors import MachineError, RunLocalError, UsageError
from executor.machine import OFFLINE_VARIABLE
from executor.version import VERSION

#: Name → the module that is loaded when the command is used, and what `--help` says without loading it.
COMMANDS = {
    "build": ("executor.cli.environments", "Build environments: images, or prefixes for the process runtime."),
    "bundle": ("executor.cli.bundle", "Write a run to one file, with all that another machine needs to make it again."),
    "channel": (
        "executor.cli.channel",
        "Make a conda channel from the Python at hand and from wheels; list what it holds.",
    ),
    "doctor": ("executor.cli.doctor", "Say what this machine has, and what run-local can do with it."),
    "du": ("executor.cli.housekeeping", "Say how much room runs, values, packages and images take, by kind."),
    "envs": ("executor.cli.environments", "List the environments of this project, and how far each has come."),
    "gc": ("executor.cli.housekeeping", "Remove what nothing uses any more: images, packages, values; and old runs."),
    "lock": ("executor.cli.environments", "Solve environments, and write conda-lock.yml beside their specifications."),
    "logs": ("executor.cli.logs", "Print what the tasks of a run wrote, or, with -f, what they write."),
    "pin": ("executor.cli.housekeeping", "Have `gc` keep a run, with all that its record names."),
    "plan": ("executor.cli.plan", "Say what running a workflow would lock and build, and what is missing where."),
    "replay": ("executor.cli.replay", "Make one recorded call once more; or look at it in a shell, or a debugger."),
    "report": ("executor.cli.report", "Write one run as an HTML page: timeline, calls, logs, resources, environments."),
    "reproduce": ("executor.cli.bundle", "Make the run in a bundle again, and compare what its calls came to."),
    "resume": ("executor.cli.resume", "Go on with a run that failed, was stopped or was killed."),
    "runs": ("executor.cli.records", "List past runs, newest first."),
    "diff": ("executor.cli.why", "Say what is different between two runs: code, packages, inputs, outputs, times."),
    "why": ("executor.cli.why", "Say why calls of a run ran, or were taken from the cache: what changed."),
    "shell": ("executor.cli.replay", "Open a shell in an environment, or run a command there."),
    "show": ("executor.cli.records", "Show one run: its calls, how each ended, where its outputs are."),
    "unpin": ("executor.cli.housekeeping", "Let `gc` remove a run again."),
}

#: New objects between two searches for cycles. What a command loads stays, and would be searched a hundred times meanwhile.
_SEARCHED_EVERY = 50_000

_TERMINATED: list[str] = []  # by a signal other than Ctrl-C: its name

_HELP = """Run Python workflows whose tasks need different environments, each task in its own container.

\b
    run-local alphafold_workflow              run a task of this project by its name
    run-local alphafold_workflow --help       what it can be given
    run-local file.py:task --param value      say where it is

Other commands look at environments and at past runs.
"""


class Commands(click.Group):
    """The commands, and every workflow of the project as one more."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands; workflows are not listed, because finding them means reading the project."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of this name, or the workflow."""
        if name in COMMANDS:
            command: click.Command = getattr(importlib.import_module(COMMANDS[name][0]), f"{name}_command")
            return command
        if name.startswith("-"):
            return None
        workflow: click.Command = importlib.import_module("executor.cli.workflow").workflow_command(name)
        return workflow

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(COMMANDS.items())])


@click.group(cls=Commands, help=_HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="run-local")
@click.option("--offline", is_flag=True, help="Fetch nothing: use what is here, or say what is missing.")
def _run_local(offline: bool) -> None:
    if offline:
        os.environ[OFFLINE_VARIABLE] = "1"


def main() -> NoReturn:
    """The command line: run it, print any error as what, why and what next, and exit with its code."""
    gc.set_threshold(_SEARCHED_EVERY)
    signal.signal(signal.SIGTERM, _terminate)
    _open_standard_streams()
    try:
        code = _run_local.main(standalone_mode=False, prog_name="run-local")
        sys.stdout.flush()
    except click.UsageError as exc:
        code = _print_error(_told_as_ours(exc))
    except RunLocalError as exc:
        code = _print_error(exc)
    except (KeyboardInterrupt, click.Abort):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is still to be said is short
        click.echo("interrupted", err=True)
        _print_error_document("cancelled", what="interrupted", why="", hint="")
        code = interrupted()
    except BrokenPipeError:
        _give_up_stdout()
        code = 1
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            code = _print_bug()
        else:
            _give_up_stdout()
            code = _print_error(MachineError("there is no room left", why=str(exc), hint="where does the output go?"))
    except Exception:  # noqa: BLE001  a bug of ours: no traceback reaches a user, a file does
        code = _print_bug()
    gc.freeze()  # or the interpreter searches everything once more as it ends
    sys.exit(code if isinstance(code, int) else 0)


def interrupted(by: str = "") -> int:
    """The exit code of what a signal ended, as a shell has it; by: its name, where it did not come to us."""
    return 128 + (signal.SIGTERM if "SIGTERM" in (by, *_TERMINATED) else signal.SIGINT)


def _terminate(*_: object) -> NoReturn:
    """SIGTERM ends us as Ctrl-C does, with nothing left behind."""
    _TERMINATED.append("SIGTERM")
    raise KeyboardInterrupt("SIGTERM")


def _open_standard_streams() -> None:
    """Stand in for streams that the caller has closed, so that no file of ours is taken for one of them."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            if os.open(os.devnull, os.O_RDWR) != number:
                raise AssertionError(f"{name} was closed, and something else was opened as it")
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name of a file may be no text that can be encoded
            stream.reconfigure(errors="backslashreplace")


def _give_up_stdout() -> None:
    """Nobody reads it any more, or it has no room: what is left in its buffer shall not raise again at exit."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _told_as_ours(exc: click.UsageError) -> UsageError:
    """A mistake that click found, as we tell mistakes."""
    what = exc.format_message().rstrip(".")
    usage = " ".join(exc.ctx.get_usage().split()).replace("Usage:", "usage:") if exc.ctx else ""
    return UsageError(what[:1].lower() + what[1:], hint=usage)


def print_json(doc: Any) -> None:
    """Print the one JSON document of a command."""
    click.echo(json.dumps(doc, indent=2, ensure_ascii=False))


def print_table(rows: Sequence[Sequence[str]], *headers: str) -> None:
    """Print rows under their headers, in columns that are as wide as they need to be."""
    texts = [list(headers), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(click.unstyle(row[column])) for row in texts) for column in range(len(headers))]
    for row in texts:
        cells = (cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _print_error(exc: RunLocalError) -> int:
    click.echo(click.style("error: ", fg="red", bold=True) + str(exc), err=True)
    _print_error_document("failed", exc.facts.get("run"), what=exc.what, why=exc.why, hint=exc.hint)
    return exc.exit_code


def _print_error_document(status: str, run: str | None = None, **error: str) -> None:
    """With `--json` there is one document, also where no run could begin; `run` is there if one was about to."""
    if "--json" in sys.argv:
        told: dict[str, Any] = {"run": run, "status": status, "runtime": None, "result": None}
        print_json({**told, "calls": [], "outputs": None, "error": error})
        sys.stdout.flush()


def _print_bug() -> int:
    with tempfile.NamedTemporaryFile("w", prefix="run-local-bug-", suffix=".txt", delete=False) as file:
        file.write(f"run-local {VERSION}, Python {sys.version}\n{sys.argv}\n\n{traceback.format_exc()}")
    what = f"run-local broke: {sys.exc_info()[1]!r}"[:500]
    why, hint = "this is a bug of ours", f"please report it with `{file.name}`"
    click.echo(f"error: {what}\n  why: {why}\n  hint: {hint}", err=True)
    _print_error_document("failed", what=what, why=why, hint=hint)
    return 1
