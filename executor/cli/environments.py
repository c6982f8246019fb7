"""`run-local lock | build | envs`: the environments of a project, apart from any workflow."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from executor import machine, runs
from executor.cli import print_json, print_table
from executor.console import ConsoleView
from executor.describe import find_root
from executor.environments import Builder, Spec, read_spec, spec_names
from executor.environments.lock import read_lock
from executor.errors import UsageError

_RUNTIME = click.option(
    "--runtime", type=click.Choice(["auto", "docker", "process"]), default="auto", help="For containers or processes."
)


@click.command("lock")
@click.argument("environments", nargs=-1)
@_RUNTIME
def lock_command(environments: Sequence[str], runtime: str) -> None:
    """Solve ENVIRONMENTS (default: all), and write conda-lock.yml beside each specification.

    Commit what it writes: a run then takes exactly these packages. Without a lock, a run makes one for this machine.
    """
    with _builder(runtime) as (builder, view):
        for spec in _specs(environments):
            assert spec.path is not None
            if not spec.path.name.startswith("environment."):
                raise UsageError(
                    f"`{spec.path}` has no place for a lock beside it",
                    hint=f"move it to `envs/{spec.name}/environment.yml`",
                )
            target = spec.path.with_name("conda-lock.yml")
            before = _versions(target) if target.exists() else {}
            builder.lock(spec, target)
            view.say(f"{spec.name}: {target}")
            _print_changes(before, _versions(target))


@click.command("build")
@click.argument("environments", nargs=-1)
@_RUNTIME
def build_command(environments: Sequence[str], runtime: str) -> None:
    """Build ENVIRONMENTS (default: all) of this project, so that a run finds them made."""
    with _builder(runtime) as (builder, view):
        for spec in _specs(environments):
            made = builder.build_spec(spec)
            view.say(f"{spec.name}: Python {made.python}, {made.image or made.prefix}")


@click.command("envs")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@_RUNTIME
def envs_command(as_json: bool, runtime: str) -> None:
    """List the environments of this project: locked or not, built or not, and under which key."""
    with _builder(runtime) as (builder, _):
        states = [builder.look(spec) for spec in _specs(())]
    if as_json:
        print_json(
            [
                {
                    "name": state.spec.name,
                    "spec": str(state.spec.path),
                    "lock": state.lock and str(state.lock),
                    "key": state.key or None,
                    "python": state.python or None,
                    "packages": state.packages,
                    "built": state.built,
                }
                for state in states
            ]
        )
        return
    rows = []
    for state in states:
        lock = (
            "no"
            if not state.lock
            else "committed"
            if state.lock.parent == (state.spec.path or Path()).parent
            else "here"
        )
        built = "yes" if state.built else "no"
        rows.append([state.spec.name, state.python, str(state.packages or ""), lock, built, state.key[:12]])
    print_table(rows, "environment", "python", "packages", "locked", "built", "key")


@contextlib.contextmanager
def _builder(runtime: str) -> Iterator[tuple[Builder, ConsoleView]]:
    chosen, _ = runs.choose_runtime(runtime)
    with (
        ConsoleView(verbose=False) as view,
        contextlib.closing(Builder(chosen, machine.home(), view.progress)) as builder,
    ):
        yield builder, view


def _specs(wanted: Sequence[str]) -> list[Spec]:
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
    return [read_spec(there[name], name) for name in wanted or there]


def _versions(lock: Path) -> dict[str, str]:
    return {package.name: package.version for package in read_lock(lock).packages}


def _print_changes(before: dict[str, str], after: dict[str, str]) -> None:
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if changed:
        rows = [[name, before.get(name, "–"), after.get(name, "–")] for name in changed]
        print_table(rows, "package", "old", "new")
    else:
        click.echo("nothing changed")
