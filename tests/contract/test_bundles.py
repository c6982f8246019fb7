"""A run as one file, made again where nothing of it is: no network, no home, no lock."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import lacking
from tests.harness import WITHOUT_NETWORK, Finished, MakeProject, RunLocal

FLOW = """
    import json
    import pathlib
    import random
    import uuid

    import numpy as np
    from executor import CondaSpec, File, TaskEnvironment

    rich = TaskEnvironment("rich")
    plain = TaskEnvironment("plain", image=CondaSpec(dependencies=["python >=3.10"]))
    root = TaskEnvironment("root", depends_on=[rich, plain])


    @rich.task
    def array(n: int) -> np.ndarray:
        return np.linspace(0, 1, n)


    @plain.task
    def written(text: str, table: File) -> File:
        path = pathlib.Path("written.txt")
        path.write_text(text + table.path.read_text())
        return File(path)


    @rich.task
    def noise(wild: bool) -> dict[str, np.ndarray]:
        return {"noise": np.arange(3000.0) + (uuid.uuid4().int % 1000 + 1 if wild else 0)}


    @root.task
    def flow(table: File, wild: bool = False) -> dict[str, object]:
        array(5000)
        noise(wild)
        return {"file": written("text ", table), "names": {"a", "b", "c"}}
"""
ENVIRONMENTS = {"rich": ["python >=3.10", "numpy >=1.26"], "root": ["python >=3.10"]}


class Machine:
    """Another machine: an empty home, no project, and no network where the kernel lets us take it away."""

    def __init__(self, run_local: RunLocal, folder: Path) -> None:
        self.home, self._run_local, self._folder = folder / "home", run_local, folder
        self.home.mkdir(parents=True)

    def reproduce(self, bundle: Path, *options: str, wrapped: tuple[str, ...] = ()) -> Finished:
        env = {"RUN_LOCAL_HOME": str(self.home)}
        return self._run_local("reproduce", bundle, "--json", *options, cwd=self._folder, env=env, wrapped=wrapped)


def run(run_local: RunLocal, root: Path, runtime: str, *options: str) -> dict[str, Any]:
    (root / "table.csv").write_text("a,b\n1,2\n")
    done = run_local("flow", "--table", "table.csv", "--runtime", runtime, "--json", *options, cwd=root)
    assert done.code == 0, done.stderr
    return done.document


def verdicts(done: Finished) -> dict[str, str]:
    return {each["task"]: each["verdict"] for each in done.document["calls"]}


def test_a_run_is_made_again_without_anything_else(
    run_local: RunLocal, project: MakeProject, runtime: str, tmp_path: Path
) -> None:
    """Every value equal, by digest; the project may have gone, and there is no network."""
    if not WITHOUT_NETWORK:
        lacking("network namespaces", "`unshare -n` is refused")
    root = project({"flow.py": FLOW}, ENVIRONMENTS)
    first = run(run_local, root, runtime)
    told = run_local("bundle", first["run"], "-o", tmp_path / "it.rlb", "--json", cwd=root).document
    root.rename(tmp_path / "elsewhere")
    other = Machine(run_local, tmp_path / "other")
    done = other.reproduce(tmp_path / "it.rlb", wrapped=tuple(WITHOUT_NETWORK))
    assert done.code == 0, done.stderr
    document = done.document
    assert (document["reproduces"], document["bundle"], document["equal"]) == (first["run"], told["digest"], True)
    assert verdicts(done) == dict.fromkeys(["root.flow", "rich.array", "rich.noise", "plain.written"], "equal")
    [record] = other.home.glob("runs/*/journal.jsonl")
    keys = [{each["environment"]: each["key"] for each in ready(path)} for path in (record, journal(run_local, first))]
    assert keys[0] == keys[1]


def test_what_is_not_the_same_is_told(run_local: RunLocal, project: MakeProject, tmp_path: Path) -> None:
    """By how far it is apart; what does not depend on it is equal. The exit code says it."""
    root = project({"flow.py": FLOW}, ENVIRONMENTS)
    first = run(run_local, root, "process", "--wild")
    shutil.rmtree(run_local.home / "packages" / "archives")  # what is not here any more is fetched
    run_local("bundle", first["run"], "-o", tmp_path / "it.rlb", cwd=root)
    done = Machine(replace(run_local), tmp_path / "other").reproduce(tmp_path / "it.rlb")
    assert done.code == 1, done.stderr
    assert verdicts(done)["rich.noise"] == "different"
    assert verdicts(done)["rich.array"] == "equal"
    [why] = next(each["why"] for each in done.document["calls"] if each["task"] == "rich.noise")
    assert why.startswith("the value['noise']: 3000 of 3000 elements of float64[3000] differ, by at most ")


def test_what_cannot_be_bundled_or_taken_says_why(run_local: RunLocal, project: MakeProject, tmp_path: Path) -> None:
    """A package that is gone, images of what had none, a bundle that was damaged: nothing is begun with those."""
    root = project({"flow.py": FLOW}, ENVIRONMENTS)
    first = run(run_local, root, "process")
    assert "it ran as processes" in run_local("bundle", first["run"], "--images", cwd=root).stderr
    assert run_local("bundle", first["run"], "-o", tmp_path / "it.rlb", cwd=root).code == 0
    content = bytearray((tmp_path / "it.rlb").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "bad.rlb").write_bytes(content)
    other = Machine(run_local, tmp_path / "other")
    done = other.reproduce(tmp_path / "bad.rlb")
    assert done.code == 2
    assert "it was damaged" in done.stderr
    assert not (other.home / "runs").exists()
    assert not list((other.home / "tmp").iterdir())


@pytest.fixture
def data() -> Iterator[Path]:
    """Data of this machine, outside of /tmp, which is a task's own."""
    folder = Path(tempfile.mkdtemp(prefix="rl-bundles-", dir="/var/tmp"))
    folder.chmod(0o755)
    (folder / "table").write_text("mine")
    yield folder
    shutil.rmtree(folder)


def test_a_bundle_gets_nothing_of_yours_unasked(
    run_local: RunLocal, project: MakeProject, data: Path, tmp_path: Path
) -> None:
    """What it wants is listed, and nothing runs; `--trust` gives it that."""
    flow = f"""
        import os
        import pathlib

        from executor import Mount, TaskEnvironment

        leaf = TaskEnvironment("leaf", mounts=[Mount("{data}")], secrets=["bundle-token"])


        @leaf.task
        def look() -> str:
            return pathlib.Path("{data}/table").read_text() + os.environ["BUNDLE_TOKEN"]
    """
    root = project({"flow.py": flow}, {"leaf": ["python"]})
    secret = {"BUNDLE_TOKEN": "s3cr3t-of-mine"}
    first = run_local("look", "--runtime", "process", "--json", cwd=root, env=secret)
    assert first.code == 0, first.stderr
    run_local("bundle", first.document["run"], "-o", tmp_path / "it.rlb", cwd=root)
    env = {"RUN_LOCAL_HOME": str(tmp_path / "home"), **secret}
    done = run_local("reproduce", tmp_path / "it.rlb", cwd=tmp_path, env=env)
    assert done.code == 2
    assert f"`leaf` is shown `{data}` of this machine" in done.stderr
    assert "`leaf` is told your secret `bundle-token`" in done.stderr
    assert not (tmp_path / "home" / "runs").exists()
    assert run_local("reproduce", tmp_path / "it.rlb", "--trust", cwd=tmp_path, env=env).code == 0


@pytest.mark.parametrize("runtime", ["docker"], indirect=True)
def test_images_can_be_brought_instead_of_packages(
    run_local: RunLocal, project: MakeProject, runtime: str, tmp_path: Path
) -> None:
    """Then nothing is installed anew."""
    root = project({"flow.py": FLOW}, ENVIRONMENTS)
    first = run(run_local, root, runtime)
    assert run_local("bundle", first["run"], "--images", "-o", tmp_path / "it.rlb", cwd=root).code == 0
    other = Machine(run_local, tmp_path / "other")
    done = other.reproduce(tmp_path / "it.rlb")
    assert done.code == 0, done.stderr
    assert not (other.home / "packages" / "archives").exists()


def journal(run_local: RunLocal, document: dict[str, Any]) -> Path:
    return run_local.home / "runs" / str(document["run"]) / "journal.jsonl"


def ready(record: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    return [line for line in lines if line["fact"] == "EnvironmentReady"]
