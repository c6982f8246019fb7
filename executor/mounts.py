"""Whether the data that environments mount is there, and can be shown where it is asked for; nothing reads it.

`check_mounts` finds all that is wrong with them before anything is made. What a mount may not cover is the same for
every runtime, so that a workflow that runs on one runs on the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from executor.errors import ProjectError
from executor.manifest import EnvironmentEntry, Manifest, MountEntry

#: What tasks find in a container, and nothing may be mounted on, below or above.
OURS = ("/opt/env", "/project", "/task", "/run-local")
_OF_THE_KERNEL = ("/proc", "/sys", "/dev")
#: Folders of a system, on which nothing may be mounted, while there may be below.
_OF_THE_SYSTEM = ("/bin", "/etc", "/lib", "/lib32", "/lib64", "/run", "/sbin", "/usr", "/usr/bin", "/usr/lib", "/var")


def check_mounts(manifest: Manifest, names: Sequence[str], runtime: str, home: Path) -> None:
    """Refuse mounts of these environments that cannot be made on this machine, all of them at once.

    home: where run-local keeps its own files, which no task may see
    """
    problems = []
    for entry in (manifest.environments[name] for name in names):
        at = f"`{entry.name}` ({entry.file}:{entry.line})"
        problems += [f"{at}: {problem}" for problem in _problems(entry, runtime, home)]
    if problems:
        raise ProjectError("data cannot be mounted", "\n".join(problems), "correct `mounts=[Mount(source, target)]`")


def _problems(entry: EnvironmentEntry, runtime: str, home: Path) -> Iterator[str]:
    known: list[str] = []
    for mount in entry.mounts:
        found = _problem_of_source(mount.source, home) or _problem_of_target(mount.target, mount.source)
        found = found or next(filter(None, (_overlap(mount.target, other) for other in known)), "")
        if not found and runtime == "process":
            found = _problem_of_place(mount, home)
        if found:
            yield found
        known.append(mount.target)


def _problem_of_source(source: str, home: Path) -> str:
    """Why a path of this machine cannot be mounted, or an empty text."""
    try:
        real = Path(source).resolve(strict=True)
    except OSError as exc:
        return f"there is no `{source}` on this machine ({exc.strerror}): put the data there, or name where it is"
    if not (real.is_dir() or real.is_file()):
        return f"`{source}` is neither a file nor a folder"
    if not os.access(real, os.R_OK | (os.X_OK if real.is_dir() else 0)):
        return f"`{source}` may not be read by you"
    own = [str(home.resolve()), "/run", os.environ.get("XDG_RUNTIME_DIR", "/run")]
    if any(_covers(str(real), each) for each in own) or any(_covers(each, str(real)) for each in _OF_THE_KERNEL):
        return f"`{source}` holds more than data (run-local's own files, sockets or devices): name a folder in it"
    return ""


def _problem_of_target(target: str, source: str) -> str:
    """Why nothing can be mounted at a path of a container, or an empty text."""
    told = f"`{source}` at `{target}`"
    if not target.startswith("/"):
        return f"{told}: the target must be an absolute path"
    kept = next((each for each in (*OURS, *_OF_THE_KERNEL, "/tmp") if _covers(each, target)), "")  # noqa: S108
    covered = next((each for each in OURS if _covers(target, each)), "") or target * (target in _OF_THE_SYSTEM)
    if kept or covered:
        other = "name another target" if target != source else "name a target for it"
        return f"{told}: `{kept or covered}` of the container is used for something else: {other}, such as `/mnt/data`"
    return ""


def _problem_of_place(mount: MountEntry, home: Path) -> str:
    """Why a process, which sees this machine's own files, cannot be shown a source at its target, or an empty text."""
    if mount.source == mount.target:
        return ""
    source, target = Path(mount.source), Path(mount.target)
    told = f"`{source}` at `{target}`"
    if not target.exists() or source.is_dir() != target.is_dir():
        kind, how = ("folder", "mkdir -p") if source.is_dir() else ("file", "touch")
        return (
            f"{told}: the process runtime can only show a {kind} in the place of another, and there is none: make one "
            f"(`{how} {target}`), or leave the target out, so that tasks find it where it lies"
        )
    if _covers(str(target.resolve()), str(home.resolve())) or _covers(str(home.resolve()), str(target.resolve())):
        return f"{told}: that would cover run-local's own files in `{home}`: name another target"
    return ""


def _overlap(target: str, other: str) -> str:
    if target == other:
        return f"two mounts at `{target}`: give each a target of its own"
    if _covers(target, other) or _covers(other, target):
        return f"a mount at `{target}` and one at `{other}`, one within the other: mount them side by side"
    return ""


def _covers(folder: str, path: str) -> bool:
    """Whether a path is a folder, or in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")
