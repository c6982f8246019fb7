"""What can be read off a source file without running it: whether it is the project's own, and what it imports."""

from __future__ import annotations

import ast
import contextlib
import os

_CATCH_IMPORT_ERROR = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
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
        _find_imports(ast.parse(source.read()), False, found)
    return found


def _find_imports(node: ast.AST, guarded: bool, found: dict[int, bool]) -> None:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        found.update(dict.fromkeys(range(node.lineno, (node.end_lineno or node.lineno) + 1), guarded))
        return
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        guarded = False  # its body runs when the guard is long gone
    guards = any(map(_catches, getattr(node, "handlers", ())))  # a `try`, with or without `*`
    guards = guards or any(_suppresses(item.context_expr) for item in getattr(node, "items", ()))
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else (value,):
            if isinstance(child, ast.AST):
                _find_imports(child, guarded or (guards and name == "body"), found)


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
