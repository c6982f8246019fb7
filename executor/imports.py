"""A project's source as its syntax trees show it: what it imports from outside, and which functions need that to run.

Names are followed through the imports of the project, not through values. Of a name that is bound twice, or whose import
is guarded against failing, nothing is known.
"""

from __future__ import annotations

import ast
import collections
import sys
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.worker.source import guards, import_statements, is_for_type_checkers, is_source

_OF_OTHER_PYTHONS = frozenset(
    {
        "aifc",
        "annotationlib",
        "asynchat",
        "asyncore",
        "audioop",
        "binhex",
        "cgi",
        "cgitb",
        "chunk",
        "compression",
        "crypt",
    }
    | {
        "distutils",
        "formatter",
        "imghdr",
        "imp",
        "lib2to3",
        "mailcap",
        "msilib",
        "nis",
        "nntplib",
        "ossaudiodev",
        "parser",
    }
    | {"pipes", "smtpd", "sndhdr", "spwd", "sunau", "symbol", "telnetlib", "tomllib", "uu", "xdrlib"}
)
#: Modules that no package of an environment has to provide.
EVERYWHERE = sys.stdlib_module_names | _OF_OTHER_PYTHONS | {"__main__", "cloudpickle", "executor"}

_MOST_HOPS = 20
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

_Statement = ast.Import | ast.ImportFrom
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Import:
    """A module from outside the project that is imported.

    module: the first part of its name
    at:     the import statement, `file:line`
    way:    the import statements of the project that lead there, the last one first
    """

    module: str
    at: str
    way: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Use:
    """Where a function needs a module, `file:line`; imported: it is imported there."""

    at: str
    imported: bool


@dataclass(frozen=True)
class _Outside:
    """Something of a module from outside."""

    module: str


@dataclass(frozen=True)
class _Module:
    """A module of the project."""

    name: str


@dataclass(frozen=True)
class _Member:
    """What a module of the project calls `name`."""

    module: str
    name: str


@dataclass(frozen=True, eq=False)
class _Defined:
    """A function of the project."""

    file: _File
    node: _Function


#: What a name stands for; None where that is not plain to see.
_Meaning = _Outside | _Module | _Member | _Defined | None


@dataclass(frozen=True, eq=False, kw_only=True)
class _File:
    """A source file; imports: the statements that run when it is imported, and whose failure nobody waits for."""

    short: str
    package: Sequence[str]
    tree: ast.Module
    imports: Sequence[_Statement]


class Project:
    """The source below `root`; its modules are found in its folders `import_roots`.

    tasks: file and name of every task; what a task needs, it needs where it runs, not where it is called
    """

    def __init__(self, root: str, import_roots: Iterable[str], tasks: Container[tuple[str, str]]) -> None:
        self._root = Path(root)
        self._roots = [Path(root, each).resolve() for each in import_roots]
        self._tasks = tasks
        self._files: dict[Path, _File | None] = {}
        self._names: dict[_File, dict[str, _Meaning]] = {}
        self._needs: dict[tuple[str, str], Mapping[str, Use]] = {}

    def imports_of(self, files: Iterable[str]) -> Iterator[Import]:
        """What importing these files imports from outside, each statement once, by the shortest way."""
        first = [each for file in dict.fromkeys(files) for each in self._loaded_with(self._root / file)]
        waiting = collections.deque[tuple[_File, tuple[str, ...]]]((each, ()) for each in first)
        seen = set(first)
        while waiting:
            file, way = waiting.popleft()
            for statement in file.imports:
                at = f"{file.short}:{statement.lineno}"
                for module in self._outside(statement, file):
                    yield Import(module=module, at=at, way=way)
                loaded = [each for name in self._imported(statement, file) for each in self._loaded(name)]
                for other in dict.fromkeys(loaded):
                    if other not in seen:
                        seen.add(other)
                        waiting.append((other, (at, *way)))

    def needs_of(self, file: str, function: str) -> Mapping[str, Use]:
        """The modules from outside that a function, with all that it calls, needs when it runs; and where first."""
        key = (file, function)
        if key not in self._needs:
            source = self._file(self._root / file)
            start = self._names_of(source).get(function) if source else None
            self._needs[key] = self._find_needs(start) if isinstance(start, _Defined) else {}
        return self._needs[key]

    def _find_needs(self, start: _Defined) -> Mapping[str, Use]:
        found: dict[str, Use] = {}
        waiting, seen = [start], {start.node}
        while waiting:
            here = waiting.pop(0)
            own = self._own_names(here)
            for node in _evaluated(here.node):
                if isinstance(node, _Statement):
                    for module in self._outside(node, here.file):
                        found.setdefault(module, Use(at=f"{here.file.short}:{node.lineno}", imported=True))
                for operand in _operands(node):
                    meant = self._meaning(operand, here.file, own)
                    if isinstance(meant, _Outside):
                        found.setdefault(meant.module, Use(at=f"{here.file.short}:{operand.lineno}", imported=False))
                    elif (
                        isinstance(meant, _Defined) and isinstance(node, ast.Call) and self._runs_in_place(meant, seen)
                    ):
                        seen.add(meant.node)
                        waiting.append(meant)
        return found

    def _runs_in_place(self, called: _Defined, seen: Container[_Function]) -> bool:
        return called.node not in seen and (called.file.short, called.node.name) not in self._tasks

    # -- files -------------------------------------------------------------------------------------------------------------

    def _file(self, path: Path) -> _File | None:
        """A source file of the project, or None where it is none, or cannot be read."""
        if path not in self._files:
            self._files[path] = self._read(path) if is_source(str(self._root), str(path)) else None
        return self._files[path]

    def _read(self, path: Path) -> _File | None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes in the user's strings, for example
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError):
            return None
        found = import_statements(tree)
        return _File(
            short=str(path.relative_to(self._root)),
            package=next(
                (path.relative_to(each).parent.parts for each in self._roots if path.is_relative_to(each)), ()
            ),
            tree=tree,
            imports=[statement for statement, guarded, inside in found if not guarded and not inside],
        )

    def _find(self, module: str) -> _File | None:
        """The file of a module of the project, by its whole name."""
        parts = module.split(".")
        for root in self._roots:
            for path in (root.joinpath(*parts, "__init__.py"), root.joinpath(*parts).with_suffix(".py")):
                if path in self._files or path.is_file():
                    return self._file(path)
        return None

    def _loaded(self, module: str) -> Iterator[_File]:
        """The files of a module of the project, and of the packages that it is in."""
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            if file := self._find(".".join(parts[:end])):
                yield file

    def _loaded_with(self, path: Path) -> list[_File]:
        folders = [folder for folder in path.parents if folder.is_relative_to(self._root)]
        files = [self._file(path), *(self._file(each / "__init__.py") for each in folders if each != self._root)]
        return [each for each in files if each]

    def _is_outside(self, module: str, file: _File) -> bool:
        """Whether a module, by the first part of its name, is neither Python's nor the project's."""
        if not module or module in EVERYWHERE:
            return False
        beside = (self._root / file.short).parents  # such a folder may be on sys.path by the user's doing
        places = [*self._roots, *(folder for folder in beside if folder.is_relative_to(self._root))]
        return not any(
            (each / f"{module}.py").is_file() or _holds_source(each / module) for each in dict.fromkeys(places)
        )

    # -- import statements -------------------------------------------------------------------------------------------------

    def _imported(self, statement: _Statement, file: _File) -> list[str]:
        """The whole names of the modules that a statement imports; some may be no modules, but what a module holds."""
        if isinstance(statement, ast.Import):
            return [each.name for each in statement.names]
        base = _base(statement, file)
        return [base, *(f"{base}.{each.name}" for each in statement.names)] if base else []

    def _outside(self, statement: _Statement, file: _File) -> list[str]:
        """The modules from outside that it imports, by the first parts of their names."""
        modules = dict.fromkeys(name.partition(".")[0] for name in self._imported(statement, file))
        return [module for module in modules if self._is_outside(module, file)]

    def _bound_by(self, statement: _Statement, file: _File) -> Iterator[tuple[str, _Meaning]]:
        """The names that it binds, and what they stand for."""
        outside = self._outside(statement, file)
        base = "" if isinstance(statement, ast.Import) else _base(statement, file)
        for each in statement.names:
            top = (base or each.name).partition(".")[0]
            if isinstance(statement, ast.ImportFrom):
                yield each.asname or each.name, _Outside(top) if top in outside else _Member(base, each.name)
            else:
                name = each.name if each.asname else top
                yield each.asname or top, _Outside(top) if top in outside else _Module(name)

    # -- names -------------------------------------------------------------------------------------------------------------

    def _meaning(self, node: ast.AST, file: _File, own: Mapping[str, _Meaning]) -> _Meaning:
        """What an expression stands for; own: the names of the function that it is in."""
        if isinstance(node, ast.Name):
            return self._follow(own[node.id] if node.id in own else self._names_of(file).get(node.id))
        if isinstance(node, ast.Attribute):
            meant = self._meaning(node.value, file, own)
            if isinstance(meant, _Module):
                return self._follow(_Member(meant.name, node.attr))
            return meant if isinstance(meant, _Outside) else None
        return None

    def _follow(self, meant: _Meaning) -> _Meaning:
        """What it stands for in the module that it comes from."""
        for _ in range(_MOST_HOPS):
            if not isinstance(meant, _Member):
                return meant
            file = self._find(meant.module)
            names = self._names_of(file) if file else {}
            meant = names[meant.name] if meant.name in names else _Module(f"{meant.module}.{meant.name}")
        return None

    def _names_of(self, file: _File) -> Mapping[str, _Meaning]:
        """The names of a module, and what they stand for."""
        if file not in self._names:
            plain = {statement for statement, guarded, _ in import_statements(file.tree) if not guarded}
            found = self._names[file] = {}
            for node in _in_scope(file.tree):
                _bind(found, self._bound(node, file, plain, functions=True))
        return self._names[file]

    def _own_names(self, here: _Defined) -> Mapping[str, _Meaning]:
        """The same of a function: its parameters, and what it and the functions in it bind."""
        plain = {statement for statement, guarded, _ in import_statements(here.node) if not guarded}
        found: dict[str, _Meaning] = {}
        shared: set[str] = set()
        for node in ast.walk(here.node):
            if isinstance(node, ast.arg):
                found[node.arg] = None
            elif isinstance(node, ast.Global):
                shared.update(node.names)
            elif node is not here.node and not isinstance(node, (ast.expr_context, ast.Constant)):
                _bind(found, self._bound(node, here.file, plain, functions=False))
        return {name: meant for name, meant in found.items() if name not in shared}

    def _bound(
        self, node: ast.AST, file: _File, plain: Container[ast.AST], *, functions: bool
    ) -> Iterable[tuple[str, _Meaning]]:
        """The names that a node binds; plain: import statements that are not guarded."""
        if isinstance(node, _Statement) and node in plain:
            return self._bound_by(node, file)
        if isinstance(node, _DEFINITIONS):
            return [(node.name, _Defined(file, node) if functions and isinstance(node, _Function) else None)]
        return [(name, None) for name in _stored(node)]


def _bind(found: dict[str, _Meaning], bound: Iterable[tuple[str, _Meaning]]) -> None:
    for name, meant in bound:
        found[name] = None if name in found else meant


def _base(statement: ast.ImportFrom, file: _File) -> str:
    """The whole name of the module that names are imported from; empty where it is above all packages."""
    if not statement.level:
        return statement.module or ""
    kept = len(file.package) - statement.level + 1
    return ".".join([*file.package[:kept], *filter(None, [statement.module])]) if kept > 0 else ""


def _holds_source(folder: Path) -> bool:
    """Whether a folder can be imported, as a package or as a namespace of modules and packages."""
    return folder.is_dir() and any(any(folder.glob(pattern)) for pattern in ("*.py", "*/__init__.py"))


def _in_scope(module: ast.Module) -> Iterator[ast.AST]:
    """The nodes of a module, without what is in its functions and classes."""
    waiting: list[ast.AST] = [module]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, (*_DEFINITIONS, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


def _stored(node: ast.AST) -> list[str]:
    """The names that a node binds, itself."""
    if isinstance(node, _Statement):
        return [each.asname or each.name.partition(".")[0] for each in node.names]
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        return [node.id]
    name = node.name if isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) else None
    return [name] if name else []


def _evaluated(function: _Function) -> Iterator[ast.AST]:
    """What is evaluated when a function runs, functions inside it included; not what is guarded, and no annotations."""
    waiting: list[ast.AST] = [*reversed(function.body)]
    while waiting:
        node = waiting.pop()
        yield node
        without_body = isinstance(node, ast.stmt) and (guards(node) or is_for_type_checkers(node))
        children: list[Any] = []
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns", "ctx") and not (without_body and name == "body"):
                children += value if isinstance(value, list) else [value]
        waiting += [each for each in reversed(children) if isinstance(each, ast.AST)]


def _operands(node: ast.AST) -> list[ast.expr]:
    """The expressions whose values are used by a node, and not only handed on."""
    if isinstance(node, (ast.Attribute, ast.Subscript)):
        return [node.value]
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    return [node.func] if isinstance(node, ast.Call) else []
