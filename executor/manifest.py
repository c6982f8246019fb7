"""All that the host knows of user code: its environments and tasks, as plain data.

A manifest is what `executor.describe` got from the child process that imported the workflow. It is JSON on the wire;
these classes check it on the way in. Nothing here imports user code or reads a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from executor.errors import ProjectError


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The share of the machine that one attempt gets; plain numbers, from `Resources.to_json`.

    cpus, memory_bytes: what must be free before an attempt starts
    cpus_limit:         what its container may use
    memory_limit_bytes: as much memory a later attempt gets at most, when one ends for want of it, and an attempt's own
                        limit is what it was admitted with; None is the whole machine, for each
    gpus, gpu_model, gpu_memory_bytes, gpu_shared: devices, each with these words in its name and so much memory free;
                        with `gpu_shared` also one on which processes that are not run-local's have memory
    disk_bytes:         what has to be free on the disk before a run begins
    """

    cpus: float
    cpus_limit: float
    memory_bytes: int
    memory_limit_bytes: int | None
    gpus: int
    gpu_model: str
    shm_bytes: int | None
    gpu_memory_bytes: int | None = None
    gpu_shared: bool = False
    disk_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """How long a call waits before its next attempt: `base_s · factor ** n` before the n-th (0, 1, …), at most `cap_s`."""

    base_s: float = 0.5
    factor: float = 2.0
    cap_s: float = 60.0

    def before(self, retry: int) -> float:
        """Seconds before a retry, the first being 0."""
        try:
            return min(self.cap_s, self.base_s * self.factor**retry)
        except OverflowError:
            return self.cap_s


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a task.

    type: `{"kind": …}` with kind one of int, float, bool, str, date, datetime, path, file, dir, list, tuple, dict,
          record, optional, union, literal, any; `list` and `optional` have `item`, `tuple` and `union` have `items`,
          `dict` has `value`, `record` (a dataclass) has `fields`, `literal` has `choices`; every type has `text`, as
          written; `model` marks a `dict` that is a model of pydantic
    default: the default as JSON where it is JSON, else None with `default_text` holding its repr
    problem: why it cannot be given by name, or empty
    kind:    how it is passed: the name that `inspect` has for it, in lower case
    """

    name: str
    type: Mapping[str, Any]
    required: bool
    default: Any = None
    default_text: str = ""
    problem: str = ""
    kind: str = "positional_or_keyword"


@dataclass(frozen=True, kw_only=True)
class CacheTerms:
    """Whether calls that were made before need not run again (see `authoring.Cache`)."""

    behavior: str = "disable"
    version: str = ""

    def __post_init__(self) -> None:
        if self.behavior not in ("auto", "override", "disable"):
            raise ValueError(f"{self.behavior!r} is no behaviour of a cache")


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """One task; `name` is `environment.function`, and module and qualname find it in a container.

    calls: tasks that its source is seen to call → the way there, for messages
    is_async: whether it is written with `async def`
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
    is_async: bool = False
    cache: CacheTerms = CacheTerms()
    backoff: Backoff = Backoff()

    @property
    def short_name(self) -> str:
        """The name of the function."""
        return self.name.partition(".")[2]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What one call is carried out with: what its environment and task say, unless the caller says otherwise."""

    shape: Shape
    env_vars: Mapping[str, str]
    retries: int
    timeout_s: float | None
    cache: CacheTerms = CacheTerms()
    backoff: Backoff = Backoff()

    def override(self, told: Mapping[str, Any]) -> Terms:
        """These terms with what `Task.override` changed; raises `ProjectError` where that makes no sense."""
        try:
            changed = dict(told)
            if "shape" in changed:
                changed["shape"] = _checked(Shape(**changed["shape"]))
            if "env_vars" in changed:
                changed["env_vars"] = {str(name): str(value) for name, value in changed["env_vars"].items()}
            if "retries" in changed:
                changed["retries"] = int(changed["retries"])
            if "backoff" in changed:
                changed["backoff"] = Backoff(**{name: _number(value) for name, value in changed["backoff"].items()})
            if "cache" in changed:
                changed["cache"] = CacheTerms(**changed["cache"])
            if changed.get("timeout_s") is not None:
                changed["timeout_s"] = _number(changed["timeout_s"])
            return replace(self, **changed)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as exc:
            raise ProjectError("what a task was overridden with cannot be read", why=repr(exc)) from exc


@dataclass(frozen=True, kw_only=True)
class MountEntry:
    """Data of this machine that an environment's tasks find at `target`; both are paths, the source an absolute one."""

    source: str
    target: str


@dataclass(frozen=True, kw_only=True)
class SecretEntry:
    """A secret that an environment's tasks are told: in a variable, as a file, or both (see `authoring.Secret`)."""

    key: str
    group: str | None
    variable: str | None
    file: bool

    @property
    def name(self) -> str:
        """What it is called, with its group."""
        return f"{self.group}/{self.key}" if self.group else self.key


@dataclass(frozen=True, kw_only=True)
class EnvironmentEntry:
    """One environment as it was declared; file is relative to the project's root.

    image: the path of its specification, where one was named
    spec:  the specification itself, where it was given in Python (see `authoring.CondaSpec`)
    preload, fork: how attempts follow each other in a container (see `authoring.Reuse`)
    network: whether its tasks have any
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
    preload: tuple[str, ...] = ()
    fork: bool = True
    mounts: tuple[MountEntry, ...] = ()
    secrets: tuple[SecretEntry, ...] = ()
    network: bool = True

    @property
    def specification(self) -> str:
        """Where it is said what the environment holds, for messages."""
        if self.spec is not None:
            return f"the `CondaSpec` of `{self.name}` ({self.file}:{self.line})"
        return self.image or f"envs/{self.name}/environment.yml"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A project as the host sees it.

    root:         absolute path of the project
    import_roots: folders on sys.path of every task, relative to root, in order
    missing:      modules that were stubbed while describing → where they are imported ("file:line")
    references:   tasks that are referred to by name → where ("file:line")
    """

    root: str
    import_roots: tuple[str, ...]
    environments: Mapping[str, EnvironmentEntry]
    tasks: Mapping[str, TaskEntry]
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)

    def referred(self) -> dict[str, Any]:
        """What a caller is told of the tasks that are referred to by name: their parameters, and how they are awaited."""
        tasks = {name: self.tasks[name] for name in self.references}
        return {
            name: {"is_async": task.is_async, "parameters": [asdict(each) for each in task.parameters]}
            for name, task in tasks.items()
        }

    def to_json(self) -> dict[str, Any]:
        """The document that `parse_manifest` reads."""
        doc = {each.name: getattr(self, each.name) for each in fields(self)}
        environments = [asdict(each) for each in self.environments.values()]
        for entry in environments:
            entry["resources"] = entry.pop("shape")
        return {**doc, "environments": environments, "tasks": [asdict(each) for each in self.tasks.values()]}

    def unknown(self) -> list[str]:
        """Names of tasks and environments that are referred to, and that none of the described modules declares."""
        named = [name for entry in self.environments.values() for name in (*entry.depends_on, *entry.extends)]
        return [name for name in self.references if name not in self.tasks] + [
            name for name in dict.fromkeys(named) if name not in self.environments
        ]

    def terms(self, task: TaskEntry) -> Terms:
        """What a call of this task is carried out with."""
        environment = self.environments[task.environment]
        return Terms(
            shape=environment.shape,
            env_vars=environment.env_vars,
            retries=task.retries,
            timeout_s=task.timeout_s,
            cache=task.cache,
            backoff=task.backoff,
        )

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


_OPTIONAL_SIZES = ("memory_limit_bytes", "shm_bytes", "gpu_memory_bytes", "disk_bytes")


def _checked(shape: Shape) -> Shape:
    """A shape that a task has sent; raises `ValueError` or `TypeError` for one that makes no sense."""
    for name in ("cpus", "cpus_limit", "memory_bytes", "gpus", *_OPTIONAL_SIZES):
        value = getattr(shape, name)
        if value is not None or name in ("cpus", "cpus_limit", "memory_bytes", "gpus"):
            _number(value)
    return replace(shape, gpu_model=str(shape.gpu_model), gpu_shared=bool(shape.gpu_shared))


def _number(value: Any) -> float:
    """A finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**62:
        raise ValueError(f"{value!r} is no such number")
    return value


def parse_manifest(doc: Mapping[str, Any]) -> Manifest:
    """The manifest in a JSON document; raises `ProjectError` where it is not one."""
    try:
        return Manifest(
            root=doc["root"],
            import_roots=tuple(doc["import_roots"]),
            environments={entry["name"]: _parse_environment(entry) for entry in doc["environments"]},
            tasks={entry["name"]: _parse_task(entry) for entry in doc["tasks"]},
            missing={name: tuple(places) for name, places in doc.get("missing", {}).items()},
            references=dict(doc.get("references", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ProjectError(
            "the description of the workflow cannot be read", why=f"{type(exc).__name__}: {exc}"
        ) from exc


def _parse_environment(doc: Mapping[str, Any]) -> EnvironmentEntry:
    listed: dict[str, Any] = {key: tuple(doc[key]) for key in ("depends_on", "extends", "preload") if key in doc}
    mounts = tuple(MountEntry(**each) for each in doc.get("mounts", ()))
    secrets = tuple(SecretEntry(**each) for each in doc.get("secrets", ()))
    rest = {key: value for key, value in doc.items() if key not in (*listed, "resources", "mounts", "secrets")}
    return EnvironmentEntry(shape=Shape(**doc["resources"]), mounts=mounts, secrets=secrets, **listed, **rest)


def _parse_task(doc: Mapping[str, Any]) -> TaskEntry:
    made = {
        "parameters": tuple(Parameter(**one) for one in doc["parameters"]),
        "cache": CacheTerms(**doc.get("cache", {})),
        "backoff": Backoff(**doc.get("backoff", {})),
    }
    return TaskEntry(**{**doc, **made})
