"""Removes what nothing needs any more: images, prefixes, archives, layers, caches, locks of our own; runs and values.

What there is of runs and values, `executor.disk` says. `plan` decides, from an inventory, and touches nothing;
`carry_out` removes. What a live run or build uses is held by it (see `usage`) and stays, and with it all that it consists
of, also where it was taken after the plan was made. A folder is first moved out of the way, so that nothing half removed
can be taken for whole.
"""

from __future__ import annotations

import bisect
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
from executor.data.pins import why_kept
from executor.environments import usage
from executor.environments.inventory import ELSEWHERE, Inventory, Item, files_below, inside, is_image, look
from executor.errors import MachineError

_UNNEEDED = {
    "archive": "no environment holds it",
    "layer": "no environment holds it",
    "scratch": "left by something that was killed, or damaged",
    "value": "no run holds it, and no entry of the cache",
    "snapshot": "no run holds it",
}

#: What each kind may consist of, or stand on, where nobody knows of what.
_PARTS = {
    "environment": frozenset({"archive", "layer", "lock", "base"}),
    "run": frozenset({"value", "snapshot"}),
    "result": frozenset({"value"}),
}
#: What goes where there is too much, in this order: what was fetched, what can be made again, what was computed.
_BUDGETED = {"cache": 0, "environment": 1, "channel": 2, "base": 2, "result": 3, "run": 3}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What goes: what was not used for `older_than_s`; then caches and the longest unused until `most_bytes` are left.

    Runs go only where one of these says so: those that are not among the `keep_last` newest, and that are older than
    `runs_older_than_s`, each where it is given; `most_bytes` takes further ones, but none of the `keep_last`.
    """

    older_than_s: float
    most_bytes: float | None = None
    everything: bool = False
    keep_last: int | None = None
    runs_older_than_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What goes and why, what stays although it was to go, and the bytes that this frees."""

    gone: Sequence[tuple[Item, str]]
    kept: Sequence[tuple[Item, str]]
    freed: int = 0


def clean(home: Path, client: Any, policy: Policy, others: Sequence[Item] = (), *, dry_run: bool) -> Outcome:
    """Remove what a policy says from a home, and from an engine; without a `client` images stay.

    others: what there is besides environments, in the order of `Inventory.items`
    """
    with usage.take(home, usage.MAKING) as alone:
        there = look(home, client, others, alone=alone)
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
        self._kinds: frozenset[str] = frozenset()

    def add(self, item: Item) -> None:
        """It stays."""
        self._ids |= item.needs or set()
        if item.needs is None:
            self._kinds |= _PARTS.get(item.kind, frozenset())

    def has(self, item: Item) -> bool:
        """Whether one of them needs this."""
        return item.at[0] in self._ids or item.kind in self._kinds


def plan(inventory: Inventory, policy: Policy, now: float) -> Outcome:
    """What to remove; nothing that something which stays needs."""
    outcome = _decide(inventory, policy, now, frozenset())
    if policy.most_bytes is None:
        return outcome
    most, going = policy.most_bytes, {item.at[0] for item, _ in outcome.gone}
    candidates = [each for each in inventory.items if _may_be_too_much(each, policy) and each.at[0] not in going]
    candidates.sort(key=lambda each: (_BUDGETED[each.kind], each.used or 0))

    def decide(count: int) -> Outcome:
        return _decide(inventory, policy, now, frozenset(each.at[0] for each in candidates[:count]))

    def is_enough(count: int) -> bool:
        return inventory.without(item for item, _ in decide(count).gone) <= most

    return decide(bisect.bisect_left(range(len(candidates)), True, key=is_enough))


def _may_be_too_much(item: Item, policy: Policy) -> bool:
    is_kept = item.kind == "run" and policy.keep_last is not None and item.newer < policy.keep_last
    return item.kind in _BUDGETED and not item.stays and not is_kept


def _decide(inventory: Inventory, policy: Policy, now: float, over: frozenset[str]) -> Outcome:
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
    if item.kind == "run":
        return _reason_of_run(item, policy, now)
    if policy.everything:
        return "all is to go"
    if item.used is None or now - item.used <= policy.older_than_s:
        return ""
    return f"not used for {_age(now - item.used)}"


def _reason_of_run(item: Item, policy: Policy, now: float) -> str:
    reasons = []
    if policy.keep_last is not None:
        if item.newer < policy.keep_last:
            return ""
        reasons.append(f"{item.newer} are newer")
    if policy.runs_older_than_s is not None:
        if item.used is None or now - item.used <= policy.runs_older_than_s:
            return ""
        reasons.append(f"it ended {_age(now - item.used)} ago")
    return ", ".join(reasons)


def _age(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.0f} h"


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
    if item.kind == "run" and (why := why_kept(Path(item.at[0]))):
        return why
    aside = scratch / f"{time.monotonic_ns()}"
    try:
        if item.kind in ("value", "result"):
            Path(item.at[0]).unlink(missing_ok=True)
            return ""
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
