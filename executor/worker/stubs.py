"""Stand-ins for modules that an environment does not hold, so that the modules which import them can still be loaded.

A stand-in may be named, not known. While module-level code of the project runs, it answers attribute access, calls,
subscripts and operators with more stand-ins, gives a decorated function back, and can be a base class. Whatever needs
a real value of it, and any use once loading is over, raises `MissingModule`.

Only an import statement in the project's own source gets one, and only where Python found nothing: never an import by
an installed package, never one that the project guards against failing. Nothing is put into `sys.modules`, so nobody
else meets a stand-in; that is why `__import__` is wrapped, and not a finder added.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from typing import Any, Callable

from executor.errors import MissingModule
from executor.worker.source import is_source, read_imports

#: Called with a module's name and where it is imported ("file:line"), for every such import that got a stand-in.
Note = Callable[[str, str], None]

_IN_NEWER_PYTHONS = frozenset({"annotationlib", "compression", "tomllib"})
_NOT_TO_BE_STUBBED = frozenset(getattr(sys, "stdlib_module_names", sys.builtin_module_names)) | _IN_NEWER_PYTHONS

_OPERATORS = (
    *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift", "and", "xor"),
    *("radd", "rsub", "rmul", "rmatmul", "rtruediv", "rfloordiv", "rmod", "rdivmod", "rpow", "rlshift", "rrshift"),
    *("rand", "rxor", "neg", "pos", "abs", "invert", "lt", "le", "gt", "ge"),
)
_CONVERSIONS = ("iter", "len", "int", "float", "complex", "index", "fspath", "bytes", "next", "await", "reversed")


def install(roots: Sequence[str], environment: str, specification: str = "", note: Note = lambda *_: None) -> Stubs:
    """From now on, answer imports by source below `roots` of what is missing with stand-ins.

    roots:       folders of the project's source, absolute
    environment: for the errors; empty while a workflow is described, when no environment is there at all
    specification: where it says what it holds, for the errors, too
    """
    stubs = Stubs(roots, environment, specification, note)
    builtins.__import__ = stubs.wrap(builtins.__import__)
    return stubs


class Stubs:
    """What the stand-ins of one process have in common: whose imports get one, and when they are lenient."""

    def __init__(self, roots: Sequence[str], environment: str, specification: str, note: Note) -> None:
        self.environment, self.specification = environment, specification
        self._roots = sorted({*map(os.path.abspath, roots), *map(os.path.realpath, roots)}, key=len, reverse=True)
        self._note = note
        self._loading = threading.local()
        self._modules: dict[str, Stub] = {}
        self._is_project: dict[str, bool] = {}
        self._imports: dict[str, dict[int, bool]] = {}

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """While this is held, this thread runs module-level code of the project, and stand-ins are lenient."""
        self._loading.depth = getattr(self._loading, "depth", 0) + 1
        try:
            yield
        finally:
            self._loading.depth -= 1

    def is_loading(self) -> bool:
        """Whether module-level code of the project runs in this thread; it may be a task that imports late."""
        if getattr(self._loading, "depth", 0):
            return True
        return any(frame.f_code.co_name == "<module>" for frame in self._project_frames(sys._getframe(1)))

    def wrap(self, python_import: Any) -> Any:
        """An `__import__` that answers with a stand-in where `python_import` finds nothing and one is due."""

        def import_(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
            try:
                return python_import(name, globals, locals, fromlist, level)
            except ModuleNotFoundError as exc:
                if level or exc.name != name.partition(".")[0] or not self._is_due(exc.name, sys._getframe(1)):
                    raise
            return self._stand_in(name, sys._getframe(1), whole=bool(fromlist))

        return import_

    def _stand_in(self, name: str, importer: types.FrameType, *, whole: bool) -> Any:
        """What an import statement binds: `a.b.c` for `from a.b.c import …`, otherwise `a`."""
        top, *rest = name.split(".")
        place = f"{self._short(importer.f_code.co_filename)}:{importer.f_lineno}"
        stub = self._modules.setdefault(top, Stub(self, top, place))
        if not self.is_loading():
            raise stub._error(name)
        self._note(top, place)
        for part in rest if whole else ():
            stub = getattr(stub, part)
        return stub

    def _is_due(self, top: str, importer: types.FrameType) -> bool:
        """Whether the import is a statement of the project, and nothing waits for it to fail."""
        if top in _NOT_TO_BE_STUBBED or not self._is_ours_to_stub(importer.f_code.co_filename):
            return False
        if self._import_at(importer) is None:
            return False
        # An import of a module of the project that is itself guarded is a question, too: is that module usable here?
        return not any(self._import_at(frame) for frame in self._project_frames(importer))

    def _project_frames(self, frame: types.FrameType | None) -> Iterator[types.FrameType]:
        while frame is not None:
            if self._is_ours_to_stub(frame.f_code.co_filename):
                yield frame
            frame = frame.f_back

    def _is_ours_to_stub(self, file: str) -> bool:
        if file not in self._is_project:
            self._is_project[file] = any(is_source(root, os.path.abspath(file)) for root in self._roots)
        return self._is_project[file]

    def _import_at(self, frame: types.FrameType) -> bool | None:
        """Whether the import statement that a frame is at is guarded; None where there is no such statement."""
        file = frame.f_code.co_filename
        if file not in self._imports:
            self._imports[file] = read_imports(file)
        return self._imports[file].get(frame.f_lineno)

    def _short(self, file: str) -> str:
        root = next((root for root in reversed(self._roots) if file.startswith(root + os.sep)), "")
        return file[len(root) + 1 :] if root else file


class Stub:
    """The stand-in for a missing module, or for whatever module-level code makes of one."""

    __slots__ = ("_made", "_name", "_place", "_stubs")
    __all__ = ()  # what `from module import *` gives

    def __init__(self, stubs: Stubs, name: str, place: str) -> None:
        for slot, value in (("_stubs", stubs), ("_name", name), ("_place", place), ("_made", {})):
            object.__setattr__(self, slot, value)

    def _error(self, used: str) -> MissingModule:
        module = self._name.partition(".")[0].partition("(")[0].partition("[")[0]
        environment = self._stubs.environment
        why, what = f"`{used}` is used here, which {self._place} imports", f"environment `{environment}`"
        hint = (
            f"add the package of `{module}` to {self._stubs.specification}, or move the import into the task"
            f" that needs it, or declare `{environment}` with `extends=[…]` of an environment that holds it, or call the"
            ' tasks of that module by name: `reference_task("environment.function")`'
        )
        if not environment:
            what = "the process that reads the workflow"
            hint = "move this line into the task that needs it: at module level, a missing package can only be named"
        error = MissingModule(f"`{module}` is not in {what}", why, hint, {"module": module, "environment": environment})
        error.name = module
        return error

    def _use(self, used: str) -> None:
        """Raise, unless the project is being loaded."""
        if not self._stubs.is_loading():
            raise self._error(used)

    def _derive(self, name: str) -> Stub:
        self._use(name)
        return Stub(self._stubs, name, self._place)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name != "__version__":
            raise AttributeError(f"`{self._name}` is missing and has no `{name}`")
        path = f"{self._name}.{name}"
        self._use(path)
        return self._made.setdefault(name, Stub(self._stubs, path, self._place))

    def __setattr__(self, name: str, value: object) -> None:
        self._use(f"{self._name}.{name}")

    def __delattr__(self, name: str) -> None:
        self._use(f"{self._name}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The decorated function or class where this can be a decoration, otherwise another stand-in."""
        self._use(f"{self._name}(…)")
        if len(args) == 1 and (isinstance(args[0], types.FunctionType) or (callable(args[0]) and not kwargs)):
            return self._derive(f"{self._name}(…)") if isinstance(args[0], Stub) else args[0]
        return self._derive(f"{self._name}(…)")

    def __getitem__(self, key: Any) -> Any:
        items = key if isinstance(key, tuple) else (key,)
        return self._derive(f"{self._name}[{', '.join(map(_text, items))}]")

    def __setitem__(self, key: object, value: object) -> None:
        self._use(f"{self._name}[…]")

    def __delitem__(self, key: object) -> None:
        self._use(f"{self._name}[…]")

    def __or__(self, other: object) -> Any:
        return self._derive(f"{self._name} | {_text(other)}")

    def __ror__(self, other: object) -> Any:
        return self._derive(f"{_text(other)} | {self._name}")

    def __bool__(self) -> bool:
        self._use(self._name)
        return False

    def __eq__(self, other: object) -> bool:
        if self is not other:
            self._use(self._name)
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __instancecheck__(self, instance: object) -> bool:
        self._use(self._name)
        return False

    def __subclasscheck__(self, subclass: type) -> bool:
        self._use(self._name)
        return False

    def __enter__(self) -> Any:
        return self._derive(self._name)

    def __exit__(self, *_: object) -> None:
        self._use(self._name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        self._use(self._name)
        return (self._made.setdefault("", _placeholder(self)),)

    def __copy__(self) -> Stub:
        return self

    def __deepcopy__(self, memo: object) -> Stub:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise self._error(self._name)

    def __repr__(self) -> str:
        return f"{self._name}"

    def __str__(self) -> str:
        self._use(repr(self))
        return repr(self)

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


def _operator(stub: Stub, *_: object) -> Any:
    return stub._derive(stub._name)


def _conversion(stub: Stub, *_: object) -> Any:
    raise stub._error(stub._name)


for _operation in _OPERATORS:
    setattr(Stub, f"__{_operation}__", _operator)
for _operation in _CONVERSIONS:
    setattr(Stub, f"__{_operation}__", _conversion)


def _placeholder(stub: Stub) -> type:
    """A base class for those that are derived from a stand-in; they can be defined, and not made."""

    class Placeholder:
        __run_local_missing__ = stub._name.partition(".")[0]

        def __new__(cls, *_: Any, **__: Any) -> Any:
            return stub._derive(f"{cls.__name__}(…)")

        def __init_subclass__(cls, **_: Any) -> None:
            super().__init_subclass__()

    return Placeholder


def _text(value: Any) -> str:
    return value.__qualname__ if isinstance(value, type) else repr(value)
