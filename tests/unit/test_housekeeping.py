"""What housekeeping plans to remove: never what an environment that stays consists of."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.environments import usage
from executor.environments.housekeeping import Outcome, Policy, carry_out, clean, plan, shares
from executor.environments.inventory import Inventory, Item, look
from executor.environments.usage import Use
from executor.errors import MachineError

DAY = 86400.0
NOW = 1000 * DAY
MONTH = Policy(older_than_s=30 * DAY)
ALL = Policy(older_than_s=0, everything=True)
FOLDERS = ("tmp", "used", "prefixes", "packages/archives", "layers", "locks")


def item(kind: str, name: str, days: float | None = 0) -> Item:
    return Item(kind=kind, name=name, at=(f"{kind} {name}",), used=None if days is None else NOW - days * DAY)


def environment(name: str, days: float, archives: str = "", stays: str = "") -> Item:
    needs = frozenset([f"lock {name}", *(f"{kind} {each}" for kind in ("archive", "layer") for each in archives)])
    used = NOW - days * DAY
    return Item(kind="environment", name=name, at=(f"environment {name}",), used=used, needs=needs, stays=stays)


def inventory(*environments: Item, archives: str = "", size: int = 10, shared: int = 0) -> Inventory:
    """Each environment has `size` bytes, and everything else one; `shared` bytes are of all environments."""
    others = [
        item("base", "debian", days=None),
        item("cache", "uv", days=1),
        *(item(kind, name) for kind in ("archive", "layer") for name in archives),
        *(item("lock", each.name, days=90) for each in environments),
    ]
    bytes_of = {frozenset(each.at[:1]): size for each in environments} | {frozenset(each.at): 1 for each in others}
    bytes_of[frozenset(each.at[0] for each in environments)] = shared + (size if len(environments) == 1 else 0)
    return Inventory(items=[*environments, *others], bytes_of=bytes_of)


def names(inventory: Inventory, policy: Policy) -> set[tuple[str, str]]:
    return {(each.kind, each.name) for each, _ in plan(inventory, policy, NOW).gone}


def environments_in(found: set[tuple[str, str]]) -> set[str]:
    return {name for kind, name in found if kind == "environment"}


def test_what_was_not_used_for_long_goes_with_all_that_only_it_needs() -> None:
    """What another one shares with it stays."""
    there = inventory(environment("old", 31, "ab"), environment("new", 29, "bc"), archives="abcd")
    assert names(there, MONTH) == {
        ("environment", "old"),
        ("lock", "old"),
        *((kind, name) for kind in ("archive", "layer") for name in "ad"),
    }


def test_a_budget_takes_caches_and_then_the_longest_unused() -> None:
    """And no more than it has to; a base is the last to go."""
    there = inventory(environment("a", 3), environment("b", 2), environment("c", 1), size=50)
    assert there.without(()) == 150 + 1 + 1 + 3
    enough = Policy(older_than_s=30 * DAY, most_bytes=154)
    assert names(there, enough) == {("cache", "uv")}
    assert environments_in(names(there, Policy(older_than_s=30 * DAY, most_bytes=110))) == {"a"}
    assert ("base", "debian") not in names(there, Policy(older_than_s=30 * DAY, most_bytes=1))
    assert names(there, Policy(older_than_s=30 * DAY, most_bytes=0)) >= {
        ("base", "debian"),
        *(("environment", each) for each in "abc"),
    }


def test_a_budget_knows_what_is_shared_and_what_is_used() -> None:
    """Bytes that others have, too, are no gain; the next one goes in the place of one that may not."""
    there = inventory(environment("a", 3), environment("b", 2), environment("c", 1), shared=100)
    assert environments_in(names(there, Policy(older_than_s=30 * DAY, most_bytes=124))) == {"a"}
    assert environments_in(names(there, Policy(older_than_s=30 * DAY, most_bytes=100))) == {*"abc"}
    there = inventory(environment("a", 3, stays="a run uses it"), environment("b", 2), environment("c", 1))
    assert environments_in(names(there, Policy(older_than_s=30 * DAY, most_bytes=25))) == {"b"}


def test_all_is_all_but_what_is_used() -> None:
    """Caches and bases, too, which otherwise have no age; with what is used stays what it consists of."""
    there = inventory(environment("a", 0, "x"), archives="x")
    assert len(plan(there, ALL, NOW).gone) == len(there.items)
    assert names(there, MONTH) == set()
    there = inventory(environment("a", 0, "x", stays="a run uses it"), environment("b", 0, "xy"), archives="xy")
    found = plan(there, ALL, NOW)
    assert [(each.name, why) for each, why in found.kept] == [("a", "a run uses it")]
    gone = {(each.kind, each.name) for each, _ in found.gone}
    assert gone >= {("environment", "b"), ("archive", "y"), ("layer", "y"), ("lock", "b")}
    assert not gone & {("archive", "x"), ("layer", "x"), ("lock", "a")}


def test_of_an_environment_that_nobody_knows_anything_could_be() -> None:
    """Its note was damaged, or never written; it ages all the same."""
    unknown = Item(kind="environment", name="?", at=("prefix",), used=NOW - 3 * DAY, needs=None)
    there = Inventory(items=[unknown, item("archive", "a"), item("layer", "a"), item("lock", "a", 90)])
    assert names(there, MONTH) == set()
    assert len(names(there, Policy(older_than_s=2 * DAY))) == 4


@given(
    st.lists(st.tuples(st.integers(0, 60), st.text("abcdef", max_size=4), st.sampled_from(["", "used"])), max_size=8),
    st.integers(0, 60),
    st.one_of(st.none(), st.integers(0, 300)),
)
def test_nothing_goes_that_an_environment_which_stays_consists_of(
    made: list[tuple[int, str, str]], days: int, most: int | None
) -> None:
    """Whatever there is, and whatever is asked; and nothing is planned twice."""
    environments = [environment(str(number), *each) for number, each in enumerate(made)]
    there = inventory(*environments, archives="abcdef", size=50)
    planned = plan(there, Policy(older_than_s=days * DAY, most_bytes=most), NOW).gone
    going = {each.at[0] for each, _ in planned}
    assert len(going) == len(planned)
    for each in environments:
        assert not (each.stays and each.at[0] in going)
        assert each.at[0] in going or not going & (each.needs or set())


# -- in a home ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A home with nothing in it."""
    for name in FOLDERS:
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def make(home: Path, key: str, *archives: str, parts: tuple[str, ...] = (), name: str = "") -> Path:
    """A prefix (or with `parts` what is known of an image) that was used now, with its archives and layers; the prefix."""
    with usage.hold(home, key):
        use = Use(key=key, names=(name or f"env-{key}",), locks=("/none",), archives=archives, parts=parts)
        usage.note(home, use)
    for each in archives:
        (home / "packages/archives" / each).mkdir(exist_ok=True)
        (home / "packages/archives" / each / f"{each}.whl").write_bytes(bytes(1000))
    for each in parts:
        (home / f"layers/{each}.tar.zst").write_bytes(bytes(1000))
    if not parts:
        (home / "prefixes" / key).mkdir()
        (home / "prefixes" / key / "file").write_bytes(bytes(100))
        (home / "prefixes" / f"{key}.files").write_text("{}")
    return home / "prefixes" / key


def left_in(home: Path) -> set[str]:
    folders = ("prefixes", "packages/archives", "layers", "channel", "tmp")
    return {path.name for name in folders for path in (home / name).glob("*") if not path.name.endswith(".files")}


def told(found: Outcome) -> dict[str, set[str]]:
    return {"gone": {each.name for each, _ in found.gone}, "kept": {why for _, why in found.kept}}


def test_without_an_engine_what_images_consist_of_stays(place: Path) -> None:
    """They cannot be looked at, and may well be there; what is old is said to stay."""
    make(place, "k", "aa", parts=("pp",))
    assert told(clean(place, None, MONTH, dry_run=False)) == {"gone": set(), "kept": set()}
    assert told(clean(place, None, ALL, dry_run=False)) == {"gone": set(), "kept": {"no Docker engine answers"}}
    assert left_in(place) == {"aa", "pp.tar.zst"}
    assert usage.noted(place).keys() == {"k"}


def test_what_an_environment_in_use_consists_of_stays(place: Path) -> None:
    """Also when all is to go; a dry run says the same as what is done then."""
    make(place, "one", "aa", "bb")
    make(place, "two", "bb", "cc")
    with usage.hold(place, "one"):
        planned = clean(place, None, ALL, dry_run=True)
        done = clean(place, None, ALL, dry_run=False)
    assert done == planned
    assert told(done) == {"gone": {"env-two two", "cc.whl"}, "kept": {"a run uses it"}}
    assert left_in(place) == {"one", "aa", "bb"}
    assert done.freed == 1102


def test_what_somebody_took_after_the_plan_stays_with_its_archives(place: Path) -> None:
    """Between looking and removing there is time enough for a run to begin."""
    make(place, "k", "aa")
    planned = plan(look(place, None, alone=True), ALL, time.time())
    with usage.hold(place, "k"):
        done = carry_out(planned, place, None)
    assert told(done) == {"gone": set(), "kept": {"a run uses it", "an environment that stays needs it"}}
    assert left_in(place) == {"k", "aa"}


def test_while_somebody_makes_something_only_environments_go(place: Path) -> None:
    """What is shared may be part of what is made just now."""
    make(place, "k", "aa")
    with usage.hold(place, usage.MAKING):
        done = clean(place, None, ALL, dry_run=False)
    assert told(done)["gone"] == {"env-k k"}
    assert told(done)["kept"] == {"somebody makes an environment or cleans up just now"}
    assert left_in(place) == {"aa"}


def test_what_was_left_half_made_goes(place: Path) -> None:
    """A download, a layer, a folder of somebody who was killed, in whichever moment; what is at work stays."""
    make(place, "k", "aa", parts=("pp",))
    half = [place / "packages/archives/aa/half-1", place / "layers/half-2", place / "used/half-3"]
    for path in half:
        path.write_bytes(bytes(10))
    killed, old, new = (place / f"tmp/scratch-{name}" for name in ("killed", "old", "new"))
    for folder in (killed, old, new):
        folder.mkdir()
    (killed / "lease").touch()
    os.utime(old, (0, 0))
    done = clean(place, None, MONTH, dry_run=False)
    assert told(done)["gone"] == {"half-1", "half-2", "half-3", "scratch-killed", "scratch-old"}
    assert done.freed == 30
    assert not [path for path in half if path.exists()]
    assert left_in(place) == {"aa", "pp.tar.zst", "scratch-new"}


def test_a_file_with_two_names_is_counted_once(place: Path) -> None:
    """Prefixes are made of hard links to the caches: only when the last name goes is there more room."""
    prefix = make(place, "k")
    cache = place / "packages/uv"
    cache.mkdir()
    (cache / "wheel").write_bytes(bytes(1000))
    os.link(cache / "wheel", prefix / "wheel")
    there = look(place, None, alone=True)
    assert there.without(()) == 1102
    assert {each.kind: each.size for each in there.items} == {"environment": 602, "cache": 500}
    assert clean(place, None, Policy(older_than_s=30 * DAY, most_bytes=1102), dry_run=True).freed == 0
    done = clean(place, None, Policy(older_than_s=30 * DAY, most_bytes=1101), dry_run=False)
    assert [each.kind for each, _ in done.gone] == ["environment", "cache"]
    assert done.freed == 1102


def test_a_cache_that_something_was_put_into_is_not_old(place: Path) -> None:
    """Deep in it, too."""
    for name in ("uv", "conda"):
        (place / f"packages/{name}/deep/deeper").mkdir(parents=True)
    for path in (place / "packages").rglob("*"):
        os.utime(path, (0, 0))
    (place / "packages/uv/deep/deeper/new").touch()
    assert told(clean(place, None, MONTH, dry_run=True))["gone"] == {"conda"}


def test_a_channel_that_a_committed_lock_names_stays(place: Path) -> None:
    """Its packages are nowhere else; a lock of our own is made again with it."""
    for name in ("one", "two", "three"):
        (place / f"channel/{name}/noarch").mkdir(parents=True)
    committed = place / "project/conda-lock.yml"
    own = place / "locks/abc/conda-lock.yml"
    for path, channel in ((committed, "one"), (own, "two")):
        path.parent.mkdir()
        path.write_text(f"- url: file://{place}/channel/{channel}/noarch/x.conda\n")
    (place / "locks/last").mkdir()
    for number, path in enumerate((committed, own, place / "gone/conda-lock.yml")):
        (place / f"locks/last/{number}").write_text(str(path))
    done = clean(place, None, ALL, dry_run=False)
    assert told(done) == {"gone": {"two", "three", "abc"}, "kept": {f"`{committed}` names its packages"}}
    assert left_in(place) == {"one"}


def test_what_is_damaged_is_no_obstacle(place: Path) -> None:
    """Facts of a layer that say nothing, a file in the place of an archive, a note that is none."""
    (place / "layers/pp.tar.zst").touch()
    (place / "layers/pp.json").write_text("{}")
    (place / "packages/archives/stray").touch()
    assert told(clean(place, None, MONTH, dry_run=False))["gone"] == {"pp.json", "stray"}
    make(place, "k", "aa")
    (place / "used/k.json").write_text("{}")
    assert told(clean(place, None, MONTH, dry_run=False))["gone"] == set()
    assert told(clean(place, None, ALL, dry_run=False))["gone"] == {"? k", "aa.whl"}


def test_a_prefix_without_a_note_ages(place: Path) -> None:
    """By its own last change, where nobody knows when it was used."""
    shutil.rmtree(make(place, "k", "aa"))
    for name in ("k", "k.json"):
        (place / "used" / name).unlink()
    (place / "prefixes/k").mkdir()
    assert told(clean(place, None, MONTH, dry_run=True))["gone"] == set()
    os.utime(place / "prefixes/k", (0, 0))
    assert told(clean(place, None, MONTH, dry_run=True))["gone"] == {"? k", "aa.whl"}


def test_what_went_another_way_is_forgotten(place: Path) -> None:
    """So that nobody counts what it would share; an image may be in another engine, and is not."""
    shutil.rmtree(make(place, "folder", "aa"))
    make(place, "image", "aa", parts=("pp",))
    clean(place, None, MONTH, dry_run=True)
    assert usage.noted(place).keys() == {"folder", "image"}
    clean(place, None, MONTH, dry_run=False)
    assert usage.noted(place).keys() == {"image"}


def as_nobody(home: Path, reply: str) -> None:
    """Clean as a user who may not do everything, and write down what was told."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    try:
        document = {name: sorted(each) for name, each in told(clean(home, None, ALL, dry_run=False)).items()}
    except MachineError as exc:
        document = {"what": [exc.what]}
    Path(reply).write_text(json.dumps(document))


@pytest.fixture
def ordinary() -> Iterator[Path]:
    """A home of a user who is not root."""
    home = Path(tempfile.mkdtemp(prefix="rl-"))
    for name in FOLDERS:
        (home / name).mkdir(parents=True)
    yield home
    for folder, _, _ in os.walk(home):
        Path(folder).chmod(0o700)
    shutil.rmtree(home)


def clean_as_nobody(home: Path) -> dict[str, list[str]]:
    if os.getuid() == 0:
        for path in (home, *home.rglob("*")):
            os.chown(path, 65534, 65534)
    child = multiprocessing.get_context("fork").Process(target=as_nobody, args=(home, f"{home}/tmp/reply"))
    child.start()
    child.join(30)
    found: dict[str, list[str]] = json.loads((home / "tmp/reply").read_text())
    return found


def test_folders_without_permissions_go_all_the_same(ordinary: Path) -> None:
    """Packages may have read-only folders; and what follows is not told to stay for that."""
    prefix = make(ordinary, "one", "aa")
    for name, mode in (("closed", 0o000), ("read-only", 0o500)):
        (prefix / name).mkdir()
        (prefix / name / "file").touch()
        (prefix / name).chmod(mode)
    make(ordinary, "two")
    assert clean_as_nobody(ordinary) == {"gone": ["aa.whl", "env-one one", "env-two two"], "kept": []}
    assert left_in(ordinary) == {"reply"}


def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(ordinary: Path) -> None:
    """What the prefixes in it consist of would go otherwise."""
    make(ordinary, "one", "aa")
    (ordinary / "prefixes").chmod(0)
    assert clean_as_nobody(ordinary) == {"what": [f"`{ordinary}/prefixes` cannot be looked at"]}
    assert (ordinary / "packages/archives/aa/aa.whl").exists()


# -- who uses what -----------------------------------------------------------------------------------------------------


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


def test_who_waits_for_what_is_forgotten_meanwhile_holds_it_then(place: Path) -> None:
    """Not a file that is there no more, which nobody else would find locked."""
    waits, begun, done = threading.Event(), threading.Event(), threading.Event()

    def use() -> None:
        waits.set()
        with usage.hold(place, "k"):
            begun.set()
            assert done.wait(30)

    with usage.take(place, "k") as alone:
        assert alone
        user = threading.Thread(target=use)
        user.start()
        assert waits.wait(30)
        while f"-> FLOCK ADVISORY READ {os.getpid()}" not in " ".join(Path("/proc/locks").read_text().split()):
            assert user.is_alive()
        usage.forget(place, "k")
    assert begun.wait(30)
    with usage.take(place, "k") as alone:
        assert not alone
    done.set()
    user.join()
    assert usage.last_used(place, "k")


def test_the_last_use_is_the_end_of_a_run(place: Path) -> None:
    """One that takes a month is not old when it is over."""
    with usage.hold(place, "k"):
        os.utime(place / "used/k", (0, 0))
    assert time.time() - (usage.last_used(place, "k") or 0) < 60


def test_an_error_of_whoever_holds_something_is_not_swallowed(place: Path) -> None:
    """Whatever it is."""
    for error in (FileNotFoundError, BlockingIOError):
        for hold in (usage.hold, usage.take):
            with pytest.raises(error), hold(place, "k"):
                raise error


def test_every_home_of_this_machine_is_heard(tmp_path: Path) -> None:
    """As long as somebody uses it, and of one key only."""
    with contextlib.ExitStack() as held:
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            held.enter_context(usage.hold(tmp_path / name, "test-shown"))
        assert usage.is_shown("test-shown")
        assert not usage.is_shown("test-show")
    assert not usage.is_shown("test-shown")


def test_what_is_noted_can_be_read(tmp_path: Path) -> None:
    """Of a damaged note only that it is there, and forgotten is forgotten."""
    use = Use(key="k", names=("x",), locks=("/l",), archives=("a", "b"), parts=())
    with usage.hold(tmp_path, "k"):
        usage.note(tmp_path, use)
    (tmp_path / "used/bad.json").write_text("{}")
    assert usage.noted(tmp_path) == {"k": use, "bad": None}
    assert usage.last_used(tmp_path, "k")
    usage.forget(tmp_path, "k")
    usage.forget(tmp_path, "bad")
    assert usage.noted(tmp_path) == {}
    assert usage.last_used(tmp_path, "k") is None


def test_every_name_of_a_key_is_remembered(place: Path) -> None:
    """Also where they are noted at once; each has all in common with the other, and with nobody else nothing."""
    uses = [
        Use(key="k", names=(f"env-{number}",), locks=(f"/{number}",), archives=("aa",), parts=()) for number in range(8)
    ]
    make(place, "single", "bb", name="env-single")
    make(place, "earlier", "bb", name="env-single")
    make(place, "k", "aa", name="env-0")
    threads = [threading.Thread(target=usage.note, args=(place, use)) for use in uses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = usage.noted(place)["k"]
    assert known is not None
    assert {*known.names} == {f"env-{number}" for number in range(8)}
    assert {*known.locks} == {"/none", *(f"/{number}" for number in range(8))}
    found = shares(place)
    assert {found[f"env-{number}", "k"] for number in range(8)} == {(1000, 1000)}
    assert found["env-single", "single"] == (1000, 0)
