"""What the modules of tasks import, and which environments do without it: read off the source, nothing is run.

    the tasks' modules → imports that lead out of the project → those that no package of the environment provides

An environment may do without a module. Where an import statement of the project finds nothing, its module is stood in for
(`worker.stubs`), and only a task that uses the stand-in fails. So what is merely imported is a note, and what a task of
that very environment is seen to need is a warning. What the source does not show is left for the run to find.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from executor.environments.provided import JudgedBy, Provided
from executor.imports import Import, Project, Use
from executor.manifest import Manifest, TaskEntry

_BASES: Mapping[JudgedBy, str] = {
    "files": "",
    "names": " (judged by the names of its packages, until they are fetched)",
    "specification": " (judged by its specification, until it is locked)",
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """An import statement, and how an environment comes to it.

    at:   the statement, `file:line`
    way:  the import statements of the project that lead to it, the last one first; empty in a task's own module
    call: the task whose call makes them necessary; empty where none is seen
    """

    at: str
    way: tuple[str, ...]
    call: str

    def __str__(self) -> str:
        ways = "".join(f", imported by {each}" for each in self.way)
        return f"{self.at}{ways}" + (f" for the call of `{self.call}`" if self.call else "")


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A module that an environment does without.

    places: where the modules of its tasks import it
    uses:   where its tasks need it: task → place
    others: environments of the workflow that hold it
    """

    module: str
    places: tuple[Place, ...]
    uses: Mapping[str, Use]
    others: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one environment does without.

    spec:      where its packages are listed
    missing:   modules that none of them provides
    unknown:   modules of which that is not known yet
    judged_by: what is known of the packages
    """

    environment: str
    spec: str
    missing: tuple[Missing, ...]
    unknown: tuple[str, ...]
    judged_by: JudgedBy

    @property
    def basis(self) -> str:
        """What the judgement rests on, in brackets; empty where that is the packages themselves."""
        return _BASES[self.judged_by]

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """What will fail, and the ways out of it."""
        return [(self._failure(each), self._ways_out(each)) for each in self.missing if each.uses]

    def tell(self) -> Iterator[tuple[str, str]]:
        """What a run says of it, as steps of `executor.environments.Progress`."""
        noted = [each for each in self.missing if not each.uses]
        if noted:
            yield "imports", f"does without {', '.join(each.module for each in noted)}{self.basis}"
        for each in noted:
            yield "import", f"`{each.module}` is imported at {each.places[0]}"
        for failure, ways_out in self.warnings:
            yield "warning", f"{failure}; `run-local plan` says what can be done"
            yield "import", ways_out

    def _failure(self, missing: Missing) -> str:
        (task, use), *others = missing.uses.items()
        also = "".join(f", and `{each}` at {at.at}" for each, at in others)
        file = use.at.rpartition(":")[0]
        near = [*(each for each in missing.places if each.at.startswith(f"{file}:")), *missing.places]
        imported = "" if use.imported or not near else f" (imported at {near[0]})"
        return (
            f"`{task}` fails where it {'imports' if use.imported else 'uses'} `{missing.module}`, at {use.at}{also}"
            f"{imported}: environment `{self.environment}` does not hold it{self.basis}"
        )

    def _ways_out(self, missing: Missing) -> str:
        ways, there = [f"add the package of `{missing.module}` to {self.spec}"], "whose environment holds it"
        if missing.others:
            there = f"of `{missing.others[0]}`"
            ways.append(f"declare `{self.environment}` with `extends=[…]` of `{missing.others[0]}`, which holds it")
        return ", or ".join([*ways, f"leave this to a task {there}: its value can be passed on unopened"])


def check_imports(manifest: Manifest, root: str, provided: Mapping[str, Provided]) -> list[Report]:
    """What the environments that a call of the task `root` can reach do without; one that has all has no report.

    provided: what each of these environments holds
    """
    called = _seen_called(manifest, root)
    project = Project(
        manifest.root, manifest.import_roots, {(task.file, task.qualname) for task in manifest.tasks.values()}
    )
    reports = [_report(manifest, project, name, called, provided) for name in provided]
    return [each for each in reports if each.missing or each.unknown]


def _seen_called(manifest: Manifest, root: str) -> set[str]:
    """The task `root` and those that the source shows to be called because of it."""
    waiting, seen = [root], {root}
    while waiting:
        calls = manifest.tasks[waiting.pop()].calls
        new = [name for name in calls if name in manifest.tasks and name not in seen]
        seen.update(new)
        waiting += new
    return seen


def _report(
    manifest: Manifest, project: Project, environment: str, called: Container[str], provided: Mapping[str, Provided]
) -> Report:
    all_tasks = [task for task in manifest.tasks.values() if task.environment == environment]
    tasks = [task for task in all_tasks if task.name in called] or all_tasks  # a call of one may not be plain to see
    imported: dict[str, list[Import]] = {}
    for each in project.imports_of([task.file for task in tasks]):
        imported.setdefault(each.module, []).append(each)
    needed = {task.name: project.needs_of(task.file, task.qualname) for task in tasks}
    modules = sorted({*imported, *(module for uses in needed.values() for module in uses)})
    has = {module: provided[environment].has(module) for module in modules}
    return Report(
        environment=environment,
        spec=_spec_of(manifest, environment),
        missing=tuple(
            Missing(
                module=module,
                places=tuple(_place(manifest, project, tasks, each) for each in imported.get(module, ())),
                uses={task: uses[module] for task, uses in needed.items() if module in uses},
                others=tuple(name for name, each in provided.items() if each.has(module)),
            )
            for module in modules
            if has[module] is False
        ),
        unknown=tuple(module for module in modules if has[module] is None),
        judged_by=provided[environment].judged_by,
    )


def _spec_of(manifest: Manifest, environment: str) -> str:
    entry = manifest.environments[environment]
    if entry.spec is not None:
        return f"its `CondaSpec` ({entry.file}:{entry.line})"
    return entry.image or f"envs/{environment}/environment.yml"


def _place(manifest: Manifest, project: Project, tasks: Sequence[TaskEntry], found: Import) -> Place:
    """The place of an import, and the call that makes it necessary: of a task that needs it, or whose module leads to it."""
    files = [at.rpartition(":")[0] for at in (found.at, *found.way)]
    called = [each for each in _called(manifest, tasks) if each.file in files]
    needing = [each for each in called if found.module in project.needs_of(each.file, each.qualname)]
    leading = sorted((each for each in called if each.file in files[:-1]), key=lambda each: files.index(each.file))
    call = next((each.name for each in (*needing, *leading)), "")
    return Place(at=found.at, way=found.way, call=call)


def _called(manifest: Manifest, tasks: Sequence[TaskEntry]) -> Iterator[TaskEntry]:
    """The tasks of other environments that these are seen to call."""
    names = dict.fromkeys(name for task in tasks for name in task.calls)
    called = (manifest.tasks[name] for name in names if name in manifest.tasks)
    return (each for each in called if each.environment != tasks[0].environment)
