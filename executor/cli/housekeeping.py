"""`run-local gc`: removes what no environment needs any more."""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterator
from typing import Any

import click

from executor import dockerd, machine
from executor.cli import print_json, print_table
from executor.environments.housekeeping import Outcome, Policy, clean
from executor.environments.inventory import Item
from executor.errors import MachineError, UsageError

_WIDEST = 40
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_BYTES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@click.command("gc")
@click.option(
    "--older-than", default="30d", show_default=True, metavar="AGE", help="Not used for so long: 12h, 30d, 8w."
)
@click.option(
    "--max-size", metavar="SIZE", help="Then what is unused the longest, until this is left: 500M, 20G, 20Gi."
)
@click.option("--all", "everything", is_flag=True, help="Everything that nobody uses just now.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and why; remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def gc_command(older_than: str, max_size: str | None, everything: bool, dry_run: bool, as_json: bool) -> None:
    """Remove environments that were not used for a while, and all that only they need: layers, archives, locks.

    What a run uses while this works stays. What was removed is made again when it is needed; committed locks, runs and
    their values are never touched.
    """
    policy = Policy(
        older_than_s=_parse(older_than, _SECONDS, "--older-than", "30d"),
        most_bytes=None if max_size is None else _parse(max_size, _BYTES, "--max-size", "20G"),
        everything=everything,
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


def _print(outcome: Outcome, dry_run: bool) -> None:
    rows = [
        [item.kind, item.name[:_WIDEST], _size(item.size), _date(item.used), reason]
        for item, reason in sorted(outcome.gone, key=lambda each: (each[0].kind, -each[0].size))
    ]
    if rows:
        print_table(rows, "kind", "name", "size", "last used", "why")
    for item, reason in outcome.kept:
        click.echo(f"kept: {item.kind} {item.name}: {reason}", err=True)
    total = f"{_size(outcome.freed)} {'would be' if dry_run else 'were'} freed"
    click.echo(total if outcome.gone else "there is nothing to remove")


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
