"""What housekeeping plans to remove: never what an environment that stays consists of."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from executor.environments import usage
from executor.environments.housekeeping import Environment, Inventory, Item, Policy, plan
from executor.environments.usage import Use

DAY = 86400.0
NOW = 1000 * DAY
MONTH = Policy(older_than_s=30 * DAY)


def item(kind: str, name: str, size: int = 1, days: float | None = 0) -> Item:
    return Item(kind=kind, name=name, at=(name,), size=size, used=None if days is None else NOW - days * DAY)


def environment(name: str, days: float, archives: str = "", size: int = 10) -> Environment:
    use = Use(name=name, key=name, lock=f"/{name}", archives=tuple(archives), parts=tuple(archives))
    used = NOW - days * DAY
    return Environment(kind="environment", name=name, at=(name,), size=size, used=used, use=use)


def inventory(*environments: Environment, archives: str = "") -> Inventory:
    return Inventory(
        environments=environments,
        archives={name: item("archive", name) for name in archives},
        layers={name: item("layer", name) for name in archives},
        locks={f"/{each.name}": item("lock", f"/{each.name}", days=90) for each in environments},
        caches=[item("cache", "uv", days=1)],
        bases=[item("base", "debian", days=None)],
    )


def names(inventory: Inventory, policy: Policy) -> set[tuple[str, str]]:
    return {(each.kind, each.name) for each, _ in plan(inventory, policy, NOW)}


def test_what_was_not_used_for_long_goes_with_all_that_only_it_needs() -> None:
    """What another one shares with it stays."""
    there = inventory(environment("old", 31, "ab"), environment("new", 29, "bc"), archives="abcd")
    assert names(there, MONTH) == {
        ("environment", "old"),
        ("lock", "/old"),
        *((kind, name) for kind in ("archive", "layer") for name in "ad"),
    }


def test_a_budget_takes_the_longest_unused_first() -> None:
    """And no more than it has to."""
    there = inventory(environment("a", 3, "x", 50), environment("b", 2, "y", 50), environment("c", 1, "z", 50))
    assert there.size == 150 + 3 + 1 + 1
    budget = Policy(older_than_s=30 * DAY, most_bytes=110)
    assert {each for each in names(there, budget) if each[0] == "environment"} == {("environment", "a")}
    nothing = Policy(older_than_s=30 * DAY, most_bytes=0)
    assert {each for each in names(there, nothing) if each[0] == "environment"} == {
        ("environment", each) for each in "abc"
    }


def test_all_is_all() -> None:
    """Caches and bases, too, which otherwise have no age."""
    there = inventory(environment("a", 0, "x"), archives="x")
    assert len(plan(there, Policy(older_than_s=0, everything=True), NOW)) == 6
    assert names(there, MONTH) == set()


@given(
    st.lists(st.tuples(st.integers(0, 60), st.text("abcdef", max_size=4), st.integers(0, 50)), max_size=8),
    st.integers(0, 60),
    st.one_of(st.none(), st.integers(0, 300)),
)
def test_nothing_goes_that_an_environment_which_stays_consists_of(
    made: list[tuple[int, str, int]], days: int, most: int | None
) -> None:
    """Whatever there is, and whatever is asked; and nothing is planned twice."""
    environments = [environment(str(number), *each) for number, each in enumerate(made)]
    there = inventory(*environments, archives="abcdef")
    planned = [each for each, _ in plan(there, Policy(older_than_s=days * DAY, most_bytes=most), NOW)]
    assert len({(each.kind, each.name) for each in planned}) == len(planned)
    going = {each.name for each in planned if each.kind == "environment"}
    removed = {kind: {each.name for each in planned if each.kind == kind} for kind in ("archive", "layer", "lock")}
    for each in environments:
        if each.name not in going:
            assert each.use is not None
            assert not removed["archive"] & set(each.use.archives)
            assert not removed["layer"] & set(each.use.parts)
            assert each.use.lock not in removed["lock"]


def _hold(home: Path, ready: str, done: str) -> None:
    with usage.hold(home, "k"):
        (home / ready).touch()
        while not (home / done).exists():
            pass


def test_what_somebody_uses_cannot_be_taken(tmp_path: Path) -> None:
    """By two at once, even; and it can when both are gone."""
    with usage.hold(tmp_path, "k"), usage.hold(tmp_path, "k"), usage.take(tmp_path, "k") as alone:
        assert not alone
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path, "ready", "done"))
    holder.start()
    while not (tmp_path / "ready").exists():
        assert holder.is_alive()
    with usage.take(tmp_path, "k") as alone:
        assert not alone
    holder.kill()
    holder.join()
    with usage.take(tmp_path, "k") as alone:
        assert alone


def test_what_is_noted_can_be_read(tmp_path: Path) -> None:
    """What is damaged is left out, and forgotten is forgotten."""
    use = Use(name="x", key="k", lock="/l", archives=("a", "b"), parts=())
    with usage.hold(tmp_path, "k"):
        usage.note(tmp_path, use)
    (tmp_path / "used/bad.json").write_text("{}")
    assert usage.noted(tmp_path) == {"k": use}
    assert usage.last_used(tmp_path, "k")
    usage.forget(tmp_path, "k")
    assert usage.noted(tmp_path) == {}
    assert usage.last_used(tmp_path, "k") is None
