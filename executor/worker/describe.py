"""The process that imports a workflow, on the host, and answers with a manifest as JSON; see `executor.describe`.

    {"manifest": …}  or  {"error": {"what", "why", "hint"}}      into the file descriptor that the request names

Module-level code of the user runs here and nowhere else on the host. What it prints, does to the working directory or
leaves running is no business of the answer, and this process ends as soon as that is written.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pathlib
import re
import signal
import sys
import traceback
from typing import Any, NoReturn

from executor import authoring
from executor.errors import ProjectError, RunLocalError
from executor.worker import shapes, stubs
from executor.worker.calls import calls_of
from executor.worker.tracebacks import render_traceback, short_name, user_frames

_MOST_TEXT = 200
_NO_VALUE: dict[Any, str] = {
    inspect.Parameter.POSITIONAL_ONLY: "it can only be given by position",
    inspect.Parameter.VAR_POSITIONAL: "it takes any number of values without names",
    inspect.Parameter.VAR_KEYWORD: "it takes values of any name",
}


class _TooSlow(BaseException):
    """The import takes too long."""


def main(path: list[str]) -> NoReturn:
    """Answer the request in the first argument; `path` is what user code finds on sys.path after its own folders.

    root, roots:  the project, and its folders for sys.path, absolute
    module, file: what to import, and its file relative to the root, for messages
    also:         more modules to import, because tasks or environments that they declare are referred to by name
    answer:       file descriptor
    patience_s:   seconds that the import may take
    """
    request = json.loads(sys.argv[1])
    os.set_inheritable(request["answer"], False)
    sys.argv = [request["file"]]
    sys.path[:] = [*request["roots"], *path]
    answer = _answer(request)
    with open(request["answer"], "w", encoding="utf-8") as file:
        json.dump(answer, file)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # without waiting for threads that the user's modules may have started


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"manifest": _describe(request)}
    except RunLocalError as exc:
        place = _place(exc, request["root"])
        return _error(exc.what, "\n".join(filter(None, (exc.why, place))), exc.hint)
    except _TooSlow as exc:
        what = f"`{request['file']}` is not imported after {request['patience_s']:g} s"
        where, _, _ = render_traceback(exc, request["root"]).rstrip().rpartition("\n")
        return _error(what, where, "do slow work in a task, not at module level")
    except SystemExit as exc:
        hint = 'put it under `if __name__ == "__main__":`'
        return _error(
            f"`{request['file']}` ends Python when it is imported", render_traceback(exc, request["root"]), hint
        )
    except BaseException as exc:  # noqa: BLE001  user code may raise anything, and all of it is news
        return _error(f"`{request['file']}` cannot be imported", render_traceback(exc, request["root"]), "")


def _error(what: str, why: str, hint: str) -> dict[str, Any]:
    return {"error": {"what": what, "why": why.rstrip(), "hint": hint}}


def _place(exc: BaseException, root: str) -> str:
    """The user's line that led to an error of ours."""
    frames = user_frames(traceback.extract_tb(exc.__traceback__))
    return f"{short_name(frames[-1].filename, root)}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""


def _describe(request: dict[str, Any]) -> dict[str, Any]:
    missing: dict[str, dict[str, None]] = {}
    stand_ins = stubs.install(
        request["roots"], "", "", lambda name, at: missing.setdefault(name, {}).update({at: None})
    )
    authoring.CALLER.append(_refuse_call)
    signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, request["patience_s"])
    with stand_ins.loading():
        for module in (request["module"], *request["also"]):
            importlib.import_module(module)
        signal.setitimer(signal.ITIMER_REAL, 0)
        environments = list(authoring.ENVIRONMENTS)
        _refuse_twins(environments, request["root"])
        tasks = [task for environment in environments for task in environment.tasks.values()]
        return {
            "root": request["root"],
            "import_roots": [os.path.relpath(root, request["root"]) for root in request["roots"]],
            "environments": [_describe_environment(each, request["root"]) for each in environments],
            "tasks": [_describe_task(task, request["root"]) for task in tasks],
            "missing": {name: list(places) for name, places in missing.items()},
            "references": {name: _declared_at(each, request["root"]) for name, each in authoring.REFERENCES.items()},
        }


def _give_up(*_: object) -> NoReturn:
    raise _TooSlow


def _refuse_call(task: authoring.Task[Any, Any], *_: object) -> NoReturn:
    raise ProjectError(
        f"task `{task.name}` is called while its workflow is imported",
        hint='put the call under `if __name__ == "__main__":`',
    )


def _refuse_twins(environments: list[authoring.TaskEnvironment], root: str) -> None:
    first: dict[str, authoring.TaskEnvironment] = {}
    for environment in environments:
        twin = first.setdefault(environment.name, environment)
        if twin is environment:
            continue
        places = [_declared_at(each, root) for each in (twin, environment)]
        reason = f"at {places[0]} and at {places[1]}"
        if places[0] == places[1]:
            reason = f"at {places[0]}, which was imported twice, under different names"
        raise ProjectError(
            f"environment `{environment.name}` is declared twice",
            why=reason,
            hint="declare it once, in a module of its own, and import it from there",
        )


def _declared_at(declared: authoring.TaskEnvironment | authoring.ReferenceTask, root: str) -> str:
    file, line = declared.declared_at
    return f"{short_name(file, root)}:{line}"


def _describe_environment(environment: authoring.TaskEnvironment, root: str) -> dict[str, Any]:
    at = f"environment `{environment.name}` ({_declared_at(environment, root)})"
    for other in (*environment.depends_on, *environment.extends):
        if not isinstance(other, (authoring.TaskEnvironment, str)):
            raise ProjectError(f"{at}: `{other!r}` is no environment", hint="pass the `TaskEnvironment`, or its name")
    if not isinstance(environment.image, (str, authoring.CondaSpec, type(None))):
        raise ProjectError(f"{at}: `image` must be a path or a `CondaSpec`", why=f"it is {environment.image!r}")
    for each in environment.env_vars.items():
        if not all(isinstance(part, str) for part in each):
            raise ProjectError(f"{at}: `env_vars` must be text", why=f"{each[0]!r} is {each[1]!r}")
    try:
        resources = environment.resources.to_json()
        spec = environment.image.to_json() if isinstance(environment.image, authoring.CondaSpec) else None
    except RunLocalError as exc:
        raise ProjectError(f"{at}: {exc.what}", why=exc.why, hint=exc.hint) from None
    if not isinstance(environment.network, bool):
        raise ProjectError(f"{at}: `network` must be True or False", why=f"it is {environment.network!r}")
    file, line = environment.declared_at
    reuse: Any = environment.reusable
    if not isinstance(reuse, authoring.Reuse) or not authoring.is_texts(reuse.preload):
        raise ProjectError(f"{at}: `reusable` must be `Reuse(preload=[…])`", why=f"it is {reuse!r}")
    return {
        "name": environment.name,
        "image": environment.image if spec is None else None,
        "spec": spec,
        "depends_on": [getattr(other, "name", other) for other in environment.depends_on],
        "extends": [getattr(other, "name", other) for other in environment.extends],
        "preload": list(reuse.preload),
        "fork": bool(reuse.fork),
        "resources": resources,
        "env_vars": environment.env_vars,
        "mounts": _describe_mounts(environment, root, at),
        "secrets": _describe_secrets(environment, at),
        "network": environment.network,
        "file": short_name(file, root),
        "line": line,
    }


def _describe_mounts(environment: authoring.TaskEnvironment, root: str, at: str) -> list[dict[str, Any]]:
    mounts: Any = environment.mounts
    if not isinstance(mounts, (list, tuple)) or not all(isinstance(each, authoring.Mount) for each in mounts):
        raise ProjectError(f"{at}: `mounts` must be a list of `Mount(…)`", why=f"it is {mounts!r}")
    for each in mounts:
        for path in (each.source, "/" if each.target is None else each.target):
            if not isinstance(path, (str, os.PathLike)) or not os.fspath(path) or "\0" in str(path):
                raise ProjectError(f"{at}: a `Mount` must be of paths", why=f"it is {each!r}")
    return [_describe_mount(each, root) for each in mounts]


def _describe_secrets(environment: authoring.TaskEnvironment, at: str) -> list[dict[str, Any]]:
    secrets: Any = environment.secrets
    if not isinstance(secrets, (list, tuple)) or not all(isinstance(each, (str, authoring.Secret)) for each in secrets):
        raise ProjectError(f"{at}: `secrets` must be a list of names or `Secret(…)`")  # what it is may be a value
    made = [authoring.Secret(each) if isinstance(each, str) else each for each in secrets]
    taken = [each.variable for each in made if each.variable]
    for name in taken:
        if taken.count(name) > 1 or name in environment.env_vars:
            raise ProjectError(f"{at}: two things are in the variable `{name}`", hint="name another: `as_env_var=`")
    return [
        {"key": each.key, "group": each.group, "variable": each.variable, "file": each.mount is not None}
        for each in made
    ]


def _describe_mount(mount: authoring.Mount, root: str) -> dict[str, Any]:
    source = os.path.abspath(os.path.join(root, os.path.expanduser(mount.source)))
    target = source if mount.target is None else os.path.normpath(mount.target)
    source, target = (re.sub("^//", "/", path) for path in (source, target))  # POSIX lets a path begin with two
    return {"source": source, "target": target}


def _describe_task(task: authoring.Task[Any, Any], root: str) -> dict[str, Any]:
    function = inspect.unwrap(task.function)
    code = getattr(function, "__code__", None)
    file, line = (code.co_filename, code.co_firstlineno) if code else task.environment.declared_at
    file = short_name(os.path.abspath(file), root)
    _refuse_hidden(task, f"{file}:{line}")
    hints = shapes.resolve_hints(task.function)
    return {
        "name": task.name,
        "environment": task.environment.name,
        "module": task.__module__,
        "qualname": task.__qualname__,
        "file": file,
        "line": line,
        "doc": inspect.getdoc(task.function) or "",
        "parameters": [
            _describe_parameter(each, hints.get(name, each.annotation), root)
            for name, each in shapes.signature(task.function).parameters.items()
        ],
        "retries": task.retries,
        "backoff": task.backoff,
        "timeout_s": task.timeout,
        "cache": task.cache,
        "calls": calls_of(task, root),
        "is_async": task.is_async,
    }


def _refuse_hidden(task: authoring.Task[Any, Any], place: str) -> None:
    """A container finds a task by the name of its function in its module; refuse one that is not found there."""
    found: Any = sys.modules.get(task.__module__)
    for part in task.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not task:
        raise ProjectError(
            f"task `{task.name}` cannot be found by its name",
            why=f"`{task.__qualname__}` of module `{task.__module__}` is not the task that {place} declares",
            hint="declare tasks at the top level of a module, each under a name of its own, with `@env.task` outermost",
        )


def _describe_parameter(parameter: inspect.Parameter, annotation: Any, root: str) -> dict[str, Any]:
    required = parameter.default is inspect.Parameter.empty
    default, text = (None, "") if required else _describe_default(parameter.default, root)
    return {
        "name": parameter.name,
        "type": shapes.describe_type(annotation),
        "required": required and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD),
        "default": default,
        "default_text": text,
        "problem": _NO_VALUE.get(parameter.kind, ""),
        "kind": parameter.kind.name.lower(),
    }


def _describe_default(default: Any, root: str) -> tuple[Any, str]:
    """The default as JSON, or None and a text."""
    if isinstance(default, pathlib.PurePath):
        return None, short_name(str(default), root)
    try:
        if json.loads(json.dumps(default, allow_nan=False)) == default:
            return default, ""
    except (TypeError, ValueError, RecursionError):
        pass
    text = repr(default)
    return None, text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + "…"
