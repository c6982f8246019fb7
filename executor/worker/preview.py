"""What a person may see of a value without opening it: JSON where it can be, else its type and a short text.

Made where the value was made, because only there its packages are sure to be at hand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import json
import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from executor.worker import opaque

_MOST_BYTES = 256 * 2**10
_MOST_OF_AN_ARGUMENT = 2 * 2**10
_MOST_ARGUMENTS = 50
_MOST_TEXT = 300
_MOST_TEXTS = 50
_DEEPEST_TEXT = 4
_PLAIN = frozenset({"builtins", "pathlib", "pathlib._local", "datetime"})


class _NotJson(Exception):
    """Some part of the value has no JSON form, or all of it has none that is short enough."""


def preview(value: Any, attached: dict[str, int]) -> dict[str, Any]:
    """`{"json": …}` or `{"text": …}`; a file of the value stands as `{"$file": index}`, see `payload.dump`."""
    try:
        doc = _Renderer(attached).render(value, 0)
        if len(json.dumps(doc)) <= _MOST_BYTES:
            return {"json": doc}
    except _NotJson:
        pass
    except Exception:  # noqa: BLE001  a property or __repr__ of the user's may raise anything; it is only a preview
        return {"text": f"<{type(value).__qualname__}>"}
    return {"text": _shorten(value)}


def preview_arguments(
    parameters: Sequence[Mapping[str, Any]] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    attached: dict[str, int],
) -> dict[str, Any]:
    """The preview of each argument of a call, by the parameter's name, or `*2` for the second where that is not known.

    A value is passed to many calls, so what is no short JSON is named by its type and its shape: no `repr` of it is made.
    """
    in_order = [each["name"] for each in parameters or () if each["kind"].startswith("positional_")]
    names = [*in_order[: len(args)], *(f"*{number + 1}" for number in range(len(in_order), len(args)))]
    given = [*zip(names, args), *kwargs.items()]
    return {name: _preview_argument(value, attached) for name, value in given[:_MOST_ARGUMENTS]}


def _preview_argument(value: Any, attached: dict[str, int]) -> dict[str, Any]:
    with contextlib.suppress(Exception):  # a property of the user's may raise anything; it is only a preview
        doc = _Renderer(attached, _MOST_OF_AN_ARGUMENT).render(value, 0)
        if len(json.dumps(doc)) <= _MOST_OF_AN_ARGUMENT:
            return {"json": doc}
    if isinstance(value, (str, bytes, bytearray, list, tuple, dict, set, frozenset)):
        return {"text": f"<{type(value).__name__} of length {len(value)}>"}
    name = opaque.type_name(value)
    with contextlib.suppress(Exception):
        return {"text": f"<{name} of shape {tuple(map(int, value.shape))}>"}
    return {"text": f"<{name}>"}


def texts(value: Any) -> dict[str, tuple[str, str]]:
    """Type and short text of each object in a value that its receiver may not be able to open, by the way to it."""
    found: dict[str, tuple[str, str]] = {}
    front: list[tuple[str, Any, int]] = [("", value, 0)]
    while front and len(found) < _MOST_TEXTS:
        at, each, depth = front.pop(0)
        if type(each).__module__ not in _PLAIN:
            found[at] = (opaque.type_name(each), _shorten(each))
        if depth < _DEEPEST_TEXT:
            with contextlib.suppress(Exception):  # looking into an object may be user code
                front += [(at + way, inner, depth + 1) for way, inner in opaque.elements(each)]
    return found


def _shorten(value: Any) -> str:
    info = opaque.opaque_info(value)
    if info:
        return info.preview or f"<{info.type}>"
    try:
        text = _Text().repr(value)
    except Exception:  # noqa: BLE001  user code
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + "…"


class _Text(reprlib.Repr):
    """`repr` that looks at a part of a large value only; what is in it a thousand times is not shown a thousand times."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = 10
        self.maxstring = self.maxlong = self.maxother = _MOST_TEXT

    def repr_bytes(self, x: bytes, level: int) -> str:
        """The beginning; all of it would be several times as large as the value."""
        return repr(x) if len(x) <= self.maxother else f"{x[: self.maxother]!r}… ({len(x)} bytes)"

    def repr_bytearray(self, x: bytearray, level: int) -> str:
        """As of `bytes`."""
        return f"bytearray({self.repr_bytes(bytes(x[: self.maxother + 1]), level)})"

    def repr_instance(self, x: Any, level: int) -> str:
        """A dataclass as it shows itself, but to the same depth as everything else."""
        if not (dataclasses.is_dataclass(x) and hasattr(type(x).__repr__, "__wrapped__")):  # its own, not the user's
            return super().repr_instance(x, level)
        if level <= 0:
            return f"{type(x).__qualname__}(...)"
        fields = [f"{f.name}={self.repr1(getattr(x, f.name), level - 1)}" for f in dataclasses.fields(x) if f.repr]
        return f"{type(x).__qualname__}({', '.join(fields)})"


class _Renderer:
    """Makes the JSON form of a value, and gives up once that would be too long: a part may be in it any number of times."""

    def __init__(self, attached: dict[str, int], most: int = _MOST_BYTES) -> None:
        self._attached = attached
        self._left = most

    def render(self, value: Any, depth: int) -> Any:  # noqa: C901  one branch a kind of value
        self._left -= 1 + (len(value) if isinstance(value, str) else 0)
        if isinstance(value, (list, tuple, dict)) and len(value) > self._left:
            raise _NotJson
        if depth > 50 or self._left < 0:
            raise _NotJson
        if isinstance(value, enum.Enum):
            return self.render(value.value, depth + 1)
        if opaque.opaque_info(value):
            raise _NotJson
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, os.PathLike):
            index = self._attached.get(os.path.realpath(value))
            return os.fspath(value) if index is None else {"$file": index}
        if isinstance(value, (datetime.datetime, datetime.date)):
            return value.isoformat()
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: self.render(each, depth + 1) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.render(each, depth + 1) for each in value]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: self.render(getattr(value, f.name), depth + 1) for f in dataclasses.fields(value)}
        if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
            return self.render(value.item(), depth + 1)
        raise _NotJson
