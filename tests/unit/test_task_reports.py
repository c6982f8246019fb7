"""What tasks log for people, and how much of it is kept."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

import executor
from executor import report
from executor.data.records import Record
from executor.data.reports import MOST_BYTES, MOST_TABS, read_report
from executor.errors import UsageError
from executor.events import AttemptStarted, ReportWritten

RUN = "20250101-000000-abcd"


@pytest.fixture
def sent() -> Iterator[list[tuple[str, str, bool]]]:
    """What a task sends to its record."""
    found: list[tuple[str, str, bool]] = []
    report.SENDER.append(lambda *piece: found.append(piece))
    yield found
    report.SENDER.clear()


def test_names_are_those_of_flyte(sent: list[tuple[str, str, bool]]) -> None:
    """Tabs, `do_flush`, `aio`; and `report` is one of the public names."""
    assert executor.report is report
    report.log("<b>1</b>", do_flush=True)
    report.get_tab("loss").replace("2")
    asyncio.run(report.log.aio("3"))  # type: ignore[attr-defined]
    asyncio.run(report.flush.aio())  # type: ignore[attr-defined]
    assert sent == [("Report", "<b>1</b>", False), ("loss", "2", True), ("Report", "3", False)]


def test_pictures_and_tables_are_html(sent: list[tuple[str, str, bool]], tmp_path: Path) -> None:
    """A file, bytes, a figure; rows of two kinds. What is a text stays one."""

    class Figure:
        def savefig(self, target: io.BytesIO, **_: object) -> None:
            target.write(b"\x89PNG\r\n\x1a\nfigure")

    (tmp_path / "plot.jpg").write_bytes(b"\xff\xd8\xffjpeg")
    report.image(Figure(), "a < b")
    report.image(tmp_path / "plot.jpg")
    report.image(b"<svg/>")
    report.table([{"a": 1}, {"a": 2, "b": "<i>"}])
    report.table([[1, 2]], head=["x", "y"])
    figure, jpeg, svg, table, named = [html for _, html, _ in sent]
    coded = base64.b64encode(b"\x89PNG\r\n\x1a\nfigure").decode()
    assert f'src="data:image/png;base64,{coded}" alt="a &lt; b"' in figure
    assert "<figcaption>a &lt; b</figcaption>" in figure
    assert "data:image/jpeg;base64," in jpeg
    assert "data:image/svg+xml;base64," in svg
    assert "<th>a</th><th>b</th>" in table
    assert "<tr><td>1</td><td></td></tr><tr><td>2</td><td>&lt;i&gt;</td></tr>" in table
    assert "<th>x</th><th>y</th>" in named


@pytest.mark.parametrize("what", [3, b"no picture", None])
def test_what_is_no_picture_is_refused(what: object) -> None:
    """With what it is, also outside a task."""
    with pytest.raises(UsageError, match="no picture"):
        report.image(what)
    with pytest.raises(UsageError, match="takes text"):
        report.log(b"bytes")  # type: ignore[arg-type]


def test_outside_a_task_nothing_is_kept() -> None:
    """The function of a task can be called like any other."""
    report.log("nobody hears this")


def _read(folder: Path, call: str = "1", attempt: int = 1, most: int = 10**9) -> list[tuple[str, str, int]]:
    return [(tab.name, tab.html, tab.size) for tab in read_report(folder, call, attempt, most)]


def test_attempts_have_reports_of_their_own(tmp_path: Path) -> None:
    """Tabs in their order, what was added and what was replaced; and nothing of it is in the journal."""
    record = Record(tmp_path, RUN)
    deep = ".".join(["1"] * 300)

    def write(call: str, tab: str, html: str, replace: bool = False) -> None:
        record(ReportWritten(call=call, tab=tab, html=html, replace=replace))

    write("1", "b/../<", "1")
    write("1", "a", "é\n")
    write("1", "b/../<", "2")
    write("1", "a", "3", replace=True)
    record(AttemptStarted(call="1", attempt=2, container=None))
    write("1", "a", "\ud800")
    write(deep, "a", "deep")
    record.close()
    assert _read(record.folder) == [("b/../<", "12", 2), ("a", "3", 1)]
    assert _read(record.folder, attempt=2) == [("a", "?", 1)]
    assert _read(record.folder, deep, most=2) == [("a", "de", 4)]
    assert _read(record.folder, attempt=3) == []
    assert "ReportWritten" not in (record.folder / "journal.jsonl").read_text()


def test_a_report_has_a_limit(tmp_path: Path) -> None:
    """In bytes and in tabs; beyond it one line says so, and what is replaced does not count."""
    record = Record(tmp_path, RUN)
    for _ in range(5):
        record(ReportWritten(call="1", tab="a", html="x" * (MOST_BYTES // 2 + 1), replace=True))
    for _ in range(3):
        record(ReportWritten(call="1", tab="b", html="y" * (MOST_BYTES // 2), replace=False))
    for number in range(MOST_TABS + 5):
        record(ReportWritten(call="2", tab=str(number), html="z", replace=False))
    record.close()
    (tab,) = _read(record.folder)
    assert tab[1].strip("x").startswith("<p>… the report of this attempt is full")
    tabs = _read(record.folder, "2")
    assert len(tabs) == MOST_TABS
    assert tabs[0][1].count("is full") == 1
