"""Starting a run from Python: `executor.run(task, …)` in a script or a notebook.

    run = executor.run(alphafold_workflow, "AAGG")     checks the inputs, starts the run, and returns
    run.result()                                       waits for its end, and answers with the value

A workflow's own module may import these names, wherever it is imported, so this module travels into containers: stdlib
only, Python 3.9. What carries a run out, `executor.background`, is imported when one is started.
"""

import abc
import importlib
import importlib.util
import inspect
import numbers
import pathlib
import reprlib
import sys
import types
import typing
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Optional, TypeVar, cast, overload

from executor.authoring import CALLER, Task
from executor.errors import UsageError
from executor.worker import shapes

if TYPE_CHECKING:
    if sys.version_info >= (3, 10):
        from typing import ParamSpec
    P = ParamSpec("P")
else:
    P = TypeVar("P")
R = TypeVar("R")

_HOST = "executor.background"
_RUNTIMES = ("auto", "docker", "process")

#: What Python's own types of numbers are for: a number of a package that is one of them fits, too.
_NUMBERS = {int: numbers.Integral, float: numbers.Real, complex: numbers.Complex}
_UNIONS = (typing.Union, getattr(types, "UnionType", typing.Union))
_CONTAINERS = ("builtins", "collections.abc")
_HOLDS_ITEMS = (list, tuple, set, frozenset)


class Run(abc.ABC, Generic[R]):
    """A run, and what is known of it so far. Its record stays: `Run.load` finds it again.

    id:      its name, as `run-local runs` lists it
    outputs: the folder of the files in its result
    """

    id: str
    outputs: pathlib.Path

    @property
    @abc.abstractmethod
    def status(self) -> str:
        """`running`, `succeeded`, `failed` or `cancelled`; `interrupted` where its process was killed."""

    @property
    @abc.abstractmethod
    def calls(self) -> list[Any]:
        """Its calls so far, each with `id`, `parent`, `task`, `environment`, `status`, `seconds`, `attempts`, `error`."""

    @abc.abstractmethod
    def done(self) -> bool:
        """Whether it is over."""

    @abc.abstractmethod
    def wait(self, timeout: Optional[float] = None) -> bool:
        """Wait for its end, at most `timeout` seconds; answers whether it is over. Ctrl-C meanwhile cancels the run.

        Raises what kept it from starting: `EnvironmentFailed`, `MachineError` or `ProjectError`.
        """

    @abc.abstractmethod
    def result(self, timeout: Optional[float] = None) -> R:
        """Wait for its end, and answer with the value, opened in this process; files in it are files of `outputs`.

        Raises `TaskError` where it failed or was cancelled (code `cancelled`), `TimeoutError` where it is not over,
        `MissingModule` where this Python lacks what the value is made of, and what `wait` raises.
        """

    @abc.abstractmethod
    def cancel(self) -> None:
        """Stop it cleanly, and return at once; the second time it is stopped without patience."""

    @staticmethod
    def load(run: str) -> "Run[Any]":
        """A run of the past by its id, the start or the end of that, or `last`; raises `UsageError`."""
        _refuse_inside_a_run("Run.load")
        return cast("Run[Any]", importlib.import_module(_HOST).load(run))

    def __repr__(self) -> str:
        return f"<run {self.id}: {self.status}>"


@dataclass(frozen=True)
class Options:
    """How runs are started; see `with_options`."""

    runtime: str
    verbose: bool

    @overload
    def run(self, task: "Task[P, Coroutine[Any, Any, R]]", /, *args: "P.args", **inputs: "P.kwargs") -> Run[R]: ...

    @overload
    def run(self, task: "Task[P, R]", /, *args: "P.args", **inputs: "P.kwargs") -> Run[R]: ...

    def run(self, task: Any, /, *args: Any, **inputs: Any) -> Any:
        """Start a run of a task with these inputs; see `run`."""
        _refuse_inside_a_run("executor.run")
        if not isinstance(task, Task):
            raise UsageError(
                f"`executor.run` takes a task, and was given {reprlib.repr(task)}",
                hint="pass the function with `@env.task` itself, and its inputs after it: `executor.run(fold, x)`",
            )
        check_inputs(task, args, inputs)
        return importlib.import_module(_HOST).start(task, args, inputs, runtime=self.runtime, verbose=self.verbose)


def with_options(*, runtime: str = "auto", verbose: bool = False) -> Options:
    """Start runs in another way: `executor.with_options(runtime="process").run(task, …)`.

    runtime: `docker`, `process`, or `auto` for containers, and isolated processes where no engine answers
    verbose: show what the tasks print
    """
    if runtime not in _RUNTIMES:
        raise UsageError(f"there is no runtime {runtime!r}", why=f"what there is: {', '.join(_RUNTIMES)}")
    return Options(runtime, verbose)


@overload
def run(task: "Task[P, Coroutine[Any, Any, R]]", /, *args: "P.args", **inputs: "P.kwargs") -> Run[R]: ...


@overload
def run(task: "Task[P, R]", /, *args: "P.args", **inputs: "P.kwargs") -> Run[R]: ...


def run(task: Any, /, *args: Any, **inputs: Any) -> Any:
    """Start a run of a task with these inputs, and return at once; the run goes on in a thread of this process.

    Progress is shown on stderr. A script that comes to its end waits for its runs. Raises `UsageError` for inputs that
    do not fit the task's signature, and `ProjectError` for code that cannot be read, before anything is started.
    """
    return with_options().run(task, *args, **inputs)


def _refuse_inside_a_run(what: str) -> None:
    if CALLER or importlib.util.find_spec(_HOST) is None:
        raise UsageError(
            f"`{what}` cannot be used here",
            why="this code is part of a workflow already: it is in a task, or its module is imported for one",
            hint='in a task, call the other task itself; at module level, put this under `if __name__ == "__main__":`',
        )


# -- inputs ------------------------------------------------------------------------------------------------------------


def check_inputs(task: "Task[Any, Any]", args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse inputs that are missing, unknown, or plainly of another type than the signature says."""
    signature = shapes.signature(task.function)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as exc:
        raise UsageError(
            f"task `{task.name}` cannot be run like this", why=str(exc), hint=f"it is `{task.short_name}{signature}`"
        ) from None
    hints = shapes.resolve_hints(task.function)
    for name, given in bound.arguments.items():
        annotation, kind = hints.get(name, Any), signature.parameters[name].kind
        named = [(name, given)]
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named = [(f"{name}[{index}]", each) for index, each in enumerate(given)]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named = list(given.items())
        for at, value in named:
            check_value(annotation, value, at)


def check_value(annotation: Any, value: Any, at: str) -> None:
    """Refuse a value that is plainly not of a type; what an annotation says that we do not know is let through.

    Raises `UsageError` that says which element is wrong: `scores[2]: expected float, got 'x'`.
    """
    found = _misfit(annotation, value, at)
    if found:
        at, expected, wrong = found
        text = expected if isinstance(expected, str) else _text(expected)
        wants_file = isinstance(expected, type) and issubclass(expected, pathlib.PurePath) and isinstance(wrong, str)
        raise UsageError(
            f"{at}: expected {text}, got {reprlib.repr(wrong)}",
            hint=f"write `pathlib.Path({wrong!r})`" if wants_file else "",
        )


def _text(annotation: Any) -> str:
    text = inspect.formatannotation(annotation).replace("._local", "")  # where the class of paths lies in 3.13
    return "None" if annotation in (None, type(None)) else text


_Misfit = Optional[tuple[str, Any, Any]]


def _misfit(annotation: Any, value: Any, at: str) -> _Misfit:
    """Which element is wrong, what was expected there, and what is there; None where all fits."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _UNIONS:
        fits = any(_misfit(each, value, at) is None for each in args)
        return None if fits else _misfit_of_union(args, value, at)
    if origin is typing.Literal:
        fits = any(type(value) is type(each) and value == each for each in args)
        return None if fits else (at, "one of " + ", ".join(map(repr, args)), value)
    kind = origin or (type(None) if annotation is None else annotation)
    if not isinstance(kind, type):
        return None
    try:
        fits = isinstance(value, _NUMBERS.get(kind, kind))
    except TypeError:  # such as a `TypedDict`
        return None
    if not fits:
        return at, annotation, value
    return _misfit_inside(kind, args, value, at) if args and kind.__module__ in _CONTAINERS else None


def _misfit_of_union(args: tuple[Any, ...], value: Any, at: str) -> _Misfit:
    """Of an `Optional`, what is wrong with the one type that it could be; of other unions, all of it."""
    one, *others = [each for each in args if each is not type(None)]
    return (at, " | ".join(map(_text, args)), value) if others else _misfit(one, value, at)


def _misfit_inside(kind: type, args: tuple[Any, ...], value: Any, at: str) -> _Misfit:
    """The first wrong element of a container that was found to be of the right kind itself."""
    if kind is tuple and args[-1] is not ...:
        if len(args) != len(value):
            return at, f"a tuple of {len(args)}", value
        inside = [(each, one, f"{at}[{n}]") for n, (each, one) in enumerate(zip(args, value))]
    elif isinstance(value, _HOLDS_ITEMS):
        inside = [(args[0], one, f"{at}[{n}]") for n, one in enumerate(value)]
    elif isinstance(value, dict) and len(args) == 2:
        inside = [(args[0], key, f"a key of {at}") for key in value]
        inside += [(args[1], one, f"{at}[{key!r}]") for key, one in value.items()]
    else:
        return None
    return next(filter(None, (_misfit(*each) for each in inside)), None)
