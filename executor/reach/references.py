"""What a piece of code refers to beyond itself: names of its module with what is taken from them, imports, texts.

Scopes are told apart as Python does it: a name that a function binds is its own. Where that cannot be told, a name counts
as one of the module: too much is reached then, never too little.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from executor.reach.modules import (
    FUNCTIONS,
    Alias,
    aliases_of,
    bound_by,
    bound_in,
    executed_parts,
    in_scope,
)
from executor.reach.normal import Definition

#: What does nothing to a function or class that it is given but call it, or compare it.
_ONLY_CALL = frozenset(
    {"map", "filter", "sorted", "min", "max", "partial", "reduce", "isinstance", "issubclass", "submit"}
)

_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Chain(NamedTuple):
    """A name, and the attributes that are taken from it one after the other.

    is_handed: it is neither called nor only compared, so whoever gets it can look at all of it
    text:      the first argument of the call that it is the function of, where that is a text; None without any argument
    is_stored: the last attribute is set, and not read
    settings:  names of the other arguments of that call: those that are `True`, and with a `?` those that are not plain
    """

    name: str
    attributes: tuple[str, ...]
    is_handed: bool
    text: str | None = ""
    settings: frozenset[str] = frozenset()
    is_stored: bool = False


@dataclass
class References:
    """chains: names of the module; imported: the same of what is imported here; loaded: what is imported here."""

    chains: set[Chain] = field(default_factory=set)
    imported: set[tuple[Alias, Chain]] = field(default_factory=set)
    loaded: set[Alias] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    handed: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)


@dataclass
class _Scope:
    """The names that are bound here, and those that stand for something imported; a class has none of its own."""

    names: frozenset[str]
    shared: frozenset[str] = frozenset()
    aliases: dict[str, list[Alias]] = field(default_factory=dict)
    is_class: bool = False


def references(nodes: Sequence[ast.AST], file: str, shows: Callable[[Definition], bool]) -> References:
    """What these nodes at the top level of a file refer to; shows: see `executor.reach.normal.canonical`."""
    reader = _Reader(file, shows)
    for node in nodes:
        reader.read(node)
    return reader.found


class _Reader:
    def __init__(self, file: str, shows: Callable[[Definition], bool]) -> None:
        self.found = References()
        self._file = file
        self._shows = shows
        self._scopes: list[_Scope] = []
        self._classes: list[str] = []
        self._seen_by_others = False

    def read(self, node: ast.AST, *, is_handed: bool = True) -> None:
        if isinstance(node, (ast.Name, ast.Attribute)):
            self._read_chain(node, Chain("", (), is_handed))
        elif isinstance(node, ast.Call):
            self._read_call(node)
        elif isinstance(node, (*FUNCTIONS, ast.Lambda)):
            self._read_function(node)
        elif isinstance(node, ast.ClassDef):
            self._read_class(node)
        elif isinstance(node, _COMPREHENSIONS):
            self._read_comprehension(node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self._read_import(node)
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str):
                self.found.texts.add(node.value)
        else:
            self._read_rest(node)

    def _read_rest(self, node: ast.AST) -> None:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            self._look_up(Chain(node.target.id, (), is_handed=True))
        in_function = bool(self._scopes) and not self._scopes[-1].is_class
        for each in executed_parts(node):
            if isinstance(node, ast.AnnAssign) and each is node.annotation:
                if not in_function:
                    self._read_annotation(each)
            else:
                compared = isinstance(node, ast.ExceptHandler) and each is node.type
                self.read(each, is_handed=not compared)

    # -- names -------------------------------------------------------------------------------------------------------------

    def _read_chain(self, node: ast.Name | ast.Attribute, chain: Chain) -> None:
        attributes: list[str] = []
        head: ast.AST = node
        while isinstance(head, ast.Attribute):
            attributes.insert(0, head.attr)
            head = head.value
        self.found.attributes.update(attributes)
        if chain.is_handed and attributes:
            self.found.handed.add(attributes[-1])
        if not isinstance(head, ast.Name):
            self.read(head)
        elif attributes or isinstance(head.ctx, ast.Load):
            is_stored = not isinstance(node.ctx, ast.Load)
            self._look_up(chain._replace(name=head.id, attributes=tuple(attributes), is_stored=is_stored))

    def _look_up(self, chain: Chain) -> None:
        if self._classes and chain.name.startswith("__") and not chain.name.endswith("__"):
            chain = chain._replace(name=f"_{self._classes[-1].lstrip('_')}{chain.name}")
        for scope in reversed(self._scopes):
            if chain.name in scope.shared:
                break
            if chain.name in scope.names:
                self.found.imported.update((alias, chain) for alias in scope.aliases.get(chain.name, ()))
                return
        self.found.chains.add(chain)

    def _read_call(self, node: ast.Call) -> None:
        text = "" if node.args or node.keywords else None
        if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            text = node.args[0].value
        if isinstance(node.func, (ast.Name, ast.Attribute)):
            self._read_chain(node.func, Chain("", (), is_handed=False, text=text, settings=_settings(node)))
        else:
            self.read(node.func, is_handed=False)
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        for each in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.read(each, is_handed=name not in _ONLY_CALL)

    # -- scopes ------------------------------------------------------------------------------------------------------------

    def _read_function(self, node: _Function) -> None:
        seen = self._seen_by_others
        if not isinstance(node, ast.Lambda):
            self._seen_by_others = seen or self._shows(node)
            for decorator in node.decorator_list:
                self.read(decorator, is_handed=False)
            if self._seen_by_others:
                self._read_annotations(node)
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.read(default)
        body = [node.body] if isinstance(node, ast.Lambda) else node.body
        parameters = {each.arg for each in _parameters(node.args)}
        self._scopes.append(self._scope(body, parameters))
        for each in (*getattr(node, "type_params", ()), *body):
            self.read(each)
        self._scopes.pop()
        self._seen_by_others = seen

    def _scope(self, body: Sequence[ast.AST], parameters: set[str]) -> _Scope:
        nodes = list(in_scope(body))
        aliases: dict[str, list[Alias]] = {}
        of_module: set[str] = set()
        of_others: set[str] = set()
        for node in nodes:
            if isinstance(node, ast.Global):
                of_module.update(node.names)
            elif isinstance(node, ast.Nonlocal):
                of_others.update(node.names)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                for alias in aliases_of(node, self._file):
                    aliases.setdefault(alias.bound, []).append(alias)
        return _Scope((bound_by(nodes) | parameters) - of_module - of_others, frozenset(of_module), aliases)

    def _read_class(self, node: ast.ClassDef) -> None:
        seen = self._seen_by_others
        self._seen_by_others = seen or self._shows(node)
        for each in (*node.decorator_list, *node.bases):
            self.read(each, is_handed=False)
        for keyword in node.keywords:
            self.read(keyword)
        self._scopes.append(_Scope(frozenset(), is_class=True))
        self._classes.append(node.name)
        for each in (*getattr(node, "type_params", ()), *node.body):
            self.read(each)
        self._classes.pop()
        self._scopes.pop()
        self._seen_by_others = seen

    def _read_comprehension(self, node: _Comprehension) -> None:
        first, *others = node.generators
        self.read(first.iter)
        self._scopes.append(_Scope(bound_in([each.target for each in node.generators])))
        for each in (first.target, *first.ifs, *others):
            self.read(each)
        for name in ("elt", "key", "value"):
            if hasattr(node, name):
                self.read(getattr(node, name))
        self._scopes.pop()

    # -- the rest ----------------------------------------------------------------------------------------------------------

    def _read_import(self, node: ast.Import | ast.ImportFrom) -> None:
        """Note what is loaded; where others can get at the name that is bound, all of what it means is handed on."""
        scope = self._scopes[-1] if self._scopes else None
        for alias in aliases_of(node, self._file):
            self.found.loaded.add(alias)
            if scope and (scope.is_class or alias.bound not in scope.names):
                self.found.imported.add((alias, Chain(alias.bound, (), is_handed=True)))

    def _read_annotations(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for each in (*(each.annotation for each in _parameters(node.args)), node.returns):
            if each is not None:
                self._read_annotation(each)

    def _read_annotation(self, node: ast.AST) -> None:
        """An annotation; one that is written as a text means what the text says."""
        self.read(node)
        for text in _texts(node):
            try:
                self.read(ast.parse(text.strip(), mode="eval").body)
            except (SyntaxError, ValueError):
                continue


def _settings(node: ast.Call) -> frozenset[str]:
    unknown = {"?"} if len(node.args) > 1 or any(each.arg is None for each in node.keywords) else set()
    for each in node.keywords:
        if not isinstance(each.value, ast.Constant):
            unknown.add(f"{each.arg}?")
        elif each.value.value is True:
            unknown.add(str(each.arg))
    return frozenset(unknown)


def _parameters(args: ast.arguments) -> list[ast.arg]:
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    return [*named, *filter(None, (args.vararg, args.kwarg))]


def _texts(node: ast.AST) -> Iterator[str]:
    return (each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str))
