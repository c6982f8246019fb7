"""Which code a task reaches: what changes the key of a cached call, and what does not."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executor import authoring
from executor.describe import describe
from executor.manifest import TaskEntry
from executor.reach import Code, Reach, compare, reached
from tests.harness import ROOT

HEAD = "from executor import TaskEnvironment\nenv = TaskEnvironment('e')\n"


def entry(name: str = "work", file: str = "flow.py", module: str = "flow") -> TaskEntry:
    """A task as the manifest has it."""
    return TaskEntry(
        name=f"e.{name}",
        environment="e",
        module=module,
        qualname=name,
        file=file,
        line=1,
        doc="",
        parameters=(),
        retries=0,
        timeout_s=None,
    )


def write(root: Path, files: Mapping[str, str]) -> Path:
    """A project."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = dedent(text).lstrip("\n")
        path.write_text(HEAD + text if name == "flow.py" else text)
    return root


def reach(root: Path, files: Mapping[str, str]) -> Reach:
    """What `work` of `flow.py` reaches in a project of these files."""
    return reached(write(root, files), ["."], entry())


@contextmanager
def importing(root: Path) -> Iterator[None]:
    """Modules of a project can be imported; afterwards nothing is left of them."""
    modules, path, environments = set(sys.modules), list(sys.path), list(authoring.ENVIRONMENTS)
    sys.path.insert(0, str(root))
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.dont_write_bytecode = written
        sys.path[:] = path
        authoring.ENVIRONMENTS[:] = environments
        authoring.REFERENCES.clear()
        own = {path.stem for path in root.iterdir()}
        for name in set(sys.modules) - modules:
            file = str(getattr(sys.modules[name], "__file__", None))
            if name.partition(".")[0] in own or file.startswith(str(root)):
                del sys.modules[name]


def observe(root: Path) -> str:
    """What the task `work` really answers."""
    with importing(root):
        try:
            return repr(importlib.import_module("flow").work())
        except Exception as exc:  # noqa: BLE001  it is what is observed
            return f"raised {type(exc).__name__}: {exc}".replace(str(root), "")


WORK = "@env.task\ndef work():\n"


@dataclass
class Case:
    """An edit: what the project is before, and the files that change.

    changes: whether the key changes; what the task answers then does, too, unless `runs` is False
    runs:    whether the task can be run here, and with what is observed
    """

    name: str
    before: Mapping[str, str]
    after: Mapping[str, str]
    changes: bool = True
    runs: bool = True


def edit(
    name: str, before: Mapping[str, str], *, changes: bool = True, runs: bool = True, **edits: tuple[str, str]
) -> Case:
    """A case in which a text of a file is replaced; a file is given by its name without `.py`, with `__` for `/`."""
    after = dict(before)
    for file, (old, new) in edits.items():
        path = next(each for each in before if each.removesuffix(".py").replace("/", "__").replace(".", "_") == file)
        assert old in after[path], (name, path, old)
        after[path] = after[path].replace(old, new, 1)
    return Case(name, before, after, changes, runs)


LIB = "def f():\n    return 1\n\ndef g():\n    return 10\n"

CASES = [
    edit("a function that is called", {"flow.py": "import lib\n" + WORK + "    return lib.f()\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("one that is not", {"flow.py": "import lib\n" + WORK + "    return lib.f()\n", "lib.py": LIB},
         changes=False, lib=("return 10\n", "return 20\n")),
    edit("the task itself", {"flow.py": WORK + "    return 1\n"}, flow=("return 1", "return 2")),
    edit("retries and timeout", {"flow.py": "@env.task(retries=1)\ndef work():\n    return 1\n"}, changes=False,
         flow=("retries=1", "retries=3, timeout=5")),
    edit("resources of the environment",
         {"flow.py": "from executor import Resources\nother = TaskEnvironment('o', resources=Resources(cpu=1))\n" + WORK
          + "    return 1\n"}, changes=False, flow=("cpu=1", "cpu=2")),
    edit("from import with another name", {"flow.py": "from lib import f as h\n" + WORK + "    return h()\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("two names change places", {"flow.py": "from lib import f as a, g as b\n" + WORK + "    return a() - b()\n",
                                     "lib.py": LIB}, flow=("f as a, g as b", "g as a, f as b")),
    edit("import with another name", {"flow.py": "import pkg.lib as c\n" + WORK + "    return c.f()\n",
                                      "pkg/lib.py": LIB}, pkg__lib=("return 1\n", "return 2\n")),
    edit("import of a package's module", {"flow.py": "import pkg.lib\n" + WORK + "    return pkg.lib.f()\n",
                                          "pkg/__init__.py": "", "pkg/lib.py": LIB},
         pkg__lib=("return 1\n", "return 2\n")),
    edit("what is handed on by __init__", {"flow.py": "from pkg import f\n" + WORK + "    return f()\n",
                                           "pkg/__init__.py": "from .lib import f, g\n", "pkg/lib.py": LIB},
         pkg__lib=("return 1\n", "return 2\n")),
    edit("what is not, of the same import", {"flow.py": "from pkg import f\n" + WORK + "    return f()\n",
                                             "pkg/__init__.py": "from .lib import f, g\n", "pkg/lib.py": LIB},
         changes=False, pkg__lib=("return 10\n", "return 20\n")),
    edit("another source of the same name", {"flow.py": "from pkg import f\n" + WORK + "    return f()\n",
                                             "pkg/__init__.py": "from .lib import f\n", "pkg/lib.py": LIB,
                                             "pkg/new.py": "def f():\n    return 3\n"},
         pkg____init__=(".lib", ".new")),
    edit("relative imports upwards", {"flow.py": "from a.b.c import h\n" + WORK + "    return h()\n",
                                      "a/b/c.py": "from ..lib import f\ndef h():\n    return f()\n", "a/lib.py": LIB},
         a__lib=("return 1\n", "return 2\n")),
    edit("import *", {"flow.py": "from lib import *\n" + WORK + "    return f()\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("import * of import *", {"flow.py": "from mid import *\n" + WORK + "    return f()\n",
                                  "mid.py": "from lib import *\n", "lib.py": LIB}, lib=("return 1\n", "return 2\n")),
    edit("__all__ hides a name", {"flow.py": "def f():\n    return 0\nfrom lib import *\n" + WORK + "    return f()\n",
                                  "lib.py": "__all__ = ['f', 'g']\n" + LIB}, lib=("'f', 'g'", "'g'")),
    edit("import * takes the place of a builtin", {"flow.py": "from lib import *\n" + WORK + "    return len('abc')\n",
                                                   "lib.py": "def leng(x):\n    return -1\n"}, lib=("leng", "len")),
    edit("an import inside a function", {"flow.py": WORK + "    from lib import f\n    return f()\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("a module imported inside, and handed on", {"flow.py": "def get():\n    import lib\n    return lib\n" + WORK
                                                     + "    return getattr(get(), 'f')()\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("an import for all, inside a function",
         {"flow.py": "def load():\n    global lib\n    import lib\n" + WORK + "    load()\n    return lib.f()\n",
          "lib.py": LIB}, lib=("return 1\n", "return 2\n")),
    edit("a constant", {"flow.py": "from lib import X\n" + WORK + "    return X\n", "lib.py": "X = 1\nY = 1\n"},
         lib=("X = 1", "X = 2")),
    edit("another constant", {"flow.py": "from lib import X\n" + WORK + "    return X\n", "lib.py": "X = 1\nY = 1\n"},
         changes=False, lib=("Y = 1", "Y = 2")),
    edit("a constant of a constant", {"flow.py": "from lib import X\n" + WORK + "    return X\n",
                                      "lib.py": "Y = 1\nX = [Y, 2]\n"}, lib=("Y = 1", "Y = 2")),
    edit("one of several targets", {"flow.py": "A, (B, *C) = 1, (2, 3, 4)\n" + WORK + "    return C\n"},
         flow=("3, 4", "3, 5")),
    edit("a name bound twice", {"flow.py": "X = 1\nX = 2\n" + WORK + "    return X\n"}, flow=("X = 2", "X = 3")),
    edit("when a name is read", {"flow.py": "X = 1\nY = X\nX = 2\n" + WORK + "    return Y\n"},
         flow=("Y = X\nX = 2\n", "X = 2\nY = X\n")),
    edit("a function and a constant of one name change places",
         {"flow.py": "X = 1\ndef X():\n    pass\n" + WORK + "    return callable(X)\n"},
         flow=("X = 1\ndef X():\n    pass\n", "def X():\n    pass\nX = 1\n")),
    edit("a deleted name", {"flow.py": "len = 5\n" + WORK + "    return len\n"}, flow=("len = 5\n", "len = 5\ndel len\n")),
    edit("a changed list", {"flow.py": "X = [1]\n" + WORK + "    return X\n"}, flow=("X = [1]\n", "X = [1]\nX.append(2)\n")),
    edit("a list changed by another module", {"flow.py": "import other\nfrom lib import X\n" + WORK + "    return X\n",
                                              "lib.py": "X = [1]\n", "other.py": "from lib import X as Y\nZ = 0\n"},
         other=("Z = 0", "Y += [2]")),
    edit("an iterator used up by another name",
         {"flow.py": "G = (i for i in range(3))\nH = 0\n" + WORK + "    return list(G)\n"},
         flow=("H = 0", "H = list(G)")),
    edit("a global that a function sets",
         {"flow.py": "X = 1\ndef prepare():\n    global X\n    X = 2\n" + WORK + "    prepare()\n    return X\n"},
         flow=("X = 2", "X = 3")),
    edit("a class's method", {"flow.py": "from lib import C\n" + WORK + "    return C().m()\n",
                              "lib.py": "class C:\n    def m(self):\n        return self.n()\n\n    def n(self):\n"
                                        "        return 1\n"}, lib=("return 1", "return 2")),
    edit("a base class", {"flow.py": "from lib import D\n" + WORK + "    return D().m()\n",
                          "lib.py": "from base import C\nclass D(C):\n    pass\n",
                          "base.py": "class C:\n    def m(self):\n        return 1\n"}, base=("return 1", "return 2")),
    edit("a base that is found by its module", {"flow.py": "import base\nclass D(base.C):\n    pass\n" + WORK
                                                + "    return D().m()\n",
                                                "base.py": "class C:\n    def m(self):\n        return 1\n"},
         base=("return 1", "return 2")),
    edit("a metaclass", {"flow.py": "class M(type):\n    def __call__(cls):\n        return 1\nclass C(metaclass=M):\n"
                                    "    pass\n" + WORK + "    return C()\n"}, flow=("return 1", "return 2")),
    edit("a subclass that nobody names", {"flow.py": "import lib, more\n" + WORK
                                          + "    return [each.x for each in lib.C.__subclasses__()]\n",
                                          "lib.py": "class C:\n    pass\n",
                                          "more.py": "import lib\nclass D(lib.C):\n    x = 1\n"},
         more=("x = 1", "x = 2")),
    edit("a subclass that registers itself",
         {"flow.py": "import lib, more\n" + WORK + "    return [each.x for each in lib.ALL]\n",
          "lib.py": "ALL = []\nclass C:\n    def __init_subclass__(cls):\n        ALL.append(cls)\n",
          "more.py": "import lib\nclass D(lib.C):\n    x = 1\n"}, more=("x = 1", "x = 2")),
    edit("a decorator", {"flow.py": "from lib import twice\n@twice\ndef h():\n    return 1\n" + WORK + "    return h()\n",
                         "lib.py": "def twice(f):\n    def inner():\n        return f() * 2\n    return inner\n"},
         lib=("* 2", "* 3")),
    edit("a decorator below the task's", {"flow.py": "from lib import twice\n@env.task\n@twice\ndef work():\n    return 1\n",
                                          "lib.py": "import functools\ndef twice(f):\n    @functools.wraps(f)\n"
                                                    "    def inner():\n        return f() * 2\n    return inner\n"},
         lib=("* 2", "* 3")),
    edit("a function that only a registry knows",
         {"flow.py": "import registry, steps\n" + WORK + "    return [f() for f in registry.ALL]\n",
          "registry.py": "ALL = []\ndef register(f):\n    ALL.append(f)\n    return f\n",
          "steps.py": "from registry import register\n@register\ndef a():\n    return 1\n"},
         steps=("return 1", "return 2")),
    edit("one beside a function with a harmless decorator",
         {"flow.py": "from lib import timed\n@timed\ndef h():\n    return 1\n@timed\ndef other():\n    return 1\n" + WORK
          + "    return h()\n",
          "lib.py": "import functools\ndef timed(f):\n    @functools.wraps(f)\n    def inner():\n        return f()\n"
                    "    return inner\n"},
         changes=False, flow=("def other():\n    return 1", "def other():\n    return 2")),
    edit("a default argument", {"flow.py": "from lib import X\ndef h(x=X):\n    return x\n" + WORK + "    return h()\n",
                                "lib.py": "X = 1\n"}, lib=("X = 1", "X = 2")),
    edit("a nested function", {"flow.py": "from lib import f\n" + WORK + "    def inner():\n        return f()\n"
                                          "    return inner()\n", "lib.py": LIB}, lib=("return 1\n", "return 2\n")),
    edit("a comprehension",
         {"flow.py": "from lib import f\n" + WORK + "    return [f() for _ in range(2)]\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("a name that is local elsewhere", {"flow.py": "from lib import f as x\n" + WORK
                                            + "    return [x for x in [x() for _ in [0]]]\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("a parameter of the name of a constant",
         {"flow.py": "x = 1\ndef h(x):\n    return x\n" + WORK + "    return h(5)\n"},
         changes=False, flow=("x = 1", "x = 2")),
    edit("a name that a class mangles", {"flow.py": "_C__x = 1\nclass C:\n    def m(self):\n        return __x\n" + WORK
                                         + "    return C().m()\n"}, flow=("_C__x = 1", "_C__x = 2")),
    edit("a walrus", {"flow.py": "if (n := 3) > 2:\n    X = n\n" + WORK + "    return X\n"}, flow=("n := 3", "n := 4")),
    edit("a conditional definition", {"flow.py": "import sys\nif sys.version_info > (3,):\n    def h():\n        return 1\n"
                                                 "else:\n    def h():\n        return 2\n" + WORK + "    return h()\n"},
         flow=("return 1", "return 3")),
    edit("the other source of an import", {"flow.py": "try:\n    import nothing_like_this as lib\nexcept ImportError:\n"
                                                      "    import lib\n" + WORK + "    return lib.f()\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("what type checkers read",
         {"flow.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lib\n" + WORK
                                     + "    return 1\n", "lib.py": LIB}, changes=False, lib=("return 1\n", "return 2\n")),
    edit("what is not only for type checkers", {"flow.py": "TYPE_CHECKING = True\nif TYPE_CHECKING:\n    X = 1\n" + WORK
                                                + "    return X\n"}, flow=("X = 1", "X = 2")),
    edit("what runs as the main program only",
         {"flow.py": WORK + "    return 1\nif __name__ == '__main__':\n    print(1)\n"},
         changes=False, flow=("print(1)", "print(2)")),
    edit("module __getattr__", {"flow.py": "import lib\n" + WORK + "    return lib.anything\n",
                                "lib.py": "def __getattr__(name):\n    return 1\n"}, lib=("return 1", "return 2")),
    edit("a patch of another module", {"flow.py": "import lib, patch\n" + WORK + "    return lib.f()\n", "lib.py": LIB,
                                       "patch.py": "import lib\ndef new():\n    return 5\nlib.f = new\n"},
         patch=("return 5", "return 6")),
    edit("a patch that is new", {"flow.py": "import lib, patch\n" + WORK + "    return lib.f()\n", "lib.py": LIB,
                                 "patch.py": "import lib\n"}, patch=("import lib\n", "import lib\nlib.f = lib.g\n")),
    edit("a patch of a class", {"flow.py": "import lib, patch\n" + WORK + "    return lib.C().m()\n",
                                "lib.py": "class C:\n    def m(self):\n        return 1\n",
                                "patch.py": "import lib\nlib.C.m = lambda self: 5\n"}, patch=("5", "6")),
    edit("a patch far away", {"flow.py": "import a\nimport lib\n" + WORK + "    return lib.f()\n", "lib.py": LIB,
                              "a/__init__.py": "from . import b\n", "a/b.py": "import lib\nlib.f = lambda: 5\n"},
         a__b=("5", "6")),
    edit("the order of two patches", {"flow.py": "import one\nimport two\nimport lib\n" + WORK + "    return lib.X\n",
                                      "lib.py": "X = 0\n", "one.py": "import lib\nlib.X = 1\n",
                                      "two.py": "import lib\nlib.X = 2\n"},
         flow=("import one\nimport two", "import two\nimport one")),
    edit("which module has the last word", {"flow.py": "import lib\nlib.X = 1\nimport two\n" + WORK + "    return lib.X\n",
                                            "lib.py": "X = 0\n", "two.py": "import lib\nlib.X = 2\n"},
         flow=("lib.X = 1\nimport two", "import two\nlib.X = 1")),
    edit("modules that import each other", {"flow.py": "import a\n" + WORK + "    return a.b.Y\n",
                                            "a.py": "X = 1\nimport b\nX = 2\n", "b.py": "import a\nY = a.X\n"},
         a=("import b\nX = 2\n", "X = 2\nimport b\n")),
    edit("import_module of a text", {"flow.py": "import importlib\n" + WORK
                                     + "    return importlib.import_module('lib').f()\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("import_module of anything", {"flow.py": "from importlib import import_module as load\n" + WORK
                                       + "    return load('l' + 'ib').f()\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("__import__", {"flow.py": WORK + "    return __import__('l' + 'ib').f()\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("eval", {"flow.py": "import lib\n" + WORK + "    return eval('l' + 'ib.f()')\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("eval by another name", {"flow.py": "import builtins\nimport lib\nrun = getattr(builtins, 'eval')\n" + WORK
                                  + "    return run('l' + 'ib.f()')\n", "lib.py": LIB}, lib=("return 1\n", "return 2\n")),
    edit("a method called eval", {"flow.py": "import lib\nclass M:\n    def eval(self):\n        return 1\n" + WORK
                                  + "    return M().eval()\n", "lib.py": LIB}, changes=False,
         lib=("return 1\n", "return 2\n")),
    edit("exec at the top level", {"flow.py": "from lib import h\n" + WORK + "    return h()\n",
                                   "lib.py": "for n in 'h':\n    exec(f'def {n}(): return 1')\n"},
         lib=("return 1", "return 2")),
    edit("globals", {"flow.py": "def h():\n    return 1\n" + WORK + "    return globals()['h']()\n"},
         flow=("return 1", "return 2")),
    edit("vars of a module", {"flow.py": "import lib\n" + WORK + "    return vars(lib)['f']()\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("getattr of a module", {"flow.py": "import lib\n" + WORK + "    return getattr(lib, 'f')()\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("getattr of a module in a module", {"flow.py": "import mid\n" + WORK + "    return getattr(mid, 'lib').f()\n",
                                             "mid.py": "import lib\n", "lib.py": LIB}, lib=("return 1\n", "return 2\n")),
    edit("a module in a list", {"flow.py": "import lib\nALL = [lib]\n" + WORK + "    return ALL[0].f()\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("sys.modules", {"flow.py": "import lib, sys\n" + WORK + "    return sys.modules['l' + 'ib'].f()\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("a folder put on sys.path", {"flow.py": "import sys\nfrom pathlib import Path\n"
                                                 "sys.path.insert(0, str(Path(__file__).parent / 'more'))\nimport hidden\n"
                                      + WORK + "    return hidden.X\n", "more/hidden.py": "X = 1\n"},
         more__hidden=("X = 1", "X = 2")),
    edit("globals of a function", {"flow.py": "from lib import f\n" + WORK + "    return f.__globals__['g']()\n",
                                   "lib.py": LIB}, lib=("return 10\n", "return 20\n")),
    edit("pickle by name", {"flow.py": "import pickle\n" + WORK + "    return pickle.loads(b'clib\\nf\\n.')()\n",
                            "lib.py": LIB}, lib=("return 1\n", "return 2\n")),
    edit("a name in a text", {"flow.py": "import pkg.lib, pydoc as p\n" + WORK + "    return p.locate('pkg.lib.f')()\n",
                              "pkg/lib.py": LIB}, pkg__lib=("return 1\n", "return 2\n")),
    edit("source that is read", {"flow.py": "import inspect, lib\n" + WORK + "    return inspect.getsource(lib.f)\n",
                                 "lib.py": LIB}, lib=("return 1\n", "return 1  # one\n")),
    edit("a line that is told", {"flow.py": "import sys\n" + WORK + "    return sys._getframe().f_lineno\n"},
         flow=("import sys\n", "import sys\n\n")),
    edit("a lambda", {"flow.py": "from lib import f\nh = lambda: f()\n" + WORK + "    return h()\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("a table of functions", {"flow.py": "from lib import f, g\nTABLE = {'f': f, 'g': g}\n" + WORK
                                  + "    return TABLE['f']()\n", "lib.py": LIB}, lib=("return 1\n", "return 2\n")),
    edit("functools.partial", {"flow.py": "from functools import partial\nfrom lib import f\nP = partial(f)\n" + WORK
                               + "    return P()\n", "lib.py": LIB}, lib=("return 1\n", "return 2\n")),
    edit("a call at the top level", {"flow.py": "from lib import f\nX = f()\n" + WORK + "    return X\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("a call that runs for all", {"flow.py": "import lib\nfrom store import S\n" + WORK + "    return S\n",
                                      "store.py": "S = []\n", "lib.py": "from store import S\ndef add():\n    S.append(1)\n"
                                                                       "X = add()\n"}, lib=("append(1)", "append(2)")),
    edit("a callback that runs for all", {"flow.py": "import lib\nfrom store import S\n" + WORK + "    return S\n",
                                          "store.py": "S = []\n",
                                          "lib.py": "from store import S\ndef add(x):\n    S.append(1)\n"
                                                    "X = list(map(add, [0]))\n"}, lib=("append(1)", "append(2)")),
    edit("a member that runs for all", {"flow.py": "import lib\nfrom store import S\n" + WORK + "    return S\n",
                                        "store.py": "S = []\n",
                                        "lib.py": "import enum\nfrom store import S\nclass E(enum.Enum):\n    A = 1\n"
                                                  "    def __init__(self, x):\n        S.append(1)\n"},
         lib=("append(1)", "append(2)")),
    edit("an operator that runs for all", {"flow.py": "import lib\nfrom store import S\n" + WORK + "    return S\n",
                                           "store.py": "S = []\n",
                                           "lib.py": "from store import S\nclass N:\n    def __or__(self, o):\n"
                                                     "        S.append(1)\nA = N()\nB = A | A\n"},
         lib=("append(1)", "append(2)")),
    edit("a property that runs for all", {"flow.py": "import lib\nfrom store import S\n" + WORK + "    return S\n",
                                          "store.py": "S = []\n",
                                          "lib.py": "from store import S\nclass N:\n    @property\n    def p(self):\n"
                                                    "        S.append(1)\nA = N()\nB = A.p\n"},
         lib=("append(1)", "append(2)")),
    edit("a loop at the top level", {"flow.py": "X = {}\nfor i in range(3):\n    X[i] = i\n" + WORK + "    return X\n"},
         flow=("range(3)", "range(4)")),
    edit("a plain object of an unused class", {"flow.py": "from dataclasses import dataclass\n@dataclass\nclass C:\n"
                                                          "    x: int = 1\nUNUSED = C(2)\n" + WORK + "    return 1\n"},
         changes=False, flow=("C(2)", "C(3)")),
    edit("a dataclass's field", {"flow.py": "from dataclasses import dataclass, fields\n@dataclass\nclass C:\n    x: int\n"
                                 + WORK + "    return [str(f.type) for f in fields(C)]\n"}, flow=("x: int", "x: float")),
    edit("the order of fields",
         {"flow.py": "from dataclasses import dataclass\n@dataclass\nclass C:\n    x: int\n    y: int\n"
                                 + WORK + "    return C(1, 2)\n"},
         flow=("    x: int\n    y: int\n", "    y: int\n    x: int\n")),
    edit("an annotation of a helper", {"flow.py": "def h(x: int) -> int:\n    y: int = x\n    return y\n" + WORK
                                       + "    return h(1)\n"}, changes=False,
         flow=("(x: int) -> int:\n    y: int", "(x: 'float'):\n    y: float")),
    edit("an annotation that is looked at", {"flow.py": "def h(x: int):\n    return x\n" + WORK
                                             + "    return str(h.__annotations__)\n"}, flow=("x: int", "x: float")),
    edit("a class in an annotation of the task", {"flow.py": "from lib import C\n@env.task\ndef work(c: 'C' = None):\n"
                                                             "    return work.function.__annotations__\n",
                                                  "lib.py": "class C:\n    x = 1\n"}, runs=False, lib=("x = 1", "x = 2")),
    edit("a docstring", {"flow.py": "'''Module.'''\ndef h():\n    '''One.'''\n    return 1\nclass C:\n    '''Two.'''\n"
                         + WORK + "    '''Three.'''\n    return h(), C.__name__\n"}, changes=False,
         flow=("'''One.'''", "'''Another.'''\n    ...")),
    edit("a docstring that is looked at", {"flow.py": "def h():\n    '''One.'''\n" + WORK + "    return h.__doc__\n"},
         flow=("One", "Two")),
    edit("the module's docstring", {"lib.py": "'''One.'''\ndef f():\n    return __doc__\n",
                                    "flow.py": "import lib\n" + WORK + "    return lib.f()\n"}, lib=("One", "Two")),
    edit("a docstring that a library may look at",
         {"flow.py": "def h():\n    '''One.'''\ndef ask(tool):\n    return getattr(tool, '__d' + 'oc__')\n" + WORK
          + "    return ask(h)\n"}, flow=("One", "Two")),
    edit("comments, layout, quotes", {"flow.py": "def h(a, b):\n    return {'x': a, 'y': b}\n" + WORK
                                      + "    return h(1, 2)\n"},
         changes=False, flow=("    return {'x': a, 'y': b}",
                              '    # words\n    pass\n    return (\n      {"x": a,\n "y":b,})')),
    edit("a blank line and a number's spelling", {"flow.py": "X = 255\n" + WORK + "    return X\n"}, changes=False,
         flow=("X = 255\n", "\n\n\nX = 0xff\n")),
    edit("a number's type", {"flow.py": "X = 1\n" + WORK + "    return X\n"}, flow=("X = 1", "X = True")),
    edit("the sign of zero", {"flow.py": "X = 0.0\n" + WORK + "    return X\n"}, flow=("X = 0.0", "X = -0.0")),
    edit("a text and bytes", {"flow.py": "X = 'a'\n" + WORK + "    return X\n"}, flow=("X = 'a'", "X = b'a'")),
    edit("an f-string", {"flow.py": "X = f'{1.5:.1f}'\n" + WORK + "    return X\n"}, flow=(".1f", ".2f")),
    edit("the way of an f-string", {"flow.py": "X = f'{\"a\"!r}'\n" + WORK + "    return X\n"}, flow=("!r", "!s")),
    edit("None in a dict", {"flow.py": "A = {1: 2}\nX = {None: 1, **A}\n" + WORK + "    return X\n"},
         flow=("None: 1, **A", "None: 1, 0: A")),
    edit("async", {"flow.py": "import asyncio\nasync def h():\n    return 1\n" + WORK + "    return asyncio.run(h())\n"},
         flow=("return 1", "return 2")),
    edit("a task that is called", {"flow.py": "from lib import step\n" + WORK + "    return step()\n",
                                   "lib.py": "from executor import TaskEnvironment\nother = TaskEnvironment('o')\n"
                                             "@other.task\ndef step():\n    return 1\n"}, lib=("return 1", "return 2")),
    edit("what a task of a task calls", {"flow.py": "import lib\n" + WORK + "    return lib.step.override(retries=2)()\n",
                                         "lib.py": "from executor import TaskEnvironment\nimport far\n"
                                                   "other = TaskEnvironment('o')\n@other.task\ndef step():\n"
                                                   "    return far.X\n", "far.py": "X = 1\n"}, far=("X = 1", "X = 2")),
    edit("the environment of a task", {"flow.py": "a = TaskEnvironment('a')\nb = TaskEnvironment('b')\n@a.task\ndef s():\n"
                                                  "    return 1\n" + WORK + "    return s()\n"}, runs=False,
         flow=("@a.task", "@b.task")),
    edit("a file beside the code", {"flow.py": "from pathlib import Path\nHERE = Path(__file__).parent\n" + WORK
                                    + "    return (HERE / 'data' / 'x.txt').read_text()\n", "data/x.txt": "1",
                                    "data/y.txt": "1"}, data__x_txt=("1", "2")),
    edit("another file", {"flow.py": "from pathlib import Path\nHERE = Path(__file__).parent\n" + WORK
                          + "    return (HERE / 'data' / 'x.txt').read_text()\n", "data/x.txt": "1", "data/y.txt": "1"},
         changes=False, data__y_txt=("1", "2")),
    edit("a file of os.path", {"flow.py": "import os\nfrom os.path import join, dirname\n"
                               "DATA = join(dirname(os.path.abspath(__file__)), 'x.txt')\n" + WORK
                               + "    with open(DATA) as file:\n        return file.read()\n", "x.txt": "1",
                               "y.txt": "1"}, x_txt=("1", "2")),
    edit("a file by an unknown name", {"flow.py": "from pathlib import Path\n" + WORK + "    name = 'x'\n"
                                       "    return (Path(__file__).parent / f'{name}.txt').read_text()\n", "x.txt": "1"},
         x_txt=("1", "2")),
    edit("a folder of another module", {"flow.py": "import lib\n" + WORK
                                        + "    return sorted(p.read_text() for p in lib.DATA.glob('*'))\n",
                                        "lib.py": "from pathlib import Path\nDATA = Path(__file__).parent / 'data'\n",
                                        "data/x.txt": "1"}, data__x_txt=("1", "2")),
    edit("a resource", {"flow.py": "from importlib import resources\n" + WORK
                        + "    return resources.files('pkg').joinpath('x.txt').read_text()\n", "pkg/__init__.py": "",
                        "pkg/x.txt": "1", "pkg/y.txt": "1"}, pkg__x_txt=("1", "2")),
    edit("a script", {"flow.py": "import subprocess, sys\nfrom pathlib import Path\n" + WORK
                      + "    script = Path(__file__).parent / 'tool.py'\n"
                        "    return subprocess.run([sys.executable, script], capture_output=True).stdout\n",
                      "tool.py": "import lib\nif __name__ == '__main__':\n    print(lib.f())\n", "lib.py": LIB},
         lib=("return 1\n", "return 2\n")),
    edit("what is beside a name that is new in a module",
         {"flow.py": "import lib\nlib.new = 1\n" + WORK + "    return lib.f()\n", "lib.py": LIB},
         changes=False, lib=("return 10\n", "return 20\n")),
    edit("a module that comes between", {"flow.py": "import lib\n" + WORK + "    return lib.f()\n", "lib.py": LIB},
         lib=("def f", "def unused():\n    return 0\n\ndef f"), changes=False),
]  # fmt: skip


def attack(name: str, before: Mapping[str, str], edits: Mapping[str, str], *, changes: bool = True) -> Case:
    """A case in which whole files are replaced."""
    return Case(name, before, {**before, **edits}, changes)


#: Written to break the walk: name, the project, and the files that change.
ATTACKS = [
    attack(
        "star via package init sub",
        {
            "flow.py": ("from pkg import *\n@env.task\ndef work():\n    return sub.X\n"),
            "pkg/__init__.py": ("__all__ = ['sub']\n"),
            "pkg/sub.py": ("X=1\n"),
        },
        {"pkg/sub.py": ("X=2\n")},
    ),
    attack(
        "setattr top",
        {
            "flow.py": ("import lib\nsetattr(lib,'f',lambda:7)\n@env.task\ndef work():\n    return lib.f()\n"),
            "lib.py": LIB,
        },
        {"flow.py": ("import lib\nsetattr(lib,'f',lambda:8)\n@env.task\ndef work():\n    return lib.f()\n")},
    ),
    attack(
        "class attr via instance dict",
        {
            "flow.py": ("from lib import obj\n@env.task\ndef work():\n    return obj.m()\n"),
            "lib.py": ("from cls import C\nobj = C()\n"),
            "cls.py": ("class C:\n    def m(self): return helper()\ndef helper(): return 1\n"),
        },
        {"cls.py": ("class C:\n    def m(self): return helper()\ndef helper(): return 2\n")},
    ),
    attack(
        "returned class instance attr",
        {
            "flow.py": ("from lib import make\n@env.task\ndef work():\n    return make().m()\n"),
            "lib.py": ("def make():\n    from cls import C\n    return C()\n"),
            "cls.py": ("class C:\n    def m(self): return 1\n"),
        },
        {"cls.py": ("class C:\n    def m(self): return 2\n")},
    ),
    attack(
        "builtins patch",
        {
            "flow.py": ("import patch\n@env.task\ndef work():\n    return hello()\n"),
            "patch.py": ("import builtins\nbuiltins.hello = lambda: 1\n"),
        },
        {"patch.py": ("import builtins\nbuiltins.hello = lambda: 2\n")},
    ),
    attack(
        "del in loop",
        {"flow.py": ("X=1\nfor X in range(3): pass\n@env.task\ndef work():\n    return X\n")},
        {"flow.py": ("X=1\nfor X in range(4): pass\n@env.task\ndef work():\n    return X\n")},
    ),
    attack(
        "with stmt",
        {
            "flow.py": (
                "import contextlib\n"
                "with contextlib.suppress(ImportError):\n"
                "    X=1\n"
                "    import nonono\n"
                "    X=2\n"
                "@env.task\n"
                "def work():\n"
                "    return X\n"
            )
        },
        {
            "flow.py": (
                "import contextlib\n"
                "with contextlib.suppress(ImportError):\n"
                "    X=3\n"
                "    import nonono\n"
                "    X=2\n"
                "@env.task\n"
                "def work():\n"
                "    return X\n"
            )
        },
    ),
    attack(
        "match capture",
        {"flow.py": ("match (1,2):\n    case (a,b): pass\n@env.task\ndef work():\n    return b\n")},
        {"flow.py": ("match (1,3):\n    case (a,b): pass\n@env.task\ndef work():\n    return b\n")},
    ),
    attack(
        "default mutable shared",
        {
            "flow.py": ("from lib import f\n@env.task\ndef work():\n    return f()\n"),
            "lib.py": ("import other\ndef f(x=other.L): return x\n"),
            "other.py": ("L=[1]\n"),
        },
        {"other.py": ("L=[2]\n")},
    ),
    attack(
        "nested default",
        {
            "flow.py": ("import lib\n@env.task\ndef work():\n    def g(x=lib.f()): return x\n    return g()\n"),
            "lib.py": LIB,
        },
        {"lib.py": LIB.replace("return 1\n", "return 2\n", 1)},
    ),
    attack(
        "class in function with base",
        {
            "flow.py": ("import lib\n@env.task\ndef work():\n    class D(lib.C): pass\n    return D().x\n"),
            "lib.py": ("class C: x=1\n"),
        },
        {"lib.py": ("class C: x=2\n")},
    ),
    attack(
        "property of module class",
        {
            "flow.py": ("import sys\n@env.task\ndef work():\n    import lib\n    return lib.x\n"),
            "lib.py": (
                "import types,sys\n"
                "class M(types.ModuleType):\n"
                "    @property\n"
                "    def x(self): return 1\n"
                "sys.modules[__name__].__class__ = M\n"
            ),
        },
        {
            "lib.py": (
                "import types,sys\n"
                "class M(types.ModuleType):\n"
                "    @property\n"
                "    def x(self): return 2\n"
                "sys.modules[__name__].__class__ = M\n"
            )
        },
    ),
    attack(
        "singledispatch",
        {
            "flow.py": ("import lib, ext\n@env.task\ndef work():\n    return lib.f(1)\n"),
            "lib.py": ("import functools\n@functools.singledispatch\ndef f(x): return 0\n"),
            "ext.py": ("import lib\n@lib.f.register\ndef _(x: int): return 1\n"),
        },
        {"ext.py": ("import lib\n@lib.f.register\ndef _(x: str): return 1\n")},
    ),
    attack(
        "property setter in class",
        {
            "flow.py": (
                "@env.task\n"
                "def work():\n"
                "    return C().x\n"
                "class C:\n"
                "    @property\n"
                "    def x(self): return 1\n"
                "    @x.setter\n"
                "    def x(self,v): pass\n"
            )
        },
        {
            "flow.py": (
                "@env.task\n"
                "def work():\n"
                "    return C().x\n"
                "class C:\n"
                "    @property\n"
                "    def x(self): return 2\n"
                "    @x.setter\n"
                "    def x(self,v): pass\n"
            )
        },
    ),
    attack(
        "setter name of registry",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": (
                "from store import S\n"
                "class R:\n"
                "    def setter(self,f): S.append(f()); return f\n"
                "r=R()\n"
                "@r.setter\n"
                "def g(): return 1\n"
            ),
        },
        {
            "lib.py": (
                "from store import S\n"
                "class R:\n"
                "    def setter(self,f): S.append(f()); return f\n"
                "r=R()\n"
                "@r.setter\n"
                "def g(): return 2\n"
            )
        },
    ),
    attack(
        "conditional expr at top calls",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": ("from store import S\nX = S.append(1) if True else 0\n"),
        },
        {"lib.py": ("from store import S\nX = S.append(2) if True else 0\n")},
    ),
    attack(
        "f-string calls",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": ("from store import S\nX = f'{S.append(1)}'\n"),
        },
        {"lib.py": ("from store import S\nX = f'{S.append(2)}'\n")},
    ),
    attack(
        "annotation calls",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": ("from store import S\nX: S.append(1) = 0\n"),
        },
        {"lib.py": ("from store import S\nX: S.append(2) = 0\n")},
    ),
    attack(
        "fn annotation calls",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": ("from store import S\ndef f(x: S.append(1)): pass\n"),
        },
        {"lib.py": ("from store import S\ndef f(x: S.append(2)): pass\n")},
    ),
    attack(
        "class annotation calls",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": ("from store import S\nclass C:\n    x: S.append(1)\n"),
        },
        {"lib.py": ("from store import S\nclass C:\n    x: S.append(2)\n")},
    ),
    attack(
        "defaultdict factory",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": (
                "from collections import defaultdict\n"
                "from store import S\n"
                "D = defaultdict(lambda: S.append(1))\n"
                "X = D['a']\n"
            ),
        },
        {
            "lib.py": (
                "from collections import defaultdict\n"
                "from store import S\n"
                "D = defaultdict(lambda: S.append(2))\n"
                "X = D['a']\n"
            )
        },
    ),
    attack(
        "defaultdict pure insertion",
        {
            "flow.py": ("import lib\nfrom store import D\n@env.task\ndef work():\n    return dict(D)\n"),
            "store.py": ("from collections import defaultdict\nD = defaultdict(list)\n"),
            "lib.py": ("from store import D\nX = D['a']\n"),
        },
        {"lib.py": ("from store import D\nX = D['b']\n")},
    ),
    attack(
        "pop method",
        {
            "flow.py": ("import lib\nfrom store import L\n@env.task\ndef work():\n    return L\n"),
            "store.py": ("L=[1,2]\n"),
            "lib.py": ("from store import L\nX=L.pop()\n"),
        },
        {"lib.py": ("from store import L\nX=L.pop(0)\n")},
    ),
    attack(
        "zip of shared iter in list",
        {
            "flow.py": ("import lib\nfrom store import I\n@env.task\ndef work():\n    return next(I)\n"),
            "store.py": ("I=iter([1,2,3,4])\n"),
            "lib.py": ("X=0\n"),
        },
        {"lib.py": ("from store import I\nX=[a for a,b in zip(I,[1,2])]\n")},
    ),
    attack(
        "shared iter in list container",
        {
            "flow.py": ("import lib\nfrom store import I\n@env.task\ndef work():\n    return next(I[0])\n"),
            "store.py": ("I=[iter([1,2,3,4])]\n"),
            "lib.py": ("X=0\n"),
        },
        {"lib.py": ("from store import I\nX=list(zip(I[0],'a'))\n")},
    ),
    attack(
        "in operator consuming",
        {
            "flow.py": ("import lib\nfrom store import I\n@env.task\ndef work():\n    return list(I)\n"),
            "store.py": ("I=map(int,'1234')\n"),
            "lib.py": ("X=0\n"),
        },
        {"lib.py": ("from store import I\nX = 2 in I\n")},
    ),
    attack(
        "unpack consuming",
        {
            "flow.py": ("import lib\nfrom store import I\n@env.task\ndef work():\n    return list(I)\n"),
            "store.py": ("I=map(int,'1234')\n"),
            "lib.py": ("X=0\n"),
        },
        {"lib.py": ("from store import I\nX,*Y = I\n")},
    ),
    attack(
        "partial of map",
        {
            "flow.py": ("import lib\nfrom store import I\n@env.task\ndef work():\n    return list(I.args[0])\n"),
            "store.py": ("from functools import partial\nI=partial(int, (i for i in range(3)))\n"),
            "lib.py": ("X=0\n"),
        },
        {"lib.py": ("from store import I\nX = list(I.args[0])\n")},
    ),
    attack(
        "deepcopy hook",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": (
                "import copy\n"
                "from store import S\n"
                "class C:\n"
                "    def __deepcopy__(self,m): S.append(1)\n"
                "c=C()\n"
                "X=copy.deepcopy(c)\n"
            ),
        },
        {
            "lib.py": (
                "import copy\n"
                "from store import S\n"
                "class C:\n"
                "    def __deepcopy__(self,m): S.append(2)\n"
                "c=C()\n"
                "X=copy.deepcopy(c)\n"
            )
        },
    ),
    attack(
        "metaclass eq of class operand",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": (
                "from store import S\n"
                "class M(type):\n"
                "    def __or__(c,o): S.append(1)\n"
                "class C(metaclass=M): pass\n"
                "X = C | int\n"
            ),
        },
        {
            "lib.py": (
                "from store import S\n"
                "class M(type):\n"
                "    def __or__(c,o): S.append(2)\n"
                "class C(metaclass=M): pass\n"
                "X = C | int\n"
            )
        },
    ),
    attack(
        "class_getitem",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": ("from store import S\nclass C:\n    def __class_getitem__(c,o): S.append(o)\nX = C[1]\n"),
        },
        {"lib.py": ("from store import S\nclass C:\n    def __class_getitem__(c,o): S.append(o)\nX = C[2]\n")},
    ),
    attack(
        "init_subclass grand",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": ("from base import B\nclass D(B): x=1\n"),
            "base.py": (
                "from store import S\n"
                "class A:\n"
                "    def __init_subclass__(cls): S.append(getattr(cls,'x',0))\n"
                "class B(A): pass\n"
            ),
        },
        {"lib.py": ("from base import B\nclass D(B): x=2\n")},
    ),
    attack(
        "set_name",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": (
                "from store import S\nclass F:\n    def __set_name__(self,o,n): S.append(n)\nclass D:\n    a = F()\n"
            ),
        },
        {
            "lib.py": (
                "from store import S\nclass F:\n    def __set_name__(self,o,n): S.append(n)\nclass D:\n    b = F()\n"
            )
        },
    ),
    attack(
        "set_name by instance",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": (
                "from store import S\n"
                "class F:\n"
                "    def __set_name__(self,o,n): S.append(n)\n"
                "f = F()\n"
                "class D:\n"
                "    a = f\n"
            ),
        },
        {
            "lib.py": (
                "from store import S\n"
                "class F:\n"
                "    def __set_name__(self,o,n): S.append(n)\n"
                "f = F()\n"
                "class D:\n"
                "    b = f\n"
            )
        },
    ),
    attack(
        "subclass module escape via class attr",
        {"flow.py": ("class K:\n    import lib as m\n@env.task\ndef work():\n    return K.m.f()\n"), "lib.py": LIB},
        {"lib.py": LIB.replace("return 1\n", "return 2\n", 1)},
    ),
    attack(
        "nonlocal import",
        {
            "flow.py": (
                "@env.task\n"
                "def work():\n"
                "    m=None\n"
                "    def g():\n"
                "        nonlocal m\n"
                "        import lib as m\n"
                "    g()\n"
                "    return m.f()\n"
            ),
            "lib.py": LIB,
        },
        {"lib.py": LIB.replace("return 1\n", "return 2\n", 1)},
    ),
    attack(
        "attr of package submodule imported elsewhere",
        {
            "flow.py": ("import pkg, other\n@env.task\ndef work():\n    return pkg.sub.X\n"),
            "pkg/__init__.py": (""),
            "pkg/sub.py": ("X=1\n"),
            "other.py": ("import pkg.sub\n"),
        },
        {"pkg/sub.py": ("X=2\n")},
    ),
    attack(
        "print format traceback method",
        {
            "flow.py": (
                "import logging\n"
                "@env.task\n"
                "def work():\n"
                "    try: 1/0\n"
                "    except Exception as e:\n"
                "        return e.__traceback__.tb_lineno\n"
            )
        },
        {
            "flow.py": (
                "import logging\n"
                "\n"
                "@env.task\n"
                "def work():\n"
                "    try: 1/0\n"
                "    except Exception as e:\n"
                "        return e.__traceback__.tb_lineno\n"
            )
        },
    ),
    attack(
        "logging findCaller",
        {"flow.py": ("import logging\n@env.task\ndef work():\n    return logging.getLogger().findCaller()[1]\n")},
        {"flow.py": ("import logging\n\n@env.task\ndef work():\n    return logging.getLogger().findCaller()[1]\n")},
    ),
    attack(
        "warnings record lineno",
        {
            "flow.py": (
                "import warnings\n"
                "@env.task\n"
                "def work():\n"
                "    with warnings.catch_warnings(record=True) as w:\n"
                "        warnings.simplefilter('always')\n"
                "        warnings.warn('x')\n"
                "        return w[0].lineno\n"
            )
        },
        {
            "flow.py": (
                "import warnings\n"
                "\n"
                "@env.task\n"
                "def work():\n"
                "    with warnings.catch_warnings(record=True) as w:\n"
                "        warnings.simplefilter('always')\n"
                "        warnings.warn('x')\n"
                "        return w[0].lineno\n"
            )
        },
    ),
    attack(
        "operator.attrgetter on module",
        {
            "flow.py": ("import lib,operator\n@env.task\ndef work():\n    return operator.attrgetter('f')(lib)()\n"),
            "lib.py": LIB,
        },
        {"lib.py": LIB.replace("return 1\n", "return 2\n", 1)},
    ),
    attack(
        "operator dunder globals",
        {
            "flow.py": (
                "import operator\n"
                "from lib import f\n"
                "@env.task\n"
                "def work():\n"
                "    return operator.attrgetter('__globals__')(f)['g']()\n"
            ),
            "lib.py": LIB,
        },
        {"lib.py": LIB.replace("return 10\n", "return 20\n", 1)},
    ),
    attack(
        "getattr dotted dunder",
        {
            "flow.py": (
                "import operator\n"
                "from lib import f\n"
                "@env.task\n"
                "def work():\n"
                "    return operator.attrgetter('f.__globals__')(C)['g']()\n"
                "class C:\n"
                "    f=f\n"
            ),
            "lib.py": LIB,
        },
        {"lib.py": LIB.replace("return 10\n", "return 20\n", 1)},
    ),
    attack(
        "type() subclass registry",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": (
                "from store import S\n"
                "class A:\n"
                "    def __init_subclass__(c): S.append(c.x)\n"
                "B = type('B',(A,),{'x':1})\n"
            ),
        },
        {
            "lib.py": (
                "from store import S\n"
                "class A:\n"
                "    def __init_subclass__(c): S.append(c.x)\n"
                "B = type('B',(A,),{'x':2})\n"
            )
        },
    ),
    attack(
        "namedtuple base",
        {
            "flow.py": ("from lib import P\n@env.task\ndef work():\n    return P(1).y\n"),
            "lib.py": (
                "from collections import namedtuple\n"
                "class P(namedtuple('P','x')):\n"
                "    @property\n"
                "    def y(self): return 1\n"
            ),
        },
        {
            "lib.py": (
                "from collections import namedtuple\n"
                "class P(namedtuple('P','x')):\n"
                "    @property\n"
                "    def y(self): return 2\n"
            )
        },
    ),
    attack(
        "lambda default effect",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": ("from store import S\nX = lambda a=S.append(1): a\n"),
        },
        {"lib.py": ("from store import S\nX = lambda a=S.append(2): a\n")},
    ),
    attack(
        "sorted key lambda effect",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": ("from store import S\nX = sorted([1], key=lambda a: S.append(a))\n"),
        },
        {"lib.py": ("from store import S\nX = sorted([2], key=lambda a: S.append(a))\n")},
    ),
    attack(
        "sorted key builtin method",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": ("from store import S\nX = list(map(S.append,[1]))\n"),
        },
        {"lib.py": ("from store import S\nX = list(map(S.append,[2]))\n")},
    ),
    attack(
        "sorted key partial inline",
        {
            "flow.py": ("import lib\nfrom store import S\n@env.task\ndef work():\n    return S\n"),
            "store.py": ("S = []\n"),
            "lib.py": ("from functools import partial\nfrom store import S\nX = list(map(partial(S.insert,0),[1]))\n"),
        },
        {"lib.py": ("from functools import partial\nfrom store import S\nX = list(map(partial(S.insert,0),[2]))\n")},
    ),
    attack(
        "map setattr builtin",
        {
            "flow.py": ("import lib,store\n@env.task\ndef work():\n    return store.v\n"),
            "store.py": ("v=0\n"),
            "lib.py": ("import store\nX = list(map(setattr,[store],['v'],[1]))\n"),
        },
        {"lib.py": ("import store\nX = list(map(setattr,[store],['v'],[2]))\n")},
    ),
    attack(
        "map exec",
        {
            "flow.py": ("import lib,store\n@env.task\ndef work():\n    return store.v\n"),
            "store.py": ("v=0\n"),
            "lib.py": ("X = list(map(exec,['import store; store.v=1']))\n"),
        },
        {"lib.py": ("X = list(map(exec,['import store; store.v=2']))\n")},
    ),
    attack(
        "os.environ at top",
        {
            "flow.py": ("import lib,os\n@env.task\ndef work():\n    return os.environ.get('H5X')\n"),
            "lib.py": ("import os\nos.environ['H5X']='1'\n"),
        },
        {"lib.py": ("import os\nos.environ['H5X']='2'\n")},
    ),
    attack(
        "sys attr",
        {
            "flow.py": ("import lib,sys\n@env.task\ndef work():\n    return sys.h5x\n"),
            "lib.py": ("import sys\nsys.h5x=1\n"),
        },
        {"lib.py": ("import sys\nsys.h5x=2\n")},
    ),
    attack(
        "type params shadows",
        {"flow.py": ("T=1\ndef h():\n    return T\n@env.task\ndef work():\n    return h()\n")},
        {"flow.py": ("T=2\ndef h():\n    return T\n@env.task\ndef work():\n    return h()\n")},
    ),
    attack(
        "string file name glob py",
        {
            "flow.py": (
                "from pathlib import Path\n"
                "@env.task\n"
                "def work():\n"
                "    return sorted(p.read_text() for p in Path(__file__).parent.glob('l*.*'))\n"
            ),
            "lib.py": ("# a\n"),
        },
        {"lib.py": ("# b\n")},
    ),
    attack(
        "cwd literal no",
        {"flow.py": ("@env.task\ndef work():\n    return 1\n"), "a.txt": ("1")},
        {"a.txt": ("2")},
        changes=False,
    ),
    attack(
        "try nameerror order",
        {
            "flow.py": (
                "def f2(): return 1\n"
                "try:\n"
                "    X = f2\n"
                "except NameError:\n"
                "    X = None\n"
                "@env.task\n"
                "def work():\n"
                "    return X is None\n"
            )
        },
        {
            "flow.py": (
                "try:\n"
                "    X = f2\n"
                "except NameError:\n"
                "    X = None\n"
                "def f2(): return 1\n"
                "@env.task\n"
                "def work():\n"
                "    return X is None\n"
            )
        },
    ),
    attack(
        "local var of except",
        {
            "flow.py": (
                "e=1\n"
                "def h():\n"
                "    try: 1/0\n"
                "    except Exception as e: pass\n"
                "    return 3\n"
                "@env.task\n"
                "def work():\n"
                "    return h()\n"
            )
        },
        {
            "flow.py": (
                "e=2\n"
                "def h():\n"
                "    try: 1/0\n"
                "    except Exception as e: pass\n"
                "    return 3\n"
                "@env.task\n"
                "def work():\n"
                "    return h()\n"
            )
        },
        changes=False,
    ),
    attack(
        "name via __main__-like",
        {"flow.py": ("@env.task\ndef work():\n    return X\nif __name__ != '__main__':\n    X=1\n")},
        {"flow.py": ("@env.task\ndef work():\n    return X\nif __name__ != '__main__':\n    X=2\n")},
    ),
    attack(
        "eq main reversed else",
        {"flow.py": ("@env.task\ndef work():\n    return X\nif '__main__' == __name__:\n    X=1\nelse:\n    X=3\n")},
        {"flow.py": ("@env.task\ndef work():\n    return X\nif '__main__' == __name__:\n    X=1\nelse:\n    X=4\n")},
    ),
    attack(
        "__name__ rebound",
        {
            "flow.py": (
                "__name__='__main__'\n@env.task\ndef work():\n    return X\nif __name__ == '__main__':\n    X=1\n"
            )
        },
        {
            "flow.py": (
                "__name__='__main__'\n@env.task\ndef work():\n    return X\nif __name__ == '__main__':\n    X=2\n"
            )
        },
    ),
    attack(
        "__file__ rebound",
        {
            "flow.py": (
                "from pathlib import Path\n"
                "__file__=str(Path(__file__).parent/'d'/'z')\n"
                "@env.task\n"
                "def work():\n"
                "    return (Path(__file__).parent/'x.txt').read_text()\n"
            ),
            "d/x.txt": ("1"),
        },
        {"d/x.txt": ("2")},
    ),
    attack(
        "star import of underscore",
        {
            "flow.py": ("from lib import _f\n@env.task\ndef work():\n    return _f()\n"),
            "lib.py": ("from mid import *\nfrom mid import _f\n"),
            "mid.py": ("def _f(): return 1\n"),
        },
        {"mid.py": ("def _f(): return 2\n")},
    ),
    attack(
        "import a as b of pkg attr",
        {
            "flow.py": ("import pkg.sub as s\n@env.task\ndef work():\n    return s.X\n"),
            "pkg/__init__.py": (""),
            "pkg/sub/__init__.py": ("from .deep import *\n"),
            "pkg/sub/deep.py": ("X=1\n"),
        },
        {"pkg/sub/deep.py": ("X=2\n")},
    ),
    attack(
        "dict of classes dispatch by str",
        {
            "flow.py": ("import lib\n@env.task\ndef work():\n    return lib.REG['A']().m()\n"),
            "lib.py": ("class A:\n    def m(self): return 1\nREG={c.__name__:c for c in [A]}\n"),
        },
        {"lib.py": ("class A:\n    def m(self): return 2\nREG={c.__name__:c for c in [A]}\n")},
    ),
    attack(
        "task attr wrapped",
        {
            "flow.py": ("import lib\n@env.task\ndef work():\n    return lib.REG[0].function()\n"),
            "lib.py": (
                "from executor import TaskEnvironment\n"
                "o=TaskEnvironment('o')\n"
                "@o.task\n"
                "def t(): return 1\n"
                "REG=[*o.tasks.values()]\n"
            ),
        },
        {
            "lib.py": (
                "from executor import TaskEnvironment\n"
                "o=TaskEnvironment('o')\n"
                "@o.task\n"
                "def t(): return 2\n"
                "REG=[*o.tasks.values()]\n"
            )
        },
    ),
    attack(
        "env tasks by name",
        {
            "flow.py": ("import lib\n@env.task\ndef work():\n    return lib.o.tasks['t'].function()\n"),
            "lib.py": ("from executor import TaskEnvironment\no=TaskEnvironment('o')\n@o.task\ndef t(): return 1\n"),
        },
        {"lib.py": ("from executor import TaskEnvironment\no=TaskEnvironment('o')\n@o.task\ndef t(): return 2\n")},
    ),
    attack(
        "env alias",
        {
            "flow.py": ("from lib import o\n@env.task\ndef work():\n    return getattr(o,'tasks')['t'].function()\n"),
            "lib.py": ("from executor import TaskEnvironment\no=TaskEnvironment('o')\n@o.task\ndef t(): return 1\n"),
        },
        {"lib.py": ("from executor import TaskEnvironment\no=TaskEnvironment('o')\n@o.task\ndef t(): return 2\n")},
    ),
    attack(
        "authoring ENVIRONMENTS",
        {
            "flow.py": (
                "import lib\n"
                "from executor import authoring\n"
                "@env.task\n"
                "def work():\n"
                "    return [e for e in authoring.ENVIRONMENTS if e.name=='o'][-1].tasks['t'].function()\n"
            ),
            "lib.py": ("from executor import TaskEnvironment\no=TaskEnvironment('o')\n@o.task\ndef t(): return 1\n"),
        },
        {"lib.py": ("from executor import TaskEnvironment\no=TaskEnvironment('o')\n@o.task\ndef t(): return 2\n")},
    ),
]


@pytest.mark.parametrize("case", [*CASES, *ATTACKS], ids=lambda case: case.name.replace(" ", "-"))
def test_an_edit_changes_the_key_where_it_can_change_the_answer(case: Case, tmp_path: Path) -> None:
    """And each edit that is said to do so really changes what the task answers."""
    before, after = write(tmp_path / "before", case.before), write(tmp_path / "after", case.after)
    first, second = reached(before, ["."], entry()), reached(after, ["."], entry())
    assert (first.digest != second.digest) == case.changes, compare(first.parts, second.parts)
    if case.runs:
        answers = observe(before), observe(after)
        assert (answers[0] != answers[1]) == case.changes, answers
        assert not answers[0].startswith("raised"), answers[0]


def test_there_are_enough_cases() -> None:
    names = [case.name for case in (*CASES, *ATTACKS)]
    assert len(names) > 180
    assert len(set(names)) == len(names)


# -- random projects ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thing:
    """Something of a random project: a function, a constant, a class or a statement with an effect.

    module, name: where it is, and what it is called
    uses:         the numbers of the things that it refers to; those come before it
    way:          how its module gets at each of them
    """

    kind: str
    module: int
    name: str
    value: int
    uses: tuple[int, ...]
    way: int


KINDS = ("function", "effect", "constant", "class", "default", "decorated", "twice", "function")


#: Those whose value is made when their module is imported.
EVALUATED = ("constant", "twice", "class", "effect", "default")


@st.composite
def projects(draw: st.DrawFn) -> list[Thing]:
    """Things that refer to earlier ones; the task refers to some of them."""
    count = draw(st.integers(3, 9))
    things: list[Thing] = []
    for number in range(count):
        kind = draw(st.sampled_from(KINDS))
        earlier = [n for n in range(number) if things[n].kind != "effect"]
        uses = tuple(draw(st.lists(st.sampled_from(earlier), max_size=2, unique=True))) if earlier else ()
        module = draw(st.integers(0, 2))
        module = max([module, *(things[n].module for n in uses)])  # modules import downwards only
        things.append(Thing(kind, module, f"n{number}", draw(st.integers(0, 99)), uses, draw(st.integers(0, 4))))
    return things


def refer(things: Sequence[Thing], number: int, module: int, way: int) -> tuple[str, str, str]:
    """An import for the top, one for the inside, and the expression, by which a module gets at a thing's value."""
    thing = things[number]
    call = "" if thing.kind in ("constant", "twice") else "().value" if thing.kind == "class" else "()"
    if thing.module == module:
        return "", "", thing.name + call
    other = f"pkg.m{thing.module}"
    return {
        0: (f"import {other}", "", f"{other}.{thing.name}{call}"),
        1: (f"import {other} as o{number}", "", f"o{number}.{thing.name}{call}"),
        2: (f"from {other} import {thing.name} as x{number}", "", f"x{number}{call}"),
        3: ("", f"from {other} import {thing.name} as y{number}", f"y{number}{call}"),
        4: (f"from pkg import m{thing.module}", "", f"getattr(m{thing.module}, {thing.name!r}){call}"),
    }[way]


def define(things: Sequence[Thing], number: int) -> tuple[list[str], str]:
    """The imports and the source of a thing."""
    thing = things[number]
    if thing.kind in EVALUATED:
        found = [refer(things, n, thing.module, thing.way if thing.way != 3 else 2) for n in thing.uses]
    else:
        found = [refer(things, n, thing.module, thing.way) for n in thing.uses]
    tops, insides = [top for top, _, _ in found if top], "".join(f"    {inside}\n" for _, inside, _ in found if inside)
    total = " + ".join([str(thing.value), *(f"({text}) * 3" for _, _, text in found)])
    name = thing.name
    source = {
        "function": f'def {name}():\n    """Words."""\n{insides}    return {total}\n',
        "constant": f"{name} = {total}\n",
        "class": f"class {name}:\n    value = {total}\n",
        "effect": f"import pkg.shared\npkg.shared.ALL.append({total})\n",
        "decorated": f"@deco\ndef {name}():\n{insides}    return {total}\n",
        "twice": f"{name} = 1\n{name} = {name} + {total}\n",
        "default": f"def {name}(x={total}):\n    return x\n",
    }[thing.kind]
    return tops, source


DECO = """
import functools

def deco(f):
    @functools.wraps(f)
    def inner():
        return f() + 1
    return inner
"""


def render(things: Sequence[Thing], roots: Sequence[int], reads_shared: bool) -> dict[str, str]:
    """The files of a random project."""
    files = {"pkg/__init__.py": "", "pkg/shared.py": "ALL = []\n", "pkg/deco.py": DECO}
    for module in range(3):
        defined = [define(things, n) for n, thing in enumerate(things) if thing.module == module]
        tops = dict.fromkeys(top for found, _ in defined for top in found)
        head = "from pkg.deco import deco\n" + "".join(f"{top}\n" for top in tops)
        files[f"pkg/m{module}.py"] = head + "".join(f"\n{source}" for _, source in defined)
    found = [refer(things, n, -1, n % 5) for n in roots]
    own_tops = [top for top, _, _ in found if top]
    insides = "".join(f"    {inside}\n" for _, inside, _ in found if inside)
    shared = "import pkg.shared\n" if reads_shared else ""
    values = [text for _, _, text in found] + (["pkg.shared.ALL"] if reads_shared else [])
    body = f"{WORK}{insides}    return [{', '.join(values)}]\n"
    files["flow.py"] = "".join(f"{top}\n" for top in own_tops) + shared + body
    return files


def reachable(things: Sequence[Thing], roots: Sequence[int]) -> set[int]:
    """The numbers of the things that the task refers to, directly or not."""
    waiting, found = list(roots), set(roots)
    while waiting:
        new = set(things[waiting.pop()].uses) - found
        found |= new
        waiting += new
    return found


FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@FEW
@given(data=st.data())
def test_whatever_changes_the_answer_changes_the_key(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The projects are really run, before and after each thing in them is edited."""
    things = data.draw(projects())
    named = [n for n, thing in enumerate(things) if thing.kind != "effect"]
    roots = data.draw(st.lists(st.sampled_from(named), min_size=1, max_size=3, unique=True)) if named else []
    before = render(things, roots, reads_shared=True)
    root = write(tmp_path_factory.mktemp("random"), before)
    digest, answer = reached(root, ["."], entry()).digest, observe(root)
    for number, thing in enumerate(things):
        edits = [
            replace(thing, value=thing.value + 1),
            replace(thing, uses=thing.uses[:-1]),
            replace(thing, way=(thing.way + 1) % 5),
            replace(thing, kind="constant" if thing.kind == "twice" else thing.kind, value=thing.value + 1),
        ]
        for changed in (edits[0], data.draw(st.sampled_from(edits[1:]))):
            edited = [changed if n == number else each for n, each in enumerate(things)]
            after = render(edited, roots, reads_shared=True)
            write(root, dict(after.items() - before.items()))
            if observe(root) != answer:
                assert reached(root, ["."], entry()).digest != digest, changed
            write(root, dict(before.items() - after.items()))


@FEW
@given(data=st.data())
def test_what_is_out_of_reach_changes_nothing(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nor do comments, docstrings and layout; ways that hand a module on are left out here."""
    things = [replace(thing, way=thing.way % 4) for thing in data.draw(projects())]
    things = [replace(thing, kind="function") if thing.kind == "effect" else thing for thing in things]
    roots = data.draw(st.lists(st.integers(0, len(things) - 1), max_size=3, unique=True))
    roots = [n for n in roots if n % 5 != 4]
    at_top = [n for n, thing in enumerate(things) if thing.kind == "twice" or (thing.uses and thing.kind in EVALUATED)]
    near = reachable(things, [*roots, *at_top])
    far = [n for n in range(len(things)) if n not in near]
    files = render(things, roots, reads_shared=False)
    after = dict(files)
    if far:
        number = data.draw(st.sampled_from(far))
        edited = [replace(thing, value=thing.value + 1) if n == number else thing for n, thing in enumerate(things)]
        after = render(edited, roots, reads_shared=False)
    for file in files:
        after[file] = "# A comment.\n\n" + after[file].replace("Words.", "Other words.").replace(" + ", "  +  ")
    folder = tmp_path_factory.mktemp("random")
    first, second = (
        reached(write(folder / name, each), ["."], entry()) for name, each in (("before", files), ("after", after))
    )
    assert first.digest == second.digest, compare(first.parts, second.parts)


# -- what is told ------------------------------------------------------------------------------------------------------


def test_parts_are_named_and_compared_as_people_call_them(tmp_path: Path) -> None:
    files = {
        "flow.py": "import preprocessing\n" + WORK + "    return preprocessing.parse_msa(preprocessing.CUTOFF)\n",
        "preprocessing.py": "from models import Model\nCUTOFF = 3\ndef parse_msa(cutoff):\n    return Model(cutoff).run()\n",
        "models.py": "import helpers\nclass Model:\n    def __init__(self, x):\n        self.x = x\n    def run(self):\n"
        "        return getattr(helpers, 'f')()\n",
        "helpers.py": "def f():\n    return 1\n",
    }
    before = reach(tmp_path / "before", files)
    assert {"flow.py: function work", "preprocessing.py: constant CUTOFF", "preprocessing.py: function parse_msa"} <= {
        *before.parts
    }
    assert {"models.py: class Model", "module helpers.py"} <= {*before.parts}
    files["preprocessing.py"] = files["preprocessing.py"].replace("Model(cutoff).run()", "extra()") + (
        "def extra():\n    return CUTOFF\nCUTOFF = 4\n"
    )
    after = reach(tmp_path / "after", files)
    assert compare(before.parts, after.parts) == [
        "constant `CUTOFF` in preprocessing.py changed",
        "function `parse_msa` in preprocessing.py changed",
        "function `extra` in preprocessing.py is new",
        "the order of what is in preprocessing.py is new",
        "class `Model` in models.py is gone",
        "import `Model` in preprocessing.py is gone",
        "import `helpers` in models.py is gone",
        "module `helpers.py` is gone",
    ]
    assert compare(after.parts, after.parts) == []


def test_where_nothing_is_known_all_of_the_project_counts_and_it_is_said_why(tmp_path: Path) -> None:
    found = reach(tmp_path / "a", {"flow.py": WORK + "    return eval('1')\n", "other.py": "X = 1\n", "data.txt": "1"})
    assert set(found.parts) == {
        "all of the project, because of `builtins.eval` in flow.py",
        "module flow.py",
        "module other.py",
        "file data.txt",
    }
    found = reach(tmp_path / "b", {"flow.py": "import broken\n" + WORK + "    return 1\n", "broken.py": "def f(:\n"})
    assert "all of the project, because of broken.py cannot be understood" in found.parts
    assert "file flow.py" in found.parts


def test_a_task_of_another_place_reaches_all(tmp_path: Path) -> None:
    """A digest of nothing would be the same whatever the code is."""
    found = reached(write(tmp_path, {"lib.py": LIB}), ["."], entry(file="elsewhere/flow.py"))
    assert "file lib.py" in found.parts


def test_editing_a_helper_of_the_demo_changes_the_tasks_that_reach_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "alphafold_demo", tmp_path / "alphafold_demo", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "envs").mkdir()
    manifest, _ = describe("alphafold_workflow", tmp_path)

    def digests() -> dict[str, str]:
        code = Code(tmp_path, manifest.import_roots, manifest)
        return {name: code.reached(task).digest for name, task in manifest.tasks.items()}

    after = digests()

    def changed_by(file: str, old: str, new: str) -> set[str]:
        nonlocal after
        before, path = after, tmp_path / "alphafold_demo" / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
        after = digests()
        return {name for name in before if before[name] != after[name]}

    whole, drawing = "orchestrator.alphafold_workflow", "visualization.visualize_results"
    assert changed_by("scoring.py", "INCLUSION_RADIUS = 15.0", "INCLUSION_RADIUS = 14.0") == {whole, drawing}
    assert changed_by("preprocessing.py", "def parse_fasta(", "def parse_fasta(\n    # words\n    ") == set()
    assert changed_by("preprocessing.py", "LONGEST_CHAIN = ", "LONGEST_CHAIN = 1 + ") == {
        whole,
        "preprocessing.preprocess_data",
    }
    assert changed_by("relaxation.py", "TOLERANCE = 100.0", "TOLERANCE = 50.0") == {whole, "alphafold.run_alphafold"}
    assert changed_by("web/report.css", "{", "{ ") == {whole, drawing}
    assert changed_by("workflow.py", '"statement": scores["statement"],', "") == {whole}


def test_tasks_that_are_called_are_listed_with_their_environments(tmp_path: Path) -> None:
    """Through helpers, by reference, in lists and by other names; a task that is not called is not."""
    write(
        tmp_path,
        {
            "envs/e/environment.yml": "dependencies: [python]\n",
            "flow.py": "from executor import map as run, reference_task\nimport lib\n"
            "far = reference_task('far.away')\nenv.add_dependency('a', 'b', 'far')\n"
            + WORK
            + "    return [*run(lib.one, [1]), lib.helper(), far()]\n",
            "lib.py": "from executor import TaskEnvironment\ndef make(name):\n    return TaskEnvironment(name)\n"
            "a, b = make('a'), make('b')\nALL = []\n@a.task\ndef one(x: int):\n    return x\n"
            "@b.task(retries=2)\ndef two():\n    return 2\ndef helper():\n    return STEPS[0]()\nSTEPS = [two]\n",
            "away.py": "from executor import TaskEnvironment\nfar = TaskEnvironment('far', depends_on=['deep'])\n"
            "deep = TaskEnvironment('deep')\n@deep.task\ndef down():\n    return 1\n@far.task\ndef away():\n"
            "    return down()\n@far.task\ndef unused():\n    return 1\n",
        },
    )
    manifest, task = describe("work", tmp_path)
    found = Code(tmp_path, manifest.import_roots, manifest).reached(task)
    assert found.tasks == ("a.one", "b.two", "deep.down", "e.work", "far.away")
    assert found.environments == ("a", "b", "deep", "e", "far")
    assert "away.py: function down" in found.parts
    assert "away.py: function unused" not in found.parts


def test_what_inputs_bring_with_them_is_reached(tmp_path: Path) -> None:
    """A task may be given an object of a class that it never names."""
    files = {
        "flow.py": "@env.task\ndef work(model):\n    return model.run()\n",
        "pkg/models.py": "class M:\n    x = 1\n",
    }
    write(tmp_path, files)
    code = Code(tmp_path, ["."])
    assert "pkg/models.py: class M" in code.reached(entry(), brought=[("pkg.models", "M"), ("numpy", "ndarray")]).parts
    assert "pkg/models.py: class M" not in code.reached(entry()).parts


def test_what_an_environment_preloads_is_loaded(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "envs/e/environment.yml": "dependencies: [python]\n",
            "flow.py": WORK + "    return 1\n",
            "other.py": "from executor import Reuse, TaskEnvironment\nwarm = TaskEnvironment('warm', "
            "reusable=Reuse(preload=['patches']))\n@warm.task\ndef hot():\n    return 1\n",
            "patches.py": "import json\njson.dumps = None\n",
        },
    )
    manifest, task = describe("hot", tmp_path)
    assert "patches.py: top level" in Code(tmp_path, manifest.import_roots, manifest).reached(task).parts


def test_files_that_are_named_count_by_their_content_and_those_that_are_missing_too(tmp_path: Path) -> None:
    flow = "from pathlib import Path\nHERE = Path(__file__).parent\n" + WORK + "    return (HERE / 'a.txt').exists()\n"
    found = reach(tmp_path / "a", {"flow.py": flow})
    assert found.parts["file a.txt"] == "absent"
    with_file = reach(tmp_path / "b", {"flow.py": flow, "a.txt": "1", "b.txt": "2"})
    assert compare(found.parts, with_file.parts) == ["file `a.txt` changed"]


def test_the_digest_is_the_same_on_every_python(tmp_path: Path) -> None:
    """Hosts of one project may run different versions; those that this machine has are asked."""
    write(tmp_path, {"flow.py": MIXED, "lib.py": LIB})
    code = (
        "import sys; from pathlib import Path; from executor.reach import reached; from executor.manifest import TaskEntry;"
        " entry = TaskEntry(name='e.work', environment='e', module='flow', qualname='work', file='flow.py', line=1, doc='',"
        " parameters=(), retries=0, timeout_s=None); print(reached(Path(sys.argv[1]), ['.'], entry).digest)"
    )
    here = reached(tmp_path, ["."], entry()).digest
    asked = 0
    for python in _newer_pythons():
        done = subprocess.run(
            [python, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": ""}
        )
        if "No module named" not in done.stderr:
            assert (done.stdout.strip(), done.stderr) == (here, "")
            asked += 1
    if not asked:
        pytest.skip("no other Python from 3.10 on can import run-local here")


MIXED = """
import dataclasses
from lib import f
TEXT = f"{f!r:>{10}}{1.5:.1f}" "b" u"c"

@dataclasses.dataclass(order=True)
class C:
    x: "int" = 1
    y: list = dataclasses.field(default_factory=list)

@env.task
def work(a: int = 1, /, *b, c=None, **d) -> "C":
    match a:
        case {"k": [1, *rest], **more} if rest:
            return more
        case C(x=1) | None:
            pass
    with open(a) as one, open(b) as two:
        return [*one, {**d, None: two[1:2, ..., -1]}]
    async def inner():
        return [x async for x in a if not x], (yield)
    try:
        return lambda x=1, *, y: x @ y
    except (ValueError, OSError) as exc:
        raise SystemExit from exc
    else:
        return f() if a else 0x10 + 1e400j
    finally:
        del a[0], b.c
"""


def _newer_pythons() -> list[str]:
    """Interpreters beside the one that runs this."""
    folder = Path(sys.base_prefix).parent
    return [str(each) for each in sorted(folder.glob("3.1[0-9]*/bin/python3"))]
