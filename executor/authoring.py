"""What a workflow is written with: `TaskEnvironment`, `@env.task`, and the tasks it makes.

A task is a function that knows its environment. Outside a run, calling it calls the function: that is how it is
unit-tested. Inside a run, `CALLER` is set by the worker, and calling a task asks the host to run it in a container of
its own environment. The names and their meanings are Flyte 2's.

This module travels into containers: stdlib only, Python 3.9, and nothing here knows how a call is carried out.
"""

import asyncio
import functools
import inspect
import os
import re
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Generic,
    Optional,
    TypeVar,
    Union,
    cast,
    overload,
)

from executor.errors import ProjectError, UsageError
from executor.resources import Resources

if TYPE_CHECKING:
    if sys.version_info >= (3, 10):
        from typing import ParamSpec
    P = ParamSpec("P")
else:
    P = TypeVar("P")
R = TypeVar("R")

_NAME = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)*")
_LISTS = ("dependencies", "pip", "channels", "apt")
_CACHE_BEHAVIORS = ("auto", "override", "disable")

Submit = Callable[["Task[Any, Any]", tuple[Any, ...], dict[str, Any]], "Future[Callable[[], Any]]"]

#: Set by the worker for the life of one attempt: sends a call to the host. The future has what opens the call's value,
#: which runs code of the user's and so is done by who waits for it; cancelling the future cancels the call.
CALLER: list[Submit] = []

#: Every environment of this process, in the order in which they were declared.
ENVIRONMENTS: list["TaskEnvironment"] = []

#: Every reference to a task of this process, and where it was made.
REFERENCES: dict[str, "ReferenceTask"] = {}

#: What the manifest knows of the tasks that are referred to, by their names; set by the worker.
REFERRED: dict[str, dict[str, Any]] = {}


@dataclass(frozen=True)
class CondaSpec:
    """What an environment holds, said in Python; means what the same words mean in an environment.yml.

    dependencies: conda packages; `python` has to be one of them
    pip:          packages of the `pip:` list
    base, apt, cuda, platform: as below `run-local:` there
    """

    dependencies: Sequence[str] = ("python",)
    pip: Sequence[str] = ()
    channels: Sequence[str] = ("conda-forge",)
    variables: Mapping[str, str] = field(default_factory=dict)
    base: Optional[str] = None
    apt: Sequence[str] = ()
    cuda: Optional[bool] = None
    platform: Optional[str] = None

    def to_json(self) -> dict[str, Any]:
        """Plain data; raises `ProjectError` with every part that is of another type than it should be."""
        wrong = [
            f"`{name}` must be a list of texts, and is {getattr(self, name)!r}"
            for name in _LISTS
            if not is_texts(getattr(self, name))
        ]
        variables: Any = self.variables
        if not isinstance(variables, Mapping) or not is_texts([*variables, *variables.values()]):
            wrong.append(f"`variables` must be a mapping of texts to texts, and is {self.variables!r}")
        for name, kind, word in (("base", str, "a text"), ("cuda", bool, "a bool"), ("platform", str, "a text")):
            if not isinstance(getattr(self, name), (kind, type(None))):
                wrong.append(f"`{name}` must be {word} or None, and is {getattr(self, name)!r}")
        if wrong:
            raise ProjectError("its `CondaSpec` is wrong", why="\n".join(wrong))
        listed = {name: list(getattr(self, name)) for name in _LISTS}
        single = {name: getattr(self, name) for name in ("base", "cuda", "platform")}
        return {**listed, **single, "variables": dict(self.variables)}


@dataclass(frozen=True)
class Reuse:
    """How the attempts of an environment follow each other in a container; each is always a process of its own.

    preload: modules that are imported once in a container, before it is forked for an attempt. Not every library
             survives a fork: one that has begun threads, or talks to a GPU, may hang in the attempt
    fork:    False starts a new interpreter for each attempt
    """

    preload: Sequence[str] = ()
    fork: bool = True


@dataclass(frozen=True)
class Backoff:
    """How long a call waits before it is tried again: `base` seconds, then `factor` times as long each, at most `cap`."""

    base: float = 0.5
    factor: float = 2.0
    cap: float = 60.0

    def to_json(self) -> dict[str, float]:
        """Plain numbers; raises `UsageError` for what is no time."""
        told: dict[str, Any] = {"base_s": self.base, "factor": self.factor, "cap_s": self.cap}
        for name, value in told.items():
            if type(value) not in (int, float) or not 0 <= value < float("inf"):
                raise UsageError(f"`{name.partition('_')[0]}` of a `Backoff` must be a number, and is {value!r}")
        return told


@dataclass(frozen=True)
class RetryStrategy:
    """How often a failed attempt is made again, and how long is waited before that."""

    count: int
    backoff: Backoff = Backoff()


@dataclass(frozen=True)
class Cache:
    """Whether a call that was made before need not run again; `cache="auto"` is `Cache("auto")`.

    behavior: `auto` takes the value of an earlier call with the same code, environment and inputs; `override` runs, and
              keeps the new value for later; `disable` does neither
    version_override: changes the key by hand, for what it cannot see: a database that was updated, a service
    """

    behavior: str = "auto"
    version_override: str = ""

    def to_json(self) -> dict[str, str]:
        """Plain data; raises `UsageError` for a behaviour that there is not."""
        if self.behavior not in _CACHE_BEHAVIORS or not isinstance(self.version_override, str):
            hint = "write `auto`, `override`, `disable` or `Cache(…, version_override=text)`"
            raise UsageError(f"`cache` cannot be {self!r}", hint=hint)
        return {"behavior": self.behavior, "version": self.version_override}


@dataclass(frozen=True)
class Mount:
    """Data of this machine that tasks read where it lies, however much it is; never copied, hashed or written to.

    source: an existing file or folder: its absolute path, one from the project's root, or one with `~`
    target: the absolute path that tasks find it at; None is where it lies
    """

    source: Union[str, "os.PathLike[str]"]
    target: Union[str, "os.PathLike[str]", None] = None


#: Where Flyte puts secrets that are files.
SECRET_FILES = "/etc/flyte/secrets"  # noqa: S105  no secret, but their folder
_SECRET_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


@dataclass(frozen=True)
class Secret:
    """A text that tasks need and nobody else may see: a password, a token. This says which one, and never what it is.

    key, group: its name where it is kept; see docs/isolation.md
    as_env_var: the variable that tasks find it in; the default is made of group and key, `hf-token` is in `HF_TOKEN`
    mount:      `/etc/flyte/secrets`: tasks find it as a file there, below its group, and in no variable unless
                `as_env_var` names one; in containers only
    """

    key: str
    group: Optional[str] = None
    mount: Union[str, "os.PathLike[str]", None] = None
    as_env_var: Optional[str] = None

    def __post_init__(self) -> None:
        for what, name in (("key", self.key), ("group", self.group)):
            if not (name is None and what == "group") and not _SECRET_NAME.fullmatch(str(name)):
                raise ProjectError(
                    f"the {what} of a secret cannot be {name!r}", why="it is letters, digits, `-`, `_` and dots"
                )
        if self.mount is not None and os.fspath(self.mount).rstrip("/") != SECRET_FILES:
            raise ProjectError(
                f"secret `{self.key}` cannot be mounted at `{self.mount}`",
                hint=f'write `mount="{SECRET_FILES}"`: there it is a file of its name',
            )
        if self.variable is not None and not _VARIABLE.fullmatch(self.variable):
            raise ProjectError(
                f"secret `{self.key}` cannot be in a variable `{self.variable}`",
                why="that is capital letters, digits and `_`",
                hint=f'name another: `Secret({self.key!r}, as_env_var="TOKEN")`',
            )

    @property
    def variable(self) -> Optional[str]:
        """The environment variable that tasks find it in, if any."""
        if self.as_env_var is not None or self.mount is not None:
            return self.as_env_var
        return "_".join(filter(None, (self.group, self.key))).replace("-", "_").upper()


class TaskEnvironment:
    """A named environment and the tasks that run in it.

    name:       lower case; its spec is `envs/<name>/environment.yml` of the project
    image:      another spec: the path of an environment.yml, from the project's root, or a `CondaSpec`
    depends_on: environments that tasks of this one call, or their names; they are locked and built first
    extends:    environments whose packages this one holds too, solved together as one
    resources:  what one attempt may use
    env_vars:   environment variables of every attempt
    reusable:   how attempts follow each other in a container
    mounts:     data of this machine that its tasks read where it lies
    cache:      whether calls that were made before need not run again: `auto`, `override`, `disable` or a `Cache`
    secrets:    what its tasks are told and nobody else: names, or `Secret(…)`
    network:    False leaves its tasks without any network
    """

    def __init__(
        self,
        name: str,
        image: Union[str, CondaSpec, None] = None,
        depends_on: Sequence[Union["TaskEnvironment", str]] = (),
        extends: Sequence[Union["TaskEnvironment", str]] = (),
        resources: Optional[Resources] = None,
        env_vars: Optional[Mapping[str, str]] = None,
        reusable: Optional[Reuse] = None,
        mounts: Sequence[Mount] = (),
        cache: Union[str, Cache] = "disable",
        secrets: Union[str, Secret, Sequence[Union[str, Secret]]] = (),
        network: bool = True,
        description: str = "",
    ) -> None:
        if not _NAME.fullmatch(str(name)):
            raise ProjectError(
                f"`{name}` cannot name an environment",
                why="a name is lower-case letters and digits, joined by `-` or `_`",
                hint=f"rename it, for example `{re.sub('[^a-z0-9]+', '-', str(name).lower()).strip('-') or 'my-env'}`",
            )
        if not isinstance(resources, (Resources, type(None))):
            raise ProjectError(
                f"`resources` of environment `{name}` must be `Resources(…)`", why=f"it is {resources!r}"
            )
        self.name = name
        self.image = image
        self.depends_on = list(depends_on)
        self.extends = list(extends)
        self.resources = resources or Resources()
        self.env_vars = dict(env_vars or {})
        self.reusable = reusable or Reuse()
        self.mounts = mounts
        self.cache = cache_terms(cache)
        self.secrets = [secrets] if isinstance(secrets, (str, Secret)) else secrets
        self.network = network
        self.description = description
        self.tasks: dict[str, Task[Any, Any]] = {}
        frame = sys._getframe(1)
        self.declared_at = (frame.f_code.co_filename, frame.f_lineno)
        ENVIRONMENTS.append(self)

    def add_dependency(self, *environments: Union["TaskEnvironment", str]) -> None:
        """Declare more environments that tasks of this one call; naming one twice is the same as once."""
        self.depends_on += [env for env in dict.fromkeys(environments) if env not in self.depends_on]

    @overload
    def task(self, function: Callable[P, R]) -> "Task[P, R]": ...

    @overload
    def task(
        self,
        *,
        retries: Union[int, RetryStrategy] = ...,
        timeout: Optional[float] = ...,
        cache: Union[str, Cache, None] = ...,
        report: bool = ...,
    ) -> Callable[[Callable[P, R]], "Task[P, R]"]: ...

    def task(
        self,
        function: Optional[Callable[..., Any]] = None,
        *,
        retries: Union[int, RetryStrategy] = 0,
        timeout: Optional[float] = None,
        cache: Union[str, Cache, None] = None,
        report: bool = False,
    ) -> Any:
        """Declare a task of this environment.

        retries: how often a failed attempt is made again, after half a second, a second, two, …; or a `RetryStrategy`
        timeout: seconds of wall clock for one attempt; None waits for ever
        cache:   as in `TaskEnvironment`; None is what the environment says
        report:  for scripts written for Flyte 2; here every task may log to its report (`executor.report`)
        """
        if function is None:
            return lambda f: self.task(f)._with(retries, timeout, cache)
        made: Task[Any, Any] = Task(self, function)
        if made.short_name in self.tasks:
            raise ProjectError(
                f"environment `{self.name}` has two tasks named `{made.short_name}`",
                why="the second would take the place of the first, and tasks are found by their names",
                hint="rename one",
            )
        self.tasks[made.short_name] = made
        return made._with(retries, timeout, cache)

    def __repr__(self) -> str:
        return f"TaskEnvironment({self.name!r})"


class Task(Generic[P, R]):
    """A function that runs in its environment; made by `@env.task`, called like the function.

    overrides: what calls of it are carried out with instead of what it was declared with, as plain data
    """

    def __init__(self, environment: TaskEnvironment, function: Callable[..., Any]) -> None:
        self.environment = environment
        self.function = function
        self.short_name = function.__name__
        self.name = f"{environment.name}.{function.__name__}"
        self.is_async = inspect.iscoroutinefunction(function)
        self.retries, self.backoff = 0, Backoff().to_json()
        self.timeout: Optional[float] = None
        self.cache = environment.cache
        self.overrides: dict[str, Any] = {}
        for attribute in ("__module__", "__name__", "__doc__"):
            setattr(self, attribute, getattr(function, attribute))
        self.__qualname__ = function.__qualname__
        self.__wrapped__ = function

    def _with(
        self, retries: Union[int, RetryStrategy], timeout: Optional[float], cache: Union[str, Cache, None]
    ) -> "Task[P, R]":
        (self.retries, self.backoff), self.timeout = _retries(self, retries), _timeout(self, timeout)
        self.cache = self.cache if cache is None else cache_terms(cache)
        return self

    def override(
        self,
        *,
        resources: Optional[Resources] = None,
        env_vars: Optional[Mapping[str, str]] = None,
        retries: Union[int, RetryStrategy, None] = None,
        timeout: Optional[float] = None,
        cache: Union[str, Cache, None] = None,
    ) -> "Task[P, R]":
        """The same task, to be called with other terms; each that is given replaces what was declared.

        resources: what one attempt may use, as a whole; env_vars: all variables of an attempt
        retries, timeout, cache: as in `TaskEnvironment.task`; a timeout of infinity waits for ever
        """
        changed: dict[str, Any] = {}
        if resources is not None:
            if not isinstance(resources, Resources):
                raise UsageError(f"`resources` of `{self.name}` must be `Resources(…)`", why=f"it is {resources!r}")
            changed["shape"] = resources.to_json()
        if env_vars is not None:
            texts: Any = env_vars
            if not isinstance(texts, Mapping) or not is_texts([*texts, *texts.values()]):
                raise UsageError(f"`env_vars` of `{self.name}` must be texts", why=f"they are {env_vars!r}")
            changed["env_vars"] = dict(env_vars)
        if retries is not None:
            changed["retries"], changed["backoff"] = _retries(self, retries)
        if timeout is not None:
            changed["timeout_s"] = _timeout(self, timeout)
        if cache is not None:
            changed["cache"] = cache_terms(cache)
        return self._overridden({**self.overrides, **changed})

    def _overridden(self, overrides: dict[str, Any]) -> "Task[P, R]":
        other: Task[P, R] = object.__new__(type(self))
        other.__dict__.update(self.__dict__, overrides=overrides)
        return other

    def __call__(self, *args: "P.args", **kwargs: "P.kwargs") -> R:
        """Run the task and return its value; of an async task, an awaitable of it."""
        if not CALLER:
            return cast("R", self._call_here(args, kwargs))
        if self.is_async:
            return cast("R", self._await(args, kwargs))
        if _inside_event_loop():
            raise UsageError(
                f"`{self.short_name}(…)` would block the event loop of its async caller",
                why="it is a task written with `def`, called inside a coroutine",
                hint=f"write `await {self.short_name}.aio(…)`",
            )
        open_value = CALLER[-1](self, args, kwargs).result()
        return cast("R", open_value())

    async def aio(self, *args: "P.args", **kwargs: "P.kwargs") -> Any:
        """Run the task without blocking the event loop; any task, written with `def` or `async def`."""
        if CALLER:
            return await self._await(args, kwargs)
        value = self._call_here(args, kwargs)
        return await value if inspect.isawaitable(value) else value

    async def _await(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        open_value = await asyncio.wrap_future(CALLER[-1](self, args, kwargs))
        return open_value()

    def _call_here(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.function(*args, **kwargs)

    def __reduce__(self) -> Union[str, tuple[Any, ...]]:
        """Pickle by name: the function lives in the project's source, which every container has."""
        return (_find_task, (self.__module__, self.__qualname__, self.overrides))

    def __repr__(self) -> str:
        return f"<task {self.name}>"


class ReferenceTask(Task[Any, Any]):
    """A task that is called by its name: neither its module nor what that imports is needed where it is called."""

    def __init__(self, name: str, declared_at: tuple[str, int]) -> None:
        self.name = name
        self.short_name = self.__name__ = self.__qualname__ = name.partition(".")[2]
        self.declared_at = declared_at
        self.overrides = {}

    @property
    def is_async(self) -> bool:  # type: ignore[override]
        """Whether it is written with `async def`."""
        return bool(REFERRED.get(self.name, {}).get("is_async"))

    def _call_here(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        declared = [task for environment in ENVIRONMENTS for task in environment.tasks.values()]
        found = next((task for task in declared if task.name == self.name), None)
        if found is None:
            raise UsageError(
                f"`{self.name}` is only referred to here, and cannot be called outside a run",
                why="the module that declares it is not imported",
                hint="import that module first, for example in the test that calls this",
            )
        return found.function(*args, **kwargs)

    def __reduce__(self) -> Union[str, tuple[Any, ...]]:
        return (_find_reference, (self.name, self.overrides))

    def __repr__(self) -> str:
        return f"<reference to task {self.name}>"


def reference_task(name: str) -> ReferenceTask:
    """A task of another environment, by its name `environment.function`, without importing the module that declares it.

    It is called like the task itself: with its signature, its defaults and its types, which are those of the source as it
    is when the run begins. The environment of the caller names the other one: `depends_on=["environment"]`.
    """
    environment, _, function = str(name).partition(".")
    if not _NAME.fullmatch(environment) or not function.isidentifier():
        raise UsageError(
            f"`{name}` does not name a task", hint='write `reference_task("environment.function")`, as `plan` shows it'
        )
    frame = sys._getframe(1)
    return REFERENCES.setdefault(name, ReferenceTask(name, (frame.f_code.co_filename, frame.f_lineno)))


class _Map:
    """`executor.map`: call a task once for each element, several at a time.

    for score in executor.map(dock, ligands, concurrency=8): …
    async for score in executor.map.aio(dock, ligands): …
    """

    def __call__(
        self,
        task: Callable[..., Any],
        *iterables: Iterable[Any],
        concurrency: int = 0,
        return_exceptions: bool = True,
    ) -> Iterator[Any]:
        """The values, in the order of the elements; like the built-in `map`, with one iterable per parameter.

        task:              a task, or a `functools.partial` of one
        concurrency:       how many calls there are at a time; 0 is all
        return_exceptions: whether a call that failed gives its exception as its value, as Flyte does it; otherwise it
                           is raised, and the calls that still run are cancelled
        """
        task, prefix, named = _unwrap(task, concurrency)
        elements = [(*prefix, *each) for each in zip(*iterables)]
        if CALLER and _inside_event_loop():
            raise UsageError(
                "`map(…)` would block the event loop of its async caller", hint="use `async for … in map.aio(…)`"
            )
        if CALLER:
            return self._run(task, elements, named, concurrency, return_exceptions)
        return (_settled(functools.partial(task, *each, **named), return_exceptions) for each in elements)

    async def aio(
        self,
        task: Callable[..., Any],
        *iterables: Iterable[Any],
        concurrency: int = 0,
        return_exceptions: bool = True,
    ) -> AsyncIterator[Any]:
        """The same for async callers: an async iterator."""
        task, prefix, named = _unwrap(task, concurrency)
        elements = [(*prefix, *each) for each in zip(*iterables)]
        gate = asyncio.Semaphore(concurrency or max(1, len(elements)))

        async def call(each: tuple[Any, ...]) -> Any:
            async with gate:
                return await task.aio(*each, **named)

        calls = [asyncio.ensure_future(call(each)) for each in elements]
        try:
            for made in calls:
                try:
                    value = await made
                except Exception as exc:
                    if not return_exceptions:
                        raise
                    value = exc
                yield value
        finally:
            for made in calls:
                made.cancel()

    @staticmethod
    def _run(
        task: "Task[Any, Any]",
        elements: list[tuple[Any, ...]],
        named: dict[str, Any],
        concurrency: int,
        return_exceptions: bool,
    ) -> Iterator[Any]:
        waiting, calls = deque(elements), deque[Any]()

        def submit_more() -> None:
            while waiting and (not concurrency or len(calls) < concurrency):
                calls.append(_submitted(task, waiting.popleft(), named))

        submit_more()

        def values() -> Iterator[Any]:
            try:
                while calls:
                    value = _settled(lambda: calls[0].result()(), return_exceptions)
                    calls.popleft()
                    submit_more()
                    yield value
            finally:
                for made in calls:
                    made.cancel()

        return values()


map = _Map()


def _submitted(task: "Task[Any, Any]", args: tuple[Any, ...], named: dict[str, Any]) -> "Future[Callable[[], Any]]":
    """A call on its way; one that is refused has failed."""
    try:
        return CALLER[-1](task, args, named)
    except Exception as exc:  # noqa: BLE001  pickling is user code
        refused: Future[Callable[[], Any]] = Future()
        refused.set_exception(exc)
        return refused


def _unwrap(task: Any, concurrency: int) -> tuple["Task[Any, Any]", tuple[Any, ...], dict[str, Any]]:
    """A task, and what a `partial` of it is given already."""
    args: tuple[Any, ...] = ()
    named: dict[str, Any] = {}
    while isinstance(task, functools.partial):
        task, args, named = task.func, (*task.args, *args), {**task.keywords, **named}
    if not isinstance(task, Task):
        raise UsageError(f"`map` takes a task, not {task!r}", hint="a task is a function with `@env.task`")
    if type(concurrency) is not int or concurrency < 0:
        raise UsageError(f"`concurrency` is {concurrency!r}", hint="it is a number of calls, and 0 is all at once")
    return task, args, named


def _settled(value: Callable[[], Any], return_exceptions: bool) -> Any:
    try:
        return value()
    except Exception as exc:
        if not return_exceptions:
            raise
        return exc


def _retries(task: "Task[Any, Any]", retries: Union[int, RetryStrategy]) -> tuple[int, dict[str, float]]:
    """How often, and how long is waited, as plain data."""
    strategy = retries if isinstance(retries, RetryStrategy) else RetryStrategy(retries)
    if type(strategy.count) is not int or strategy.count < 0:
        raise UsageError(
            f"task `{task.name}`: retries must be a number that is not negative, and is {strategy.count!r}"
        )
    if not isinstance(strategy.backoff, Backoff):
        raise UsageError(f"task `{task.name}`: `backoff` must be a `Backoff(…)`", why=f"it is {strategy.backoff!r}")
    return strategy.count, strategy.backoff.to_json()


def _timeout(task: "Task[Any, Any]", timeout: Optional[float]) -> Optional[float]:
    """Seconds, or None to wait for ever."""
    if timeout is None or timeout == float("inf"):
        return None
    if type(timeout) not in (int, float) or not timeout > 0:  # nor is NaN a timeout
        raise UsageError(f"task `{task.name}`: a timeout must be positive, and is {timeout!r}")
    return timeout


def cache_terms(cache: Union[str, Cache]) -> dict[str, str]:
    """What `cache=` says, as plain data; raises `UsageError` where that is nothing."""
    return (cache if isinstance(cache, Cache) else Cache(cache)).to_json()


def _find_task(module: str, qualname: str, overrides: dict[str, Any]) -> Any:
    found: Any = sys.modules[module] if module in sys.modules else __import__(module, fromlist=["_"])
    for part in qualname.split("."):
        found = getattr(found, part)
    return found._overridden(overrides) if overrides else found


def _find_reference(name: str, overrides: dict[str, Any]) -> Any:
    found = REFERENCES.setdefault(name, ReferenceTask(name, ("", 0)))
    return found._overridden(overrides) if overrides else found


def is_texts(value: Any) -> bool:
    """Whether a value is a sequence of texts, and not a text itself."""
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(each, str) for each in value)


def _inside_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
