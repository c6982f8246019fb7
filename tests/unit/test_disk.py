"""Housekeeping of runs and values: what a run or an entry of the cache names stays, whatever happens meanwhile."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from executor.cli.housekeeping import du_command, gc_command, pin_command, unpin_command
from executor.cli.records import runs_command
from executor.data.leases import hold_lease
from executor.data.pins import is_pinned, pin, unpin
from executor.data.records import Record, read_run, run_ids
from executor.data.results import Results, is_whole
from executor.data.store import Store, ValueRef, read_value
from executor.disk import clean, measure
from executor.environments import housekeeping, usage
from executor.environments.housekeeping import Outcome, Policy
from executor.environments.inventory import Item
from executor.errors import MachineError, UsageError
from executor.events import CallEnded, CallSubmitted, InputsCommitted, RunEnded, RunStarted
from executor.manifest import Shape

DAY = 86400.0
SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=1, memory_limit_bytes=None, gpus=0, gpu_model="", shm_bytes=None)
NOTHING = Policy(older_than_s=30 * DAY)


class Home:
    """A home with runs in it, numbered from the oldest, each a day older than the next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "tmp").mkdir(parents=True)
        self.store = Store(path, path / "tmp")
        self.results = Results(path, self.store)

    def add(self, number: int, *values: bytes, days: float = 0, ended: bool = True) -> str:
        """A run whose calls have these values; inputs are shared by all."""
        run = f"202601{number:02}-120000-abcd"
        snapshot = self.path / "snapshots" / f"{number % 2:032x}"
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / "workflow.py").write_text("code")
        record = Record(self.path, run)
        record(RunStarted(run=run, workflow="a.f", runtime="process", root=".", snapshot=snapshot.name))
        for place, value in enumerate(values):
            call = f"{place + 1}"
            record(CallSubmitted(call=call, parent=None, task="a.f", environment="a", shape=SHAPE))
            record(InputsCommitted(call=call, inputs=self.put(b"inputs").to_json(), key="0" * 64))
            record(CallEnded(call=call, status="succeeded", value=self.put(value).to_json()))
        if ended:
            record(RunEnded(status="succeeded", seconds=1.0))
        record.close()
        self.age(record.folder / "journal.jsonl", days)
        return run

    def put(self, data: bytes) -> ValueRef:
        """A value in the store."""
        return ValueRef(sha256=self.store.put_bytes(data), size=len(data))

    def keep(self, key: str, value: bytes, days: float = 0) -> None:
        """An entry of the cache."""
        self.results.put(key, {"value": self.put(value).to_json(), "preview": None, "run": "r", "call": "1"})
        self.age(self.path / "results" / key[:2] / f"{key}.json", days)

    def age(self, path: Path, days: float) -> None:
        """Make something look as if it had been written so long ago."""
        os.utime(path, (time.time() - days * DAY,) * 2)

    def values(self) -> set[bytes]:
        """What is in the store."""
        return {path.read_bytes() for path in (self.path / "store").glob("sha256/*/*")}

    def runs(self) -> list[int]:
        """The numbers of the runs that are there."""
        return [int(run[6:8]) for run in run_ids(self.path)]

    def check(self) -> None:
        """Whatever a run or an entry of the cache names is there."""
        for run in run_ids(self.path):
            view = read_run(self.path, run)
            assert (self.path / "snapshots" / view.snapshot / "workflow.py").exists()
            for call in view.calls.values():
                assert call.value
                assert call.inputs
                assert self.store.path(call.value["sha256"]).exists()
                assert self.store.path(call.inputs["sha256"]).exists()
        for path in (self.path / "results").glob("*/*.json"):
            assert is_whole(self.store, read_value(json.loads(path.read_text())["value"]))


@pytest.fixture
def filled(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def gc(filled: Home, policy: Policy, *, dry_run: bool = False) -> Outcome:
    return clean(filled.path, None, policy, dry_run=dry_run)


def told(outcome: Outcome) -> dict[str, int]:
    """How many of each kind went."""
    kinds = [item.kind for item, _ in outcome.gone]
    return {kind: kinds.count(kind) for kind in kinds}


def test_no_run_goes_unasked(filled: Home) -> None:
    """However old; what nothing names goes, and what is old in the cache."""
    for number in (1, 2):
        filled.add(number, b"value %d" % number, days=400)
    filled.keep("aa" * 32, b"only of the cache", days=31)
    filled.keep("bb" * 32, b"used lately", days=29)
    filled.put(b"nobody's")
    assert told(gc(filled, NOTHING)) == {"result": 1, "value": 2}
    assert filled.runs() == [1, 2]
    assert filled.values() == {b"value 1", b"value 2", b"inputs", b"used lately"}
    assert told(gc(filled, NOTHING)) == {}


def test_the_newest_runs_stay_with_all_that_they_name(filled: Home) -> None:
    """Values that a run that goes shares with one that stays, too; the rest goes, snapshots with it."""
    for number in (1, 2, 3, 4):
        filled.add(number, b"of %d" % number, b"of all", days=10 - number)
    filled.keep("aa" * 32, b"of 1")
    assert told(gc(filled, Policy(older_than_s=30 * DAY, keep_last=1))) == {"run": 3, "value": 2, "snapshot": 1}
    assert filled.runs() == [4]
    assert filled.values() == {b"of 4", b"of all", b"inputs", b"of 1"}
    filled.check()


def test_of_two_conditions_both_must_let_a_run_go(filled: Home) -> None:
    """Also where the clock of this machine was ahead once, or is behind now: the future is not old."""
    for number, days in ((1, 50), (2, 5), (3, -1000)):
        filled.add(number, days=days)
    policy = Policy(older_than_s=DAY, keep_last=1, runs_older_than_s=9 * DAY)
    assert [item.name for item, _ in gc(filled, policy, dry_run=True).gone if item.kind == "run"] == [
        "20260101-120000-abcd"
    ]
    gc(filled, Policy(older_than_s=DAY, runs_older_than_s=9 * DAY))
    assert filled.runs() == [2, 3]


def test_a_budget_takes_old_runs_and_old_results_first(filled: Home) -> None:
    """And no more than it has to; what it may not have it leaves."""
    for number in (1, 2, 3):
        filled.add(number, bytes([number]) * 1_000_000, days=10 - number)
    filled.keep("aa" * 32, b"r" * 1_000_000, days=20)
    pin(filled.path / "runs" / run_ids(filled.path)[0])
    policy = Policy(older_than_s=30 * DAY, most_bytes=3_100_000)
    assert told(gc(filled, policy)) == {"result": 1, "value": 1}
    assert filled.runs() == [1, 2, 3]
    gc(filled, Policy(older_than_s=30 * DAY, most_bytes=2_100_000))
    assert filled.runs() == [1, 3]
    gc(filled, Policy(older_than_s=30 * DAY, most_bytes=0, keep_last=1))
    assert filled.runs() == [1, 3]
    gc(filled, Policy(older_than_s=30 * DAY, most_bytes=0))
    assert filled.runs() == [1]
    filled.check()


def test_a_pin_holds_until_it_is_taken_away(filled: Home) -> None:
    """Also one that was set after it was said what would go."""
    run = filled.add(1, b"value")
    folder = filled.path / "runs" / run
    policy = Policy(older_than_s=DAY, keep_last=0)
    pin(folder)
    outcome = gc(filled, policy)
    assert [(item.kind, why) for item, why in outcome.kept] == [("run", "it is pinned")]
    unpin(folder)
    assert not is_pinned(folder)
    planned = gc(filled, policy, dry_run=True)
    assert told(planned) == {"run": 1, "value": 2, "snapshot": 1}
    pin(folder)
    assert told(housekeeping.carry_out(planned, filled.path, None)) == {}
    filled.check()


def test_a_dry_run_says_what_is_done(filled: Home) -> None:
    """The same things, the same reasons, the same bytes; and it does nothing."""
    for number in (1, 2, 3):
        filled.add(number, b"value %d" % number)
    filled.keep("aa" * 32, b"old", days=40)
    (filled.path / "tmp/value-torn").write_text("half")
    filled.age(filled.path / "tmp/value-torn", 2)
    policy = Policy(older_than_s=30 * DAY, keep_last=1)
    planned = gc(filled, policy, dry_run=True)
    assert filled.runs() == [1, 2, 3]
    done = gc(filled, policy)
    assert [(item.at, why) for item, why in planned.gone] == [(item.at, why) for item, why in done.gone]
    assert planned.freed == done.freed > 0
    assert not (filled.path / "tmp/value-torn").exists()


def test_a_run_that_goes_on_keeps_its_record_and_every_value(filled: Home) -> None:
    """It may just have stored one that no line of its journal names yet; other runs may go."""
    filled.add(1, b"old")
    living = filled.add(2, b"new", ended=False)
    filled.put(b"stored, and not yet named")
    with usage.hold(filled.path, usage.RECORDING), hold_lease(filled.path / "runs" / living):
        outcome = gc(filled, Policy(older_than_s=DAY, keep_last=0))
        assert {(item.kind, why) for item, why in outcome.kept} >= {("run", "it goes on")}
        assert told(outcome) == {"run": 1}
    assert filled.values() == {b"old", b"new", b"inputs", b"stored, and not yet named"}
    assert told(gc(filled, Policy(older_than_s=DAY, keep_last=0))) == {"run": 1, "value": 4, "snapshot": 2}


def test_a_run_that_has_no_lease_yet_stays(filled: Home) -> None:
    """Between the making of its folder and its lease, a run looks like one that was killed."""
    filled.add(1, b"value", ended=False)
    with usage.hold(filled.path, usage.RECORDING):
        assert told(gc(filled, Policy(older_than_s=DAY, keep_last=0))) == {}
    filled.check()


def _begin(path: Path, began: multiprocessing.synchronize.Event) -> None:
    with usage.hold(path, usage.RECORDING):
        began.set()


def test_a_run_that_begins_meanwhile_waits_for_the_cleaning(filled: Home) -> None:
    """So no value that it finds in the store goes before its journal names it."""
    context = multiprocessing.get_context("fork")
    began = context.Event()
    with usage.take(filled.path, usage.RECORDING) as alone:
        assert alone
        beginning = context.Process(target=_begin, args=(filled.path, began))
        beginning.start()
        assert not began.wait(0.3)
    assert began.wait(30)
    beginning.join(30)


def test_two_that_clean_at_once(filled: Home) -> None:
    """The second leaves the values to the first."""
    filled.add(1, b"value")
    filled.put(b"nobody's")
    with usage.take(filled.path, usage.RECORDING) as alone:
        assert alone
        assert told(gc(filled, NOTHING)) == {}
    assert told(gc(filled, NOTHING)) == {"value": 1}


class Killed(BaseException):
    """The process ended here."""


def _removals(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """End it all after so many removals."""
    real, count = housekeeping._remove, iter(range(most))

    def remove(item: Item, client: object, scratch: Path) -> str:
        if next(count, None) is None:
            raise Killed
        return real(item, client, scratch)

    monkeypatch.setattr(housekeeping, "_remove", remove)


def test_a_crash_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    """After any number of removals, what is left is whole, and another time finishes the work."""
    policy = Policy(older_than_s=30 * DAY, keep_last=2)
    for most in range(12):
        filled = Home(tmp_path / f"{most}")
        for number in (1, 2, 3, 4):
            filled.add(number, b"of %d" % number, b"of %d and %d" % (number, number + 1), b"of all")
        filled.keep("aa" * 32, b"of 1")
        filled.keep("bb" * 32, b"old", days=40)
        with pytest.MonkeyPatch.context() as monkeypatch:
            _removals(monkeypatch, most)
            try:
                gc(filled, policy)
            except Killed:
                filled.check()
        gc(filled, policy)
        filled.check()
        assert filled.runs() == [3, 4]
        assert filled.values() == {b"of 3", b"of 4", b"of 3 and 4", b"of 4 and 5", b"of all", b"inputs", b"of 1"}
        shutil.rmtree(filled.path)


def test_a_journal_that_cannot_be_read_keeps_everything(filled: Home) -> None:
    """Who knows what it names."""
    run = filled.add(1, b"value")
    journal = filled.path / "runs" / run / "journal.jsonl"
    journal.unlink()
    journal.mkdir()
    with pytest.raises(MachineError, match=r"cannot be looked at[\s\S]*nothing was removed"):
        gc(filled, Policy(older_than_s=0, everything=True))
    assert filled.values() == {b"value", b"inputs"}


def test_a_torn_or_strange_journal_keeps_what_it_names(filled: Home) -> None:
    """Whatever its lines mean: a digest is a digest."""
    run = filled.add(1, b"value")
    journal = filled.path / "runs" / run / "journal.jsonl"
    journal.write_bytes(b'no json {"later": "' + journal.read_bytes()[:-200])
    strange = filled.put(b"of a later version").sha256
    with journal.open("a") as file:
        file.write(f'\n{{"fact":"Unheard","of":{{"sha256":"{strange}"}}}}\n')
    gc(filled, Policy(older_than_s=0, everything=True))
    assert filled.values() == {b"value", b"inputs", b"of a later version"}


def test_du_counts_by_kind_and_each_file_once(filled: Home) -> None:
    """Logs are told apart from the rest of a run."""
    run = filled.add(1, b"v" * 1000)
    (filled.path / "runs" / run / "logs" / "1.log").write_bytes(b"l" * 300)
    filled.keep("aa" * 32, b"v" * 1000)
    os.link(filled.store.path(filled.put(b"v" * 1000).sha256), filled.path / "tmp/another-name")
    found = {each.kind: each for each in measure(filled.path, None)}
    assert (found["values"].bytes, found["logs"].bytes) == (1000 + len(b"inputs"), 300)
    assert "temporary" not in found
    assert found["cache entries"].count == found["logs"].count == 1
    assert found["runs"].bytes == (filled.path / "runs" / run / "journal.jsonl").stat().st_size
    assert found["snapshots"].bytes == 4


def test_the_commands_say_it_in_words(filled: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only digests tell apart is one line; a pin is shown; what cannot be understood is refused."""
    monkeypatch.setenv("RUN_LOCAL_HOME", str(filled.path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{filled.path}/nowhere")
    old, new = filled.add(1, b"a" * 1000, b"b" * 1000), filled.add(2, b"c" * 1000)
    command = CliRunner().invoke
    assert f"run {new} stays" in command(pin_command, ["last"]).stdout
    assert "succeeded, pinned" in command(runs_command, []).stdout
    done = command(gc_command, ["--keep-last", "0", "--dry-run"])
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["run", old] in [line[:2] for line in lines]
    assert ["value", "2", "of", "them"] in [line[:4] for line in lines]
    assert f"kept: run {new}: it is pinned" in done.stderr
    assert command(unpin_command, [new]).exit_code == 0
    assert command(gc_command, ["--keep-last", "0"]).exit_code == 0
    assert "no runs yet" in command(runs_command, []).stdout
    assert "values" not in command(du_command, []).stdout
    assert isinstance(command(pin_command, ["nothing"]).exception, UsageError)


@pytest.fixture(autouse=True)
def _nothing_left(filled: Home) -> Iterator[None]:
    yield
    assert not [path for path in (filled.path / "tmp").iterdir() if path.name.startswith("scratch-")]
