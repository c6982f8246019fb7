"""What there is of environments in a home and in an engine: what it needs, who uses it, how large it is.

An engine may have images of other homes, and of other people who built theirs upon ours. Ours are those that this home has
used and that are as we made them. One of them stays while a container, or a run of any home on this machine, uses it, and
where somebody gave it another name.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from executor import dockerd
from executor.data.leases import NAME, lease_is_held
from executor.environments import usage
from executor.environments.image import image_tag
from executor.environments.usage import Use
from executor.errors import MachineError

_KEY = f"{dockerd.LABEL}.key"
_NAME = f"{dockerd.LABEL}.environment"
_OF_BASES = ("run-local/base:", "run-local/apt:")
ELSEWHERE = "a run with another RUN_LOCAL_HOME uses it"
_BUSY = "somebody makes an environment or cleans up just now"
_ABANDONED_S = 86400


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something that may be removed.

    kind:  environment, archive, layer, cache, lock, channel, base, scratch, run, result (of the cache), value, snapshot
    at:    its paths, and the ids of its images; the first of them is what others know it by
    used:  when it was last used or changed; None where it has no age
    needs: what it consists of or stands on; None where nobody knows
    stays: why it may not go, whatever is asked for; mostly empty
    key:   of an environment
    size:  bytes on the disk; of what it has in common with others, its share
    newer: of a run, how many are newer
    """

    kind: str
    name: str
    at: tuple[str, ...]
    used: float | None
    needs: frozenset[str] | None = frozenset()
    stays: str = ""
    key: str = ""
    size: int = 0
    newer: int = 0


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """All that is there.

    items: what needs others comes before them
    bytes_of: bytes by who has them; files have several names, and images layers in common
    """

    items: Sequence[Item]
    bytes_of: Mapping[frozenset[str], int] = field(default_factory=dict)

    def without(self, gone: Iterable[Item]) -> int:
        """The bytes that are left when these are gone."""
        names = {item.at[0] for item in gone}
        return sum(size for holders, size in self.bytes_of.items() if not holders <= names)


class _Sizes:
    """Counts bytes once, whoever else has them."""

    def __init__(self) -> None:
        self._shared: dict[object, tuple[int, frozenset[str]]] = {}
        self._single: Counter[frozenset[str]] = Counter()

    def add(self, what: object, size: int, holder: str) -> None:
        """`holder` has this, and others perhaps."""
        _, holders = self._shared.get(what, (size, frozenset[str]()))
        self._shared[what] = (size, holders | {holder})

    def add_file(self, facts: os.stat_result, holder: str) -> None:
        """`holder` has this file, perhaps by one of its names only."""
        if facts.st_nlink > 1:
            self.add((facts.st_dev, facts.st_ino), facts.st_size, holder)
        else:
            self._single[frozenset({holder})] += facts.st_size

    def bytes_of(self) -> Counter[frozenset[str]]:
        """Bytes by all who have them."""
        total = self._single.copy()
        for size, holders in self._shared.values():
            total[holders] += size
        return total


def files_below(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """The files below a folder, or the one at this path; what cannot be read, or went meanwhile, is left out."""
    names = [str(path)] if path.is_symlink() or not path.is_dir() else []
    for each in (*names, *(f"{folder}/{name}" for folder, _, found in os.walk(path) for name in found)):
        with contextlib.suppress(OSError):
            yield each, os.lstat(each)


def look(home: Path, client: Any, others: Sequence[Item] = (), *, alone: bool) -> Inventory:
    """What is there of environments in a home, and of it in an engine; and `others`, which are known already.

    alone: nobody makes anything meanwhile, so whatever is half made was left
    """
    images = _read_images(client) if client else []
    environments = [*_environments(home, images, bool(client))]
    kept = [*_single_folders(home), *_parts(home)]
    if not alone:
        kept = [replace(each, stays=_BUSY) for each in kept]
    items = [*environments, *_bases(images, environments, alone), *kept, *_scratch(home, alone), *others]
    bytes_of = _bytes_of(items, images)
    shares: Counter[str] = Counter()
    for holders, size in bytes_of.items():
        shares.update(dict.fromkeys(holders, size // len(holders)))
    return Inventory(items=[replace(item, size=shares[item.at[0]]) for item in items], bytes_of=bytes_of)


def _bytes_of(items: Sequence[Item], images: Sequence[_Image]) -> dict[frozenset[str], int]:
    """Bytes by which items have them; what an image has that is none of them would not go."""
    sizes = _Sizes()
    holders = {at: item.at[0] for item in items for at in item.at}
    for at, holder in holders.items():
        for path, facts in files_below(Path(at)) if at.startswith("/") else ():
            if path == at or path not in holders:
                sizes.add_file(facts, holder)
    for image in images:
        for layers, size in image.sizes:
            sizes.add(layers, size, holders.get(image.id, image.id))
    known = {*holders.values()}
    return {who: size for who, size in sizes.bytes_of().items() if who <= known}


def _environments(home: Path, images: Sequence[_Image], engine: bool) -> Iterator[Item]:
    """The environments that were made here: folders and images; without an engine, images that there may be."""
    uses = usage.noted(home)
    prefixes = {path.name: path for path in inside(home / "prefixes") if path.is_dir()}
    made: dict[str, list[_Image]] = {}
    for image in images:
        if image.kind == "environment" and image.key in uses:
            made.setdefault(image.key, []).append(image)
    unseen = () if engine else [key for key, use in uses.items() if not use or use.parts]
    keys = {*prefixes, *made, *unseen}
    for key in sorted(keys):
        use, own, prefix = uses.get(key), made.get(key, []), prefixes.get(key)
        paths = [str(prefix), f"{prefix}.files"] if prefix else []
        at = (*paths, *(image.id for image in own)) or (f"image {key}",)
        stays = "no Docker engine answers" if not engine and not prefix else _held(home, key, own)
        names = sorted(use.names if use else {image.name for image in own}) or ["?"]
        used = usage.last_used(home, key)
        yield Item(
            kind="environment",
            name=f"{', '.join(names)} {key[:12]}",
            at=at,
            used=used if used is not None or not prefix else _changed(prefix),
            needs=_needs(home, use, own, images) if use else None,
            stays=stays,
            key=key,
        )


def _held(home: Path, key: str, images: Sequence[_Image]) -> str:
    """Why an environment may not go."""
    if lease_is_held(home / "used" / key):
        return "a run uses it"
    if images and usage.is_shown(key):
        return ELSEWHERE
    return next((image.stays for image in images if image.stays), "")


def _needs(home: Path, use: Use, own: Sequence[_Image], images: Sequence[_Image]) -> frozenset[str]:
    archives = (home / "packages/archives" / sha256 for sha256 in use.archives)
    parts = (home / "layers" / f"{part}.tar.zst" for part in use.parts)
    locks = (home / "locks" / Path(lock).parent.name for lock in use.locks)
    below = (base.id for base in images if base.kind == "base" and any(each.stands_on(base) for each in own))
    return frozenset([*map(str, archives), *map(str, parts), *map(str, locks), *below])


def _single_folders(home: Path) -> Iterator[Item]:
    """Caches, and the channels of the bridge."""
    for name in ("conda", "uv", "repodata"):
        path = home / "packages" / name
        if path.exists():
            yield Item(kind="cache", name=name, at=(str(path),), used=_changed(path))
    locks = _committed(home)
    for path in inside(home / "channel"):
        named = next((lock for lock, text in locks.items() if f"/channel/{path.name}/" in text), None)
        stays = f"`{named}` names its packages" if named else ""
        yield Item(kind="channel", name=path.name, at=(str(path),), used=_changed(path), stays=stays)


def _committed(home: Path) -> dict[str, str]:
    """The locks beside specifications that were made or used here, with their text: none of them is ours to break."""
    paths = {path for use in usage.noted(home).values() if use for path in use.locks}
    for note in inside(home / "locks/last"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            paths.add(note.read_text(encoding="utf-8"))
    found = {}
    for path in sorted(paths):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if not Path(path).is_relative_to(home / "locks"):
                found[path] = Path(path).read_text(encoding="utf-8")
    return found


def _parts(home: Path) -> Iterator[Item]:
    """What environments are made from: archives, layers, locks of our own."""
    for path in inside(home / "packages/archives"):
        yield Item(kind="archive", name=_first_in(path), at=(str(path),), used=_changed(path))
    for path in inside(home / "layers"):
        if path.name.endswith(".tar.zst"):
            facts = path.with_name(path.name.replace(".tar.zst", ".json"))
            yield Item(kind="layer", name=_layer_name(facts), at=(str(path), str(facts)), used=_changed(path))
    for path in inside(home / "locks"):
        if (path / "conda-lock.yml").exists():
            yield Item(kind="lock", name=path.name[:12], at=(str(path),), used=_changed(path))


def _scratch(home: Path, alone: bool) -> Iterator[Item]:
    """What was left half made, or set aside as damaged."""
    left = [path for path in inside(home / "tmp") if path.name.startswith("scratch-") and _is_left(path)]
    if alone:
        half = (path for name in ("layers", "used") for path in inside(home / name) if path.name.startswith("half-"))
        fetched = (path for folder in inside(home / "packages/archives") for path in _readable(folder))
        left += [*half, *(path for path in fetched if path.name.startswith("half-"))]
        left += [path for path in [home / "packages/quarantine"] if path.exists()]
    for path in left:
        yield Item(kind="scratch", name=path.name, at=(str(path),), used=_changed(path))


def _is_left(scratch: Path) -> bool:
    """Whether nobody works in a folder; one who makes or removes it has no lease in it for a moment."""
    lease = scratch / NAME
    if lease.exists():
        return not lease_is_held(lease)
    return time.time() - (_changed(scratch) or 0) > _ABANDONED_S and not lease_is_held(lease.with_suffix(".taken"))


def inside(folder: Path) -> list[Path]:
    """What is in a folder, which need not be there; one that cannot be read must not pass for empty."""
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise MachineError(
            f"`{folder}` cannot be looked at",
            why=str(exc.strerror),
            hint="nothing was removed: who knows what it holds? it belongs to `$RUN_LOCAL_HOME`, and to you",
        ) from exc


def _readable(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(folder.iterdir())
    return []


def _first_in(folder: Path) -> str:
    return next((path.name for path in _readable(folder)), folder.name)


def _layer_name(facts: Path) -> str:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        return str(json.loads(facts.read_bytes())["name"])
    return facts.name[:12]


def _changed(path: Path) -> float | None:
    """When something was last put into a folder, at whatever depth, or a file was written."""
    times = []
    for folder in [str(path), *(f"{place}/{name}" for place, names, _ in os.walk(path) for name in names)]:
        with contextlib.suppress(OSError):
            times.append(os.lstat(folder).st_mtime)
    return max(times, default=None)


# -- images ------------------------------------------------------------------------------------------------------------


def is_image(at: str) -> bool:
    """Whether something is an image of an engine, and no path."""
    return at.startswith("sha256:")


def image_sizes(home: Path, client: Any) -> tuple[int, int]:
    """How many images of an engine are of this home's environments, or bases, and their bytes; shared ones count once."""
    known = usage.noted(home)
    images = [image for image in _read_images(client) if image.kind == "base" or image.key in known]
    return len(images), sum(dict(each for image in images for each in image.sizes).values())


@dataclass(frozen=True, kw_only=True)
class _Image:
    """An image that we made, as an engine has it.

    kind:  environment or base
    sizes: its layers, each by those below and itself, with their bytes
    stays: why it may not go
    """

    id: str
    kind: str
    key: str
    name: str
    layers: tuple[str, ...]
    sizes: tuple[tuple[object, int], ...]
    stays: str

    def stands_on(self, base: _Image) -> bool:
        """Whether it is made upon another image."""
        return self.id != base.id and self.layers[: len(base.layers)] == base.layers


def _read_images(client: Any) -> list[_Image]:
    """The images with our label that are as we made them: who makes another upon one of ours inherits its labels."""
    found = []
    with dockerd.translated("the images cannot be listed"):
        running = {each.get("ImageID") for each in client.api.containers(all=True)}
        for listed in client.api.images(filters={"label": dockerd.LABEL}):
            with contextlib.suppress(dockerd.ImageNotFound):  # it went meanwhile
                if listed["Created"] == 0:
                    found.append(_read_image(client, listed, running))
    return found


def _read_image(client: Any, listed: Mapping[str, Any], running: set[str | None]) -> _Image:
    labels, id_ = listed["Labels"], listed["Id"]
    layers = tuple(client.api.inspect_image(id_)["RootFS"].get("Layers") or ())
    added = [int(each["Size"]) for each in reversed(client.api.history(id_))]
    sizes: tuple[tuple[object, int], ...] = ((id_, int(listed["Size"])),)
    if len(added) == len(layers):
        sizes = tuple((layers[: number + 1], size) for number, size in enumerate(added))
    kind, key, name = labels[dockerd.LABEL], labels.get(_KEY, ""), labels.get(_NAME, "")
    tags = [tag for tag in listed["RepoTags"] or () if tag != "<none>:<none>"]
    foreign = [tag for tag in tags if tag != image_tag(name, key) and not tag.startswith(_OF_BASES)]
    stays = "a container uses it" if id_ in running else f"it is called `{foreign[0]}`, too" if foreign else ""
    return _Image(id=id_, kind=kind, key=key, name=name or (tags or ["?"])[0], layers=layers, sizes=sizes, stays=stays)


def _bases(images: Sequence[_Image], environments: Sequence[Item], alone: bool) -> Iterator[Item]:
    """Base images, those that stand on another first."""
    making = not alone or usage.is_shown(usage.MAKING)
    own = {at for each in environments for at in each.at}
    others = [image for image in images if image.kind == "environment" and image.id not in own]
    bases = sorted((image for image in images if image.kind == "base"), key=lambda image: -len(image.layers))
    for base in bases:
        below = frozenset(other.id for other in bases if base.stands_on(other))
        carries = next((image.name for image in others if image.stands_on(base)), "")
        stays = base.stays or (_BUSY if making else f"the image of `{carries}` stands on it" if carries else "")
        yield Item(kind="base", name=base.name, at=(base.id,), used=None, needs=below, stays=stays)
