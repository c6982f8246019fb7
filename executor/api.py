"""Starting a run from Python: `executor.run(task, …)` in a script or a notebook.

    run = executor.run(alphafold_workflow, "AAGG")     checks the inputs, starts the run, and returns
    run.result()                                       waits for its end, and answers with the value

A workflow's own module may import these names, wherever it is imported, so this module travels into containers: stdlib
only, Python 3.9. What carries a run out, `executor.background`, is imported when one is started.
"""

import abc
import importlib
import importlib.util
import pathlib
import reprlib
import sys
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

    @property
    @abc.abstractmethod
    def report(self) -> pathlib.Path:
        """What is known of it so far as one page for a browser, written anew into the folder of its record.

        Raises `MachineError` where it cannot be written.
        """

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
    isolation: Optional[str] = None

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
        args, inputs = shapes.check_call(shapes.describe_parameters(task.function), args, inputs, task.name)
        options = {"runtime": self.runtime, "verbose": self.verbose, "isolation": self.isolation}
        return importlib.import_module(_HOST).start(task, args, inputs, **options)


def with_options(*, runtime: str = "auto", verbose: bool = False, isolation: Optional[str] = None) -> Options:
    """Start runs in another way: `executor.with_options(runtime="process").run(task, …)`.

    runtime: `docker`, `process`, or `auto` for containers, and isolated processes where no engine answers
    verbose: show what the tasks print
    isolation: `required` refuses to run tasks as processes that are not isolated fully, `auto` does not; without it
        `RUN_LOCAL_ISOLATION` says which
    """
    if runtime not in _RUNTIMES:
        raise UsageError(f"there is no runtime {runtime!r}", why=f"what there is: {', '.join(_RUNTIMES)}")
    return Options(runtime, verbose, isolation)


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
