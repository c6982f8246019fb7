"""Handles for values that cannot be opened here, because a module that they are made of is missing.

A task may receive what its environment holds no package for: an array without NumPy, a model without PyTorch. Its pickle
is opened all the same: each class or function that is not here is stood in for, and instead of doing anything, a
stand-in keeps what it was called with. So what is around it (lists, dicts, dataclasses of the project) is there to be
used, and the handle itself can be put into others, returned, and passed on to a task that can open it: pickled again,
it is the recipe that it came as. Every other use raises `MissingModule`.

Where a value cannot be opened even so, all of it is one handle, which keeps the payload that it came in.
"""

from __future__ import annotations

import copyreg
import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Callable, NamedTuple, NoReturn

from executor.errors import MissingModule

#: The environment that this process runs in: its name, and where its specification is.
HERE = ["", ""]

_OPENING = threading.local()
_MOST_ELEMENTS = 100

#: Modules that packages have renamed, and that pickles name: arrays of NumPy 2 can be opened with NumPy 1, and back.
_RENAMED = (("numpy._core", "numpy.core"),)

_OPERATORS = (
    *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift", "and", "xor"),
    *("or", "radd", "rsub", "rmul", "rmatmul", "rtruediv", "rfloordiv", "rmod", "rdivmod", "rpow", "rlshift"),
    *("rrshift", "rand", "rxor", "ror", "neg", "pos", "abs", "invert", "lt", "le", "gt", "ge", "eq", "ne"),
    *("iter", "len", "int", "float", "complex", "index", "fspath", "bytes", "next", "await", "reversed", "bool"),
    *("getitem", "delitem", "contains", "enter", "exit", "call"),
)


class OpaqueInfo(NamedTuple):
    """What is known of a value that cannot be opened here.

    type:        the name of its type
    module:      the module that is missing
    environment: where it was made; empty where that is not known
    size:        of its data, in bytes
    preview:     a short text of it, made where it was made
    """

    type: str
    module: str
    environment: str
    size: int
    preview: str


def opaque_info(value: Any) -> OpaqueInfo | None:
    """What is known of a value that cannot be opened here; None for every other value."""
    kind = value if isinstance(value, OpaqueType) else type(value)
    if not isinstance(kind, OpaqueType):
        return None
    preview = "" if kind is value else value._told[1]
    return OpaqueInfo(_type_name(value), kind._missing, kind._origin, _size(value), preview)


def _size(value: Any) -> int:
    """How many bytes of data are in what a handle keeps."""
    total, front, seen = 0, [value], set()
    while front:
        each = front.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(type(each), OpaqueType):
            front += [each._args, each._kwargs, each._state, each._items, each._pairs]
        elif isinstance(each, (bytes, bytearray, str)):
            total += len(each)
        elif isinstance(each, memoryview):
            total += each.nbytes
        elif isinstance(each, dict):
            front += [*each, *each.values()]
        elif isinstance(each, (list, tuple)):
            front += each
    return total


@contextmanager
def opening(environment: str) -> Iterator[None]:
    """While this is held, this thread opens a value of that environment: stand-ins take note of what is done to them."""
    before = getattr(_OPENING, "environment", None)
    _OPENING.environment = environment
    try:
        yield
    finally:
        _OPENING.environment = before


def _is_opening() -> bool:
    return getattr(_OPENING, "environment", None) is not None


# -- classes and functions ---------------------------------------------------------------------------------------------


def find(module: str, qualname: str, look: Callable[[], Any]) -> Any:
    """What `look` finds under this name, or a stand-in where that is not here, or derived from what is not here."""
    try:
        found = look()
    except (ImportError, AttributeError) as exc:
        found = _find_renamed(module, qualname)
        if found is None:
            return _stand_in(module, qualname, exc.name if isinstance(exc, ImportError) and exc.name else module)
    base = getattr(found, "__run_local_missing__", None) if isinstance(found, type) else None
    return found if base is None else _stand_in(module, qualname, base)


def resolve(module: str, qualname: str, origin: str) -> Any:
    """The class or function of this name; what the pickle of a stand-in calls where it is opened."""
    with opening(origin):
        return find(module, qualname, lambda: _import(module, qualname))


def _find_renamed(module: str, qualname: str) -> Any:
    """The same in a version of its package in which the module has another name; None where it has none."""
    for pair in _RENAMED:
        for before, after in (pair, pair[::-1]):
            if module == before or module.startswith(before + "."):
                with suppress(ImportError, AttributeError):
                    return _import(after + module[len(before) :], qualname)
    return None


def _import(module: str, qualname: str) -> Any:
    found: Any = sys.modules[module] if module in sys.modules else importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def _stand_in(module: str, qualname: str, missing: str) -> OpaqueType:
    names = {
        "__module__": module,
        "__qualname__": qualname,
        "__slots__": (),
        "_missing": missing,
        "_origin": getattr(_OPENING, "environment", None) or "",
    }
    return OpaqueType(qualname.rpartition(".")[2], (Opaque,), names)


def recipe(kind: OpaqueType) -> tuple[Any, ...]:
    """What a stand-in for a class or function is pickled as."""
    return (resolve, (kind.__module__, kind.__qualname__, kind._origin))


class OpaqueType(type):
    """A stand-in for a class or function; calling one makes a handle while a value is being opened."""

    __run_local_opaque__ = True
    _missing: str
    _origin: str
    _stands_for: OpaqueType | None

    def __new__(mcs, name: str, bases: tuple[type, ...], names: dict[str, Any]) -> OpaqueType:
        """A stand-in of our own making; a class that is derived from one (its code has travelled) is none."""
        if not {"_missing", "_stands_for"} & names.keys():
            missing = next(base._missing for base in bases if isinstance(base, OpaqueType))
            raise TypeError(f"`{name}` is derived from a class of `{missing}`, which is not here")
        made: OpaqueType = super().__new__(mcs, name, bases, names)
        return made

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Take note of the call, for whoever can carry it out."""
        if not _is_opening():
            raise refusal(cls, f"{cls.__name__}(…)")
        return _handle(cls, "call", args, kwargs)

    def __getattr__(cls, name: str) -> NoReturn:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        raise refusal(cls, f"{cls.__name__}.{name}")

    def __repr__(cls) -> str:
        return f"<opaque {_type_name(cls)}, without `{cls._missing}`>"


# -- objects -----------------------------------------------------------------------------------------------------------


class Opaque(metaclass=OpaqueType):
    """A value that cannot be opened here. It can be passed on, put into other values, and returned.

    What is known of it is shown by `repr`, and answered by `executor.opaque_info`.
    """

    __slots__ = ("__weakref__", "_args", "_how", "_items", "_kwargs", "_pairs", "_state", "_told")
    __run_local_opaque__ = True
    _missing = ""
    _origin = ""
    _stands_for: OpaqueType | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Opaque:
        """What the pickle of an object calls before it sets its state."""
        if not _is_opening():
            raise refusal(cls, f"{cls.__name__}(…)")
        made: Opaque = _handle(cls, "new", args, kwargs)
        return made

    def __setstate__(self, state: Any) -> None:
        self._demand_opening("__setstate__")
        object.__setattr__(self, "_state", state)

    def append(self, item: Any) -> None:
        """An element that the pickle of a sequence adds."""
        self._demand_opening("append")
        self._items.append(item)

    def extend(self, items: Any) -> None:
        """Elements that the pickle of a sequence adds."""
        self._demand_opening("extend")
        self._items.extend(items)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._demand_opening("[…] = …")
        self._pairs.append((key, value))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        self._demand_opening(name)
        kind = type(self)
        method = _stand_in(kind.__module__, f"{kind.__qualname__}.{name}", kind._missing)
        return _handle(method, "attribute", (self, name), {})

    def __setattr__(self, name: str, value: object) -> None:
        raise refusal(self, f"{name} = …")

    def __delattr__(self, name: str) -> None:
        raise refusal(self, f"del {name}")

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind, rest = type(self), (self._state, iter(self._items), iter(self._pairs))
        if self._how == "attribute":
            return (getattr, self._args)
        if self._how == "call":
            return (kind._stands_for or kind, self._args, *rest)
        if self._kwargs:
            return (copyreg.__newobj_ex__, (kind, self._args, self._kwargs), *rest)  # type: ignore[attr-defined]
        return (copyreg.__newobj__, (kind, *self._args), *rest)  # type: ignore[attr-defined]

    def __copy__(self) -> Opaque:
        return self

    def __deepcopy__(self, memo: object) -> Opaque:
        return self

    def __hash__(self) -> int:
        self._demand_opening("__hash__")  # two that are equal would not be found to be
        return id(self)

    def __repr__(self) -> str:
        text = f": {self._told[1]}" if self._told[1] else ""
        return f"<opaque {_type_name(self)}{text}, without `{type(self)._missing}`>"

    def __str__(self) -> str:
        return repr(self)

    def __format__(self, spec: str) -> str:
        if spec:
            raise refusal(self, f"format(…, {spec!r})")
        return repr(self)

    def _demand_opening(self, used: str) -> None:
        if not _is_opening():
            raise refusal(self, used)


class OpaqueValue(Opaque):
    """A value that is a handle as a whole: it keeps the payload that it came in.

    _args: a `payload.Kept`
    """

    __slots__ = ("_reason",)
    _missing = ""


def whole(kept: Any, type_name: str, environment: str, missing: str, reason: str = "") -> OpaqueValue:
    """A handle for all of a value; `reason` says why it cannot be opened, where that is no missing module.

    kept: the `payload.Kept` that it is pickled as
    """
    module, _, name = type_name.rpartition(".")
    names = {"__module__": module or "builtins", "__qualname__": name, "__slots__": ()}
    kind = OpaqueType(name, (OpaqueValue,), {**names, "_missing": missing, "_origin": environment})
    made: OpaqueValue = _handle(kind, "whole", (kept,), {})
    object.__setattr__(made, "_reason", reason)
    return made


def _handle(kind: Any, how: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    made: Any = object.__new__(kind)
    kept: dict[str, Any] = {
        "how": how,
        "args": args,
        "kwargs": kwargs,
        "state": None,
        "items": [],
        "pairs": [],
        "told": ("", ""),
    }
    for name, value in kept.items():
        object.__setattr__(made, f"_{name}", value)
    return made


def refusal(of: Any, used: str) -> MissingModule:
    """The error for a use of a handle: the module, the two environments, and the ways out."""
    kind = of if isinstance(of, OpaqueType) else type(of)
    (here, specification), origin, missing = HERE, kind._origin, kind._missing
    made = f"it was made in environment `{origin}`, and " if origin else ""
    there = f"in `{here}`" if here else "installed here"
    reason = of._reason if isinstance(of, OpaqueValue) else ""
    ways = (
        f"pass it on to a task that can open it, or add the package of `{missing}` to {specification}, or"
        f" declare `{here}` with `extends=[…]` of an environment that holds it, or let the task return plain data"
    )
    if not here:
        ways = f"install the package of `{missing}` here, or let the task return plain data"
    elif used in ("__eq__", "__ne__", "__bool__"):
        ways = f"`is None` asks whether there is a value at all; {ways}"
    error = MissingModule(
        f"a value of type `{_type_name(of)}` cannot be used {f'in environment `{here}`' if here else 'here'}",
        why=f"`{used}` is asked of it; {made}{reason or f'`{missing}` is not {there}'}",
        hint="define it at the top level of a module of the project, then it travels by its name" if reason else ways,
        facts={"module": missing, "environment": here, "origin": origin},
    )
    error.name = missing
    return error


def type_name(value: Any) -> str:
    """The name of a value's type, also where it cannot be opened here."""
    if isinstance(type(value), OpaqueType):
        return _type_name(value)
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _type_name(of: Any) -> str:
    kind = of if isinstance(of, OpaqueType) else type(of)
    if kind is not of and of._told[0]:
        return str(of._told[0])
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _operator(name: str) -> Callable[..., NoReturn]:
    def use(self: Opaque, *_: object) -> NoReturn:
        raise refusal(self, name)

    return use


for _name in _OPERATORS:
    setattr(Opaque, f"__{_name}__", _operator(f"__{_name}__"))


# -- texts -------------------------------------------------------------------------------------------------------------


def elements(value: Any) -> Iterator[tuple[str, Any]]:
    """What is in a container, dataclass or exception, and how it is reached from there: `[0]`, `['name']`, `.name`."""
    if isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", each) for index, each in enumerate(value[:_MOST_ELEMENTS]))
    elif isinstance(value, dict):
        for key in list(value)[:_MOST_ELEMENTS]:
            if isinstance(key, (str, int)):
                yield f"[{key!r}]", value[key]
    elif isinstance(value, BaseException):
        yield from ((f".{name}", each) for name, each in list(vars(value).items())[:_MOST_ELEMENTS])
    elif hasattr(type(value), "__dataclass_fields__"):
        for name in type(value).__dataclass_fields__:
            yield f".{name}", getattr(value, name, None)


def label(value: Any, told: dict[str, Any], at: str = "") -> None:
    """Give the handles in a value their types and texts, which were made where the value was; see `preview.texts`."""
    if isinstance(type(value), OpaqueType):
        kind, text = told.get(at) or ("", "")
        object.__setattr__(value, "_told", (str(kind), str(text)))
        made_by_function = value._how == "call" and type(value)._stands_for is None
        if kind and made_by_function:  # its class has the name of the function
            module, _, name = str(kind).rpartition(".")
            names = {"__module__": module, "__qualname__": name, "__slots__": (), "_stands_for": type(value)}
            object.__setattr__(value, "__class__", OpaqueType(name, (type(value),), names))
    elif any(path.startswith(at) for path in told):
        with suppress(Exception):  # looking into an object may be user code
            for way, each in elements(value):
                label(each, told, at + way)
