"""`run-local resume RUN`: go on with a run that failed, was stopped or was killed."""

from __future__ import annotations

from pathlib import Path

import click

from executor import machine
from executor.cli.workflow import Wanted, run
from executor.data.records import RunView, read_run
from executor.data.results import is_whole
from executor.data.store import Store, Value, open_value, read_value
from executor.describe import describe
from executor.errors import ProjectError, UsageError


@click.command("resume")
@click.argument("name", metavar="RUN", default="last")
@click.option(
    "--runtime", type=click.Choice(["auto", "docker", "process"]), help="Another runtime than that of the run."
)
@click.option(
    "--isolation", type=click.Choice(machine.ISOLATIONS), help="Refuse processes that are not isolated fully."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document about the run.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the tasks print.")
def resume_command(name: str, runtime: str | None, isolation: str | None, as_json: bool, verbose: bool) -> int:
    """Go on with RUN, which failed, was stopped or was killed. `last` is the newest.

    A new run begins with the same inputs and today's source. Calls that succeeded are taken over, as long as the code, the
    environment and the inputs of each are still the same; the others run.
    """
    home = machine.home()
    view = read_run(home, name)
    if view.status in ("running", "succeeded"):
        why = "it goes on in another process" if view.status == "running" else "it succeeded"
        raise UsageError(f"run {view.id} cannot be resumed", why=why)
    if not view.target:
        raise UsageError(
            f"run {view.id} cannot be resumed",
            why="its record does not say what was run" if view.calls else "it ended before it had begun",
            hint="run its workflow again" + ("" if view.calls else ": nothing of it was done"),
        )
    inputs = _inputs(view, Store(home, home / "tmp"))
    if not Path(view.root).is_dir():
        raise ProjectError(
            f"the source of run {view.id} is gone", why=f"there is no folder `{view.root}`", hint="put it back there"
        )
    manifest, task = describe(view.target, Path(view.root))
    wanted = Wanted(manifest=manifest, task=task, inputs=inputs, resumes=view)
    return run(wanted, runtime=runtime or view.runtime, isolation=isolation, as_json=as_json, verbose=verbose)


def _inputs(view: RunView, store: Store) -> Value:
    """The inputs of the run, as they were stored."""
    call = view.root_call
    if call is None or call.inputs is None:
        raise UsageError(
            f"run {view.id} cannot be resumed",
            why="it ended before its inputs were stored",
            hint=f"run `{view.workflow}` again: nothing of it was done",
        )
    try:
        ref = read_value(call.inputs)
        if not is_whole(store, ref):
            raise OSError("they are not in the store any more, or not what they were")
        return open_value(store, ref)
    except OSError as exc:
        hint = f"run `{view.workflow}` again; what the cache holds is not computed anew"
        raise UsageError(f"the inputs of run {view.id} are gone", why=str(exc), hint=hint) from exc
