"""What holds for the repository as a whole."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

import executor
from tests.harness import OLDEST_IN_CONTAINERS, ROOT, Interpreter

#: Modules that travel into containers; all but cloudpickle that they import is in every Python.
TRAVELLING = [
    *(
        f"executor/{name}.py"
        for name in ("__init__", "api", "authoring", "errors", "files", "report", "resources", "version")
    ),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "executor" / "worker").glob("*.py")),
]

# Each pattern is written so that it does not match itself.
REGISTRY = re.compile(
    r"(?i)[p]ypi\.org|[p]ythonhosted\.org|[d]eb\.debian\.org|[s]ecurity\.debian\.org|[a]rchive\.ubuntu\.com"
    r"|[r]egistry\.npmjs\.org|[r]egistry-1\.docker\.io"
)
MACHINE = re.compile(
    r"(?<![\w.])/(?:[w]ork/(?:main|shared)|[r]oot/|[t]mp/bash_jobs|[o]pt/(?:wheels|pypi)|[h]ome/[a-z]+/)"
)


def _committed_files() -> list[Path]:
    """What git tracks or would; without git, or outside a clone, all that does not look made."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        paths = [ROOT / name for name in listed.split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not _is_made(path.relative_to(ROOT))]
    return [path for path in paths if path.is_file()]


def _is_made(path: Path) -> bool:
    hidden = {part for part in path.parts if part.startswith(".")} - {".ci", ".gitignore", ".editorconfig"}
    return bool(hidden) or path.suffix == ".pyc" or any(part.endswith(".egg-info") for part in path.parts)


@pytest.mark.parametrize(
    ("pattern", "what"), [(REGISTRY, "host of a package registry"), (MACHINE, "path of somebody's machine")]
)
def test_no_file_names_what_only_some_machines_have(pattern: re.Pattern[str], what: str) -> None:
    """Where packages come from is the user's configuration, and a path of ours is nobody else's."""
    found = []
    for path in _committed_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # a picture, a wheel
        found += [
            f"{path.relative_to(ROOT)}:{n}: {hit[0]}"
            for n, line in enumerate(lines, 1)
            if (hit := pattern.search(line))
        ]
    assert not found, f"{what}:\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [(REGISTRY, "https://" + "pypi" + ".org/simple"), (MACHINE, "see /" + "root/notes"), (MACHINE, "/" + "home/ada/x")],
)
def test_the_patterns_find_what_they_are_for(pattern: re.Pattern[str], text: str) -> None:
    """A check that cannot fail checks nothing."""
    assert pattern.search(text)


def test_public_names_are_all() -> None:
    """`__all__` is sorted and is exactly what can be imported, what type checkers see, and what `dir` says."""
    tree = ast.parse((ROOT / "executor" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = [
        alias.asname or alias.name for line in block.body if isinstance(line, ast.ImportFrom) for alias in line.names
    ]
    assert executor.__all__ == sorted(executor.__all__)
    assert sorted(typed) == executor.__all__ == sorted(dir(executor))
    for name in executor.__all__:
        assert getattr(executor, name) is not None
    with pytest.raises(AttributeError, match="has no attribute `nothing_like_this`"):
        _ = executor.nothing_like_this


@pytest.fixture
def only_cloudpickle(tmp_path: Path) -> Path:
    """A folder that holds cloudpickle and nothing else."""
    (tmp_path / "cloudpickle").symlink_to(Path(cloudpickle.__file__).parent)
    return tmp_path


def _loaded_by(module: str, library: Path) -> set[str]:
    """The modules that importing `module` loads into an interpreter with no packages but those of `library`."""
    code = (
        f"import sys; sys.path[:0] = sys.argv[1:]; before = set(sys.modules); import {module}\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    argv = [sys.executable, "-I", "-S", "-c", code, str(ROOT), str(library)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "packages"),
    [
        ("executor", {"executor"}),
        ("executor.authoring", {"executor"}),
        ("executor.worker.agent", {"executor", "cloudpickle"}),
    ],
)
def test_a_container_loads_only_what_it_holds(module: str, packages: set[str], only_cloudpickle: Path) -> None:
    """What tasks and the agent import needs the standard library and cloudpickle, and loads none of the heavy parts."""
    loaded = {name.partition(".")[0] for name in _loaded_by(module, only_cloudpickle)}
    assert loaded - sys.stdlib_module_names == packages
    assert not loaded & {"email", "http", "multiprocessing", "sqlite3", "unittest", "xml"}


def test_importing_the_package_loads_none_of_its_modules(tmp_path: Path) -> None:
    """`import executor` costs next to nothing until a name is used."""
    assert {name for name in _loaded_by("executor", tmp_path) if name.startswith("executor")} == {"executor"}


@pytest.mark.parametrize("path", TRAVELLING)
def test_travelling_modules_are_python_3_9(path: str) -> None:
    """An environment may hold a Python as old as 3.9, whatever runs on the host."""
    ast.parse((ROOT / path).read_text(), filename=path, feature_version=OLDEST_IN_CONTAINERS)


def test_travelling_modules_import_on_every_python_here(
    interpreters: list[Interpreter], only_cloudpickle: Path
) -> None:
    """They load on each Python of this machine, warnings being errors."""
    modules = [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in TRAVELLING]
    code = (
        "import importlib, sys, warnings; warnings.simplefilter('error'); sys.dont_write_bytecode = True\n"
        "sys.path[:0] = sys.argv[1:3]\n"
        "for name in sys.argv[3:]: importlib.import_module(name)\n"
        "print('loaded')"
    )
    if not interpreters:
        pytest.skip("no other Python here")
    for interpreter in interpreters:
        assert interpreter.run(code, str(ROOT), str(only_cloudpickle), *modules) == "loaded\n", interpreter


def test_the_architecture_names_every_module() -> None:
    """ARCHITECTURE.md opens with the walk of one call, and its tree holds each module that there is, and no other."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert text.split("\n## ")[1].startswith("The walk of one call")
    tree = text.split("## The tree")[1].split("```")[1]
    for path in (ROOT / "executor").rglob("*.py"):
        name = path.parent.name if path.name == "__init__.py" else path.stem
        assert re.search(rf"\b{name}\b", tree), f"{path.relative_to(ROOT)} is not in the tree of ARCHITECTURE.md"
    for name in re.findall(r"\b(\w+)\.py\b", tree):
        assert list((ROOT / "executor").rglob(f"{name}.py")), f"ARCHITECTURE.md names {name}.py, which is not there"


def test_the_table_of_faults_names_tests_that_exist() -> None:
    """Each by its file and its name, or by the end of it."""
    names = {
        (path.name, node.name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    file, missing = "", []
    for told in re.findall(
        r"`((?:[\w/]*test_\w+\.py(?:::\w+)?)|…\w+)`", (ROOT / "docs" / "reliability.md").read_text()
    ):
        if told.startswith("…"):
            found = any(name.endswith(told[1:]) for there, name in names if there == file)
        else:
            file, _, test = told.rpartition("/")[2].partition("::")
            found = (file, test) in names if test else any(there == file for there, _ in names)
        missing += [] if found else [told]
    assert missing == []
    assert file
