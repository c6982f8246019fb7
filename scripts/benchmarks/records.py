"""What records cost: the report of a run with ten thousand calls, its time and its size."""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from executor import page
from executor.data.records import Record, read_run
from executor.events import (
    AttemptEnded,
    AttemptStarted,
    CallEnded,
    CallSubmitted,
    EnvironmentReady,
    LogWritten,
    RunEnded,
    RunStarted,
)
from executor.manifest import Shape

RUN = "20260101-120000-0000"
SHAPE = Shape(cpus=1, cpus_limit=1, memory_bytes=2**30, memory_limit_bytes=2**30, gpus=0, gpu_model="", shm_bytes=None)
SLOTS = 8


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
        for line in measure_report(Path(folder), chosen.rounds, chosen.calls):
            print(line)
    return 0


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
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
