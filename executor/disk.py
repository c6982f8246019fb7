"""What a home holds, by kind, and what of it goes: runs, values, entries of the cache, and what environments need.

A run's record and an entry of the cache name what they need by digest. Whatever in a journal, or an entry, reads like a
digest keeps the value or the snapshot that has it as its name, so a journal need not be understood to be safe.

Between the writing of a value and the line of the journal that names it, nothing says who needs it. So values and
snapshots go only while no run goes on: each holds `usage.RECORDING`, from before its snapshot to its end, and cleaning has
it alone. A run that begins meanwhile waits for that. See docs/adr/0025.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.data import index
from executor.data.pins import why_kept
from executor.data.records import run_ids
from executor.data.store import full_disk
from executor.environments import housekeeping, usage
from executor.environments.housekeeping import Outcome, Policy
from executor.environments.inventory import Item, files_below, image_sizes, inside
from executor.errors import MachineError

_DIGEST = re.compile(rb"[0-9a-f]{32,64}")
_ENDED = b'"fact":"RunEnded"'
_BUSY = "a run goes on, which may need it"
_ABANDONED_S = 86400

#: Folder or file of a home → what it is, for `du`; of runs, see `_kind`.
_KINDS = {
    "store": "values",
    "results": "cache entries",
    "snapshots": "snapshots",
    "packages": "packages",
    "channel": "channels",
    "prefixes": "prefixes",
    "layers": "layers",
    "bases": "bases",
    "locks": "locks",
    "library": "library",
    "tmp": "temporary",
    "sockets": "temporary",
    "used": "notes of use",
}


@dataclass(frozen=True, kw_only=True)
class Share:
    """How much there is of a kind: files (or images), and bytes; a file with several names counts once."""

    kind: str
    count: int
    bytes: int


def clean(home: Path, client: Any, policy: Policy, *, dry_run: bool) -> Outcome:
    """Remove what a policy says from a home, and from an engine; without a `client` images stay."""
    with contextlib.ExitStack() as held:
        with full_disk("the home cannot be cleaned up"):
            alone = held.enter_context(usage.take(home, usage.RECORDING))
        outcome = housekeeping.clean(home, client, policy, [*look_at_runs(home, alone=alone)], dry_run=dry_run)
    if not dry_run and any(item.kind == "run" for item, _ in outcome.gone):
        index.prune(home)
    return outcome


def look_at_runs(home: Path, *, alone: bool) -> Iterator[Item]:
    """The runs of a home, its cache, and what they need; alone: no run goes on."""
    values = {path.name: str(path) for folder in inside(home / "store/sha256") for path in inside(folder)}
    snapshots = {path.name: str(path) for path in inside(home / "snapshots") if not path.name.startswith("scratch-")}
    named = {**values, **snapshots}
    yield from _runs(home, named, alone)
    yield from _results(home, values)
    stays = "" if alone else _BUSY
    for kind, paths in (("value", values), ("snapshot", snapshots)):
        for name, path in paths.items():
            yield Item(kind=kind, name=name[:12], at=(path,), used=_time(path), stays=stays)
    yield from _torn(home, alone)


def _runs(home: Path, named: Mapping[str, str], alone: bool) -> Iterator[Item]:
    names = run_ids(home)
    for newer, name in enumerate(reversed(names)):
        folder = home / "runs" / name
        journal = _read(folder / "journal.jsonl")
        ended = _ENDED in journal[journal.rfind(b"\n", 0, -1) + 1 :]
        yield Item(
            kind="run",
            name=name,
            at=(str(folder),),
            used=_time(folder / "journal.jsonl") or _time(folder),
            needs=_named(journal, named),
            stays=why_kept(folder) or ("" if alone or ended else "it may just have begun"),
            newer=newer,
        )


def _results(home: Path, values: Mapping[str, str]) -> Iterator[Item]:
    for folder in inside(home / "results"):
        for path in inside(folder):
            if path.suffix == ".json":
                needs = _named(_read(path), values)
                yield Item(kind="result", name=path.stem[:12], at=(str(path),), used=_time(path), needs=needs)


def _torn(home: Path, alone: bool) -> Iterator[Item]:
    """What processes that were killed left half written, and what was set aside as damaged."""
    left = [path for path in inside(home) if path.name.startswith(f"{index.NAME}.damaged-")]
    if alone:
        left += [path for folder in inside(home / "results") for path in inside(folder) if path.suffix != ".json"]
        left += [path for path in inside(home / "snapshots") if path.name.startswith("scratch-")]
    now = time.time()
    for path in inside(home / "tmp"):
        if path.name.startswith(("value-", "taken-")) and now - (_time(path) or now) > _ABANDONED_S:
            left.append(path)
    for path in left:
        yield Item(kind="scratch", name=path.name, at=(str(path),), used=_time(path))


def _named(text: bytes, named: Mapping[str, str]) -> frozenset[str]:
    """The paths of what a text names by its digest."""
    found = (named.get(each.decode()) for each in _DIGEST.findall(text))
    return frozenset(path for path in found if path)


def _read(path: Path) -> bytes:
    """A file that need not be there; one that cannot be read must not pass for empty."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as exc:
        raise MachineError(
            f"`{path}` cannot be looked at",
            why=str(exc.strerror),
            hint="nothing was removed: who knows what it needs?",
        ) from exc


def _time(path: Path | str) -> float | None:
    """When something was last written, or marked as used."""
    with contextlib.suppress(OSError):
        return os.lstat(path).st_mtime
    return None


def measure(home: Path, client: Any) -> list[Share]:
    """What a home holds, by kind, the largest first; with a client, the images of its environments, too."""
    counts: dict[str, int] = {}
    sizes: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    for top in inside(home):
        for path, facts in files_below(top):
            if facts.st_nlink > 1:
                if (facts.st_dev, facts.st_ino) in seen:
                    continue
                seen.add((facts.st_dev, facts.st_ino))
            kind = _kind(top.name, path[len(str(home)) + 1 :])
            counts[kind] = counts.get(kind, 0) + 1
            sizes[kind] = sizes.get(kind, 0) + facts.st_size
    if client is not None:
        counts["images"], sizes["images"] = image_sizes(home, client)
    shares = (Share(kind=kind, count=count, bytes=sizes[kind]) for kind, count in counts.items() if count)
    return sorted(shares, key=lambda each: (-each.bytes, each.kind))


def _kind(top: str, path: str) -> str:
    if top == "runs":
        return "logs" if path.split("/")[2:3] == ["logs"] else "runs"
    return "index" if top.startswith(index.NAME) else _KINDS.get(top, "other")
