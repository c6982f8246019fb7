"""Why a call ran, or did not: what is different from the nearest earlier call of the same task.

Everything is read off the records: a call tells what its key was made of (`keys.CallKey.told`), its run the code that it
reaches and the packages of its environments.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.data import index
from executor.data.records import CallView, RunView, newest_runs
from executor.reach import compare

#: Runs that are looked at because they have calls of the same task, however long ago.
_MOST_RUNS = 20

Made = tuple[RunView, CallView]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a call ran, or did not.

    reasons: in words, one each; what was decided comes before what is different
    nearest: the earlier call that it was compared with, or whose value it has
    """

    reasons: tuple[str, ...]
    nearest: Made | None = None


def explain(view: RunView, call: CallView, home: Path) -> Explanation:
    """Why a call of a run ran, or did not."""
    if call.status == "cached" and call.origin:
        return _explain_hit(view, call, call.origin)
    if not call.call_key:
        return Explanation(reasons=("its run ended before its inputs were stored",))
    earlier = [made for made in _earlier(view, call, home) if made[1].call_key and made[1].parts]
    differing = [(differences(made, (view, call)), made) for made in earlier]
    if not differing:
        decided = _decided(view, call)
        return Explanation(reasons=(*decided, f"the records tell of no earlier call of `{call.task}`"))
    found, nearest = min(differing, key=lambda each: len(each[0]))  # of those that are as near, the newest
    kinds = [told for kind in found.values() for told in kind]
    if kinds:
        return Explanation(reasons=(*_decided(view, call), *kinds), nearest=nearest)
    same = nearest[1]
    if same.status not in ("succeeded", "cached"):
        why = f"the earlier call with the same key did not succeed: it is {same.status}"
    elif same.cache == "disable":
        why = "the value of the earlier call with the same key was not kept: its cache was `disable`"
    else:
        why = "nothing is different: the value of the earlier call was not in the store any more, or not whole"
    decided = _decided(view, call)
    return Explanation(reasons=(*decided, "nothing is different") if decided else (why,), nearest=nearest)


def differences(before: Made, after: Made) -> dict[str, list[str]]:
    """What two calls' keys were made of that is not the same: kind → in words; a kind without any is left out."""
    (old_run, old), (new_run, new) = before, after
    old_parts, new_parts = old.parts, new.parts
    found = {
        "environments": list(_environments(before, after)),
        "code": compare(
            old_run.code.get(old_parts.get("code", ""), {}), new_run.code.get(new_parts.get("code", ""), {})
        ),
        "inputs": list(compare_inputs(old, new)),
        "variables": list(_named("variable", old_parts.get("variables", {}), new_parts.get("variables", {}))),
        "mounts": list(
            _named("what is mounted at", old_parts.get("mounts", {}), new_parts.get("mounts", {}), short=True)
        ),
        "versions": list(_named("the cache version of", old_parts.get("versions", {}), new_parts.get("versions", {}))),
    }
    return {kind: told for kind, told in found.items() if told}


def _explain_hit(view: RunView, call: CallView, origin: Mapping[str, str]) -> Explanation:
    if view.resumes and origin["run"] == view.resumes:
        return Explanation(reasons=(f"its value was taken over from call {origin['call']} of run {origin['run']}",))
    told = f"its value was in the cache: call {origin['call']} of run {origin['run']} with the same key computed it"
    return Explanation(reasons=(told,))


def _decided(view: RunView, call: CallView) -> tuple[str, ...]:
    """What somebody decided, so that it would have run whatever is the same."""
    if call.cache == "disable":
        return (f'`{call.task}` is not cached: `cache="auto"` would be',)
    if call.cache == "override":
        return ("its cache is `override`, which takes no earlier value",)
    return ("the run was started with `--no-cache`",) if view.fresh else ()


def _earlier(view: RunView, call: CallView, home: Path) -> Iterator[Made]:
    """The calls of the same task that came before, the newest first."""
    same_run = [each for each in view.calls.values() if each.task == call.task and each.submitted < call.submitted]
    yield from ((view, each) for each in reversed(same_run))
    known = index.runs_of(home, call.task, before=view.id, most=_MOST_RUNS)
    for run in newest_runs(home, before=view.id, also=known):
        yield from ((run, each) for each in reversed(list(run.calls.values())) if each.task == call.task)


def _environments(before: Made, after: Made) -> Iterator[str]:
    (old_run, old), (new_run, new) = before, after
    old_names, new_names = old.parts.get("environments", []), new.parts.get("environments", [])
    for name in dict.fromkeys([*old_names, *new_names]):
        if name not in old_names or name not in new_names:
            yield f"environment `{name}` is reached {'now' if name in new_names else 'no more'}"
            continue
        old_made, new_made = old_run.environments.get(name, {}), new_run.environments.get(name, {})
        if old_made.get("key") == new_made.get("key"):
            continue
        packages = list(compare_packages(old_made, new_made))
        yield from packages or [f"the base, the platform or the variables of environment `{name}` changed"]


def compare_packages(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What is different between the locks of an environment in two runs, as their records tell of it."""
    old, new = (_versions(made.get("packages", ())) for made in (before, after))
    name = after.get("environment") or before.get("environment")
    for package in sorted({*old, *new}):
        if package not in old:
            yield f"`{package}` {new[package]} is new in the lock of `{name}`"
        elif package not in new:
            yield f"`{package}` {old[package]} is gone from the lock of `{name}`"
        elif old[package] != new[package]:
            yield f"`{package}` {old[package]} → {new[package]} in the lock of `{name}`"
    if old == new and before.get("lock") != after.get("lock"):
        yield f"files of packages in the lock of `{name}` changed, though no version did"


def _versions(packages: Iterable[Iterable[str]]) -> dict[str, str]:
    """Package → version; one that both conda and pip install has both."""
    found: dict[str, str] = {}
    for _, name, version in packages:
        found[name] = f"{found[name]}, {version}" if name in found else version
    return found


def compare_inputs(old: CallView, new: CallView) -> Iterator[str]:
    """What is different between the inputs of two calls."""
    if contents(old.inputs) == contents(new.inputs):
        return
    told_old, told_new = old.arguments or {}, new.arguments or {}
    named = [name for name in dict.fromkeys([*told_old, *told_new]) if told_old.get(name) != told_new.get(name)]
    for name in named:
        yield f"input `{name}`{_from_to(told_old.get(name), told_new.get(name))}"
    if not named:
        yield "the content of its inputs changed, in what a preview of them does not show"


def contents(value: Mapping[str, Any] | None) -> Any:
    """What decides whether two stored values are the same: digests, and the names of files."""
    doc = value or {}
    return doc.get("sha256"), [
        (each.get("sha256"), each.get("name"), each.get("tree")) for each in doc.get("files", ())
    ]


def _from_to(old: Any, new: Any) -> str:
    """Both values, where they are short enough to be read."""
    texts = [_short(each) for each in (old, new)]
    return f" {texts[0]} → {texts[1]}" if all(texts) and texts[0] != texts[1] else " changed"


def _short(preview: Any) -> str:
    if not isinstance(preview, Mapping):
        return ""
    text = json.dumps(preview["json"], ensure_ascii=False) if "json" in preview else str(preview.get("text", ""))
    return text if len(text) <= 40 and "\n" not in text else ""


def _named(what: str, old: Mapping[str, str], new: Mapping[str, str], *, short: bool = False) -> Iterator[str]:
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            told = "" if short else f": {old.get(name, 'nothing')} → {new.get(name, 'nothing')}"
            yield f"{what} `{name}` changed{told}"
