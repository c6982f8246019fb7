"""What a workflow is written with: `TaskEnvironment`, `@env.task`, and the tasks it makes.

A task is a function that knows its environment. Outside a run, calling it calls the function: that is how it is
unit-tested. Inside a run, `CALLER` is set by the worker, and calling a task asks the host to run it in a container of
its own environment. The names and their meanings are Flyte 2's.

This module travels into containers: stdlib only, Python 3.9, and nothing here knows how a call is carried out.
"""

import asyncio
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
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

Submit = Callable[["Task[Any, Any]", tuple[Any, ...], dict[str, Any]], "Future[Callable[[], Any]]"]

#: Set by the worker for the life of one attempt: sends a call to the host. The future has what opens the call's value,
#: which runs code of the user's and so is done by who waits for it; cancelling the future cancels the call.
CALLER: list[Submit] = []

#: Every environment of this process, in the order in which they were declared.
ENVIRONMENTS: list["TaskEnvironment"] = []


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
            if not _is_texts(getattr(self, name))
        ]
        variables: Any = self.variables
        if not isinstance(variables, Mapping) or not _is_texts([*variables, *variables.values()]):
            wrong.append(f"`variables` must be a mapping of texts to texts, and is {self.variables!r}")
        for name, kind, word in (("base", str, "a text"), ("cuda", bool, "a bool"), ("platform", str, "a text")):
            if not isinstance(getattr(self, name), (kind, type(None))):
                wrong.append(f"`{name}` must be {word} or None, and is {getattr(self, name)!r}")
        if wrong:
            raise ProjectError("its `CondaSpec` is wrong", why="\n".join(wrong))
        listed = {name: list(getattr(self, name)) for name in _LISTS}
        single = {name: getattr(self, name) for name in ("base", "cuda", "platform")}
        return {**listed, **single, "variables": dict(self.variables)}


class TaskEnvironment:
    """A named environment and the tasks that run in it.

    name:       lower case; its spec is `envs/<name>/environment.yml` of the project
    image:      another spec: the path of an environment.yml, from the project's root, or a `CondaSpec`
    depends_on: environments that tasks of this one call; they are locked and built first
    extends:    environments whose packages this one holds too, solved together as one
    resources:  what one attempt may use
    env_vars:   environment variables of every attempt
    """

    def __init__(
        self,
        name: str,
        image: Union[str, CondaSpec, None] = None,
        depends_on: Sequence["TaskEnvironment"] = (),
        extends: Sequence["TaskEnvironment"] = (),
        resources: Optional[Resources] = None,
        env_vars: Optional[Mapping[str, str]] = None,
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
        self.description = description
        self.tasks: dict[str, Task[Any, Any]] = {}
        frame = sys._getframe(1)
        self.declared_at = (frame.f_code.co_filename, frame.f_lineno)
        ENVIRONMENTS.append(self)

    def add_dependency(self, *environments: "TaskEnvironment") -> None:
        """Declare more environments that tasks of this one call; naming one twice is the same as once."""
        self.depends_on += [env for env in dict.fromkeys(environments) if env not in self.depends_on]

    @overload
    def task(self, function: Callable[P, R]) -> "Task[P, R]": ...

    @overload
    def task(
        self, *, retries: int = ..., timeout: Optional[float] = ...
    ) -> Callable[[Callable[P, R]], "Task[P, R]"]: ...

    def task(
        self, function: Optional[Callable[..., Any]] = None, *, retries: int = 0, timeout: Optional[float] = None
    ) -> Any:
        """Declare a task of this environment.

        retries: how often a failed attempt is made again
        timeout: seconds of wall clock for one attempt; None waits for ever
        """
        if function is None:
            return lambda f: self.task(f)._with(retries, timeout)
        made: Task[Any, Any] = Task(self, function)
        if made.short_name in self.tasks:
            raise ProjectError(
                f"environment `{self.name}` has two tasks named `{made.short_name}`",
                why="the second would take the place of the first, and tasks are found by their names",
                hint="rename one",
            )
        self.tasks[made.short_name] = made
        return made._with(retries, timeout)

    def __repr__(self) -> str:
        return f"TaskEnvironment({self.name!r})"


class Task(Generic[P, R]):
    """A function that runs in its environment; made by `@env.task`, called like the function."""

    def __init__(self, environment: TaskEnvironment, function: Callable[..., Any]) -> None:
        self.environment = environment
        self.function = function
        self.short_name = function.__name__
        self.name = f"{environment.name}.{function.__name__}"
        self.is_async = inspect.iscoroutinefunction(function)
        self.retries = 0
        self.timeout: Optional[float] = None
        for attribute in ("__module__", "__name__", "__doc__"):
            setattr(self, attribute, getattr(function, attribute))
        self.__qualname__ = function.__qualname__
        self.__wrapped__ = function

    def _with(self, retries: int, timeout: Optional[float]) -> "Task[P, R]":
        if retries < 0 or not (timeout is None or timeout > 0):  # nor is NaN a timeout
            raise UsageError(f"task `{self.name}`: retries must not be negative, and a timeout must be positive")
        self.retries, self.timeout = retries, None if timeout == float("inf") else timeout
        return self

    def __call__(self, *args: "P.args", **kwargs: "P.kwargs") -> R:
        """Run the task and return its value; of an async task, an awaitable of it."""
        if not CALLER:
            return cast("R", self.function(*args, **kwargs))
        self._check(args, kwargs)
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
            self._check(args, kwargs)
            return await self._await(args, kwargs)
        value = self.function(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    async def _await(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        open_value = await asyncio.wrap_future(CALLER[-1](self, args, kwargs))
        return open_value()

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse arguments that the function could not be called with, before anything is sent."""
        try:
            inspect.signature(self.function).bind(*args, **kwargs)
        except TypeError as exc:
            raise UsageError(f"task `{self.name}` cannot be called like this", why=str(exc)) from None

    def __reduce__(self) -> Union[str, tuple[Any, ...]]:
        """Pickle by name: the function lives in the project's source, which every container has."""
        return (_find_task, (self.__module__, self.__qualname__))

    def __repr__(self) -> str:
        return f"<task {self.name}>"


def _find_task(module: str, qualname: str) -> Any:
    found: Any = sys.modules[module] if module in sys.modules else __import__(module, fromlist=["_"])
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def _is_texts(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(each, str) for each in value)


def _inside_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
