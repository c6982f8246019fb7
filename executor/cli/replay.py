"""`run-local replay` and `run-local shell`: one recorded call once more, and a place where tasks of an environment run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from executor import machine, runs
from executor.bundles.compare import compare_values
from executor.cli import interrupted
from executor.cli.workflow import report
from executor.console import ConsoleView
from executor.data.records import CallView, RunView, read_run
from executor.data.store import Blob, Store, Value, open_value, read_value
from executor.describe import describe, find_root
from executor.environments import spec_names
from executor.errors import ProjectError, UsageError
from executor.events import AttemptEnded, AttemptStarted, Fact
from executor.manifest import EnvironmentEntry, Manifest, Shape, TaskEntry, Terms
from executor.resources import Resources
from executor.restore import restore
from executor.terminal import Interaction, Lent, Mode, lend
from executor.worker.payload import dump_json

_RUNTIME = click.Choice(["auto", "docker", "process"])


@click.command("replay")
@click.argument("run")
@click.argument("call", default="1")
@click.option("--shell", "mode", flag_value="shell", help="Open a shell where the call would run, its inputs in place.")
@click.option("--pdb", "mode", flag_value="pdb", help="Stop in the debugger where the task fails.")
@click.option("--edit", is_flag=True, help="Use today's source and locks of the project, not those of the run.")
@click.option("--no-cache", is_flag=True, help="Make the calls below it once more, too.")
@click.option("--runtime", type=_RUNTIME, help="Another runtime than that of the run.")
@click.option(
    "--isolation", type=click.Choice(machine.ISOLATIONS), help="Refuse processes that are not isolated fully."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document about the new run.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the tasks print.")
def replay_command(
    run: str,
    call: str,
    mode: Mode | None,
    edit: bool,
    no_cache: bool,
    runtime: str | None,
    isolation: str | None,
    as_json: bool,
    verbose: bool,
) -> int:
    """Make one CALL (such as 1.2) of RUN once more: same inputs, same source, same environment, same limits.

    Calls that it makes are taken over from that run, as long as they are the same. `last` is the newest run.
    """
    home = machine.home()
    view = read_run(home, run)
    if call not in view.calls:
        raise UsageError(f"run {view.id} has no call `{call}`", why=f"its calls are {', '.join(view.calls)}")
    if mode and as_json:
        raise UsageError("`--json` goes with neither `--shell` nor `--pdb`", why="those are for a person")
    made = _request(view, view.calls[call], home, edit=edit)
    request = replace(made, runtime=runs.choose_runtime(runtime or view.runtime)[0], fresh=True)
    request = replace(request, isolation=machine.isolation(isolation), resumes=None if no_cache else view)
    if mode:
        return _sit_at(replace(request, terms=_patient(request.terms)), mode)
    with ConsoleView(verbose=verbose) as console:
        ended = runs.run_workflow(request, console, console.progress)
    code = report(ended, as_json)
    if not as_json:
        _tell_whether_the_same(view.calls[call], ended, home)
    return interrupted(ended.stopped_by) if ended.status == "cancelled" else code


def _request(view: RunView, call: CallView, home: Path, *, edit: bool) -> runs.Request:
    """What makes a call once more."""
    store = Store(home, home / "tmp")
    if call.inputs is None:
        hint = f"`run-local resume {view.id}` goes on with the run"
        raise UsageError(f"call {call.id} cannot be replayed", why="its inputs were never stored", hint=hint)
    if edit:
        if not Path(view.root).is_dir():
            raise ProjectError(f"the source of run {view.id} is gone", why=f"there is no folder `{view.root}`")
        manifest, _ = describe(view.target, Path(view.root))
        locks = {}
    else:
        restored = restore(view, home, store)
        manifest, locks = restored.manifest, dict(restored.locks)
    if call.task not in manifest.tasks:
        raise UsageError(
            f"call {call.id} cannot be replayed", why=f"there is no task `{call.task}` in `{manifest.root}`"
        )
    task = manifest.tasks[call.task]
    terms = replace(
        manifest.terms(task), shape=Shape(**call.shape), env_vars=call.env_vars, timeout_s=call.timeout_s, retries=0
    )
    try:
        inputs = open_value(store, read_value(call.inputs))
    except OSError as exc:
        raise UsageError(f"the inputs of call {call.id} are gone", why=str(exc)) from exc
    return runs.Request(
        manifest=manifest,
        task=task,
        inputs=inputs,
        arguments=call.arguments,
        runtime="process",
        home=home,
        locks=locks,
        resumes=view,
        replays=(view.id, call.id),
        terms=terms,
    )


def _patient(terms: Terms | None) -> Terms | None:
    """The same, for somebody who thinks."""
    return terms and replace(terms, timeout_s=None)


def _tell_whether_the_same(call: CallView, ended: RunView, home: Path) -> None:
    root = ended.root_call
    if root and root.value and call.value:
        different, unknown = compare_values(Store(home, home / "tmp"), read_value(call.value), read_value(root.value))
        for line in [*different, unknown] if different or unknown else []:
            if line:
                click.echo(line, err=True)
        told = (
            "another value than that of"
            if different
            else "perhaps another value than that of"
            if unknown
            else "the value of"
        )
        click.echo(f"it is {told} call {call.id}", err=True)


@click.command("shell", context_settings={"ignore_unknown_options": True})
@click.argument("environment")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--runtime", type=_RUNTIME, default="auto", show_default=True, help="A container, or an isolated process."
)
@click.option("-c", "text", metavar="COMMAND", help="Run this by the shell, and end with its exit code.")
def shell_command(environment: str, command: Sequence[str], runtime: str, text: str | None) -> int:
    """Open a shell in ENVIRONMENT of this project, or run a COMMAND in it: `run-local shell alphafold -- python -V`.

    It is a container (or a process tree) as tasks of that environment have it: the project read-only, nothing else of this
    machine. What is written there is gone at the end.
    """
    if text is not None and command:
        raise UsageError("`-c` goes with no other command", why=f"`{command[0]}` is one already")
    root = find_root(Path.cwd().resolve())
    if environment not in spec_names(root):
        names = ", ".join(spec_names(root)) or "none"
        raise UsageError(f"there is no environment `{environment}`", why=f"`{root}` has {names}")
    home = machine.home()
    manifest = _only(environment, root)
    request = runs.Request(
        manifest=manifest,
        task=manifest.tasks[f"{environment}.shell"],
        inputs=Value(Blob(data=dump_json({})), [], type="inputs"),
        runtime=runs.choose_runtime(runtime)[0],
        home=home,
        isolation=machine.isolation(None),
    )
    return _sit_at(request, "command", ["/bin/sh", "-c", text] if text is not None else command)


def _only(environment: str, root: Path) -> Manifest:
    """A project as far as a shell needs it: one environment, with what the machine has, and nothing that could be called."""
    shape = {**Resources().to_json(), "cpus": 0.1, "cpus_limit": machine.cores()}
    entry = EnvironmentEntry(
        name=environment, image=None, depends_on=(), extends=(), shape=Shape(**shape), env_vars={}, file="", line=0
    )
    task = TaskEntry(
        name=f"{environment}.shell", environment=environment, module="", qualname="", file="", line=0, doc="",
        parameters=(), retries=0, timeout_s=None,
    )  # fmt: skip
    return Manifest(root=str(root), import_roots=(".",), environments={environment: entry}, tasks={task.name: task})


def _sit_at(request: runs.Request, mode: Mode, command: Sequence[str] = ()) -> int:
    """Make a call that somebody sits at; its exit code, or that of how it ended where it never came to one."""
    runs.remove_dead(request.home)
    with lend() as lent, ConsoleView(verbose=False, quiet=not lent.controlling) as console:
        interaction = Interaction(mode=mode, command=tuple(command), files=lent.files, controlling=lent.controlling)
        ended = runs.run_workflow(replace(request, interaction=interaction), _Seat(console, lent), console.progress)
        lent.end()
    root = ended.root_call
    if ended.status == "succeeded" and root and root.preview and mode != "pdb":
        return int(root.preview["json"])
    if mode == "pdb" and ended.status == "succeeded":
        click.echo("it raised nothing: there was nowhere to stop", err=True)
        return 0
    if mode == "pdb" and root and root.history and root.history[-1].outcome == "raised":
        return 0
    code = report(ended, as_json=False)
    return interrupted(ended.stopped_by) if ended.status == "cancelled" else code


class _Seat:
    """Hears of a run that somebody sits at: nothing is shown of it as long as they do."""

    def __init__(self, console: ConsoleView, lent: Lent) -> None:
        self._console, self._lent = console, lent

    def __call__(self, fact: Fact) -> None:
        if isinstance(fact, AttemptStarted) and fact.call == "1":
            self._console.__exit__()
            self._lent.begin()
        elif isinstance(fact, AttemptEnded) and fact.call == "1":
            self._lent.end()
