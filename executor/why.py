"""Why a call ran, or did not: what is different from the nearest earlier call of the same task.

Everything is read off the records: a call tells what its key was made of (`keys.CallKey.told`), its run the code that it
reaches and the packages of its environments.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from executor.data import index
from executor.data.records import CallView, RunView, newest_runs, read_folder
from executor.reach import compare

#: Runs that are looked at because they have calls of the same task, however long ago.
_MOST_RUNS = 20
_MOST_OF_A_RUN = 20  # calls, that are compared

Made = tuple[RunView, CallView]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a call ran, or did not.

    reasons: in words, one each; what was decided comes before what is different
    nearest: the earlier call that it was compared with, or whose value it has
    """

    reasons: tuple[str, ...]
    nearest: Made | None = None


class Past:
    """The runs before one, as their records tell of them; each is read once for each task that is asked for.

    home: where the records are; view: the run that is explained
    """

    def __init__(self, home: Path, view: RunView) -> None:
        self._home, self._view = home, view
        self._calls: dict[str, list[tuple[RunView, list[CallView], dict[str, CallView]]]] = {}

    def run(self, name: str) -> RunView | None:
        """The run with this id, where it has a record."""
        if name == self._view.id:
            return self._view
        folder = self._home / "runs" / name
        return read_folder(folder) if folder.is_dir() else None

    def calls(self, call: CallView) -> Iterator[Made]:
        """Calls of the same task that came before: of each run, the newest first, that with the same key, or else a few."""
        if call.task not in self._calls:
            known = index.runs_of(self._home, call.task, before=self._view.id, most=_MOST_RUNS)
            runs = (self._view, *newest_runs(self._home, before=self._view.id, also=known))
            self._calls[call.task] = [(run, *_of_task(run, call.task)) for run in runs]
        for run, calls, by_key in self._calls[call.task]:
            same = [by_key.get(call.call_key), run.calls.get(call.id), *calls[-_MOST_OF_A_RUN:][::-1]]
            for each in {id(each): each for each in same if each and each.task == call.task and each.parts}.values():
                if run is not self._view or each.submitted < call.submitted:
                    yield run, each


def _of_task(run: RunView, task: str) -> tuple[list[CallView], dict[str, CallView]]:
    """The calls of a task whose keys are known, and the same by key."""
    calls = [each for each in run.calls.values() if each.task == task and each.call_key]
    return calls, {each.call_key: each for each in calls}


def explain(view: RunView, call: CallView, past: Past) -> Explanation:
    """Why a call of a run ran, or did not."""
    if call.status == "cached" and call.origin:
        return _explain_hit(view, call.origin, past)
    if not call.call_key:
        return Explanation(reasons=("its run ended before its inputs were stored",))
    decided = _decided(view, call)
    differing = [(differences(made, (view, call)), made) for made in past.calls(call)]
    if not differing:
        return Explanation(reasons=(*decided, f"the records tell of no earlier call of `{call.task}`"))
    found, nearest = min(differing, key=lambda each: len(each[0]))  # of those that are as near, the newest
    kinds = [told for kind in found.values() for told in kind]
    if kinds:
        return Explanation(reasons=(*decided, *kinds), nearest=nearest)
    if decided:
        return Explanation(reasons=(*decided, "nothing is different"), nearest=nearest)
    same = nearest[1]
    if same.status not in ("succeeded", "cached"):
        why = f"the earlier call with the same key did not succeed: it is {same.status}"
    elif same.cache == "disable":
        why = "the value of the earlier call with the same key was not kept: its cache was `disable`"
    else:
        why = "nothing is different, but the value of the earlier call was not to be had: not there any more, or not whole"
    return Explanation(reasons=(why,), nearest=nearest)


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


def _explain_hit(view: RunView, origin: Mapping[str, str], past: Past) -> Explanation:
    run = past.run(origin["run"])
    computed = run.calls.get(origin["call"]) if run else None
    when = time.strftime(" on %Y-%m-%d at %H:%M", time.localtime(computed.ended)) if computed and computed.ended else ""
    where = f"call {origin['call']} of run {origin['run']}"
    if origin["run"] in (view.resumes, *view.replays.split()[:1]):
        return Explanation(reasons=(f"its value was taken over from {where}",))
    return Explanation(reasons=(f"its value was in the cache: {where} with the same key computed it{when}",))


def _decided(view: RunView, call: CallView) -> tuple[str, ...]:
    """What somebody decided, so that it would have run whatever is the same."""
    if call.cache == "disable":
        return (f'`{call.task}` is not cached: `cache="auto"` would be',)
    if call.cache == "override":
        return ("its cache is `override`, which takes no earlier value",)
    return ("the run was started with `--no-cache`",) if view.fresh else ()


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
