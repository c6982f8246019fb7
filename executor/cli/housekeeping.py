"""`run-local gc | du | pin | unpin`: what there is, what goes, and what stays."""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterator, Sequence
from typing import Any

import click

from executor import dockerd, machine
from executor.cli import print_json, print_table
from executor.data.pins import pin, unpin
from executor.data.records import find_run
from executor.disk import clean, measure
from executor.environments.housekeeping import Outcome, Policy
from executor.environments.inventory import Item
from executor.errors import MachineError, UsageError

_WIDEST = 40
_NAMELESS = frozenset({"value", "result"})
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@click.command("gc")
@click.option("--keep-last", type=click.IntRange(min=0), metavar="N", help="Of the runs, keep the N newest.")
@click.option(
    "--older-than", metavar="AGE", help="Not used for so long: 12h, 30d, 8w.  [default: 30d; runs: no such limit]"
)
@click.option(
    "--max-size", metavar="SIZE", help="Then what is unused the longest, until this is left: 500M, 20G, 20Gi."
)
@click.option("--all", "everything", is_flag=True, help="Everything that nobody uses just now, but no run.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and why; remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def gc_command(
    keep_last: int | None, older_than: str | None, max_size: str | None, everything: bool, dry_run: bool, as_json: bool
) -> None:
    """Remove environments and entries of the cache that were not used for a while, and all that nothing needs.

    Runs, with their outputs, go only where --keep-last, --older-than or --max-size is given; with two of them, those that
    both let go. A run that goes on, or is pinned, stays, with every value that its record names. Environments are made
    again when they are needed, and what the cache loses is computed again; committed locks are never touched.
    """
    policy = Policy(
        older_than_s=_parse(older_than or "30d", _SECONDS, "--older-than", "30d"),
        most_bytes=None if max_size is None else _parse(max_size, _BYTES, "--max-size", "20G"),
        everything=everything,
        keep_last=keep_last,
        runs_older_than_s=_parse(older_than, _SECONDS, "--older-than", "30d") if older_than else None,
    )
    with _engine() as client:
        if client is None:
            click.echo("no Docker engine answers: images are not looked at", err=True)
        outcome = clean(machine.home(), client, policy, dry_run=dry_run)
    if as_json:
        removed, kept = ([*map(_document, each)] for each in (outcome.gone, outcome.kept))
        print_json({"dry_run": dry_run, "removed": removed, "kept": kept, "bytes": outcome.freed})
        return
    _print(outcome, dry_run)


@click.command("du")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def du_command(as_json: bool) -> None:
    """Say how much room everything takes, by kind, the largest first. What has several names counts once."""
    with _engine() as client:
        shares = measure(machine.home(), client)
    if as_json:
        print_json([{"kind": each.kind, "count": each.count, "bytes": each.bytes} for each in shares])
        return
    print_table([[each.kind, str(each.count), _size(each.bytes)] for each in shares], "kind", "files", "size")
    click.echo(f"{_size(sum(each.bytes for each in shares))} in {machine.home()}")
    if client is None:
        click.echo("no Docker engine answers: images are not looked at", err=True)


@click.command("pin")
@click.argument("run", default="last")
def pin_command(run: str) -> None:
    """Have `gc` keep RUN, with all that its record names. `last` is the newest."""
    folder = find_run(machine.home(), run)
    pin(folder)
    click.echo(f"run {folder.name} stays; `run-local unpin {folder.name}` lets it go again")


@click.command("unpin")
@click.argument("run", default="last")
def unpin_command(run: str) -> None:
    """Let `gc` remove RUN again. `last` is the newest."""
    folder = find_run(machine.home(), run)
    unpin(folder)
    click.echo(f"run {folder.name} is not pinned")


def _print(outcome: Outcome, dry_run: bool) -> None:
    rows = [
        [kind, name[:_WIDEST], _size(size), _date(used), reason]
        for kind, name, size, used, reason in sorted(_lines(outcome.gone), key=lambda each: (each[0], -each[2]))
    ]
    if rows:
        print_table(rows, "kind", "name", "size", "last used", "why")
    for kind, name, _, _, reason in _lines(outcome.kept):
        click.echo(f"kept: {kind} {name}: {reason}", err=True)
    total = f"{_size(outcome.freed)} {'would be' if dry_run else 'were'} freed"
    click.echo(total if outcome.gone else "there is nothing to remove")


def _lines(items: Sequence[tuple[Item, str]]) -> Iterator[tuple[str, str, int, float | None, str]]:
    """Kind, name, size, last use and reason of each; those that only digests tell apart in one line."""
    many: dict[tuple[str, str], list[Item]] = {}
    for item, reason in items:
        if item.kind in _NAMELESS:
            many.setdefault((item.kind, reason), []).append(item)
        else:
            yield item.kind, item.name, item.size, item.used, reason
    for (kind, reason), same in many.items():
        used = max((each.used for each in same if each.used is not None), default=None)
        yield (
            kind,
            same[0].name if len(same) == 1 else f"{len(same)} of them",
            sum(each.size for each in same),
            used,
            reason,
        )


def _document(each: tuple[Item, str]) -> dict[str, Any]:
    item, reason = each
    return {"kind": item.kind, "name": item.name, "bytes": item.size, "used": item.used, "why": reason}


def _size(size: int) -> str:
    return f"{size / 10**9:.1f} GB" if size >= 10**9 else f"{size / 10**6:.1f} MB"


def _date(when: float | None) -> str:
    return datetime.datetime.fromtimestamp(when).strftime("%Y-%m-%d %H:%M") if when else ""


def _parse(text: str, units: dict[str, int], option: str, example: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = found[2].removesuffix("B") if found else None
    if not found or unit not in units:
        raise UsageError(f"`{option}` does not understand `{text}`", hint=f"write it like `{example}`")
    return float(found[1]) * units[unit]


@contextlib.contextmanager
def _engine() -> Iterator[Any]:
    try:
        client = dockerd.connect()
    except MachineError:
        yield None
        return
    with contextlib.closing(client):
        yield client
