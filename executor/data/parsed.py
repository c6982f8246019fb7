"""A stored value as plain data, read off its pickle without opening it: nothing of what it names is imported or called.

The opcodes of a pickle (see `pickletools`) are followed as far as they say what a value consists of. What an opcode would
call is kept as what it is: a name and its arguments. An array of numpy is found by the function that it would be made with.
"""

from __future__ import annotations

import json
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from executor.data.store import Store, ValueRef
from executor.worker.payload import split

#: Longer payloads are not read: what is found is kept in memory.
MOST_BYTES = 64 * 2**20


@dataclass
class Made:
    """What a function or a class, by its name, is to make of arguments; `state` is what is set afterwards."""

    name: str
    args: Any = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)


@dataclass
class Array:
    """An array as numpy keeps it. kind: such as `<f8`; data: its elements, in order of memory."""

    kind: str
    shape: tuple[int, ...]
    order: str
    data: bytes


class Unreadable(ValueError):
    """A value that is not made of what can be followed here."""


_MARK = object()


def parse_value(store: Store, ref: ValueRef) -> Any:
    """What a committed value consists of; raises `Unreadable`, or `OSError` where it is not in the store."""
    if ref.size > MOST_BYTES:
        raise Unreadable(f"it has {ref.size / 2**20:.0f} MiB")
    try:
        head, parts = split(memoryview(store.path(ref.sha256).read_bytes()))
        if head.get("codec") == "json":
            return json.loads(bytes(parts[0]))
        return _Reading(bytes(parts[0]), _buffers(store, ref, head, parts)).value()
    except (ValueError, KeyError, IndexError, TypeError) as exc:
        raise Unreadable(str(exc)) from exc


def _buffers(store: Store, ref: ValueRef, head: dict[str, Any], parts: list[memoryview]) -> list[bytes]:
    """The buffers that lie beside a pickle, in it or in blobs that it shares with other values."""
    found = []
    for place in head["buffers"]:
        if place[0] == 0:
            found.append(bytes(parts[place[1]]))
            continue
        shared = ref.files[place[0] - 1]
        if place[2] > MOST_BYTES:
            raise Unreadable(f"an array of it has {place[2] / 2**20:.0f} MiB")
        with store.path(shared.sha256).open("rb") as file:
            file.seek(place[1])
            found.append(file.read(place[2]))
    return found


class _Reading:
    """The stack of a pickle, as the machine that would open it has it."""

    def __init__(self, text: bytes, buffers: list[bytes]) -> None:
        self._text, self._buffers = text, iter(buffers)
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._rules: dict[str, Callable[[Any], object]] = {
            **dict.fromkeys(_PLAIN, self._stack.append),
            **{name: partial(self._constant, make) for name, make in _CONSTANTS.items()},
            **{f"TUPLE{count}": partial(self._tuple, count) for count in (1, 2, 3)},
            **dict.fromkeys(("PROTO", "FRAME", "READONLY_BUFFER"), lambda _: None),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._remember),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda at: self._stack.append(self._memo[at])),
            **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda _: self._make(1)),
            "NEWOBJ_EX": lambda _: self._make(2),
            "MARK": lambda _: self._stack.append(_MARK),
            "MEMOIZE": lambda _: self._remember(len(self._memo)),
            "TUPLE": lambda _: self._stack.append(tuple(self._since_mark())),
            "LIST": lambda _: self._stack.append(self._since_mark()),
            "FROZENSET": lambda _: self._stack.append(_set(self._since_mark())),
            "DICT": lambda _: self._stack.append(_pairs(self._since_mark())),
            "APPEND": lambda _: self._extend([_array(self._stack.pop())]),
            "APPENDS": lambda _: self._extend(self._since_mark()),
            "ADDITEMS": lambda _: self._extend(_set(self._since_mark()).items),
            "SETITEM": lambda _: self._update([_array(self._stack.pop()) for _ in range(2)][::-1]),
            "SETITEMS": lambda _: self._update(self._since_mark()),
            "GLOBAL": lambda argument: self._stack.append(str(argument).replace(" ", ".")),
            "STACK_GLOBAL": lambda _: self._name(),
            "BUILD": lambda _: self._set_state(_array(self._stack.pop())),
            "NEXT_BUFFER": lambda _: self._stack.append(next(self._buffers)),
            "POP": lambda _: self._stack.pop(),
        }

    def value(self) -> Any:
        """What is on the stack at the end."""
        try:
            for opcode, argument, _ in pickletools.genops(self._text):
                if opcode.name == "STOP":
                    return _array(self._stack.pop())
                if opcode.name not in self._rules:
                    raise Unreadable(f"its pickle has a {opcode.name}")
                self._rules[opcode.name](argument)
        except (IndexError, KeyError, TypeError, AttributeError, StopIteration) as exc:
            raise Unreadable(f"its pickle cannot be followed: {exc!r}") from exc
        raise Unreadable("its pickle has no end")

    def _remember(self, at: int) -> None:
        self._memo[at] = self._stack[-1]

    def _constant(self, make: Callable[[], Any], _: Any) -> None:
        self._stack.append(make())

    def _tuple(self, count: int, _: Any) -> None:
        self._stack[-count:] = [tuple(map(_array, self._stack[-count:]))]

    def _name(self) -> None:
        self._stack[-2:] = [f"{self._stack[-2]}.{self._stack[-1]}"]

    def _make(self, count: int) -> None:
        made, *args = self._stack[-1 - count :]
        self._stack[-1 - count :] = [Made(str(made), args[0] if count == 1 else tuple(args))]

    def _set_state(self, state: Any) -> None:
        self._stack[-1].state = state

    def _since_mark(self) -> list[Any]:
        at = len(self._stack) - 1 - next(n for n, each in enumerate(reversed(self._stack)) if each is _MARK)
        found = [_array(each) for each in self._stack[at + 1 :]]
        del self._stack[at:]
        return found

    def _extend(self, found: list[Any]) -> None:
        target = self._stack[-1]
        (target.items if isinstance(target, Made) else target).extend(found)

    def _update(self, found: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Made):
            target.items.append(_pairs(found))
        else:
            target.update(_pairs(found))


def _set(found: list[Any]) -> Made:
    return Made("builtins.set", items=sorted(found, key=repr))


def _pairs(found: list[Any]) -> dict[Any, Any]:
    """A dictionary; a key that is not plain stands as what it says."""
    keys = (key if isinstance(key, (str, int, float, bool, bytes, type(None))) else repr(key) for key in found[::2])
    return dict(zip(keys, found[1::2], strict=True))


def _array(made: Any) -> Any:
    """An array, where something is made as numpy makes one."""
    if not isinstance(made, Made) or not isinstance(made.args, tuple):
        return made
    if made.name.endswith(".numeric._frombuffer") and len(made.args) == 4:
        data, kind, shape, order = made.args
        return Array(_kind(kind), tuple(shape), str(order), bytes(data))
    if made.name.endswith(".multiarray.scalar") and len(made.args) == 2 and isinstance(made.args[1], bytes):
        return Array(_kind(made.args[0]), (), "C", made.args[1])
    if made.name.endswith(".multiarray._reconstruct") and isinstance(made.state, tuple) and len(made.state) == 5:
        _, shape, kind, fortran, data = made.state
        if isinstance(data, bytes):
            return Array(_kind(kind), tuple(shape), "F" if fortran else "C", data)
    return made


def _kind(dtype: Any) -> str:
    """A dtype by numpy's short name, such as `<f8`."""
    if not isinstance(dtype, Made) or not isinstance(dtype.args, tuple) or not isinstance(dtype.state, tuple):
        raise Unreadable(f"an array of it has a dtype that is not known: {dtype}")
    order = str(dtype.state[1])
    return f"{'' if order == '=' else order}{dtype.args[0]}"


_PLAIN = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "STRING", "BINSTRING",
    "SHORT_BINSTRING",
)  # fmt: skip
_CONSTANTS: dict[str, Any] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Made("builtins.set"),
}
