"""Source in a form of its own: what changes nothing that a program can tell is left out.

Comments and layout are no part of a syntax tree. Left out as well: where things stand, type comments, `pass`, and, unless
they are asked for, docstrings and the annotations of functions. The form is made here and not by `ast.dump`, whose text
differs between versions of Python: the digests of two hosts are to be equal.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterable

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

_LEFT_OUT = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def digest(text: str | bytes) -> str:
    """The SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text).hexdigest()


def canonical(nodes: Iterable[ast.AST], shows: Callable[[Definition], bool], all_of_it: bool = False) -> str:
    """The form of these nodes.

    shows:     whether a definition's docstring and annotations can be seen by others: then they count
    all_of_it: everything counts, docstrings too
    """
    writer = _Writer(shows, all_of_it)
    for node in nodes:
        writer.write(node)
    return "".join(writer.out)


class _Writer:
    def __init__(self, shows: Callable[[Definition], bool], all_of_it: bool) -> None:
        self.out: list[str] = []
        self._shows = shows
        self._docs = self._annotations = all_of_it
        self._in_function = False

    def write(self, node: ast.AST) -> None:
        if isinstance(node, ast.Constant):
            self.out.append(_constant(node.value))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            self._write_definition(node)
        else:
            self._write_fields(node)

    def _write_definition(self, node: Definition | ast.Lambda) -> None:
        before = self._docs, self._annotations, self._in_function
        if not isinstance(node, ast.Lambda):
            self._docs = self._annotations = self._docs or self._shows(node)
        self._in_function = isinstance(node, _FUNCTIONS)
        self._write_fields(node)
        self._docs, self._annotations, self._in_function = before

    def _write_fields(self, node: ast.AST) -> None:
        self.out.append(type(node).__name__ + "(")
        for name in node._fields:
            value = getattr(node, name, None)
            if name in _LEFT_OUT or value is None or value == [] or self._is_silent(node, name):
                continue
            self.out.append(name + "=")
            self._write_value(value)
            self.out.append(",")
        self.out.append(")")

    def _write_value(self, value: object) -> None:
        if isinstance(value, list):
            self.out.append("[")
            for each in value:
                if not self._says_nothing(each):
                    self._write_value(each)
                    self.out.append(",")
            self.out.append("]")
        elif isinstance(value, ast.AST):
            self.write(value)
        else:
            self.out.append(repr(value))

    def _is_silent(self, node: ast.AST, field: str) -> bool:
        """Whether this field is an annotation that nobody sees; those of variables in a function are never evaluated."""
        if isinstance(node, ast.AnnAssign):
            return field == "annotation" and self._in_function
        return field in ("annotation", "returns") and not self._annotations

    def _says_nothing(self, node: object) -> bool:
        """Whether a statement is `pass`, or a text or number on its own, such as a docstring."""
        constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        return isinstance(node, ast.Pass) or (constant and not self._docs)


def _constant(value: object) -> str:
    """A constant, by its type and value; an int in base 16, because its decimal form may be refused for its length."""
    return f"<{type(value).__name__} {hex(value) if type(value) is int else repr(value)}>"
