"""The index says what the folders say, and nothing that happens to it breaks anything."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from executor import machine
from executor.cli.doctor import doctor_command
from executor.cli.records import runs_command
from executor.data import index
from executor.data.index import NAME, SCHEMA, Summary, add_run, describe, prune, rebuild, runs_of, summaries
from executor.data.leases import hold_lease
from executor.data.records import Record, newest_runs, read_run, run_ids
from executor.errors import UsageError
from executor.events import CallEnded, CallSubmitted, InputsCommitted, RunEnded, RunStarted
from executor.manifest import Shape
from executor.why import Past, explain

SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=None, gpus=0, gpu_model="", shm_bytes=None)


def write(home: Path, number: int, *, task: str = "a", ended: bool = True) -> str:
    """The record of a run of two calls."""
    run = f"20260101-{number:06}-abcd"
    record = Record(home, run, lambda: 1.7e9 + number)
    record(RunStarted(run=run, workflow=f"a.f{number % 3}", runtime="docker", root="/project"))
    for call, status in (("1", "succeeded"), ("1.1", "cached")):
        record(CallSubmitted(call=call, parent=None, task=f"{task}.g{call}", environment="a", shape=SHAPE))
        record(InputsCommitted(call=call, inputs={}, key=f"key of {number}", parts={"versions": {"a": str(number)}}))
        record(CallEnded(call=call, status="cached" if status == "cached" else "succeeded"))
    if ended:
        record(RunEnded(status="succeeded", seconds=number / 7))
    record.close()
    return run


def opened(home: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(home / NAME, isolation_level=None))


@pytest.fixture
def ten(tmp_path: Path) -> list[Summary]:
    """Ten runs, one of them interrupted, all in the index; what the folders say."""
    for number in range(10):
        write(tmp_path, number, ended=number != 4)
    shutil.copytree(tmp_path / "runs", tmp_path / "elsewhere/runs")
    said, note = summaries(tmp_path / "elsewhere", 100)
    assert (len(said), note, said[0].calls) == (10, "", {"succeeded": 1, "cached": 1})
    assert [each.status for each in said].count("interrupted") == 1
    summaries(tmp_path, 100)
    return said


def test_the_index_says_what_the_folders_say(
    tmp_path: Path, ten: list[Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no folder is read for it."""

    def unexpected(folder: Path) -> None:
        raise AssertionError(folder)

    monkeypatch.setattr(index, "read_folder", unexpected)
    assert summaries(tmp_path, 100) == (ten, "")
    assert summaries(tmp_path, 3) == (ten[:3], "")
    assert describe(tmp_path) == "10 of 10 runs"


def test_a_run_that_changed_is_read_again(tmp_path: Path, ten: list[Summary]) -> None:
    """The journal is the truth, whatever the index has."""
    journal = tmp_path / "runs" / ten[0].run / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"succeeded","seconds"', '"failed","seconds"'))
    assert [each.status for each in summaries(tmp_path, 2)[0]] == ["failed", "succeeded"]
    shutil.rmtree(journal.parent)
    write(tmp_path, 77)
    assert [each.run[9:15] for each in summaries(tmp_path, 2)[0]] == ["000077", "000008"]
    with opened(tmp_path) as db:
        assert ten[0].run not in {run for (run,) in db.execute("SELECT run FROM runs")}


def test_a_run_that_goes_on_is_never_in_the_index(tmp_path: Path) -> None:
    """Its row would be wrong at once."""
    run = write(tmp_path, 1, ended=False)
    with hold_lease(tmp_path / "runs" / run):
        add_run(tmp_path, read_run(tmp_path, run))
        assert [each.status for each in summaries(tmp_path, 5)[0]] == ["running"]
        assert not (tmp_path / NAME).exists()
    assert [each.status for each in summaries(tmp_path, 5)[0]] == ["interrupted"]
    assert describe(tmp_path) == "1 of 1 runs"


def test_runs_are_found_by_the_tasks_of_their_calls(tmp_path: Path, ten: list[Summary]) -> None:
    """However long ago; those that are gone are not found any more."""
    ids = [each.run for each in ten]
    assert runs_of(tmp_path, "a.g1.1", before="3", most=100) == ids
    assert runs_of(tmp_path, "a.g1.1", before=ids[1], most=3) == ids[2:5]
    shutil.rmtree(tmp_path / "runs" / ids[2])
    prune(tmp_path)
    assert runs_of(tmp_path, "a.g1.1", before=ids[1], most=2) == ids[3:5]
    assert runs_of(tmp_path, "nothing", before="3", most=9) == []


def test_the_nearest_earlier_call_may_be_many_runs_ago(tmp_path: Path) -> None:
    """Where only other workflows ran since: `why` finds it by the index."""
    first = write(tmp_path, 1)
    for number in range(2, 40):
        write(tmp_path, number, task="b")
    last = write(tmp_path, 40)
    assert first not in {view.id for view in newest_runs(tmp_path, before=last)}
    summaries(tmp_path, 100)
    view = read_run(tmp_path, last)
    told = explain(view, view.calls["1"], Past(tmp_path, view))
    assert told.nearest is not None
    assert told.nearest[0].id == first


@pytest.mark.parametrize("damage", ["nonsense", "flipped", "cut", "empty", "no table", "a folder"])
def test_a_damaged_index_is_put_aside_and_made_anew(tmp_path: Path, ten: list[Summary], damage: str) -> None:
    """What is said is right at once, and the next time it comes from a new index."""
    path = tmp_path / NAME
    with opened(tmp_path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = path.read_bytes()
    if damage == "nonsense":
        path.write_bytes(random.Random(0).randbytes(len(data)))
    elif damage == "flipped":
        path.write_bytes(data[:4096] + random.Random(0).randbytes(len(data) - 4096))
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no table":
        with opened(tmp_path) as db:
            db.execute("DROP TABLE runs")
    else:
        path.unlink()
        path.mkdir()
    found, note = summaries(tmp_path, 100)
    assert found == ten
    assert bool(note) == (damage != "empty"), note
    if damage in ("nonsense", "flipped", "cut"):
        assert "was damaged" in note
        assert len(list(tmp_path.glob(f"{NAME}.damaged-*"))) == 1
    if damage != "a folder":
        rebuild(tmp_path)
        assert summaries(tmp_path, 100) == (ten, "")
        assert describe(tmp_path) == "10 of 10 runs"


def test_an_index_of_a_later_version_is_left_alone(tmp_path: Path, ten: list[Summary]) -> None:
    """The folders are read instead, and it is said."""
    with opened(tmp_path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
        db.execute("ALTER TABLE runs ADD COLUMN later")
    before = (tmp_path / NAME).read_bytes()
    found, note = summaries(tmp_path, 100)
    assert found == ten
    assert "a later version" in note
    add_run(tmp_path, read_run(tmp_path, write(tmp_path, 20)))
    with pytest.raises(UsageError, match="a later version"):
        rebuild(tmp_path)
    assert (tmp_path / NAME).read_bytes() == before


def test_an_index_of_an_earlier_version_is_made_anew(tmp_path: Path, ten: list[Summary]) -> None:
    """Nothing is lost by that, for it is an index."""
    with opened(tmp_path) as db:
        db.execute("PRAGMA user_version = 0")
        db.execute("ALTER TABLE runs ADD COLUMN earlier")
    assert summaries(tmp_path, 100) == (ten, "")
    assert describe(tmp_path) == "10 of 10 runs"


def test_an_index_that_is_held_or_cannot_be_written_is_done_without(
    tmp_path: Path, ten: list[Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends does not fail for it."""
    monkeypatch.setattr(index, "_BUSY_S", 0.05)
    monkeypatch.setattr(index, "_LAZY_S", 0.05)
    late = write(tmp_path, 30)
    with opened(tmp_path) as db:
        db.execute("BEGIN IMMEDIATE")
        add_run(tmp_path, read_run(tmp_path, late))
        found, note = summaries(tmp_path, 100)
        assert (found[1:], note) == (ten, "")
    assert describe(tmp_path) == "10 of 11 runs"


def test_on_a_network_file_system_folders_are_read(
    tmp_path: Path, ten: list[Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written there, and `doctor` says it."""
    monkeypatch.setattr(machine, "network_file_system", lambda path: "nfs4")
    monkeypatch.setenv("RUN_LOCAL_HOME", str(tmp_path))
    before = (tmp_path / NAME).stat().st_mtime_ns
    found, note = summaries(tmp_path, 100)
    assert found == ten
    assert "network file system (nfs4)" in note
    add_run(tmp_path, read_run(tmp_path, write(tmp_path, 40)))
    assert (tmp_path / NAME).stat().st_mtime_ns == before
    told = json.loads(CliRunner().invoke(doctor_command, ["--json"]).stdout)
    assert "network file system (nfs4)" in told["home"]
    assert told["index"].startswith("not used")


def _list(home: Path, times: int) -> None:
    for _ in range(times):
        found, note = summaries(home, 1000)
        assert not note, note
        assert {each.status for each in found} <= {"succeeded", "interrupted"}  # one has no lease while it is written


def test_several_processes_at_once(tmp_path: Path) -> None:
    """Some list, runs end, one makes it anew: nobody is told of a locked or damaged index."""
    for number in range(30):
        write(tmp_path, number)
    context = multiprocessing.get_context("fork")
    readers = [context.Process(target=_list, args=(tmp_path, 20)) for _ in range(3)]
    for each in readers:
        each.start()
    for number in range(30, 60):
        add_run(tmp_path, read_run(tmp_path, write(tmp_path, number)))
        if number % 10 == 0:
            rebuild(tmp_path)
    for each in readers:
        each.join(60)
        assert each.exitcode == 0
    assert [each.status for each in summaries(tmp_path, 1000)[0]] == ["succeeded"] * 60
    assert not list(tmp_path.glob("*damaged*"))


def test_doctor_makes_it_anew(tmp_path: Path, ten: list[Summary], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folders; a run that a later version wrote is named, and listed all the same."""
    monkeypatch.setenv("RUN_LOCAL_HOME", str(tmp_path))
    (tmp_path / NAME).write_bytes(b"nonsense" * 1000)
    journal = tmp_path / "runs" / ten[0].run / "journal.jsonl"
    journal.write_text(journal.read_text().replace('"journal":1', '"journal":2'))
    done = CliRunner().invoke(doctor_command, ["--rebuild"])
    assert done.exit_code == 0
    assert "holds 9 runs" in done.stdout
    assert "1 cannot be read" in done.stderr
    told = CliRunner().invoke(runs_command, ["--json"])
    assert [each["status"] for each in json.loads(told.stdout)][:2] == ["unreadable", "succeeded"]
    told = CliRunner().invoke(runs_command, [])
    assert f"run {ten[0].run} cannot be read: run-local a later version wrote it, in format 2" in told.stderr


def test_a_clock_that_goes_back_changes_no_row(tmp_path: Path, ten: list[Summary]) -> None:
    """A row counts by the size and time of its journal, and not by which is later."""
    for run in run_ids(tmp_path):
        os.utime(tmp_path / "runs" / run / "journal.jsonl", (1, 1))
    assert summaries(tmp_path, 100) == (ten, "")
