"""Every error that a user can meet: what happened, why, and what to do next.

    RunLocalError
      x UsageError            the command line, or a call of the API, is wrong          exit code 2
      x ProjectError          the user's workflow code cannot be read                   exit code 2
      x EnvironmentFailed     an environment could not be made                          exit code 3
        + SpecError           its environment.yml is wrong
        + LockError           it could not be locked, or its lock cannot be trusted
        + BuildError          its image or prefix could not be built
      x MachineError          this machine cannot do it (no engine, no GPU, no disk)    exit code 4
      x WorkflowFailed        a task failed                                             exit code 1
      x TaskError             what a caller sees of a call that failed
      x MissingModule         a package that this environment does not hold was used
      x NotPicklable          an argument or a value cannot be sent to another task
      x Bug                   run-local broke one of its own promises

No class but the root has an `__init__`, so all of them survive pickling. This module travels into containers.
"""

from typing import Any, Optional


class RunLocalError(Exception):
    """What happened, why, and what to do next; each a line or a few, without a full stop.

    what: lower case, names what can be typed in backticks
    why:  the cause as we know it; may be several lines
    hint: the next step
    facts: plain data for a program that wants more than text
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", hint: str = "", facts: Optional[dict[str, Any]] = None) -> None:
        super().__init__(what, why, hint, facts or {})

    @property
    def what(self) -> str:
        """What happened."""
        return str(self.args[0])

    @property
    def why(self) -> str:
        """The cause, or an empty string."""
        return str(self.args[1])

    @property
    def hint(self) -> str:
        """The next step, or an empty string."""
        return str(self.args[2])

    @property
    def facts(self) -> dict[str, Any]:
        """Plain data beside the text."""
        return dict(self.args[3])

    def __str__(self) -> str:
        lines = [self.what]
        for label, text in (("  why: ", self.why), ("  hint: ", self.hint)):
            if text:
                lines.append(label + text.replace("\n", "\n" + " " * len(label)))
        return "\n".join(lines)


class UsageError(RunLocalError):
    """The command line, or a call of the API, is wrong."""

    exit_code = 2


class ProjectError(RunLocalError):
    """The user's workflow code cannot be read, or declares something impossible."""

    exit_code = 2


class EnvironmentFailed(RunLocalError):
    """An environment could not be made."""

    exit_code = 3


class SpecError(EnvironmentFailed):
    """An environment's specification is wrong."""


class LockError(EnvironmentFailed):
    """An environment could not be locked, or its lock cannot be trusted."""


class BuildError(EnvironmentFailed):
    """The image or prefix of an environment could not be built."""


class MachineError(RunLocalError):
    """This machine cannot do what was asked: no engine, no GPU, not enough memory or disk."""

    exit_code = 4


class WorkflowFailed(RunLocalError):
    """The root call of a run failed."""


class Bug(RunLocalError):
    """run-local broke one of its own promises; please report it."""


class MissingModule(RunLocalError, ModuleNotFoundError):
    """A package that this environment does not hold was used."""


class NotPicklable(RunLocalError, TypeError):
    """An argument or a value cannot be sent to another task."""


class NonRecoverableError(Exception):
    """To be raised by a task, or extended by an error of its own, where another attempt would be of no use."""


class TaskError(RunLocalError):
    """A called task failed. Raised in the caller, where it can be caught.

    original: the exception that the task raised, where it can be pickled there and opened here, else None
    """

    original: Any = None

    @property
    def code(self) -> str:
        """The class name of the exception that the task raised, or the outcome (`exit`, `signal`, `timeout`).

        Where the task let the failure of a call of its own pass, it is that one's.
        """
        return str(self.facts.get("code", ""))

    @property
    def task(self) -> str:
        """The task that failed, as `environment.function`."""
        return str(self.facts.get("task", ""))

    @property
    def call(self) -> str:
        """The id of the call that failed."""
        return str(self.facts.get("call", ""))

    @property
    def traceback(self) -> str:
        """The task's own traceback, as Python prints it, without run-local's frames."""
        return str(self.facts.get("traceback", ""))
