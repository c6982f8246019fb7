"""What names stand for, through the imports of a project: its own units, or something from outside."""

from __future__ import annotations

import ast
import builtins

from executor.reach.modules import Alias, Module, Unit, read_module
from executor.reach.project import Project

_MOST_HOPS = 20


class Names:
    """The modules of a project, each read once."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self._modules: dict[str, Module] = {}
        self._found: dict[tuple[str, tuple[str, ...]], Unit | None] = {}

    def module(self, file: str) -> Module:
        """A source file of the project."""
        if file not in self._modules:
            self._modules[file] = read_module(file, self.project.read(file))
        return self._modules[file]

    def locate(self, alias: Alias, name: tuple[str, ...] | None = None) -> str | None:
        """The module of the project that an import looks for, or another of this name; None where it is outside."""
        parts = alias.module if name is None else name
        if alias.folder is None:
            return self.project.locate(parts) if parts else None
        if alias.folder.startswith(".."):
            return None
        return "/".join([*filter(None, [alias.folder]), *parts])

    def outside(self, node: ast.AST, file: str) -> str | None:
        """The full name of what an expression takes from outside the project or from `builtins`; None: it does not.

        Only where the name is bound once, by an import, or not at all.
        """
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        units = self.module(file).bindings.get(node.id, [])
        if not units and not self.module(file).stars and hasattr(builtins, node.id):
            return ".".join(["builtins", node.id, *attributes])
        alias = units[0].alias if len(units) == 1 else None
        if alias is None or self.locate(alias) is not None or alias.folder is not None:
            return None
        return ".".join([*alias.module, *filter(None, [alias.member]), *attributes])

    def defined(self, node: ast.AST, file: str) -> Unit | None:
        """The unit that binds a name, or what is taken from a module of the project; None where it is not just one."""
        attributes: list[str] = []
        while isinstance(node, ast.Attribute):
            attributes.insert(0, node.attr)
            node = node.value
        return self.find((node.id, *attributes), file) if isinstance(node, ast.Name) else None

    def find(self, names: tuple[str, ...], file: str) -> Unit | None:
        """The same for a name of a module with the attributes that are taken from it."""
        if (file, names) not in self._found:
            self._found[file, names] = self._follow(names, file)
        return self._found[file, names]

    def _follow(self, names: tuple[str, ...], file: str | None) -> Unit | None:
        for _ in range(_MOST_HOPS):
            module = self.module(file) if file else None
            units = module.bindings.get(names[0], []) if module else []
            if len(units) != 1 or (module and module.stars):
                return None
            alias = units[0].alias
            if alias is None:
                return units[0] if len(names) == 1 else None
            path = self.locate(alias)
            if path is None:
                return None
            names = (*filter(None, [alias.member]), *names[1:])
            while names and not self._binds(path, names[0]) and self.project.is_module(f"{path}/{names[0]}"):
                path, names = f"{path}/{names[0]}", names[1:]
            file = self.project.file_of(path)
            if not names:
                return None
        return None

    def module_of(self, node: ast.AST, file: str) -> str | None:
        """The module of the project that a name, bound by an import and nothing else, stands for."""
        units = self.module(file).bindings.get(node.id, []) if isinstance(node, ast.Name) else []
        alias = units[0].alias if len(units) == 1 else None
        path = self.locate(alias) if alias else None
        if alias is None or path is None or not alias.member:
            return path
        return f"{path}/{alias.member}" if self.project.is_module(f"{path}/{alias.member}") else None

    def _binds(self, path: str, name: str) -> bool:
        file = self.project.file_of(path)
        return bool(file) and name in self.module(str(file)).bindings
