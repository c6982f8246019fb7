"""Removes what no environment needs any more: images, prefixes, archives, layers, caches, locks of our own.

`plan` decides, from an inventory, and touches nothing; `carry_out` removes. What a live run or build uses is held by it
(see `usage`) and stays, whatever was planned. A folder is first moved out of the way, so that nothing half removed can be
taken for whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executor import dockerd
from executor.data.leases import NAME, lease_is_held, scratch_folder
from executor.environments import usage
from executor.environments.usage import Use
from executor.errors import MachineError

_LABEL = f"{dockerd.LABEL}.key"


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something that may be removed.

    kind: environment, archive, layer, cache, lock, channel, base, scratch
    at:   its path, or for an image its id; an environment has all of its own
    """

    kind: str
    name: str
    at: tuple[str, ...]
    size: int
    used: float | None


@dataclass(frozen=True, kw_only=True)
class Environment(Item):
    """A made environment, with what it consists of where that is known."""

    use: Use | None = None


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """All that is there. shared: archives and layers by what environments call them; locks by path."""

    environments: Sequence[Environment]
    archives: Mapping[str, Item] = field(default_factory=dict)
    layers: Mapping[str, Item] = field(default_factory=dict)
    locks: Mapping[str, Item] = field(default_factory=dict)
    channels: Mapping[str, Item] = field(default_factory=dict)
    caches: Sequence[Item] = ()
    bases: Sequence[Item] = ()
    scratch: Sequence[Item] = ()

    @property
    def size(self) -> int:
        """Bytes of everything."""
        shared = (self.archives, self.layers, self.locks, self.channels)
        single = (self.environments, self.caches, self.bases, self.scratch)
        return sum(each.size for group in (*(one.values() for one in shared), *single) for each in group)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What goes: what was not used for `older_than_s`, then the longest unused until `most_bytes` are left."""

    older_than_s: float
    most_bytes: int | None = None
    everything: bool = False


def plan(inventory: Inventory, policy: Policy, now: float) -> list[tuple[Item, str]]:
    """What to remove, and why; nothing that an environment which stays consists of."""
    going: dict[str, tuple[Item, str]] = {}
    staying = sorted(inventory.environments, key=lambda each: each.used or 0)
    for each in list(staying):
        reason = _reason(each, policy, now)
        if reason:
            going[each.name] = (each, reason)
            staying.remove(each)
    planned = [*going.values(), *_unneeded(inventory, staying, policy, now)]
    if policy.most_bytes is not None:
        while staying and inventory.size - sum(item.size for item, _ in planned) > policy.most_bytes:
            each = staying.pop(0)
            going[each.name] = (each, "too much in all, and unused the longest")
            planned = [*going.values(), *_unneeded(inventory, staying, policy, now)]
    return planned


def _reason(item: Item, policy: Policy, now: float) -> str:
    if policy.everything:
        return "all is to go"
    if item.used is not None and now - item.used > policy.older_than_s:
        return f"not used for {(now - item.used) / 86400:.0f} days"
    return ""


def _unneeded(
    inventory: Inventory, staying: Iterable[Environment], policy: Policy, now: float
) -> Iterator[tuple[Item, str]]:
    """What no environment that stays consists of."""
    uses = [each.use for each in staying if each.use]
    archives = {sha256 for use in uses for sha256 in use.archives}
    parts = {part for use in uses for part in use.parts}
    for kind, needed in ((inventory.archives, archives), (inventory.layers, parts)):
        yield from ((item, "no environment holds it") for name, item in kind.items() if name not in needed)
    locks = {use.lock for use in uses}
    for path, item in inventory.locks.items():
        if path not in locks and (reason := _reason(item, policy, now)):
            yield item, reason
    for item in (*inventory.channels.values(), *inventory.caches, *inventory.bases):
        if reason := _reason(item, policy, now):
            yield item, reason
    yield from ((item, "left by something that was killed, or damaged") for item in inventory.scratch)


# -- what is there -----------------------------------------------------------------------------------------------------


def look(home: Path, client: Any) -> Inventory:
    """What is there in a home, and of it in an engine; without a `client` images are not looked at."""
    uses = usage.noted(home)
    images = _images(client, uses) if client else {}
    prefixes = {path.name: path for path in (home / "prefixes").glob("*") if path.is_dir()}
    return Inventory(
        environments=[_environment(home, key, uses.get(key), prefixes, images) for key in {*prefixes, *images}],
        archives={path.name: _folder("archive", path) for path in (home / "packages/archives").glob("*")},
        layers={path.name.removesuffix(".tar.zst"): _layer(path) for path in (home / "layers").glob("*.tar.zst")},
        locks={
            str(path): _item("lock", path.parent.name[:12], [path.parent])
            for path in (home / "locks").glob("*/conda-lock.yml")
        },
        channels={path.name: _folder("channel", path) for path in (home / "channel").glob("*")},
        caches=[
            _folder("cache", path)
            for name in ("conda", "uv", "repodata")
            if (path := home / "packages" / name).exists()
        ],
        bases=_bases(client) if client else [],
        scratch=[
            *(
                _folder("scratch", path)
                for path in (home / "tmp").glob("scratch-*")
                if (path / NAME).exists() and not lease_is_held(path / NAME)
            ),
            *(_folder("scratch", path) for path in (home / "packages").glob("quarantine")),
        ],
    )


def _environment(
    home: Path, key: str, use: Use | None, prefixes: Mapping[str, Path], images: Mapping[str, dict[str, Any]]
) -> Environment:
    at, size = [], 0
    if key in prefixes:
        listed = prefixes[key].with_name(f"{key}.files")
        at += [str(prefixes[key]), str(listed)]
        size += _size(prefixes[key])
    if key in images:
        at.append(images[key]["Id"])
        size += int(images[key]["Size"])
    name = use.name if use else images.get(key, {}).get("Labels", {}).get(f"{dockerd.LABEL}.environment", "?")
    return Environment(
        kind="environment", name=f"{name} {key[:12]}", at=tuple(at), size=size, used=usage.last_used(home, key), use=use
    )


def _images(client: Any, uses: Mapping[str, Use]) -> dict[str, dict[str, Any]]:
    """Images of environments that were made here, by key; other people have theirs in the same engine."""
    with dockerd.translated("the images cannot be listed"):
        found = client.api.images(filters={"label": f"{dockerd.LABEL}=environment"})
    return {each["Labels"][_LABEL]: each for each in found if each["Labels"].get(_LABEL) in uses}


def _bases(client: Any) -> list[Item]:
    """Base images that no other image stands on."""
    with dockerd.translated("the images cannot be listed"):
        made = client.api.images(filters={"label": f"{dockerd.LABEL}=base"})
        others = client.api.images(filters={"label": f"{dockerd.LABEL}=environment"})
        layers = {each["Id"]: client.api.inspect_image(each["Id"])["RootFS"]["Layers"] for each in (*made, *others)}
    return [
        Item(kind="base", name=(each["RepoTags"] or ["?"])[0], at=(each["Id"],), size=int(each["Size"]), used=None)
        for each in made
        if not any(
            other["Id"] != each["Id"] and layers[other["Id"]][: len(layers[each["Id"]])] == layers[each["Id"]]
            for other in (*made, *others)
        )
    ]


def _folder(kind: str, path: Path) -> Item:
    name = next((each.name for each in path.iterdir()), path.name) if kind == "archive" else path.name
    return _item(kind, name, [path])


def _layer(path: Path) -> Item:
    facts = path.with_name(path.name.replace(".tar.zst", ".json"))
    name = path.name[:12]
    with contextlib.suppress(OSError, ValueError):
        name = str(json.loads(facts.read_bytes())["name"])
    return _item("layer", name, [path, facts])


def _item(kind: str, name: str, paths: Sequence[Path]) -> Item:
    used = max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)
    return Item(kind=kind, name=name, at=tuple(map(str, paths)), size=sum(map(_size, paths)), used=used)


def _size(path: Path) -> int:
    """Bytes on the disk that go when this goes: a file with other names has its share of them."""
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0
    total = 0.0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(f"{folder}/{name}")
                total += found.st_size / max(1, found.st_nlink)
    return int(total)


# -- removing ----------------------------------------------------------------------------------------------------------


def carry_out(
    planned: Sequence[tuple[Item, str]], home: Path, client: Any, kept: Callable[[Item, str], None]
) -> list[tuple[Item, str]]:
    """Remove what was planned; answers with what is gone. kept: told of what stays all the same, and why."""
    gone = []
    with usage.take(home, usage.MAKING) as alone, scratch_folder(home / "tmp") as scratch:
        for item, reason in planned:
            if isinstance(item, Environment):
                done = _remove_environment(item, home, client, scratch, kept)
            elif not alone:
                kept(item, "somebody makes an environment just now")
                done = False
            else:
                done = _remove(item, client, scratch, kept)
            if done:
                gone.append((item, reason))
    return gone


def _remove_environment(
    item: Environment, home: Path, client: Any, scratch: Path, kept: Callable[[Item, str], None]
) -> bool:
    key = item.use.key if item.use else next(Path(at).name for at in item.at)
    with usage.take(home, key) as alone:
        if not alone:
            kept(item, "a run uses it")
            return False
        if not _remove(item, client, scratch, kept):
            return False
        usage.forget(home, key)
    return True


def _remove(item: Item, client: Any, scratch: Path, kept: Callable[[Item, str], None]) -> bool:
    try:
        for at in item.at:
            if at.startswith("sha256:"):
                _remove_image(client, at)
            elif os.path.lexists(at):
                Path(at).rename(scratch / f"{time.monotonic_ns()}")
        for path in scratch.iterdir():
            if path.name != NAME:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    except (MachineError, OSError) as exc:
        kept(item, str(getattr(exc, "why", "") or exc))
        return False
    return True


def _remove_image(client: Any, image: str) -> None:
    """An image that a container uses stays, by the engine's own rule; one that is gone already is gone."""
    try:
        with dockerd.translated("an image cannot be removed"):
            for tag in client.api.inspect_image(image)["RepoTags"] or [image]:
                client.api.remove_image(tag)
    except MachineError as exc:
        if not isinstance(exc.__cause__, dockerd.ImageNotFound):
            raise


def shares(home: Path) -> dict[str, tuple[int, int]]:
    """Key of each environment → bytes of its archives, and of those that another one has, too."""
    uses = usage.noted(home)
    sizes = {path.name: _size(path) for path in (home / "packages/archives").glob("*")}
    found = {}
    for key, use in uses.items():
        others = {sha256 for other in uses.values() if other.name != use.name for sha256 in other.archives}
        all_bytes = sum(sizes.get(sha256, 0) for sha256 in use.archives)
        found[key] = (all_bytes, sum(sizes.get(sha256, 0) for sha256 in use.archives if sha256 in others))
    return found
