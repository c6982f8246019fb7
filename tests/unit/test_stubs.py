"""Stand-ins for missing modules: a parent loads its children's modules, and nobody else notices."""

from __future__ import annotations

import builtins
import copy
import importlib
import inspect
import pickle
import sys
import threading
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from executor.errors import MissingModule
from executor.worker import stubs
from tests.harness import ROOT, Interpreter

Load = Callable[..., ModuleType]


@pytest.fixture
def noted() -> list[tuple[str, str]]:
    """What was stubbed, and where it is imported."""
    return []


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: list[tuple[str, str]]) -> stubs.Stubs:
    """What is installed in this process for modules of a project."""
    root = tmp_path / "project"
    monkeypatch.setattr(builtins, "__import__", builtins.__import__)
    monkeypatch.setattr(sys, "path", [str(root), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("flow", "other", "installed", "pkg"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    place = "envs/orchestrator/environment.yml"
    return stubs.install([str(root)], "orchestrator", place, lambda *note: noted.append(note))


@pytest.fixture
def load(tmp_path: Path, stand_ins: stubs.Stubs) -> Load:
    """Writes modules of the project, and imports the first as a worker does."""
    root = tmp_path / "project"

    def load_modules(flow: str, **others: str) -> ModuleType:
        for name, text in {"flow": flow, **others}.items():
            path = root / f"{name.replace('__', '/').replace('site_packages', 'site-packages')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        importlib.invalidate_caches()
        with stand_ins.loading():
            return importlib.import_module("flow")

    return load_modules


def refused(use: Callable[[], Any]) -> MissingModule:
    with pytest.raises(MissingModule) as caught:
        use()
    return caught.value


def test_module_level_code_runs_and_the_use_of_a_stand_in_raises(load: Load, noted: list[tuple[str, str]]) -> None:
    """The error names the module, the environment, where it is imported, what was used, and the ways out."""
    flow = load("import nowhere as nw\nfrom nowhere.deep import thing\n\ndef task():\n    return nw.array([1])\n")
    error = refused(flow.task)
    assert error.what == "`nowhere` is not in environment `orchestrator`"
    assert error.why == "`nowhere.array` is used here, which flow.py:1 imports"
    assert "envs/orchestrator/environment.yml" in error.hint
    assert "extends=[…]" in error.hint
    assert (error.name, error.facts) == ("nowhere", {"module": "nowhere", "environment": "orchestrator"})
    assert noted == [("nowhere", "flow.py:1"), ("nowhere", "flow.py:2")]
    assert isinstance(error, ImportError)


MODULE_LEVEL = [
    "x = nw.deep.value",
    "import nowhere.deep.er as er; x = er.value",
    "import nowhere.deep; x = nowhere.deep",
    "from nowhere.deep.er import value as x",
    "from nowhere import *",
    "x = nw.f(1, key=2)[0:3][nw.a, 'b'] + 1 - 2 * nw.b @ nw.c",
    "x = -nw.a ** 2 // nw.b % 3 & nw.c ^ nw.d << 1",
    "assert not nw.cuda.is_available()",
    "assert not (nw.cuda.device_count() > 0)",
    "assert not isinstance(1, nw.Array) and not issubclass(int, (nw.Array, str))",
    "nw.backends.flag = True; nw.rc['x'] = 1; del nw.rc['x'], nw.flag",
    "with nw.no_grad() as x: pass",
    "x = f'{nw.__version__}'.split('.')",
    "x: nw.Array | None | int = None; y: 'int | nw.A' = None; z: int | nw.A | nw.B = None",
    "import typing as t; x = t.Optional[nw.A], t.Union[nw.A, nw.B, None], list[nw.A], t.Callable[[nw.A], nw.B]",
    "import typing as t; T = t.TypeVar('T', bound=nw.A); x = t.NewType('N', nw.A), t.Annotated[nw.A, 1]",
    "import functools\n@functools.partial(nw.jit, static=0)\ndef x(a): return a\nassert x(3) == 3",
    "@nw.jit\ndef x(a): return a\nassert x(3) == 3",
    "@nw.jit(parallel=True)\ndef x(a): return a\nassert x(3) == 3",
    "@nw.register\nclass X: pass\nassert isinstance(X(), X)",
    "class Net(nw.nn.Module, nw.Mixin):\n    size = nw.size\n    def forward(self): pass",
    "import abc\nclass Net(nw.Module, abc.ABC, table=True): pass\nx = Net(1)",
    "import typing as t\nT = t.TypeVar('T')\nclass Net(nw.Module, t.Generic[T]): pass\nx = Net[int]",
    "import dataclasses\n@dataclasses.dataclass\nclass D:\n    a: nw.A\n    b: nw.B = nw.default\nx = D(1)",
    "import enum\nclass E(enum.Enum):\n    A = nw.int32\n    B = nw.int64",
    "import contextlib, copy; x = copy.deepcopy(nw.a), copy.copy(nw.a), {nw.a: 1}[nw.a]",
    "def late():\n    import nowhere.more\n    return nowhere.more\nx = late()",
    "class C(metaclass=nw.Meta): pass",
]


@pytest.mark.parametrize("code", MODULE_LEVEL)
def test_a_stand_in_may_be_named(load: Load, code: str) -> None:
    """What people write at module level works: attributes, calls, operators, decorators, annotations, base classes."""
    load(f"import nowhere as nw\nimport nowhere\n{code}\n")


@pytest.mark.parametrize(
    "code",
    [
        "list(nw.arange(3))",
        "len(nw.a)",
        "int(nw.pi)",
        "float(nw.pi)",
        "range(nw.n)",
        "[*nw.a]",
        "open(nw.path)",
        "1 in nw.a",
    ],
)
def test_a_stand_in_is_never_known(load: Load, code: str) -> None:
    """A conversion needs a value, and there is none, at module level either."""
    assert refused(lambda: load(f"import nowhere as nw\nx = {code}\n")).name == "nowhere"


@pytest.mark.parametrize(
    "use",
    ["thing.a", "thing()", "thing[0]", "thing + 1", "1 + thing", "-thing", "thing == 1", "thing < 1", "bool(thing)",
     "isinstance(1, thing)", "hasattr(thing, 'a')", "f'{thing}'", "str(thing)", "iter(thing)", "Net()", "thing | None",
     "setattr(thing, 'a', 1)", "thing.__enter__()", "pickle.dumps(thing)", "nw.thing", "late()", "later()"],
)  # fmt: skip
def test_every_use_after_loading_raises(load: Load, use: str) -> None:
    """Nothing is answered silently once a task runs."""
    flow = load(
        "import nowhere as nw\nfrom nowhere import thing\nimport pickle\nclass Net(nw.Module): pass\n"
        "def late():\n    import nowhere.deep\ndef later():\n    from elsewhere import x\n"
    )
    assert refused(lambda: eval(use, vars(flow))).name in ("nowhere", "elsewhere")


def test_what_looks_at_everything_does_not_choke(load: Load) -> None:
    """Python asks objects for dunder names; the answer is AttributeError, and a stand-in can always be printed."""
    thing = load("from nowhere import thing").thing
    assert repr(thing) == "nowhere.thing"
    assert inspect.unwrap(thing) is thing
    assert copy.copy(thing) is copy.deepcopy(thing) is thing
    assert {thing: 1}[thing] == 1
    assert typing.get_origin(thing) is None
    assert not any(hasattr(thing, name) for name in ("__wrapped__", "__path__", "__origin__", "__array__", "__dict__"))
    with pytest.raises(MissingModule):
        pickle.dumps({"x": [thing]})


def test_nobody_else_meets_a_stand_in(load: Load) -> None:
    """An installed package that asks for the same module is told the truth; `sys.modules` holds nothing of ours."""
    probe = "try:\n    import nowhere\nexcept ImportError:\n    nowhere = None\nassert nowhere is None\n"
    needs = "import nowhere\n"
    flow = load("import nowhere\n", lib__site_packages__installed=probe, lib__site_packages__other=needs)
    sys.path.insert(0, str(Path(flow.__file__ or "").parent / "lib/site-packages"))
    importlib.import_module("installed")
    with pytest.raises(ModuleNotFoundError, match="No module named 'nowhere'"):
        importlib.import_module("other")
    assert not any(name.partition(".")[0] == "nowhere" for name in sys.modules)
    assert importlib.util.find_spec("nowhere") is None


GUARDED = [
    "try:\n    import nowhere\nexcept ImportError:\n    x = 1",
    "try:\n    import nowhere.deep\nexcept (ValueError, ModuleNotFoundError):\n    x = 1",
    "try:\n    from nowhere import (\n        a,\n        b,\n    )\nexcept Exception as exc:\n    x = 1",
    "try:\n    if True:\n        import nowhere\nexcept:\n    x = 1",
    "try:\n    try:\n        import nowhere\n    except ValueError: pass\nexcept builtins.ImportError:\n    x = 1",
    "with contextlib.suppress(ImportError):\n    import nowhere\n    x = 0\nx = 1",
    "from contextlib import suppress\nwith open(__file__), suppress(ValueError, ImportError):\n    import nowhere\nx = 1",
    "try:\n    from other import a\nexcept ImportError:\n    x = 1",
    "import importlib\ntry:\n    importlib.import_module('nowhere')\nexcept ImportError:\n    x = 1",
    "load = __import__\ntry: load('nowhere')\nexcept ImportError: x = 1",
]


@pytest.mark.parametrize("code", GUARDED)
def test_a_question_is_answered(load: Load, noted: list[tuple[str, str]], code: str) -> None:
    """Source that asks whether a module is there gets the answer, directly or through a module of its own."""
    flow = load(f"import builtins, contextlib\n{code}\n", other="import nowhere\na = 1\n")
    assert (flow.x, noted) == (1, [])


@pytest.mark.parametrize(
    "code",
    [
        "try:\n    pass\nexcept ImportError:\n    import nowhere",
        "try:\n    pass\nexcept ImportError:\n    pass\nelse:\n    import nowhere",
        "try:\n    import nowhere\nexcept ValueError:\n    pass",
        "try:\n    import nowhere\nfinally:\n    pass",
        "try:\n    def f():\n        import nowhere\nexcept ImportError:\n    pass\nf()",
        "with open(__file__):\n    import nowhere",
    ],
)
def test_what_only_looks_like_a_guard_is_none(load: Load, noted: list[tuple[str, str]], code: str) -> None:
    """Only the body of a `try` that catches ImportError is guarded, and not the functions that are defined in it."""
    if "pass\nexcept ImportError:\n    import" in code:
        code = code.replace("    pass\n", "    raise ImportError\n", 1)
    load(code)
    assert [name for name, _ in noted] == ["nowhere"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("from other import nonexistent", "cannot import name 'nonexistent'"),
        ("import other.nonexistent", "No module named 'other.nonexistent'"),
        ("from pkg.nonexistent import x", "No module named 'pkg.nonexistent'"),
        ("import json.nonexistent", "No module named 'json.nonexistent'"),
        ("import importlib; importlib.import_module('nowhere')", "No module named 'nowhere'"),
        ("__import__('nowhere')", "No module named 'nowhere'"),
        ("exec('import nowhere')", "No module named 'nowhere'"),
    ],
)
def test_only_missing_packages_are_stood_in_for(load: Load, code: str, message: str) -> None:
    """A name of the project that is misspelt stays an error, and so does what is no import statement."""
    with pytest.raises(ImportError, match=message) as caught:
        load(code, other="", pkg____init__="")
    assert not isinstance(caught.value, MissingModule)


def test_missing_parts_of_python_are_not_stood_in_for(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """A standard module that this Python lacks is an error at once: no environment.yml could add it."""
    monkeypatch.setitem(sys.modules, "tomllib", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        load("import tomllib")
    assert not isinstance(caught.value, MissingModule)


def test_a_task_may_load_modules_late(load: Load) -> None:
    """A module that is first imported inside a running task is module-level code again; its caller is not."""
    flow = load(
        "def task():\n    import other\n    assert other.area is not None\n    return other\n",
        other="import nowhere as nw\narea = nw.pi * 2\n@nw.jit\ndef f(): return nw.pi\n",
    )
    other = flow.task()
    refused(other.f)
    refused(lambda: other.area + 1)


def test_loading_is_the_business_of_one_thread(load: Load, stand_ins: stubs.Stubs) -> None:
    """While one thread loads, a task in another is not lenient; and that one can load for itself."""
    flow = load(
        "import nowhere as nw\ndef task():\n    return nw.pi\n", other="import elsewhere\nx = elsewhere.x + 1\n"
    )
    seen: list[str] = []

    def work() -> None:
        seen.append(importlib.import_module("other").__name__)
        seen.append(refused(flow.task).what)

    with stand_ins.loading():
        flow.task()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == ["other", "`nowhere` is not in environment `orchestrator`"]


def test_stand_ins_work_in_every_python(tmp_path: Path, interpreters: list[Interpreter]) -> None:
    """The same module-level code, and the same refusal."""
    code = "\n".join(part for part in MODULE_LEVEL if "| int" not in part)  # a union with `|` is younger than 3.9
    (tmp_path / "flow.py").write_text(f"import nowhere as nw\nimport nowhere\n{code}\ndef task(): return nw.a\n")
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from executor.worker import stubs; from executor.errors import MissingModule\n"
        "noted = []; s = stubs.install([sys.argv[2]], 'env', 'spec', lambda *note: noted.append(note))\n"
        "with s.loading(): import flow\n"
        "try: flow.task()\n"
        "except MissingModule as exc: print(exc.why, noted[0])\n"
    )
    for each in interpreters:
        printed = each.run(program, str(ROOT), str(tmp_path))
        assert printed == "`nowhere.a` is used here, which flow.py:1 imports ('nowhere', 'flow.py:1')\n", each
