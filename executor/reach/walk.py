"""From a task to all the code that its behaviour can depend on.

    a module is loaded    → what has an effect at its top level is reached, and what it imports is loaded
    a unit is reached     → what it refers to is reached
    a module is handed on → all of it is reached, and what it imports is handed on
    nothing is known      → all modules of the project are reached, or all its files as they are

Each step is taken once, so the walk ends; it never reaches less than the program can, as far as `docs/caching.md` says.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from executor.manifest import Manifest, TaskEntry
from executor.reach.effects import Effects
from executor.reach.modules import DEFINITIONS, FUNCTIONS, Alias, Module, Unit, in_scope
from executor.reach.names import Names
from executor.reach.normal import Definition, canonical, digest
from executor.reach.paths import FINDERS, PLACES, Paths
from executor.reach.project import Project
from executor.reach.references import Chain, References, references
from executor.reach.reflection import (
    Extent,
    extent_of,
    extent_of_attribute,
    loads_by_name,
    looks_at_definitions,
    telling,
)

_OWN_MODULE = frozenset({"globals"})
_OWN_MODULE_WITHOUT_ARGUMENTS = frozenset({"vars", "locals", "dir"})
_ANY_MODULE = frozenset({"__builtins__", "__loader__", "__spec__"})
_ALL_NAMES = "__all__"
_TASKS = frozenset({"tasks", "ENVIRONMENTS"})
_LISTING = frozenset({"iterdir", "walk", "listdir", "scandir"})


class Unknowable(Exception):
    """Any code of the project may be reached; extent: what of it counts, reason: by what."""

    def __init__(self, extent: Extent, reason: str) -> None:
        super().__init__(reason)
        self.extent, self.reason = extent, reason


class Source:
    """A project, and what has been found out about its units.

    manifest: what was described of it; without it, tasks are those that the source shows to be declared
    """

    def __init__(self, project: Project, manifest: Manifest | None) -> None:
        self.project = project
        self.names = Names(project)
        self.effects = Effects(self.names)
        self.paths = Paths(self.names)
        self.manifest = manifest
        self.declared = {(each.file, each.qualname): each for each in manifest.tasks.values()} if manifest else {}
        self._references: dict[Unit, References] = {}
        self._forms: dict[tuple[Unit, bool], str] = {}

    def task_of(self, unit: Unit) -> tuple[str, str, ast.expr] | None:
        """Name and environment of the task that a unit declares, and the decorator that does it."""
        node = unit.node
        if not isinstance(node, FUNCTIONS):
            return None
        for decorator in node.decorator_list:
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            entry = self.declared.get((unit.file, node.name))
            if entry and isinstance(called, ast.Attribute) and called.attr == "task":
                return entry.name, entry.environment, decorator
            made = self.effects.environment_of(decorator, unit.file)
            given = [*made.args[:1], *(each.value for each in made.keywords if each.arg == "name")] if made else []
            if given and isinstance(given[0], ast.Constant) and isinstance(given[0].value, str):
                return f"{given[0].value}.{node.name}", given[0].value, decorator
        return None

    def references(self, unit: Unit) -> References:
        """What a unit refers to; whoever calls a task looks at its annotations."""
        if unit not in self._references:
            node, task = self._without_declaration(unit), self.task_of(unit)
            shows = (lambda _: True) if task else self._shows(unit)
            self._references[unit] = references([node], unit.file, shows)
        return self._references[unit]

    def digest(self, unit: Unit, *, is_seen: bool) -> str:
        """The digest of a unit's form; is_seen: somebody may look at docstrings and annotations in it."""
        if (unit, is_seen) not in self._forms:
            self._forms[unit, is_seen] = digest(self._form(unit, is_seen=is_seen))
        return self._forms[unit, is_seen]

    def _form(self, unit: Unit, *, is_seen: bool) -> str:
        if unit.alias:
            return str(self._resolved(unit.alias))
        task = self.task_of(unit)
        node = self._without_declaration(unit)
        if task and isinstance(node, FUNCTIONS):  # whoever calls a task looks at its annotations, and at nothing else
            signature = canonical([node.args, *filter(None, [node.returns])], lambda _: True, all_of_it=True)
            return f"task of {task[1]} {signature} {canonical([node], self._shows(unit), is_seen)}"
        return canonical([node], self._shows(unit), is_seen)

    def _resolved(self, alias: Alias) -> Alias:
        """An import by where it leads, however that is written."""
        path, loaded = self.names.locate(alias), self.names.locate(alias, alias.loaded)
        if path is None or loaded is None:
            return alias
        return replace(alias, module=(path,), loaded=(loaded,), folder="")

    def _without_declaration(self, unit: Unit) -> ast.stmt:
        """A task's function without `@env.task(…)`: what that says is in the manifest."""
        task, node = self.task_of(unit), unit.node
        if task is None or not isinstance(node, FUNCTIONS):
            return node
        fields = {name: getattr(node, name) for name in node._fields if hasattr(node, name)}
        fields["decorator_list"] = [each for each in node.decorator_list if each is not task[2]]
        return ast.copy_location(type(node)(**fields), node)

    def _shows(self, unit: Unit) -> Callable[[Definition], bool]:
        return lambda node: self.effects.shows(node, unit.file)


class Walk:
    """One walk through a project.

    tasks:  names of the tasks that were reached; environments: those of which they are
    files:  files that are reached by content, Python source as text included
    absent: paths of the project that are named, and where nothing is
    """

    def __init__(self, source: Source) -> None:
        self.tasks: set[str] = set()
        self.environments: set[str] = set()
        self.files: set[str] = set()
        self.absent: set[str] = set()
        self._source, self._names, self._effects, self._project = source, source.names, source.effects, source.project
        self._manifest = source.manifest
        self._loaded: set[str] = set()
        self._units: dict[Unit, References] = {}
        self._whole: set[str] = set()
        self._seen: set[object] = set()
        self._handed: set[Unit] = set()
        self._handed_attributes: set[str] = set()
        self._looks = self._all_tasks = False
        self._waiting: list[Unit] = []

    def start(self, task: TaskEntry) -> None:
        """Reach a task."""
        if task.file not in self._project.files:
            raise Unknowable("source", f"{task.file}, which is no file of it")
        module = task.file.removesuffix(".py").removesuffix("/__init__")
        self._load(module)
        self._take(module, tuple(task.qualname.split(".")), Chain("", (), is_handed=False))
        self.tasks.add(task.name)
        self._enter(task.environment)

    def bring(self, module: str, qualname: str) -> None:
        """Reach what a value names: a class or function of a module."""
        path = self._project.locate(tuple(module.split("."))) if module else None
        if path is not None:
            self._load_with_packages(path)
            self._take(path, tuple(qualname.split(".")), Chain("", (), is_handed=True))

    def finish(self) -> None:
        """Take all steps that are left."""
        while self._waiting:
            unit = self._waiting.pop()
            self._visit(unit)

    # -- modules -----------------------------------------------------------------------------------------------------------

    def _load_with_packages(self, path: str) -> None:
        for each in (*self._project.packages_of(path), path):
            self._load(each)

    def _load(self, path: str) -> None:
        """A module is imported, or begins to be."""
        if path in self._loaded or not self._project.is_module(path):
            return
        self._loaded.add(path)
        for package in self._project.packages_of(path):
            self._load(package)
        self.files.update(self._project.compiled(path))
        file = self._project.file_of(path)
        if file is None:
            return
        module = self._names.module(file)
        if module.tree is None:
            raise Unknowable("source", f"{file} cannot be understood")
        for unit in module.units:
            if unit.is_main:
                continue
            for alias in unit.aliases:
                self._load_alias(alias)
            if self._effects.has_effect(unit) or (self._all_tasks and self._source.task_of(unit)):
                self._reach(unit)

    def _load_alias(self, alias: Alias) -> None:
        path = self._names.locate(alias, alias.loaded)
        if path is None:
            return
        for each in (*self._project.packages_of(path), path):
            self._load(each)
        if alias.member and alias.member != "*":
            self._load(f"{path}/{alias.member}" if path else alias.member)
        if alias.member == "*":
            self._load_listed(path)

    def _load_listed(self, path: str) -> None:
        """The modules that `__all__` of a package names: `from package import *` loads them."""
        file = self._project.file_of(path)
        for unit in self._names.module(file).bindings.get(_ALL_NAMES, ()) if file else ():
            for node in ast.walk(unit.node):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    self._load(f"{path}/{node.value}")

    def _hand_on(self, path: str) -> None:
        """Somebody has a module itself: all that is in it, and in the modules below it, can be reached."""
        if path in self._whole:
            return
        self._whole.add(path)
        self._load_with_packages(path)
        file = self._project.file_of(path)
        module = self._names.module(file) if file else None
        for unit in module.units if module else ():
            self._reach(unit)
            for alias in unit.aliases:
                self._follow(alias, Chain(alias.bound, (), is_handed=True))
        if file is None or file.endswith("/__init__.py"):
            for each in self._project.below(path):
                below = each.removesuffix(".py").removesuffix("/__init__")
                if each.endswith(".py") and below in self._loaded:
                    self._hand_on(below)

    # -- names -------------------------------------------------------------------------------------------------------------

    def _once(self, *step: object) -> bool:
        """Whether this step is to be taken: it has not been taken yet."""
        if step in self._seen:
            return False
        self._seen.add(step)
        return True

    def _take(self, path: str, attributes: tuple[str, ...], chain: Chain) -> None:
        """Attributes are taken from a module of the project."""
        if not self._once("take", path, attributes, chain):
            return
        if not attributes:
            self._hand_on(path)
            return
        name, rest = attributes[0], attributes[1:]
        found = False
        below = f"{path}/{name}"
        file = self._project.file_of(path)
        if (file is None or file.endswith("/__init__.py")) and self._project.is_module(below):
            found = True
            self._load(below)
            self._take(below, rest, chain)
        if file is not None:
            module = self._names.module(file)
            if module.tree is None:
                raise Unknowable("source", f"{file} cannot be understood")
            found |= self._use(module, name, rest, chain)
            if not found and (rest or not chain.is_stored):
                self._hand_on(path)

    def _use(self, module: Module, name: str, rest: tuple[str, ...], chain: Chain) -> bool:
        """A name of a module is used; whether it is bound there, or by one of its `import *`."""
        if not self._once("use", module.file, name, rest, chain):
            return bool(module.bindings.get(name))
        units = module.bindings.get(name, [])
        for unit in units:
            self._reach(unit)
            if chain.is_handed and not rest:
                self._handed.add(unit)
            for alias in unit.aliases:
                if alias.bound == name:
                    self._follow(alias, chain._replace(attributes=rest))
        found = [self._use_star(star, name, rest, chain) for star in module.stars if name != _ALL_NAMES]
        return bool(units) or any(found)

    def _use_star(self, star: Unit, name: str, rest: tuple[str, ...], chain: Chain) -> bool:
        self._reach(star)
        path = self._names.locate(star.aliases[0])
        if path is None:
            self._refuse(".".join(star.aliases[0].module), star.file)
            return False
        file = self._project.file_of(path)
        found = False
        if self._project.is_module(f"{path}/{name}") and f"{path}/{name}" in self._loaded:
            found = True
            self._take(f"{path}/{name}", rest, chain)
        if file is not None:
            self._use(self._names.module(file), _ALL_NAMES, (), chain._replace(is_handed=False))
            found |= self._use(self._names.module(file), name, rest, chain)
        return found

    def _follow(self, alias: Alias, chain: Chain) -> None:
        """What an import has bound is used."""
        if alias.bound == "*" or not self._once("follow", alias, chain):
            return
        path = self._names.locate(alias)
        taken = (*filter(None, [alias.member]), *chain.attributes)
        if path is None or (not self._project.has_code(path) and alias.folder is None):
            self._take_outside(".".join([*alias.module, *taken]), chain)
        if path is not None:
            self._take(path, taken, chain)

    def _take_outside(self, name: str, chain: Chain) -> None:
        if loads_by_name(name) and chain.text:
            path = self._project.locate(tuple(chain.text.lstrip(".").split(".")))
            if path is not None:
                self._hand_on(path)
            elif chain.text.startswith("."):
                raise Unknowable("modules", f"`{name}` of `{chain.text}`")
            return
        if name.startswith(("importlib.metadata", "importlib.resources")) or name in ("pkgutil.get_data", "sys.exit"):
            return
        self._refuse(name, "", chain.settings)
        if looks_at_definitions(name):
            self._looks = True

    def _refuse(self, name: str, file: str, settings: Collection[str] = ()) -> None:
        extent = extent_of(name, settings)
        if extent is not None:
            raise Unknowable(extent, f"`{name}`" + (f" of {file}" if file else ""))

    # -- units -------------------------------------------------------------------------------------------------------------

    def _reach(self, unit: Unit) -> None:
        if unit not in self._units:
            self._units[unit] = References()
            self._waiting.append(unit)

    def _visit(self, unit: Unit) -> None:
        found = self._units[unit] = self._source.references(unit)
        module = self._names.module(unit.file)
        task = self._source.task_of(unit)
        if task:
            self.tasks.add(task[0])
            self._enter(task[1])
        try:
            words = found.attributes.union(*(text.split(".") for text in found.texts))
            for attribute in telling(words):
                self._look_at_attribute(attribute)
            if _TASKS & words:
                self._reach_all_tasks()
            for alias in found.loaded:
                self._load_alias(alias)
            for alias, chain in found.imported:
                self._follow(alias, chain)
            for chain in found.chains:
                self._use_name(module, chain)
        except Unknowable as exc:
            raise Unknowable(
                exc.extent, f"{exc.reason} in {unit.file}" if " in " not in exc.reason else exc.reason
            ) from exc
        self._handed_attributes |= found.handed
        self._read_texts(unit, found)
        self._name_files(unit, found)

    def _reach_all_tasks(self) -> None:
        """Tasks may be had from their environments."""
        self._all_tasks = True
        files = filter(None, map(self._project.file_of, self._loaded))
        for unit in [unit for file in files for unit in self._names.module(file).units]:
            if self._source.task_of(unit):
                self._reach(unit)

    def _look_at_attribute(self, attribute: str) -> None:
        extent = extent_of_attribute(attribute)
        if extent is not None:
            raise Unknowable(extent, f"`.{attribute}`")
        self._looks = True

    def _use_name(self, module: Module, chain: Chain) -> None:
        if self._use(module, chain.name, chain.attributes, chain):
            return
        if chain.name in _OWN_MODULE or (chain.name in _OWN_MODULE_WITHOUT_ARGUMENTS and chain.text is None):
            self._hand_on(module.file.removesuffix(".py").removesuffix("/__init__"))
        elif chain.name in _ANY_MODULE:
            raise Unknowable("modules", f"`{chain.name}`")
        elif chain.name == "__doc__":
            self._whole_text(module)
        elif hasattr(builtins, chain.name):
            self._take_outside(".".join(["builtins", chain.name]), chain)

    def _whole_text(self, module: Module) -> None:
        """The module's own docstring is used."""
        self.files.add(module.file)

    def _read_texts(self, unit: Unit, found: References) -> None:
        """Texts may name modules, tasks or files."""
        runs_modules = "-m" in found.texts
        for text in found.texts:
            name = text.replace(":", ".")
            if all(part.isidentifier() for part in name.split(".")) and ("." in name or runs_modules):
                self._read_name(tuple(name.split(".")))
            folder = unit.file.rpartition("/")[0]
            for path in (text, f"{folder}/{text}"):
                if path in self._project.files:
                    self._name_file(path)

    def _read_name(self, name: tuple[str, ...]) -> None:
        task = self._manifest.tasks.get(".".join(name)) if self._manifest else None
        if task:
            self.start(task)
        for end in range(len(name), 0, -1):
            path = self._project.locate(name[:end])
            if path is not None and self._project.has_code(path):
                self._load_with_packages(path)
                self._take(path, name[end:], Chain("", (), is_handed=True))
                return

    def _name_files(self, unit: Unit, found: References) -> None:
        if not self._may_name_files(unit, found):
            return
        for path in self._source.paths.named_by([unit.node], unit.file):
            if path in self._project.files:
                self._name_file(path)
            elif self._project.is_folder(path):
                self._name_folder(path, found)
            elif not path.startswith(".."):
                self.absent.add(path)
        if PLACES & {chain.name for chain in found.chains} and unit.file in self.files:
            self._name_folder(unit.file.rpartition("/")[0], found)

    def _may_name_files(self, unit: Unit, found: References) -> bool:
        if PLACES & (found.attributes | {chain.name for chain in found.chains}):
            return True
        imported = [*found.loaded, *(each for one in self._names.module(unit.file).units for each in one.aliases)]
        if any(each.module[:1] and each.module[0] in FINDERS for each in imported):
            return True
        ways = ((chain.name, *chain.attributes[:n]) for chain in found.chains for n in range(len(chain.attributes) + 1))
        units = [self._names.find(way, unit.file) for way in ways]
        return any(each is not None and self._source.paths.is_path(each) for each in units)

    def _name_folder(self, path: str, found: References) -> None:
        with_source = bool(found.attributes & _LISTING) or any(text.endswith((".py", "*")) for text in found.texts)
        self.files.update(each for each in self._project.below(path) if with_source or not each.endswith(".py"))

    def _name_file(self, path: str) -> None:
        """A file is read; one of source may be run as well."""
        self.files.add(path)
        if path.endswith(".py"):
            self._hand_on(path.removesuffix(".py").removesuffix("/__init__"))

    # -- tasks -------------------------------------------------------------------------------------------------------------

    def _enter(self, environment: str) -> None:
        """An environment is reached: what it loads beforehand is loaded."""
        if environment in self.environments:
            return
        self.environments.add(environment)
        entry = self._manifest.environments.get(environment) if self._manifest else None
        for name in entry.preload if entry else ():
            path = self._project.locate(tuple(name.split(".")))
            if path is not None:
                self._load_with_packages(path)

    # -- what was reached --------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, str]:
        """What was reached, by name → digest."""
        found: dict[str, list[Unit]] = {}
        whole = {self._project.file_of(path) for path in self._whole}
        for unit in sorted(self._units, key=lambda each: (each.file, each.index)):
            if unit.file not in whole and not (unit.is_main):
                found.setdefault(f"{unit.file}: {unit.label}", []).append(unit)
        parts = {
            label: digest("\n".join(self._source.digest(each, is_seen=self._is_seen(each)) for each in units))
            for label, units in found.items()
        }
        for file in sorted(filter(None, whole)):
            parts[f"module {file}"] = digest(canonical(_tree(self._names.module(file)), lambda _: True, all_of_it=True))
        parts.update({f"file {file}": self._project.digest(file) for file in self.files})
        parts.update({f"file {path}": "absent" for path in self.absent})
        parts.update(self._orders(whole))
        return parts

    def _is_seen(self, unit: Unit) -> bool:
        """Whether somebody can look at the docstrings and annotations of what a unit defines."""
        if self._looks or (unit in self._handed and isinstance(unit.node, DEFINITIONS)):
            return True
        methods = unit.node.body if isinstance(unit.node, ast.ClassDef) else []
        return any(
            isinstance(each, FUNCTIONS) and not each.decorator_list and each.name in self._handed_attributes
            for each in methods
        )

    def _orders(self, whole: set[str | None]) -> Mapping[str, str]:
        """In which order the top levels of modules run, as far as that can matter."""
        imports = self._imports()
        acting = {unit.file for unit in self._units if self._acts(unit)}
        critical = _on_circles(imports) | _leading_to(imports, acting)
        orders = {}
        for file in imports:
            units = [each for each in self._names.module(file).units if not each.is_main]
            kept = [each for each in units if each in self._units or self._leads_to(each, critical)]
            orders[file] = "" if file in whole else self._order(kept, critical)
        return {f"{file}: order": digest(order) for file, order in orders.items() if order}

    def _leads_to(self, unit: Unit, files: Collection[str]) -> bool:
        return any(file in files for alias in unit.aliases for file in self._files_of(alias))

    def _acts(self, unit: Unit) -> bool:
        return self._effects.has_effect(unit) and not self._effects.is_package_import(unit)

    def _imports(self) -> dict[str, set[str]]:
        """Which loaded file imports which."""
        found: dict[str, set[str]] = {}
        for path in self._loaded:
            file = self._project.file_of(path)
            if file is None:
                continue
            others = found.setdefault(file, set())
            for unit in self._names.module(file).units:
                for alias in (*unit.aliases, *(self._units[unit].loaded if unit in self._units else ())):
                    others.update(self._files_of(alias))
        return found

    def _files_of(self, alias: Alias) -> Iterable[str]:
        path = self._names.locate(alias, alias.loaded)
        if path is None:
            return []
        paths = [*self._project.packages_of(path), path, *([f"{path}/{alias.member}"] if alias.member else [])]
        return filter(None, map(self._project.file_of, paths))

    def _order(self, units: list[Unit], critical: set[str]) -> str:
        """The labels of what was reached in a module; what nobody can tell the order of is sorted.

        Empty where the order of nothing can be told.
        """
        bound: dict[str, int] = {}
        for unit in units:
            for name in unit.names:
                bound[name] = bound.get(name, 0) + 1
        order: list[str] = []
        run: list[str] = []
        acts = False
        for unit in units:
            again = any(bound[name] > 1 for name in unit.names)
            if again or self._depends_on_order(unit, critical):
                order += [*sorted(run), f"! {unit.label}"]
                run, acts = [], True
            else:
                run.append(unit.label)
        return "\n".join([*order, *sorted(run)]) if acts else ""

    def _depends_on_order(self, unit: Unit, critical: set[str]) -> bool:
        """Whether it does something when it is imported that what stands before it can change."""
        if unit.alias:
            return self._leads_to(unit, critical)
        if self._effects.has_effect(unit):
            return True
        task = self._source.task_of(unit)
        return any(
            isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)
            for part in _evaluated(unit.node)
            if not task or part is not task[2]
            for each in in_scope([part])
        )


def _evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """What is evaluated when a statement at the top level runs, without what is only defined."""
    if isinstance(node, FUNCTIONS):
        yield from (*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults))
    elif isinstance(node, ast.ClassDef):
        yield from (*node.decorator_list, *node.bases, *node.keywords)
        for each in node.body:
            yield from _evaluated(each)
    elif isinstance(node, (ast.If, ast.Try)):
        yield from ([node.test] if isinstance(node, ast.If) else node.handlers)
        for each in (*node.body, *node.orelse, *getattr(node, "finalbody", ())):
            yield from _evaluated(each)
    elif isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        yield from ast.walk(node)
    else:
        yield node


def _tree(module: Module) -> list[ast.AST]:
    return [module.tree] if module.tree else []


def _on_circles(imports: Mapping[str, set[str]]) -> set[str]:
    """The files that import each other in a circle, and what lies between such circles."""
    left = {file: set(others) for file, others in imports.items()}
    while True:
        ends = {file for file, others in left.items() if not others & left.keys()}
        if not ends:
            return set(left)
        for file in ends:
            del left[file]


def _leading_to(imports: Mapping[str, set[str]], files: set[str]) -> set[str]:
    """These files, and all that import them, directly or not."""
    importers: dict[str, set[str]] = {}
    for file, others in imports.items():
        for other in others:
            importers.setdefault(other, set()).add(file)
    found, waiting = set(files), list(files)
    while waiting:
        new = importers.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found
