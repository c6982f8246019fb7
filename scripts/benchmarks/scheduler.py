"""How close the scheduler comes to the shortest time that is possible, on a virtual clock, beside first come, first served.

A folding campaign: of each target one search (MSA), five folds of it on a GPU, a relaxation of each, and a score of all;
a share of the targets goes on with a chain of three trainings on four GPUs. The seconds of each call are drawn from a
lognormal distribution whose mean alone the scheduler knows; the first call of each kind has to wait for its environment.

The lower bound is what no order can beat: the work divided by the machine, for each resource, or the longest chain.
Shapes, times and shares are those that scheduling of such campaigns was studied with; one synthetic family, not a trace.
"""

import argparse
import heapq
import itertools
import math
import random
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from executor.events import AttemptEnded, CallSubmitted, Device, EndCall, StartAttempt
from executor.manifest import Shape
from executor.scheduling.state import Machine, SchedulerState

GiB = 2**30
ENVIRONMENT_S = 90.0


@dataclass(frozen=True)
class Kind:
    """A kind of task: the mean of its seconds, the coefficient of variation, and what it asks for."""

    name: str
    mean_s: float
    variation: float
    cpus: int
    gib: int
    gpus: int = 0
    rank: float = 0.0


MSA = Kind("msa", 600, 0.6, 8, 32, 0, 600 + 900 + 300 + 60)
FOLD = Kind("fold", 900, 0.8, 4, 48, 1, 900 + 300 + 60)
RELAX = Kind("relax", 300, 0.5, 4, 8, 0, 300 + 60)
SCORE = Kind("score", 60, 0.3, 1, 4, 0, 60)
TRAIN = Kind("train", 3600, 0.3, 16, 128, 4, 3600)


@dataclass
class Job:
    """One call: it begins when those in `after` are done."""

    name: str
    kind: Kind
    seconds: float
    rank: float
    after: set[str] = field(default_factory=set)


def campaign(targets: int, share: float, seed: int) -> dict[str, Job]:
    """The calls of a campaign by their names."""
    chance = random.Random(seed)  # noqa: S311
    jobs: dict[str, Job] = {}
    seen: set[str] = set()

    def add(kind: Kind, name: str, after: set[str], more: float) -> str:
        spread = math.log(1 + kind.variation**2)
        seconds = chance.lognormvariate(math.log(kind.mean_s) - spread / 2, math.sqrt(spread))
        seconds += 0 if kind.name in seen else ENVIRONMENT_S
        seen.add(kind.name)
        jobs[name] = Job(name, kind, seconds, kind.rank + more, after)
        return name

    for target in range(targets):
        trains = chance.random() < share
        more = 3 * TRAIN.mean_s if trains else 0.0
        search = add(MSA, f"msa-{target}", set(), more)
        folds = [add(FOLD, f"fold-{target}-{n}", {search}, more) for n in range(5)]
        relaxed = {add(RELAX, f"relax-{target}-{n}", {fold}, more) for n, fold in enumerate(folds)}
        last = add(SCORE, f"score-{target}", relaxed, more)
        for n in range(3 if trains else 0):
            last = add(TRAIN, f"train-{target}-{n}", {last}, (2 - n) * TRAIN.mean_s)
    return jobs


class Policy(Protocol):
    """Decides what begins."""

    def submit(self, job: Job) -> list[str]:
        """A call may begin; answers with the calls that do."""
        ...

    def end(self, name: str) -> list[str]:
        """A call is over; answers with the calls that begin."""
        ...


class Ours:
    """The scheduler itself."""

    def __init__(self, cpus: int, gib: int, gpus: int) -> None:
        devices = tuple(Device(uuid=f"GPU-{n:04}", name="G", memory_bytes=1, free_bytes=1) for n in range(gpus))
        self._state = SchedulerState(Machine(cpus=cpus, memory_bytes=gib * GiB, devices=devices))

    def submit(self, job: Job) -> list[str]:
        """As a call of the user's."""
        kind = job.kind
        shape = Shape(
            cpus=kind.cpus,
            cpus_limit=kind.cpus,
            memory_bytes=kind.gib * GiB,
            memory_limit_bytes=kind.gib * GiB,
            gpus=kind.gpus,
            gpu_model="",
            shm_bytes=None,
        )
        return self._tell(
            CallSubmitted(call=job.name, parent=None, task=kind.name, environment=kind.name, shape=shape, rank=job.rank)
        )

    def end(self, name: str) -> list[str]:
        """As an attempt that succeeded."""
        return self._tell(AttemptEnded(call=name, attempt=1, outcome="ok", seconds=0.0, evidence={}))

    def _tell(self, fact: CallSubmitted | AttemptEnded) -> list[str]:
        commands = self._state.handle(fact)
        assert all(each.outcome == "ok" for each in commands if isinstance(each, EndCall))
        return [each.call for each in commands if isinstance(each, StartAttempt)]


class FirstCome:
    """First come, first served, and whatever fits goes before what does not: what most engines do."""

    def __init__(self, cpus: int, gib: int, gpus: int) -> None:
        self._free = [cpus, gib, gpus]
        self._numbers = itertools.count()
        self._waiting: dict[str, deque[tuple[int, Job]]] = {}
        self._running: dict[str, Job] = {}

    def submit(self, job: Job) -> list[str]:
        """It goes to the end of the queue."""
        self._waiting.setdefault(job.kind.name, deque()).append((next(self._numbers), job))
        return self._start()

    def end(self, name: str) -> list[str]:
        """What it had is free."""
        for at, amount in enumerate(asked(self._running.pop(name).kind)):
            self._free[at] += amount
        return self._start()

    def _start(self) -> list[str]:
        begun: list[str] = []
        heads = [(queue[0][0], kind) for kind, queue in self._waiting.items() if queue]
        heapq.heapify(heads)
        while heads:
            _, kind = heapq.heappop(heads)
            queue = self._waiting[kind]
            job = queue[0][1]
            wants = asked(job.kind)
            if all(amount <= free for amount, free in zip(wants, self._free, strict=True)):
                queue.popleft()
                self._free = [free - amount for amount, free in zip(wants, self._free, strict=True)]
                self._running[job.name] = job
                begun.append(job.name)
                if queue:
                    heapq.heappush(heads, (queue[0][0], kind))
        return begun


def asked(kind: Kind) -> tuple[int, int, int]:
    """Cores, GiB and GPUs."""
    return kind.cpus, kind.gib, kind.gpus


def makespan(jobs: dict[str, Job], policy: Policy) -> float:
    """The seconds from the first start to the last end, on a virtual clock."""
    left = {name: set(job.after) for name, job in jobs.items()}
    following: dict[str, list[str]] = {}
    for name, job in jobs.items():
        for before in job.after:
            following.setdefault(before, []).append(name)
    now, order = 0.0, itertools.count()
    ends: list[tuple[float, int, str]] = []

    def begin(names: list[str]) -> None:
        for name in names:
            heapq.heappush(ends, (now + jobs[name].seconds, next(order), name))

    for name in [name for name, before in left.items() if not before]:
        begin(policy.submit(jobs[name]))
    done = 0
    while ends:
        now, _, name = heapq.heappop(ends)
        done += 1
        begin(policy.end(name))
        for after in following.get(name, ()):
            left[after].discard(name)
            if not left[after]:
                begin(policy.submit(jobs[after]))
    assert done == len(jobs)
    return now


def lower_bound(jobs: dict[str, Job], machine: tuple[int, int, int]) -> float:
    """The seconds that no order can beat."""
    areas = [sum(job.seconds * asked(job.kind)[at] for job in jobs.values()) / machine[at] for at in range(3)]
    end: dict[str, float] = {}
    for name, job in jobs.items():  # those that come first are made first
        end[name] = job.seconds + max((end[before] for before in job.after), default=0.0)
    return max(*areas, *end.values())


MACHINES = {
    "workstation, 32 cores, 4 GPUs, 40 targets": ((32, 512, 4), 40, 0.0),
    "the same, 10 % of the targets are trained on": ((32, 512, 4), 40, 0.1),
    "192 cores, 12 GPUs, 150 targets": ((192, 3072, 12), 150, 0.0),
    "the same, 5 % are trained on": ((192, 3072, 12), 150, 0.05),
    "1600 cores, 100 GPUs, 830 targets": ((1600, 25600, 100), 830, 0.0),
    "the same, 3 % are trained on": ((1600, 25600, 100), 830, 0.03),
}


def rows(rounds: int) -> Iterator[str]:
    """A line for each machine, and one for the time that deciding takes."""
    yield f"{'makespan / lower bound, mean ± standard error':<48}{'run-local':>16}{'first come':>16}"
    for name, (machine, targets, share) in MACHINES.items():
        found: dict[type, list[float]] = {Ours: [], FirstCome: []}
        for seed in range(rounds):
            jobs = campaign(targets, share, seed)
            bound = lower_bound(jobs, machine)
            for policy in (Ours, FirstCome):
                found[policy].append(makespan(jobs, policy(*machine)) / bound)
        told = [f"{statistics.mean(ratios):.3f} ± {_standard_error(ratios):.3f}" for ratios in found.values()]
        yield f"{name:<48}{told[0]:>16}{told[1]:>16}"
    jobs = campaign(830, 0.0, 0)
    began = time.process_time()
    makespan(jobs, Ours(1600, 25600, 100))
    yield f"{len(jobs)} calls on 100 GPUs: {time.process_time() - began:.2f} s of CPU to decide all of it"


def _standard_error(ratios: list[float]) -> float:
    """How far the mean of so many campaigns may be from that of all."""
    return statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="campaigns for each row, each with another seed")
    for row in rows(parser.parse_args().rounds):
        print(row, flush=True)


if __name__ == "__main__":
    main()
