"""What can be read off a source file without running it: whether it is the project's own, and what it imports."""

from __future__ import annotations

import ast
import contextlib
import os
from collections.abc import Iterator

_CATCH_IMPORT_ERROR = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_MARKS_OF_AN_ENVIRONMENT = ("pyvenv.cfg", "conda-meta")
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


def is_source(root: str, file: str) -> bool:
    """Whether a file is the project's own: below the root, and nothing installed, hidden or part of run-local."""
    if not file.startswith(root.rstrip(os.sep) + os.sep) or file.startswith((_OURS, _STDLIB)):
        return False
    *folders, _ = os.path.relpath(file, root).split(os.sep)
    for depth, folder in enumerate(folders, start=1):
        path = os.path.join(root, *folders[:depth])
        if folder in _INSTALLED or folder.startswith("."):
            return False
        if any(os.path.exists(os.path.join(path, mark)) for mark in _MARKS_OF_AN_ENVIRONMENT):
            return False
    return True


def read_imports(file: str) -> dict[int, bool]:
    """The lines of a file that belong to import statements, and whether each is guarded."""
    found: dict[int, bool] = {}
    with contextlib.suppress(OSError, SyntaxError, ValueError), open(file, "rb") as source:
        for node, guarded, _ in import_statements(ast.parse(source.read())):
            found.update(dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), guarded))
    return found


def import_statements(
    node: ast.AST, guarded: bool = False, inside: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool, bool]]:
    """The import statements below a node, whether each is guarded, and whether it is inside a function.

    What only type checkers read (`if TYPE_CHECKING:`) is left out.
    """
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node, guarded, inside
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        guarded, inside = False, True  # its body runs when the guard is long gone
    guarding = guards(node)
    for name in _BLOCKS:
        if name == "body" and is_for_type_checkers(node):
            continue
        for child in getattr(node, name, ()):
            yield from import_statements(child, guarded or (guarding and name == "body"), inside)


def guards(node: ast.AST) -> bool:
    """Whether an `ImportError` in the body of a statement is caught by it: a `try`, with or without `*`, or a `with`."""
    if any(map(_catches, getattr(node, "handlers", ()))):
        return True
    return any(_suppresses(item.context_expr) for item in getattr(node, "items", ()))


def is_for_type_checkers(node: ast.AST) -> bool:
    """Whether the body of a statement never runs: it is `if TYPE_CHECKING:`."""
    test = node.test if isinstance(node, ast.If) else None
    return getattr(test, "attr", getattr(test, "id", "")) == "TYPE_CHECKING"


def _catches(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or _names_import_error(handler.type)


def _suppresses(expression: ast.expr) -> bool:
    if not isinstance(expression, ast.Call):
        return False
    named = getattr(expression.func, "attr", getattr(expression.func, "id", ""))
    return named == "suppress" and any(map(_names_import_error, expression.args))


def _names_import_error(expression: ast.expr) -> bool:
    if isinstance(expression, ast.Tuple):
        return any(map(_names_import_error, expression.elts))
    return getattr(expression, "attr", getattr(expression, "id", "")) in _CATCH_IMPORT_ERROR
