"""What calls and values cost, against the Docker engine's own create + start + wait + remove, and against copies.

A small project is written to a temporary folder: environment `bench-a` calls tasks of `bench-b` that do nothing, and
`bench-d` takes arrays from `bench-c`. Every round measures all of it, and beside it what it is compared with: the engine
by itself on the same image, a copy of the same array in the same task, `np.save` and `np.load` in two containers of the
same image over a bind mount, a Python that does nothing. The rounds alternate so that whatever else the machine does
falls on all of them. Medians say how it is on this machine now, minima what it can be.
"""

import argparse
import functools
import json
import os
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

from executor import Resources, TaskEnvironment

b = TaskEnvironment("bench-b")
a = TaskEnvironment("bench-a", depends_on=[b])


@b.task
def noop() -> None:
    """Nothing."""


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
def fan_out(calls: int) -> list[float]:
    """Seconds of so many calls at once, and of each of some, one after the other."""
    async def all_of_them():
        await asyncio.gather(*(noop.aio() for _ in range(calls)))

    one_by_one = measure.function(50)[1:]
    began = perf_counter()
    asyncio.run(all_of_them())
    return [perf_counter() - began, *one_by_one]


@b.task
def wait(seconds: float) -> None:
    """A task that needs nothing from anybody."""
    time.sleep(seconds)


c = TaskEnvironment("bench-c", resources=Resources(cpu=1, memory="4Gi"))
d = TaskEnvironment("bench-d", depends_on=[c], resources=Resources(cpu=1, memory="4Gi"))


@c.task
def make(mib: int) -> dict:
    """An array, how long a copy of it takes here, and when it is returned."""
    import numpy as np
    array = np.ones(mib * 2**17)
    began = perf_counter()
    array.copy()
    copied = perf_counter() - began
    return {"array": array, "copied": copied, "returned": time.time()}


@d.task
def take(large: int, middle: int) -> dict:
    """Seconds of what is done to arrays of so many MiB: copied, opened, handed over."""
    from executor.worker import payload
    opened, load = [], payload.load

    def timed(*args):
        began = perf_counter()
        value = load(*args)
        opened.append(perf_counter() - began)
        return value

    payload.load = timed
    measured = {}
    for name, mib in (("first", 0), ("nothing", 0), ("large", large), ("middle", middle)):
        value = make(mib)
        measured[name] = {"over": time.time() - value["returned"], "opened": opened[-1], "copied": value["copied"]}
        del value
    return measured
'''
SPEC = "channels: [conda-forge]\ndependencies: [python{more}]\n"

LARGE_MIB, MIDDLE_MIB = 512, 200

#: What a container does for `np.save` and `np.load`: it prints the seconds.
TIMED = "import numpy as np, time; {first}; began = time.perf_counter(); {timed}; print(time.perf_counter() - began)"
SAVE = ("array = np.ones({mib} * 2**17)", "np.save('/shared/a.npy', array)")
LOAD = ("pass", "np.load('/shared/a.npy')")

ENGINE = "engine: create + start + wait + remove"
WITHOUT_NETWORK = "engine, the same without a network"
WARM = "warm call from task to task"
COLD = "cold call from task to task"
SHELL = "`run-local noop` from the shell"

IN_A_ROW = "the calls of a fan-out, one after the other"
FAN_OUT = "a fan-out of {calls} calls"
COPY = f"copy of {LARGE_MIB} MiB"
OPEN = f"open {LARGE_MIB} MiB from another task"
OVER = f"write and hand over {LARGE_MIB} MiB"
FILES = f"{MIDDLE_MIB} MiB by np.save and np.load"
MIDDLE = f"{MIDDLE_MIB} MiB from task to task"
PYTHON = "python -c pass"
IMPORT = "python -c 'import executor'"
HELP = "run-local --help"
SECOND = "a second of a core"
IDLE = "CPU of run-local, a second of waiting"

#: What is measured beside what, and how often its median may be that at most.
ROWS = (
    (ENGINE, ENGINE, None),
    (WITHOUT_NETWORK, ENGINE, None),
    (COLD, ENGINE, 1.3),
    (SHELL, ENGINE, 2.5),
    (WARM, ENGINE, 1 / 40),
    (IN_A_ROW, IN_A_ROW, None),
    (FAN_OUT, IN_A_ROW, 0.7),
    (COPY, COPY, None),
    (OPEN, COPY, 1 / 20),
    (OVER, COPY, 2.0),
    (FILES, FILES, None),
    (MIDDLE, FILES, 1 / 4),
    (PYTHON, PYTHON, None),
    (IMPORT, PYTHON, None),
    (HELP, PYTHON, None),
    (SECOND, SECOND, None),
    (IDLE, SECOND, 1 / 100),
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
    parser.add_argument("--rounds", type=int, default=7, help="how often everything is measured")
    parser.add_argument("--calls", type=int, default=50, help="warm calls in every round")
    parser.add_argument("--fan-out", type=int, default=1000, help="calls at once")
    chosen = parser.parse_args()
    try:
        client = dockerd.connect()
    except MachineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    with tempfile.TemporaryDirectory(prefix="run-local-bench-") as folder:
        samples = measure(client, write_project(Path(folder)), chosen.rounds, chosen.calls, chosen.fan_out)
    client.close()
    print(render(samples.seconds, chosen.fan_out))
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
    numpy_image = find_image(client, run(project, "take", "--large", "1", "--middle", "1"), "bench-c")
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
        wall, *one_by_one = run(project, "fan_out", "--calls", str(fan_out))["result"]
        samples.add(FAN_OUT, [wall])
        samples.add(IN_A_ROW, [fan_out * statistics.median(one_by_one)])
        measure_values(client, project, numpy_image, samples)
        for what, command in (
            (PYTHON, [sys.executable, "-c", "pass"]),
            (IMPORT, [sys.executable, "-c", "import executor"]),
            (HELP, [str(Path(sys.executable).with_name("run-local")), "--help"]),
        ):
            samples.time(what, functools.partial(subprocess.run, command, stdout=subprocess.DEVNULL, check=True))
        samples.add(SECOND, [1.0])
        samples.add(IDLE, [measure_idle(project)])
    return samples


def measure_values(client: docker.DockerClient, project: Path, image: str, samples: Samples) -> None:
    """Arrays from task to task, and through files."""
    took = run(project, "take", "--large", str(LARGE_MIB), "--middle", str(MIDDLE_MIB))["result"]
    samples.add(COPY, [took["large"]["copied"]])
    samples.add(OPEN, [took["large"]["opened"]])
    samples.add(OVER, [took["large"]["over"] - took["nothing"]["over"]])
    samples.add(MIDDLE, [took["middle"]["over"] - took["nothing"]["over"]])
    with tempfile.TemporaryDirectory(prefix="run-local-bench-", dir=project) as shared:
        mounts = [dockerd.bind(Path(shared), "/shared", writable=True)]
        texts = [
            run_container(client, image, ["/opt/env/bin/python", "-c", program], mounts=mounts)
            for program in (
                TIMED.format(first=first.format(mib=MIDDLE_MIB), timed=timed) for first, timed in (SAVE, LOAD)
            )
        ]
    samples.add(FILES, [sum(map(float, texts))])


def measure_idle(project: Path) -> float:
    """Seconds of CPU that run-local uses in a second in which its only task waits."""
    command = [str(Path(sys.executable).with_name("run-local")), "wait", "--seconds", "8", "--runtime", "docker"]
    with subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(3)
        before = cpu_seconds(process.pid)
        time.sleep(4)
        used = cpu_seconds(process.pid) - before
    return used / 4


def cpu_seconds(pid: int) -> float:
    """What a process has used so far; the kernel counts hundredths."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(project: Path, *arguments: str) -> dict[str, Any]:
    """Run a task of the project under Docker; the document that it answers with."""
    command = [str(Path(sys.executable).with_name("run-local")), *arguments, "--runtime", "docker", "--json"]
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


def render(seconds: dict[str, list[float]], fan_out: int) -> str:
    """One row for each thing measured, in milliseconds and as a ratio to what is measured beside it."""
    lines = [f"{'':42} {'median ms':>10} {'min ms':>10} {'n':>5} {'ratio (median, min)':>26}   target"]
    for what, beside, target in ROWS:
        samples, base = seconds[what], seconds[beside]
        ratio = statistics.median(samples) / statistics.median(base)
        least = min(samples) / min(base)
        verdict = "" if target is None else f"{render_ratio(target)} {'reached' if ratio <= target else 'missed'}"
        lines.append(
            f"{what.format(calls=fan_out):42} {1e3 * statistics.median(samples):10.1f} {1e3 * min(samples):10.1f}"
            f" {len(samples):5} {render_ratio(ratio):>13}{render_ratio(least):>13}   {verdict}".rstrip()
        )
    return "\n".join(lines)


def render_ratio(ratio: float) -> str:
    """`2.50 x`, or `1/40` where it is small."""
    if ratio <= 0:
        return "0"
    return f"1/{1 / ratio:.0f}" if ratio < 1 / 4 else f"{ratio:.2f} x"


if __name__ == "__main__":
    sys.exit(main())
