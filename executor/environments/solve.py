"""`python -m executor.environments.solve`: one lock, in a process of its own.

conda-lock writes the file; py-rattler solves its conda part and uv its `pip:` part, put in the place of the two functions
that would look for a conda executable and bring an old poetry. Importing conda-lock takes seconds, which is why the
command line never does; it also makes this the place where the network is used.

Request, as JSON on stdin: environment (name), spec (environment.yml as text), sources (name → requirements), channels,
cuda, platform, glibc, home, lock (the file to write), custom (texts to note in the lock). Answer, as JSON on stdout:
`{"ok": {"notes": [...]}}` or `{"error": {what, why, hint}}`. Progress: `[step, detail, done]` on a
line of stderr, after "»".
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import rattler
import uv
import yaml
from conda_lock import conda_lock, conda_solver
from conda_lock.lockfile.v2prelim.models import HashModel, LockedDependency
from rattler.exceptions import SolverError

from executor import machine
from executor.environments import channel, indexes, translation
from executor.environments.archives import Archive
from executor.environments.bridge import Bridge, Served, explain
from executor.environments.fetching import url_mirrors
from executor.environments.install import conda_record
from executor.environments.lock import PACKAGES_KEY, read_lock
from executor.environments.settings import mirrored, read_settings
from executor.errors import LockError, RunLocalError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_REACH_S = 3.0
_NOT_FOUND = 404

#: How long uv waits for an index that says nothing, where the user does not say it; its own is minutes.
_PATIENCE = {"UV_HTTP_TIMEOUT": "15", "UV_HTTP_CONNECT_TIMEOUT": "10", "UV_HTTP_RETRIES": "2"}
_NO_WHEEL = re.compile(r"Wheels are required for `([^`]+)`")
_NO_ANSWER = re.compile(r"error sending request|Failed to fetch|Failed to download|operation timed out|dns error")


class Solver:
    """Solves one request; its two methods stand in for conda-lock's own."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = request
        self._home = Path(request["home"])
        self.notes: list[str] = []
        self._bridged = False
        self._settings = read_settings(self._home)
        self._channels = self._reachable_channels(request["channels"])
        self._standing_in = {place: published for published, place in url_mirrors(self._settings).items()}

    def solve(self) -> None:
        """Write the lock."""
        conda_solver.solve_specs_for_arch = self.solve_conda
        conda_lock.solve_pypi = self.solve_pip
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            document = {**yaml.safe_load(self._request["spec"]), "channels": self._channels}
            (folder / "environment.yml").write_text(yaml.safe_dump(document))
            (folder / "mapping.json").write_text(json.dumps(translation.for_conda_lock()))
            (folder / "virtual.yml").write_text(yaml.safe_dump(self._virtual_packages()))
            (folder / "custom.yml").write_text(yaml.safe_dump(self._request["custom"] | self._own_metadata()))
            made = folder / "conda-lock.yml"
            conda_lock.make_lock_files(
                conda="none",
                src_files=[folder / "environment.yml"],
                kinds=["lock"],
                lockfile_path=made,
                platform_overrides=[self._request["platform"]],
                virtual_package_spec=folder / "virtual.yml",
                metadata_yamls=[folder / "custom.yml"],
                mapping_url=f"file://{folder}/mapping.json",  # it takes the rest as a path, unquoted
            )
            target = Path(self._request["lock"])
            target.parent.mkdir(parents=True, exist_ok=True)
            half = target.with_name(f".{target.name}.{os.getpid()}")
            half.write_text(_sealed(made))
            half.replace(target)

    def _own_metadata(self) -> dict[str, str]:
        return {"run-local-bridge": "true"} if self._bridged else {}

    # -- channels ------------------------------------------------------------------------------------------------------

    def _reachable_channels(self, names: Sequence[str]) -> list[str]:
        """The channels that answer, or the bridge where none does and none is configured."""
        if list(names) == [channel.NAME]:
            return self._bridge("")
        places = {name: self._settings.place(name) or name for name in names}
        with ThreadPoolExecutor(len(names)) as pool:
            found = dict(zip(names, pool.map(_probe, places.values()), strict=True))
        for name, place in places.items():
            if found[name] == "absent":
                raise LockError(
                    f"there is no channel `{name}`",
                    why=f"`{place}` has no index of packages",
                    hint="is its name right? a channel is a folder or an address that has `noarch/repodata.json`",
                )
            if found[name] == "silent" and self._settings.place(name):
                raise LockError(
                    f"channel `{name}` does not answer",
                    why=f"`{place}` is configured for it",
                    hint="`RUN_LOCAL_MIRRORS`, `RUN_LOCAL_CHANNEL_ALIAS` or config.toml in `$RUN_LOCAL_HOME` say so",
                )
        answering = [name for name in names if found[name] == "there"]
        silent = [name for name in names if found[name] == "silent"]
        if answering:
            if silent:
                _say(f"these channels do not answer, and are left out: {', '.join(silent)}")
            return answering
        return self._bridge(f"no conda channel answers ({', '.join(names)}): ")

    def _bridge(self, why: str) -> list[str]:
        _say(f"{why}Python {sys.version.split()[0]} of this machine is used, and what PyPI has as wheels")
        self._bridged = True
        self.notes.append("bridge")
        return [channel.make_channel(self._home).as_uri()]

    def _virtual_packages(self) -> dict[str, Any]:
        packages = {"__unix": "0", "__linux": "5.10", "__glibc": self._request["glibc"], "__archspec": "1 x86_64"}
        if self._request["cuda"]:
            packages["__cuda"] = "12.4"
        return {"subdirs": {self._request["platform"]: {"packages": packages}}}

    def _virtual_records(self) -> list[Any]:
        packages = self._virtual_packages()["subdirs"][self._request["platform"]]["packages"]
        return [
            rattler.GenericVirtualPackage(
                rattler.PackageName(name),
                rattler.Version(version.split()[0]),
                rattler.BuildString(version.partition(" ")[2] or "0"),
            )
            for name, version in packages.items()
        ]

    # -- conda ---------------------------------------------------------------------------------------------------------

    def solve_conda(self, *, conda: Any, channels: Sequence[Any], specs: list[str], platform: str) -> dict[str, Any]:
        """Stands in for `conda_solver.solve_specs_for_arch`: the plan that `conda create --dry-run --json` would print.

        The requirements are taken as they were written: conda-lock puts a plain `pip` in the place of one with a version.
        """
        del conda, channels, specs
        written = yaml.safe_load(self._request["spec"])["dependencies"]
        requirements = [each for each in written if isinstance(each, str)]
        sources: list[Any] = [rattler.Channel(self._settings.place(name) or name) for name in self._channels]
        if self._bridged:
            served = self._serve(requirements)
            sources, requirements = [served], served.specs
        try:
            records = asyncio.run(self._solve_conda(sources, requirements, platform))
        except SolverError as exc:
            raise self._unsatisfiable(str(exc)) from exc
        actions = [
            {
                "name": record.name.normalized,
                "version": str(record.version),
                "url": mirrored(record.url, self._standing_in),
                "md5": (record.md5 or b"").hex() or None,
                "sha256": (record.sha256 or b"").hex(),
                "depends": list(record.depends),
                "fn": record.file_name,
                "channel": record.channel,
                "subdir": record.subdir,
                "build": record.build,
            }
            for record in records
        ]
        return {"actions": {"FETCH": actions, "LINK": actions}}

    def _serve(self, requirements: list[str]) -> Served:
        """What the bridge has for these requirements."""
        python = sys.version.split()[0]

        def resolve(lines: Sequence[str]) -> list[Archive]:
            def refuse(reason: str) -> LockError:
                return explain(reason, requirements) or self._unsatisfiable(reason)

            found = self._wheels(lines, python, kept="conda", refuse=refuse)
            wheels = [_locked(package, self._request["platform"]) for package in found]
            return [Archive(name=each.name, url=each.url, sha256=each.hash.sha256) for each in wheels]

        try:
            return Bridge(self._home, resolve=resolve, refuse=self._unsatisfiable, note=_say).serve(requirements)
        except LockError as exc:
            asking = [] if "asks for" in exc.why else self._who_asks(exc.what)
            raise LockError(exc.what, why="\n".join([exc.why, *asking]), hint=exc.hint) from exc

    async def _solve_conda(self, sources: list[Any], specs: list[str], platform: str) -> list[Any]:
        gateway = rattler.Gateway(cache_dir=self._home / "packages" / "repodata")
        solved: list[Any] = await rattler.solve(
            sources,
            [rattler.MatchSpec(spec) for spec in specs],
            gateway=gateway,
            platforms=[platform, "noarch"],  # type: ignore[list-item]
            virtual_packages=self._virtual_records(),
            locked_packages=[] if self._bridged else self._kept_conda(),
            channel_priority=rattler.ChannelPriority.Strict,
        )
        return solved

    def _kept_conda(self) -> list[Any]:
        kept = [each for each in self._request["keep"] if each["manager"] == "conda"]
        return [conda_record(each, each["url"]) for each in kept]

    # -- pip -----------------------------------------------------------------------------------------------------------

    def solve_pip(
        self,
        *,
        pip_specs: Mapping[str, Any],
        conda_locked: Mapping[str, Any],
        python_version: str,
        platform: str,
        **_: Any,
    ) -> dict[str, Any]:
        """Stands in for `conda_lock.solve_pypi`, with uv as the solver and pip's own configuration."""
        requirements = yaml.safe_load(self._request["spec"])["dependencies"]
        lines = [line for each in requirements if isinstance(each, dict) for line in each["pip"]]
        there = _python_packages(conda_locked.values())
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
            constraints.write("\n".join(f"{name}=={version}" for name, version in there.items()))
            constraints.flush()
            found = self._wheels(lines, python_version, "--constraints", constraints.name)
        wheels = [_locked(package, platform) for package in found if package["name"] not in there]
        return {wheel.name: wheel for wheel in wheels}

    def _wheels(self, lines: Sequence[str], python_version: str, *more: str, **how: Any) -> list[dict[str, Any]]:
        """The wheels that these requirements need; of torch a build without CUDA, where that is asked for."""
        found = self._compile(lines, python_version, *more, **how)
        if self._request["cuda"] is False and any(p["name"] == "torch" and not _is_cpu(p) for p in found):
            return self._compile_for_cpu(lines, python_version, *more, **how) or found
        return found

    def _compile_for_cpu(
        self, lines: Sequence[str], python_version: str, *more: str, **how: Any
    ) -> list[dict[str, Any]]:
        """The same with PyTorch's own index of CPU builds; empty where that does not answer."""
        try:
            return self._compile(lines, python_version, "--torch-backend", "cpu", *more, **how)
        except LockError:
            _say(
                "no CPU build of torch can be had here: the one that the index prefers is taken, with its GPU libraries"
            )
            return []

    def _compile(
        self,
        lines: Sequence[str],
        python_version: str,
        *more: str,
        kept: str = "pip",
        refuse: Callable[[str], LockError] | None = None,
    ) -> list[dict[str, Any]]:
        """Ask uv. Versions that are kept are those of packages of this manager; `refuse` makes an error of its reason."""
        glibc = self._request["glibc"].replace(".", "_")
        command = [
            *(uv.find_uv_bin(), "pip", "compile", "-", "--format", "pylock.toml", "--quiet"),
            *("--no-header", "--no-annotate", "--no-config", "--python-version", python_version),
            *("--python-platform", f"x86_64-manylinux_{glibc}", "--only-binary", ":all:"),
            *("--cache-dir", str(self._home / "packages" / "uv"), *indexes.uv_options(), *more),
        ]
        earlier = self._kept_wheels(kept)
        if earlier:
            command += ["--output-file", str(earlier)]
        variables = {**_PATIENCE, **os.environ}
        done = machine.run(command, input="\n".join(lines), env=variables)
        if done.returncode:
            reason = _readable(done.stderr)
            refuse = self._out_of_reach if _NO_ANSWER.search(reason) else refuse or self._unsatisfiable
            raise refuse(reason)
        text = earlier.read_text(encoding="utf-8") if earlier else done.stdout
        packages: list[dict[str, Any]] = tomllib.loads(text).get("packages", [])
        return packages

    def _kept_wheels(self, manager: str) -> Path | None:
        """A file with the versions that uv shall prefer, in the place where it looks for its earlier answer."""
        kept = [each for each in self._request["keep"] if each["manager"] == manager]
        if not kept:
            return None
        path = Path(tempfile.mkdtemp(), "pylock.toml")
        names = {each["name"]: each["version"] for each in kept}
        if manager == "conda":
            names = {
                name: version for each in kept for name, version in _on_pypi(each["name"], each["version"]).items()
            }
        lines = [f"[[packages]]\nname = {json.dumps(name)}\nversion = {json.dumps(names[name])}" for name in names]
        path.write_text("\n".join(['lock-version = "1.0"', 'created-by = "run-local"', *lines]))
        return path

    def _out_of_reach(self, reason: str) -> LockError:
        return LockError(
            f"environment `{self._request['environment']}` cannot be solved: the package index does not answer",
            why=reason.strip(),
            hint="is the network up? `pip config list` shows the indexes that are asked, and pip's settings change them",
        )

    def _unsatisfiable(self, reason: str) -> LockError:
        hint, built = "change one of them", _NO_WHEEL.search(reason)
        if built:
            hint = (
                f"environments are made of wheels only: build one (`pip wheel {built[1]}`), and list it under `pip:` as "
                f"`{built[1]} @ file:///…/it.whl`"
            )
        elif len(self._request["sources"]) > 1:
            hint = (
                "they cannot share one environment. Name them in `depends_on` in the place of `extends`, and hold neither:"
                ' call their tasks by name (`reference_task("environment.function")` imports nothing of theirs), or'
                " import their modules all the same and do not use what those import; values of types that are then"
                " missing pass through as opaque handles, which can be kept and handed on"
            )
        return LockError(
            f"environment `{self._request['environment']}` cannot be solved",
            why="\n".join([reason.strip(), *self._who_asks(reason)]),
            hint=hint,
        )

    def _who_asks(self, reason: str) -> list[str]:
        """Which environment asks for the packages that a reason names."""
        sources: Mapping[str, Sequence[str]] = self._request["sources"]
        places: Mapping[str, Mapping[str, str]] = self._request["lines"]
        return [
            f"`{name}` asks for `{line}`" + (f" ({places[name][line]})" if line in places.get(name, ()) else "")
            for name, lines in sources.items()
            for line in lines
            if _names(reason, line)
        ]


def _names(reason: str, requirement: str) -> bool:
    """Whether a solver speaks of the package of a requirement; it may write `_`, `-` and `.` as it likes."""
    found = re.match(r"(?:\S+::)?([A-Za-z0-9_.-]+)", requirement)
    name = r"[-_.]+".join(map(re.escape, re.split(r"[-_.]+", found[1]))) if found else "(?!)"
    return bool(re.search(rf"(?<![\w-]){name}(?!\w|-[A-Za-z])", reason, re.IGNORECASE))


def _probe(place: str) -> Literal["there", "absent", "silent"]:
    """Whether a channel has an index; `silent` where nobody answers who could tell."""
    url = str(rattler.Channel(place).base_url).rstrip("/")
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        folder = Path(urllib.parse.unquote(parts.path))
        return "there" if any(folder.glob("*/repodata.json*")) else "absent"
    for index in ("repodata.json.zst", "repodata.json"):  # a mirror need not have the compressed one
        try:
            with urllib.request.urlopen(f"{url}/noarch/{index}", timeout=_REACH_S):  # noqa: S310
                return "there"
        except urllib.error.HTTPError as exc:
            if exc.code != _NOT_FOUND:
                return "silent"
        except (OSError, ValueError):
            return "silent"
    return "absent"


def _python_packages(locked: Iterable[Any]) -> dict[str, str]:
    """What conda brings of Python packages, by their names on PyPI, with their versions."""
    found = {}
    for each in locked:
        if "python" in each.dependencies:
            found.update(_on_pypi(each.name, each.version))
    return found


def _on_pypi(name: str, version: str) -> dict[str, str]:
    try:
        return {translation.pypi_name(name): version}
    except LockError:
        return {}  # no Python package


def _is_cpu(package: Mapping[str, Any]) -> bool:
    return "+cpu" in package["version"]


def _locked(package: Mapping[str, Any], platform: str) -> Any:
    wheel = package["wheels"][0] if "wheels" in package else package.get("archive", {})
    if not wheel:
        raise LockError(
            f"`{package['name']}` of the `pip:` list is no wheel",
            why="it would have to be built from source, and an environment is made of wheels only",
            hint="build a wheel of it, and name that: `name @ file:///…/it.whl`",
        )
    url = wheel.get("url") or Path(wheel["path"]).absolute().as_uri()
    digest = wheel.get("hashes", {}).get("sha256") or _digest(url)
    return LockedDependency(
        name=package["name"],
        version=package["version"],
        manager="pip",
        platform=platform,
        dependencies={},
        url=url,
        hash=HashModel(sha256=digest),
        categories={"main"},
    )


def _digest(url: str) -> str:
    """The digest of a wheel whose index states none; only files of this machine are trusted that far."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "file":
        raise LockError(f"the index gives no digest for `{url}`", hint="use an index that states sha256 digests")
    return hashlib.sha256(Path(urllib.parse.unquote(parts.path)).read_bytes()).hexdigest()


def _sealed(lock: Path) -> str:
    """The text of a lock with the digest of its packages, so that a later change by hand is seen."""
    before, heading, after = lock.read_text(encoding="utf-8").partition("  custom_metadata:\n")
    return f"{before}{heading}    {PACKAGES_KEY}: {read_lock(lock).digest}\n{after}"


def _readable(text: str) -> str:
    """A solver's words without its decoration."""
    lines = [line.strip().lstrip("×╰─▶│├ ") for line in text.splitlines()]
    return "\n".join(line for line in lines if line)


def _say(text: str) -> None:
    sys.stderr.write(f"»{json.dumps(['lock', text, None])}\n")
    sys.stderr.flush()


def main() -> None:
    """Read the request, answer, and never end with a traceback."""
    logging.disable(logging.CRITICAL)
    answer_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # conda-lock prints; the answer has its own way
    request = json.load(sys.stdin)
    try:
        solver = Solver(request)
        with contextlib.redirect_stdout(sys.stderr):
            solver.solve()
        answer: dict[str, Any] = {"ok": {"notes": solver.notes}}
    except RunLocalError as exc:
        answer = {"error": {"what": exc.what, "why": exc.why, "hint": exc.hint}}
    except Exception as exc:  # noqa: BLE001  whatever a solver raises is an answer
        answer = {
            "error": {
                "what": f"environment `{request['environment']}` cannot be locked",
                "why": f"{type(exc).__name__}: {exc}",
                "hint": "",
            }
        }
    with answer_to:
        json.dump(answer, answer_to)


if __name__ == "__main__":
    main()
