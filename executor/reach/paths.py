"""Which files of the project a piece of code names: by `__file__`, by `importlib.resources`, or by a literal path."""

from __future__ import annotations

import ast
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from executor.reach.modules import Unit
from executor.reach.names import Names

_MAKE_PATHS = frozenset(
    {"pathlib.Path", "pathlib.PurePath", "pathlib.PosixPath", "builtins.str", "os.fspath", "os.path.abspath"}
    | {"os.path.realpath", "os.path.normpath", "os.path.expanduser", "os.path.join"}
)
_SAME = frozenset({"resolve", "absolute", "as_posix", "expanduser", "__str__", "__fspath__"})
_NAMES = frozenset({"name", "stem", "suffix", "suffixes"})
_MOST_HOPS = 30
#: Modules that find files by the names of packages.
FINDERS = frozenset({"importlib", "importlib_resources", "pkgutil"})
#: Names that stand for a place in the project.
PLACES = frozenset({"__file__", "__path__"})


@dataclass(frozen=True)
class Value:
    """A text that is known; is_path: it begins where the project does, and so names a file or folder of it."""

    text: str
    is_path: bool = False


class Paths:
    """Paths as the source of a project makes them."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._known: dict[Unit, bool] = {}

    def named_by(self, nodes: Sequence[ast.AST], file: str) -> Iterator[str]:
        """The files and folders that code names, each as far as it can be followed.

        A folder that is only given a name is left to those who use the name.
        """
        shared = self._names.module(file).bindings
        own = {name: value for name, value in _own_values(nodes).items() if name not in shared}
        given = {id(value) for value in own.values()} | {id(_value_of(node)) for node in nodes}
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            is_read = isinstance(node, ast.expr) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load)
            value = self.value(node, file, own) if is_read else None
            if value is None or not value.is_path:
                waiting += ast.iter_child_nodes(node)
            elif id(node) not in given or not self._names.project.is_folder(value.text):
                yield value.text

    def is_path(self, unit: Unit) -> bool:
        """Whether what a unit binds is a path of the project."""
        if unit not in self._known:
            value = _value_of(unit.node)
            found = self.value(value, unit.file) if value is not None else None
            self._known[unit] = found is not None and found.is_path
        return self._known[unit]

    def value(self, node: ast.AST, file: str, own: Mapping[str, ast.expr] | None = None, hops: int = 0) -> Value | None:
        """What an expression evaluates to, where that can be seen; own: what names of the function stand for."""
        reader = _Expression(self._names, file, own or {}, hops)
        return reader.read(node)


class _Expression:
    def __init__(self, names: Names, file: str, own: Mapping[str, ast.expr], hops: int) -> None:
        self._names = names
        self._file = file
        self._own = own
        self._hops = hops

    def read(self, node: ast.AST) -> Value | None:
        if self._hops > _MOST_HOPS:
            return None
        if isinstance(node, ast.Constant):
            return Value(node.value) if isinstance(node.value, str) else None
        if isinstance(node, ast.Name):
            return self._read_name(node)
        if isinstance(node, ast.Attribute):
            return self._read_attribute(node)
        if isinstance(node, ast.Subscript):
            return self._read_parents(node)
        if isinstance(node, ast.BinOp):
            return self._read_operator(node)
        if isinstance(node, ast.JoinedStr):
            pieces = [each.value if isinstance(each, ast.FormattedValue) else each for each in node.values]
            return self._add([self.read(each) for each in pieces])
        return self._read_call(node) if isinstance(node, ast.Call) else None

    def _read_name(self, node: ast.Name) -> Value | None:
        if node.id == "__file__":
            return Value(self._file, is_path=True)
        if node.id == "__path__":
            return Value(posixpath.dirname(self._file), is_path=True)
        if node.id in self._own:
            rest = {name: value for name, value in self._own.items() if name != node.id}
            return _Expression(self._names, self._file, rest, self._hops + 1).read(self._own[node.id])
        return self._defined(node)

    def _defined(self, node: ast.expr) -> Value | None:
        unit = self._names.defined(node, self._file)
        if unit is None or not isinstance(unit.node, (ast.Assign, ast.AnnAssign)) or unit.node.value is None:
            return None
        targets = unit.node.targets if isinstance(unit.node, ast.Assign) else [unit.node.target]
        if not all(isinstance(each, ast.Name) for each in targets):
            return None
        return _Expression(self._names, unit.file, {}, self._hops + 1).read(unit.node.value)

    def _read_attribute(self, node: ast.Attribute) -> Value | None:
        base = self.read(node.value)
        if base is None:
            return self._defined(node) or self._of_module(node)
        if node.attr == "parent":
            return Value(posixpath.dirname(base.text), base.is_path)
        return Value(posixpath.basename(base.text)) if node.attr in _NAMES else None

    def _of_module(self, node: ast.Attribute) -> Value | None:
        """`module.__file__` of a module of the project."""
        if node.attr not in PLACES:
            return None
        path = self._names.module_of(node.value, self._file)
        file = self._names.project.file_of(path) if path else None
        if file is None:
            return None
        return Value(file if node.attr == "__file__" else posixpath.dirname(file), is_path=True)

    def _read_parents(self, node: ast.Subscript) -> Value | None:
        if not isinstance(node.value, ast.Attribute) or node.value.attr != "parents":
            return None
        base = self.read(node.value.value)
        if base is None or not isinstance(node.slice, ast.Constant) or not isinstance(node.slice.value, int):
            return None
        for _ in range(node.slice.value + 1):
            base = Value(posixpath.dirname(base.text), base.is_path)
        return base

    def _read_operator(self, node: ast.BinOp) -> Value | None:
        both = [self.read(node.left), self.read(node.right)]
        if isinstance(node.op, ast.Div):
            return self._join(both)
        return self._add(both) if isinstance(node.op, ast.Add) else None

    def _read_call(self, node: ast.Call) -> Value | None:
        name = self._names.outside(node.func, self._file) or ""
        parts = [self.read(each) for each in node.args]
        if name in _MAKE_PATHS:
            return self._join(parts)
        if name in ("os.path.dirname", "os.path.basename") and len(parts) == 1 and parts[0]:
            change = posixpath.dirname if name.endswith("dirname") else posixpath.basename
            return Value(change(parts[0].text), parts[0].is_path and name.endswith("dirname"))
        if name == "importlib.resources.files":
            return self._package(node.args[0]) if len(node.args) == 1 else None
        if name.startswith(("importlib.resources.", "pkgutil.get_data")) and len(node.args) > 1:
            return self._join([self._package(node.args[0]), *parts[1:2]])
        base = self.read(node.func.value) if isinstance(node.func, ast.Attribute) else None
        if base is None or not isinstance(node.func, ast.Attribute):
            return None
        return self._call_method(node.func.attr, base, parts)

    def _call_method(self, method: str, base: Value, parts: Sequence[Value | None]) -> Value | None:
        if method in _SAME:
            return base
        if method == "joinpath":
            return self._join([base, *parts])
        if method in ("with_name", "with_suffix") and len(parts) == 1 and parts[0]:
            stem = posixpath.dirname(base.text) if method == "with_name" else posixpath.splitext(base.text)[0]
            joined = posixpath.join(stem, parts[0].text) if method == "with_name" else stem + parts[0].text
            return Value(joined, base.is_path)
        return None

    def _package(self, node: ast.expr) -> Value | None:
        """The folder of a package, given by its name, as a module, or as `__package__`."""
        if isinstance(node, ast.Name) and node.id in ("__package__", "__name__"):
            return Value(posixpath.dirname(self._file), is_path=True)
        text = self.read(node)
        path = self._names.module_of(node, self._file)
        if text is not None and not text.is_path and text.text:
            path = self._names.project.locate(tuple(text.text.split(".")))
        return Value(path, is_path=True) if path is not None else None

    def _join(self, parts: Sequence[Value | None]) -> Value | None:
        known = [each for each in parts if each is not None]
        if not known or len(known) < len(parts) or any(each.is_path for each in known[1:]):
            return None
        if known[0].is_path and any(each.text.startswith("/") for each in known[1:]):
            return None
        joined = posixpath.join(*(each.text for each in known))
        return Value(_normal(joined) if known[0].is_path else joined, known[0].is_path)

    def _add(self, parts: Sequence[Value | None]) -> Value | None:
        known = [each for each in parts if each is not None]
        if not known or len(known) < len(parts) or any(each.is_path for each in known[1:]):
            return None
        text = "".join(each.text for each in known)
        return Value(_normal(text.lstrip("/")) if known[0].is_path else text, known[0].is_path)


def _normal(path: str) -> str:
    path = posixpath.normpath(path)
    return "" if path == "." else path


def _value_of(node: ast.AST) -> ast.expr | None:
    """What a statement gives a name to, and nothing but a name."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return getattr(node, "value", None) if all(isinstance(each, ast.Name) for each in targets) else None


def _own_values(nodes: Sequence[ast.AST]) -> dict[str, ast.expr]:
    """What the names that functions bind once are given."""
    found: dict[str, list[ast.expr | None]] = {}
    for node in (each for start in nodes for each in ast.walk(start)):
        if isinstance(node, ast.arg):
            found.setdefault(node.arg, []).append(None)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.setdefault(node.id, []).append(None)
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    once = {name: [each for each in values if each is not None] for name, values in found.items() if len(values) == 2}
    return {name: values[0] for name, values in once.items() if values}
