"""What was recorded is what is read, whatever happened to the process that wrote it."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from executor import page
from executor.data.records import Record, past_times, read_run, run_ids
from executor.data.snapshot import take_snapshot
from executor.errors import ProjectError, UsageError
from executor.events import (
    JOURNAL,
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    CallSubmitted,
    LogWritten,
    RunEnded,
    RunStarted,
)
from executor.manifest import Shape

RUN = "20260101-120000-abcd"
SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=None, gpus=0, gpu_model="", shm_bytes=None)


def write_run(home: Path, run: str = RUN) -> Record:
    record = Record(home, run)
    record(RunStarted(run=run, workflow="a.f", runtime="docker", root="."))
    record(CallSubmitted(call="1", parent=None, task="a.f", environment="a", shape=SHAPE))
    record(AttemptStarted(call="1", attempt=1, container="c0ffee"))
    record(LogWritten(call="1", stream="stdout", data=b"\xff raw\n"))
    record(AttemptEnded(call="1", attempt=1, outcome="ok", seconds=1.5, evidence={"cpu_s": 1.0}))
    record(CallEnded(call="1", status="succeeded", preview={"json": 3}))
    record(RunEnded(status="succeeded", seconds=2.0))
    return record


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The journal folds into the calls, and the log holds the bytes that the task wrote."""
    write_run(tmp_path).close()
    view = read_run(tmp_path, "last")
    assert (view.status, view.workflow, view.seconds) == ("succeeded", "a.f", 2.0)
    call = view.calls["1"]
    assert (call.status, call.attempts, call.container, call.seconds) == ("succeeded", 1, "c0ffee", 1.5)
    assert (view.folder / "logs" / "1.log").read_bytes() == b"\xff raw\n"


def test_a_call_at_any_depth_has_a_log(tmp_path: Path) -> None:
    """An id longer than a file's name may be has a log of its own all the same."""
    deep = [".".join("1" * depth) for depth in (100, 101, 130, 131, 2000)]
    record = Record(tmp_path, RUN)
    for call in deep:
        record(LogWritten(call=call, stream="stdout", data=call.encode()))
    record.close()
    view = read_run(tmp_path, RUN)
    assert [view.log(call).read_text() for call in deep] == deep
    assert view.log("1.2").name == "1.2.log"


def test_attempts_have_logs_of_their_own(tmp_path: Path) -> None:
    """So that each is what was written, byte for byte."""
    record = Record(tmp_path, RUN)
    for attempt in (1, 2, 3):
        for call in ("1", "1.1"):
            record(AttemptStarted(call=call, attempt=attempt, container=None))
        record(LogWritten(call="1", stream="stdout", data=b"%d" % attempt))
    record.close()
    folder = tmp_path / "runs" / RUN / "logs"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "1.log": b"1", "1@2.log": b"2", "1@3.log": b"3",
    }  # fmt: skip


def test_a_torn_tail_is_left_out(tmp_path: Path) -> None:
    """A journal that ends in the middle of a line tells all that came before it."""
    write_run(tmp_path).close()
    journal = tmp_path / "runs" / RUN / "journal.jsonl"
    whole = journal.read_bytes()
    for size in range(len(whole) - 1):
        journal.write_bytes(whole[:size])
        assert read_run(tmp_path, RUN).id == RUN
    assert read_run(tmp_path, RUN).status == "interrupted"


def test_a_run_is_found_by_the_end_of_its_name(tmp_path: Path) -> None:
    """A unique beginning or ending will do; an ambiguous or unknown one is refused with what is there."""
    write_run(tmp_path).close()
    write_run(tmp_path, "20260101-120001-ef01").close()
    assert read_run(tmp_path, "abcd").id == RUN
    assert run_ids(tmp_path) == [RUN, "20260101-120001-ef01"]
    with pytest.raises(UsageError, match="several"):
        read_run(tmp_path, "20260101")
    with pytest.raises(UsageError, match="no run"):
        read_run(tmp_path, "../../etc")


def test_a_snapshot_holds_the_source_and_nothing_else(tmp_path: Path) -> None:
    """But its bytecode. Hidden files, caches and environments stay out; the same source is copied once, an edit anew."""
    root = tmp_path / "project"
    for name in ("flow.py", "data/in.fasta", ".git/config", "__pycache__/x.pyc", "venv/pyvenv.cfg", "venv/lib.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    first = take_snapshot(root, tmp_path / "home")
    there = sorted(path.name for path in first.rglob("*") if path.is_file())
    assert there == [f"flow.{sys.implementation.cache_tag}.pyc", "flow.py", "in.fasta"]
    assert take_snapshot(root, tmp_path / "home") == first
    (root / "flow.py").write_text("edited")
    assert (first / "flow.py").read_text() == "flow.py"
    assert take_snapshot(root, tmp_path / "home") != first


def test_a_project_full_of_data_is_refused_by_name(tmp_path: Path) -> None:
    """Gigabytes in the source are named, not copied."""
    (tmp_path / "project").mkdir()
    with (tmp_path / "project" / "uniref.fasta").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(ProjectError, match="1024 MiB") as caught:
        take_snapshot(tmp_path / "project", tmp_path / "home")
    assert "uniref.fasta" in caught.value.why


def test_a_clock_is_only_a_label(tmp_path: Path) -> None:
    """The order of the journal is the order of the facts, even if the clock goes backwards."""
    times = iter([5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.1, time.time()])
    record = Record(tmp_path, RUN, clock=lambda: next(times))
    record(RunStarted(run=RUN, workflow="a.f", runtime="docker", root="."))
    record(RunEnded(status="failed", seconds=0.0))
    record.close()
    assert read_run(tmp_path, RUN).status == "failed"


def journal_of(home: Path) -> Path:
    return home / "runs" / RUN / "journal.jsonl"


@pytest.mark.parametrize(
    "nonsense", [b"no JSON", b"[1]", b"\0" * 40, b'{"fact":"CallEnded"}', b'{"at":0}', b"\xff\xfe", b""]
)
def test_a_damaged_line_costs_what_it_told_and_nothing_else(tmp_path: Path, nonsense: bytes) -> None:
    """Whichever it is: the lines after it are read, it is counted, and the page can be written."""
    write_run(tmp_path).close()
    lines = journal_of(tmp_path).read_bytes().splitlines()
    for number in range(len(lines) - 1):
        journal_of(tmp_path).write_bytes(b"\n".join([*lines[:number], nonsense, *lines[number + 1 :], b""]))
        view = read_run(tmp_path, RUN)
        assert (view.status, view.seconds) == ("succeeded", 2.0)
        assert 1 <= view.damaged <= 5
        assert ("1" in view.calls) == (b"CallSubmitted" not in lines[number])
        assert page.write_page(view, tmp_path).exists()
        past_times(tmp_path, "a.f")
    journal_of(tmp_path).write_bytes(b"\n".join(lines) + b"\n" + nonsense)
    assert read_run(tmp_path, RUN).damaged == (1 if nonsense.startswith(b"{") else 0)


def test_a_journal_of_a_later_version_is_told_as_such(tmp_path: Path) -> None:
    """Nothing is guessed of it; other runs take no times from it."""
    write_run(tmp_path).close()
    assert past_times(tmp_path, "a.f")
    journal = journal_of(tmp_path)
    journal.write_text(journal.read_text().replace(f'"journal":{JOURNAL}', '"journal":7'))
    with pytest.raises(UsageError, match=r"run-local .* wrote it, in format 7; this one is .* reads up to 1"):
        read_run(tmp_path, RUN)
    assert past_times(tmp_path, "a.f") == []


def test_a_journal_without_a_format_is_read(tmp_path: Path) -> None:
    """Those of earlier versions have none."""
    write_run(tmp_path).close()
    journal = journal_of(tmp_path)
    journal.write_text(journal.read_text().replace(f',"journal":{JOURNAL}', ""))
    assert read_run(tmp_path, RUN).status == "succeeded"


def test_a_clock_that_goes_back_makes_no_time_negative(tmp_path: Path) -> None:
    """Neither what is told of calls nor what the page draws; what a run took is measured by another clock."""
    clock = iter(range(2_000_000_000, 0, -100_000))
    record = Record(tmp_path, RUN, lambda: next(clock))
    record(RunStarted(run=RUN, workflow="a.f", runtime="docker", root="."))
    record(CallSubmitted(call="1", parent=None, task="a.f", environment="a", shape=SHAPE))
    record(AttemptStarted(call="1", attempt=1, container=None, slot=1))
    record(AttemptEnded(call="1", attempt=1, outcome="ok", seconds=1.5, evidence={}))
    record(CallEnded(call="1", status="succeeded", preview={"json": 3}))
    record(RunEnded(status="succeeded", seconds=2.0))
    record.close()
    view = read_run(tmp_path, RUN)
    assert (view.seconds, view.calls["1"].seconds, view.calls["1"].waited) == (2.0, 1.5, 0.0)
    written = page.write_page(view, tmp_path).read_text()
    data = json.loads(re.findall(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', written, re.S)[0])
    assert [path for path, number in numbers(data) if number < 0] == ["/calls/0/1"], data  # it has no parent
    assert all(each.ended >= each.started for each in past_times(tmp_path, "a.f")[0])


def numbers(part: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in a document, with where they are."""
    if isinstance(part, dict | list):
        for name, each in part.items() if isinstance(part, dict) else enumerate(part):
            yield from numbers(each, f"{path}/{name}")
    elif isinstance(part, int | float):
        yield path, part
