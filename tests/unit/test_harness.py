"""The check that nothing is left behind can fail: it finds a process, a file and what they came after."""

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness import SESSION_VARIABLE, Leftovers, MakeProject


@pytest.fixture
def watch(tmp_path: Path) -> Leftovers:
    """A watch over a home and a scratch folder of its own."""
    for name in ("home", "scratch"):
        (tmp_path / name).mkdir()
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    return Leftovers(home=home, session=uuid.uuid4().hex, scratch=scratch, engine=None, grace_s=0)


@pytest.fixture
def orphan(watch: Leftovers) -> Iterator[int]:
    """The pid of a process that somebody with the session's mark left behind."""
    script = "sleep 60 >/dev/null 2>&1 & echo $!"
    env = {**os.environ, SESSION_VARIABLE: watch.session}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True)
    yield int(done.stdout)
    try:
        os.kill(int(done.stdout), signal.SIGKILL)
    except ProcessLookupError:
        return


def test_nothing_is_left_where_nothing_was_done(watch: Leftovers) -> None:
    """No process of this machine is taken for one of a session that did nothing."""
    assert watch.find() == set()


def test_an_orphan_is_found_named_and_removed(watch: Leftovers, orphan: int) -> None:
    """Whoever its parent is now, its environment tells whose it was."""
    left = watch.since(set())
    assert [line.split()[:2] for line in left] == [["process", str(orphan)]]
    watch.remove(left)
    assert replace(watch, grace_s=10).since(set()) == []


def test_a_file_is_found_and_what_was_there_before_is_not(watch: Leftovers) -> None:
    """A socket, a lock or a half-written file in TMPDIR is a leftover like a process."""
    (watch.scratch / "old").touch()
    before = watch.find()
    (watch.scratch / "new").mkdir()
    left = watch.since(before)
    assert left == [f"file {watch.scratch}/new"]
    watch.remove(left)
    assert watch.find() == before


def test_a_project_is_written_as_a_user_would(project: MakeProject) -> None:
    """Source dedented, one environment.yml for each environment."""
    root = project({"flow.py": "    x = 1\n"}, {"a": ["python", "numpy >=2"], "b": "dependencies: [python]\n"})
    assert (root / "flow.py").read_text() == "x = 1\n"
    assert (root / "envs/a/environment.yml").read_text() == (
        "channels: [conda-forge]\ndependencies:\n  - python\n  - numpy >=2\n"
    )
    assert (root / "envs/b/environment.yml").read_text() == "dependencies: [python]\n"
