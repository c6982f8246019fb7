"""What an environment must show before it has a name: its Python starts, holds the versions of its lock, and imports.

A `verify.py` beside the specification runs in there, too, and says by an exception what is wrong.
"""

from __future__ import annotations

import json

from executor.environments.lock import Lock
from executor.environments.spec import Spec
from executor.errors import BuildError

_PASSED = "run-local: verified"

#: Runs in the environment, whatever version of Python that has: its arguments are what is expected, and the user's check.
_CHECK = """\
import importlib.metadata, json, sys
asked, own = json.loads(sys.argv[1]), sys.argv[2]
wrong = []
here = sys.version.split()[0]
if here != asked["python"]:
    wrong.append("python %s, the lock has %s" % (here, asked["python"]))
for name, version in asked["packages"].items():
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != version:
        wrong.append("%s %s, the lock has %s" % (name, found, version))
if wrong:
    sys.exit("\\n".join(wrong))
if own:
    exec(compile(own, "verify.py", "exec"), {"__name__": "__main__"})
print(asked["passed"])
"""


def arguments(spec: Spec, lock: Lock) -> list[str]:
    """What the environment's Python is started with."""
    packages = {package.name: package.version for package in lock.packages if package.manager == "pip"}
    asked = {"python": lock.python, "packages": packages, "passed": _PASSED}
    own = spec.path.with_name("verify.py") if spec.path else None
    text = own.read_text(encoding="utf-8") if own and own.is_file() else ""
    return ["-I", "-B", "-c", _CHECK, json.dumps(asked), text]


def passed(said: str) -> bool:
    """Whether all was well, by what it printed."""
    return said.rstrip().endswith(_PASSED)


def failure(spec: Spec, said: str) -> BuildError:
    """What to raise otherwise."""
    beside = spec.path.with_name("verify.py") if spec.path else None
    return BuildError(
        f"environment `{spec.name}` does not work",
        why=said.strip()[-1500:] or "its Python ended without a word",
        hint=f"`{beside}` checks it" if beside and beside.is_file() else "does the base image fit its packages?",
    )
