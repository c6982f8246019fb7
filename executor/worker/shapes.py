"""The types of a task's parameters as plain data, and JSON made into the arguments that they ask for.

    describe_type(annotation) → {"kind": …, "text": …}     travels in the manifest
    check(type, value)                                     on the host before anything starts, and again in the container
    from_json(annotation, value, files)                    in the container

The kinds are those of `manifest.Parameter`. An annotation that means nothing here, because it cannot be resolved or is
a class of a package, is `any`: its value is passed on as it is.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import difflib
import enum
import inspect
import json
import pathlib
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Callable

from executor.errors import UsageError

if sys.version_info >= (3, 14):
    import annotationlib

#: Answers what stands for a path: called with its JSON and where it stands, such as `inputs[2]`.
TakePath = Callable[[Any, str], Any]

_SCALARS = {int: "int", float: "float", bool: "bool", str: "str"}
_DATES = {datetime.date: "date", datetime.datetime: "datetime"}
_LISTS = (list, set, frozenset)
_SEQUENCES = (collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_UNIONS = (typing.Union, getattr(types, "UnionType", typing.Union))
_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "path": "the path of a file",
    "date": "a date like 2024-12-31",
    "datetime": "a date and time like 2024-12-31T23:59:00",
    "list": "a list",
    "tuple": "a list",
    "dict": "an object",
    "record": "an object",
}
_MOST_TEXT = 60


@dataclasses.dataclass(frozen=True)
class _Shape:
    """A type as plain data, and what makes a checked JSON value into one of that type."""

    doc: dict[str, Any]
    build: Callable[[Any], Any] = lambda value: value


def describe_type(annotation: Any) -> dict[str, Any]:
    """The plain data of a type; `inspect.Parameter.empty` and a text that could not be resolved are `any`."""
    return _shape(annotation, ()).doc


def from_json(annotation: Any, value: Any, files: Mapping[str, str], at: str = "value") -> Any:
    """The argument that JSON means for this annotation; `{"$file": key}` is the file `files[key]`.

    Raises `UsageError` that says where the value is wrong; `at` names the value there.
    """
    shape = _shape(annotation, ())

    def take(doc: Any, at: str) -> pathlib.Path:
        if not isinstance(doc, dict) or doc.get("$file") not in files:
            raise _unexpected("path", doc, at)
        return pathlib.Path(files[doc["$file"]])

    return shape.build(check(shape.doc, value, at, take))


def arguments(function: Callable[..., Any], value: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """The keyword arguments of a function, from JSON by parameter name."""
    hints = resolve_hints(function)
    return {name: from_json(hints.get(name, Any), doc, files, name) for name, doc in value.items()}


def resolve_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each parameter; the text of it where it names what is not there."""
    found = {}
    names = getattr(inspect.unwrap(function), "__globals__", {})
    for name, annotation in _annotations(function).items():
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        try:
            found[name] = typing.get_type_hints(holder, globalns=names)[name]
        except Exception:  # noqa: BLE001  evaluating an annotation runs user code
            found[name] = annotation
    return found


def signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function, whatever its annotations name."""
    if sys.version_info >= (3, 14):
        return inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(function)


def check(doc: Mapping[str, Any], value: Any, at: str, take: TakePath) -> Any:
    """The value if it is of the described type, every path in it replaced by what `take` answers for it.

    Raises `UsageError` that says which element is wrong: `scores[2]: expected a number, got "x"`.
    """
    kind = doc["kind"]
    if kind == "any":
        return _check_any(value, at, take)
    if kind == "optional":
        return None if value is None else check(doc["item"], value, at, take)
    if kind == "literal":
        if not any(type(value) is type(choice) and value == choice for choice in doc["choices"]):
            raise _wrong(at, "one of " + ", ".join(map(_render, doc["choices"])), value)
        return value
    if kind == "path":
        return take(value, at)
    if not _is_of_kind(kind, value):
        raise _unexpected(kind, value, at)
    if kind == "list":
        return [check(doc["item"], each, f"{at}[{index}]", take) for index, each in enumerate(value)]
    if kind == "dict":
        return {key: check(doc["value"], each, f"{at}[{_render(key)}]", take) for key, each in value.items()}
    if kind == "tuple":
        return _check_tuple(doc["items"], value, at, take)
    return _check_record(doc["fields"], value, at, take) if kind == "record" else value


def _check_any(value: Any, at: str, take: TakePath) -> Any:
    """Files are found without a type, too: an older Python in the container may not understand the annotation."""
    if isinstance(value, dict):
        doc = {key: _check_any(each, f"{at}[{_render(key)}]", take) for key, each in value.items()}
        return take(value, at) if set(value) == {"$file"} else doc
    return [_check_any(each, f"{at}[{n}]", take) for n, each in enumerate(value)] if isinstance(value, list) else value


def _is_of_kind(kind: str, value: Any) -> bool:
    if kind == "float" and isinstance(value, float):
        return True
    if kind in ("int", "float"):
        fits = isinstance(value, int) and (kind == "int" or abs(value) <= sys.float_info.max)
        return fits and not isinstance(value, bool)
    if kind in ("date", "datetime"):
        return isinstance(value, str) and _parse_date(kind, value) is not None
    wanted = {"bool": bool, "str": str, "list": list, "tuple": list, "dict": dict, "record": dict}
    return isinstance(value, wanted[kind])


def _check_tuple(items: list[Mapping[str, Any]], value: list[Any], at: str, take: TakePath) -> list[Any]:
    if len(value) != len(items):
        raise _wrong(at, f"a list of {len(items)}", value)
    return [check(item, each, f"{at}[{n}]", take) for n, (item, each) in enumerate(zip(items, value))]


def _check_record(
    fields: Mapping[str, Mapping[str, Any]], value: Mapping[str, Any], at: str, take: TakePath
) -> dict[str, Any]:
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            raise UsageError(
                f"{at}: there is no `{name}`",
                why=f"what there is: {', '.join(fields)}",
                hint=f"did you mean `{near[0]}`?" if near else "",
            )
    for name, field in fields.items():
        if field["required"] and name not in value:
            raise UsageError(f"{at}: `{name}` is missing")
    return {name: check(fields[name]["type"], each, f"{at}.{name}", take) for name, each in value.items()}


def _unexpected(kind: str, value: Any, at: str) -> UsageError:
    return _wrong(at, _EXPECTED[kind], value)


def _wrong(at: str, expected: str, value: Any) -> UsageError:
    return UsageError(f"{at}: expected {expected}, got {_render(value)}")


def _render(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + "…"


# -- annotations -------------------------------------------------------------------------------------------------------


def _shape(annotation: Any, inside: tuple[type, ...]) -> _Shape:
    """`inside`: the dataclasses around this annotation, because one that holds itself has no end."""
    origin = typing.get_origin(annotation)
    if origin is not None:
        shape = _generic_shape(origin, typing.get_args(annotation), inside)
    elif isinstance(annotation, type):
        shape = _class_shape(annotation, inside)
    else:
        shape = _Shape({"kind": "any"})
    return _Shape({**shape.doc, "text": _text(annotation)}, shape.build)


def _class_shape(annotation: type, inside: tuple[type, ...]) -> _Shape:
    if annotation in _SCALARS:
        return _Shape({"kind": _SCALARS[annotation]}, float if annotation is float else annotation)
    if annotation in _DATES:
        kind = _DATES[annotation]
        return _Shape({"kind": kind}, lambda value: _parse_date(kind, value))
    if issubclass(annotation, pathlib.PurePath):
        return _Shape({"kind": "path"})
    if issubclass(annotation, enum.Enum):
        return _enum_shape(annotation)
    if dataclasses.is_dataclass(annotation) and annotation not in inside:
        return _record_shape(annotation, (*inside, annotation))
    if annotation in (*_LISTS, *_SEQUENCES, *_MAPPINGS):
        return _generic_shape(annotation, (), inside)
    if annotation is tuple:
        return _generic_shape(tuple, (Any, ...), inside)
    return _Shape({"kind": "any"})


def _generic_shape(origin: Any, args: tuple[Any, ...], inside: tuple[type, ...]) -> _Shape:
    if origin in _UNIONS and type(None) in args:
        item = _shape(typing.Union[tuple(arg for arg in args if arg is not type(None))], inside)
        return _Shape(
            {"kind": "optional", "item": item.doc}, lambda value: None if value is None else item.build(value)
        )
    if origin is typing.Literal and all(type(arg) in (str, int, bool, type(None)) for arg in args):
        return _Shape({"kind": "literal", "choices": list(args)})
    if origin in (*_LISTS, *_SEQUENCES) or (origin is tuple and args[1:] == (...,)):
        item = _shape(args[0] if args else Any, inside)
        make = origin if origin in (*_LISTS, tuple) else list
        return _Shape({"kind": "list", "item": item.doc}, lambda value: make(map(item.build, value)))
    if origin in _MAPPINGS and (not args or args[0] in (str, Any)):
        item = _shape(args[1] if args else Any, inside)
        return _Shape(
            {"kind": "dict", "value": item.doc}, lambda value: {name: item.build(each) for name, each in value.items()}
        )
    if origin is tuple and args:
        return _tuple_shape([_shape(arg, inside) for arg in args])
    return _Shape({"kind": "any"})


def _tuple_shape(items: list[_Shape]) -> _Shape:
    return _Shape(
        {"kind": "tuple", "items": [item.doc for item in items]},
        lambda value: tuple(item.build(each) for item, each in zip(items, value)),
    )


def _enum_shape(annotation: type[enum.Enum]) -> _Shape:
    """Members are given by value where all values are text, otherwise by name."""
    values = [member.value for member in annotation]
    if all(isinstance(value, str) for value in values):
        return _Shape({"kind": "literal", "choices": values}, annotation)
    return _Shape({"kind": "literal", "choices": [member.name for member in annotation]}, lambda name: annotation[name])


def _record_shape(annotation: Any, inside: tuple[type, ...]) -> _Shape:
    try:
        hints = typing.get_type_hints(annotation)
    except Exception:  # noqa: BLE001  evaluating an annotation runs user code
        hints = {}
    fields = {field.name: field for field in dataclasses.fields(annotation) if field.init}
    shapes = {name: _shape(hints.get(name, field.type), inside) for name, field in fields.items()}
    doc = {name: {"type": shapes[name].doc, "required": _is_required(field)} for name, field in fields.items()}
    return _Shape(
        {"kind": "record", "fields": doc},
        lambda value: annotation(**{name: shapes[name].build(each) for name, each in value.items()}),
    )


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _parse_date(kind: str, text: str) -> Any:
    if kind == "datetime" and text.endswith("Z"):
        text = text[:-1] + "+00:00"  # before 3.11, `fromisoformat` does not know it
    try:
        return (datetime.datetime if kind == "datetime" else datetime.date).fromisoformat(text)
    except ValueError:
        return None


def _text(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    if isinstance(annotation, (str, typing.ForwardRef)):
        return str(getattr(annotation, "__forward_arg__", annotation))
    text = inspect.formatannotation(annotation)
    return text.replace("pathlib._local.", "").replace("pathlib.", "")  # in 3.13, the class lives there


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        return annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF)
    return dict(getattr(function, "__annotations__", {}))
