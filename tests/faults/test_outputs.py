"""What a task may return as its files: each is taken for what it is or refused by name, and the host reads nothing else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from executor.data.store import Store, ValueRefused
from executor.worker import folders
from tests.faults.conftest import PYTHON
from tests.harness import MakeProject, RunLocal

FLOW = """
    import os
    import pathlib
    import pickle
    import shutil
    import socket
    import sys

    from executor import Dir, Resources, TaskEnvironment, TaskError

    leaf_env = TaskEnvironment("leaf", resources=Resources(cpu=0.5, memory="256Mi"))
    root_env = TaskEnvironment("root", "envs/leaf/environment.yml", depends_on=[leaf_env], resources=Resources(cpu=0.5))


    def plain(name: str) -> pathlib.Path:
        made = pathlib.Path(name)
        made.write_text("mine")
        return made


    def link_to_secret() -> pathlib.Path:
        made = pathlib.Path("link")
        made.symlink_to("/etc/hostname")
        return made


    def hard_link() -> pathlib.Path:
        made = pathlib.Path("again")
        os.link(plain("first"), made)
        return made


    def pipe() -> pathlib.Path:
        os.mkfifo("pipe")
        return pathlib.Path("pipe").absolute()


    def bound_socket() -> pathlib.Path:
        made = socket.socket(socket.AF_UNIX)
        made.bind("socket")
        return pathlib.Path("socket").absolute()


    def device() -> pathlib.Path:
        return pathlib.Path("/dev/zero")


    def upwards() -> pathlib.Path:
        plain("below")
        return pathlib.Path("..", pathlib.Path.cwd().name, "below")


    def absolute() -> pathlib.Path:
        return plain("absolute").absolute()


    def new_line() -> pathlib.Path:
        return plain("two\\nlines\\x1b[2J")


    def no_text() -> pathlib.Path:
        return plain(os.fsdecode(b"\\xff\\xfe"))


    def long_name() -> pathlib.Path:
        return plain("n" * 255)


    def sparse() -> pathlib.Path:
        made = pathlib.Path("sparse")
        with made.open("wb") as file:
            file.truncate(2**40)
        return made


    def deep() -> pathlib.Path:
        top = os.getcwd()
        for _ in range(1500):
            os.mkdir("deep")
            os.chdir("deep")
        plain("bottom")
        os.chdir(top)
        return pathlib.Path("deep").absolute()


    def folder_of_everything() -> pathlib.Path:
        top = pathlib.Path("all")
        top.mkdir()
        plain("all/file")
        os.mkfifo("all/pipe")
        return top


    def left_behind() -> pathlib.Path:
        deep()
        plain("deep/other")
        os.chmod("deep", 0)
        return pathlib.Path("nothing")


    MADE = [link_to_secret, hard_link, pipe, bound_socket, device, upwards, absolute, new_line, no_text, long_name, sparse,
            deep, folder_of_everything, left_behind]


    @leaf_env.task
    def make(name: str) -> object:
        return {each.__name__: each for each in MADE}[name.split()[0]]()


    @root_env.task
    def try_all(names: list[str]) -> dict:
        '''Name → a failure as [code, message, why], or what the parent got.'''
        told = {}
        for name in names:
            try:
                got = make(name)
            except TaskError as error:
                told[name] = [error.facts["code"], error.facts["message"][:300], error.facts["why"][:300]]
            else:
                told[name] = "file" if got.is_file() else "folder" if got.is_dir() else f"path {str(got)!r}"
                if got.is_file() and got.stat().st_size < 1000:
                    told[name] += f" {got.name!r} {got.read_text()}"
        return told


    @root_env.task
    def hand_over(name: str) -> object:
        return make(name)
"""

#: Name → what the parent got, or words of the refusal.
MADE = {
    "link_to_secret": "path 'link'",
    "hard_link": "file 'again' mine",
    "pipe": "path",
    "bound_socket": "path",
    "device": "path '/dev/zero'",
    "upwards": "file 'below' mine",
    "absolute": "file 'absolute' mine",
    "new_line": "file 'two\\nlines\\x1b[2J' mine",
    "no_text": "file '\\udcff\\udcfe' mine",
    "long_name": "file 'file' mine",
    "sparse": "do not fit on the disk",
    "deep": "deep",
    "folder_of_everything": "`pipe` in it is no file, folder or link",
    "left_behind": "path 'nothing'",
    "hard_link again": "file 'again' mine",
}


def test_what_is_no_plain_file(run_local: RunLocal, project: MakeProject, runtime: str) -> None:
    """A link, pipe, socket or device stays a path, a name stays a name, and what cannot travel says why; nothing hangs."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON})
    names = json.dumps(list(MADE))
    done = run_local("try_all", "--names", names, "--json", "--runtime", runtime, cwd=root, timeout_s=120)
    assert done.code == 0, done.stderr
    told = done.document["result"]
    assert list(told) == list(MADE)
    assert {name: told[name] for name, expected in MADE.items() if expected not in str(told[name])} == {}


@pytest.mark.parametrize("name", ["new_line", "no_text", "hard_link"])
def test_a_file_of_the_result_has_its_own_name(run_local: RunLocal, project: MakeProject, name: str) -> None:
    """In the outputs, too; and what a terminal shows of it moves no cursor."""
    root = project({"flow.py": FLOW}, {"leaf": PYTHON})
    done = run_local("hand_over", "--name", name, "--runtime", "process", cwd=root, timeout_s=120)
    assert done.code == 0, done.stderr
    document = run_local("show", "last", "--json", cwd=root).document
    files = list((run_local.home / "runs" / document["run"] / "outputs").iterdir())
    assert [file.read_text() for file in files] == ["mine"]
    assert repr(files[0].name) in MADE[name].replace("\\\\", "\\")


def test_a_sparse_file_is_refused_by_the_host_too(tmp_path: Path) -> None:
    """Whatever a task's own library lets through: what does not fit on the disk is not read to its end."""
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    with (outputs / "v1").open("wb") as file:
        file.truncate(2**50 if shutil.disk_usage(tmp_path).free > 2**40 else 2**40)
    store = Store(tmp_path, tmp_path / "incoming")
    with pytest.raises(ValueRefused, match="larger than the disk"):
        store.receive({"size": 1, "at": "v1", "files": []}, b"", [], outputs, {})
    assert list((tmp_path / "incoming").iterdir()) == []


@pytest.mark.parametrize("locked", [False, True])
def test_a_folder_of_any_depth_goes(tmp_path: Path, locked: bool) -> None:
    """Deeper than a path can say or recursion can follow; what a link in it leads to stays."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    top = tmp_path / "top"
    top.mkdir()
    (top / "link").symlink_to(kept)
    folder = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("directory", dir_fd=folder)
        os.close(os.open("file", os.O_CREAT, dir_fd=folder))
        inner = os.open("directory", os.O_RDONLY, dir_fd=folder)
        if locked:
            os.fchmod(folder, 0)
        os.close(folder)
        folder = inner
    os.close(folder)
    folders.remove_tree(str(top))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert [path.name for path in kept.iterdir()] == ["file"]
    with pytest.raises(OSError, match="Not a directory"):
        folders.empty_folder(str(kept / "file"))
