"""The types of a task's parameters as plain data, and JSON made into the arguments that they ask for.

    describe_type(annotation) → {"kind": …, "text": …}     travels in the manifest
    check(type, value)                                     on the host before anything starts, and again in the container
    from_json(annotation, value, files)                    in the container

The kinds are those of `manifest.Parameter`. An annotation that means nothing here, because it cannot be resolved or is
a class of a package, is `any`: its value is passed on as it is.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import datetime
import difflib
import enum
import inspect
import itertools
import json
import numbers
import os
import pathlib
import reprlib
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable

from executor.errors import UsageError
from executor.files import Dir, File

if sys.version_info >= (3, 14):
    import annotationlib

#: Answers what stands for a path: called with its JSON, where it stands, such as `inputs[2]`, and its kind.
TakePath = Callable[[Any, str, str], Any]

_PATHS = ("path", "file", "dir")
_MOST_ELEMENTS = 100  # of a container are looked at, before a call

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
    "path": "the path of a file or folder",
    "file": "the path of a file",
    "dir": "the path of a folder",
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

    def take(doc: Any, at: str, kind: str) -> pathlib.Path:
        if not isinstance(doc, dict) or doc.get("$file") not in files:
            raise _unexpected(kind, doc, at)
        return pathlib.Path(files[doc["$file"]])

    checked = check(shape.doc, value, at, take)
    try:
        return shape.build(checked)
    except UsageError as exc:
        raise UsageError(f"{at}: {exc.what}", exc.why) from None


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
    if kind in ("any", "union"):
        return _check_any(value, at, take) if kind == "any" else _check_union(doc["items"], value, at, take)
    if kind == "optional":
        return None if value is None else check(doc["item"], value, at, take)
    if kind == "literal":
        if not any(type(value) is type(choice) and value == choice for choice in doc["choices"]):
            raise _wrong(at, "one of " + ", ".join(map(_render, doc["choices"])), value)
        return value
    if kind in _PATHS:
        return take(value, at, kind)
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
        return take(value, at, "path") if set(value) == {"$file"} else doc
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


def _check_union(items: list[Mapping[str, Any]], value: Any, at: str, take: TakePath) -> Any:
    """As the first type that fits; a text that is no file is a text, where that may be, too."""
    for item in sorted(items, key=lambda item: item["kind"] in (*_PATHS, "any")):
        with contextlib.suppress(UsageError):
            return check(item, value, at, take)
    raise _wrong(at, " or ".join(_EXPECTED.get(item["kind"], item["text"]) for item in items), value)


def describe_parameters(function: Callable[..., Any]) -> list[dict[str, Any]]:
    """The parameters of a function as `check_call` needs them."""
    hints = resolve_hints(function)
    empty = inspect.Parameter.empty
    return [
        {
            "name": name,
            "type": describe_type(hints.get(name, each.annotation)),
            "required": each.default is empty,
            "kind": each.kind.name.lower(),
        }
        for name, each in signature(function).parameters.items()
    ]


def check_call(
    parameters: Sequence[Mapping[str, Any]], args: Sequence[Any], kwargs: Mapping[str, Any], task: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, in which what was given for a path is one of the kind that is asked for.

    Refuses one whose arguments are missing, unknown, given twice or of a wrong type, with all that is wrong.
    """
    named = {each["name"]: each for each in parameters if not each["kind"].startswith("var_")}
    kinds = {each["kind"] for each in parameters}
    in_order = [each for each in named.values() if each["kind"].startswith("positional_")]
    given = {each["name"]: value for each, value in zip(in_order, args)}
    wrong = []
    if len(args) > len(in_order) and "var_positional" not in kinds:
        wrong.append(f"it takes {len(in_order)} values by position, and {len(args)} are given")
    for name, value in kwargs.items():
        if name in given:
            wrong.append(f"`{name}` is given twice")
        elif name in named and named[name]["kind"] != "positional_only":
            given[name] = value
        elif "var_keyword" not in kinds:
            near = difflib.get_close_matches(name, named, 1)
            wrong.append(f"there is no `{name}`" + (f"; did you mean `{near[0]}`?" if near else ""))
    wrong += [f"`{name}` is missing" for name, each in named.items() if each["required"] and name not in given]
    wrong += filter(None, (_misfit(named[name]["type"], value, name) for name, value in given.items()))
    if wrong:
        shown = ", ".join(_shown(each) for each in parameters)
        hint = f"it is `{task.rpartition('.')[2]}({shown})`"
        raise UsageError(f"task `{task}` cannot be called like this", why="\n".join(wrong), hint=hint)
    types = {name: each["type"] for name, each in named.items()}
    positional = [_as_path(each["type"], value) for each, value in zip(in_order, args)]
    by_name = {name: _as_path(types[name], value) if name in types else value for name, value in kwargs.items()}
    return (*positional, *args[len(positional) :]), by_name


def _as_path(doc: Mapping[str, Any], value: Any) -> Any:
    """A path, a `File` or a `Dir`, where one is asked for and another, or a text, is given."""
    kind = doc["item"]["kind"] if doc["kind"] == "optional" else doc["kind"]
    make: Any = {"path": pathlib.Path, "file": File, "dir": Dir}.get(kind)
    if make is None or isinstance(value, make) or not isinstance(value, (str, os.PathLike)):
        return value
    return make(value)


def _shown(parameter: Mapping[str, Any]) -> str:
    """A parameter as it stands in a signature."""
    stars = {"var_positional": "*", "var_keyword": "**"}.get(parameter["kind"], "")
    text = f": {parameter['type']['text']}" if parameter["type"].get("text") else ""
    return f"{stars}{parameter['name']}{text}" + ("" if parameter["required"] or stars else " = …")


def _misfit(doc: Mapping[str, Any], value: Any, at: str) -> str:
    """What is wrong with a value of Python's own for a described type, or nothing.

    It says no only where that is sure: numbers of NumPy are numbers, any iterable is a list, and what cannot be opened
    here is anything.
    """
    kind = doc["kind"]
    if kind == "any" or getattr(type(value), "__run_local_opaque__", False) or isinstance(value, enum.Enum):
        return ""
    if doc.get("model") and type(value).__module__ != "builtins":
        return ""
    if kind == "optional":
        return "" if value is None else _misfit(doc["item"], value, at)
    if kind == "union":
        misfits = [_misfit(item, value, at) for item in doc["items"]]
        return misfits[0] if all(misfits) else ""
    if kind == "literal":
        expected = "one of " + ", ".join(map(_render, doc["choices"]))
        return "" if value in doc["choices"] else _told(at, expected, value)
    if not _is_a(kind, value):
        return _told(at, _EXPECTED[kind] if kind != "record" else f"a `{doc['text']}`", value)
    if kind == "tuple" and len(value) != len(doc["items"]):
        return _told(at, f"a tuple of {len(doc['items'])}", value)
    return next(filter(None, (_misfit(*each) for each in _inside(doc, value, at))), "")


def _inside(doc: Mapping[str, Any], value: Any, at: str) -> Iterator[tuple[Mapping[str, Any], Any, str]]:
    """The first elements of a container, with their types and places."""
    kind = doc["kind"]
    if kind == "list" and isinstance(value, (list, tuple)):
        yield from ((doc["item"], each, f"{at}[{n}]") for n, each in enumerate(value[:_MOST_ELEMENTS]))
    elif kind == "dict" and isinstance(value, dict):
        for key, each in itertools.islice(value.items(), _MOST_ELEMENTS):
            yield doc["value"], each, f"{at}[{key!r}]"
    elif kind == "tuple":
        yield from ((item, each, f"{at}[{n}]") for n, (item, each) in enumerate(zip(doc["items"], value)))


def _is_a(kind: str, value: Any) -> bool:
    wanted: dict[str, Any] = {
        "int": numbers.Integral,
        "float": numbers.Real,
        "str": str,
        **dict.fromkeys(_PATHS, (str, os.PathLike)),
        "date": datetime.date,
        "datetime": datetime.datetime,
        "dict": collections.abc.Mapping,
        "tuple": (tuple, list),
    }
    if kind in wanted:
        return isinstance(value, wanted[kind])
    if kind == "bool":
        return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")
    if kind == "list":
        plain = (str, bytes, bytearray, collections.abc.Mapping, numbers.Number, type(None))
        return not isinstance(value, plain)
    return type(value).__module__ != "builtins" or isinstance(value, dict)  # a record


def _told(at: str, expected: str, value: Any) -> str:
    text = _render(value) if isinstance(value, (str, int, float, bool, type(None))) else reprlib.repr(value)
    return f"`{at}` must be {expected}, and is {text}"


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
    if issubclass(annotation, (File, Dir)):
        return _Shape({"kind": "dir" if issubclass(annotation, Dir) else "file"}, annotation)
    if hasattr(annotation, "model_fields") and hasattr(annotation, "model_validate"):
        model = {"kind": "dict", "value": {"kind": "any", "text": ""}, "model": True}
        return _Shape(model, lambda value: _validate(annotation, value))  # of pydantic, which checks what is in it
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
    if origin is getattr(typing, "Annotated", None):
        return _shape(args[0], inside)
    if origin in _UNIONS:
        items = [_shape(arg, inside) for arg in args]
        return _Shape(
            {"kind": "union", "items": [item.doc for item in items]}, lambda value: _build_union(items, value)
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


def _validate(annotation: Any, value: Any) -> Any:
    try:
        return annotation.model_validate(value)
    except ValueError as exc:  # pydantic's errors are
        raise UsageError(f"this is no `{annotation.__name__}`", why=str(exc)) from None


def _tuple_shape(items: list[_Shape]) -> _Shape:
    return _Shape(
        {"kind": "tuple", "items": [item.doc for item in items]},
        lambda value: tuple(item.build(each) for item, each in zip(items, value)),
    )


def _build_union(items: list[_Shape], value: Any) -> Any:
    """As the first type that what was checked fits; a path has become one already."""
    for item in sorted(items, key=lambda item: item.doc["kind"] in (*_PATHS, "any")):
        if isinstance(value, pathlib.Path) != (item.doc["kind"] in _PATHS):
            continue
        with contextlib.suppress(UsageError):
            return item.build(check(item.doc, value, "value", lambda each, *_: each))
    return value


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
