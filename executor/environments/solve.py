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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import rattler
import uv
import yaml
from conda_lock import conda_lock, conda_solver
from conda_lock.lockfile.v2prelim.models import HashModel, LockedDependency

from executor import machine
from executor.environments import channel, indexes
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

#: How long uv waits for an index that says nothing, where the user does not say it; its own is minutes.
_PATIENCE = {"UV_HTTP_TIMEOUT": "15", "UV_HTTP_CONNECT_TIMEOUT": "10", "UV_HTTP_RETRIES": "2"}
_NO_ANSWER = re.compile(r"error sending request|Failed to fetch|Failed to download|operation timed out|dns error")


class Solver:
    """Solves one request; its two methods stand in for conda-lock's own."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = request
        self._home = Path(request["home"])
        self.notes: list[str] = []
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
            (folder / "mapping.json").write_text(_NAMES.read_text())
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
        places = {name: self._settings.place(name) or name for name in names}
        with ThreadPoolExecutor(len(names)) as pool:
            answering = [
                name for name, answers in zip(names, pool.map(_answers, places.values()), strict=True) if answers
            ]
        silent = [name for name in names if name not in answering]
        self._bridged = not answering
        configured = [name for name in silent if self._settings.place(name)]
        if configured:
            raise LockError(
                f"channel `{configured[0]}` does not answer",
                why=f"`{places[configured[0]]}` is configured for it",
                hint="`RUN_LOCAL_MIRRORS`, `RUN_LOCAL_CHANNEL_ALIAS` or config.toml in `$RUN_LOCAL_HOME` say where it is",
            )
        if answering:
            if silent:
                _say(f"these channels do not answer, and are left out: {', '.join(silent)}")
            return answering
        _say(f"no conda channel answers ({', '.join(names)}): Python {sys.version.split()[0]} of this machine is used")
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
        """Stands in for `conda_solver.solve_specs_for_arch`: the plan that `conda create --dry-run --json` would print."""
        try:
            records = asyncio.run(self._solve_conda(specs, platform))
        except Exception as exc:  # rattler's errors share no base that it exports
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

    async def _solve_conda(self, specs: list[str], platform: str) -> list[Any]:
        gateway = rattler.Gateway(cache_dir=self._home / "packages" / "repodata")
        solved: list[Any] = await rattler.solve(
            [rattler.Channel(self._settings.place(name) or name) for name in self._channels],
            [rattler.MatchSpec(spec) for spec in specs],
            gateway=gateway,
            platforms=[platform, "noarch"],  # type: ignore[list-item]
            virtual_packages=self._virtual_records(),
            locked_packages=self._kept_conda(),
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
        found = self._compile(lines, python_version)
        if self._request["cuda"] is False and any(p["name"] == "torch" and not _is_cpu(p) for p in found):
            found = self._compile_for_cpu(lines, python_version) or found
        return {package["name"]: _locked(package, platform) for package in found}

    def _compile_for_cpu(self, lines: list[str], python_version: str) -> list[dict[str, Any]]:
        """The same with PyTorch's own index of CPU builds; empty where that does not answer."""
        try:
            return self._compile(lines, python_version, "--torch-backend", "cpu")
        except LockError:
            _say(
                "no CPU build of torch can be had here: the one that the index prefers is taken, with its GPU libraries"
            )
            return []

    def _compile(self, lines: list[str], python_version: str, *more: str) -> list[dict[str, Any]]:
        glibc = self._request["glibc"].replace(".", "_")
        command = [
            *(uv.find_uv_bin(), "pip", "compile", "-", "--format", "pylock.toml", "--quiet"),
            *("--no-header", "--no-annotate", "--no-config", "--python-version", python_version),
            *("--python-platform", f"x86_64-manylinux_{glibc}", "--only-binary", ":all:"),
            *("--cache-dir", str(self._home / "packages" / "uv"), *indexes.uv_options(), *more),
        ]
        kept = self._kept_wheels()
        if kept:
            command += ["--output-file", str(kept)]
        variables = {**_PATIENCE, **os.environ}
        done = machine.run(command, input="\n".join(lines), env=variables)
        if done.returncode:
            reason = _readable(done.stderr)
            raise self._out_of_reach(reason) if _NO_ANSWER.search(reason) else self._unsatisfiable(reason)
        text = kept.read_text(encoding="utf-8") if kept else done.stdout
        packages: list[dict[str, Any]] = tomllib.loads(text).get("packages", [])
        return packages

    def _kept_wheels(self) -> Path | None:
        """A file with the versions that uv shall prefer, in the place where it looks for its earlier answer."""
        kept = [each for each in self._request["keep"] if each["manager"] == "pip"]
        if not kept:
            return None
        path = Path(tempfile.mkdtemp(), "pylock.toml")
        lines = [
            f"[[packages]]\nname = {json.dumps(each['name'])}\nversion = {json.dumps(each['version'])}" for each in kept
        ]
        path.write_text("\n".join(['lock-version = "1.0"', 'created-by = "run-local"', *lines]))
        return path

    def _out_of_reach(self, reason: str) -> LockError:
        return LockError(
            f"environment `{self._request['environment']}` cannot be solved: the package index does not answer",
            why=reason.strip(),
            hint="is the network up? `pip config list` shows the indexes that are asked, and pip's settings change them",
        )

    def _unsatisfiable(self, reason: str) -> LockError:
        sources: Mapping[str, Sequence[str]] = self._request["sources"]
        asked = [
            f"`{name}` asks for `{line}`"
            for name, lines in sources.items()
            for line in lines
            if (found := re.match(r"[A-Za-z0-9_.-]+", line)) and re.search(rf"\b{re.escape(found[0])}\b", reason)
        ]
        hint = "change one of them"
        if len(sources) > 1:
            hint = (
                "they cannot share one environment: let the caller need none of it (`depends_on` instead of `extends`)"
            )
        return LockError(
            f"environment `{self._request['environment']}` cannot be solved",
            why="\n".join([reason.strip(), *asked]),
            hint=hint,
        )


_NAMES = Path(__file__).with_name("pypi_names.json")


def _answers(name: str) -> bool:
    """Whether a channel can be reached at all: a folder that exists, or a host that accepts a connection."""
    url = str(rattler.Channel(name).base_url)
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        return Path(urllib.parse.unquote(parts.path)).is_dir()
    for index in ("repodata.json.zst", "repodata.json"):
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/noarch/{index}", timeout=_REACH_S) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            continue  # a mirror need not have the compressed one
        except (OSError, ValueError):
            break
    return False


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
