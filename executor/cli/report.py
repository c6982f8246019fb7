"""`run-local report`: one run as a page for a browser."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

from executor import machine, page
from executor.data.records import read_run


@click.command("report")
@click.argument("run", default="last")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to; else into its record.")
@click.option("--open", "opens", is_flag=True, help="Show it in a browser.")
def report_command(run: str, output: Path | None, opens: bool) -> None:
    """Write one RUN as one HTML page, which needs no network and no run-local to be read. `last` is the newest."""
    home = machine.home()
    written = page.write_page(read_run(home, run), home, output)
    click.echo(written)
    if opens and not webbrowser.open(written.as_uri()):
        click.echo("no browser could be started", err=True)
