"""What tasks log for people (`executor.report`), in the record of their run.

    runs/<id>/reports/<call>/<attempt>/<n>.html   a tab: its name as JSON in the first line, then HTML as the task gave it

It is data of a task: nothing here looks into it, and whoever shows it sees to it that it can do no harm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_LONGEST_NAME = 200

#: How much one attempt may have in its report, and in how many tabs.
MOST_BYTES, MOST_TABS = 8 * 2**20, 24
_FULL = "<p>… the report of this attempt is full: what was logged after this is not kept</p>"


@dataclass(frozen=True, slots=True)
class ShownTab:
    """A tab of a report, up to what was asked for; `size` is that of all of it, in bytes."""

    name: str
    html: str
    size: int


@dataclass(slots=True)
class _Written:
    tabs: dict[str, int] = field(default_factory=dict)  # name → bytes
    full: bool = False


class Reports:
    """Writes the reports of a run's calls, no more of each than is to be kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: dict[tuple[str, int], _Written] = {}

    def write(self, call: str, attempt: int, tab: str, html: str, *, replace: bool) -> None:
        """Add to a tab, or replace what it has."""
        written = self._written.setdefault((call, attempt), _Written())
        data = html.encode(errors="replace")
        others = sum(size for name, size in written.tabs.items() if name != tab or not replace)
        if others + len(data) > MOST_BYTES or (tab not in written.tabs and len(written.tabs) == MOST_TABS):
            if written.full:
                return
            written.full = True
            tab, data, replace = next(iter(written.tabs), tab), _FULL.encode(), False
        new = tab not in written.tabs
        written.tabs[tab] = len(data) if replace or new else written.tabs[tab] + len(data)
        path = report_folder(self._folder, call, attempt) / f"{list(written.tabs).index(tab) + 1}.html"
        head = json.dumps(tab).encode() + b"\n"
        if new:
            path.parent.mkdir(parents=True, exist_ok=True)
        if replace and not new:
            temporary = path.with_suffix(".new")
            temporary.write_bytes(head + data)
            temporary.replace(path)
        else:
            with path.open("ab") as file:
                file.write(head + data if new else data)


def report_folder(run: Path, call: str, attempt: int) -> Path:
    """Where the report of an attempt is, if there is one."""
    return run / "reports" / call_name(call) / str(attempt)


def call_name(call: str) -> str:
    """A call as the name of a file; the id of a deep call is longer than one may be, so its end is a digest."""
    if len(call) <= _LONGEST_NAME:
        return call
    return f"{call[:_LONGEST_NAME]}~{hashlib.sha256(call.encode()).hexdigest()[:16]}"


def read_report(run: Path, call: str, attempt: int, most: int) -> Iterator[ShownTab]:
    """The tabs of an attempt's report, in their order, each up to so many bytes."""
    for number in range(1, MOST_TABS + 1):
        path = report_folder(run, call, attempt) / f"{number}.html"
        try:
            with path.open("rb") as file:
                name = json.loads(file.readline())
                size = path.stat().st_size - file.tell()
                yield ShownTab(str(name), file.read(most).decode(errors="replace"), size)
        except (OSError, ValueError):
            return
