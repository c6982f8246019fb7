"""All that the host knows of user code: its environments and tasks, as plain data.

A manifest is what `executor.describe` got from the child process that imported the workflow. It is JSON on the wire;
these classes check it on the way in. Nothing here imports user code or reads a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from executor.errors import ProjectError


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The share of the machine that one attempt gets; plain numbers, from `Resources.to_json`.

    cpus, memory_bytes: what must be free before an attempt starts
    cpus_limit, memory_limit_bytes: what its container may use; None is the whole machine
    """

    cpus: float
    cpus_limit: float
    memory_bytes: int
    memory_limit_bytes: int | None
    gpus: int
    gpu_model: str
    shm_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a task.

    type: `{"kind": …}` with kind one of int, float, bool, str, date, datetime, path, list, tuple, dict, record, optional,
          literal, any; `list` and `optional` have `item`, `tuple` has `items`, `dict` has `value`, `record` (a dataclass)
          has `fields`, `literal` has `choices`; every type has `text`, as written
    default: the default as JSON where it is JSON, else None with `default_text` holding its repr
    problem: why it cannot be given by name, or empty
    """

    name: str
    type: Mapping[str, Any]
    required: bool
    default: Any = None
    default_text: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """One task; `name` is `environment.function`, and module and qualname find it in a container.

    calls: tasks that its source is seen to call → the way there, for messages
    """

    name: str
    environment: str
    module: str
    qualname: str
    file: str
    line: int
    doc: str
    parameters: tuple[Parameter, ...]
    retries: int
    timeout_s: float | None
    calls: Mapping[str, str] = field(default_factory=dict)

    @property
    def short_name(self) -> str:
        """The name of the function."""
        return self.name.partition(".")[2]


@dataclass(frozen=True, kw_only=True)
class EnvironmentEntry:
    """One environment as it was declared; file is relative to the project's root.

    image: the path of its specification, where one was named
    spec:  the specification itself, where it was given in Python (see `authoring.CondaSpec`)
    """

    name: str
    image: str | None
    depends_on: tuple[str, ...]
    extends: tuple[str, ...]
    shape: Shape
    env_vars: Mapping[str, str]
    file: str
    line: int
    spec: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A project as the host sees it.

    root:         absolute path of the project
    import_roots: folders on sys.path of every task, relative to root, in order
    missing:      modules that were stubbed while describing → where they are imported ("file:line")
    """

    root: str
    import_roots: tuple[str, ...]
    environments: Mapping[str, EnvironmentEntry]
    tasks: Mapping[str, TaskEntry]
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def reachable(self, environment: str) -> list[str]:
        """The environments that a call in `environment` can reach, dependencies first; refuses a cycle."""
        order: dict[str, None] = {}
        for name in self._visit(environment, ()):
            order[name] = None
        return list(order)

    def _visit(self, name: str, chain: tuple[str, ...]) -> Iterator[str]:
        if name in chain:
            raise ProjectError(
                "environments depend on each other in a circle",
                why=" → ".join([*chain[chain.index(name) :], name]),
                hint="remove one `depends_on`; two environments whose tasks call each other can be one environment",
            )
        for other in self.environments[name].depends_on:
            yield from self._visit(other, (*chain, name))
        yield name

    def check_calls(self, root: str) -> None:
        """Refuse a call to an environment that its caller's does not depend on, in what the task `root` is seen to call."""
        waiting, seen = [root], {root}
        while waiting:
            caller = self.tasks[waiting.pop(0)]
            allowed = self.reachable(caller.environment)
            for name, way in caller.calls.items():
                called = self.tasks.get(name)
                if called and called.environment not in allowed:
                    here = self.environments[caller.environment]
                    raise ProjectError(
                        f"`{caller.name}` calls `{name}`, and its environment does not depend on that one's",
                        why=f"{way} → {name} ({called.file}:{called.line})",
                        hint=f"add `{called.environment}` to the `depends_on` of `{here.name}` ({here.file}:{here.line})",
                    )
                if called and name not in seen:
                    seen.add(name)
                    waiting.append(name)

    def bases(self, environment: str) -> list[str]:
        """`environment` and all that it extends, directly or not, itself last."""
        order: dict[str, None] = {}

        def visit(name: str, chain: tuple[str, ...]) -> None:
            if name in chain:
                raise ProjectError(
                    "environments extend each other in a circle", why=" → ".join([*chain, name]), hint="remove one"
                )
            for other in self.environments[name].extends:
                visit(other, (*chain, name))
            order[name] = None

        visit(environment, ())
        return list(order)


def parse_manifest(doc: Mapping[str, Any]) -> Manifest:
    """The manifest in a JSON document; raises `ProjectError` where it is not one."""
    try:
        return Manifest(
            root=doc["root"],
            import_roots=tuple(doc["import_roots"]),
            environments={entry["name"]: _parse_environment(entry) for entry in doc["environments"]},
            tasks={entry["name"]: _parse_task(entry) for entry in doc["tasks"]},
            missing={name: tuple(places) for name, places in doc.get("missing", {}).items()},
        )
    except (KeyError, TypeError, AttributeError) as exc:
        raise ProjectError(
            "the description of the workflow cannot be read", why=f"{type(exc).__name__}: {exc}"
        ) from exc


def _parse_environment(doc: Mapping[str, Any]) -> EnvironmentEntry:
    rest = {key: value for key, value in doc.items() if key not in {"depends_on", "extends", "resources"}}
    return EnvironmentEntry(
        depends_on=tuple(doc["depends_on"]), extends=tuple(doc["extends"]), shape=Shape(**doc["resources"]), **rest
    )


def _parse_task(doc: Mapping[str, Any]) -> TaskEntry:
    rest = {key: value for key, value in doc.items() if key != "parameters"}
    return TaskEntry(parameters=tuple(Parameter(**one) for one in doc["parameters"]), **rest)
