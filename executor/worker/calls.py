"""Which tasks a function calls, as far as its bytecode shows: names that stand for tasks, in it and in what it uses.

Nothing is executed. Functions of the project that are named are looked into, too; what is reached in other ways (through
a dict, an attribute of an object, an import inside a function) is not seen, and the host refuses it when the call comes.
`task.name` or `task.function` is no call.
"""

from __future__ import annotations

import dis
import inspect
import os
import types
from collections.abc import Iterator, Mapping
from typing import Any

from executor.authoring import Task
from executor.worker.source import is_source
from executor.worker.tracebacks import short_name

_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_CELLS = frozenset({"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_PREFIX = "EXTENDED_ARG"  # stands between a name and its attribute where a function has many names
_WAYS_TO_CALL = frozenset({"aio", "override", "__call__"})


def calls_of(task: Task[Any, Any], root: str) -> dict[str, str]:
    """Name of each task that is called → the way there, such as `a.work (flow.py:3) → helper (flow.py:9)`."""
    found: dict[str, str] = {}
    start = inspect.unwrap(task.function)
    waiting: list[tuple[Any, str]] = [(start, f"{task.name} ({_place(start, root)})")]
    seen = {id(start)}
    while waiting:
        function, way = waiting.pop(0)
        for each in _named(function):
            if isinstance(each, Task):
                found.setdefault(each.name, way)
            elif isinstance(each, types.FunctionType) and id(each) not in seen and _is_of(each, root):
                seen.add(id(each))
                waiting.append((inspect.unwrap(each), f"{way} → {each.__name__} ({_place(each, root)})"))
    found.pop(task.name, None)
    return found


def _named(function: Any) -> Iterator[Any]:
    """What the names in a function stand for, those of functions inside it included."""
    if not isinstance(function, types.FunctionType):
        return
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or ()))
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
        yield from _loaded(code, function.__globals__, cells)


def _loaded(code: types.CodeType, names: Mapping[str, Any], cells: Mapping[str, Any]) -> Iterator[Any]:
    last: Any = None
    for instruction in dis.get_instructions(code):
        name, found = instruction.argval, None
        if instruction.opname == _PREFIX:
            continue
        if instruction.opname in _GLOBALS:
            found = names.get(name)
        elif instruction.opname in _CELLS and name in cells:
            found = _content(cells[name])
        elif instruction.opname in _ATTRIBUTES and isinstance(last, types.ModuleType):
            found = vars(last).get(name)
        elif instruction.opname in _ATTRIBUTES and isinstance(last, Task) and name not in _WAYS_TO_CALL:
            last = None
        if last is not None:
            yield last
        last = found


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _is_of(function: types.FunctionType, root: str) -> bool:
    return is_source(root, os.path.abspath(function.__code__.co_filename))


def _place(function: Any, root: str) -> str:
    code = getattr(function, "__code__", None)
    return f"{short_name(os.path.abspath(code.co_filename), root)}:{code.co_firstlineno}" if code else "?"
