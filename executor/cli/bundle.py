"""`run-local bundle` and `run-local reproduce`: a run as one file, and that run again from the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from executor import machine, runs
from executor.bundles.archive import unpacked
from executor.bundles.compare import Comparison, compare_runs
from executor.bundles.pack import make_bundle
from executor.bundles.unpack import load_images, put_in_place, wants_of_the_engine, wants_of_this_machine
from executor.cli import interrupted, print_json, print_table
from executor.console import ConsoleView, render_failure
from executor.data.leases import scratch_folder
from executor.data.records import read_run
from executor.data.store import Store, open_value, read_value
from executor.environments import usage
from executor.errors import UsageError
from executor.restore import Restored, restore

if TYPE_CHECKING:
    from executor.data.records import RunView

_STYLES = {"equal": "green", "different": "red", "not comparable": "yellow"}


@click.command("bundle")
@click.argument("run", default="last")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to; else `<run>.rlb` beside you."
)
@click.option("--images", is_flag=True, help="Bring the images of its environments, instead of their packages.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def bundle_command(run: str, output: Path | None, images: bool, as_json: bool) -> None:
    """Write RUN to one file, with all that another machine needs to make it again. `last` is the newest."""
    home = machine.home()
    view = read_run(home, run)
    if view.status == "running":
        raise UsageError(f"run {view.id} cannot be bundled", why="it goes on", hint="wait for its end")
    target = output or Path(f"{view.id}.rlb")
    with usage.hold(home, usage.RECORDING), usage.hold(home, usage.MAKING), ConsoleView(verbose=False) as console:
        digest, about = make_bundle(view, home, target, console.progress, images=images)
    size = target.stat().st_size
    if as_json:
        print_json(
            {"run": view.id, "bundle": str(target), "digest": digest, "bytes": size, "members": about["members"]}
        )
        return
    click.echo(target)
    click.echo(f"{size / 2**20:.1f} MiB, {about['members']} files, sha256 {digest}", err=True)


@click.command("reproduce")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--runtime", type=click.Choice(["auto", "docker", "process"]), help="Another runtime than that of the run."
)
@click.option(
    "--isolation", type=click.Choice(machine.ISOLATIONS), help="Refuse processes that are not isolated fully."
)
@click.option("--trust", is_flag=True, help="Give it the mounts and secrets that it wants, and the engine its images.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the tasks print.")
def reproduce_command(
    bundle: Path, runtime: str | None, isolation: str | None, trust: bool, as_json: bool, verbose: bool
) -> int:
    """Make the run in BUNDLE again, and compare what each of its calls came to with what the bundle says.

    Every byte of it is checked first. Nothing is taken from the cache, and nothing is fetched. The exit code is 0 where
    all values are equal.
    """
    home = machine.home()
    runs.remove_dead(home)
    isolation = machine.isolation(isolation)
    with usage.hold(home, usage.RECORDING):  # no record names yet what comes into the store
        return _reproduce(bundle, home, runtime, isolation, trust=trust, as_json=as_json, verbose=verbose)


def _reproduce(
    bundle: Path, home: Path, runtime: str | None, isolation: str, *, trust: bool, as_json: bool, verbose: bool
) -> int:
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    store = Store(home, home / "tmp")
    with unpacked(bundle, home / "tmp") as read, scratch_folder(home / "tmp") as scratch:
        chosen, note = runs.choose_runtime(runtime or str(read.about.get("runtime", "auto")))
        expected = put_in_place(read, home, scratch)
        made = restore(expected, home, store)
        wanted = wants_of_this_machine(made.manifest, expected)
        wanted += wants_of_the_engine(read) if chosen == "docker" else []
        if wanted and not trust:
            hint = "look at what it does, and who made it; `--trust` gives it that"
            raise UsageError("the bundle wants what is yours", why="\n".join(wanted), hint=hint)
        if chosen == "docker":
            load_images(read)
        digest = read.digest
    found = _run(expected, made, home, store, chosen, isolation=isolation, verbose=verbose, note=note)
    if found.status == "cancelled":
        return interrupted(found.stopped_by)
    compared = compare_runs(expected, found, store)
    same = all(each.verdict == "equal" for each in compared)
    if as_json:
        print_json(_document(expected, found, compared, digest, same=same))
    else:
        _print(expected, found, compared)
    return 0 if same else 1


def _run(
    expected: RunView,
    made: Restored,
    home: Path,
    store: Store,
    chosen: runs.RuntimeName,
    *,
    isolation: str,
    verbose: bool,
    note: str,
) -> RunView:
    """The run, made again."""
    call = expected.root_call
    task = made.manifest.tasks.get(expected.workflow)
    if task is None or call is None or call.inputs is None:
        raise UsageError("the bundle is refused", why=f"it has no call of `{expected.workflow}` with its inputs")
    try:
        inputs = open_value(store, read_value(call.inputs))
    except (OSError, KeyError, TypeError, ValueError) as exc:
        raise UsageError("the bundle is refused", why=f"its inputs cannot be read: {exc!r}") from exc
    with ConsoleView(verbose=verbose) as view:
        if note:
            view.say(note, "yellow")
        request = runs.Request(
            manifest=made.manifest,
            task=task,
            inputs=inputs,
            arguments=call.arguments,
            runtime=chosen,
            home=home,
            isolation=isolation,
            locks=made.locks,
            fresh=True,
        )
        return runs.run_workflow(request, view, view.progress)


def _document(
    expected: RunView, found: RunView, compared: list[Comparison], digest: str, *, same: bool
) -> dict[str, Any]:
    calls = [
        {"call": each.call, "task": each.task, "verdict": each.verdict, "why": list(each.why)} for each in compared
    ]
    facts = {"reproduces": expected.id, "bundle": digest, "run": found.id, "status": found.status, "equal": same}
    return {**facts, "calls": calls}


def _print(expected: RunView, found: RunView, compared: list[Comparison]) -> None:
    rows = [[each.call, each.task, click.style(each.verdict, fg=_STYLES[each.verdict])] for each in compared]
    print_table(rows, "call", "task", "compared with the bundle")
    for each in compared:
        for line in each.why:
            click.echo(f"{each.call} {each.task}: {line}")
    counts = {verdict: sum(each.verdict == verdict for each in compared) for verdict in _STYLES}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    click.echo(f"run {found.id} beside {expected.id}: {told}")
    if found.root_call and found.root_call.error:
        click.echo(click.style("error: ", fg="red", bold=True) + render_failure(found.root_call.error), err=True)
