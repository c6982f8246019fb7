"""Locks without a solver: what is read of them, what they depend on, and the children that make them."""

from __future__ import annotations

import gc
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from executor import machine
from executor.environments import indexes
from executor.environments.lock import Lock, ask_child, find_lock, read_lock
from executor.environments.spec import Spec, read_spec, unite
from executor.errors import BuildError

LOCK = """\
version: 1
metadata:
  content_hash: {linux-64: abc}
  channels: [{url: conda-forge, used_env_vars: []}]
  platforms: [linux-64]
  sources: [environment.yml]
  custom_metadata: {run-local-spec: abc}
package:
- name: python
  version: 3.11.7
  manager: conda
  platform: linux-64
  dependencies: {libffi: '>=3.4,<4', openssl: ''}
  url: https://mirror.example/linux-64/python-3.11.7-h1_0.conda
  hash: {md5: aaa, sha256: bbb}
  category: main
  optional: false
- name: idna
  version: '3.10'
  manager: pip
  platform: linux-64
  dependencies: {}
  url: https://mirror.example/idna-3.10-py3-none-any.whl
  hash: {sha256: ccc}
  category: main
  optional: false
"""


def read(folder: Path, text: str) -> Lock:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "conda-lock.yml").write_text(text)
    return read_lock(folder / "conda-lock.yml")


def test_a_lock_of_conda_locks_own_is_read(tmp_path: Path) -> None:
    """Every package with its manager, version, digest and dependencies; a lock without our note has no bridge."""
    locked = read(tmp_path, LOCK)
    assert (locked.python, locked.bridge) == ("3.11.7", False)
    python, idna = locked.packages
    assert python.depends == ("libffi >=3.4,<4", "openssl")
    assert (idna.manager, idna.version, idna.sha256) == ("pip", "3.10", "ccc")


def test_the_digest_is_of_the_packages_and_not_of_the_mirror(tmp_path: Path) -> None:
    """Other URLs and another order give the same key; another version or archive gives another."""
    head, *packages = LOCK.partition("package:\n")[0], *LOCK.partition("package:\n")[2].split("- name")[1:]
    turned = head + "package:\n" + "".join(f"- name{each}" for each in packages[::-1])
    first = read(tmp_path / "a", LOCK).digest
    assert read(tmp_path / "b", LOCK.replace("mirror.example", "other.example")).digest == first
    assert read(tmp_path / "c", turned).digest == first
    assert read(tmp_path / "d", LOCK.replace("'3.10'", "'3.11'")).digest != first
    assert read(tmp_path / "e", LOCK.replace("ccc", "ddd")).digest != first


def test_only_a_spec_of_one_environment_has_a_lock_beside_it(tmp_path: Path) -> None:
    """The lock of a union is ours to keep, even where one of its parts has a committed one."""
    (tmp_path / "environment.yml").write_text("dependencies: [python]\n")
    (tmp_path / "conda-lock.yml").write_text(LOCK)
    spec = read_spec(tmp_path / "environment.yml", "x")
    other = Spec(
        name="y", path=None, sources={"y": ("python",)}, channels=("conda-forge",), conda=("python",), pip=("numpy",)
    )
    assert find_lock(spec, home=tmp_path / "home", glibc="2.36") == tmp_path / "conda-lock.yml"
    assert (tmp_path / "home") in find_lock(unite("x", [other, spec]), home=tmp_path / "home", glibc="2.36").parents


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PIP_INDEX_URL", "https://a.example/simple"),
        ("PIP_EXTRA_INDEX_URL", "https://b.example/simple"),
        ("PIP_FIND_LINKS", "/somewhere"),
        ("PIP_NO_INDEX", "1"),
    ],
)
def test_every_setting_of_pip_that_chooses_packages_asks_for_a_lock_of_its_own(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """And those that do not, such as pip's time-outs, leave it as it is."""
    monkeypatch.delenv(variable, raising=False)
    before = indexes.settings_digest()
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "77")
    assert indexes.settings_digest() == before
    monkeypatch.setenv(variable, value)
    assert indexes.settings_digest() != before


def test_pips_settings_become_uvs_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several values each, folders that are not there left out, and `no-index` only where it says yes."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "pip.conf"
    config.write_text(
        f"[global]\nindex-url = https://a.example/simple\nfind-links =\n  {tmp_path}\n  {tmp_path}/gone\nno-index = no\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    options = indexes.uv_options()
    assert options[options.index("--index-url") + 1] == "https://a.example/simple"
    assert [options[at + 1] for at, each in enumerate(options) if each == "--find-links"] == [str(tmp_path)]
    assert "--no-index" not in options
    monkeypatch.setenv("PIP_NO_INDEX", "true")
    assert "--no-index" in indexes.uv_options()


Child = Callable[[str], str]


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    """Writes a module that a child process can run, and answers with its name."""

    def write(code: str) -> str:
        (tmp_path / "path").mkdir(exist_ok=True)
        (tmp_path / "path" / "envtest_child.py").write_text(textwrap.dedent(code))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
        return "envtest_child"

    (tmp_path / "tmp").mkdir()
    return write


def ask(tmp_path: Path, module: str, said: list[str] | None = None, **request: object) -> dict[str, object]:
    def say(step: str, detail: str, done: float | None = None) -> None:
        if said is not None:
            said.append(f"{step}: {detail} {done}")

    return ask_child(module, {"home": str(tmp_path), **request}, say)


def test_a_child_answers_and_tells_how_far_it_is(tmp_path: Path, child: Child) -> None:
    """Any characters go both ways; lines that are not for the user are not shown to them."""
    module = child(
        """
        import json, sys
        request = json.load(sys.stdin)
        print('»["lock", "ü", null]\\nnoise\\n»["lock", "2", 0.5]', file=sys.stderr)
        json.dump({"ok": request["text"]}, sys.stdout)
        """
    )
    said: list[str] = []
    assert ask(tmp_path, module, said, text="日本 \udc80") == {"ok": "日本 \udc80"}
    assert said == ["lock: ü None", "lock: 2 0.5"]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("import os; os._exit(7)", "exit status 7"),
        ("import sys; sys.stdin.read(); raise SystemExit('no more room')", "no more room"),
        ("import sys; sys.stdin.read(); print('{\"ok\": ')", "exit status 0"),
        (
            "import sys; sys.stdin.buffer.read(); sys.stderr.buffer.write(b'\\xff bytes\\n'); raise SystemExit(1)",
            "bytes",
        ),
        ("import gone_envtest", "gone_envtest"),
    ],
)
def test_a_child_that_ends_without_an_answer_is_an_error_with_its_last_words(
    tmp_path: Path, child: Child, code: str, why: str
) -> None:
    """However it ends, before or after it has read a request of any size, and nothing of it stays open or behind."""
    with pytest.raises(BuildError, match="`envtest_child` ended without an answer") as caught:
        ask(tmp_path, child(code), text="x" * 2**20)
    assert why in caught.value.why
    assert not list((tmp_path / "tmp").iterdir())


def test_an_interrupt_ends_the_child(tmp_path: Path, child: Child) -> None:
    """Ctrl-C while it works kills it and removes its scratch folder."""
    module = child(
        """
        import os, signal, sys, time
        sys.stdin.read()
        print(f'»["lock", "{os.getpid()}", null]', file=sys.stderr, flush=True)
        time.sleep(0.2)  # until it waits for us
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
        """
    )
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, module, said)
    assert not Path("/proc", said[0].split()[1]).exists()
    assert not list((tmp_path / "tmp").iterdir())


def test_an_interrupt_ends_a_child_that_just_began(
    tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before anybody waits for it."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        os.kill(os.getpid(), signal.SIGINT)

    module = child("import time; time.sleep(60)")
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, module)
    gc.collect()
    assert not Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    assert not list((tmp_path / "tmp").iterdir())


def test_a_child_is_not_misled_by_where_the_user_is(
    tmp_path: Path, child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `yaml.py` or `json.py` of the project's is not taken for ours, and no setting of uv's steers what is installed."""
    project = tmp_path / "project"
    project.mkdir()
    for name in ("json", "yaml", "executor"):
        (project / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(project)
    for name in ("UV_OVERRIDE", "UV_HTTP_TIMEOUT", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "1")
    module = child(
        """
        import json, os, sys
        import yaml
        from executor.environments import indexes
        request = json.load(sys.stdin)
        json.dump({"seen": [name for name in request["names"] if name in os.environ], "path": sys.path}, sys.stdout)
        """
    )
    answer = ask(tmp_path, module, names=["UV_OVERRIDE", "UV_HTTP_TIMEOUT", "VIRTUAL_ENV"])
    assert answer["seen"] == ["UV_HTTP_TIMEOUT"]


def test_an_interrupt_ends_a_program_that_is_run() -> None:
    """And leaves no pipe to it open, which would be a warning, and here an error."""
    code = "import os, signal, time; time.sleep(0.2); os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        machine.run([sys.executable, "-I", "-c", code])
    gc.collect()
    assert not Path(f"/proc/self/task/{os.getpid()}/children").read_text()
