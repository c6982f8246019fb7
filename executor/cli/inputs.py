"""Options of a workflow's command, made from the signature of its task, and what was given as inputs.

sequence_data: Path       --sequence-data FILE     must exist; its content travels
models: int = 5           --models INT
relax: bool = True        --relax / --no-relax
ranges: list[int]         --ranges '[1, 2]'        lists and objects are JSON
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import click

from executor.errors import UsageError
from executor.manifest import Parameter, TaskEntry
from executor.worker import shapes

_TAKEN_PREFIX = "--arg-"


def options(task: TaskEntry, taken: Collection[str]) -> list[click.Option]:
    """An option for each parameter; a name that is `taken` gets the prefix `--arg-`."""
    problem = next((parameter.problem for parameter in task.parameters if parameter.problem), "")
    if problem:
        raise UsageError(
            f"`{task.name}` cannot be run from the command line",
            why=problem,
            hint="call it from another task, or give its parameters names",
        )
    return [_option(parameter, taken) for parameter in task.parameters]


def read(task: TaskEntry, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Path]]:
    """The inputs as JSON, and the files that they name by key; raises `UsageError` for what is missing or wrong.

    What was not given is left out: the task's own default holds where it runs.
    """
    inputs: dict[str, Any] = {}
    files: dict[str, Path] = {}
    lacking = [p for p in task.parameters if p.required and values.get(_variable(p)) is None]
    if lacking:
        names = ", ".join(f"`{_flag(p)}` ({p.type['text']})" for p in lacking)
        raise UsageError(
            f"`{task.short_name}` needs {names}",
            hint=f"`run-local {task.short_name} --help` shows what it can be given",
        )
    for parameter in task.parameters:
        given = values.get(_variable(parameter))
        if given is not None:
            value = _parse(parameter.type, given, parameter.name, files)
            shapes.check(parameter.type, value, parameter.name)
            inputs[parameter.name] = value
    return inputs, files


def _variable(parameter: Parameter) -> str:
    return f"parameter_{parameter.name.lower()}"


def _flag(parameter: Parameter) -> str:
    return "--" + parameter.name.replace("_", "-").strip("-")


def _option(parameter: Parameter, taken: Collection[str]) -> click.Option:
    flag = _flag(parameter)
    if flag in taken:
        flag = _TAKEN_PREFIX + flag.removeprefix("--")
    kind = parameter.type["kind"]
    declared = f"{flag}/--no-{flag.removeprefix('--')}" if kind == "bool" else flag
    default = "required" if parameter.required else f"default: {parameter.default_text}"
    return click.Option(
        [declared, _variable(parameter)],
        default=None,
        metavar=None if kind == "bool" else _metavar(parameter.type),
        help=f"{parameter.type['text']}; {default}",
    )


def _metavar(type: Mapping[str, Any]) -> str:
    names = {"int": "INT", "float": "NUMBER", "str": "TEXT", "path": "FILE", "list": "JSON", "dict": "JSON"}
    if type["kind"] == "optional":
        return _metavar(type["item"])
    if type["kind"] == "literal":
        return "|".join(map(str, type["choices"]))
    return names.get(type["kind"], "TEXT")


def _parse(type: Mapping[str, Any], text: Any, at: str, files: dict[str, Path]) -> Any:
    """JSON for what stands on the command line."""
    kind = type["kind"]
    if kind == "optional":
        return None if text == "null" else _parse(type["item"], text, at, files)
    if kind == "path":
        return _file(str(text), at, files)
    if kind in ("int", "float"):
        try:
            return int(text) if kind == "int" else float(text)
        except ValueError:
            raise UsageError(
                f"{at}: expected {'a whole number' if kind == 'int' else 'a number'}, got {text!r}"
            ) from None
    if kind == "literal" and text not in type["choices"]:
        return next((choice for choice in type["choices"] if str(choice) == text), text)
    if kind in ("list", "dict"):
        return _parse_json(type, str(text), at, files)
    return text


def _parse_json(type: Mapping[str, Any], text: str, at: str, files: dict[str, Path]) -> Any:
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise UsageError(
            f"{at}: expected {type['text']} as JSON, got {text[:80]!r}",
            why=str(exc),
            hint=f"for example `--{at} '[1, 2]'`",
        ) from None
    return _with_files(type, value, at, files)


def _with_files(type: Mapping[str, Any], value: Any, at: str, files: dict[str, Path]) -> Any:
    """JSON in which every text that stands for a path is a file that exists."""
    if type["kind"] == "path" and isinstance(value, str):
        return _file(value, at, files)
    if type["kind"] == "list" and isinstance(value, list):
        return [_with_files(type["item"], each, f"{at}[{number}]", files) for number, each in enumerate(value)]
    if type["kind"] == "dict" and isinstance(value, dict):
        return {key: _with_files(type["value"], each, f"{at}[{key!r}]", files) for key, each in value.items()}
    return value


def _file(text: str, at: str, files: dict[str, Path]) -> dict[str, str]:
    path = Path(text).expanduser()
    if path.is_dir():
        raise UsageError(
            f"{at}: `{text}` is a folder", why="folders cannot be passed yet", hint="pass its files one by one"
        )
    if not path.exists():
        raise UsageError(f"{at}: there is no file `{text}`", why=f"looked at `{path.absolute()}`")
    if not path.is_file():
        raise UsageError(f"{at}: `{text}` is not a regular file")
    try:
        path.open("rb").close()
    except OSError as exc:
        raise UsageError(f"{at}: `{text}` cannot be read", why=str(exc.strerror)) from exc
    key = f"{at}-{len(files)}"
    files[key] = path
    return {"$file": key}
