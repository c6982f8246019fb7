"""Options of a workflow's command, made from the signature of its task, and what was given as JSON and files.

sequence_data: Path       --sequence-data FILE     must exist; its content travels
models: int = 5           --models INT
relax: bool = True        --relax / --no-relax
ranges: list[int]         --ranges '[1, 2]'        lists and objects are JSON
anything                  --anything TEXT          without a type: the text as it stands
"""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import click

from executor.errors import UsageError
from executor.manifest import Parameter, TaskEntry
from executor.worker import shapes

_ALWAYS_TAKEN = frozenset({"--help", "-h"})
_AS_JSON = frozenset({"list", "tuple", "dict", "record"})
_MAY_BE_NULL = frozenset({"int", "float", "date", "datetime"}) | _AS_JSON
_METAVARS = {
    "path": "PATH",
    "file": "FILE",
    "dir": "FOLDER",
    "int": "INT",
    "float": "NUMBER",
    "date": "DATE",
    "datetime": "TIME",
}


class WorkflowCommand(click.Command):
    """A command whose mistakes are told as ours are; `--sequence_data` is understood as `--sequence-data`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {**self.context_settings, "token_normalize_func": lambda name: name.replace("_", "-")}

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the docstring with the lines that its author gave it."""
        formatter.write_paragraph()
        with formatter.indentation():
            for line in (self.help or "").splitlines():
                formatter.write(" " * formatter.current_indent * bool(line) + line + "\n")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raise `UsageError` for what click cannot understand, with the nearest options and the usage line."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as exc:
            names = [name for option in self.params for name in (*option.opts, *option.secondary_opts)]
            near = difflib.get_close_matches(exc.option_name, names, 3, 0.5)
            why = f"did you mean {' or '.join(f'`{name}`' for name in near)}?" if near else ""
            raise UsageError(f"there is no option `{exc.option_name}`", why=why, hint=_usage(ctx)) from None
        except click.UsageError as exc:
            what = exc.format_message().rstrip(".")
            raise UsageError(what[:1].lower() + what[1:], hint=_usage(ctx)) from None


def options(task: TaskEntry, taken: Collection[str]) -> list[click.Option]:
    """An option for each parameter; one whose name is `taken` is called `--input-…`.

    Raises `UsageError` for a task with parameters that cannot be given by name.
    """
    for parameter in task.parameters:
        if parameter.problem:
            raise UsageError(
                f"`{task.name}` cannot be run from the command line",
                why=f"of its parameter `{parameter.name}`: {parameter.problem}",
                hint="only other tasks can call it; write a task without such parameters that does",
            )
    flags = _flags(task, taken)
    return [_option(parameter, flags[parameter.name], flags.values()) for parameter in task.parameters]


def read(
    task: TaskEntry, values: Mapping[str, Any], taken: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, Path]]:
    """The inputs as JSON, and the files that they name by key (`{"$file": key}`).

    values: what click made of the command line, by the variables of `options`; None was not given
    taken:  as for `options`, so that an error names the option as it is called

    What was not given is left out: the task's own default holds where it runs. Raises `UsageError` for what is missing,
    of another type, or no file that can be read.
    """
    lacking = [each for each in task.parameters if each.required and values.get(_variable(each)) is None]
    if lacking:
        flags = _flags(task, taken)
        named = ", ".join(f"`{flags[each.name]} {_metavar(each.type)}`" for each in lacking)
        raise UsageError(f"`{task.short_name}` needs {named}", hint=_usage(click.get_current_context(silent=True)))
    files: dict[str, Path] = {}

    def take(given: Any, at: str, kind: str) -> dict[str, str]:
        files[at] = _readable(given, at, kind)
        return {"$file": at}

    inputs = {}
    for each in task.parameters:
        value = values.get(_variable(each))
        if value is not None:
            inputs[each.name] = shapes.check(each.type, _parse(each.type, value, each.name), each.name, take)
    return inputs, files


def _usage(ctx: click.Context | None) -> str:
    return " ".join(ctx.get_usage().split()).replace("Usage:", "usage:") if ctx else ""


def _variable(parameter: Parameter) -> str:
    return f"input_{parameter.name}"


def _flags(task: TaskEntry, taken: Collection[str]) -> dict[str, str]:
    """The option of each parameter, by its name."""
    used = {*taken, *_ALWAYS_TAKEN}
    flags: dict[str, str] = {}
    for parameter in task.parameters:
        flag = "--" + (parameter.name.strip("_").replace("_", "-") or parameter.name)
        while flag in used:
            flag = "--input-" + flag[2:]
        used.add(flag)
        flags[parameter.name] = flag
    return flags


def _option(parameter: Parameter, flag: str, flags: Collection[str]) -> click.Option:
    opposite = "--no-" + flag[2:]
    is_flag = _item(parameter.type)["kind"] == "bool" and opposite not in flags
    return click.Option(
        [_variable(parameter), f"{flag}/{opposite}" if is_flag else flag],
        default=None,
        type=None if is_flag else str,
        metavar=None if is_flag else _metavar(parameter.type),
        help="; ".join(filter(None, (parameter.type["text"], _default(parameter)))),
    )


def _default(parameter: Parameter) -> str:
    if parameter.required:
        return "required"
    if parameter.default_text or isinstance(parameter.default, str):
        return f"default: {parameter.default_text or parameter.default or 'empty'}"
    return f"default: {'none' if parameter.default is None else json.dumps(parameter.default, ensure_ascii=False)}"


def _item(type: Mapping[str, Any]) -> Mapping[str, Any]:
    """The type without its `optional`."""
    return _item(type["item"]) if type["kind"] == "optional" else type


def _metavar(type: Mapping[str, Any]) -> str:
    type = _item(type)
    if type["kind"] == "literal":
        return "|".join(map(str, type["choices"]))
    return "JSON" if type["kind"] in _AS_JSON else _METAVARS.get(type["kind"], "TEXT")


def _parse(type: Mapping[str, Any], given: Any, at: str) -> Any:
    """JSON for the text of an option; where it means none of this type, the text, which `check` then refuses."""
    if type["kind"] == "optional" and given == "null" and _item(type)["kind"] in _MAY_BE_NULL:
        return None
    type = _item(type)
    if type["kind"] in _AS_JSON:
        return _parse_json(type, str(given), at)
    if type["kind"] == "literal":
        return next((each for each in type["choices"] if given in (str(each), json.dumps(each))), given)
    if type["kind"] == "bool":
        return {"true": True, "false": False}.get(str(given).lower(), given)
    if type["kind"] == "union":
        return _parse_union(type, given, at)
    try:
        return {"int": int, "float": float}.get(type["kind"], str)(given)
    except ValueError:
        return given


def _parse_union(type: Mapping[str, Any], given: Any, at: str) -> Any:
    """As the first type that the text can mean; a text is the last that is tried."""
    for item in sorted(type["items"], key=lambda item: item["kind"] in ("str", "path", "file", "dir", "any")):
        with contextlib.suppress(UsageError):
            value = _parse(item, given, at)
            shapes.check(item, value, at, lambda each, *_: each)
            return value
    return given


def _parse_json(type: Mapping[str, Any], text: str, at: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        example = "'[1, 2]'" if type["kind"] in ("list", "tuple") else """'{"name": 1}'"""
        raise UsageError(f"{at}: `{text[:60]}` is not JSON", why=str(exc), hint=f"write it like {example}") from None


def _readable(given: Any, at: str, kind: str) -> Path:
    """The file or folder that is meant; kind: `file`, `dir`, or `path` for either."""
    if not isinstance(given, str):
        expected = {"file": "file", "dir": "folder"}.get(kind, "file or folder")
        raise UsageError(f"{at}: expected the path of a {expected}, got {json.dumps(given)[:60]}")
    path = Path(given).expanduser().absolute()
    if not path.exists():
        there = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, there, 1)
        hint = f"did you mean `{Path(given).with_name(near[0])}`?" if near else ""
        raise UsageError(
            f"{at}: there is no {'folder' if kind == 'dir' else 'file'} `{given}`", why=f"looked at `{path}`", hint=hint
        )
    if path.is_dir() and kind != "file":
        return path
    if not path.is_file() or kind == "dir":
        why = "it is a folder" if path.is_dir() else ""
        raise UsageError(f"{at}: `{given}` is not a {'folder' if kind == 'dir' else 'regular file'}", why=why)
    try:
        path.open("rb").close()
    except OSError as exc:
        raise UsageError(f"{at}: `{given}` cannot be read", why=str(exc.strerror)) from None
    return path
