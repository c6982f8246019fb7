"""What calls and values cost, against the Docker engine's own create + start + wait + remove, and against copies.

A small project is written to a temporary folder: environment `bench-a` calls tasks of `bench-b` that do nothing, and
`bench-d` takes arrays from `bench-c`. Every round measures all of it, and beside it what it is compared with: the engine
by itself on the same image, a copy of the same array in the task that makes it, `np.save` and `np.load` in two containers
of the same image over a bind mount, a Python that does nothing. The rounds alternate so that whatever else the machine
does falls on all of them. Medians say how it is on this machine now, minima what it can be.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

from executor import dockerd
from executor.errors import MachineError

WORKFLOW = '''\
"""Environments of which one calls the other."""

import asyncio
import time
from time import perf_counter

from executor import Resources, TaskEnvironment, map

b = TaskEnvironment("bench-b")
a = TaskEnvironment("bench-a", depends_on=[b])


@b.task
def noop() -> None:
    """Nothing."""


@b.task
def ignore(number: int) -> None:
    """Nothing, for each of many numbers."""


@a.task
def measure(calls: int) -> list[float]:
    """Seconds of each call of `noop`, the first one into a container that does not exist yet."""
    seconds = []
    for _ in range(calls + 1):
        began = perf_counter()
        noop()
        seconds.append(perf_counter() - began)
    return seconds


@a.task
def gather(calls: int) -> list[float]:
    """Seconds of so many calls at once, and of each of some, one after the other, in the one container there is then."""
    async def all_of_them():
        await asyncio.gather(*(noop.aio() for _ in range(calls)))

    one_by_one = measure.function(50)[1:]
    began = perf_counter()
    asyncio.run(all_of_them())
    return [perf_counter() - began, *one_by_one]


@a.task
def spread(calls: int) -> list[float]:
    """The same with `executor.map`."""
    one_by_one = measure.function(50)[1:]
    began = perf_counter()
    for _ in map(ignore, range(calls), return_exceptions=False):
        pass
    return [perf_counter() - began, *one_by_one]


@b.task
def wait(seconds: float) -> None:
    """A task that needs nothing from anybody."""
    time.sleep(seconds)


c = TaskEnvironment("bench-c", resources=Resources(cpu=1, memory="4Gi"))
d = TaskEnvironment("bench-d", depends_on=[c], resources=Resources(cpu=1, memory="4Gi"))


@c.task
def make(mib: int) -> dict:
    """An array, seconds of what is done to it here, and when it is returned."""
    import numpy as np
    array = np.ones(mib * 2**17)
    _, other = timed(array.copy)
    copied = min(timed(np.copyto, other, array)[0] for _ in range(3))
    read, _ = timed(array.sum)
    del other
    return {"array": array, "copied": copied, "read": read, "returned": time.time()}


@d.task
def take(mib: int) -> dict:
    """Seconds of what is done to an array of another task, and of what was done to it there.

    over: between the last line of that task and the next one here, less the same for an empty array
    """
    from executor.worker import payload
    opened, load = [], payload.load

    def load_in_time(*args):
        seconds, value = timed(load, *args)
        opened.append(seconds)
        return value

    def hand_over(mib):
        value = make(mib)
        return time.time() - value["returned"], value

    payload.load = load_in_time
    hand_over(0)
    nothing = sorted(hand_over(0)[0] for _ in range(3))[1]
    over, value = hand_over(mib)
    read, _ = timed(value["array"].sum)
    return {
        "over": over - nothing, "opened": opened[-1], "read": read, "copied": value["copied"], "read_there": value["read"]
    }


def timed(function, *args):
    """The seconds that it takes, and its value."""
    began = perf_counter()
    value = function(*args)
    return perf_counter() - began, value
'''
SPEC = "channels: [conda-forge]\ndependencies: [python{more}]\n"

RUN_LOCAL = str(Path(sys.executable).with_name("run-local"))

LARGE_MIB, MIDDLE_MIB = 512, 200
IDLE_S = 6

#: What a container does for `np.save` and `np.load`: it prints the seconds.
TIMED = "import numpy as np, time; {first}; began = time.perf_counter(); {timed}; print(time.perf_counter() - began)"
SAVE = ("array = np.ones({mib} * 2**17)", "np.save('/shared/a.npy', array)")
LOAD = ("pass", "np.load('/shared/a.npy')")

ENGINE = "engine: create + start + wait + remove"
WITHOUT_NETWORK = "engine, the same without a network"
WARM = "warm call from task to task"
COLD = "cold call from task to task"
SHELL = "`run-local noop` from the shell"

IN_A_ROW = "{calls} calls, one after the other"
GATHER = "{calls} calls by asyncio.gather"
MAP = "{calls} calls by executor.map"
COPY = f"memcpy of {LARGE_MIB} MiB"
OPEN = f"open {LARGE_MIB} MiB from another task"
OVER = f"write and hand over {LARGE_MIB} MiB"
READ_OWN = f"sum of {LARGE_MIB} MiB of one's own"
READ = f"sum of {LARGE_MIB} MiB from another task"
#: What the task `take` answers with.
TAKEN = {"copied": COPY, "opened": OPEN, "over": OVER, "read_there": READ_OWN, "read": READ}

FILES = f"{MIDDLE_MIB} MiB by np.save and np.load"
MIDDLE = f"{MIDDLE_MIB} MiB from task to task"
PYTHON = "python -c pass"
IMPORT = "python -c 'import executor'"
HELP = "run-local --help"
SECOND = "a second of a core"
IDLE = "CPU of run-local, a second of waiting"


@dataclass(frozen=True)
class Row:
    """What is measured, and beside what.

    times, more_s: at most so many times that, or so many seconds more, its median is to be; None where it is only told
    """

    what: str
    beside: str
    times: float | None = None
    more_s: float | None = None


ROWS = (
    Row(ENGINE, ENGINE),
    Row(WITHOUT_NETWORK, ENGINE),
    Row(COLD, ENGINE, times=1.3),
    Row(SHELL, ENGINE, times=2.5),
    Row(WARM, ENGINE, times=1 / 40),
    Row(IN_A_ROW, IN_A_ROW),
    Row(GATHER, IN_A_ROW, times=0.7),
    Row(MAP, IN_A_ROW, times=0.7),
    Row(COPY, COPY),
    Row(OPEN, COPY, times=1 / 20),
    Row(OVER, COPY, times=2),
    Row(READ_OWN, READ_OWN),
    Row(READ, READ_OWN),
    Row(FILES, FILES),
    Row(MIDDLE, FILES, times=1 / 4),
    Row(PYTHON, PYTHON),
    Row(IMPORT, PYTHON, more_s=0.02),
    Row(HELP, PYTHON, more_s=0.15),
    Row(SECOND, SECOND),
    Row(IDLE, SECOND, times=1 / 100),
)


@dataclass
class Samples:
    """Seconds, by what was measured."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def time(self, what: str, action: Callable[[], object]) -> None:
        """Do it, and note how long it took."""
        began = time.perf_counter()
        action()
        self.add(what, [time.perf_counter() - began])

    def add(self, what: str, seconds: list[float]) -> None:
        """Note what was measured elsewhere."""
        self.seconds.setdefault(what, []).extend(seconds)


def main() -> int:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(prog="scripts/bench calls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured")
    parser.add_argument("--quick", action="store_const", dest="rounds", const=2, help="two rounds only")
    parser.add_argument("--calls", type=int, default=50, help="warm calls in every round")
    parser.add_argument("--fan-out", type=int, default=1000, help="calls at once")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample, and the rows, to this file, too")
    chosen = parser.parse_args()
    try:
        client = dockerd.connect()
    except MachineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    with tempfile.TemporaryDirectory(prefix="run-local-bench-") as folder:
        samples = measure(client, write_project(Path(folder)), chosen.rounds, chosen.calls, chosen.fan_out)
    client.close()
    rows = [compare(row, samples.seconds, chosen.fan_out) for row in ROWS]
    if chosen.json:
        seconds = {what.format(calls=chosen.fan_out): samples for what, samples in samples.seconds.items()}
        chosen.json.write_text(json.dumps({"rows": rows, "seconds": seconds}))
    print(render(rows))
    return 0


def write_project(root: Path) -> Path:
    """The project that is measured."""
    (root / "workflow.py").write_text(WORKFLOW)
    for name, more in (("bench-a", ""), ("bench-b", ""), ("bench-c", ", numpy"), ("bench-d", ", numpy")):
        (root / "envs" / name).mkdir(parents=True)
        (root / "envs" / name / "environment.yml").write_text(SPEC.format(more=more))
    return root


def measure(client: docker.DockerClient, project: Path, rounds: int, calls: int, fan_out: int) -> Samples:
    """Build everything in unmeasured runs, then measure round by round."""
    image = find_image(client, run(project, "measure", "--calls", "1"), "bench-b")
    numpy_image = find_image(client, run(project, "take", "--mib", "1"), "bench-c")
    run_container(client, image)
    samples = Samples()
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for _ in range(2):
            samples.time(ENGINE, lambda: run_container(client, image))
            samples.time(WITHOUT_NETWORK, lambda: run_container(client, image, network_mode="none"))
        cold, *warm = run(project, "measure", "--calls", str(calls))["result"]
        samples.add(COLD, [cold])
        samples.add(WARM, warm)
        samples.time(SHELL, lambda: run(project, "noop"))
        for what, task in ((GATHER, "gather"), (MAP, "spread")):
            wall, *one_by_one = run(project, task, "--calls", str(fan_out))["result"]
            samples.add(what, [wall])
            samples.add(IN_A_ROW, [fan_out * statistics.median(one_by_one)])
        measure_values(client, project, numpy_image, samples)
        for what, command in 3 * (
            (PYTHON, [sys.executable, "-c", "pass"]),
            (IMPORT, [sys.executable, "-c", "import executor"]),
            (HELP, [RUN_LOCAL, "--help"]),
        ):
            samples.time(what, functools.partial(subprocess.run, command, stdout=subprocess.DEVNULL, check=True))
        samples.add(SECOND, [1.0])
        samples.add(IDLE, [measure_idle(project)])
    return samples


def measure_values(client: docker.DockerClient, project: Path, image: str, samples: Samples) -> None:
    """Arrays from task to task, each in a run of its own, and through files."""
    for _ in range(2):
        took = run(project, "take", "--mib", str(LARGE_MIB))["result"]
        for name, what in TAKEN.items():
            samples.add(what, [took[name]])
        with tempfile.TemporaryDirectory(prefix="run-local-bench-", dir=project) as shared:
            mounts = [dockerd.bind(Path(shared), "/shared", writable=True)]
            texts = [
                run_container(client, image, ["/opt/env/bin/python", "-c", program], mounts=mounts)
                for program in (
                    TIMED.format(first=first.format(mib=MIDDLE_MIB), timed=timed) for first, timed in (SAVE, LOAD)
                )
            ]
        samples.add(FILES, [sum(map(float, texts))])
        samples.add(MIDDLE, [run(project, "take", "--mib", str(MIDDLE_MIB))["result"]["over"]])


def measure_idle(project: Path) -> float:
    """Seconds of CPU that run-local uses in a second in which its only task waits."""
    command = [RUN_LOCAL, "wait", "--seconds", "8", "--runtime", "docker"]
    with subprocess.Popen(
        command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "\N{BLACK RIGHT-POINTING TRIANGLE}" not in process.stderr.readline():
            if process.poll() is not None:
                raise SystemExit(f"`run-local wait` failed with exit code {process.returncode}")
        time.sleep(1)
        before = cpu_seconds(process.pid)
        time.sleep(IDLE_S)
        used = cpu_seconds(process.pid) - before
        process.communicate()
    return used / IDLE_S


def cpu_seconds(pid: int) -> float:
    """What all threads of a process have used so far, to the nanosecond: its clock, as clock_getcpuclockid(3) names it."""
    return time.clock_gettime(~pid << 3 | 2)


def run(project: Path, *arguments: str) -> dict[str, Any]:
    """Run a task of the project under Docker; the document that it answers with."""
    command = [RUN_LOCAL, *arguments, "--runtime", "docker", "--json"]
    done = subprocess.run(command, cwd=project, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"`run-local {' '.join(arguments)}` failed with exit code {done.returncode}: {done.stdout}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def find_image(client: docker.DockerClient, document: dict[str, Any], environment: str) -> str:
    """The image in which a task of this environment ran."""
    key = next(call["key"] for call in document["calls"] if call["environment"] == environment)
    found = client.api.images(filters={"label": f"{dockerd.LABEL}.key={key}"})
    return str(found[0]["Id"])


def run_container(
    client: docker.DockerClient, image: str, command: Sequence[str] = ("true",), **host_config: Any
) -> str:
    """What a container of its own prints; with `true`, the least that one costs: the engine's API."""
    made = client.api.create_container(
        image, [*command], labels={dockerd.LABEL: "bench"}, host_config=client.api.create_host_config(**host_config)
    )
    try:
        client.api.start(made)
        status = client.api.wait(made)["StatusCode"]
        text = "" if command == ("true",) else client.api.logs(made).decode()
    finally:
        client.api.remove_container(made, force=True)
    if status != 0:
        raise SystemExit(
            f"`{' '.join(command)}` ended with {status} in {image}: there is nothing to compare with\n{text}"
        )
    return text


def compare(row: Row, seconds: dict[str, list[float]], calls: int) -> dict[str, Any]:
    """A row as plain data: its median and minimum, both also as ratios to what is beside it."""
    samples, base = seconds[row.what], seconds[row.beside]
    median, beside = statistics.median(samples), statistics.median(base)
    target, reached = "", None
    if row.times is not None:
        target, reached = render_ratio(row.times), median <= row.times * beside
    elif row.more_s is not None:
        target, reached = f"+{1e3 * row.more_s:.0f} ms", median <= beside + row.more_s
    return {
        "what": row.what.format(calls=calls),
        "beside": row.beside.format(calls=calls),
        "median_ms": 1e3 * median,
        "min_ms": 1e3 * min(samples),
        "n": len(samples),
        "ratio": median / beside,
        "min_ratio": min(samples) / min(base),
        "target": target,
        "reached": reached,
    }


def render(rows: list[dict[str, Any]]) -> str:
    """One row for each thing measured, in milliseconds and as a ratio to what is measured beside it."""
    lines = [f"{'':42} {'median ms':>10} {'min ms':>10} {'n':>5} {'ratio (median, min)':>26}   target"]
    for row in rows:
        verdict = "" if row["reached"] is None else f"{row['target']} {'reached' if row['reached'] else 'missed'}"
        lines.append(
            f"{row['what']:42} {row['median_ms']:10.1f} {row['min_ms']:10.1f} {row['n']:5}"
            f" {render_ratio(row['ratio']):>13}{render_ratio(row['min_ratio']):>13}   {verdict}".rstrip()
        )
    return "\n".join(lines)


def render_ratio(ratio: float) -> str:
    """`2.50 x`, or `1/40` where it is small."""
    if ratio <= 0:
        return "0"
    return f"1/{1 / ratio:.0f}" if ratio < 1 / 4 else f"{ratio:.2f} x"


if __name__ == "__main__":
    sys.exit(main())
