"""Removes what no environment needs any more: images, prefixes, archives, layers, caches, locks of our own.

`plan` decides, from an inventory, and touches nothing; `carry_out` removes. What a live run or build uses is held by it
(see `usage`) and stays, and with it all that it consists of, also where it was taken after the plan was made. A folder is
first moved out of the way, so that nothing half removed can be taken for whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from executor import dockerd
from executor.data.leases import scratch_folder
from executor.environments import usage
from executor.environments.inventory import ELSEWHERE, Inventory, Item, files_below, inside, is_image, look
from executor.errors import MachineError

_UNNEEDED = {
    "archive": "no environment holds it",
    "layer": "no environment holds it",
    "scratch": "left by something that was killed, or damaged",
}

#: What environments consist of, or stand on; and what goes where there is too much.
_PARTS = frozenset({"archive", "layer", "lock", "base"})
_BUDGETED = frozenset({"cache", "environment", "channel", "base"})


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What goes: what was not used for `older_than_s`; then caches and the longest unused until `most_bytes` are left."""

    older_than_s: float
    most_bytes: float | None = None
    everything: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What goes and why, what stays although it was to go, and the bytes that this frees."""

    gone: Sequence[tuple[Item, str]]
    kept: Sequence[tuple[Item, str]]
    freed: int = 0


def clean(home: Path, client: Any, policy: Policy, *, dry_run: bool) -> Outcome:
    """Remove what a policy says from a home, and from an engine; without a `client` images stay."""
    with usage.take(home, usage.MAKING) as alone:
        there = look(home, client, alone=alone)
        outcome = plan(there, policy, time.time())
        if not dry_run:
            outcome = carry_out(outcome, home, client)
            _forget(home, client, there, policy)
        return replace(outcome, freed=there.without(()) - there.without(item for item, _ in outcome.gone))


# -- what goes ---------------------------------------------------------------------------------------------------------


class _Needed:
    """What those that stay consist of, or stand on."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._any = False

    def add(self, item: Item) -> None:
        """It stays."""
        self._ids |= item.needs or set()
        self._any = self._any or item.needs is None

    def has(self, item: Item) -> bool:
        """Whether one of them needs this."""
        return item.at[0] in self._ids or (self._any and item.kind in _PARTS)


def plan(inventory: Inventory, policy: Policy, now: float) -> Outcome:
    """What to remove; nothing that something which stays needs."""
    over: set[str] = set()
    outcome = _decide(inventory, policy, now, over)
    if policy.most_bytes is None:
        return outcome
    going = {item.at[0] for item, _ in outcome.gone}
    candidates = sorted(
        (each for each in inventory.items if each.kind in _BUDGETED and each.at[0] not in going and not each.stays),
        key=lambda each: (each.kind != "cache", each.kind != "environment", each.used or 0),
    )
    for each in candidates:
        if inventory.without(item for item, _ in outcome.gone) <= policy.most_bytes:
            break
        over.add(each.at[0])
        outcome = _decide(inventory, policy, now, over)
    return outcome


def _decide(inventory: Inventory, policy: Policy, now: float, over: set[str]) -> Outcome:
    needed, gone, kept = _Needed(), [], []
    for item in inventory.items:
        reason = "too much in all, and unused the longest" if item.at[0] in over else _reason(item, policy, now)
        if reason and not needed.has(item) and not item.stays:
            gone.append((item, reason))
            continue
        if reason and not needed.has(item):
            kept.append((item, item.stays))
        needed.add(item)
    return Outcome(gone=gone, kept=kept)


def _reason(item: Item, policy: Policy, now: float) -> str:
    if item.kind in _UNNEEDED:
        return _UNNEEDED[item.kind]
    if policy.everything:
        return "all is to go"
    if item.used is None or now - item.used <= policy.older_than_s:
        return ""
    hours = (now - item.used) / 3600
    return f"not used for {hours / 24:.0f} days" if hours >= 48 else f"not used for {hours:.0f} h"


# -- removing ----------------------------------------------------------------------------------------------------------


def carry_out(planned: Outcome, home: Path, client: Any) -> Outcome:
    """Remove what was planned, as far as that can be done; what somebody took since stays, and what it needs."""
    needed, gone, kept = _Needed(), [], list(planned.kept)
    with scratch_folder(home / "tmp") as scratch:
        for item, reason in planned.gone:
            if needed.has(item):
                kept.append((item, "an environment that stays needs it"))
                continue
            problem = _remove_environment(item, home, client, scratch) if item.key else _remove(item, client, scratch)
            if problem:
                kept.append((item, problem))
                needed.add(item)
            else:
                gone.append((item, reason))
    return Outcome(gone=gone, kept=kept)


def _remove_environment(item: Item, home: Path, client: Any, scratch: Path) -> str:
    with usage.take(home, item.key) as alone:
        if not alone:
            return "a run uses it"
        if any(map(is_image, item.at)) and usage.is_shown(item.key):
            return ELSEWHERE
        problem = _remove(item, client, scratch)
        if not problem:
            usage.forget(home, item.key)
        return problem


def _remove(item: Item, client: Any, scratch: Path) -> str:
    """Remove something; answers with why that was not done, or an empty text."""
    aside = scratch / f"{time.monotonic_ns()}"
    try:
        for at in item.at:
            if is_image(at):
                _remove_image(client, at)
            elif os.path.lexists(at):
                aside.mkdir(exist_ok=True)
                Path(at).rename(aside / Path(at).name)
    except (MachineError, OSError) as exc:
        return str(getattr(exc, "why", "") or exc)
    return _delete(aside)


def _delete(path: Path) -> str:
    """Delete what was moved out of the way, read-only folders in it, too; answers with why that cannot be done."""
    for folder, names, _ in os.walk(path):
        for each in (f"{folder}/{name}" for name in names):
            with contextlib.suppress(OSError):
                if not Path(each).is_symlink():
                    Path(each).chmod(0o700)
    try:
        if path.exists():
            shutil.rmtree(path)
    except OSError as exc:
        return f"it is out of the way, and cannot be deleted: {exc}"
    return ""


def _remove_image(client: Any, image: str) -> None:
    """Remove an image, by its one name: the engine refuses that where a container uses it. One that went is gone."""
    try:
        with dockerd.translated("an image cannot be removed"):
            tags = client.api.inspect_image(image)["RepoTags"] or [image]
            client.api.remove_image(tags[0])
    except MachineError as exc:
        if not isinstance(exc.__cause__, dockerd.ImageNotFound):
            raise


def _forget(home: Path, client: Any, there: Inventory, policy: Policy) -> None:
    """Forget environments that went another way; an image may be in an engine that is not asked just now."""
    known = {item.key for item in there.items}
    for key, use in usage.noted(home).items():
        unused_s = time.time() - (usage.last_used(home, key) or 0)
        if key in known or (use and use.parts and (not client or unused_s <= policy.older_than_s)):
            continue
        with usage.take(home, key) as alone:
            if alone:
                usage.forget(home, key)


# -- what is shared ----------------------------------------------------------------------------------------------------


def shares(home: Path) -> dict[tuple[str, str], tuple[int, int]]:
    """Name and key of each environment → bytes of its archives, and of those that one with another name has, too."""
    uses = [use for use in usage.noted(home).values() if use]
    sizes = {
        path.name: sum(facts.st_size for _, facts in files_below(path)) for path in inside(home / "packages/archives")
    }
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for use in uses:
        own = {sha256: sizes.get(sha256, 0) for sha256 in use.archives}
        for name in use.names:
            others = {sha256 for other in uses if {*other.names} - {name} for sha256 in other.archives}
            found[name, use.key] = (sum(own.values()), sum(size for each, size in own.items() if each in others))
    return found
