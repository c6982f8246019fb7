"""What a call costs, warm and cold, against the Docker engine's own create + start + wait + remove.

A small project is written to a temporary folder: environment `bench-a` calls a task of `bench-b` that does nothing.
Every round measures, on the same image: the engine by itself, one run that calls once cold and many times warm, timed
inside the calling task, and one run of the no-op task from the shell. The rounds alternate so that whatever else the
machine does falls on all of them. Medians say how it is on this machine now, minima what it can be.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker

from executor import dockerd
from executor.errors import MachineError

WORKFLOW = '''\
"""Two environments, of which one calls the other."""

from time import perf_counter

from executor import TaskEnvironment

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
'''
SPEC = "channels: [conda-forge]\ndependencies: [python]\n"

ENGINE = "engine: create + start + wait + remove"
WITHOUT_NETWORK = "engine, the same without a network"
WARM = "warm call from task to task"
COLD = "cold call from task to task"
SHELL = "`run-local noop` from the shell"

#: The row's median is to be at most this often the engine's.
TARGETS = {WARM: 1 / 40, COLD: 1.3, SHELL: 2.5}


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
    chosen = parser.parse_args()
    try:
        client = dockerd.connect()
    except MachineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    with tempfile.TemporaryDirectory(prefix="run-local-bench-") as folder:
        samples = measure(client, write_project(Path(folder)), chosen.rounds, chosen.calls)
    client.close()
    print(render(samples.seconds))
    return 0


def write_project(root: Path) -> Path:
    """The project that is measured."""
    (root / "workflow.py").write_text(WORKFLOW)
    for name in ("bench-a", "bench-b"):
        (root / "envs" / name).mkdir(parents=True)
        (root / "envs" / name / "environment.yml").write_text(SPEC)
    return root


def measure(client: docker.DockerClient, project: Path, rounds: int, calls: int) -> Samples:
    """Build everything in one unmeasured run, then measure round by round."""
    image = find_image(client, run(project, "measure", "--calls", "1"))
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
    return samples


def run(project: Path, *arguments: str) -> dict[str, Any]:
    """Run a task of the project under Docker; the document that it answers with."""
    command = [str(Path(sys.executable).with_name("run-local")), *arguments, "--runtime", "docker", "--json"]
    done = subprocess.run(command, cwd=project, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"`run-local {' '.join(arguments)}` failed with exit code {done.returncode}: {done.stdout}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def find_image(client: docker.DockerClient, document: dict[str, Any]) -> str:
    """The image in which the called task ran."""
    key = next(call["key"] for call in document["calls"] if call["environment"] == "bench-b")
    found = client.api.images(filters={"label": f"{dockerd.LABEL}.key={key}"})
    return str(found[0]["Id"])


def run_container(client: docker.DockerClient, image: str, **host_config: Any) -> None:
    """The least that one container costs: the engine's API and `true`."""
    made = client.api.create_container(
        image, ["true"], labels={dockerd.LABEL: "bench"}, host_config=client.api.create_host_config(**host_config)
    )
    try:
        client.api.start(made)
        status = client.api.wait(made)["StatusCode"]
    finally:
        client.api.remove_container(made, force=True)
    if status != 0:
        raise SystemExit(f"`true` ended with {status} in {image}: there is nothing to compare with")


def render(seconds: dict[str, list[float]]) -> str:
    """One row for each thing measured, in milliseconds and as a ratio to the engine's own."""
    lines = [f"{'':40} {'median ms':>10} {'min ms':>10} {'n':>5} {'of engine (median, min)':>26}   target"]
    base = seconds[ENGINE]
    for what in (ENGINE, WITHOUT_NETWORK, COLD, SHELL, WARM):
        samples = seconds[what]
        ratio = statistics.median(samples) / statistics.median(base)
        least = min(samples) / min(base)
        target = TARGETS.get(what)
        verdict = "" if target is None else f"{render_ratio(target)} {'reached' if ratio <= target else 'missed'}"
        lines.append(
            f"{what:40} {1e3 * statistics.median(samples):10.1f} {1e3 * min(samples):10.1f} {len(samples):5}"
            f" {render_ratio(ratio):>13}{render_ratio(least):>13}   {verdict}".rstrip()
        )
    return "\n".join(lines)


def render_ratio(ratio: float) -> str:
    """`2.50 x`, or `1/40` where it is small."""
    return f"1/{1 / ratio:.0f}" if ratio < 1 / 4 else f"{ratio:.2f} x"


if __name__ == "__main__":
    sys.exit(main())
