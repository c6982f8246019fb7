"""From the name of a workflow to its manifest: find the file that holds it, and let a child process describe that.

    describe("alphafold_workflow", Path.cwd())
      → find_root         the project around the folder
      → scan              its tasks, read off the source; nothing is imported that need not be
      → executor.worker.describe, in a child that imports the one module and answers with JSON

The child has a file for its answer, because user code prints; what it prints is shown only where it fails.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executor import machine
from executor.data.sources import source_files
from executor.errors import ProjectError, UsageError
from executor.manifest import Manifest, TaskEntry, parse_manifest

PATIENCE_S = 60.0
_GRACE_S = 5.0

_MARKS_OF_A_ROOT = ("setup.cfg", "pyproject.toml", ".git")
_TESTS = frozenset({"test", "tests"})
_MOST_NAMES = 20
_REFERENCE = re.compile(r"""reference_task\(\s*["']([\w-]+\.\w+)["']""")
_OURS = str(Path(__file__).resolve().parent.parent)
_START = (
    "import sys; path = [entry for entry in sys.path if entry]; sys.path[:] = [sys.argv[2], *path];"
    "from executor.worker.describe import main; main(path)"
)


@dataclass(frozen=True, kw_only=True)
class _Declared:
    """A task as the source shows it; `variable` is what stands before `.task`."""

    path: Path
    name: str
    variable: str


@dataclass(frozen=True)
class _Source:
    """What a scan of a project found.

    environments: variable → file → names of the environments that it stands for there, where these are plain to see
    broken:       files that might declare tasks and that Python cannot read → their text
    """

    declared: list[_Declared] = field(default_factory=list)
    environments: dict[str, dict[Path, set[str]]] = field(default_factory=dict)
    broken: dict[Path, str] = field(default_factory=dict)

    def is_of(self, task: _Declared, environment: str) -> bool:
        """Whether a task seems to be of this environment, which its file declares or imports from another."""
        files = self.environments.get(task.variable, {})
        return environment in files.get(task.path, set().union(*files.values()))


def describe(
    workflow: str, start: Path, patience_s: float = PATIENCE_S, meanwhile: Callable[[], object] = lambda: None
) -> tuple[Manifest, TaskEntry]:
    """The manifest of the project around the folder `start`, and the task that `workflow` names in it.

    workflow:   `alphafold_workflow`, `orchestrator.alphafold_workflow`, `package.module:task` or `file.py:task`
    patience_s: how long importing it may take
    meanwhile:  what else is to be done while another process imports it

    Raises `UsageError` for a name that means no task, or several, and `ProjectError` for code that cannot be read.
    """
    start = start.resolve()
    place, _, task = workflow.rpartition(":")
    environment, _, name = task.rpartition(".")
    root = find_root(start)
    if place:
        path = _named_file(place, start, root)
        if _is_file(place):
            root = find_root(path.parent)
    else:
        path = _find(name, environment, root)
    manifest = _describe(path, root, patience_s, meanwhile)
    in_file = [entry for entry in manifest.tasks.values() if root / entry.file == path and entry.short_name == name]
    fitting = [entry for entry in in_file if environment in ("", entry.environment)]
    if not fitting:
        raise _no_such_task(task, [entry for entry in manifest.tasks.values() if root / entry.file == path], path, root)
    return manifest, fitting[-1]


def _describe(path: Path, root: Path, patience_s: float, meanwhile: Callable[[], object]) -> Manifest:
    """The manifest of a file and of what it refers to by name, in as many goes as it takes to find all of that."""
    source: _Source | None = None
    also: list[Path] = []
    wanted = _REFERENCE.findall(path.read_text("utf-8", "replace"))
    while True:
        if wanted:
            source = source or _scan(root)
            found = [_declaring(name, source, root) for name in wanted]
            more = [each for each in dict.fromkeys(found) if each and each not in (path, *also)]
            also += more
        manifest = _ask(path, root, patience_s, meanwhile, also)
        last, wanted = wanted, manifest.unknown()
        if not wanted:
            return manifest
        if wanted == last:
            raise _refers_to_nothing(wanted[0], manifest, _scan(root), root)


def _declaring(name: str, source: _Source, root: Path) -> Path | None:
    """The file that declares the task `environment.function`, or the environment of this name."""
    environment, _, function = name.partition(".")
    if function:
        named = [each for each in source.declared if each.name == function]
        paths = [each.path for each in named if source.is_of(each, environment)] or [each.path for each in named]
    else:
        places = [place for files in source.environments.values() for place in files.items()]
        paths = [path for path, names in places if environment in names]
    return min(paths, key=lambda path: (_is_test(path, root), str(path)), default=None)


def _refers_to_nothing(name: str, manifest: Manifest, source: _Source, root: Path) -> ProjectError:
    if name in manifest.references:
        environment = name.partition(".")[0]
        there = {f"{environment}.{each.name}" for each in source.declared if source.is_of(each, environment)}
        near = _nearest(name, sorted(there | manifest.tasks.keys()))
        why = f"no file below `{root}` declares a task of that name in an environment of that name"
        return ProjectError(f"{manifest.references[name]}: there is no task `{name}` to refer to", why, near)
    of = next(entry for entry in manifest.environments.values() if name in (*entry.depends_on, *entry.extends))
    names = {each for files in source.environments.values() for found in files.values() for each in found}
    return ProjectError(
        f"environment `{of.name}` ({of.file}:{of.line}) names an environment `{name}` that nobody declares",
        why=f"no file below `{root}` declares it under that name",
        hint=_nearest(name, names) or "pass the `TaskEnvironment` itself",
    )


def find_root(start: Path) -> Path:
    """The project around a folder: where its `envs/` is, else where its set-up is, else the folder itself."""
    above = [start, *start.parents]
    for folder in above:
        if (folder / "envs").is_dir():
            return folder
    return next((folder for folder in above if any((folder / mark).exists() for mark in _MARKS_OF_A_ROOT)), start)


# -- which file --------------------------------------------------------------------------------------------------------


def _is_file(place: str) -> bool:
    return place.endswith(".py") or os.sep in place


def _named_file(place: str, start: Path, root: Path) -> Path:
    """The file that `file.py` or `package.module` means."""
    if _is_file(place):
        path = next((base / place for base in (start, root) if (base / place).is_file()), None)
        if path is None:
            raise UsageError(f"there is no file `{place}`", why=f"it is not in `{start}`")
        return path.resolve()
    ending = os.sep + place.replace(".", os.sep)
    files = [path for path in _python_files(root) if str(path).endswith((ending + ".py", ending + "/__init__.py"))]
    fitting = [path for path in files if _importable(path, root)[0] == place]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        listed = "\n".join(f"`{path.relative_to(root)}`" for path in sorted(fitting))
        raise UsageError(f"`{place}` is the name of several modules", why=listed, hint="name the file: `file.py:task`")
    raise UsageError(f"there is no module `{place}`", why=f"no file below `{root}` is imported under that name")


def _find(name: str, environment: str, root: Path) -> Path:
    """The one file that declares a task of this name; what is declared in tests counts only where nothing else fits."""
    source = _scan(root)
    found = [each for each in source.declared if each.name == name]
    of_environment = [each for each in found if source.is_of(each, environment)]
    paths = {each.path for each in of_environment or found}
    paths = {path for path in paths if not _is_test(path, root)} or paths
    if not paths:  # its file may be one that Python cannot read, and then the import says so
        paths = {path for path, text in source.broken.items() if re.search(rf"\bdef\s+{re.escape(name)}\b", text)}
    if not paths:
        raise _unknown(f"{environment}.{name}" if environment else name, name, source, root)
    if len(paths) > 1:
        listed = "\n".join(f"`{path.relative_to(root)}:{name}`" for path in sorted(paths))
        raise UsageError(f"`{name}` is the name of several tasks", why=listed, hint="name one as it stands here")
    return paths.pop()


def _is_test(path: Path, root: Path) -> bool:
    *folders, file = path.relative_to(root).parts
    return not _TESTS.isdisjoint(folders) or file.startswith("test_") or file == "conftest.py"


def _unknown(wanted: str, name: str, source: _Source, root: Path) -> UsageError:
    names = {each.name for each in source.declared if not _is_test(each.path, root)}
    why = f"below `{root}` there are {_listed(names)}" if names else f"no file below `{root}` declares a task"
    if source.broken:
        why += f"\nleft out, because of errors: {_listed(str(path.relative_to(root)) for path in source.broken)}"
    otherwise = "run it in the folder of your project" if not names else "say where it is: `file.py:task`"
    return UsageError(f"there is no command and no task `{wanted}`", why=why, hint=_nearest(name, names) or otherwise)


def _no_such_task(wanted: str, there: list[TaskEntry], path: Path, root: Path) -> UsageError:
    names = [name for entry in there for name in (entry.short_name, entry.name)]
    return UsageError(
        f"`{path.relative_to(root)}` declares no task `{wanted}`",
        why=f"it declares {_listed(entry.name for entry in there)}" if there else "it declares none",
        hint=_nearest(wanted, names) or "a task is a function with `@env.task`, where `env` is a `TaskEnvironment`",
    )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - _MOST_NAMES
    return ", ".join(f"`{name}`" for name in ordered[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, 3, 0.5)
    return f"did you mean {' or '.join(f'`{each}`' for each in near)}?" if near else ""


# -- what the source says ----------------------------------------------------------------------------------------------


def _scan(root: Path) -> _Source:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes in the user's strings, for example
        return _read_sources(root)


def _read_sources(root: Path) -> _Source:
    source = _Source()
    for path in _python_files(root):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        if b".task" not in data:
            continue
        try:
            tree = ast.parse(data)
        except (SyntaxError, ValueError, RecursionError):
            source.broken[path] = data.decode("utf-8", "replace")
            continue
        for node in _statements(tree):
            _take_note(node, path, source)
    return source


def _statements(block: ast.AST) -> Iterator[ast.AST]:
    """The statements of a module and of its blocks, but not those of functions: a task is found by name in its module."""
    for name in ("body", "handlers", "orelse", "finalbody"):
        for node in getattr(block, name, ()):
            yield node
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _statements(node)


def _take_note(node: ast.AST, path: Path, source: _Source) -> None:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        for decorator in node.decorator_list:
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            if isinstance(called, ast.Attribute) and called.attr == "task":
                source.declared.append(_Declared(path=path, name=node.name, variable=_last_name(called.value)))
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
        call = node.value
        if _last_name(call.func) == "TaskEnvironment":
            given = [*call.args[:1], *(each.value for each in call.keywords if each.arg == "name")]
            names = {each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)}
            for target in node.targets:
                source.environments.setdefault(_last_name(target), {}).setdefault(path, set()).update(names)


def _last_name(node: ast.expr) -> str:
    return str(getattr(node, "attr", getattr(node, "id", "")))


def _python_files(root: Path) -> Iterator[Path]:
    return (path for path in source_files(root, machine.home_path()) if path.suffix == ".py")


# -- the child ---------------------------------------------------------------------------------------------------------


def _importable(path: Path, root: Path) -> tuple[str, list[Path]]:
    """The name to import a file by, and the folders on sys.path that this takes: above its package, and the root."""
    folder, parts = path.parent, [] if path.name == "__init__.py" else [path.stem]
    while (folder / "__init__.py").exists() and folder != root:
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts), list(dict.fromkeys((folder, root)))


def _ask(
    path: Path, root: Path, patience_s: float, meanwhile: Callable[[], object], also: Sequence[Path] = ()
) -> Manifest:
    """The manifest, as the child answers it; `also` are more files to import."""
    modules, roots = [], []
    for each in (path, *also):
        module, folders = _importable(each, root)
        if not module or "." in each.stem:
            raise ProjectError(
                f"`{each.relative_to(root)}` cannot be imported", why="its name is not the name of a module"
            )
        modules.append(module)
        roots += [folder for folder in folders if folder not in roots]
    file = str(path.relative_to(root))
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as printed:
        request = {
            "root": str(root),
            "roots": [str(folder) for folder in roots],
            "module": modules[0],
            "also": modules[1:],
            "file": file,
            "answer": answer.fileno(),
            "patience_s": patience_s,
        }
        with machine.child(
            [sys.executable, "-c", _START, json.dumps(request), _OURS],
            cwd=root,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            pass_fds=[answer.fileno()],
            start_new_session=True,
        ) as child:
            status = _wait(child, patience_s, file, meanwhile)
        answer.seek(0)
        printed.seek(0)
        return _take_answer(answer.read(), printed.read(), status, file)


def _wait(child: subprocess.Popen[Any], patience_s: float, file: str, meanwhile: Callable[[], object]) -> int:
    """Its exit status; it and all that it started are gone afterwards.

    It watches the clock itself, to say where it was; it cannot where it does not come back to Python.
    """
    late = threading.Event()

    def give_up() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(patience_s + _GRACE_S, give_up)
    timer.start()
    try:
        meanwhile()
        status = child.wait()
    finally:
        timer.cancel()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if late.is_set():
        raise ProjectError(
            f"`{file}` is not imported after {patience_s:g} s", why="it hangs in code that is not Python"
        )
    return status


def _take_answer(answer: bytes, printed: bytes, status: int, file: str) -> Manifest:
    try:
        doc: dict[str, Any] = json.loads(answer)
    except ValueError:
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        doc = {"error": {"what": f"`{file}` cannot be imported", "why": f"the process that imported it {how}"}}
    if "error" in doc:
        sys.stderr.write(printed.decode("utf-8", "replace")[-20_000:])
        raise ProjectError(**doc["error"])
    return parse_manifest(doc["manifest"])
