"""run-local: Python workflows whose tasks need different environments, each task in its own container.

    from executor import Resources, TaskEnvironment

    env = TaskEnvironment("alphafold", resources=Resources(cpu=2, memory="4Gi"))

    @env.task
    def run_alphafold(sequence: str) -> str: ...

and from a script or a notebook: `executor.run(run_alphafold, "AAGG").result()`.

The names below are all that a workflow needs. They are looked up when first used, so that importing this package
inside a container loads nothing that a container does not hold.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executor import report
    from executor.api import Run, run, with_options
    from executor.authoring import (
        Backoff,
        Cache,
        CondaSpec,
        Mount,
        RetryStrategy,
        Reuse,
        Secret,
        Task,
        TaskEnvironment,
        map,
        reference_task,
    )
    from executor.errors import MissingModule, NonRecoverableError, RunLocalError, TaskError, UsageError
    from executor.files import Dir, File
    from executor.resources import Resources
    from executor.version import VERSION as __version__
    from executor.worker.opaque import OpaqueInfo, opaque_info

_HOMES = {
    "Backoff": "executor.authoring",
    "Cache": "executor.authoring",
    "CondaSpec": "executor.authoring",
    "Dir": "executor.files",
    "File": "executor.files",
    "MissingModule": "executor.errors",
    "Mount": "executor.authoring",
    "NonRecoverableError": "executor.errors",
    "OpaqueInfo": "executor.worker.opaque",
    "Resources": "executor.resources",
    "RetryStrategy": "executor.authoring",
    "Reuse": "executor.authoring",
    "Run": "executor.api",
    "RunLocalError": "executor.errors",
    "Secret": "executor.authoring",
    "Task": "executor.authoring",
    "TaskEnvironment": "executor.authoring",
    "TaskError": "executor.errors",
    "UsageError": "executor.errors",
    "map": "executor.authoring",
    "opaque_info": "executor.worker.opaque",
    "reference_task": "executor.authoring",
    "run": "executor.api",
    "with_options": "executor.api",
}

__all__ = [
    "Backoff",
    "Cache",
    "CondaSpec",
    "Dir",
    "File",
    "MissingModule",
    "Mount",
    "NonRecoverableError",
    "OpaqueInfo",
    "Resources",
    "RetryStrategy",
    "Reuse",
    "Run",
    "RunLocalError",
    "Secret",
    "Task",
    "TaskEnvironment",
    "TaskError",
    "UsageError",
    "__version__",
    "map",
    "opaque_info",
    "reference_task",
    "report",
    "run",
    "with_options",
]


#: Names of Flyte 2 that have another one here.
_IN_FLYTE = {"Image": "CondaSpec", "ReusePolicy": "Reuse", "with_runcontext": "with_options", "errors": "TaskError"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("executor.version").VERSION
    if name == "report":
        return importlib.import_module("executor.report")
    if name not in _HOMES:
        instead = f"; what it is for in Flyte, `{_IN_FLYTE[name]}` is for here" if name in _IN_FLYTE else ""
        raise AttributeError(f"module `executor` has no attribute `{name}`{instead}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
