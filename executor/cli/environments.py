"""`run-local lock | build | envs`: the environments of a project, apart from any workflow."""

from __future__ import annotations

import contextlib
import datetime
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from executor import machine, runs
from executor.cli import print_json, print_table
from executor.console import ConsoleView
from executor.describe import find_root
from executor.environments import Builder, Lock, Request, Spec, read_spec, spec_names, usage
from executor.environments.housekeeping import shares
from executor.environments.lock import read_lock
from executor.errors import LockError, UsageError

RUNTIME_OPTION = click.option(
    "--runtime", type=click.Choice(["auto", "docker", "process"]), default="auto", help="For containers or processes."
)


@click.command("lock")
@click.argument("environments", nargs=-1)
@click.option("--check", is_flag=True, help="Change nothing; fail where a lock is missing or out of date.")
@click.option(
    "--update", multiple=True, metavar="PACKAGE", help="Move this package only (and what it needs); repeatable."
)
@RUNTIME_OPTION
def lock_command(environments: Sequence[str], check: bool, update: Sequence[str], runtime: str) -> None:
    """Solve ENVIRONMENTS (default: all), and write conda-lock.yml beside each specification.

    Commit what it writes: a run then takes exactly these packages. Without a lock, a run makes one for this machine.
    """
    if check and update:
        raise UsageError("`--check` changes nothing, and `--update` does", hint="give one of them")
    specs = find_specs(environments)
    with open_builder(runtime) as (builder, view):
        if check:
            _check(specs, builder, view)
            return
        for spec in specs:
            assert spec.path is not None
            if not spec.path.name.startswith("environment."):
                raise UsageError(
                    f"`{spec.path}` has no place for a lock beside it",
                    hint=f"move it to `envs/{spec.name}/environment.yml`",
                )
            target = spec.path.with_name("conda-lock.yml")
            before = _earlier(target)
            request = Request(path=target, keep=_kept(before, update, spec), update=tuple(update))
            _, after = builder.lock(spec, request)
            view.say(f"{spec.name}: {target}")
            _print_changes(before, after)
            if after.bridge:
                view.say(
                    "  made without a conda channel, from this machine's Python: it fits this machine only", "yellow"
                )


def _earlier(path: Path) -> Lock | None:
    """The lock that a new one takes the place of, if it can be read."""
    with contextlib.suppress(LockError):
        return read_lock(path) if path.exists() else None
    return None


def _kept(before: Lock | None, update: Sequence[str], spec: Spec) -> Lock | None:
    """What an update starts from."""
    if not update:
        return None
    if before is None:
        raise LockError(
            f"environment `{spec.name}` has no lock to update", hint=f"`run-local lock {spec.name}` makes one"
        )
    unknown = [name for name in update if name not in {package.name for package in before.packages}]
    if unknown:
        near = difflib.get_close_matches(unknown[0], [package.name for package in before.packages], 3)
        raise UsageError(
            f"`{unknown[0]}` is not in the lock of environment `{spec.name}`",
            hint=f"did you mean {' or '.join(f'`{each}`' for each in near)}?" if near else "",
        )
    return before


def _check(specs: Sequence[Spec], builder: Builder, view: ConsoleView) -> None:
    """Say of each lock whether it fits; raises `LockError` at the end where one does not."""
    wrong = []
    for spec in specs:
        found = builder.check(spec)
        if found.lock and not found.differences:
            own = (
                ""
                if spec.path and found.lock.path.parent == spec.path.parent
                else "; no lock is committed, this is ours"
            )
            view.say(f"{spec.name}: {len(found.lock.packages)} packages, as the specification asks{own}", "dim")
            continue
        wrong.append(spec.name)
        if not found.lock:
            view.say(f"{spec.name}: {' '.join(found.differences) or 'no lock'}", "red")
            continue
        view.say(f"{spec.name}: {found.lock.path} does not fit {spec.path}", "red")
        for line in found.differences:
            view.say(f"  {line}")
        if found.solved:
            _print_changes(found.lock, found.solved)
    if wrong:
        names = " ".join(wrong)
        raise LockError(
            f"{len(wrong)} of {len(specs)} locks do not fit",
            why=names,
            hint=f"`run-local lock {names}` makes them anew",
        )


@click.command("build")
@click.argument("environments", nargs=-1)
@RUNTIME_OPTION
def build_command(environments: Sequence[str], runtime: str) -> None:
    """Build ENVIRONMENTS (default: all) of this project, so that a run finds them made."""
    with open_builder(runtime) as (builder, view):
        built = builder.build_all(find_specs(environments))
        for made in built.values():
            view.say(f"{made.name}: Python {made.python}, {made.image or made.prefix}")


@click.command("envs")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@RUNTIME_OPTION
def envs_command(as_json: bool, runtime: str) -> None:
    """List the environments of this project: locked, built, how large their archives are, what others share of them."""
    with open_builder(runtime) as (builder, _):
        states = [builder.look(spec) for spec in find_specs(())]
        shared, home = shares(machine.home()), machine.home()
        used = {state.key: usage.last_used(home, state.key) for state in states if state.key}
    if as_json:
        print_json(
            [
                {
                    "name": state.spec.name,
                    "spec": str(state.spec.path),
                    "lock": state.lock and str(state.lock),
                    "problem": state.problem or None,
                    "key": state.key or None,
                    "python": state.python or None,
                    "packages": state.packages,
                    "built": state.built,
                    "bytes": shared.get((state.spec.name, state.key), (None, None))[0],
                    "shared_bytes": shared.get((state.spec.name, state.key), (None, None))[1],
                    "used": used.get(state.key),
                }
                for state in states
            ]
        )
        return
    rows = []
    for state in states:
        committed = state.lock and state.spec.path and state.lock.parent == state.spec.path.parent
        lock = state.problem or ("committed" if committed else "here" if state.lock else "no")
        built = "yes" if state.built else "no"
        size, common = shared.get((state.spec.name, state.key), (0, 0))
        parts = [f"{size / 2**20:.0f} MiB", f"{100 * common / size:.0f} %"] if size else ["", ""]
        when = used.get(state.key)
        last = datetime.datetime.fromtimestamp(when).strftime("%Y-%m-%d %H:%M") if when else ""
        rows.append([state.spec.name, state.python, lock, built, *parts, last, state.key[:12]])
    print_table(rows, "environment", "python", "locked", "built", "archives", "shared", "last used", "key")


@contextlib.contextmanager
def open_builder(runtime: str) -> Iterator[tuple[Builder, ConsoleView]]:
    """A builder for a runtime, and the view that hears of its progress."""
    chosen, _ = runs.choose_runtime(runtime)
    with (
        ConsoleView(verbose=False) as view,
        contextlib.closing(Builder(chosen, machine.home(), view.progress)) as builder,
    ):
        yield builder, view


def find_specs(wanted: Sequence[str]) -> list[Spec]:
    """The specifications of these environments of the project, or of all; raises `UsageError` for a name without one."""
    root = find_root(Path.cwd())
    there = spec_names(root)
    unknown = [name for name in wanted if name not in there]
    if unknown or not there:
        near = difflib.get_close_matches(unknown[0], there, 3) if unknown else []
        raise UsageError(
            f"there is no environment `{unknown[0]}`" if unknown else "there are no environments",
            why=f"`{root / 'envs'}` holds {', '.join(f'`{name}`' for name in there) or 'none'}",
            hint=f"did you mean `{near[0]}`?" if near else "an environment is a file `envs/<name>/environment.yml`",
        )
    return [read_spec(there[name], name, root) for name in wanted or there]


def _print_changes(before: Lock | None, after: Lock) -> None:
    old = {package.name: package for package in before.packages} if before else {}
    new = {package.name: package for package in after.packages}
    rows = []
    for name in sorted({*old, *new}):
        was, now = old.get(name), new.get(name)
        if was and now and was.version == now.version and was.sha256 != now.sha256:
            rows.append([name, was.version, f"{now.version} (another file)"])
        elif (was and was.version) != (now and now.version):
            rows.append([name, was.version if was else "–", now.version if now else "–"])
    if rows:
        print_table(rows, "package", "old", "new")
    else:
        click.echo("the packages are the same")
