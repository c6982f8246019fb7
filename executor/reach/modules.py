"""One module as what it is made of: the statements at its top level, and the names that they bind.

A unit is one such statement, or one name of an import statement: what a task reaches or does not.
"""

from __future__ import annotations

import ast
import posixpath
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from executor.worker.source import is_for_type_checkers

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = (*FUNCTIONS, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

#: Names that Python sets in every module.
_RESERVED = frozenset({"__file__", "__name__", "__package__", "__path__"})

Statement = ast.Import | ast.ImportFrom


@dataclass(frozen=True)
class Alias:
    """One name of an import statement.

    bound:  the name that it binds; `*` for all names of a module
    module: the parts of the module's name; `import a.b` binds `a` and means it, and loads `a.b`
    loaded: the parts of the name of what is loaded
    member: what is taken from the module, if anything is
    folder: where the module is looked for, if the import is a relative one
    """

    bound: str
    module: tuple[str, ...]
    loaded: tuple[str, ...]
    member: str = ""
    folder: str | None = None

    def __str__(self) -> str:
        return repr((self.bound, self.module, self.member, self.folder))


@dataclass(eq=False)
class Unit:
    """What stands at the top level of a module; `index` is its place among the others.

    names:   what it binds
    aliases: what it imports, functions and classes in it left out
    is_main: it runs only where the module is the main program
    """

    file: str
    index: int
    node: ast.stmt
    names: frozenset[str]
    aliases: tuple[Alias, ...] = ()
    is_main: bool = False

    @property
    def label(self) -> str:
        """What it is called in a key: its kind and its names; without names, it is told apart by its module only."""
        if isinstance(self.node, DEFINITIONS):
            return f"{'class' if isinstance(self.node, ast.ClassDef) else 'function'} {self.node.name}"
        if isinstance(self.node, (ast.Import, ast.ImportFrom)):
            star = self.aliases[0].bound == "*"
            return f"import {'.'.join(self.aliases[0].module) + '.*' if star else self.aliases[0].bound}"
        return f"constant {', '.join(sorted(self.names))}" if self.names else "top level"

    @property
    def alias(self) -> Alias | None:
        """What it imports, where it is nothing but that."""
        return self.aliases[0] if isinstance(self.node, (ast.Import, ast.ImportFrom)) else None


@dataclass(eq=False)
class Module:
    """A source file; `tree` is None where Python cannot read it, or where its names do not mean what they do elsewhere."""

    file: str
    tree: ast.Module | None
    units: list[Unit] = field(default_factory=list)
    bindings: dict[str, list[Unit]] = field(default_factory=dict)

    @property
    def stars(self) -> list[Unit]:
        """The `from … import *` at its top level."""
        return self.bindings.get("*", [])


def read_module(file: str, source: bytes) -> Module:
    """What a source file holds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in the user's strings, for example
            tree = ast.parse(source)
        module = Module(file, tree)
        for statement in tree.body:
            _add(module, statement)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Module(file, None)
    for unit in module.units:
        for name in unit.names:
            module.bindings.setdefault(name, []).append(unit)
    if _RESERVED & module.bindings.keys() or not all(map(_is_usual, module.bindings.get("TYPE_CHECKING", ()))):
        return Module(file, None)
    return module


def _is_usual(unit: Unit) -> bool:
    """Whether a binding of `TYPE_CHECKING` makes it false when the program runs, as everybody expects."""
    value = unit.node.value if isinstance(unit.node, ast.Assign) else None
    return bool(unit.alias) or (isinstance(value, ast.Constant) and not value.value)


def _add(module: Module, statement: ast.stmt) -> None:
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        for alias in aliases_of(statement, module.file):
            module.units.append(
                Unit(module.file, len(module.units), statement, frozenset({alias.bound}), aliases=(alias,))
            )
        return
    if isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    ):
        return
    found = [node for node in in_scope([statement]) if isinstance(node, (ast.Import, ast.ImportFrom))]
    module.units.append(
        Unit(
            module.file,
            len(module.units),
            statement,
            bound_in([statement]),
            tuple(alias for each in found for alias in aliases_of(each, module.file)),
            _is_main(statement),
        )
    )


def aliases_of(statement: Statement, file: str) -> Iterator[Alias]:
    """What an import statement in this file imports."""
    if isinstance(statement, ast.Import):
        for each in statement.names:
            parts = tuple(each.name.split("."))
            yield Alias(each.asname or parts[0], parts if each.asname else parts[:1], parts)
        return
    parts = tuple(statement.module.split(".")) if statement.module else ()
    folder = None
    if statement.level:
        folder = posixpath.normpath(posixpath.join(posixpath.dirname(file), *[".."] * (statement.level - 1)))
        folder = "" if folder == "." else folder
    for each in statement.names:
        yield Alias(each.asname or each.name, parts, parts, each.name, folder)


def _is_main(statement: ast.stmt) -> bool:
    """Whether it is `if __name__ == "__main__":` without an `else`."""
    if not isinstance(statement, ast.If) or statement.orelse or not isinstance(statement.test, ast.Compare):
        return False
    test = statement.test
    sides = [test.left, *test.comparators]
    names = [each.id for each in sides if isinstance(each, ast.Name)]
    texts = [each.value for each in sides if isinstance(each, ast.Constant)]
    return names == ["__name__"] and texts == ["__main__"] and isinstance(test.ops[0], ast.Eq)


def executed_parts(node: ast.AST) -> Iterator[ast.AST]:
    """The children of a node, without what only type checkers read."""
    unread = is_for_type_checkers(node)
    for name, value in ast.iter_fields(node):
        if unread and name == "body":
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.AST):
                yield each


def in_scope(nodes: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """These nodes and what is below them, without the insides of functions, classes and comprehensions."""
    waiting = list(reversed(nodes))
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, (*DEFINITIONS, *SCOPES)):
            waiting += [each for each in _outside_of(node) if isinstance(each, ast.NamedExpr)]
        else:
            waiting += reversed(list(executed_parts(node)))


def _outside_of(node: ast.AST) -> Iterator[ast.AST]:
    """What a definition or comprehension may bind outside itself, by `:=`."""
    waiting: list[ast.AST] = []
    if isinstance(node, DEFINITIONS):
        waiting += node.decorator_list
        waiting += (
            [*node.args.defaults, *filter(None, node.args.kw_defaults)] if isinstance(node, FUNCTIONS) else node.bases
        )
    elif not isinstance(node, ast.Lambda):
        waiting += ast.iter_child_nodes(node)
    while waiting:
        each = waiting.pop()
        yield each
        if not isinstance(each, ast.Lambda):
            waiting += ast.iter_child_nodes(each)


def bound_in(nodes: Sequence[ast.AST]) -> frozenset[str]:
    """The names that these statements bind in the scope that they stand in."""
    return bound_by(in_scope(nodes))


def bound_by(nodes: Iterable[ast.AST]) -> frozenset[str]:
    """The names that these nodes bind, each by itself."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, DEFINITIONS):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update(each.asname or each.name.partition(".")[0] for each in node.names)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            found.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            found.add(node.rest)
    return frozenset(found)
