"""`python -m executor.worker.describe`: what a workflow's module declares, as JSON.

Runs in a short-lived child of the command line, because importing user code may do anything. What the user's code prints
goes to stderr; the answer has a file of its own. Its one argument is JSON: module, roots (folders for sys.path), root (of
the project). Answer: `{"manifest": {…}}`, `{"failure": {"code", "message", "traceback"}}`, or `{"error": {what, why, hint}}`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import traceback
from typing import Any

from executor import authoring
from executor.errors import ProjectError, RunLocalError
from executor.worker import shapes, stubs

_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def describe(module: str, roots: list[str], root: str) -> dict[str, Any]:
    """Import a module, and describe every environment and task that this declared."""
    sys.path[:0] = roots
    missing: dict[str, list[str]] = {}

    def note(name: str, place: str) -> None:
        places = missing.setdefault(name, [])
        if (short := _relative(place, root)) not in places:
            places.append(short)

    stubs.install(roots, "describe", note)
    importlib.import_module(module)
    _refuse_duplicates(root)
    tasks = [task for environment in authoring.ENVIRONMENTS for task in environment.tasks.values()]
    return {
        "root": root,
        "import_roots": [os.path.relpath(each, root) for each in roots],
        "environments": [_describe_environment(each, root) for each in authoring.ENVIRONMENTS],
        "tasks": [_describe_task(task, root) for task in tasks],
        "missing": missing,
    }


def _refuse_duplicates(root: str) -> None:
    seen: dict[str, authoring.TaskEnvironment] = {}
    for environment in authoring.ENVIRONMENTS:
        first = seen.setdefault(environment.name, environment)
        if first is not environment:
            places = " and ".join(_place(each, root) for each in (first, environment))
            raise ProjectError(
                f"two environments are called `{environment.name}`",
                why=f"they are declared at {places}",
                hint="rename one, or import the first where the second is",
            )


def _place(environment: authoring.TaskEnvironment, root: str) -> str:
    file, line = environment.declared_at
    return f"{_relative(file, root)}:{line}"


def _describe_environment(environment: authoring.TaskEnvironment, root: str) -> dict[str, Any]:
    file, line = environment.declared_at
    return {
        "name": environment.name,
        "image": environment.image,
        "depends_on": [each.name for each in environment.depends_on],
        "extends": [each.name for each in environment.extends],
        "resources": environment.resources.to_json(),
        "env_vars": {str(name): str(value) for name, value in environment.env_vars.items()},
        "file": _relative(file, root),
        "line": line,
    }


def _describe_task(task: authoring.Task[Any, Any], root: str) -> dict[str, Any]:
    code = inspect.unwrap(task.function).__code__
    annotations = shapes.parameter_annotations(task.function)
    return {
        "name": task.name,
        "environment": task.environment.name,
        "module": task.__module__,
        "qualname": task.__qualname__,
        "file": _relative(code.co_filename, root),
        "line": code.co_firstlineno,
        "doc": inspect.getdoc(task.function) or "",
        "parameters": [
            _describe_parameter(parameter, annotations.get(parameter.name, Any))
            for parameter in inspect.signature(task.function).parameters.values()
        ],
        "retries": task.retries,
        "timeout_s": task.timeout,
    }


def _describe_parameter(parameter: inspect.Parameter, annotation: Any) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": parameter.name,
        "type": shapes.describe_type(annotation),
        "required": parameter.default is parameter.empty,
    }
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        described["problem"] = f"`{parameter}` cannot be given by name"
        described["required"] = parameter.kind == parameter.POSITIONAL_ONLY and described["required"]
    if parameter.default is not parameter.empty:
        described["default_text"] = _short(parameter.default)
        try:
            described["default"] = json.loads(json.dumps(parameter.default))
        except (TypeError, ValueError):
            described["default"] = None
    return described


def _short(value: Any) -> str:
    text = os.path.basename(value) if isinstance(value, os.PathLike) else repr(value)
    return text if len(text) < 80 else text[:80] + "…"


def _relative(path: str, root: str) -> str:
    real = os.path.realpath(path)
    return real[len(root) + 1 :] if real.startswith(root + os.sep) else path


def _failure(exc: BaseException, root: str) -> dict[str, Any]:
    """What user code raised, with its own frames only."""
    formatted = traceback.TracebackException.from_exception(exc)
    link: traceback.TracebackException | None = formatted
    while link is not None:
        kept = [frame for frame in link.stack if not frame.filename.startswith((_OURS, "<frozen"))]
        shortened = [traceback.FrameSummary(_relative(f.filename, root), f.lineno, f.name, line=f.line) for f in kept]
        link.stack = traceback.StackSummary.from_list(shortened)
        link = link.__cause__ or link.__context__
    return {"code": type(exc).__name__, "message": str(exc), "traceback": "".join(formatted.format())}


def main() -> None:
    """Describe, and answer whatever happens."""
    request = json.loads(sys.argv[1])
    answer_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    root = request["root"]
    try:
        answer: dict[str, Any] = {"manifest": describe(request["module"], request["roots"], root)}
    except RunLocalError as exc:
        answer = {"error": {"what": exc.what, "why": exc.why, "hint": exc.hint}}
    except BaseException as exc:  # noqa: BLE001  importing user code may raise anything, sys.exit included
        answer = {"failure": _failure(exc, root)}
    json.dump(answer, answer_to)
    answer_to.flush()
    os._exit(0)  # a thread that the user's code started must not keep us


if __name__ == "__main__":
    main()
