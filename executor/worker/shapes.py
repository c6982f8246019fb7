"""Types of parameters as plain data, and arguments made from JSON.

`describe_type` says what a parameter takes, on the side that can see the annotation. `check` holds JSON against that, on
either side; the host does before anything starts. `arguments` makes the real arguments where the task runs.

    {"kind": "int", "text": "int"}            int, float, bool, str, path, any
    {"kind": "list", "item": {…}, …}          list, and tuple and set as lists
    {"kind": "dict", "value": {…}, …}         keys are texts
    {"kind": "optional", "item": {…}, …}      or null
    {"kind": "literal", "choices": […], …}    one of these; of an Enum, its values
"""

from __future__ import annotations

import enum
import inspect
import pathlib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Union

from executor.errors import UsageError

_PLAIN: dict[Any, str] = {int: "int", float: "float", bool: "bool", str: "str", pathlib.Path: "path"}
_CLASSES: dict[str, Any] = {"int": int, "float": (int, float), "str": str}
_NAMES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "path": "a file"}
_UNION_TYPES: tuple[Any, ...] = (Union, getattr(types, "UnionType", Union))


def describe_type(annotation: Any) -> dict[str, Any]:
    """What a parameter with this annotation takes; what is not understood is `any`."""
    return {**_describe(annotation), "text": _text(annotation)}


def check(type: Mapping[str, Any], value: Any, at: str) -> None:  # noqa: C901  one branch a kind
    """Raise `UsageError` where a JSON value is not of a type; `at` names it, such as `scores[2]`."""
    kind = type["kind"]
    if kind == "any" or (kind == "optional" and value is None):
        return
    if kind == "optional":
        check(type["item"], value, at)
    elif kind == "literal":
        if value not in type["choices"]:
            raise _wrong(at, "one of " + ", ".join(map(repr, type["choices"])), value)
    elif kind == "list":
        if not isinstance(value, list):
            raise _wrong(at, "a list", value)
        for number, each in enumerate(value):
            check(type["item"], each, f"{at}[{number}]")
    elif kind == "dict":
        if not isinstance(value, dict):
            raise _wrong(at, "an object", value)
        for key, each in value.items():
            check(type["value"], each, f"{at}[{key!r}]")
    elif not _is_plain(kind, value):
        raise _wrong(at, _NAMES[kind], value)


def arguments(function: Callable[..., Any], inputs: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of a call from JSON; a file is `{"$file": key}`, and `files` says where it is."""
    annotations = parameter_annotations(function)
    return {name: _make(annotations.get(name, Any), value, files, name) for name, value in inputs.items()}


def parameter_annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function, resolved where they can be; texts that cannot stay texts."""
    try:
        return typing.get_type_hints(function)
    except Exception:  # noqa: BLE001  a name that is not defined here, or a stub
        found = {}
        for parameter in inspect.signature(function).parameters.values():
            found[parameter.name] = _resolve(parameter.annotation, function)
        return found


def _resolve(annotation: Any, function: Callable[..., Any]) -> Any:
    if not isinstance(annotation, str):
        return Any if annotation is inspect.Parameter.empty else annotation
    try:
        return eval(annotation, getattr(function, "__globals__", {}))  # noqa: S307  the author's own annotation
    except Exception:  # noqa: BLE001  it names what is not here
        return annotation


def _describe(annotation: Any) -> dict[str, Any]:
    if _hashable(annotation) and annotation in _PLAIN:
        return {"kind": _PLAIN[annotation]}
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _UNION_TYPES and type(None) in parts and len(parts) == 2:
        return {"kind": "optional", "item": describe_type(next(part for part in parts if part is not type(None)))}
    if origin is typing.Literal:
        return {"kind": "literal", "choices": list(parts)}
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return {"kind": "literal", "choices": [member.value for member in annotation]}
    container = origin or annotation
    if container in (list, set, frozenset) or (container is tuple and len(parts) == 2 and parts[1] is ...):
        return {"kind": "list", "item": describe_type(parts[0] if parts else Any)}
    if container is dict:
        return {"kind": "dict", "value": describe_type(parts[1] if parts else Any)}
    return {"kind": "any"}


def _make(annotation: Any, value: Any, files: Mapping[str, str], at: str) -> Any:
    """A value of the annotated type from JSON."""
    check(describe_type(annotation), value, at)
    if isinstance(value, dict) and set(value) == {"$file"}:
        return pathlib.Path(files[value["$file"]])
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _UNION_TYPES and value is not None and len(parts) == 2 and type(None) in parts:
        return _make(next(part for part in parts if part is not type(None)), value, files, at)
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return annotation(value)
    if annotation is float and isinstance(value, int):
        return float(value)
    if isinstance(value, list):
        made = [_make(parts[0] if parts else Any, each, files, f"{at}[{n}]") for n, each in enumerate(value)]
        container = origin or annotation
        return container(made) if container in (set, frozenset, tuple) else made
    if isinstance(value, dict):
        item = parts[1] if origin is dict else Any
        return {key: _make(item, each, files, f"{at}[{key!r}]") for key, each in value.items()}
    return value


def _is_plain(kind: str, value: Any) -> bool:
    if kind == "path":
        return isinstance(value, dict) and set(value) == {"$file"}
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    return isinstance(value, _CLASSES[kind])


def _wrong(at: str, expected: str, value: Any) -> UsageError:
    shown = repr(value)
    return UsageError(f"{at}: expected {expected}, got {shown if len(shown) < 80 else shown[:80] + '…'}")


def _hashable(annotation: Any) -> bool:
    try:
        hash(annotation)
    except TypeError:
        return False
    return True


def _text(annotation: Any) -> str:
    if annotation is Any or annotation is inspect.Parameter.empty:
        return "any"
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return annotation if isinstance(annotation, str) else str(annotation).replace("typing.", "").replace("pathlib.", "")
