"""The files of a project: which of them a module's name means, and what they hold."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path

from executor.data.sources import source_files
from executor.reach.normal import digest

#: What Python imports and nobody can read.
_COMPILED = (".so", ".pyd", ".pyc")


class Project:
    """The files below `root`, named by their paths from there with `/`; modules are found in its folders `import_roots`.

    A module, or a package, is named by its path without an ending.
    """

    def __init__(self, root: Path, import_roots: Iterable[str]) -> None:
        self.root = root
        self._roots = [posixpath.normpath(each).strip("/") for each in import_roots]
        self.files = frozenset(path.relative_to(root).as_posix() for path in source_files(root, root.parent))
        self._folders = {""} | {folder for file in self.files for folder in _above(file)}
        self._with_source = {folder for file in self.files if file.endswith(".py") for folder in _above(file)}
        self._compiled: dict[str, list[str]] = {}
        for file in self.files:
            if file.endswith(_COMPILED):
                folder, name = posixpath.split(file)
                self._compiled.setdefault(posixpath.join(folder, name.partition(".")[0]), []).append(file)
        self._digests: dict[str, str] = {}

    def read(self, file: str) -> bytes:
        """What a file holds; nothing where it cannot be read."""
        try:
            return (self.root / file).read_bytes()
        except OSError:
            return b""

    def digest(self, file: str) -> str:
        """The SHA-256 of a file."""
        if file not in self._digests:
            self._digests[file] = digest(self.read(file))
        return self._digests[file]

    def is_folder(self, path: str) -> bool:
        """Whether there are files below a path."""
        return path in self._folders

    def below(self, folder: str) -> list[str]:
        """All files below a folder."""
        return sorted(file for file in self.files if not folder or file.startswith(folder + "/"))

    # -- modules -----------------------------------------------------------------------------------------------------------

    def file_of(self, module: str) -> str | None:
        """The source of a module; None where it has none, as a folder without `__init__.py` does."""
        return next((each for each in (f"{module}/__init__.py", f"{module}.py") if each in self.files), None)

    def compiled(self, module: str) -> list[str]:
        """What is imported in place of a module's source."""
        return self._compiled.get(module, [])

    def is_module(self, path: str) -> bool:
        """Whether a path means something that can be imported."""
        return self.has_code(path) or path in self._with_source

    def has_code(self, module: str) -> bool:
        """Whether a module is more than a folder of modules."""
        return bool(self.file_of(module)) or module in self._compiled

    def locate(self, name: Sequence[str]) -> str | None:
        """The module of this absolute name; None where it is not one of the project."""
        if name[0] == "executor":  # run-local's own is there before any of the project's
            return None
        found = [path for root in self._roots if self.is_module(path := posixpath.normpath(f"{root}/{'/'.join(name)}"))]
        return next(iter([path for path in found if self.has_code(path)] or found), None)

    def packages_of(self, module: str) -> list[str]:
        """The packages that a module is in: they are imported before it."""
        return [folder for folder in _above(module) if f"{folder}/__init__.py" in self.files]


def _above(path: str) -> list[str]:
    """The folders that a path is in, outermost first."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]
