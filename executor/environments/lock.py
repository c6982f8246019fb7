"""The lock of an environment: every package by URL and digest, in conda-lock's own format.

A lock that a user committed lies beside the specification. Where there is none, one is made at first use and kept under
`home/locks/<key>`; its key changes with the specification, with pip's settings and with the C library of the base, so a
change of any of them solves again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.parse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from executor import machine
from executor.data.leases import scratch_folder
from executor.environments import indexes
from executor.environments.archives import Archive, archive_path, local_path
from executor.environments.progress import Say, Stopped
from executor.environments.spec import Spec
from executor.errors import BuildError, LockError

PLATFORM = "linux-64"
_RECIPE = 2
_SPEC_KEY, _ASKED_KEY, PACKAGES_KEY = "run-local-spec", "run-local-requirements", "run-local-packages"

#: Starts a module as `-m` does, but never finds a module of ours or of Python's in the folder that the user is in.
_START = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "import runpy; runpy.run_module(sys.argv.pop(1), {}, '__main__', True)"
)

#: uv's variables that say how it reaches an index; the others say what to install, which is the specification's business.
_HOW_UV_CONNECTS = ("UV_HTTP_", "UV_CONCURRENT_", "UV_NATIVE_TLS", "UV_SYSTEM_CERTS", "UV_KEYRING_", "UV_INSECURE_HOST")
_OF_ANOTHER_ENVIRONMENT = frozenset({"VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT"})

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, kw_only=True)
class Package:
    """One locked package; manager is `conda` or `pip`, and md5 is what conda-lock wants of conda's."""

    name: str
    version: str
    manager: str
    url: str
    sha256: str
    md5: str | None
    depends: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Lock:
    """A lock as it was read.

    bridge: its Python was made from the interpreter of a machine
    spec:   the digest of the specification that it was made from; empty where another tool made it
    asked:  that specification's channels and requirements
    """

    path: Path
    packages: tuple[Package, ...]
    bridge: bool
    spec: str
    asked: tuple[str, ...]

    @property
    def python(self) -> str:
        """The version of Python, such as `3.11.7`."""
        return next(package.version for package in self.packages if package.name == "python")

    @property
    def digest(self) -> str:
        """Changes when a package does; where the packages came from does not matter."""
        content = sorted((p.manager, p.name, p.version, p.sha256) for p in self.packages)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def find_lock(spec: Spec, *, home: Path, glibc: str) -> Path:
    """Where the lock of a specification is, or will be."""
    if spec.lock:
        return spec.lock
    beside = spec.path.with_name("conda-lock.yml") if spec.path and len(spec.sources) == 1 else None
    if beside and spec.path and spec.path.name.startswith("environment.") and beside.exists():
        return beside
    key = [_RECIPE, spec.digest, indexes.settings_digest(), PLATFORM, glibc]
    return home / "locks" / hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32] / "conda-lock.yml"


def last_lock(spec: Spec, *, home: Path) -> Path | None:
    """The lock that was last made for this file here, perhaps from what it said earlier."""
    note = _note(spec, home)
    try:
        return Path(note.read_text(encoding="utf-8")) if note else None
    except OSError:
        return None


def lock(spec: Spec, *, home: Path, glibc: str, say: Say, request: Request | None = None) -> Lock:
    """The lock of a specification, made now where there is none, or where it is requested."""
    target = request.path if request else find_lock(spec, home=home, glibc=glibc)
    if request is None and _is_there(target, home):
        return _trusted(target, spec)
    waits = lambda: say("lock", "another run-local locks it")  # noqa: E731
    with machine.lock_file(home / "locks" / f"{spec.digest[:32]}.lock", waits):
        if request is not None or not _is_there(target, home):
            if machine.offline():
                raise _no_lock_offline(spec)
            say("lock", "solving" if request else "no lock yet: solving")
            _solve(spec, request or Request(path=target), home, glibc, say)
    note = _note(spec, home)
    if note and target == find_lock(spec, home=home, glibc=glibc):
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(str(target), encoding="utf-8")
    return _trusted(target, spec)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A lock to be made at `path`; with `update`, everything but these packages stays as it is in `keep`, if it can."""

    path: Path
    keep: Lock | None = None
    update: tuple[str, ...] = ()


def is_locked(spec: Spec, *, home: Path, glibc: str) -> bool:
    """Whether a run would find a lock and trust it, without solving."""
    path = find_lock(spec, home=home, glibc=glibc)
    return _is_there(path, home) and read_lock(path).spec == spec.digest


def asked_of(spec: Spec) -> tuple[str, ...]:
    """What a specification asks the solvers for, as it is noted in its lock."""
    cuda = () if spec.cuda is None else (f"cuda: {str(spec.cuda).lower()}",)
    return (*(f"channel {name}" for name in spec.channels), *spec.conda, *spec.pip, *cuda)


def _note(spec: Spec, home: Path) -> Path | None:
    if spec.path is None or len(spec.sources) != 1:
        return None
    return home / "locks" / "last" / hashlib.sha256(os.fsencode(spec.path.resolve())).hexdigest()[:32]


def _is_there(path: Path, home: Path) -> bool:
    """Whether a lock is made; one of our own is not if an archive of this machine that it names was removed since."""
    if not path.exists() or not path.is_relative_to(home / "locks"):
        return path.exists()
    urls = re.findall(r"^ *url: file://(\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    if all(Path(urllib.parse.unquote(url)).exists() for url in urls):
        return True
    named = (Archive(name=each.name, url=each.url, sha256=each.sha256) for each in read_lock(path).packages)
    local = [(source, archive_path(each, home)) for each in named if (source := local_path(each.url))]
    return all(source.exists() or kept.exists() for source, kept in local)


def read_lock(path: Path) -> Lock:
    """The lock in a file; raises `LockError` where it is none."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  a safe loader, in C
        packages = tuple(_package(each) for each in document["package"] if each["platform"] == PLATFORM)
        custom = document["metadata"].get("custom_metadata") or {}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as exc:
        raise LockError("a lock cannot be read", why=f"{path}: {exc}", hint="`run-local lock` makes a new one") from exc
    if not any(package.name == "python" for package in packages):
        raise LockError(
            "a lock holds no python", why=f"{path}: for {PLATFORM}", hint="`run-local lock` makes a new one"
        )
    made = Lock(
        path=path,
        packages=packages,
        bridge=custom.get("run-local-bridge") == "true",
        spec=custom.get(_SPEC_KEY, ""),
        asked=tuple(str(custom.get(_ASKED_KEY, "")).splitlines()),
    )
    if custom.get(PACKAGES_KEY, made.digest) != made.digest:
        raise LockError(
            "a lock was changed by hand",
            why=f"{path}: its packages are not those that were solved",
            hint="take it from version control again, or let `run-local lock` make a new one",
        )
    return made


def _package(entry: dict[str, Any]) -> Package:
    return Package(
        name=entry["name"],
        version=entry["version"],
        manager=entry["manager"],
        url=entry["url"],
        sha256=entry["hash"]["sha256"],
        md5=entry["hash"].get("md5"),
        depends=tuple(f"{name} {version}".strip() for name, version in entry["dependencies"].items()),
    )


def _trusted(path: Path, spec: Spec) -> Lock:
    found = read_lock(path)
    if found.spec != spec.digest:
        changed = "\n".join(differences(found, spec))
        raise LockError(
            f"the lock of environment `{spec.name}` is out of date",
            why=f"`{path}` was made from another specification than `{spec.path}`" + (changed and f":\n{changed}"),
            hint=f"run `run-local lock {spec.name}`, and read what changes before you commit it",
        )
    return found


def differences(lock: Lock, spec: Spec) -> list[str]:
    """What the specification asks for and the lock was not made for, and the other way round, with lines of the file."""
    if not lock.asked:
        return ["the lock was made by another tool, and does not say what for"]
    now = asked_of(spec)
    added = [f"+ {each}{_where(each, spec)}" for each in now if each not in lock.asked]
    return [*(f"- {each}" for each in lock.asked if each not in now), *added]


def _where(requirement: str, spec: Spec) -> str:
    places = dict.fromkeys(lines[requirement] for lines in spec.lines.values() if requirement in lines)
    return f" ({', '.join(places)})" if places else ""


def _no_lock_offline(spec: Spec) -> LockError:
    return LockError(
        f"environment `{spec.name}` cannot be locked",
        why="solving it needs the network, and we are offline",
        hint=f"run `run-local lock {spec.name}` without `--offline`",
    )


def _solve(spec: Spec, wanted: Request, home: Path, glibc: str, say: Say) -> None:
    kept = wanted.keep.packages if wanted.keep else ()
    request = {
        "environment": spec.name,
        "spec": spec.render(),
        "sources": dict(spec.sources),
        "lines": {name: dict(lines) for name, lines in spec.lines.items()},
        "channels": list(spec.channels),
        "cuda": spec.cuda,
        "platform": PLATFORM,
        "glibc": glibc,
        "home": str(home),
        "lock": str(wanted.path),
        "keep": [asdict(each) for each in kept if each.name not in wanted.update],
        "update": list(wanted.update),
        "custom": {_SPEC_KEY: spec.digest, _ASKED_KEY: "\n".join(asked_of(spec))},
    }
    answer = ask_child("executor.environments.solve", request, say)
    if "error" in answer:
        raise LockError(**answer["error"])


def ask_child(module: str, request: dict[str, Any], say: Say) -> dict[str, Any]:
    """Run one of our modules as a child process: JSON in, JSON out, and `[step, detail, done]` after each "»" on stderr."""
    with scratch_folder(Path(request["home"]) / "tmp") as scratch:
        variables = {name: value for name, value in os.environ.items() if _is_for_children(name)}
        return _ask(module, request, say, {**variables, "TMPDIR": str(scratch), "PYTHONUTF8": "1"})


def _is_for_children(variable: str) -> bool:
    if variable.startswith("UV_"):
        return variable.startswith(_HOW_UV_CONNECTS)
    return variable not in _OF_ANOTHER_ENVIRONMENT


def _ask(module: str, request: dict[str, Any], say: Say, variables: dict[str, str]) -> dict[str, Any]:
    heard: list[str] = []
    with machine.child(
        [sys.executable, "-c", _START, module],
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as process:
        listener = threading.Thread(target=_hear, args=(process.stderr, say, heard), daemon=True)
        try:
            listener.start()
            assert process.stdin
            assert process.stdout
            with contextlib.suppress(BrokenPipeError):  # it has ended already, and what it left says why
                process.stdin.write(json.dumps(request))
                process.stdin.close()
            text = process.stdout.read()
            process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            if listener.is_alive():
                listener.join(5)
    try:
        answer: dict[str, Any] = json.loads(text)
    except ValueError:
        killed = -process.returncode
        end = f"killed by {signal.Signals(killed).name}" if killed > 0 else f"exit status {process.returncode}"
        hint = "is there enough memory?" if killed == signal.SIGKILL else ""
        raise BuildError(f"`{module}` ended without an answer", why="\n".join([*heard[-5:], end]), hint=hint) from None
    return answer


def _hear(stream: IO[str] | None, say: Say, heard: list[str]) -> None:
    for line in stream or ():
        if line.startswith("»"):
            step, detail, done = json.loads(line[1:])
            with contextlib.suppress(Stopped):  # then it is killed, and what it still says is read until that
                say(step, detail, done)
        else:
            heard.append(line.rstrip())
