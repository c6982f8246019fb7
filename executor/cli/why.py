"""`run-local why` and `run-local diff`: why calls ran, and what is different between two runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from executor import machine
from executor.cli import print_json, print_table
from executor.data.records import CallView, RunView, read_run
from executor.errors import UsageError
from executor.reach import compare
from executor.why import Explanation, Past, compare_inputs, compare_packages, contents, explain


@click.command("why")
@click.argument("run", default="last")
@click.argument("call", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def why_command(run: str, call: str | None, as_json: bool) -> None:
    """Say why the calls of RUN, or one CALL of it (such as 1.2), ran or were taken from the cache.

    Of one that ran, that is what is different from the nearest earlier call of the same task: code, packages, inputs,
    variables. `last` is the newest run.
    """
    home = machine.home()
    view = read_run(home, run)
    if call is not None and call not in view.calls:
        raise UsageError(f"run {view.id} has no call `{call}`", why=f"its calls are {', '.join(view.calls)}")
    calls = [view.calls[call]] if call else list(view.calls.values())
    past = Past(home, view)
    found = [(each, explain(view, each, past)) for each in calls]
    if as_json:
        print_json({"run": view.id, "calls": [_document(each, told) for each, told in found]})
        return
    for each, told in found:
        verb = {"cached": "did not run", "waiting": "has not run"}.get(each.status, "ran")
        click.echo(click.style(f"{each.id} {each.task} {verb}", bold=True))
        for reason in told.reasons:
            click.echo(f"  {reason}")
        if told.nearest:
            click.echo(f"  (compared with call {told.nearest[1].id} of run {told.nearest[0].id})")


def _document(call: CallView, told: Explanation) -> dict[str, Any]:
    nearest = {"run": told.nearest[0].id, "call": told.nearest[1].id} if told.nearest else None
    facts = {"call": call.id, "task": call.task, "status": call.status, "key": call.call_key or None}
    return {**facts, "reasons": list(told.reasons), "nearest": nearest, "origin": call.origin}


@click.command("diff")
@click.argument("first")
@click.argument("second")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def diff_command(first: str, second: str, as_json: bool) -> None:
    """Say what is different between two runs: code, packages, and of each call inputs, outputs and times."""
    home = machine.home()
    before, after = read_run(home, first), read_run(home, second)
    code = compare(_code(before), _code(after))
    packages = [
        each
        for name in before.environments.keys() & after.environments.keys()
        for each in compare_packages(before.environments[name], after.environments[name])
    ]
    for view, other in ((before, after), (after, before)):
        packages += [
            f"environment `{name}` is in run {view.id} only"
            for name in view.environments
            if name not in other.environments
        ]
    calls = [_compare(before.calls.get(name), after.calls.get(name)) for name in {**before.calls, **after.calls}]
    if as_json:
        print_json({"runs": [before.id, after.id], "code": code, "packages": packages, "calls": calls})
        return
    for title, lines in (("code", code), ("packages", packages)):
        click.echo(click.style(f"{title}: ", bold=True) + ("" if lines else "the same"))
        for line in lines:
            click.echo(f"  {line}")
    rows = [
        [
            each["call"], each["task"], " → ".join(dict.fromkeys(map(str, each["status"]))), each["inputs"],
            each["outputs"], " → ".join("" if one is None else f"{one:.2f}" for one in each["seconds"]),
        ]
        for each in calls
    ]  # fmt: skip
    print_table(rows, "call", "task", "status", "inputs", "outputs", "seconds")
    for each in calls:
        for change in each["changed"]:
            click.echo(f"{each['call']} {each['task']}: {change}")


def _code(view: RunView) -> dict[str, str]:
    """All code that the calls of a run reach."""
    return {part: digest for parts in view.code.values() for part, digest in parts.items()}


def _compare(before: CallView | None, after: CallView | None) -> dict[str, Any]:
    """One call in two runs; the words for inputs and outputs are `same`, `different`, `-` where one has none."""
    one = after or before
    assert one is not None
    if before is None or after is None or before.task != after.task:
        status = [before and before.status, after and after.status]
        return {
            "call": one.id, "task": one.task, "status": status, "inputs": "-", "outputs": "-", "changed": [],
            "seconds": [before and before.seconds, after and after.seconds],
        }  # fmt: skip
    return {
        "call": one.id,
        "task": one.task,
        "status": [before.status, after.status],
        "inputs": _same(before.inputs, after.inputs),
        "changed": list(compare_inputs(before, after)),
        "outputs": _same(before.value, after.value),
        "seconds": [before.seconds, after.seconds],
    }


def _same(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    if before is None or after is None:
        return "-"
    return "same" if contents(before) == contents(after) else "different"
