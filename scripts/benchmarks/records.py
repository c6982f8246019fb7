"""What records cost: to write one, to find a result among very many, to list a thousand runs, to make a report."""

import argparse
import hashlib
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TextIO

from executor import page
from executor.data.index import NAME, summaries
from executor.data.records import Record, read_folder, read_run
from executor.data.results import Results
from executor.data.store import Store, ValueRef
from executor.events import (
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    CallSubmitted,
    EnvironmentReady,
    Fact,
    InputsCommitted,
    LogWritten,
    RunEnded,
    RunStarted,
)
from executor.manifest import Shape

RUN = "20260101-120000-0000"
SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=2**30, memory_limit_bytes=2**30, gpus=0, gpu_model="", shm_bytes=None)
SLOTS = 8
FEW, MANY = 10, 100_000
RUNS, CALLS = 1000, 10


def write_run(home: Path, calls: int) -> None:
    """The record of a run whose root made so many calls, on eight slots, each of which printed a line."""
    now = [1.7e9]
    record = Record(home, RUN, lambda: now[0])
    record(RunStarted(run=RUN, workflow="root.whole", runtime="docker", root="project"))
    for name in ("root", "leaf"):
        packages = tuple(("conda", f"{name}-{number}", "1.0") for number in range(200))
        record(EnvironmentReady(environment=name, key="0" * 64, python="3.11.7", seconds=0.1, packages=packages))
    record(CallSubmitted(call="1", parent=None, task="root.whole", environment="root", shape=SHAPE))
    record(AttemptStarted(call="1", attempt=1, container="0" * 64, slot=1))
    for number in range(calls - 1):
        call, arguments = f"1.{number + 1}", {"number": {"json": number}, "name": {"json": "a name of some length"}}
        record(
            CallSubmitted(call=call, parent="1", task="leaf.part", environment="leaf", shape=SHAPE, arguments=arguments)
        )
        slot = 2 + number % SLOTS
        record(AttemptStarted(call=call, attempt=1, container=f"{slot:064}", slot=slot))
        record(LogWritten(call=call, stream="stdout", data=b"one line of what it printed\n"))
        now[0] += 0.05
        evidence = {"cpu_s": 0.3, "peak_bytes": 2**28 + number, "swept": 0, "memory_share": 0.01}
        record(AttemptEnded(call=call, attempt=1, outcome="ok", seconds=0.05, evidence=evidence))
        record(CallEnded(call=call, status="succeeded", preview={"json": {"number": number, "score": number / 7}}))
    record(AttemptEnded(call="1", attempt=1, outcome="ok", seconds=now[0] - 1.7e9, evidence={"cpu_s": 1.0}))
    record(CallEnded(call="1", status="succeeded", preview={"json": calls}))
    record(RunEnded(status="succeeded", seconds=now[0] - 1.7e9))
    record.close()


def main() -> int:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(prog="scripts/bench records", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured")
    parser.add_argument("--calls", type=int, default=10_000, help="calls of the run")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="run-local-bench-") as folder:
        for measure in (measure_recording, measure_look_up, measure_runs):
            for line in measure(Path(folder) / measure.__name__, chosen.rounds):
                print(line)
        for line in measure_report(Path(folder), chosen.rounds, chosen.calls):
            print(line)
    return 0


def facts_of_a_call(number: int) -> list[Fact]:
    """What is recorded of one call that runs once."""
    call, value = f"1.{number}", ValueRef(sha256=hashlib.sha256(b"%d" % number).hexdigest(), size=200).to_json()
    arguments = {"number": {"json": number}, "name": {"json": "a name of some length"}}
    evidence = {"cpu_s": 0.3, "peak_bytes": 2**28 + number, "swept": 0, "memory_share": 0.01}
    return [
        CallSubmitted(call=call, parent="1", task="leaf.part", environment="leaf", shape=SHAPE, arguments=arguments),
        InputsCommitted(call=call, inputs=value, key="0" * 64),
        AttemptStarted(call=call, attempt=1, container="0" * 64, slot=1),
        AttemptEnded(call=call, attempt=1, outcome="ok", seconds=0.05, evidence=evidence),
        CallEnded(call=call, status="succeeded", value=value, preview={"json": {"number": number}}),
    ]


def measure_recording(home: Path, rounds: int, calls: int = 2000) -> list[str]:
    """What it costs to record a call, beside appending and flushing the same lines, which are there already."""
    facts = [facts_of_a_call(number) for number in range(calls)]
    recorded, bare = [], []
    for _ in range(rounds):
        shutil.rmtree(home, ignore_errors=True)
        record = Record(home, RUN)
        recorded.append(_seconds(partial(_record, record, facts)) / calls)
        record.close()
        lines = (record.folder / "journal.jsonl").read_text().splitlines(keepends=True)
        with (home / "bare.jsonl").open("a", encoding="utf-8") as file:
            bare.append(_seconds(partial(_append, file, lines)) / calls)
    cost, line = statistics.median(recorded), statistics.median(bare)
    return [
        f"{'a call, recorded':32} {1e6 * cost:8.0f} us {cost / line:8.2f} x its {len(facts[0])} lines, appended and flushed",
    ]


def _record(record: Record, calls: list[list[Fact]]) -> None:
    for facts in calls:
        for fact in facts:
            record(fact)


def _append(file: TextIO, lines: list[str]) -> None:
    for line in lines:
        file.write(line)
        file.flush()


def _look_up(results: Results, keys: list[str]) -> None:
    for key in keys:
        results.find(key)


def measure_look_up(home: Path, rounds: int) -> list[str]:
    """What it costs to find a result, and to find that there is none, among few and among many."""
    (home / "tmp").mkdir(parents=True)
    store = Store(home, home / "tmp")
    value = ValueRef(sha256=store.put_bytes(b"v" * 200), size=200).to_json()
    entry = json.dumps({"value": value, "preview": {"json": 1}, "key": {}, "run": RUN, "call": "1", "seconds": 1.0})
    keys = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(MANY)]
    absent = [hashlib.sha256(b"absent %d" % number).hexdigest() for number in range(1000)]
    found: dict[int, list[tuple[float, float]]] = {}
    for count in (FEW, MANY):
        for key in keys[:count]:
            path = home / f"{count}" / "results" / key[:2] / f"{key}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(entry)
    for _ in range(rounds):
        for count in (FEW, MANY):
            results = Results(home / f"{count}", store)
            there = [keys[number * 7919 % count] for number in range(1000)]
            hit, miss = (_seconds(partial(_look_up, results, these)) / 1000 for these in (there, absent))
            found.setdefault(count, []).append((hit, miss))
    few, many = ([statistics.median(kind) for kind in zip(*found[count], strict=True)] for count in (FEW, MANY))
    return [
        f"{f'{what} among {MANY} results':32} {1e6 * cost:8.0f} us {cost / base:8.2f} x among {FEW}"
        for what, base, cost in zip(("a hit", "a miss"), few, many, strict=True)
    ]


def measure_runs(home: Path, rounds: int) -> list[str]:
    """What it costs to list a thousand runs with the index, without it, and to make it; and the newest twenty."""
    for run in range(RUNS):
        record = Record(home, f"20260101-{run:06}-0000")
        record(RunStarted(run=RUN, workflow="root.whole", runtime="docker", root="project"))
        for number in range(CALLS):
            for fact in facts_of_a_call(number):
                record(fact)
        record(RunEnded(status="succeeded", seconds=1.0))
        record.close()
    folders = sorted((home / "runs").iterdir())
    read = _median(rounds, lambda: [read_folder(path) for path in folders])
    read_newest = _median(rounds, lambda: [read_folder(path) for path in folders[-20:]])
    made = []
    for _ in range(rounds):
        for path in home.glob(f"{NAME}*"):
            path.unlink()
        made.append(_seconds(lambda: summaries(home, RUNS)))
    listed = _median(rounds, lambda: summaries(home, RUNS))
    newest = _median(rounds, lambda: summaries(home, 20))
    return [
        f"{f'{RUNS} runs, by the index':32} {1e3 * listed:8.0f} ms {listed / read:8.2f} x reading their folders",
        f"{'the same, and the index is made':32} {1e3 * statistics.median(made):8.0f} ms "
        f"{statistics.median(made) / read:8.2f} x",
        f"{'the newest 20 of them, by index':32} {1e3 * newest:8.1f} ms {newest / read_newest:8.2f} x reading theirs",
    ]


def measure_report(home: Path, rounds: int, calls: int) -> list[str]:
    """What the report of a run costs, beside reading its record, and how large it is."""
    write_run(home, calls)
    view = read_run(home, RUN)
    read = _median(rounds, lambda: read_run(home, RUN))
    write = _median(rounds, lambda: page.write_page(view, home))
    size, journal = ((view.folder / name).stat().st_size for name in ("report.html", "journal.jsonl"))
    return [
        f"{'record of a run, read':32} {1e3 * read:8.0f} ms",
        f"{f'report of {calls} calls, written':32} {1e3 * write:8.0f} ms {write / read:8.2f} x reading the record",
        f"{'its size':32} {size / 2**20:8.1f} MiB {size / journal:7.2f} x the journal's",
    ]


def _median(rounds: int, action: Callable[[], object]) -> float:
    return statistics.median(_seconds(action) for _ in range(rounds))


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
