"""All that is decided before a run starts: what it calls, where, of what, and what each of its slots is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from executor.cache import Cache
from executor.data.store import Value
from executor.environments import Built
from executor.gpus import Gpu
from executor.manifest import Manifest, Shape, TaskEntry, Terms
from executor.runtimes import Launch
from executor.scheduling.state import Machine
from executor.secrets import Secrets
from executor.terminal import Interaction
from executor.worker.output import LOG_LIMIT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a run needs to know before it starts.

    arguments: what a person sees of the inputs, by name
    terms: what the root call is carried out with, where that is not what its task says
    interaction: what somebody wants to do where the root call would run
    built: every environment that the root call can reach; project and library: folders mounted into every slot
    cache: knows which calls need not run; ranks: task → how far it is from its start to the end of a run, in seconds
    log_limit: how many bytes of what one attempt prints are kept
    secrets: what the tasks of each environment are told, and nobody else
    offline: whether no task has a network
    """

    run: str
    manifest: Manifest
    task: TaskEntry
    inputs: Value
    built: Mapping[str, Built]
    project: Path
    library: Path
    folder: Path
    lease: Path
    machine: Machine
    cache: Cache
    ranks: Mapping[str, float] = field(default_factory=dict)
    log_limit: int = LOG_LIMIT_BYTES
    secrets: Mapping[str, Secrets] = field(default_factory=dict)
    offline: bool = False
    arguments: Mapping[str, Any] | None = None
    terms: Terms | None = None
    interaction: Interaction | None = None

    def launch(self, environment: str, asked: Shape, gpus: tuple[Gpu, ...], number: int) -> Launch:
        """What the run's n-th slot is made of, for an environment, what is asked for an attempt, and its devices."""
        made, entry = self.built[environment], self.manifest.environments[environment]
        shape = replace(
            asked,
            cpus_limit=min(asked.cpus_limit, self.machine.cpus),
            memory_limit_bytes=asked.memory_limit_bytes or self.machine.memory_bytes,
        )
        return Launch(
            run=self.run,
            number=number,
            environment=environment,
            specification=entry.specification,
            key=made.key,
            image=made.image,
            prefix=made.prefix,
            variables=made.variables,
            shape=shape,
            project=self.project,
            import_roots=self.manifest.import_roots,
            library=self.library,
            folder=self.folder / "slots" / str(number),
            lease=self.lease,
            preload=entry.preload,
            fork=entry.fork,
            env_vars=entry.env_vars,
            mounts=entry.mounts,
            network=entry.network and not self.offline,
            secret_files=any(each.file for each in entry.secrets),
            log_limit=self.log_limit,
            gpus=gpus,
        )
