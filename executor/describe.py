"""From the name of a workflow to its manifest: find the file that holds it, and let a child process describe that.

Names are found by reading the source, never by importing it, so that nothing runs that need not. The child is
`executor.worker.describe`.
"""

from __future__ import annotations

import ast
import difflib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor import machine
from executor.errors import ProjectError, UsageError
from executor.manifest import Manifest, TaskEntry, parse_manifest

_PATIENCE_S = 60
_LEFT_OUT = frozenset({"__pycache__", "node_modules", "site-packages", "build", "dist"})
_MARKS_OF_A_ROOT = ("setup.cfg", "pyproject.toml", ".git")
_CODING = re.compile(rb"\.task\b")


@dataclass(frozen=True)
class _Found:
    """A task in the source: its file, and the names of its function and, if that is plain to see, its environment."""

    path: Path
    function: str


def describe(workflow: str, start: Path) -> tuple[Manifest, TaskEntry]:
    """The manifest of the project around `start`, and the task that `workflow` names in it.

    workflow: `alphafold_workflow`, `orchestrator.alphafold_workflow`, `package.module:task` or `file.py:task`
    """
    root = find_root(start.resolve())
    where, _, name = workflow.rpartition(":")
    environment, _, function = name.rpartition(".")
    path = _named_file(where, start, root) if where else _find(function, root)
    manifest = _ask(path, root)
    found = [
        task
        for task in manifest.tasks.values()
        if task.short_name == function and (not environment or task.environment == environment)
    ]
    in_file = [task for task in found if (root / task.file).resolve() == path.resolve()]
    if len(in_file or found) == 1:
        return manifest, (in_file or found)[0]
    if found:
        names = ", ".join(f"`{task.name}`" for task in found)
        raise UsageError(f"`{workflow}` is the name of several tasks", why=names, hint="name one with its environment")
    near = difflib.get_close_matches(name, [task.short_name for task in manifest.tasks.values()], 3)
    raise UsageError(
        f"`{path.name}` declares no task `{name}`",
        why=f"it declares {', '.join(f'`{each}`' for each in manifest.tasks) or 'none'}",
        hint=f"did you mean `{near[0]}`?" if near else "",
    )


def find_root(start: Path) -> Path:
    """The project around a folder: where its `envs/` is, else where its set-up is, else the folder itself."""
    above = [start, *start.parents]
    for folder in above:
        if (folder / "envs").is_dir():
            return folder
    return next((folder for folder in above if any((folder / mark).exists() for mark in _MARKS_OF_A_ROOT)), start)


def task_names(root: Path) -> dict[str, list[Path]]:
    """Every task that the source declares, by the name of its function."""
    found: dict[str, list[Path]] = {}
    for each in _scan(root):
        found.setdefault(each.function, []).append(each.path)
    return found


def _find(function: str, root: Path) -> Path:
    """The one file that declares a task of this name."""
    names = task_names(root)
    paths = names.get(function, [])
    outside_tests = [path for path in paths if "tests" not in path.relative_to(root).parts]
    candidates = list(dict.fromkeys(outside_tests or paths))
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = "\n".join(f"`{path.relative_to(root)}:{function}`" for path in candidates)
        raise UsageError(f"`{function}` is the name of several workflows", why=listed, hint="name one of these")
    near = difflib.get_close_matches(function, names, 3, 0.5)
    raise UsageError(
        f"there is no command and no workflow `{function}`",
        why=f"no file below `{root}` declares a task of that name",
        hint=f"did you mean {' or '.join(f'`{each}`' for each in near)}?"
        if near
        else f"there are {', '.join(f'`{each}`' for each in sorted(names)[:20])}"
        if names
        else "a workflow is a function with `@env.task`; `run-local --help` lists the commands",
    )


def _named_file(where: str, start: Path, root: Path) -> Path:
    """The file that `file.py` or `package.module` means."""
    if where.endswith(".py"):
        path = (start / where).resolve()
        if path.is_file():
            return path
        raise UsageError(f"there is no file `{where}`", why=f"looked at `{path}`")
    parts = Path(*where.split("."))
    for base in (root, root / "src", start):
        for path in (base / parts.with_suffix(".py"), base / parts / "__init__.py"):
            if path.is_file():
                return path.resolve()
    raise UsageError(f"there is no module `{where}`", why=f"looked below `{root}`", hint="`file.py:task` names a file")


def _scan(root: Path) -> Iterator[_Found]:
    for path in _sources(root):
        try:
            text = path.read_bytes()
            tree = ast.parse(text) if _CODING.search(text) else None
        except (OSError, SyntaxError, ValueError):
            continue  # it is told of when it is asked for
        for node in ast.walk(tree) if tree else ():
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and any(map(_is_task, node.decorator_list)):
                yield _Found(path, node.name)


def _is_task(decorator: ast.expr) -> bool:
    called = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(called, ast.Attribute) and called.attr == "task"


def _sources(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        here = Path(folder)
        names[:] = sorted(
            name
            for name in names
            if not name.startswith(".")
            and name not in _LEFT_OUT
            and not (here / name / "pyvenv.cfg").exists()
            and not (here / name / "conda-meta").exists()
        )
        yield from (here / name for name in sorted(files) if name.endswith(".py"))


def _module_of(path: Path, root: Path) -> tuple[str, list[Path]]:
    """The name to import a file by, and the folders that sys.path needs for it."""
    folder, parts = path.parent, [] if path.name == "__init__.py" else [path.stem]
    while (folder / "__init__.py").exists() and folder != folder.parent:
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts), list(dict.fromkeys([folder, root]))


def _ask(path: Path, root: Path) -> Manifest:
    module, folders = _module_of(path, root)
    if not all(folder == root or root in folder.parents for folder in folders):
        raise UsageError(f"`{path}` lies outside of its project", why=f"the project is `{root}`")
    request = {"module": module, "roots": [str(folder) for folder in folders], "root": str(root)}
    command = [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", "-m", "executor.worker.describe"]
    process = machine.spawn(
        [*command, json.dumps(request)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    try:
        stdout, stderr = process.communicate(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise ProjectError(
            f"`{path.name}` was not imported after {_PATIENCE_S} s",
            hint="what takes so long belongs into a task, not to the level of the module",
        ) from None
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return _read_answer(stdout, stderr, path)


def _read_answer(stdout: str, stderr: str, path: Path) -> Manifest:
    try:
        answer: dict[str, Any] = json.loads(stdout)
    except ValueError:
        raise ProjectError(f"importing `{path.name}` ended the process", why=stderr.strip()[-2000:]) from None
    if "error" in answer:
        raise ProjectError(**answer["error"])
    if "failure" in answer:
        failure = answer["failure"]
        raise ProjectError(
            f"`{path.name}` cannot be imported: {failure['code']}: {failure['message']}".rstrip(": "),
            why=failure["traceback"].strip(),
            hint="it must be importable without running the workflow; packages that are missing here are stood in for",
        )
    return parse_manifest(answer["manifest"])
